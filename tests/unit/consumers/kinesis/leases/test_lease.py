from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import (
    READ_UP_TO,
    REPORT,
    UNABLE,
    HoldRetry,
    Lease,
    LeaseReport,
    Observation,
    ReadAhead,
    StreamView,
    UnreadableLeaseError,
    assigned_leases,
    encode_report,
    has_hand_over_begun,
    is_own_landed_write,
    lease_of,
    observe,
    row_of,
    takeable_leases,
    unfinished_hand_overs,
)
from simplu_worker.consumers.kinesis.stream.positions import LATEST, SHARD_END, TRIM_HORIZON, HashRange, Position

ME = "host:1:me"
DURATION_S = 10.0

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
    owner_switches=2,
    parents=frozenset({"shardId-000000000000", "shardId-000000000001"}),
    children=frozenset({"shardId-000000000009"}),
    hash_range=HashRange(0, 2**128 - 1),
    pending_checkpoint=TRIM_HORIZON,
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


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"leaseOwner": {"S": "a"}, "simpluMeteredBy": {"S": "a"}}, True),
        ({"leaseOwner": {"S": "b"}, "simpluMeteredBy": {"S": "a"}}, False),
        ({"leaseOwner": {"S": "b"}, "checkpointOwner": {"S": "a"}, "simpluMeteredBy": {"S": "a"}}, True),
        ({"leaseOwner": {"S": "a"}}, False),
        ({}, False),
    ],
)
def test_lease_is_metered_only_by_its_owner(row: dict[str, dict[str, Any]], expected: bool) -> None:  # noqa: FBT001  # a column of the table
    lease = lease_of(MINIMAL_ROW | row)

    assert lease is not None
    assert lease.is_metered == expected


def test_lease_reads_a_row_of_the_kcl_when_only_the_oldest_attributes_are_there() -> None:
    assert lease_of(MINIMAL_ROW) == Lease("shardId-000000000000", LATEST)


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
        ("ownerSwitchesSinceCheckpoint", {"N": "0.5"}),
        ("simpluStartedAt", {"S": "yesterday"}),
        ("simpluStartedAt", {"S": "2026-01-01T08:00:00"}),
        ("simpluPendingTenants", {"S": "tenant:b-l"}),
        ("simpluPendingTenants", {"L": [{"S": "tenant:b-l"}]}),
        ("leaseKey", None),
    ],
)
def test_lease_is_unreadable_when_an_attribute_is_not_as_the_kcl_writes_it(
    attribute: str,
    value: dict[str, str] | None,
) -> None:
    row = {name: given for name, given in (KCL_ROW | {attribute: value}).items() if given is not None}

    with pytest.raises(UnreadableLeaseError, match=f"^{attribute.removesuffix('SubSequenceNumber')}: "):
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
    owner_switches=st.integers(0, 3),
    parents=st.frozensets(texts, max_size=2),
    children=st.frozensets(texts, max_size=2),
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
    ("lease", "age_s", "held", "expected"),
    [
        (Lease("a", LATEST), 0.0, (), True),
        (Lease("a", LATEST, owner="other"), 0.0, (), False),
        (Lease("a", LATEST, owner="other"), DURATION_S, (), False),
        (Lease("a", LATEST, owner="other"), DURATION_S + 0.001, (), True),
        (Lease("a", LATEST, owner=ME), 0.0, (), True),
        (Lease("a", LATEST, owner=ME), 0.0, ("a",), False),
        (Lease("a", LATEST, owner=ME), DURATION_S * 2, ("a",), False),
        (Lease("a", SHARD_END), 0.0, (), False),
        (Lease("a", SHARD_END, owner="other"), DURATION_S * 2, (), False),
    ],
)
def test_lease_is_takeable_when_free_or_not_renewed_for_the_lease_duration(
    lease: Lease,
    age_s: float,
    held: tuple[str, ...],
    expected: bool,  # noqa: FBT001  # a column of the table
) -> None:
    observations = {"a": Observation(lease, 1000.0)}

    taken = takeable_leases(observations, held=held, now=1000.0 + age_s, lease_duration_s=DURATION_S, me=ME)

    assert taken == ([lease] if expected else [])


