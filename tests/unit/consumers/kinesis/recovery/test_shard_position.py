from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.recovery.shard_positions import RowState, ShardPosition
from simplu_worker.shards.types import PositionClaim, StreamPosition


def make_position(*states: RowState) -> ShardPosition:
    position = ShardPosition("shard-1", PositionClaim("stream", "shardId-0"))
    for state in states:
        position.enter(state)
    return position


def adopt(position: ShardPosition, *, token: str = "", parents_done: bool = False, settled: bool = True) -> None:
    row = StreamPosition("TRIM_HORIZON", fencing_token=token, parents_done=parents_done)
    position.adopt(row, None, are_parents_settled=settled)


@pytest.mark.parametrize(("times", "was_read"), [(1, False), (2, True)])
def test_row_that_is_forgotten_was_read_if_it_was_before_it_was_adopted(times: int, *, was_read: bool) -> None:
    position, former = make_position(), RowState.UNREAD
    for number in range(times):
        position.invalidate()
        former = position.state
        adopt(position, token=str(number))
    assert (position.was_read, position.claim.fencing_tokens) == (True, [str(times - 1)])

    position.forget_row(former)
    assert (position.was_read, position.is_current, position.claim.fencing_tokens) == (was_read, False, [])


@pytest.mark.parametrize(
    ("reached_by", "following"),
    [
        ((), {RowState.PROVISIONAL, RowState.SETTLED}),
        ((RowState.PROVISIONAL,), {RowState.UNREAD, RowState.STALE}),
        ((RowState.SETTLED,), {RowState.UNREAD, RowState.STALE, RowState.SETTLED}),
        ((RowState.SETTLED, RowState.STALE), {RowState.PROVISIONAL, RowState.SETTLED}),
    ],
)
def test_row_enters_only_a_state_that_may_follow(reached_by: tuple[RowState, ...], following: set[RowState]) -> None:
    for entered in RowState:
        position = make_position(*reached_by)
        before = position.state
        if entered in following:
            position.enter(entered)
            assert position.state is entered
        else:
            with pytest.raises(ValueError, match="expected a state that may follow"):
                position.enter(entered)
            assert position.state is before


@pytest.mark.parametrize(
    ("settled", "parents_done", "expected"),
    [
        (False, False, RowState.PROVISIONAL),
        (True, False, RowState.SETTLED),
        (False, True, RowState.SETTLED),
        (True, True, RowState.SETTLED),
    ],
)
def test_row_is_provisional_while_operations_were_pending_at_the_parents(
    *, settled: bool, parents_done: bool, expected: RowState
) -> None:
    position = make_position()
    adopt(position, parents_done=parents_done, settled=settled)
    assert (position.state, position.is_current, position.was_read) == (expected, True, True)


@pytest.mark.parametrize(
    ("reached_by", "expected"),
    [
        ((), RowState.UNREAD),
        ((RowState.PROVISIONAL,), RowState.STALE),
        ((RowState.SETTLED,), RowState.STALE),
        ((RowState.SETTLED, RowState.STALE), RowState.STALE),
    ],
)
def test_row_that_is_invalidated_stays_unread_if_it_was(reached_by: tuple[RowState, ...], expected: RowState) -> None:
    position = make_position(*reached_by)
    position.invalidate()
    assert (position.state, position.is_current) == (expected, False)
