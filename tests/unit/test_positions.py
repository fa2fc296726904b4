"""Positions in a stream shard: order, and the way to the lease table and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.positions import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Position

numbers = st.integers(min_value=0, max_value=10**129 - 1)
positions = st.one_of(
    st.builds(Position, numbers, st.integers(min_value=0, max_value=10_000)),
    st.sampled_from([AT_TIMESTAMP, TRIM_HORIZON, LATEST, SHARD_END]),
)


def test_positions_are_ordered_as_the_kcl_orders_them() -> None:
    """AT_TIMESTAMP < TRIM_HORIZON < LATEST < any number < SHARD_END; ties go by sub-sequence number."""
    expected = [
        AT_TIMESTAMP,
        TRIM_HORIZON,
        LATEST,
        Position.of("0"),
        Position.of("9"),
        Position.of("9", 3),
        Position.of("10"),
        Position.of("49590338271490256608559692538361571095921575989136588898"),
        Position.of("9" * 129),
        SHARD_END,
    ]

    backwards = expected[::-1]

    assert sorted(backwards) == expected


@given(numbers, numbers)
def test_positions_compare_as_big_integers_for_any_two_sequence_numbers(one: int, other: int) -> None:
    """Never as text: "9" comes before "10"."""
    assert (Position.of(str(one)) < Position.of(str(other))) == (one < other)


@given(positions)
def test_position_survives_the_lease_row_whatever_it_is(position: Position) -> None:
    """What is written as checkpoint and sub-sequence number is read as the same position."""
    assert Position.parse(position.checkpoint, position.sub_sequence_number) == position


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
    checkpoint: str,
    position: Position,
) -> None:
    """A sentinel has no sub-sequence number, whatever stands beside it."""
    assert Position.parse(checkpoint, 5) == position
    assert position.checkpoint == checkpoint
    assert position.is_sentinel == checkpoint.isupper()


@pytest.mark.parametrize("text", ["", "-1", "007", "1e3", "1_000", "٣", "shard_end", "1" * 130, " 1"])
def test_position_is_refused_when_it_is_no_sequence_number(text: str) -> None:
    """Only what Kinesis could have given is a sequence number."""
    with pytest.raises(ValueError, match="expected a sequence number"):
        Position.of(text)


def test_position_is_refused_when_its_sub_sequence_number_is_negative() -> None:
    """Sub-sequence numbers count from 0."""
    with pytest.raises(ValueError, match="expected a sub-sequence number"):
        Position.of("1", -1)
