"""What one reader has in hand: entries on their way to a shard, in order, and entries whose tenant has no shard now.

Why order is kept for each tenant: its entries are in one place at a time, either in one lane, first in first out with
one batch in flight, or in the waiting room. They change places all at once, in order.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog

from simplu_worker.clock import UtcClock, utc_now
from simplu_worker.consumers.backoff import backoff_s
from simplu_worker.consumers.letters import DeadLetter
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import TryAgainLaterError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import DeadLetterReason, Disposition, Operation, Outcome
from simplu_worker.shards.router import Router

BATCH_MAX_COUNT: Final = 1000
BATCH_MAX_BYTES: Final = 8 * 1024 * 1024
ENTRY_OVERHEAD_BYTES: Final = 1024  # what an operation costs in memory beside its record
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0

log = structlog.get_logger(__name__)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One operation in a reader's hands, with its ticket and the record it came from."""

    ticket: int
    operation: Operation
    record: bytes

    @property
    def cost_bytes(self) -> int:
        """What it counts for against the memory a stream shard may take."""
        return len(self.record) + ENTRY_OVERHEAD_BYTES

    def letter(self, reason: DeadLetterReason, error: str, *, failed_at: datetime) -> DeadLetter:
        """Return its dead letter."""
        return DeadLetter(
            reason=reason,
            error=error,
            origin=self.operation.origin,
            failed_at=failed_at,
            attempts=1,
            record=self.record,
            request_id=self.operation.request_id,
            resource_id=self.operation.resource_id,
            business_id=self.operation.business_id,
            location_id=self.operation.location_id,
        )


class Lane:
    """The entries of one reader for one shard: first in, first out, one batch in flight."""

    def __init__(
        self,
        shard_id: str,
        router: Router,
        *,
        settle: Callable[[Sequence[Entry], Sequence[DeadLetter]], Awaitable[None]],
        put_back: Callable[[str, Sequence[Entry]], None],
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*settle* passes over entries once letters are stored; *put_back* takes back all entries of one tenant."""
        self.shard_id = shard_id
        self._router = router
        self._settle = settle
        self._put_back = put_back
        self._draw = draw
        self._utc = utc
        self._entries: deque[Entry] = deque()
        self._has_work = asyncio.Event()
        self.failure_count = 0

    def __repr__(self) -> str:
        return f"Lane({self.shard_id}, entries={len(self._entries)}, failures={self.failure_count})"

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterable[Entry]:
        """Return what it holds, the batch in flight included."""
        return self._entries

    def put(self, entries: Iterable[Entry]) -> None:
        """Append entries, in their order."""
        self._entries.extend(entries)
        self._has_work.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Apply batch after batch until *stopping*; then the batch in flight is finished and the rest stays owed."""
        while not await self._idle_until(stopping):
            batch = self._next_batch()
            operations = [entry.operation for entry in batch]
            try:
                outcomes = await self._router.apply(self.shard_id, operations)
            except TryAgainLaterError as exc:
                await self._back_off(operations[0], exc, stopping)
                continue
            self.failure_count = 0
            for _ in batch:
                self._entries.popleft()
            count_outcomes(operations, outcomes, now=self._utc())
            await self._disperse(batch, outcomes)

    async def _idle_until(self, stopping: asyncio.Event) -> bool:
        """Wait for work or the end; return whether it is the end."""
        while not self._entries and not stopping.is_set():
            self._has_work.clear()
            async with asyncio.TaskGroup() as tasks:
                waits = [tasks.create_task(event.wait()) for event in (self._has_work, stopping)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        return stopping.is_set()

    def _next_batch(self) -> list[Entry]:
        batch: list[Entry] = []
        room_bytes = BATCH_MAX_BYTES
        for entry in self._entries:
            room_bytes -= len(entry.record)
            if len(batch) == BATCH_MAX_COUNT or (batch and room_bytes < 0):
                break
            batch.append(entry)
        return batch

    async def _disperse(self, batch: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        """Send each entry of an applied batch where its outcome says."""
        held: dict[str, list[Entry]] = {}
        settled: list[Entry] = []
        letters: list[DeadLetter] = []
        for entry, outcome in zip(batch, outcomes, strict=True):
            if outcome.disposition is Disposition.HOLD:
                held.setdefault(entry.operation.tenant_id, []).append(entry)
                continue
            settled.append(entry)
            if outcome.reason is not None:
                error = outcome.error or outcome.reason
                letters.append(entry.letter(outcome.reason, error, failed_at=self._utc()))
        if held:
            later = [entry for entry in self._entries if entry.operation.tenant_id in held]
            self._entries = deque(entry for entry in self._entries if entry.operation.tenant_id not in held)
            for entry in later:
                held[entry.operation.tenant_id].append(entry)
            for tenant_id, entries in held.items():
                self._put_back(tenant_id, entries)
        await self._settle(settled, letters)

    async def _back_off(self, operation: Operation, exc: TryAgainLaterError, stopping: asyncio.Event) -> None:
        """Wait before the same batch is tried again; ask meanwhile whether the shard has another address now."""
        self.failure_count += 1
        instruments.RETRIES.labels("kinesis", "shard_unavailable").inc()
        delay_s = backoff_s(self.failure_count, draw=self._draw(), base_s=RETRY_BASE_S, most_s=RETRY_MAX_S)
        log.warning("batch.deferred", shard_id=self.shard_id, retry_in_s=round(delay_s, 2), error=str(exc))
        if not await pause(delay_s, until=stopping):
            await self._router.refresh_address(operation.tenant_id)


def count_outcomes(operations: Sequence[Operation], outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Count a batch that was committed, and how long after its arrival that was."""
    counts: Counter[tuple[str, str, str]] = Counter()
    latencies: list[float] = []
    for operation, outcome in zip(operations, outcomes, strict=True):
        match outcome.disposition:
            case Disposition.HOLD:
                continue
            case Disposition.APPLIED:
                result = outcome.failure or "succeeded"
                latencies.append((now - operation.origin.arrived_at).total_seconds())
            case Disposition.DUPLICATE | Disposition.DEAD_LETTER:
                result = outcome.disposition
        counts[operation.origin.source, operation.kind, result] += 1
    for (source, kind, result), count in counts.items():
        instruments.OPERATIONS.labels(source, kind, result).inc(count)
    if latencies:
        instruments.OPERATION_LATENCY.observe_many(operations[0].origin.source, latencies)
