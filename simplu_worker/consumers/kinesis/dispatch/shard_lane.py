"""A lane: the operations of one reader that are queued for one Postgres shard, in order.

Why the order of each tenant is kept: its operations are in one place at a time, either in one lane (first in, first
out, one batch in flight) or in the route lookup. They move between these places together and in order. Operations that
leave both to be held are read again from the stream, starting with the first of them.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import Final, assert_never

import msgspec
import structlog

from simplu_worker.bulkheads import translate
from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation, cost_bytes_of
from simplu_worker.consumers.kinesis.dispatch.results import BatchDecided, GapFound, LaneResult, NoAnswer, RowBehind
from simplu_worker.consumers.kinesis.holding.ownership import Ownership
from simplu_worker.consumers.kinesis.recovery.gap import PositionGapError
from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPosition, ShardPositions
from simplu_worker.consumers.outcome_counts import count_outcomes, group_by_outcome
from simplu_worker.consumers.producer_traces import traceparents_of_records
from simplu_worker.errors import InternalError, RetryableError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionChangedError
from simplu_worker.telemetry.tracing.spans import BatchSpan, TracedBatch, process_span
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event, wait_any
from simplu_worker.vocabulary import DeadLetterReason, HoldReason, Source, StreamRetry, TargetKind

BATCH_MAX_COUNT: Final = 2000
BATCH_MAX_BYTES: Final = 1024 * 1024  # more only where one operation is larger
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 0.5
HOLD_AFTER_S: Final = 1.0  # a shard that took no batch for so long is held; a restart of its pooler is shorter
LATE_AFTER_S: Final = 1.0
STUCK_AFTER_S: Final = 2.0  # a batch that is in flight for longer may never be answered

DONE: Final = frozenset({Disposition.APPLIED, Disposition.DUPLICATE})

log = structlog.get_logger(__name__)


class ShardLane:
    """The queue of one reader for one shard: first in, first out, one batch in flight."""

    def __init__(
        self,
        shard_id: str,
        gateway: ShardGateway,
        ownership: Ownership,
        *,
        shard_positions: ShardPositions | None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """Without *shard_positions* no position is written on the shard."""
        self.shard_id = shard_id
        self._gateway = gateway
        self._ownership = ownership
        self._shard_positions = shard_positions
        self._must_read_row = False  # the reader's position row on the shard
        self._expects_merge = False  # of the row with that of a shard which a tenant has left for this one
        self._must_confirm = False  # the lease, before the row is adopted
        self._draw = draw
        self._utc = utc
        self._queue: list[QueuedOperation] = []
        self._batch: list[QueuedOperation] = []  # in flight, or with outcomes that are being settled
        self._dropped: set[int] = set()  # object ids of the batch's, dropped in flight: their outcomes do not count
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
        return [*self._own_batch(), *self._queue]

    def in_memory(self) -> list[QueuedOperation]:
        """Return the operations without a known outcome."""
        return [*(() if self._flight_timeout is None else self._own_batch()), *self._queue]

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

    def expect_merge(self) -> None:
        """Take the new token of the row before the next batch: with the old one it would be sent in vain."""
        self._expects_merge = True

    def give_up_batch(self) -> None:
        """Stop waiting for the batch in flight: whether it was committed is unknown then."""
        if self._flight_timeout is not None and not self._flight_timeout.expired():
            self._flight_timeout.reschedule(loop_time())

    async def next_result(self, stopping: asyncio.Event) -> LaneResult | None:
        """Apply the next batch and return the result; None once *stopping* is set, when the queue stays pending.

        By this call the caller has dealt with the result before.
        """
        self._batch = []
        while not await self._wait_for_work(stopping):
            self._batch, self._dropped, self._must_read_row = self._next_batch(), set(), False
            try:
                with translate(TargetKind.SHARD, self.shard_id, "lane", WorkerError):
                    result = await self._apply([entry.operation for entry in self._batch])
            except PositionChangedError:
                self._requeue_and_reread()
            except PositionGapError:
                if entries := self._take_all():
                    return GapFound(entries)
            except InternalError:
                if entries := self._forget_all():
                    return NoAnswer(entries, HoldReason.INTERNAL_ERROR)
            except RetryableError as exc:
                if (no_answer := await self._defer(exc, stopping)) is not None:
                    return no_answer
            else:
                self._failing_since, self._failure_count = None, 0
                return result
        return None

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

    async def _apply(self, operations: Sequence[Operation]) -> BatchDecided | RowBehind:
        """Apply the batch, unless the reader's row is behind."""
        self._sent_at = loop_time()
        try:
            async with asyncio.timeout(None) as self._flight_timeout:
                if self._shard_positions is None:
                    with process_span(self._describe_batch) as span:
                        return self._decide(await self._gateway.apply(self.shard_id, operations), span)
                shard_position = self._shard_positions.position_on(self.shard_id)
                async with shard_position.lock:
                    if self._expects_merge and shard_position.is_current:
                        await self._shard_positions.follow_moves(shard_position)
                    self._expects_merge = False
                    if not shard_position.is_current and (
                        behind := await self._reconcile(self._shard_positions, shard_position)
                    ):
                        return behind
                    if not operations:
                        return BatchDecided([])
                    claim = self._shard_positions.prepare_claim(shard_position)
                    with process_span(self._describe_batch) as span:
                        outcomes = await self._gateway.apply(self.shard_id, operations, claim=claim)
                        return self._decide(outcomes, span)
        except TimeoutError:
            raise RetryableError(f"shard {self.shard_id}: no answer, and the memory of the batch was needed") from None
        finally:
            self._flight_timeout = None

    def _describe_batch(self) -> TracedBatch:
        batch, origin = self._batch, self._batch[0].operation.origin
        return TracedBatch(
            origin.source,
            origin.name,
            len(batch),
            lambda: traceparents_of_records(entry.record for entry in batch),
            self.shard_id,
            origin.stream_shard_id,
        )

    async def _reconcile(self, shard_positions: ShardPositions, shard_position: ShardPosition) -> RowBehind | None:
        """Read the position row. Where it is behind, empty the lane.

        Confirm the lease before, if the row is not as it was left: otherwise two readers of the stream shard would make
        each other read it again.
        """
        if await shard_positions.follow_moves(shard_position):
            return None
        if self._must_confirm:
            await shard_positions.confirm_lease()
        unread = await shard_positions.reconcile(shard_position)
        self._must_confirm = False
        return None if unread is None else RowBehind(unread, self._take_all())

    def _forget_all(self) -> list[QueuedOperation]:
        """Empty the lane, and have the row read again before the next batch: nothing that is remembered counts."""
        self._failing_since = None
        if self._shard_positions is not None:
            self._shard_positions.position_on(self.shard_id).is_current = False
        return self._take_all()

    def _take_all(self) -> list[QueuedOperation]:
        entries = [*self._own_batch(), *self.take_queue()]
        self._batch = []
        return entries

    def _own_batch(self) -> list[QueuedOperation]:
        """Return the batch without the operations that were dropped in flight."""
        return [entry for entry in self._batch if id(entry) not in self._dropped] if self._dropped else self._batch

    def _requeue_and_reread(self) -> None:
        """Put the batch back and have the row read first: another reader or a move wrote it, or commits are lost."""
        log.warning("position.changed", shard_id=self.shard_id, operations=len(self._batch))
        self._queue[:0] = self._own_batch()
        self._batch = []
        if self._shard_positions is not None:
            self._shard_positions.position_on(self.shard_id).is_current = False
            self._must_confirm = True

    async def _defer(self, exc: RetryableError, stopping: asyncio.Event) -> NoAnswer | None:
        """Wait a little; or empty the lane where the shard is held, or has taken no batch for HOLD_AFTER_S."""
        self._failing_since = self._failing_since or self._sent_at
        self._failure_count += 1
        instruments.RETRIES.labels(Source.KINESIS, StreamRetry.SHARD_UNAVAILABLE).inc()
        is_held = self._ownership.is_blocked(self.shard_id)
        if is_held or loop_time() - self._failing_since >= HOLD_AFTER_S:
            self._failing_since = None
            entries = self._take_all()
            if not entries:
                return None
            log.warning("shard.held", shard_id=self.shard_id, operations=len(entries), error=str(exc))
            return NoAnswer(entries)
        self._queue[:0] = self._own_batch()
        self._batch = []
        delay_s = backoff_s(self._failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        log.warning("batch.deferred", shard_id=self.shard_id, retry_in_s=round(delay_s, 2), error=str(exc))
        await sleep_or_event(delay_s, until=stopping)
        return None

    def _decide(self, outcomes: Sequence[Outcome], span: BatchSpan) -> BatchDecided:
        """Return the operations of the batch by their outcomes, and count these."""
        span.note_outcomes(outcome.disposition for outcome in outcomes)
        count_outcomes([entry.operation for entry in self._batch], outcomes, now=self._utc())
        if {outcome.disposition for outcome in group_by_outcome(self._batch, outcomes)} <= DONE:
            return BatchDecided(self._own_batch())
        decided = BatchDecided([])
        failing: dict[str, tuple[QueuedOperation, str]] = {}
        for entry, outcome in zip(self._batch, outcomes, strict=True):
            if id(entry) in self._dropped:
                continue
            match outcome.disposition:
                case Disposition.APPLIED | Disposition.DUPLICATE:
                    decided.finished.append(entry)
                case Disposition.DEAD_LETTER:
                    decided.finished.append(entry)
                    reason, error = outcome.reason or DeadLetterReason.INVALID_MESSAGE, outcome.error or ""
                    decided.letters.append(entry.dead_letter(reason, error, failed_at=self._utc()))
                case Disposition.HOLD:
                    decided.not_here.setdefault(entry.operation.tenant_id, []).append(entry)
                case Disposition.LOCKED:
                    decided.locked.setdefault(entry.operation.tenant_id, []).append(entry)
                case Disposition.UNEXPECTED:
                    failing[entry.operation.tenant_id] = entry, outcome.error or ""
                case _:
                    assert_never(outcome.disposition)
        return msgspec.structs.replace(decided, failing=list(failing.values()))

    async def write_failure(self, operation: Operation) -> Outcome:
        """Write the row of an operation that is given up. Raises `RetryableError` where the shard does not take it."""
        if self._shard_positions is None:
            return await self._gateway.give_up(self.shard_id, operation)
        shard_position = self._shard_positions.position_on(self.shard_id)
        async with shard_position.lock:
            return await self._gateway.give_up(
                self.shard_id, operation, claim=self._shard_positions.prepare_claim(shard_position)
            )

    def take_tenants(self, tenant_ids: AbstractSet[str]) -> list[QueuedOperation]:
        """Remove and return the operations of tenants, but for those that are being settled."""
        taken = [entry for entry in self.in_memory() if entry.operation.tenant_id in tenant_ids]
        self.remove({id(entry) for entry in taken})
        return taken

    def remove(self, ids: AbstractSet[int]) -> None:
        """Remove the operations with these object ids. Of one in flight the outcome counts no longer."""
        if self._flight_timeout is not None:
            self._dropped |= {id(entry) for entry in self._batch} & ids
        self._queue = [entry for entry in self._queue if id(entry) not in ids]
