from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.stream.positions import (
    AT_TIMESTAMP,
    LATEST,
    SHARD_END,
    TRIM_HORIZON,
    LazyPositions,
    Position,
    RecordPosition,
    is_after,
    lowest_position,
)
from simplu_worker.operations.operation import Origin
from simplu_worker.vocabulary import Source

numbers = st.integers(min_value=0, max_value=10**129 - 1)
positions = st.one_of(
    st.builds(Position, numbers, st.integers(min_value=0, max_value=10_000)),
    st.sampled_from([AT_TIMESTAMP, TRIM_HORIZON, LATEST, SHARD_END]),
)
marks = st.builds(
    RecordPosition, numbers.map(str), st.integers(min_value=0, max_value=3), st.just(datetime(2026, 1, 2, tzinfo=UTC))
)
near = st.builds(
    RecordPosition,
    st.sampled_from(["0", "9", "10", "99", "100"]),
    st.integers(min_value=0, max_value=2),
    st.just(datetime(2026, 1, 2, tzinfo=UTC)),
    st.integers(min_value=0, max_value=2),
)


def test_positions_are_ordered_as_the_kcl_orders_them() -> None:
    expected = [
        AT_TIMESTAMP,
        TRIM_HORIZON,
        LATEST,
        Position.from_sequence_number("0"),
        Position.from_sequence_number("9"),
        Position.from_sequence_number("9", 3),
        Position.from_sequence_number("10"),
        Position.from_sequence_number("49590338271490256608559692538361571095921575989136588898"),
        Position.from_sequence_number("9" * 129),
        SHARD_END,
    ]

    backwards = expected[::-1]

    assert sorted(backwards) == expected


@given(positions)
def test_position_survives_the_lease_row_whatever_it_is(position: Position) -> None:
    assert Position.from_checkpoint(position.checkpoint, position.sub_sequence_number) == position


@pytest.mark.parametrize(
    ("checkpoint", "position"),
    [
        ("TRIM_HORIZON", TRIM_HORIZON),
        ("LATEST", LATEST),
        ("AT_TIMESTAMP", AT_TIMESTAMP),
        ("SHARD_END", SHARD_END),
        ("17", Position(17, 5)),
    ],
)
def test_position_reads_sentinels_verbatim_and_numbers_with_their_sub_sequence_number(
    checkpoint: str, position: Position
) -> None:
    assert Position.from_checkpoint(checkpoint, 5) == position
    assert position.checkpoint == checkpoint
    assert position.is_sentinel == checkpoint.isupper()


@pytest.mark.parametrize("text", ["", "-1", "007", "1e3", "1_000", "٣", "shard_end", "1" * 130, " 1"])
def test_position_is_refused_when_it_is_no_sequence_number(text: str) -> None:
    with pytest.raises(ValueError, match="expected a sequence number"):
        Position.from_sequence_number(text)


@given(st.one_of(marks, near), st.one_of(marks, near))
def test_mark_is_behind_another_exactly_when_its_position_is(one: RecordPosition, other: RecordPosition) -> None:
    assert is_after(one, other) == (one.position > other.position)
    assert one.position == Position(int(one.sequence_number), one.sub_sequence_number, -one.parts_behind)


def test_position_before_a_record_is_after_all_records_before_it() -> None:
    arrived_at = datetime(2026, 1, 2, tzinfo=UTC)
    before = RecordPosition.before_record("10", arrived_at)
    earlier, first = RecordPosition("9", 7, arrived_at), RecordPosition("10", 0, arrived_at)

    assert before.arrived_at == arrived_at
    assert earlier.position < before.position < first.position
    assert is_after(before, earlier)
    assert is_after(first, before)


def test_position_within_a_record_of_several_operations_is_stored_as_the_one_before_the_record() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    parts = [RecordPosition("10", 0, now, behind) for behind in (2, 1, 0)]
    before, after = RecordPosition("9", 7, now), RecordPosition("10", 1, now)

    assert [one.position for one in parts] == [Position(10, 0, -2), Position(10, 0, -1), Position(10)]
    for earlier, later in pairwise([before, RecordPosition.before_record("10", now), *parts, after]):
        assert is_after(later, earlier)
        assert later.position > earlier.position
    assert [one.stored.position for one in parts] == [Position(10, -1), Position(10, -1), Position(10)]
    assert RecordPosition("10", 3, now, 5).stored.position == Position(10, 2)


@given(st.lists(st.one_of(st.none(), near)), st.integers(min_value=0, max_value=9))
def test_lowest_is_the_beginning_when_one_of_them_is(found: list[RecordPosition | None], place: int) -> None:
    found.insert(place, None)

    assert lowest_position(found) is None


def test_position_of_a_part_is_the_same_both_ways() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    mark = RecordPosition("17", 3, at, 2)
    assert RecordPosition.from_position(mark.position, at) == mark


def test_positions_of_records_are_made_when_they_are_read() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    origins = [
        Origin(Source.KINESIS, "stream", at, sequence_number=number, sub_sequence_number=2, parts_behind=1)
        for number in ("5", "6")
    ]
    lazy = LazyPositions(origins)
    assert (len(lazy), lazy[1]) == (2, RecordPosition("6", 2, at, 1))
