"""A move, its status and its certificate; the errors that end one. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.moving.checksums import Comparison


class Phase(StrEnum):
    """The phase of a mover."""

    PREPARE = "prepare"
    COPY = "copy"
    CATCH_UP = "catch up"
    VERIFY = "verify"
    SWITCH = "switch"
    ACTIVATE = "activate"
    DONE = "done"


class Move(msgspec.Struct, frozen=True):
    """A tenant and the two shards; *source_id* has its home."""

    tenant_id: str
    source_id: str
    target_id: str


class MoveOptions(msgspec.Struct, frozen=True):
    """How a mover goes about it. *log_kept* is the shortest time for which a worker keeps rows of the log."""

    log_kept: timedelta
    max_pause_s: float = 0.5
    max_rows_per_s: float | None = None


class MoveStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a mover is; *row_total* is the number of rows to copy, 0 while it is unknown."""

    phase: Phase
    row_count: int = 0
    byte_count: int = 0
    row_total: int = 0


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """What a move did; *comparison* is of the rows as of the fence. Times in seconds, *phases_s* of this command."""

    tenant: str
    source_shard: str
    target_shard: str
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


class OutrunError(PermanentError):
    """Another mover of the tenant, or a rollback, has begun since; or a worker has ended the fence for good."""


class PauseTooLongError(PermanentError):
    """The tenant would have to wait for longer than allowed."""
