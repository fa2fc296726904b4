"""Rules of `replay`: which records it takes, and the count of each outcome. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord
from simplu_worker.consumers.kinesis.stream.client import StreamShard
from simplu_worker.operations.operation import Disposition, Operation, Outcome, RejectedRecord, tenant_id_of
from simplu_worker.vocabulary import Absence, DeadLetterReason

CLOCKS_APART: Final = timedelta(minutes=1)  # as docs/operating.md allows them to be
WOULD_APPLY: Final = "would_apply"
SUCCEEDED: Final = "succeeded"


class ReplayRange(msgspec.Struct, frozen=True):
    """The records that arrived from *start* on and before *end*, of one tenant or of all."""

    start: datetime
    end: datetime | None = None
    tenant_id: str | None = None

    def is_past(self, arrived_at: datetime) -> bool:
        """Return whether this record and all later ones are behind the range."""
        return self.end is not None and arrived_at >= self.end

    def has_tenant(self, tenant_id: str) -> bool:
        """Return whether the range has the tenant."""
        return self.tenant_id is None or self.tenant_id == tenant_id


class Selection(msgspec.Struct, frozen=True):
    """The records of a reply that are in the range; *is_last* means that no later reply has any."""

    operations: list[Operation]
    rejected: list[RejectedRecord]
    is_last: bool


def select(decoded: Iterable[DecodedRecord], chosen: ReplayRange) -> Selection:
    """Return the records of *chosen*, in order."""
    operations: list[Operation] = []
    rejected: list[RejectedRecord] = []
    for position, _, record in decoded:
        if chosen.is_past(position.arrived_at):
            return Selection(operations, rejected, is_last=True)
        if isinstance(record, Operation):
            if chosen.has_tenant(record.tenant_id):
                operations.append(record)
        elif chosen.has_tenant(tenant_id_of(record.business_id or "", record.location_id or "")):
            rejected.append(record)
    return Selection(operations, rejected, is_last=False)


def generations(stream_shards: Sequence[StreamShard]) -> Iterator[list[StreamShard]]:
    """Yield groups of stream shards, each shard in a later group than its parents."""
    left = {shard.stream_shard_id: shard for shard in stream_shards}
    while left:
        ready = [shard for shard in left.values() if not shard.parents & left.keys()]
        for shard in ready:
            del left[shard.stream_shard_id]
        yield ready


def became_dead_letter(absence: Absence, arrived_at: datetime, *, tenant_wait: timedelta, now: datetime) -> bool:
    """Return whether an operation has waited for its tenant for longer than *tenant_wait*."""
    return absence is Absence.UNREGISTERED and arrived_at < now - tenant_wait - CLOCKS_APART


@dataclass
class ReplayTotals:
    """The counts of a replay, and why tenants and stream shards were *left*.

    No later operation of a left tenant is applied: the order would change.
    """

    record_count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    left: dict[str, str] = field(default_factory=dict)
    left_count: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count a decided operation."""
        match outcome.disposition:
            case Disposition.APPLIED:
                self.outcomes[outcome.failure or SUCCEEDED] += 1
            case Disposition.DUPLICATE:
                self.outcomes[Disposition.DUPLICATE] += 1
            case _:
                self.count_dead_letter(outcome.reason or DeadLetterReason.INVALID_MESSAGE)

    def count_logged(self, operation: Operation, row: Mapping[str, Any]) -> None:
        """Count an operation whose request id a log has."""
        if bytes(row["digest"]) == operation.digest:
            self.outcomes[Disposition.DUPLICATE] += 1
        else:
            self.count_dead_letter(DeadLetterReason.REQUEST_ID_REUSED)

    def count_dead_letter(self, reason: DeadLetterReason) -> None:
        """Count a dead letter."""
        self.outcomes[Disposition.DEAD_LETTER] += 1
        self.dead_letters[reason] += 1

    def count_rejected(self, rejected: Iterable[RejectedRecord]) -> None:
        """Count records that are no operations."""
        self.dead_letters.update(record.reason for record in rejected)

    def leave(self, operations: Sequence[Operation], reason: str) -> None:
        """Leave *operations*, and from now on their tenants."""
        self.left_count += len(operations)
        for operation in operations:
            self.left.setdefault(f"tenant {operation.tenant_id}", reason)

    def has_left(self, tenant_id: str) -> bool:
        """Return whether the tenant was left."""
        return f"tenant {tenant_id}" in self.left
