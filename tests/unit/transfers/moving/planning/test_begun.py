"""Moves that have begun come before others, each with its own target."""

from __future__ import annotations

import pytest

from simplu_worker.transfers.moving.balance import (
    BegunMove,
    BegunMoves,
    FoundTenant,
    PlannedTransfer,
    WeighedTenant,
    homes_after,
    homes_of,
    sort_begun_moves,
)
from simplu_worker.vocabulary import MoveStep, TenantState


def found(**states: str) -> list[FoundTenant]:
    """Return the rows of a tenant by shard; their weights are 10 on a, 20 on b and 30 on c."""
    weights = {"a": 10, "b": 20, "c": 30}
    return [(WeighedTenant("b", "l", name, weights[name]), TenantState(state)) for name, state in states.items()]


def transfer(source_id: str, target_id: str, weight: int) -> PlannedTransfer:
    return PlannedTransfer(WeighedTenant("b", "l", source_id, weight), target_id)


NOTHING = BegunMoves([], [], [])


@pytest.mark.parametrize(
    ("rows", "target_id", "step", "begun"),
    [
        (found(a="active", b="incoming"), "b", "open", BegunMoves([], [transfer("a", "b", 10)], [])),
        (found(a="fenced", b="ready"), "b", "open", BegunMoves([], [transfer("a", "b", 10)], [])),
        (found(a="active"), "b", "open", BegunMoves([], [transfer("a", "b", 10)], [])),
        # Its target takes no more tenants, or a rollback has begun.
        (found(a="active"), "c", "open", BegunMoves([], [], [transfer("a", "c", 10)])),
        (found(a="active", b="incoming"), "b", "undoing", BegunMoves([], [], [transfer("a", "b", 10)])),
        # A tenant that has left its shard has one way only.
        (found(a="moved", b="ready"), "b", "committed", BegunMoves([transfer("a", "b", 20)], [], [])),
        (found(a="moved", b="active"), "b", "committed", BegunMoves([transfer("a", "b", 20)], [], [])),
        (found(a="moved"), "b", "committed", BegunMoves([transfer("a", "b", 10)], [], [])),
        (found(a="moved", c="active"), "c", "committed", BegunMoves([transfer("a", "c", 30)], [], [])),
        # It has moved on, or was destroyed: nothing ends the move.
        (found(a="moved", b="moved", c="active"), "b", "committed", NOTHING),
        (found(a="destroyed", b="incoming"), "b", "open", NOTHING),
        (found(b="active"), "b", "open", NOTHING),
    ],
)
def test_move_that_has_begun(rows: list[FoundTenant], target_id: str, step: str, begun: BegunMoves) -> None:
    assert sort_begun_moves(rows, [BegunMove("b-l", "a", target_id, step)], {"a", "b"}) == begun


@pytest.mark.parametrize(
    ("rows", "step", "target_id"),
    [
        (found(a="active", b="incoming"), "open", "b"),
        (found(a="moved", b="ready"), "committed", "b"),
        (found(a="active", b="incoming"), "undoing", "a"),  # the tenant stays
    ],
)
def test_move_of_a_command_that_runs_is_left_to_it(rows: list[FoundTenant], step: str, target_id: str) -> None:
    begun = sort_begun_moves(rows, [BegunMove("b-l", "a", "b", step, is_running=True)], {"a", "b"})
    assert begun == BegunMoves(running=[transfer("a", target_id, 10)])
    assert (begun.going_on, begun.expected) == ([], begun.running)
    assert [one.shard_id for one in homes_after(homes_of(rows), begun.expected)] == [target_id]


def test_running_move_that_nothing_can_end_counts_for_nothing() -> None:
    rows = found(a="moved", b="moved", c="active")
    assert sort_begun_moves(rows, [BegunMove("b-l", "a", "b", "committed", is_running=True)], {"a", "b"}) == NOTHING


def test_homes_are_those_after_the_moves_that_have_begun() -> None:
    rows = [
        *found(a="moved", b="ready"),
        (WeighedTenant("b", "2", "a", 1), TenantState.ACTIVE),
        (WeighedTenant("b", "3", "a", 1), TenantState.FENCED),
        (WeighedTenant("b", "3", "b", 1), TenantState.INCOMING),
        (WeighedTenant("b", "4", "a", 1), TenantState.DESTROYED),
    ]
    begun = sort_begun_moves(
        rows, [BegunMove("b-l", "a", "b", MoveStep.COMMITTED), BegunMove("b-3", "a", "b", MoveStep.OPEN)], {"a", "b"}
    )
    assert [(one.tenant_id, one.shard_id) for one in homes_of(rows)] == [("b-2", "a"), ("b-3", "a")]
    after = homes_after(homes_of(rows), begun.expected)
    assert [(one.tenant_id, one.shard_id, one.weight) for one in after] == [
        ("b-2", "a", 1),
        ("b-l", "b", 20),
        ("b-3", "b", 1),
    ]


def test_tenant_that_moves_twice_is_last_where_the_second_move_goes() -> None:
    rows = found(a="moved", b="active", c="incoming")
    moves = [BegunMove("b-l", "b", "c", MoveStep.OPEN), BegunMove("b-l", "a", "b", MoveStep.COMMITTED)]
    begun = sort_begun_moves(rows, moves, {"a", "b", "c"})
    assert begun == BegunMoves([transfer("a", "b", 20)], [transfer("b", "c", 20)], [])
    assert [one.shard_id for one in homes_after(homes_of(rows), begun.expected)] == ["c"]
