"""Apply order events (docs/sending.md): many in one transaction for each shard, in order within each group.

A chain is a message group of a FIFO queue, or one message of a standard queue. It goes on with its next transaction
only after the former one is safe on its shard, or its operation is given up for good: so none is ever applied before an
earlier one of its group. An operation is given up for its own failures alone: no wait counts.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import ceil, inf
from typing import Final, assert_never

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.bulkheads import keep_running, translate
from simplu_worker.consumers.pipeline.failing import FailingOperations
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.lane import Lane, LaneState
from simplu_worker.consumers.pipeline.pipeline import EntrySource, Pipeline
from simplu_worker.consumers.pipeline.results import (
    BatchDecided,
    BatchSender,
    Found,
    LaneEmptied,
    LookupResult,
    Overdue,
    Paused,
    PutBack,
    Unregistered,
)
from simplu_worker.consumers.producer_traces import traceparents_of_messages
from simplu_worker.consumers.sqs import order_messages
from simplu_worker.consumers.sqs.receive import verdicts
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.instruments import REPETITIONS_LATE, RETRIES
from simplu_worker.operations.dead_letter import decode_or_reject
from simplu_worker.operations.operation import (
    UNKNOWN_TENANT_MARGIN,
    Disposition,
    Operation,
    Outcome,
    RejectedRecord,
    unknown_tenant_error,
)
from simplu_worker.operations.tries import Absent, GiveUp, Locked, NotApplied, RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.telemetry.spans import TracedBatch, process_span
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import backoff_s, wait_any
from simplu_worker.vocabulary import DeadLetterReason, HoldReason, Retry, Source, TargetKind

# Of one call: its undecided messages are held then, and delay no other message. Longer than a part of a batch may take
# (`ShardTimeouts.part_s`): else an operation that is always too slow fails for nobody.
CALL_MAX_S: Final = 3.0
# Of a batch or a call, without the answer for which others wait: these are held, one batch of the shard goes on.
ANSWER_S: Final = 0.5
LOCKED: Final = Locked()
WHY_LOCKED: Final = {
    HoldReason.LOCKED: "another transaction keeps its rows locked",
    HoldReason.OVER_LIMIT: "it sends more than its limit, or that of its business",
}
SLOW_AFTER_S: Final = 1.0  # without knowing that a commit is safe: nobody waits for the next ones of the shard
HIDDEN_BASE_S: Final = 2.0  # of a message of a paused tenant, at its first receive; then twice as long each time
HIDDEN_MAX_S: Final = 600.0  # a pause of 4 hours takes 40 receives

log = structlog.get_logger(__name__)

OrderLane = Lane[order_messages.OrderMessage]


@asynccontextmanager
async def open_orders(
    gateway: ShardGateway,
    queue: Queue,
    *,
    rules: order_messages.OrderRules,
    retries: RetryRules,
    draw: Callable[[], float] = random.random,
    utc: UtcClock = utc_now,
) -> AsyncIterator[OrderHandler]:
    """Open the handler of one order queue; leave it after its receiver ended."""
    handler = OrderHandler(gateway, queue, rules=rules, retries=retries, draw=draw, utc=utc)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(handler.run(), name=f"orders:{queue.name}")
        await handler.is_running.wait()
        yield handler
        running.cancel()


class _AwaitingReplication(msgspec.Struct, frozen=True, eq=False):
    """Messages that are in a shard's log since *committed_at*, and not yet known to be safe there.

    *behind* are those of their chains that are sent after that.
    """

    shard_id: str
    committed_at: float
    messages: Sequence[order_messages.OrderMessage]
    behind: Sequence[order_messages.OrderMessage]

    def is_slow(self) -> bool:
        return loop_time() - self.committed_at > SLOW_AFTER_S


class OrderHandler(EntrySource[order_messages.OrderMessage], BatchSender[order_messages.OrderMessage]):
    """Handles the messages of one order queue: the source of its pipeline."""

    def __init__(
        self,
        gateway: ShardGateway,
        queue: Queue,
        *,
        rules: order_messages.OrderRules,
        retries: RetryRules,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._gateway = gateway
        self._queue = queue
        self._rules = rules
        self._retries = retries
        self._draw = draw
        self._utc = utc
        self._tasks = asyncio.TaskGroup()
        self.is_running = asyncio.Event()
        self._start_afresh()

    def _start_afresh(self) -> None:
        lookup: HomeLookup[order_messages.OrderMessage] = HomeLookup(
            self._gateway,
            lambda _: False,
            tenant_wait=self._retries.tenant_wait,
            patience_s=0.0,
            draw=self._draw,
            utc=self._utc,
        )
        self._pipeline: Pipeline[order_messages.OrderMessage] = Pipeline(
            self._queue.name,
            Source.SQS,
            self._gateway,
            self,
            self,
            lookup,
            rules=self._retries,
            draw=self._draw,
            utc=self._utc,
        )
        self._outages: dict[str, WorkerError] = {}  # by shard that does not answer: nothing is sent to it
        self._probes: set[str] = set()  # shards of these that are being probed
        self._awaiting_replication: dict[asyncio.Task[None], _AwaitingReplication] = {}

    async def run(self) -> None:
        """Run the pipeline; what is raised unforeseen begins a new one."""
        await keep_running(TargetKind.QUEUE, self._queue.name, "orders", self._run_once, draw=self._draw)

    async def _run_once(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._pipeline.start(self._tasks, asyncio.Event())
                self.is_running.set()
        except Exception:
            self._start_afresh()
            raise
        finally:
            self.is_running.clear()

    # The messages of a call

    def is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        """Return whether an operation is on its way to a shard."""
        return any(
            one.operation.is_named(request_id, names)
            for lane in self._pipeline.lanes()
            for one in (*lane.in_flight, *lane.queued)
        )

    def stats(self) -> dict[str, int]:
        """Return how many operations are on their way, by shard."""
        counts = {lane.shard_id: len(lane) for lane in self._pipeline.lanes()}
        for one in self._awaiting_replication.values():
            counts[one.shard_id] += len(one.messages)
        return counts

    async def handle(self, messages: Sequence[Message]) -> list[verdicts.Verdict]:
        """Return the verdict on each message, in their order. Idempotent; raises only a cancellation."""
        if not self.is_running.is_set():  # after an error that nobody foresaw
            return verdicts.verdicts_after_defect(messages, is_fifo=self._queue.is_fifo, draw=self._draw())
        chains: defaultdict[str, order_messages.Chain] = defaultdict(order_messages.Chain)
        call = [self._join(chains, message) for message in messages]
        for chain in chains.values():
            self._advance(chain)
        began_at = loop_time()
        try:
            await _wait_for_all(chains.values(), until=began_at + ANSWER_S)
            if left := [chain for chain in chains.values() if not chain.has_ended.is_set()]:
                self._hold_behind_late(left)
                await _wait_for_all(left, until=began_at + CALL_MAX_S)
        finally:
            for chain in chains.values():
                self._interrupt(chain.undecided())
        _log_deferred(self._queue.name, call)
        return [order_messages.BEHIND_VERDICT if one.verdict is None else one.verdict for one in call]

    def _join(self, chains: defaultdict[str, order_messages.Chain], message: Message) -> order_messages.OrderMessage:
        key = message.group_id or message.message_id if self._queue.is_fifo else message.message_id
        origin, own_id = self._queue.origin_of(message), message.deduplication_id
        decode = partial(
            order_messages.decode_order, message.body, message.attributes, origin, self._rules, deduplication_id=own_id
        )
        sound = partial(
            order_messages.decode_order, order_messages.SOUND_EVENT, {}, origin, self._rules, deduplication_id="a"
        )
        one = order_messages.OrderMessage(message, key, decode_or_reject(decode, origin, sound=sound), chains[key])
        if isinstance(one.decoded, RejectedRecord):
            one.verdict = verdicts.verdict_on_rejected(one.decoded)
        chains[key].members.append(one)
        return one

    def _advance(self, chain: order_messages.Chain) -> None:
        if run := chain.next_run():
            self._pipeline.send(run)
        else:
            chain.end()

    def _interrupt(self, undecided: Sequence[order_messages.OrderMessage]) -> None:
        self._pipeline.remove(undecided)
        self._hold_unanswered(undecided)

    def _hold_behind_late(self, chains: Iterable[order_messages.Chain]) -> None:
        late = [lane for lane in self._pipeline.lanes() if lane.in_flight and lane.is_late_after(ANSWER_S)]
        behind = {id(one) for lane in late for one in lane.queued}
        self._interrupt([one for chain in chains for one in chain.undecided() if id(one) in behind])

    def _decide(self, one: order_messages.OrderMessage, verdict: verdicts.Verdict, deferral: str | None = None) -> None:
        if one.verdict is not None:
            return
        one.verdict, one.deferral = verdict, deferral
        if not one.allows_next:
            self._pipeline.remove(one.members.stop_behind(one))
        if one.members.has_decided_run:
            self._advance(one.members)

    # The source of the pipeline

    def admit(
        self, lane: OrderLane, entries: Sequence[order_messages.OrderMessage]
    ) -> Sequence[order_messages.OrderMessage]:
        """Return all, unless the shard is late with its batch, or does not answer: then one probe waits for it."""
        for one in entries:
            one.shard_id = lane.shard_id
        if (cause := self._outages.get(lane.shard_id)) is not None:
            if lane.shard_id not in self._probes:
                self._probes.add(lane.shard_id)
                probe = self._probe(lane.shard_id, entries[0].operation.tenant_id)
                self._tasks.create_task(probe, name=f"orders:{lane.shard_id}:probe")
            for one in entries:
                self._hold_for_outage(one, cause)
            return ()
        if lane.state is LaneState.DECIDED or not lane.is_late_after(ANSWER_S):
            return entries
        self._hold_unanswered(entries)
        return ()

    async def _probe(self, shard_id: str, tenant_id: str) -> None:
        """Probe whether a shard is back; if not, ask Citrus again for one of its tenants."""
        try:
            await self._gateway.probe(shard_id)
            self._outages.pop(shard_id, None)
        except RetryableError:
            with suppress(RetryableError, PermanentError):
                await self._gateway.find_again(tenant_id)
        finally:
            self._probes.discard(shard_id)

    def _hold_unanswered(self, messages: Iterable[order_messages.OrderMessage]) -> None:
        for one in messages:
            where = "to where tenants live" if one.shard_id is None else f"from shard {one.shard_id}"
            self._hold(one, f"no answer yet {where}")

    async def send(self, shard_id: str, entries: Sequence[order_messages.OrderMessage]) -> list[Outcome]:
        """Apply *entries* to a shard."""
        with process_span(partial(_describe, self._queue.name, shard_id, entries)) as span:
            outcomes = await self._gateway.apply(shard_id, [one.operation for one in entries])
            span.note_outcomes(outcome.disposition for outcome in outcomes)
            return outcomes

    async def settle(self, lane: OrderLane, batch: BatchDecided[order_messages.OrderMessage]) -> None:
        """Decide the messages of a batch; the applied ones once that is safe."""
        shard_id = lane.shard_id
        _note_late(self._queue.name, shard_id, batch.late)
        for one, given_up in batch.refused:
            self._decide(one, verdicts.verdict_of(given_up, _ids_of(one.operation)))
        for own, wait in batch.locked:
            for one in own:
                text = f"tenant {one.operation.tenant_id} on shard {shard_id}: {WHY_LOCKED[wait.reason]}"
                self._decide(one, verdicts.RetryHeld(wait.delay_s), text)
        for one, following in batch.failing:
            verdict = verdicts.verdict_of(following, _ids_of(one.operation))
            if isinstance(following, GiveUp) and isinstance(verdict, verdicts.ToDeadLetter):
                give_up = partial(_give_up, self._gateway, self._pipeline.failing, shard_id, one.operation, following)
                verdict = msgspec.structs.replace(verdict, before_delete=give_up)
            self._decide(one, verdict)
        applied_chains = {one.chain for one in batch.applied}
        behind = lane.take_chains(applied_chains) if lane.queued else []
        for tenant_id, own in list(batch.not_here.items()):
            left = [one for one in own if one.verdict is None]
            behind[:0] = [one for one in left if one.chain in applied_chains]
            if away := [one for one in left if one.chain not in applied_chains]:
                self._pipeline.look_up_again(lane, {tenant_id: away})
        if any(own.shard_id == shard_id and own.is_slow() for own in self._awaiting_replication.values()):
            self._hold_unanswered(batch.applied)  # they come again, and are found applied
        elif batch.applied:
            committed = _AwaitingReplication(shard_id, loop_time(), batch.applied, behind)
            task = self._tasks.create_task(self._await_replication(committed), name=f"orders:{shard_id}:replication")
            self._awaiting_replication[task] = committed
            task.add_done_callback(lambda done: self._awaiting_replication.pop(done, None))

    async def _await_replication(self, committed: _AwaitingReplication) -> None:
        shard_id, operations = committed.shard_id, [one.operation for one in committed.messages]
        try:
            with translate(TargetKind.SHARD, shard_id, "orders", RetryableError):
                await self._gateway.wait_until_safe(shard_id, operations)
        except RetryableError as exc:
            for one in committed.messages:
                self._hold_for_outage(one, exc)
        else:
            for one in committed.messages:
                self._decide(one, verdicts.Done())
        if behind := [one for one in committed.behind if one.verdict is None]:
            self._pipeline.send(behind)

    def put_back(self, returned: PutBack[order_messages.OrderMessage]) -> None:
        """Hold the messages of a lane whose shard does not answer, or of a tenant without a home."""
        if isinstance(returned, LaneEmptied):
            self._outages[returned.shard_id] = returned.cause
            self._pipeline.forget_homes({one.operation.tenant_id for one in returned.entries})
            for one in returned.entries:
                self._hold_for_outage(one, returned.cause)
            return
        self._pipeline.lookup.forget(returned.tenant_id)
        where = f"tenant {returned.tenant_id} is {returned.reason}"
        for one in returned.entries:
            match returned.reason, returned.cause:
                case HoldReason.PAUSED, _:
                    if one.verdict is None:  # else its call has ended: it may be in hand
                        self._decide(one, verdicts.ReturnToQueue(ceil(self._hidden_s(one))), where)
                case HoldReason.UNREGISTERED, _:
                    rest = one.message.sent_at + self._retries.tenant_wait + UNKNOWN_TENANT_MARGIN - self._utc()
                    text = unknown_tenant_error(self._retries.tenant_wait)
                    absent = Absent(DeadLetterReason.UNKNOWN_TENANT, text, rest.total_seconds())
                    self._hold(one, where, absent)
                case _, RetryableError() | PermanentError() as cause:
                    self._hold_for_outage(one, cause)
                case _, cause:
                    self._hold(one, where if cause is None else f"{where}: {cause}")

    async def on_home(self, answer: LookupResult[order_messages.OrderMessage]) -> None:
        """Decide messages whose tenant was not registered in time; end a pause of half of the queue's retention."""
        match answer:
            case Paused():
                if any(self._half_retention_s(one.message) <= 0 for one in answer.entries):
                    await self._pipeline.end_pause(answer.tenant_id)
            case Overdue():
                error = unknown_tenant_error(self._retries.tenant_wait)
                for one in reversed(answer.entries):  # those behind another one are given up with it
                    ids = _ids_of(one.operation)
                    self._decide(one, verdicts.ToDeadLetter(DeadLetterReason.UNKNOWN_TENANT, error, ids))
            case Found() | Unregistered():
                pass  # a message that was put back comes again by itself
            case _:
                assert_never(answer)

    def _half_retention_s(self, message: Message) -> float:
        retention = self._queue.retention
        return inf if retention is None else (message.sent_at + retention / 2 - self._utc()).total_seconds()

    def _hidden_s(self, one: order_messages.OrderMessage) -> float:
        """Return for how long to hide a message of a paused tenant: about as long as it was hidden before."""
        paused_s = self._gateway.paused_s(one.operation.tenant_id)
        longest_s = min(paused_s, max(HIDDEN_BASE_S, self._half_retention_s(one.message)))
        hidden_s = backoff_s(one.message.receive_count, draw=self._draw(), base_s=HIDDEN_BASE_S, max_s=HIDDEN_MAX_S)
        return min(longest_s, hidden_s)

    # Verdicts

    def _hold_for_outage(self, one: order_messages.OrderMessage, error: WorkerError) -> None:
        # A PermanentError is about an address that may not be used: a person may correct that.
        outage = error if isinstance(error, RetryableError) else RetryableError(str(error))
        self._hold(one, str(error), outage)

    def _hold(self, one: order_messages.OrderMessage, deferral: str, error: NotApplied = LOCKED) -> None:
        ids, tries = _ids_of(one.operation), one.message.try_count
        self._decide(one, verdicts.verdict_on(error, tries, ids, rules=self._retries, draw=self._draw()), deferral)


