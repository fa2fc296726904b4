from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON, ParentRecords, Unread, union
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, AtTimestamp, Position, RecordPosition

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def mark(number: int) -> RecordPosition:
    return RecordPosition(str(number), 0, START + timedelta(seconds=number))


def parent(stream_shard_id: str, after: int) -> ParentRecords:
    if not after:
        return ParentRecords(stream_shard_id, AtTimestamp(HORIZON), None, None)
    return ParentRecords(stream_shard_id, AtSequenceNumber(str(after)), Position(after), None)


parents = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3).map(
    lambda found: tuple(parent(one, found[one]) for one in sorted(found))
)
unreads = st.builds(Unread, st.none() | st.integers(1, 12).map(mark), parents)


def test_union_has_the_lower_start_of_each_parent_in_the_order_of_their_ids() -> None:
    parts = [
        Unread(mark(10), (parent("b", 2), parent("c", 3))),
        Unread(mark(9), (parent("a", 3), parent("b", 1), parent("c", 0))),
    ]
    assert union(parts) == union(parts[::-1])
    assert union(parts) == Unread(mark(9), (parent("a", 3), parent("b", 1), parent("c", 0)))
    assert union([*parts, Unread(None)]).after is None
    unknown = ParentRecords("a", AtTimestamp(START), None, None)
    for one, other, expected in (
        (unknown, unknown, unknown),  # the same start
        (unknown, parent("a", 3), parent("a", 0)),
        (parent("a", 3), unknown, parent("a", 0)),
    ):
        found = union([Unread(None, (one, parent("b", 2))), Unread(None, (other, parent("c", 2)))])
        assert found.parents == (expected, parent("b", 2), parent("c", 2))


@given(unreads, unreads)
def test_union_includes_both_and_nothing_more_than_needed(one: Unread, other: Unread) -> None:
    both = union([one, other])
    assert both.includes(one)
    assert both.includes(other)
    assert both == union([other, one])
    assert (both == one) is one.includes(other)