def test_takeable_leases_come_free_first_then_longest_unchanged() -> None:
    observations = {
        "young": Observation(Lease("young", LATEST, owner="other"), 20.0),
        "old": Observation(Lease("old", LATEST, owner="other"), 10.0),
        "free": Observation(Lease("free", LATEST), 50.0),
    }

    taken = takeable_leases(observations, held=(), now=100.0, lease_duration_s=DURATION_S, me=ME)

    assert [lease.lease_key for lease in taken] == ["free", "old", "young"]


@pytest.mark.parametrize(
    ("owner", "counter", "expected"),
    [(ME, 6, True), (ME, 5, False), (ME, 7, False), ("other", 6, False), (None, 6, False)],
)
def test_row_is_our_own_landed_write_when_we_own_it_and_it_is_one_step_on(
    owner: str | None,
    counter: int,
    expected: bool,  # noqa: FBT001  # a column of the table
) -> None:
    lease = Lease("a", LATEST, counter=5, owner=ME)

    assert is_own_landed_write(lease, replace(lease, owner=owner, counter=counter), me=ME) == expected


@pytest.mark.parametrize(
    ("owner", "checkpoint_owner", "counter", "expected"),
    [
        ("next", ME, 6, True),  # renewed while it is handed over
        ("next", ME, 5, False),
        ("next", None, 6, False),  # assigned to the next owner, at last
        (ME, "last", 6, False),  # being handed over to this worker
    ],
)
def test_row_in_a_hand_over_is_the_write_of_its_checkpoint_owner(
    owner: str,
    checkpoint_owner: str | None,
    counter: int,
    expected: bool,  # noqa: FBT001  # a column of the table
) -> None:
    lease = Lease("a", LATEST, counter=5, owner=ME)
    row = replace(lease, owner=owner, checkpoint_owner=checkpoint_owner, counter=counter)

    assert is_own_landed_write(lease, row, me=ME) == expected


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
    known: tuple[str, str | None],
    found: tuple[str, str | None],
    expected: bool,  # noqa: FBT001  # a column of the table
) -> None:
    lease, row = (Lease("a", LATEST, owner=owner, checkpoint_owner=last) for owner, last in (known, found))

    assert has_hand_over_begun(lease, row, me=ME) == expected


