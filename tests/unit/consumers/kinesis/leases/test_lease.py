from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import (
    HELD,
    METERED_BY,
    READ_TO,
    READ_UP_TO,
    REPORT,
    TIME_CONSTANT_S,
    TOP_MAX,
    UNABLE,
    HeldTarget,
    Lease,
    LeaseReport,
    Meter,
    Observation,
    Progress,
    ReadAhead,
    ReplicaFigures,
    StreamView,
    TopBusiness,
    decode_report,
    encode_report,
    first_held,
    has_hand_over_begun,
    is_own_landed_write,
    lease_of,
    observe,
    row_of,
)
from simplu_worker.consumers.kinesis.stream.positions import LATEST, SHARD_END, TRIM_HORIZON, HashRange, Position
from simplu_worker.vocabulary import HoldReason

ME = "host:1:me"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

# As the KCL 2.x leaves a row after a checkpoint (reference row of the KCL notes), an attribute of 3.x beside it.
KCL_ROW: dict[str, dict[str, Any]] = {
    "leaseKey": {"S": "shardId-000000000003"},
    "leaseOwner": {"S": "host-a:uuid"},
    "leaseCounter": {"N": "4711"},
    "ownerSwitchesSinceCheckpoint": {"N": "2"},
    "checkpoint": {"S": "49590338271490256608559692538361571095921575989136588898"},
    "checkpointSubSequenceNumber": {"N": "7"},
    "parentShardId": {"SS": ["shardId-000000000000", "shardId-000000000001"]},
    "childShardIds": {"SS": ["shardId-000000000009"]},
    "startingHashKey": {"S": "0"},
    "endingHashKey": {"S": "340282366920938463463374607431768211455"},
    "throughputKBps": {"N": "1.5"},
    "pendingCheckpoint": {"S": "TRIM_HORIZON"},
    "checkpointOwner": {"S": "host-b:uuid"},
}
KCL_LEASE = Lease(
    lease_key="shardId-000000000003",
    checkpoint=Position(49590338271490256608559692538361571095921575989136588898, 7),
    counter=4711,
    owner="host-a:uuid",
    parents=frozenset({"shardId-000000000000", "shardId-000000000001"}),
    hash_range=HashRange(0, 2**128 - 1),
    checkpoint_owner="host-b:uuid",
    throughput_kbps=1.5,
)
MINIMAL_ROW: dict[str, dict[str, Any]] = {
    "leaseKey": {"S": "shardId-000000000000"},
    "leaseCounter": {"N": "0"},
    "checkpoint": {"S": "LATEST"},
}


def test_lease_reads_a_row_of_the_kcl() -> None:
    assert lease_of(KCL_ROW) == KCL_LEASE
    assert lease_of(MINIMAL_ROW) == Lease("shardId-000000000000", LATEST)


@pytest.mark.parametrize(
    ("owner", "checkpoint_owner", "expected"),
    [("a", None, True), ("b", None, False), ("b", "a", True), ("a", "b", False), (None, None, False)],
)
def test_mark_counts_only_from_the_actual_owner(
    owner: str | None, checkpoint_owner: str | None, *, expected: bool
) -> None:
    lease = Lease("k", LATEST, owner=owner, checkpoint_owner=checkpoint_owner, metered_by="a", unable_of="a")
    assert (lease.is_metered, lease.is_given_away) == (expected, expected)
    unmarked = replace(lease, metered_by=None, unable_of=None)
    assert (unmarked.is_metered, unmarked.is_given_away) == (False, False)


@pytest.mark.parametrize(
    ("entity_type", "is_lease"),
    [
        ({"S": "LEASE"}, True),
        ({"S": "STREAM"}, False),
        ({"S": "LEADER"}, False),
        ({"S": "WORKER_METRIC_STATS"}, False),
        ({"N": "1"}, False),
    ],
)
def test_row_is_a_lease_only_if_its_entity_type_says_so(entity_type: dict[str, str], is_lease: bool) -> None:  # noqa: FBT001  # a column of the table
    assert (lease_of(MINIMAL_ROW | {"entityType": entity_type}) is not None) == is_lease


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("leaseCounter", None),
        ("leaseCounter", {"S": "1"}),
        ("leaseCounter", {"N": "1.5"}),
        ("checkpoint", None),
        ("checkpoint", {"S": "nonsense"}),
        ("checkpoint", {"N": "5"}),
        ("checkpointSubSequenceNumber", {"N": "-2"}),
        ("leaseOwner", {"N": "1"}),
        ("parentShardId", {"S": "shardId-000000000000"}),
        ("startingHashKey", {"S": "zero"}),
        ("endingHashKey", {"S": "x"}),
        ("simpluReadTo", {"S": "5/y"}),
        ("simpluReadTo", {"S": "5"}),
        ("simpluReadTo", {"S": "x/0"}),
        ("simpluReadUpTo", {"S": "yesterday me"}),
        ("simpluReadUpTo", {"S": "2026-01-01T08:00:00 me"}),
        ("simpluStartedAt", {"S": "yesterday"}),
        ("simpluStartedAt", {"S": "2026-01-01T08:00:00"}),
        ("simpluPendingTenants", {"S": "tenant:b-l"}),
        ("simpluPendingTenants", {"L": [{"S": "tenant:b-l"}]}),
        ("leaseKey", None),
    ],
)
def test_lease_is_unreadable_by_an_attribute_of_another_form(attribute: str, value: dict[str, str] | None) -> None:
    row = {name: given for name, given in (KCL_ROW | {attribute: value}).items() if given is not None}

    with pytest.raises(ValueError, match=f"^{attribute.removesuffix('SubSequenceNumber')}: "):
        lease_of(row)


