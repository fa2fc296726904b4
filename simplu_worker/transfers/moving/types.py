"""A move, its status and its certificate; its errors, and its next step by the rows of both shards (ADR 0007). Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from simplu_worker.shards.settling import MovingTenant, Progress, Transfer, TransferRefusedError
from simplu_worker.transfers.moving.checksums import Comparison
from simplu_worker.vocabulary import MovePhase, TenantState, TransferStep


class Move(msgspec.Struct, frozen=True):
    """A tenant and the two shards; *source_id* has its home."""

    tenant_id: str
    source_id: str
    target_id: str


class MoveOptions(msgspec.Struct, frozen=True):
    """How a mover goes about it. *log_kept* is the shortest time for which a worker keeps rows of the log."""

    log_kept: timedelta
    max_pause_s: float = 0.5


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """What a move did; *comparison* is of the rows as of the fence. Times in seconds, *phases_s* of this command.

    The epochs are those on the former and the new shard.
    """

    tenant: str
    source_shard: str
    target_shard: str
    epoch_before: int
    epoch: int
    pause_s: float | None  # from the fence until the tenant was active; None if another process ended the move
    duration_s: float
    rows_copied: int
    bytes_copied: int
    phases_s: dict[str, float]
    comparison: Comparison
    at: datetime


def describe_state(move: Move, phase: MovePhase, *, has_left: bool) -> str:
    """Return the state of the tenant of a mover that ends in *phase*, and the command that comes next.

    *has_left*: its home was no longer the source when the mover began.
    """
    source_id, target_id, again = move.source_id, move.target_id, "run the same command again to continue"
    match phase:
        case MovePhase.FENCE | MovePhase.LAST_DELTA | MovePhase.COMMIT:
            return f"the tenant is on shard {source_id} or is leaving it, and workers continue; {again}"
        case MovePhase.ACTIVATE:
            return f"the tenant has left shard {source_id}: workers activate it; {again}"
        case MovePhase.CERTIFY | MovePhase.PUBLISH:
            return f"the tenant is on shard {target_id}; run the same command again to compare and to publish it"
    if has_left:
        return f"the tenant has left shard {source_id}, and waits for its rows on shard {target_id}; {again}"
    return f"the tenant stays on shard {source_id}; {again}, or tenants rollback --stay --apply to delete the copy"


class PauseTooLongError(TransferRefusedError):
    """The tenant would have to wait for longer than allowed."""


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
    source: MovingTenant, source_shard_id: str, target: MovingTenant | None, arrival: Transfer | None, keeps: timedelta
) -> Progress | None:
    """Return the progress of an earlier mover from which the copy goes on; None to copy everything.

    Only with the same server on the source, and while the log has all rows since: *keeps* is half of that time.
    """
    if target is None or target.state not in ON_THE_WAY or arrival is None:
        return None
    progress = arrival.progress
    is_same = arrival.place == source_shard_id and progress.server == source.server
    if not is_same or progress.epoch != source.epoch or not _is_recent(progress.barrier, source, keeps):
        return None
    return progress


def warm_progress(
    source: MovingTenant,
    target: MovingTenant | None,
    departure: Transfer | None,
    arrival: Transfer | None,
    keeps: timedelta,
) -> Progress | None:
    """Return where the delta of a move back begins: at the fence of the move here, if the rows there are whole.

    *departure* is the journal of this move on the target, *arrival* that on its source.
    """
    if target is None or target.state is not TenantState.MOVED or departure is None or arrival is None:
        return None
    is_whole = departure.step == TransferStep.DONE and departure.move_token == target.move_token == arrival.move_token
    if not is_whole or arrival.ready_at is None or arrival.progress.target_server != source.server:
        return None
    if target.epoch != source.epoch or not _is_recent(arrival.ready_at, source, keeps):
        return None
    return Progress(source.server, source.epoch, arrival.ready_at, cursors=arrival.progress.cursors)


def _is_recent(at: datetime, source: MovingTenant, keeps: timedelta) -> bool:
    return timedelta() <= source.read_at - at < keeps