@pytest.mark.parametrize(
    ("owner", "checkpoint_owner", "takeable_at"),
    [(None, None, 5.0), (ME, None, 5.0), ("next", ME, 5.0), (ME, "last", 15.0), (None, "last", 15.0)],
)
def test_lease_in_a_hand_over_is_its_last_owners_until_it_expires(
    owner: str | None, checkpoint_owner: str | None, takeable_at: float
) -> None:
    seen = {"a": Observation(Lease("a", LATEST, owner=owner, checkpoint_owner=checkpoint_owner), 0.0)}
    found = [now for now in (5.0, 15.0) if takeable_leases(seen, held=(), now=now, lease_duration_s=DURATION_S, me=ME)]

    assert found[0] == takeable_at


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
        pytest.param({"simpluRetry": {"N": "1"}}, {}, id="a request of another type is none"),
        pytest.param({"simpluRetry": {"S": "{"}}, {}, id="a request that is no JSON is none"),
        pytest.param(
            {"simpluRetry": {"S": '{"request_id": "1"}'}}, {"retry": HoldRetry("1")}, id="a request without a target"
        ),
        pytest.param({"checkpoint": {"S": "17"}}, {"checkpoint": Position(17, 0)}, id="no sub-sequence number is 0"),
    ],
)
def test_lease_is_read_with_what_may_lack(attributes: dict[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    assert lease_of(MINIMAL_ROW | attributes) == replace(Lease("shardId-000000000000", LATEST), **expected)


def test_unreadable_progress_names_its_attribute() -> None:
    held = {"simpluHeld": {"SS": ["tenant:b-l"]}}
    for text in ("5/y", "5", "x/0"):
        with pytest.raises(UnreadableLeaseError, match=r"^simpluReadTo: "):
            lease_of(MINIMAL_ROW | held | {"simpluReadTo": {"S": text}})


@pytest.mark.parametrize(
    ("owners", "text", "expected"),
    [
        ({"leaseOwner": "me"}, "2026-01-01T08:00:00+00:00 me", datetime(2026, 1, 1, 8, tzinfo=UTC)),
        ({"leaseOwner": "other"}, "2026-01-01T08:00:00+00:00 me", None),
        ({}, "2026-01-01T08:00:00+00:00 me", None),
        (
            {"leaseOwner": "next", "checkpointOwner": "me"},
            "2026-01-01T08:00:00+00:00 me",
            datetime(2026, 1, 1, 8, tzinfo=UTC),
        ),
        ({"leaseOwner": "me"}, "yesterday me", None),
        ({"leaseOwner": "me"}, "2026-01-01T08:00:00 me", None),
    ],
)
def test_time_read_up_to_counts_if_the_owner_has_written_it(
    owners: dict[str, str], text: str, expected: datetime | None
) -> None:
    attributes = {name: {"S": value} for name, value in {**owners, "simpluReadUpTo": text}.items()}
    lease = lease_of({**MINIMAL_ROW, **attributes})
    assert lease is not None
    assert lease.read_up_to == expected
    assert lease.last_read_up_to == (datetime(2026, 1, 1, 8, tzinfo=UTC) if "+" in text else None)


@pytest.mark.parametrize(
    ("lease", "is_assigned", "is_to_be_handed_over"),
    [
        (Lease("a", LATEST, owner=ME), True, False),
        (Lease("a", SHARD_END, owner=ME), False, False),
        (Lease("a", LATEST), False, False),
        (Lease("a", LATEST, owner="other"), False, False),
        (Lease("a", LATEST, owner=ME, checkpoint_owner="other"), False, False),
        (Lease("a", LATEST, owner="other", checkpoint_owner=ME), False, True),
        (Lease("a", SHARD_END, owner="other", checkpoint_owner=ME), False, True),
    ],
)
def test_follower_begins_what_it_is_assigned_once_its_last_owner_has_left(
    lease: Lease,
    is_assigned: bool,  # noqa: FBT001  # a column of the table
    is_to_be_handed_over: bool,  # noqa: FBT001  # a column of the table
) -> None:
    assert bool(assigned_leases([lease], me=ME)) == is_assigned
    assert bool(unfinished_hand_overs([lease], me=ME)) == is_to_be_handed_over


@pytest.mark.parametrize("writer", [ME, "host:2:other"])
def test_report_and_time_of_a_row_are_those_of_its_reader(writer: str) -> None:
    report = LeaseReport(writer, "2", 0.5, 10.0, 1, unable="citrus_unreachable")
    lease = Lease("a", Position(17), owner=ME, report=report, unable_of=writer)
    row = row_of(lease) | {REPORT: {"S": encode_report(report)}, UNABLE: {"S": writer}}
    row |= {READ_UP_TO: {"S": f"2026-01-01T08:00:00+00:00 {writer}"}}
    found = lease_of(row)
    assert found is not None
    assert (found.report is not None, found.read_up_to is not None, found.is_given_away) == (writer == ME,) * 3
    assert found.report is None or found.report.figures.unable == "citrus_unreachable"
    without_reader = lease_of({name: value for name, value in row.items() if name != "leaseOwner"})
    assert without_reader is not None
    assert (without_reader.read_up_to, without_reader.is_given_away) == (None, False)


def test_row_without_a_usable_number_names_it() -> None:
    for name, value in (("leaseCounter", {"N": "x"}), ("endingHashKey", {"S": "x"})):
        with pytest.raises(UnreadableLeaseError, match=name):
            lease_of(KCL_ROW | {name: value})


def test_attribute_that_is_null_is_absent() -> None:
    lease = lease_of(KCL_ROW | {"leaseOwner": {"NULL": True}, "checkpointOwner": {"NULL": True}})
    assert lease is not None
    assert (lease.owner, lease.checkpoint_owner) == (None, None)


def test_view_of_a_stream_is_its_last_scan() -> None:
    view = StreamView()
    assert (view.observations, view.leases(), view.gone, view.retention) == ({}, {}, frozenset(), None)
    lease = Lease("a", Position(17), counter=1, owner=ME)
    view.update([lease], now=10.0)
    view.update([lease], now=14.0)
    assert (view.leases(), view.unchanged_for_s("a")) == ({"a": lease}, 4.0)
    view.update([replace(lease, counter=2)], now=15.0)
    assert view.unchanged_for_s("a") == 0.0