keys = st.sampled_from([f"shardId-{number:012}" for number in range(5)])
texts = st.text(min_size=1, max_size=5)
leases = st.builds(
    Lease,
    keys,
    st.one_of(
        st.sampled_from([TRIM_HORIZON, LATEST, SHARD_END]),
        st.builds(Position, st.integers(0, 10**56), st.integers(0, 3)),
    ),
    counter=st.integers(0, 3),
    owner=st.one_of(st.none(), texts, st.just(ME)),
    parents=st.frozensets(texts, max_size=2),
    hash_range=st.one_of(st.none(), st.builds(HashRange, st.integers(0, 2**64), st.integers(2**64, 2**128 - 1))),
    started_at=st.one_of(st.none(), st.datetimes(timezones=st.just(UTC))),
    pending_tenants=st.one_of(st.none(), st.frozensets(texts, min_size=1, max_size=3)),
)


@given(leases)
def test_lease_survives_its_row_whatever_it_is(lease: Lease) -> None:
    row = row_of(lease)

    assert lease_of(row) == lease
    assert [name for name, value in row.items() if not next(iter(value.values()))] == []
    assert row["entityType"] == {"S": "LEASE"}


def test_observation_remembers_since_when_the_counter_has_not_moved() -> None:
    lease = Lease("a", LATEST, counter=1, owner="other")
    moved = replace(lease, counter=2)

    first = observe({}, [lease], now=100.0)
    second = observe(first, [lease], now=105.0)
    third = observe(second, [moved], now=109.0)
    gone = observe(third, [], now=110.0)

    assert first == {"a": Observation(lease, 100.0)}
    assert second == {"a": Observation(lease, 100.0)}
    assert third == {"a": Observation(moved, 109.0)}
    assert gone == {}


@pytest.mark.parametrize(
    ("owner", "checkpoint_owner", "counter", "expected"),
    [
        (ME, None, 6, True),
        (ME, None, 5, False),
        (ME, None, 7, False),
        ("other", None, 6, False),
        (None, None, 6, False),
        ("next", ME, 6, True),  # renewed while it is handed over
        ("next", ME, 5, False),
        ("next", None, 6, False),  # assigned to the next owner, at last
        (ME, "last", 6, False),  # being handed over to this worker
    ],
)
def test_row_is_our_own_landed_write_when_we_own_it_one_step_on(
    owner: str | None, checkpoint_owner: str | None, counter: int, *, expected: bool
) -> None:
    lease = Lease("a", LATEST, counter=5, owner=ME)
    row = replace(lease, owner=owner, checkpoint_owner=checkpoint_owner, counter=counter)
    assert is_own_landed_write(lease, row, me=ME) == expected


TENANTS, FEWER = frozenset({"tenant:b-l", "tenant:c-l"}), frozenset({"tenant:b-l"})
AHEAD = ReadAhead(Position(40), FEWER)


def test_lease_reads_what_a_renewal_writes() -> None:
    report = LeaseReport(ME, "2", ReplicaFigures(unable="citrus_unreachable"))
    written = Progress(Position(17, 3), AHEAD, NOON, TENANTS, 2.5, report, is_given_away=True).attributes(ME)
    row = {name: value for name, value in (MINIMAL_ROW | {"leaseOwner": {"S": ME}} | written).items() if value}
    assert lease_of(row) == Lease(
        MINIMAL_ROW["leaseKey"]["S"],
        Position(17, 3),
        owner=ME,
        ahead=AHEAD,
        read_up_to=NOON,
        last_read_up_to=NOON,
        pending_tenants=TENANTS,
        throughput_kbps=2.5,
        metered_by=ME,
        report=report,
        unable_of=ME,
    )
    removed = {name for name, value in written.items() if value is None}
    assert removed == {"pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState"}
    assert written["ownerSwitchesSinceCheckpoint"] == {"N": "0"}
    assert Progress().attributes(ME) == {METERED_BY: {"S": ME}} | dict.fromkeys([READ_UP_TO, UNABLE, READ_TO, HELD])


