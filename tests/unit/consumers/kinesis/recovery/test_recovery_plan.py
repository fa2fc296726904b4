from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import (
    CLOCK_MARGIN,
    Lineage,
    ReplayStart,
    format_position,
    ignoring_pending,
    is_own_row,
    lineage_of,
    may_lack_writes,
    missing_parent_records,
    named_tenants,
    parse_position,
    replay_start,
)
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    TRIM_HORIZON,
    AtSequenceNumber,
    AtTimestamp,
    HashRange,
    Position,
    RecordPosition,
)
from simplu_worker.shards.types import StoredPositions, StreamPosition

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SINCE = NOW - timedelta(minutes=5)
MADE_AT = NOW - timedelta(hours=1)
WAIT = timedelta(seconds=900)
FIRST = MADE_AT - WAIT - CLOCK_MARGIN  # no older operation was ever applied
LOWER, UPPER = HashRange(0, 9), HashRange(10, 19)

numbers = st.integers(min_value=0, max_value=10**129 - 1)
marks = st.builds(RecordPosition, numbers.map(str), st.integers(min_value=-1, max_value=10_000), st.just(SINCE))


def row(
    pending_from: str,
    *,
    read_to: str | None = None,
    held: tuple[str, ...] = (),
    parents_done: bool = False,
    pending_since: datetime | None = SINCE,
) -> StreamPosition:
    return StreamPosition(pending_from, pending_since, parents_done, "token", read_to=read_to, held=held)


def at(number: int, part: int = 0) -> RecordPosition:
    return RecordPosition(str(number), part, SINCE)


def covering(*expected: str) -> Callable[[AbstractSet[str], RecordPosition | None], bool]:
    return lambda names, pending_from: names <= set(expected) and pending_from in {at(5), None}


def place_of(
    found: StreamPosition | None,
    *,
    first_tenant_at: datetime | None = MADE_AT,
    started_at: datetime | None = None,
    held: tuple[str, ...] = (),
) -> ReplayStart:
    return replay_start(
        found, first_tenant_at, tenant_wait=WAIT, started_at=started_at, covers=covering(*held), now=NOW
    )


@pytest.mark.parametrize(
    ("found", "known_tokens", "is_own", "may_lack"),
    [
        pytest.param(None, [], True, True, id="no row, as before: none was ever written, or it is lost"),
        pytest.param(None, ["token"], False, True, id="the row that the reader wrote is lost"),
        pytest.param(row("5/0"), [], False, True, id="a row that the reader has not read"),
        pytest.param(row("5/0"), ["token"], True, False, id="its own row"),
        pytest.param(row("5/0"), ["last", "token"], True, False, id="its own row, by a write without an answer"),
        pytest.param(row("5/0"), ["other"], False, True, id="a row of another reader, or an older one of its own"),
    ],
)
def test_row_with_an_unknown_token_may_lack_writes(
    found: StreamPosition | None, known_tokens: list[str], *, is_own: bool, may_lack: bool
) -> None:
    rows = {} if found is None else {"own": found}
    assert is_own_row(found, known_tokens) is is_own
    assert may_lack_writes(found, StoredPositions(rows, MADE_AT), known_tokens) is may_lack
    assert not may_lack_writes(found, StoredPositions(rows, MADE_AT, is_unchanged=True), known_tokens)


@given(marks)
def test_position_in_a_row_is_the_one_that_was_written(position: RecordPosition) -> None:
    assert parse_position(format_position(position), SINCE) == position


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), frozenset[str]()),
        (("tenant:a-x", "tenant:b-x"), frozenset(["a-x", "b-x"])),
        (("tenant:tenant:a",), frozenset(["tenant:a"])),
        (("tenant:a-x", "slots:AAAA"), None),
    ],
)
def test_names_are_only_those_of_targets_that_name(entries: tuple[str, ...], expected: frozenset[str] | None) -> None:
    assert named_tenants(entries) == expected


