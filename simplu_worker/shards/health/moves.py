"""The moves of tenants away from a shard, as its journal has them: for people, and counted as they end. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.vocabulary import MoveOutcome, MoveStep

RUNNING_S: Final = 20.0  # without a note of its command; ten in a row are missed by none that runs
NOTED: Final = frozenset({MoveStep.OPEN, MoveStep.COMMITTED, MoveStep.UNDOING})  # by its command, while it runs
UNFINISHED: Final = frozenset({MoveStep.OPEN, MoveStep.COMMITTED, MoveStep.UNDOING, MoveStep.CLEANING})

MoveKey: TypeAlias = tuple[str, int, MoveOutcome]  # tenant, token, outcome


class MoveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the journal, at *read_at* by the clock of its shard; *updated_at* is when the move last went on.

    *phase*, *row_count* and *byte_count* are of a mover before its commit, *error* of one that gave up. Its command
    notes at *seen_at* that it runs, and by *is_stopped* that it has ended. The rest is of a certificate.
    """

    tenant_id: str
    target_shard_id: str
    move_token: int
    step: str  # a `MoveStep`, or one that only a newer mover knows
    started_at: datetime
    updated_at: datetime
    read_at: datetime
    business_id: str | None = None
    location_id: str | None = None
    phase: str | None = None
    row_count: int | None = None
    byte_count: int | None = None
    error: str | None = None
    seen_at: datetime | None = None
    is_stopped: bool = False
    verdict: str | None = None
    pause_s: float | None = None
    rows_copied: int | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether the move has begun and not ended."""
        return self.step in UNFINISHED

    @property
    def is_running(self) -> bool | None:
        """Whether the command of the move runs; None for a cleanup, which notes nothing."""
        if self.step not in NOTED:
            return None
        noted_at = max(self.updated_at, self.seen_at or self.updated_at)
        has_ended = self.is_stopped or self.error is not None
        return not has_ended and (self.read_at - noted_at).total_seconds() <= RUNNING_S

    @property
    def outcome(self) -> MoveOutcome | None:
        """How the move, or its last mover, has ended; None while it goes on."""
        if self.step == MoveStep.DONE:
            return MoveOutcome.MOVED if self.verdict == "equal" else MoveOutcome.DIFFERS
        if self.step == MoveStep.UNDONE:
            return MoveOutcome.UNDONE
        return None if self.error is None else MoveOutcome.FAILED

    @property
    def end(self) -> MoveKey | None:
        """The key of the end of this move; None while it goes on. A mover that comes later has another token."""
        return None if self.outcome is None else (self.tenant_id, self.move_token, self.outcome)

    @property
    def standing_s(self) -> float:
        """The time since the move last went on."""
        return max(0.0, (self.read_at - self.updated_at).total_seconds())


def ended_keys(entries: Iterable[MoveEntry]) -> frozenset[MoveKey]:
    """Return the ends of moves among *entries*."""
    return frozenset(one.end for one in entries if one.end is not None)


def newly_ended(entries: Iterable[MoveEntry], before: Collection[MoveKey]) -> list[MoveEntry]:
    """Return those of *entries* that have ended and were not among *before*."""
    return [one for one in entries if one.end is not None and one.end not in before]


def longest_standing_s(moves: Mapping[str, Iterable[MoveEntry]]) -> float:
    """Return for how long the one of *moves*, by shard, that has stood for longest has not gone on; 0 without one."""
    return max((one.standing_s for entries in moves.values() for one in entries), default=0.0)


def move_views(moves: Mapping[str, Iterable[MoveEntry]]) -> list[dict[str, Any]]:
    """Return *moves*, by the shard that they leave, as JSON members; unknown values are omitted."""
    return [
        {name: value for name, value in _view(shard_id, one).items() if value is not None}
        for shard_id, entries in sorted(moves.items())
        for one in entries
    ]


def _view(shard_id: str, move: MoveEntry) -> dict[str, Any]:
    return {
        "tenant": move.tenant_id,
        "businessId": move.business_id,
        "locationId": move.location_id,
        "sourceShard": shard_id,
        "targetShard": move.target_shard_id,
        "step": move.step,
        "phase": move.phase,
        "rows": move.row_count,
        "bytes": move.byte_count,
        "startedAt": move.started_at,
        "notedAt": move.updated_at,
        "isRunning": move.is_running,
        "error": move.error,
    }
