"""A lane: the operations of one reader that are queued for one Postgres shard, in order.

Why the order of each tenant is kept: its operations are in one place at a time, either in one lane (first in, first
out, one batch in flight) or in the route lookup. They move between these places together and in order. Operations that
leave both to be held are read again from the stream, starting with the first of them.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Final, Protocol, assert_never

import msgspec
import structlog

from simplu_worker.consumers.kinesis.fetch.prefetch_memory import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.recovery.shard_positions import Backfill, ShardPosition, ShardPositions
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.consumers.outcome_counts import count_outcomes, group_by_outcome
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import DeadLetterReason, Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionChangedError
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event, wait_any

BATCH_MAX_COUNT: Final = 2000
BATCH_MAX_BYTES: Final = 1024 * 1024  # more only where one operation is larger
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 0.5
HOLD_AFTER_S: Final = 1.0  # a shard that took no batch for so long is held; a restart of its pooler is shorter
LATE_AFTER_S: Final = 1.0
STUCK_AFTER_S: Final = 2.0  # a batch that is in flight for longer may never be answered

DONE: Final = frozenset({Disposition.APPLIED, Disposition.DUPLICATE})

log = structlog.get_logger(__name__)


class QueuedOperation(msgspec.Struct, frozen=True, gc=False):
    """A decoded operation with its source record and its ticket in the tracker of the cursor that read it."""

    ticket: int
    operation: Operation
    record: bytes
    tracker: CheckpointTracker[RecordPosition]

    @property
    def before(self) -> RecordPosition | None:
        """The last position before the operation."""
        return self.tracker.position_before(self.ticket)

    def dead_letter(
        self, reason: DeadLetterReason, error: str, *, failed_at: datetime, attempts: int = 1
    ) -> DeadLetter:
        """Return the dead letter of the operation."""
        return DeadLetter(
            reason=reason,
            error=error,
            origin=self.operation.origin,
            failed_at=failed_at,
            attempts=attempts,
            record=self.record,
            request_id=self.operation.request_id,
            resource_id=self.operation.resource_id,
            business_id=self.operation.business_id,
            location_id=self.operation.location_id,
        )


def cost_bytes_of(entries: Collection[QueuedOperation]) -> int:
    """Return the memory that *entries* count for: the records, their data as text, and an overhead for each."""
    return 2 * sum([entry.operation.size_bytes for entry in entries]) + OPERATION_OVERHEAD_BYTES * len(entries)


class LaneOwner(Protocol):
    """Takes the operations that a lane does not apply."""

    async def settle(self, entries: Sequence[QueuedOperation], letters: Sequence[DeadLetter]) -> None:
        """Finish *entries*, once *letters* are stored."""

    def requeue_unrouted(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Take back all operations of a tenant that does not live on the shard now, by the row of the shard."""

    def hold_shard(self, shard_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Hold a shard that takes no operations, from the first of *entries* on."""

    def is_held(self, shard_id: str) -> bool:
        """Return whether the shard is already held."""

    def count_failure(self, entry: QueuedOperation) -> int:
        """Count one more failure of an operation on a healthy shard; return the count."""

    def start_backfill(self, shard_id: str, backfill: Backfill, entries: Sequence[QueuedOperation]) -> None:
        """Have the stream read again for all tenants of the shard; drop *entries*, which are all of the lane."""

    def hold_failing(self, entries: Sequence[QueuedOperation]) -> None:
        """Hold the tenant of *entries*, the first of which failed on a healthy shard, to try it again later."""


class ShardLane:
    """The queue of one reader for one shard: first in, first out, one batch in flight."""

    def __init__(
        self,
        shard_id: str,
        gateway: ShardGateway,
        owner: LaneOwner,
        *,
        shard_positions: ShardPositions | None,
        tries_max: int,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*tries_max*: how often an operation that fails on a healthy shard is tried before it is given up.

        Without *shard_positions* no position is written on the shard.
        """
        self.shard_id = shard_id
        self._gateway = gateway
        self._owner = owner
        self._shard_positions = shard_positions
        self._must_read_row = False  # the reader's position row on the shard
        self._tries_max = tries_max
        self._draw = draw
        self._utc = utc
        self._queue: list[QueuedOperation] = []
        self._batch: list[QueuedOperation] = []  # in flight, or with outcomes that are being settled
        self._flight_timeout: asyncio.Timeout | None = None
        self._sent_at = 0.0
        self._failing_since: float | None = None
        self._failure_count = 0
        self._has_work = asyncio.Event()

    def __repr__(self) -> str:
        return f"ShardLane({self.shard_id}, batch={len(self._batch)}, queue={len(self._queue)})"

    def __len__(self) -> int:
        return len(self._batch) + len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is in flight or being settled."""
        return not self._batch

    @property
    def is_stuck(self) -> bool:
        """Whether the batch has been in flight for so long that it may never be answered.

        Not while the shard takes batches of other readers: then this batch waits for its turn.
        """
        if self._flight_timeout is None:
            return False
        return loop_time() - max(self._sent_at, self._gateway.last_applied_at(self.shard_id)) > STUCK_AFTER_S

    @property
    def is_late(self) -> bool:
        """Whether the batch takes longer than other lanes should wait: it is unanswered, or being settled."""
        if self._flight_timeout is None:
            return bool(self._batch) or self._failing_since is not None
        return self._failing_since is not None or loop_time() - self._sent_at > LATE_AFTER_S

    @property
    def queued_bytes(self) -> int:
        """The memory of the operations queued behind the batch."""
        return cost_bytes_of(self._queue)

    def entries(self) -> list[QueuedOperation]:
        """Return all operations of the lane, the batch included."""
        return [*self._batch, *self._queue]

    def enqueue(self, entries: Iterable[QueuedOperation]) -> None:
        """Append *entries*, in their order."""
        self._queue.extend(entries)
        self._has_work.set()

    def take_queue(self) -> list[QueuedOperation]:
        """Remove and return the operations behind the batch."""
        queue, self._queue = self._queue, []
        return queue

    def request_row_read(self) -> None:
        """Read the position row before the next batch, or now where no operation is queued."""
        self._must_read_row = True
        self._has_work.set()

    def give_up_batch(self) -> None:
        """Stop waiting for the batch in flight: whether it was committed is unknown then."""
        if self._flight_timeout is not None and not self._flight_timeout.expired():
            self._flight_timeout.reschedule(loop_time())

    async def run(self, stopping: asyncio.Event) -> None:
        """Apply batch after batch until *stopping*; then finish the batch in flight. The queue stays pending."""
        while not await self._wait_for_work(stopping):
            self._batch, self._must_read_row = self._next_batch(), False
            try:
                outcomes = await self._apply([entry.operation for entry in self._batch])
            except PositionChangedError:
                await self._requeue_and_reread()
                continue
            except RetryableError as exc:
                await self._defer(exc, stopping)
                continue
            self._failing_since, self._failure_count = None, 0
            # Of the batch as it is now: a backfill empties it.
            count_outcomes([entry.operation for entry in self._batch], outcomes, now=self._utc())
            await self._settle_outcomes(outcomes)
            self._batch = []

    async def _wait_for_work(self, stopping: asyncio.Event) -> bool:
        """Wait for work or *stopping*; return whether it is *stopping*."""
        while not self._queue and not self._must_read_row and not stopping.is_set():
            self._has_work.clear()
            await wait_any(self._has_work, stopping)
        return stopping.is_set()

    def _next_batch(self) -> list[QueuedOperation]:
        batch = self._queue[:BATCH_MAX_COUNT]
        ends = list(accumulate([entry.operation.size_bytes for entry in batch]))
        del batch[max(1, bisect_right(ends, BATCH_MAX_BYTES)) :]
        del self._queue[: len(batch)]
        return batch

    async def _apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply the batch and return its outcomes; none where the stream is to be read again for the shard."""
        self._sent_at = loop_time()
        try:
            async with asyncio.timeout(None) as self._flight_timeout:
                if self._shard_positions is None:
                    return await self._gateway.apply(self.shard_id, operations)
                shard_position = self._shard_positions.position_on(self.shard_id)
                async with shard_position.lock:
                    if not shard_position.is_current and await self._reconcile(self._shard_positions, shard_position):
                        return []
                    if not operations:
                        return []
                    return await self._gateway.apply(
                        self.shard_id, operations, claim=self._shard_positions.prepare_claim(shard_position)
                    )
        except TimeoutError:
            raise RetryableError(f"shard {self.shard_id}: no answer, and the memory of the batch was needed") from None
        finally:
            self._flight_timeout = None

    async def _reconcile(self, shard_positions: ShardPositions, shard_position: ShardPosition) -> bool:
        """Read the position row. Where it is behind, start a backfill, which empties the lane, and return True."""
        backfill = await shard_positions.reconcile(shard_position)
        if backfill is None:
            return False
        entries = [*self._batch, *self.take_queue()]
        self._batch = []
        self._owner.start_backfill(self.shard_id, backfill, entries)
        return True

    async def _requeue_and_reread(self) -> None:
        """Put the batch back and have the row read first: another reader wrote it, or the server lacks commits.

        Confirm the lease before: otherwise two readers of the stream shard would make each other read it again.
        """
        log.warning("position.changed", shard_id=self.shard_id, operations=len(self._batch))
        self._queue[:0] = self._batch
        self._batch = []
        if self._shard_positions is not None:
            self._shard_positions.position_on(self.shard_id).is_current = False
            await self._shard_positions.confirm_lease()

    async def _defer(self, exc: RetryableError, stopping: asyncio.Event) -> None:
        """Try the batch again soon, or hold the shard when it has taken no batch for HOLD_AFTER_S."""
        self._failing_since = self._failing_since or self._sent_at
        self._failure_count += 1
        instruments.RETRIES.labels("kinesis", "shard_unavailable").inc()
        if loop_time() - self._failing_since >= HOLD_AFTER_S or self._owner.is_held(self.shard_id):
            entries = [*self._batch, *self.take_queue()]
            self._batch, self._failing_since = [], None
            if not entries:
                return
            log.warning("shard.held", shard_id=self.shard_id, operations=len(entries), error=str(exc))
            self._owner.hold_shard(self.shard_id, entries)
            return
        self._queue[:0] = self._batch
        self._batch = []
        delay_s = backoff_s(self._failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        log.warning("batch.deferred", shard_id=self.shard_id, retry_in_s=round(delay_s, 2), error=str(exc))
        await sleep_or_event(delay_s, until=stopping)

    async def _settle_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Settle, hold or requeue each operation by its outcome, together with those of its tenant behind it."""
        if {outcome.disposition for outcome in group_by_outcome(self._batch, outcomes)} <= DONE:
            await self._owner.settle(self._batch, [])
            return
        finished: list[QueuedOperation] = []
        letters: list[DeadLetter] = []
        held: dict[str, list[QueuedOperation]] = {}
        failing: dict[str, tuple[QueuedOperation, str]] = {}
        for entry, outcome in zip(self._batch, outcomes, strict=True):
            match outcome.disposition:
                case Disposition.APPLIED | Disposition.DUPLICATE:
                    finished.append(entry)
                case Disposition.DEAD_LETTER:
                    finished.append(entry)
                    reason, error = outcome.reason or DeadLetterReason.INVALID_MESSAGE, outcome.error or ""
                    letters.append(entry.dead_letter(reason, error, failed_at=self._utc()))
                case Disposition.HOLD:
                    held.setdefault(entry.operation.tenant_id, []).append(entry)
                case Disposition.UNEXPECTED:
                    failing[entry.operation.tenant_id] = entry, outcome.error or ""
                case _:
                    assert_never(outcome.disposition)
        for tenant_id, (entry, error) in failing.items():
            if await self._give_up_if_exhausted(entry, error):
                finished.append(entry)
            else:
                self._owner.hold_failing([entry, *held.pop(tenant_id, ()), *self._take_tenant(tenant_id)])
        for tenant_id, entries in held.items():
            self._owner.requeue_unrouted(tenant_id, [*entries, *self._take_tenant(tenant_id)])
        await self._owner.settle(finished, letters)

    async def _give_up_if_exhausted(self, entry: QueuedOperation, error: str) -> bool:
        """Give up an operation after *tries_max* failures: store its dead letter, then mark its row; return True.

        Return False also where the shard does not take the mark: then operation, dead letter and row are tried again.
        """
        attempts = self._owner.count_failure(entry)
        ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
        if attempts < self._tries_max:
            instruments.RETRIES.labels("kinesis", "failing").inc()
            log.warning("operation.failing", shard_id=self.shard_id, attempts=attempts, error=error, **ids)
            return False
        reason = DeadLetterReason.RETRIES_EXHAUSTED
        letter = entry.dead_letter(
            reason, f"it failed {attempts} times: {error}", failed_at=self._utc(), attempts=attempts
        )
        await self._owner.settle([], [letter])
        try:
            outcome = await self._write_failure(entry.operation)
        except RetryableError:
            return False
        count_outcomes([entry.operation], [outcome], now=self._utc())
        log.error("operation.given_up", shard_id=self.shard_id, attempts=attempts, error=error, **ids)
        return outcome.disposition is not Disposition.HOLD

    async def _write_failure(self, operation: Operation) -> Outcome:
        """Write the row of an operation that is given up."""
        if self._shard_positions is None:
            return await self._gateway.give_up(self.shard_id, operation)
        shard_position = self._shard_positions.position_on(self.shard_id)
        async with shard_position.lock:
            return await self._gateway.give_up(
                self.shard_id, operation, claim=self._shard_positions.prepare_claim(shard_position)
            )

    def _take_tenant(self, tenant_id: str) -> list[QueuedOperation]:
        """Remove and return the operations of a tenant from the queue."""
        taken = [entry for entry in self._queue if entry.operation.tenant_id == tenant_id]
        if taken:
            self._queue = [entry for entry in self._queue if entry.operation.tenant_id != tenant_id]
        return taken