@pytest.mark.parametrize(
    ("first_tenant_at", "started_at", "expected"),
    [
        pytest.param(None, None, None, id="a shard without tenants"),
        pytest.param(None, NOW, None, id="a shard without tenants, and reading began later"),
        pytest.param(MADE_AT, None, FIRST, id="no operation arrived before the first tenant, less the wait"),
        pytest.param(MADE_AT, FIRST - WAIT, FIRST, id="reading began before that"),
        pytest.param(MADE_AT, NOW, NOW, id="reading began later"),
    ],
)
def test_shard_without_a_row_may_lack_what_came_since_its_first_tenant(
    first_tenant_at: datetime | None, started_at: datetime | None, expected: ReplayStart
) -> None:
    assert place_of(None, first_tenant_at=first_tenant_at, started_at=started_at) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(row("SHARD_END"), None, id="the end"),
        pytest.param(row("SHARD_END", read_to="9/0", held=("tenant:a-x",)), None, id="the end, whatever else"),
        pytest.param(row("5/0"), at(5), id="a record"),
        pytest.param(row("5/3"), at(5, 3), id="a part of one"),
        pytest.param(row("5/-1"), at(5, -1), id="the place before a record"),
        pytest.param(row("5/0", pending_since=None), RecordPosition("5", 0, NOW), id="without a time of arrival"),
        pytest.param(row("5/0", read_to="9/1"), at(9, 1), id="no tenant is held further back"),
        pytest.param(
            row("5/0", read_to="9/1", held=("tenant:a-x",)), at(9, 1), id="the reader holds the tenants that are"
        ),
        pytest.param(row("5/0", read_to="9/1", held=("tenant:b-x",)), at(5), id="it does not hold them"),
        pytest.param(row("5/0", read_to="9/1", held=("tenant:a-x", "tenant:b-x")), at(5), id="not all of them"),
        pytest.param(row("4/0", read_to="9/1", held=("tenant:a-x",)), at(4), id="it holds them from too late on"),
        pytest.param(row("5/0", held=("tenant:a-x",)), at(5), id="without the position of all others"),
        pytest.param(row("5/0", read_to="9/1", held=("slots:AAAA",)), at(5), id="of unknown tenants"),
    ],
)
def test_shard_may_lack_what_its_row_says(found: StreamPosition, expected: ReplayStart) -> None:
    assert place_of(found, held=("a-x",)) == expected


@pytest.mark.parametrize(("started_at", "expected"), [(None, HORIZON), (NOW, NOW)])
@pytest.mark.parametrize("held", [("tenant:b-x",), ("slots:AAAA",)])
def test_row_that_says_nothing_is_one_of_the_beginning(
    held: tuple[str, ...], started_at: datetime | None, expected: datetime
) -> None:
    for found in (row("TRIM_HORIZON"), row("TRIM_HORIZON", read_to="9/0", held=held)):
        assert place_of(found, first_tenant_at=None, started_at=started_at, held=("a-x",)) == expected


@given(st.one_of(st.none(), marks), st.one_of(st.none(), marks), st.booleans())
def test_place_is_never_behind_what_the_row_says(
    pending_from: RecordPosition | None,
    read_to: RecordPosition | None,
    covers: bool,  # noqa: FBT001 - drawn
) -> None:
    found = row(
        format_position(pending_from),
        read_to=None if read_to is None else format_position(read_to),
        held=("tenant:a-x",),
    )
    place = replay_start(found, None, tenant_wait=WAIT, started_at=None, covers=lambda *_: covers, now=NOW)
    assert place == (read_to if covers and read_to is not None else pending_from or HORIZON)


# A family: `child` continues `left` and `right`, which both continue `old`.

FAMILY = {
    "left": Lease("left", SHARD_END, parents=frozenset(["old"]), hash_range=LOWER),
    "right": Lease("right", SHARD_END, parents=frozenset(["old"]), hash_range=UPPER),
    "old": Lease("old", SHARD_END),
}


