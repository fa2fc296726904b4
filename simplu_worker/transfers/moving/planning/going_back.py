"""What `tenants rollback` has to do: undo a move, end one, or move a tenant back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from simplu_worker.shards.settling.rows import Departure
from simplu_worker.vocabulary import MoveStep

NOT_COMMITTED = frozenset({MoveStep.OPEN, MoveStep.UNDOING})  # steps of the journal
NEVER_LEFT = NOT_COMMITTED | {MoveStep.UNDONE}


class WayBack(msgspec.Struct, frozen=True):
    """The steps of a rollback, in this order; an empty one is left out."""

    undone: tuple[str, ...]  # the targets of moves that have not committed
    ends_last_move: bool = False  # which has committed, and has no certificate
    back_to: str | None = None  # the shard to move the tenant to
    returned_from: str | None = None  # the shard to which the tenant had moved from its home before it came back


def way_back(
    home_id: str,
    copies: Iterable[str],
    *,
    came_from: str | None,
    last_departure: Departure | None,
    last_move: Departure | None,
    known: Collection[str],
    stay: bool = False,
) -> WayBack:
    """Return the steps of a rollback of a tenant with its home on *home_id*, by the journals; *stay* moves it nowhere.

    *copies* are the shards to which the tenant is moving, *came_from* is the one that it left for its home.
    *last_departure* is the journal of moves away from its home, *last_move* that of the move to its home, on the shard
    *came_from*. *known* are all shards.
    """
    targets = set(copies)
    if last_departure is not None and last_departure.step in NOT_COMMITTED:
        targets |= {last_departure.target_shard_id}.intersection(known)
    if stay:
        return WayBack(tuple(sorted(targets)))
    undone = tuple(sorted(targets - {came_from}))
    if came_from in targets:  # an earlier rollback was stopped
        return WayBack(undone, back_to=came_from)
    if undone:
        return WayBack(undone)
    ends_last_move = (
        last_move is not None and last_move.step == MoveStep.COMMITTED and last_move.target_shard_id == home_id
    )
    has_returned = (
        last_departure is not None
        and last_departure.target_shard_id == came_from
        and last_departure.step not in NEVER_LEFT
    )
    if ends_last_move and has_returned:  # an earlier rollback was stopped after its commit
        return WayBack((), ends_last_move=True, returned_from=came_from)
    returned_from = came_from if has_returned else None
    return WayBack((), ends_last_move=ends_last_move, back_to=came_from, returned_from=returned_from)
