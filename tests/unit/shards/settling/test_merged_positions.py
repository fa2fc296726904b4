from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.settling import CarriedPosition, merge_positions

EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
POSITIONS = ["TRIM_HORIZON", "9/0", "10/-1", "10/0", "10/2", "100000000000000000000/0", "SHARD_END"]


def row(
    pending_from: str, name: str = "s1", since: datetime | None = EARLY, *, parents_done: bool = True, token: str = ""
) -> CarriedPosition:
    return CarriedPosition("stream", name, pending_from, since, parents_done, token)


@given(st.integers(0, len(POSITIONS) - 1), st.integers(0, len(POSITIONS) - 1))
def test_lower_position_counts(one: int, other: int) -> None:
    merged = merge_positions([row(POSITIONS[one])], [row(POSITIONS[other])])
    assert [lowered.position.pending_from for lowered in merged.lowered] == [POSITIONS[min(one, other)]]
    assert merged.deleted == ()


def test_row_that_only_one_shard_has_is_deleted() -> None:
    merged = merge_positions([row("7/0", "s1"), row("7/0", "s2")], [row("8/0", "s2"), row("8/0", "s3")])
    assert [lowered.position.key for lowered in merged.lowered] == [("stream", "s2")]
    assert merged.deleted == (("stream", "s3"),)


@pytest.mark.parametrize(
    ("carried", "own", "expected"),
    [
        (row("7/0", since=LATE), row("8/0", since=EARLY), EARLY),
        (row("7/0", since=None), row("8/0", since=EARLY), None),
        (row("TRIM_HORIZON", since=EARLY), row("8/0", since=EARLY), None),
    ],
)
def test_time_of_a_position_is_the_earlier_one(
    carried: CarriedPosition, own: CarriedPosition, expected: datetime | None
) -> None:
    (lowered,) = merge_positions([carried], [own]).lowered
    assert lowered.position.pending_since == expected


@pytest.mark.parametrize(("one", "other"), [(True, True), (True, False), (False, True), (False, False)])
def test_parents_are_done_where_both_shards_have_them(one: bool, other: bool) -> None:  # noqa: FBT001
    (lowered,) = merge_positions([row("7/0", parents_done=one)], [row("8/0", parents_done=other)]).lowered
    assert lowered.position.parents_done == (one and other)


@pytest.mark.parametrize("lower", ["7/0", "9/0"])
def test_tokens_of_both_rows_are_kept_apart(lower: str) -> None:
    (lowered,) = merge_positions([row(lower, token="of the source")], [row("8/0", token="of the target")]).lowered
    assert (lowered.former_token, lowered.carried_token) == ("of the target", "of the source")
