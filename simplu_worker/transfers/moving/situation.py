"""The next step of a move, by the rows of the two shards alone (ADR 0007). Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from simplu_worker.shards.settling.rows import Arrival, Departure, MovingTenant, Progress
from simplu_worker.vocabulary import MoveStep, TenantState

LEAVING = frozenset({TenantState.ACTIVE, TenantState.FENCED})
ON_THE_WAY = frozenset({TenantState.INCOMING, TenantState.READY})
GONE = frozenset({TenantState.DESTROYING, TenantState.DESTROYED})


class Situation(StrEnum):
    """The next step of a mover."""

    MOVE = "move"  # the home is the source
    COPY_AGAIN = "copy again"  # the source has committed, and the target has lost rows; the source is as of the fence
    ACTIVATE = "activate"  # the source has committed
    ARRIVED = "arrived"  # the home is the target
    GONE = "gone"  # the tenant is destroyed, or is being destroyed
    ELSEWHERE = "elsewhere"  # neither shard is the home


def situation_of(source: MovingTenant | None, target: MovingTenant | None, *, target_shard_id: str) -> Situation:
    """Return the next step; *source* and *target* are the tenant's rows on the two shards."""
    if target is not None and target.state is TenantState.ACTIVE:
        return Situation.ARRIVED
    if source is None:
        return Situation.ELSEWHERE
    if source.state in LEAVING:
        return Situation.MOVE
    if source.state in GONE:
        return Situation.GONE
    if source.state is not TenantState.MOVED or source.moved_to != target_shard_id:
        return Situation.ELSEWHERE
    if target is not None and target.state in GONE:
        return Situation.GONE
    if target is not None and target.state is TenantState.MOVED:
        return Situation.ELSEWHERE
    is_ready = target is not None and target.state is TenantState.READY and target.move_token == source.move_token
    return Situation.ACTIVATE if is_ready else Situation.COPY_AGAIN


def continued_progress(
    source: MovingTenant, source_shard_id: str, target: MovingTenant | None, arrival: Arrival | None, keeps: timedelta
) -> Progress | None:
    """Return the progress of an earlier mover from which the copy goes on; None if all is to be copied again.

    Only with the same server on the source, since the barrier is by its clock, and while the log has all rows since:
    *keeps* is half of the time for which it keeps them.
    """
    if target is None or target.state not in ON_THE_WAY or arrival is None:
        return None
    progress = arrival.progress
    is_same = arrival.source_shard_id == source_shard_id and progress.server == source.server
    if not is_same or progress.epoch != source.epoch or not _is_recent(progress.barrier, source, keeps):
        return None
    return progress


def warm_progress(
    source: MovingTenant,
    target: MovingTenant | None,
    departure: Departure | None,
    arrival: Arrival | None,
    keeps: timedelta,
) -> Progress | None:
    """Return where the delta of a move back begins: at the fence of the move here, if the rows left there are whole.

    *departure* is the journal on the target of this move, which the tenant has left; *arrival* that on its source.
    """
    if target is None or target.state is not TenantState.MOVED or departure is None or arrival is None:
        return None
    is_whole = departure.step == MoveStep.DONE and departure.move_token == target.move_token == arrival.move_token
    if not is_whole or arrival.ready_at is None or arrival.progress.target_server != source.server:
        return None
    if target.epoch != source.epoch or not _is_recent(arrival.ready_at, source, keeps):
        return None
    return Progress(source.server, source.epoch, arrival.ready_at, cursors=arrival.progress.cursors)


def _is_recent(at: datetime, source: MovingTenant, keeps: timedelta) -> bool:
    return timedelta() <= source.read_at - at < keeps