def unread(
    rows: Mapping[str, StreamPosition],
    *,
    ancestors: Mapping[str, Lease] = FAMILY,
    parents: tuple[str, ...] = ("left", "right"),
    first_tenant_at: datetime | None = MADE_AT,
    waited_for: frozenset[str] = frozenset(),
) -> list[tuple[str, object, Position | None]]:
    lineage = Lineage(frozenset(parents), ancestors)
    stored = StoredPositions(dict(rows), first_tenant_at)
    rest = ignoring_pending(stored, waited_for.issuperset) if waited_for else stored
    found = missing_parent_records(lineage, rest, tenant_wait=WAIT)
    for records in found:
        assert records.hash_range == ancestors[records.stream_shard_id].hash_range
    return [(records.stream_shard_id, records.start, records.after) for records in found]


ALL_OF = AtTimestamp(FIRST)
END, DONE = row("SHARD_END"), row("SHARD_END", parents_done=True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            {}, [("old", ALL_OF, None), ("left", ALL_OF, None), ("right", ALL_OF, None)], id="it knows nothing"
        ),
        pytest.param({"left": DONE, "right": DONE}, [], id="it has everything"),
        pytest.param(
            {"left": END, "right": END, "old": END}, [], id="it has everything, and no row notes that old was done"
        ),
        pytest.param(
            {"left": END, "right": END}, [("old", ALL_OF, None)], id="only what the parents continue is lacking"
        ),
        pytest.param(
            {"left": END, "right": DONE, "old": row("7/2")},
            [("old", AtSequenceNumber("7"), Position(7, 2))],
            id="one parent had not re-read old",
        ),
        pytest.param(
            {"left": row("8/0", parents_done=True), "right": DONE},
            [("left", AtSequenceNumber("8"), Position(8))],
            id="a parent that had re-read old lacks its own end",
        ),
        pytest.param(
            {"left": row("8/0"), "right": DONE, "old": row("7/-1")},
            [("old", AtSequenceNumber("7"), Position(7, -1)), ("left", AtSequenceNumber("8"), Position(8))],
            id="old first, from right before its record on",
        ),
        pytest.param(
            {"left": row("TRIM_HORIZON"), "right": DONE, "old": END},
            [("left", AtTimestamp(HORIZON), None)],
            id="a row at the horizon is older than every tenant",
        ),
        pytest.param(
            {"left": row("8/0", read_to="12/0", held=("tenant:a",), parents_done=True), "right": DONE},
            [("left", AtSequenceNumber("8"), Position(8))],
            id="how far a parent's others were is no help where its own are not waited for",
        ),
    ],
)
def test_ancestors_are_read_again_where_their_rows_do_not_say_that_all_is_there(
    rows: Mapping[str, StreamPosition], expected: list[tuple[str, object, Position | None]]
) -> None:
    assert unread(rows) == expected


@pytest.mark.parametrize(
    ("read_to", "expected"),
    [
        pytest.param("12/0", [("left", AtSequenceNumber("8"), Position(8))], id="it was on its way"),
        pytest.param("SHARD_END", [], id="it was at its end"),
    ],
)
def test_what_an_ancestor_owes_to_those_waited_for_is_its_own_affair(
    read_to: str, expected: list[tuple[str, object, Position | None]]
) -> None:
    rows = {"left": row("8/0", read_to=read_to, held=("tenant:a", "tenant:b"), parents_done=True), "right": DONE}

    assert unread(rows, waited_for=frozenset({"a", "b", "c"})) == expected
    assert unread(rows, waited_for=frozenset({"a"})) == [("left", AtSequenceNumber("8"), Position(8))]


