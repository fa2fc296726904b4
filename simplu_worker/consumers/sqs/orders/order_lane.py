"""A lane of order events: the operations of many messages for one Postgres shard, a batch of them in one transaction.

A chain is a sequence of messages that must stay in order: a message group of a FIFO queue, or one message of a standard
queue. Why its order is kept: a lane is first in, first out with one batch in flight; and an operation that is not
applied (the shard does not accept it, its tenant is not there, it fails on a healthy shard) stops all of its chain
behind it in the lane.

An applied operation is answered when it is as safe as the shard can make it, because its message is deleted then. The
next batch does not wait for that.

A failure of an operation itself is recorded on the shard before it is answered: only then is the try over. Operations
of its chain that are submitted in the meantime are not applied.

A message that is handled again while its operation is still in the lane finds the operation there. So a caller may stop
waiting for a shard that does not answer, and no operation is applied twice because of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import msgspec
import structlog

from simplu_worker.bulkheads import note_trouble, translate
from simplu_worker.consumers.outcome_counts import count_outcomes
from simplu_worker.consumers.producer_traces import traceparents_of_messages
from simplu_worker.consumers.sqs.receive.failure_counts import FailureCounts
from simplu_worker.errors import InternalError, PermanentError, RetryableError, WorkerError, places_of
from simplu_worker.metrics.instruments import REPETITIONS_LATE
from simplu_worker.operations.admission import HOLD
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.telemetry.tracing.spans import TracedBatch, process_span
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.vocabulary import Source, TargetKind

BATCH_MAX_COUNT: Final = 1000
BATCH_MAX_BYTES: Final = 1024 * 1024  # more only when one operation has more
STUCK_AFTER_S: Final = 1.0  # callers do not wait for a shard that takes longer for a batch
KEPT_MAX_COUNT: Final = 10_000  # answers that were not collected, because their messages went to another receiver

log = structlog.get_logger(__name__)


class FailedTry(msgspec.Struct, frozen=True):
    """A try of an operation that failed, its *failure_count*-th; *error* is the type or code of its error."""

    error: str
    failure_count: int


LaneAnswer: TypeAlias = Outcome | RetryableError | FailedTry

BEHIND_OUTCOME = Outcome(disposition=Disposition.HOLD)  # of an operation behind another of its chain that was stopped
LOGGED_DISPOSITIONS = frozenset({Disposition.APPLIED, Disposition.DUPLICATE})
WAITING_DISPOSITIONS = frozenset({Disposition.HOLD, Disposition.LOCKED})


class SubmittedOrder(NamedTuple):
    """The operation of one message, and the message's attributes."""

    message_id: str
    operation: Operation
    attributes: Mapping[str, str] = MappingProxyType({})


class OrderEntry(msgspec.Struct, frozen=True, eq=False):
    """The operation of one message in a lane; *answer* is set once it is known."""

    message_id: str
    chain: str
    operation: Operation
    attributes: Mapping[str, str]
    answer: asyncio.Future[LaneAnswer]

    def set_answer(self, answer: LaneAnswer) -> None:
        """Set the answer, unless the lane was emptied after an error that nobody foresaw, and has set one."""
        if not self.answer.done():
            self.answer.set_result(answer)


class _CommittedBatch(msgspec.Struct, frozen=True, eq=False):
    """Operations that are in the shard's log since *committed_at*, and not yet known to be safe there."""

    committed_at: float
    pairs: Sequence[tuple[OrderEntry, Outcome]]

    def set_answers(self, error: RetryableError | None = None) -> None:
        """Answer each entry with its outcome, or with the error."""
        for entry, outcome in self.pairs:
            entry.set_answer(error or outcome)


