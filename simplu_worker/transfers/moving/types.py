"""A move, its status and its certificate; the errors that end one. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from simplu_worker.shards.settling.rows import StatedError
from simplu_worker.transfers.moving.checksums import Comparison
from simplu_worker.vocabulary import MovePhase


class Move(msgspec.Struct, frozen=True):
    """A tenant and the two shards; *source_id* has its home."""

    tenant_id: str
    source_id: str
    target_id: str


class MoveOptions(msgspec.Struct, frozen=True):
    """How a mover goes about it. *log_kept* is the shortest time for which a worker keeps rows of the log.

    *is_drain* is kept in the journal, for the command that undoes a drain.
    """

    log_kept: timedelta
    max_pause_s: float = 0.5
    max_rows_per_s: float | None = None
    is_drain: bool = False


class MoveStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a mover is; *row_total* is the number of rows to copy, 0 while it is unknown."""

    phase: MovePhase
    row_count: int = 0
    byte_count: int = 0
    row_total: int = 0


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """What a move did; *comparison* is of the rows as of the fence. Times in seconds, *phases_s* of this command.

    *epoch_before* is that of the tenant on its former shard before the move, *epoch* that on its new one.
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

    @property
    def verdict(self) -> str:
        """Whether both shards have the same rows."""
        return "equal" if self.comparison.is_equal else "differs"


def describe_state(move: Move, phase: MovePhase, *, has_left: bool) -> str:
    """Return the state of the tenant of a mover that ends in *phase*, and the command that comes next.

    *has_left*: its home was no longer the source when the mover began.
    """
    source_id, target_id, again = move.source_id, move.target_id, "run the same command again to go on"
    match phase:
        case MovePhase.PREPARE | MovePhase.COPY | MovePhase.CATCH_UP | MovePhase.VERIFY | MovePhase.REHEARSE if (
            has_left
        ):
            return f"the tenant has left shard {source_id}, and waits for its rows on shard {target_id}; {again}"
        case MovePhase.PREPARE | MovePhase.COPY | MovePhase.CATCH_UP | MovePhase.VERIFY | MovePhase.REHEARSE:
            back = "tenants rollback --stay --apply to delete the copy"
            return f"the tenant goes on on shard {source_id}; {again}, or {back}"
        case MovePhase.FENCE | MovePhase.LAST_DELTA | MovePhase.COMMIT:
            return f"the tenant is on shard {source_id} or on its way, and workers go on; {again}"
        case MovePhase.ACTIVATE:
            return f"the tenant has left shard {source_id}: workers activate it; {again}"
        case MovePhase.CERTIFY | MovePhase.PUBLISH:
            return f"the tenant is on shard {target_id}; run the same command again to compare and to publish it"


class OutrunError(StatedError):
    """Another mover of the tenant, or a rollback, has begun since; or a worker has ended the fence for good."""


class PauseTooLongError(StatedError):
    """The tenant would have to wait for longer than allowed."""
