"""The view of a reader for people and metrics, and the values from which a reader is made. Pure."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.fetch.pacing import ReadSchedule
from simplu_worker.consumers.kinesis.holding.ownership import Hold
from simplu_worker.consumers.kinesis.leases.lease import HeldTarget, first_held
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUps
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderProgress
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time
from simplu_worker.vocabulary import PartitionKeyRule

TENANTS_NAMED_MAX: Final = 50  # of a hold
REPLY_WITHIN_S: Final = 10.0  # polls come each second, events of a push each five seconds


class ReaderView:
    """The view of one reader, which gives it its parts."""

    def __init__(
        self,
        progress: ReaderProgress,
        dispatcher: Dispatcher,
        catch_ups: CatchUps,
        *,
        utc: UtcClock,
    ) -> None:
        self._progress = progress
        self._cursor = progress.cursor
        self._dispatcher = dispatcher
        self._catch_ups = catch_ups
        self._utc = utc

    @property
    def lag_s(self) -> float | None:
        """The age of the first pending record, else the lag of the last reply. Held records do not count."""
        first = self._progress.tracker.first_pending
        if first is not None:
            return max(0.0, (self._utc() - first.arrived_at).total_seconds())
        if self._cursor.millis_behind is None:
            return None
        waited_s = loop_time() - self._cursor.replied_at
        is_late = waited_s > REPLY_WITHIN_S and not self._cursor.is_closed
        return self._cursor.millis_behind / 1000 + (waited_s if is_late else self.unread_for_s)

    @property
    def least_lag_s(self) -> float:
        """The lag for metrics: before the first reply, the time since the first try."""
        return self.unread_for_s if self.lag_s is None else self.lag_s

    @property
    def unread_for_s(self) -> float:
        """For how long every read has failed; 0 while reads succeed."""
        return loop_time() - self._cursor.replied_at if self._cursor.trouble else 0.0

    def lag_of(self, tenant_id: str | None) -> float | None:
        """Return how far a tenant's operations, or any tenant's, may be behind, held ones included."""
        owner = None if tenant_id is None else self.hold_of(tenant_id)
        holds = self._progress.holds() if tenant_id is None else [] if owner is None else [owner]
        return max((age for age in [self.lag_s, *map(self.held_age_s, holds)] if age is not None), default=None)

    @property
    def catch_up_lag_s(self) -> float:
        """The lag of the slowest catch-up behind the main reader; 0 without catch-ups."""
        return max((one.lag_s for one in self._catch_ups.running), default=0.0)

    @property
    def catch_up_count(self) -> int:
        """How many catch-ups run."""
        return len(self._catch_ups.running)

    def lag_retention_ratio(self, retention: timedelta | None) -> float:
        """Return the lag over the *retention*; at 1 the next records are lost. 0 while unknown."""
        return 0.0 if retention is None else self.least_lag_s / retention.total_seconds()

    def held_retention_ratio(self, retention: timedelta | None) -> float:
        """Return the age of the oldest held operation over the *retention*."""
        if retention is None:
            return 0.0
        return max(map(self.held_age_s, self._progress.holds()), default=0.0) / retention.total_seconds()

    def held_age_s(self, hold: Hold) -> float:
        """Return the age of the first operation of a hold."""
        return max(0.0, (self._utc() - hold.first_arrival).total_seconds())

    def is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        """Return whether an operation is in memory. Searches all of them."""
        return any(entry.operation.is_named(request_id, names) for entry in self._dispatcher.pipeline.entries())

    def has_operations_of(self, names: tuple[str, str]) -> bool:
        """Return whether operations with these ids wait for a shard, held ones included."""
        return self._dispatcher.pipeline.lookup.has_names(names)

    def hold_of(self, tenant_id: str) -> Hold | None:
        """Return the hold of a tenant; None without one."""
        return self._dispatcher.ownership.owner_of(tenant_id)

    def held_status(self) -> list[dict[str, Any]]:
        """Return every hold for the status."""
        now = loop_time()
        return [
            {
                "target": hold.title,
                "reason": hold.reason,
                "state": hold.state,
                "tenants": len(hold.tenants),
                "tenantIds": sorted(hold.tenants.names)[:TENANTS_NAMED_MAX],
                "operations": hold.passed_count,
                "ageSeconds": round(self.held_age_s(hold), 1),
                "heldForSeconds": round(now - hold.since, 1),
                "position": None if hold.reached is None else hold.reached.sequence_number,
            }
            for hold in self._progress.holds()
        ]

    def first_held(self) -> tuple[HeldTarget, ...]:
        """Return the oldest held targets, for the other replicas."""
        return first_held(HeldTarget(hold.title, hold.reason, self.held_age_s(hold)) for hold in self._progress.holds())

    def activity_status(self) -> dict[str, Any]:
        """Return lag, holds, catch-ups and trouble for the status."""
        return {
            "lagSeconds": self.lag_s,
            "held": dict(Counter(hold.reason for hold in self._progress.holds())),
            "catchUps": [one.status() for one in self._catch_ups.running],
            "trouble": self._cursor.trouble,
            "reads": "fan-out" if self._cursor.is_pushed else "polling",
        }


class ReaderServices(msgspec.Struct, frozen=True):
    """The opened services; with *subscriptions* the reader reads by push, with a *schedule* when other readers do."""

    stream: Stream
    gateway: ShardGateway
    dead_letters: DeadLetterStore
    subscriptions: Subscriptions | None = None
    schedule: ReadSchedule | None = None


class ReaderSettings(msgspec.Struct, frozen=True):
    """The settings of reading."""

    operation_max_bytes: int
    list_result_limit: int
    tenant_wait: timedelta
    partition_key: PartitionKeyRule = PartitionKeyRule.RESOURCE_TYPE
    ahead_from_s: float = 30.0  # the lease row gets a read-ahead when the held records are so much older than the read
    drain_s: float = 20.0  # less than SHUTDOWN_GRACE_SECONDS: the leases are released after it