@pytest.mark.parametrize(
    ("progress", "row", "expected"),
    [
        (Progress(), {}, None),
        (Progress(Position(17)), {"checkpoint": Position(17)}, None),
        (Progress(Position(17)), {"checkpoint": SHARD_END}, None),
        (Progress(Position(17)), {}, Progress(Position(17))),
        (Progress(ahead=AHEAD), {"ahead": AHEAD}, None),
        (Progress(ahead=AHEAD), {}, Progress(ahead=AHEAD)),
        (Progress(), {"ahead": AHEAD}, Progress()),
        (Progress(pending_tenants=FEWER), {"pending_tenants": FEWER}, None),
        (Progress(), {"pending_tenants": FEWER}, None),
        (
            Progress(Position(17), pending_tenants=FEWER),
            {"checkpoint": Position(20), "pending_tenants": TENANTS},
            Progress(pending_tenants=FEWER),
        ),
    ],
)
def test_progress_is_written_over_an_earlier_try_that_wrote_less(
    progress: Progress, row: dict[str, Any], expected: Progress | None
) -> None:
    assert progress.after(replace(Lease("a", LATEST), **row)) == expected


@pytest.mark.parametrize(
    ("known", "found", "expected"),
    [
        ((ME, None), ("next", ME), True),
        (("next", ME), (ME, None), True),  # taken back
        ((ME, None), (ME, None), False),
        (("next", ME), ("another", ME), False),
        ((ME, None), ("next", None), False),
        ((ME, None), (ME, "last"), False),
    ],
)
def test_hand_over_has_begun_when_the_row_names_this_worker_in_another_way(
    known: tuple[str, str | None], found: tuple[str, str | None], *, expected: bool
) -> None:
    lease, row = (Lease("a", LATEST, owner=owner, checkpoint_owner=last) for owner, last in (known, found))

    assert has_hand_over_begun(lease, row, me=ME) == expected