async def _wait_for_all(chains: Iterable[order_messages.Chain], *, until: float) -> None:
    for chain in chains:
        await wait_any(chain.has_ended, within_s=max(0.0, until - loop_time()))


def _ids_of(operation: Operation) -> verdicts.MessageIds:
    return verdicts.MessageIds(
        operation.business_id, operation.location_id, operation.request_id, operation.resource_id
    )


async def _give_up(
    gateway: ShardGateway, failing: FailingOperations, shard_id: str, operation: Operation, given_up: GiveUp
) -> None:
    """Log an operation as given up on its shard, once its dead letter is stored."""
    outcome = await gateway.give_up(shard_id, operation)
    if outcome.disposition is Disposition.HOLD:
        raise RetryableError(f"a tenant does not live on shard {shard_id} now, where its operation failed")
    await gateway.wait_until_safe(shard_id, [operation])
    failing.note_given_up(operation, outcome, given_up, shard_id=shard_id, now=utc_now())


def _describe(queue: str, shard_id: str, entries: Sequence[order_messages.OrderMessage]) -> TracedBatch:
    traceparents = partial(traceparents_of_messages, [one.message.attributes for one in entries])
    return TracedBatch(Source.SQS, queue, len(entries), traceparents, shard_id)


def _note_late(queue: str, shard_id: str, late: Sequence[order_messages.OrderMessage]) -> None:
    if late:
        REPETITIONS_LATE.inc(len(late))
        log.warning(
            "orders.late_repetitions",
            queue=queue,
            shard_id=shard_id,
            count=len(late),
            business_id=late[0].operation.business_id,
            location_id=late[0].operation.location_id,
            request_id=late[0].operation.request_id,
        )


def _log_deferred(queue: str, call: Sequence[order_messages.OrderMessage]) -> None:
    by_cause: defaultdict[str, list[float]] = defaultdict(list)
    for one in call:
        if one.deferral is not None and isinstance(one.verdict, verdicts.ReturnToQueue | verdicts.RetryHeld):
            by_cause[one.deferral].append(one.verdict.delay_s)
    for error, delays_s in by_cause.items():
        RETRIES.labels(Source.SQS, Retry.SHARD_UNAVAILABLE).inc(len(delays_s))
        retry_in_s = round(min(delays_s), 2)
        log.warning("orders.deferred", queue=queue, count=len(delays_s), retry_in_s=retry_in_s, error=error)