@pytest.mark.parametrize(
    ("found", "started_at", "expected"),
    [
        pytest.param(None, NOW, NOW, id="no row, reading began later than the first tenant"),
        pytest.param(None, HORIZON, FIRST, id="no row, reading began earlier"),
        pytest.param(row("TRIM_HORIZON"), NOW, NOW, id="a row at the horizon"),
    ],
)
def test_ancestor_is_not_read_again_before_where_it_was_read(
    found: StreamPosition | None, started_at: datetime, expected: datetime
) -> None:
    ancestors = {"left": lease("left", started_at=started_at)}
    rows = {} if found is None else {"left": found}
    assert unread(rows, ancestors=ancestors, parents=("left",)) == [("left", AtTimestamp(expected), None)]


row_texts = st.sampled_from(["none", "TRIM_HORIZON", "SHARD_END", "8/0"])


@given(
    st.dictionaries(st.integers(0, 9), st.frozensets(st.integers(0, 9), max_size=2), max_size=10),
    st.dictionaries(st.integers(0, 9), st.tuples(row_texts, st.booleans())),
)
def test_ancestors_are_read_again_whole_lines_at_a_time_and_parents_first(
    tree: dict[int, frozenset[int]], contents: dict[int, tuple[str, bool]]
) -> None:
    parents_of = {str(key): frozenset(str(one) for one in some if one < key) for key, some in tree.items()}
    ancestors = {key: lease(key, *parents) for key, parents in parents_of.items()}
    rows = {str(key): row(text, parents_done=done) for key, (text, done) in contents.items() if text != "none"}
    lineage = Lineage(frozenset(ancestors), ancestors)
    stored = StoredPositions({key: found for key, found in rows.items() if key in ancestors}, MADE_AT)

    found = [records.stream_shard_id for records in missing_parent_records(lineage, stored, tenant_wait=WAIT)]

    assert len(found) == len(set(found))
    assert set(found) == {key for key in ancestors if key not in rows or rows[key].pending_from != "SHARD_END"}
    for key in found:
        if key not in rows or not rows[key].parents_done:
            before = found[: found.index(key)]
            assert ancestors[key].parents & set(found) <= set(before)


def lease(key: str, *parents: str, checkpoint: Position = SHARD_END, started_at: datetime | None = None) -> Lease:
    return Lease(key, checkpoint, parents=frozenset(parents), hash_range=LOWER, started_at=started_at)


def test_lineage_has_all_that_can_still_be_read() -> None:
    leases = {
        one.lease_key: one
        for one in (
            lease("left", "old", "unleased"),
            lease("right", "old", started_at=SINCE),
            lease("old", "gone"),
            lease("gone", "oldest"),
            lease("oldest"),
        )
    }
    lineage = lineage_of(lease("child", "left", "right", "gone"), leases, ["gone"])

    readable = {key: leases[key] for key in ("left", "right", "old")}
    assert lineage == Lineage(frozenset(["left", "right"]), readable, unreadable_parents=frozenset(["gone"]))
    assert lineage.stream_shard_ids == ["gone", "left", "old", "right", "unleased"]


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ({}, True),
        ({"left": SHARD_END, "old": SHARD_END}, True),
        ({"left": Position(5), "old": SHARD_END}, False),
        ({"left": SHARD_END, "old": Position(5)}, False),
    ],
)
def test_lineage_has_ended_when_all_of_it_has(checkpoints: dict[str, Position], *, expected: bool) -> None:
    parents = {"left": ["old"], "old": []}
    leases = {key: lease(key, *parents[key], checkpoint=checkpoint) for key, checkpoint in checkpoints.items()}

    assert lineage_of(lease("child", "left"), leases, ()).is_ended is expected


def test_beginning_is_written_as_the_horizon() -> None:
    assert format_position(None) == TRIM_HORIZON.checkpoint


def test_parents_that_cannot_be_read_are_passed_over() -> None:
    assert unread({}, ancestors={}) == []
    assert unread({}, ancestors={"left": FAMILY["left"]}) == [("left", ALL_OF, None)]