def test_lease_says_how_far_its_reader_is_ahead_when_the_row_does() -> None:
    ahead = ReadAhead(Position(17, 3), frozenset({"tenant:a-x", "tenant:b-y"}))
    row = row_of(Lease("a", Position(5), ahead=ahead))

    assert row["simpluReadTo"] == {"S": "17/3"}
    assert lease_of(row) == Lease("a", Position(5), ahead=ahead)
    assert lease_of({name: value for name, value in row.items() if name != "simpluHeld"}) == Lease("a", Position(5))
    assert lease_of({name: value for name, value in row.items() if name != "simpluReadTo"}) == Lease("a", Position(5))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        pytest.param({"leaseOwner": {"S": ""}, "checkpointOwner": {"S": ""}}, {}, id="an empty owner is none"),
        pytest.param({"startingHashKey": {"S": "0"}}, {}, id="half of a hash range is none"),
        pytest.param({"endingHashKey": {"S": "9"}}, {}, id="the other half is none"),
        pytest.param({"leaseOwner": {"NULL": True}, "checkpointOwner": {"NULL": True}}, {}, id="null is none"),
        pytest.param({"simpluRetry": {"S": "1 shard s"}}, {"retry": "1 shard s"}, id="a request"),
        pytest.param({"checkpoint": {"S": "17"}}, {"checkpoint": Position(17, 0)}, id="no sub-sequence number is 0"),
    ],
)
def test_lease_is_read_with_what_may_lack(attributes: dict[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    assert lease_of(MINIMAL_ROW | attributes) == replace(Lease("shardId-000000000000", LATEST), **expected)


@pytest.mark.parametrize(
    ("owners", "is_known"),
    [
        ({"leaseOwner": "me"}, True),
        ({"leaseOwner": "other"}, False),
        ({}, False),
        ({"leaseOwner": "next", "checkpointOwner": "me"}, True),
    ],
)
def test_time_read_up_to_counts_if_the_owner_has_written_it(owners: dict[str, str], *, is_known: bool) -> None:
    attributes = {name: {"S": value} for name, value in {**owners, READ_UP_TO: f"{NOON.isoformat()} me"}.items()}
    lease = lease_of({**MINIMAL_ROW, **attributes})
    assert lease is not None
    assert (lease.read_up_to, lease.last_read_up_to) == (NOON if is_known else None, NOON)


@pytest.mark.parametrize("writer", [ME, "host:2:other"])
def test_report_and_marks_of_a_row_are_those_of_its_reader(writer: str) -> None:
    report = LeaseReport(writer, "2", ReplicaFigures(unable="citrus_unreachable"))
    row = row_of(Lease("a", Position(17), owner="next")) | {"checkpointOwner": {"S": ME}}
    row |= {REPORT: {"S": encode_report(report)}, UNABLE: {"S": writer}}
    found = lease_of(row)
    assert found is not None
    assert (found.report, found.is_given_away) == ((report, True) if writer == ME else (None, False))


def test_view_of_a_stream_is_its_last_scan() -> None:
    view = StreamView()
    assert (view.observations, view.leases, view.gone, view.scanned_at) == ({}, {}, frozenset(), 0.0)
    lease = Lease("a", Position(17), counter=1, owner=ME)
    view.update([lease], now=10.0)
    view.update([lease], now=14.0)
    assert (view.leases, view.observations["a"].unchanged_since, view.scanned_at) == ({"a": lease}, 10.0, 14.0)


ages = st.floats(0, 1e6).map(lambda value: round(value, 3))
numbers = st.none() | ages
counts = st.none() | st.integers(0, 10**6)
held = st.builds(HeldTarget, st.text(max_size=60), st.sampled_from(["gap", "moving"]), ages)
top = st.builds(TopBusiness, st.text(max_size=30), st.text(max_size=10), ages)
figures = st.builds(
    ReplicaFigures, numbers, counts, st.lists(top, max_size=TOP_MAX).map(tuple), st.sampled_from([None, "x"])
)
versions = st.sampled_from(["", "1.0"])
reports = st.builds(
    LeaseReport, st.just(ME), versions, figures, numbers, numbers, counts, counts, st.lists(held, max_size=3).map(tuple)
)


@given(reports)
def test_report_is_read_as_written(report: LeaseReport) -> None:
    assert decode_report(encode_report(report), ME) == report


def test_numbers_of_a_report_are_rounded() -> None:
    held = (HeldTarget("0.12345", HoldReason.GAP, 1.00049),)
    report = decode_report(encode_report(LeaseReport(ME, lag_s=0.12345, read_count=7, held=held)), ME)
    assert report == LeaseReport(ME, lag_s=0.123, read_count=7, held=(HeldTarget("0.12345", HoldReason.GAP, 1.0),))


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (None, ME),
        ("{}", ME),
        (f'{{"by": "{ME}", "held_count": "many"}}', ME),
        *((encode_report(LeaseReport(ME)), owner) for owner in (None, "", "other")),
    ],
)
def test_report_of_another_writer_or_form_is_none(text: str | None, owner: str | None) -> None:
    assert decode_report(text, owner) is None


def test_report_names_the_oldest_held_targets() -> None:
    held = [HeldTarget(str(age), HoldReason.GAP, age) for age in (1.0, 4.0, 2.0, 3.0)]
    assert [one.age_s for one in first_held(held)] == [4.0, 3.0, 2.0]


def test_meter_knows_the_rate_since_its_last_note() -> None:
    meter = Meter(now=10.0)
    meter.note(5, now=10.0)
    found = [meter.per_s]
    for count, now in ((30, 13.0), (30, 14.0)):
        meter.note(count, now=now)
        found.append(meter.per_s)
    assert found == [None, 10.0, 0.0]


def test_meter_with_a_time_constant_follows_the_rate_from_its_estimate_on() -> None:
    once, often = (Meter(100.0, time_constant_s=TIME_CONSTANT_S, now=0.0) for _ in range(2))
    once.note(0, now=TIME_CONSTANT_S)
    for step in range(1, 11):
        often.note(0, now=TIME_CONSTANT_S * step / 10)
    assert once.per_s == pytest.approx(100 / math.e)
    assert often.per_s == pytest.approx(100 / math.e)
    unknown = Meter(time_constant_s=TIME_CONSTANT_S, now=0.0)
    unknown.note(1, now=0.5)
    assert unknown.per_s == 2.0
    unknown.note(2, now=1e6)  # so late that the mean is the new rate
    assert unknown.per_s == pytest.approx(1 / (1e6 - 0.5))
    still = Meter(0.0, time_constant_s=TIME_CONSTANT_S, now=0.0)
    still.note(1, now=TIME_CONSTANT_S)
    assert still.per_s == pytest.approx((1 - 1 / math.e) / TIME_CONSTANT_S)