class OrderLane:
    """The operations of one queue for one shard. Its tasks belong to *tasks*, and end with them."""

    def __init__(
        self,
        shard_id: str,
        gateway: ShardGateway,
        failures: FailureCounts,
        tasks: asyncio.TaskGroup,
        *,
        queue_name: str,
        utc: UtcClock = utc_now,
    ) -> None:
        self.shard_id = shard_id
        self._gateway = gateway
        self._failures = failures
        self._tasks = tasks
        self._queue_name = queue_name
        self._utc = utc
        self._entries: dict[str, OrderEntry] = {}  # by message id: queued, in flight, or answered and not collected
        self._queue: deque[OrderEntry] = deque()
        self._batch: list[OrderEntry] = []
        self._applying: asyncio.Task[None] | None = None
        self._committed: dict[asyncio.Task[None], _CommittedBatch] = {}  # in order
        self._failing: dict[str, asyncio.Task[None]] = {}  # by message id: failures that are being recorded
        self._sent_at = float("inf")
        self._single_count = 0  # operations to be applied one by one, because their batch crashed
        self._failure_count = 0

    def __repr__(self) -> str:
        return (
            f"OrderLane({self.shard_id}, batch={len(self._batch)}, queue={len(self._queue)}, "
            f"committed={sum(len(batch.pairs) for batch in self._committed.values())})"
        )

    def __len__(self) -> int:
        """Return the number of operations queued, in flight, or committed and not yet known to be safe."""
        return len(self._batch) + len(self._queue) + sum(len(batch.pairs) for batch in self._committed.values())

    @property
    def is_stuck(self) -> bool:
        """Whether a batch is in flight, or not known to be safe, for so long that callers should not wait for it."""
        since = min([self._sent_at, *(batch.committed_at for batch in self._committed.values())])
        return loop_time() - since > STUCK_AFTER_S

    def operations(self) -> Iterable[Operation]:
        """Return the operations queued and in flight."""
        return [entry.operation for entry in (*self._batch, *self._queue)]

    def submit(self, chain: str, orders: Iterable[SubmittedOrder]) -> list[OrderEntry]:
        """Append operations of a chain, in their order; return their entries.

        An operation that is in the lane already keeps its place or its answer, unless the answer asks for another try.
        Those behind one that failed are not applied: the caller has to decide about that one first.
        """
        entries: list[OrderEntry] = []
        for order in orders:
            if entries and self._stops_chain(entries[-1]):
                entries.append(_new_entry(chain, order))
                entries[-1].answer.set_result(BEHIND_OUTCOME)
            else:
                entries.append(self._find_or_queue(chain, order))
        if self._queue and self._applying is None:
            self._applying = self._tasks.create_task(self._apply_all(), name=f"orders:{self.shard_id}")
        return entries

    def collect(self, entry: OrderEntry) -> LaneAnswer | None:
        """Take the answer of an entry out of the lane; None while there is none."""
        if not entry.answer.done():
            return None
        if self._entries.get(entry.message_id) is entry:
            del self._entries[entry.message_id]
        return entry.answer.result()

    def cancel(self) -> None:
        """Cancel the lane's tasks; whether the batch in flight was committed is then unknown."""
        if self._applying is not None:
            self._applying.cancel()
        for task in (*self._committed, *self._failing.values()):
            task.cancel()

    def _stops_chain(self, entry: OrderEntry) -> bool:
        """Return whether *entry* failed, or is behind one that did."""
        if not entry.answer.done():
            return entry.message_id in self._failing
        return isinstance(entry.answer.result(), FailedTry) or entry.answer.result() is BEHIND_OUTCOME

    def _find_or_queue(self, chain: str, order: SubmittedOrder) -> OrderEntry:
        entry = self._entries.get(order.message_id)
        if entry is None or (entry.answer.done() and not _is_final(entry.answer.result())):
            entry = _new_entry(chain, order)
            self._entries[order.message_id] = entry
            self._queue.append(entry)
        return entry

    async def _apply_all(self) -> None:
        """Apply batch after batch until the queue is empty."""
        try:
            await asyncio.sleep(0)  # operations that are submitted at the same time join the first batch
            while self._queue:
                await self._apply_next()
        finally:
            self._applying = None
            self._sent_at = float("inf")

    async def _apply_next(self) -> None:
        try:
            await self._apply_batch()
        except Exception as exc:  # noqa: BLE001  # the lane's own memory may be wrong: all of it is handled again
            error = note_trouble(TargetKind.SHARD, self.shard_id, "order lane", exc)
            entries = [*self._batch, *self._queue]
            self._queue.clear()
            for entry in entries:
                entry.set_answer(error)
        finally:
            self._batch = []
            self._forget_uncollected()

    async def _apply_batch(self) -> None:
        self._batch = self._take_batch()
        self._sent_at = loop_time()
        operations = [entry.operation for entry in self._batch]
        try:
            if self._failure_count:
                await self._check_shard()
            outcomes = await self._send(operations)
        except InternalError as exc:  # the message is retried, then a dead letter
            self._isolate_crash(exc.__cause__ if isinstance(exc.__cause__, Exception) else exc)
        except RetryableError as exc:
            self._failure_count += 1
            failed = [*self._batch, *self._queue]
            self._queue.clear()
            for entry in failed:
                entry.answer.set_result(exc)
        else:
            self._failure_count = 0
            count_outcomes(operations, outcomes, now=self._utc())
            self._note_late(outcomes)
            self._distribute(outcomes)

    async def _send(self, operations: Sequence[Operation]) -> list[Outcome]:
        with process_span(self._describe_batch) as span:
            with translate(TargetKind.SHARD, self.shard_id, "order lane", WorkerError):
                outcomes = await self._gateway.apply(self.shard_id, operations)
            span.note_outcomes(outcome.disposition for outcome in outcomes)
        return outcomes

    def _describe_batch(self) -> TracedBatch:
        batch = self._batch
        return TracedBatch(
            Source.SQS,
            self._queue_name,
            len(batch),
            lambda: traceparents_of_messages(entry.attributes for entry in batch),
            self.shard_id,
        )

    def _note_late(self, outcomes: Sequence[Outcome]) -> None:
        """Count and log events that were dropped as repetitions, though their producer may have meant another event."""
        late = [entry for entry, outcome in zip(self._batch, outcomes, strict=True) if outcome.is_late]
        if late:
            REPETITIONS_LATE.inc(len(late))
            log.warning(
                "orders.late_repetitions",
                queue=self._queue_name,
                shard_id=self.shard_id,
                count=len(late),
                business_id=late[0].operation.business_id,
                location_id=late[0].operation.location_id,
                request_id=late[0].operation.request_id,
            )

    def _take_batch(self) -> list[OrderEntry]:
        batch: list[OrderEntry] = []
        room_bytes = BATCH_MAX_BYTES
        max_count = 1 if self._single_count else BATCH_MAX_COUNT
        while self._queue and len(batch) < max_count:
            room_bytes -= self._queue[0].operation.size_bytes
            if batch and room_bytes < 0:
                break
            batch.append(self._queue.popleft())
        self._single_count = max(0, self._single_count - 1)
        return batch

    async def _check_shard(self) -> None:
        """Probe, within seconds, whether a shard that failed is back; if not, ask Citrus again for one of its tenants.

        Raises `RetryableError` while the shard does not answer.
        """
        try:
            await self._gateway.probe(self.shard_id)
        except RetryableError:
            tenant_ids = list(dict.fromkeys(entry.operation.tenant_id for entry in self._batch))
            try:
                await self._gateway.find_again(tenant_ids[self._failure_count % len(tenant_ids)])
            except (RetryableError, PermanentError) as exc:
                log.debug("orders.not_found_again", shard_id=self.shard_id, error=str(exc))
            raise

    def _log_failed(self, entry: OrderEntry, exc: Exception) -> None:
        """Log an unexpected error of *entry*."""
        log.error(
            "order.failed",
            queue=self._queue_name,
            shard_id=self.shard_id,
            message_id=entry.message_id,
            business_id=entry.operation.business_id,
            location_id=entry.operation.location_id,
            error=type(exc).__name__,
            traceback=places_of(exc),
        )

    def _isolate_crash(self, exc: Exception) -> None:
        """Find the operation of a crashed batch by applying each alone; then stop the rest of its chain."""
        if len(self._batch) > 1:
            self._single_count = len(self._batch)
            self._queue.extendleft(reversed(self._batch))
            return
        (entry,) = self._batch
        self._log_failed(entry, exc)
        self._record_failures([(entry, type(exc).__name__)])
        self._stop_chains({entry.chain})

    def _distribute(self, outcomes: Sequence[Outcome]) -> None:
        """Answer the entries of the batch.

        An operation that fails on a healthy shard holds the later ones of its tenant in the batch; those of them that
        belong to other chains are tried again.
        """
        pairs = list(zip(self._batch, outcomes, strict=True))
        failing = [(entry, outcome) for entry, outcome in pairs if outcome.disposition is Disposition.UNEXPECTED]
        failing_tenants = {entry.operation.tenant_id for entry, _ in failing}
        stopped = {entry.chain for entry, _ in failing}
        again: list[OrderEntry] = []
        committed: list[tuple[OrderEntry, Outcome]] = []
        for entry, outcome in pairs:
            is_held = outcome.disposition in WAITING_DISPOSITIONS
            if is_held and entry.operation.tenant_id in failing_tenants and entry.chain not in stopped:
                again.append(entry)
                continue
            if is_held:
                stopped.add(entry.chain)
            if outcome.disposition in LOGGED_DISPOSITIONS:
                committed.append((entry, outcome))
            elif outcome.disposition is not Disposition.UNEXPECTED:
                entry.answer.set_result(outcome)
        self._record_failures([(entry, outcome.error or "") for entry, outcome in failing])
        self._queue.extendleft(reversed(again))
        self._stop_chains(stopped)
        if committed:
            batch = _CommittedBatch(loop_time(), committed)
            task = self._tasks.create_task(self._answer_when_safe(batch), name=f"orders:{self.shard_id}:landing")
            self._committed[task] = batch
            task.add_done_callback(self._committed.pop)

    async def _answer_when_safe(self, batch: _CommittedBatch) -> None:
        """Answer a batch once it is safe; while that is unknown its messages are retried, and are found applied."""
        try:
            await self._gateway.wait_until_safe(self.shard_id, [entry.operation for entry, _ in batch.pairs])
        except RetryableError as exc:
            batch.set_answers(exc)
        except Exception as exc:  # noqa: BLE001  # the messages are retried, and are found applied
            batch.set_answers(note_trouble(TargetKind.SHARD, self.shard_id, "order lane", exc))
        else:
            batch.set_answers()

    def _record_failures(self, failed: Sequence[tuple[OrderEntry, str]]) -> None:
        """Record failures of operations themselves, with their errors; the next batch does not wait for that."""
        if not failed:
            return
        message_ids = [entry.message_id for entry, _ in failed]
        task = self._tasks.create_task(self._answer_failures(failed), name=f"orders:{self.shard_id}:failures")
        self._failing |= dict.fromkeys(message_ids, task)
        task.add_done_callback(lambda _: [self._failing.pop(message_id) for message_id in message_ids])

    async def _answer_failures(self, failed: Sequence[tuple[OrderEntry, str]]) -> None:
        """Answer operations that failed, once that is recorded; when the shard is down by then, with its outage."""
        keys = [(entry.operation.tenant_id, entry.message_id) for entry, _ in failed]
        try:
            with translate(TargetKind.SHARD, self.shard_id, "order lane", WorkerError):
                counts = await self._failures.add(self.shard_id, keys)
        except InternalError:  # the count of this replica stands in for the shard's
            counts = [self._failures.remember(message_id) for _, message_id in keys]
        except RetryableError as exc:
            for entry, _ in failed:
                entry.set_answer(exc)
            return
        for (entry, error), count in zip(failed, counts, strict=True):
            entry.set_answer(HOLD if count is None else FailedTry(error, count))

    def _stop_chains(self, chains: set[str]) -> None:
        """Answer the queued entries of *chains*: each is behind an operation that was not applied."""
        if not chains:
            return
        behind = [entry for entry in self._queue if entry.chain in chains]
        for entry in behind:
            entry.answer.set_result(BEHIND_OUTCOME)
        if behind:
            self._queue = deque(entry for entry in self._queue if entry.chain not in chains)

    def _forget_uncollected(self) -> None:
        if len(self._entries) - len(self) > KEPT_MAX_COUNT:
            self._entries = {key: entry for key, entry in self._entries.items() if not entry.answer.done()}


def _is_final(answer: LaneAnswer) -> bool:
    """Return whether another try would give the same answer, or the caller has to decide about one."""
    if isinstance(answer, Outcome):
        return answer.disposition not in WAITING_DISPOSITIONS
    return isinstance(answer, FailedTry)


def _new_entry(chain: str, order: SubmittedOrder) -> OrderEntry:
    future: asyncio.Future[LaneAnswer] = asyncio.get_running_loop().create_future()
    return OrderEntry(order.message_id, chain, order.operation, order.attributes, future)
