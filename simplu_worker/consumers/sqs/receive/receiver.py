"""Receive from one queue, keep what is in hand hidden, and do with each message what its handler decides.

Safe because a message leaves the queue only by a delete, and is deleted only after its handler was through with it, or
its dead letter is stored, while it was still ours. Everything else – a crash, a lost lease, a failed delete – makes it
come again. Of a FIFO queue nothing is handled before what is in front of it in its group is decided: `groups`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, VISIBILITY_DEFAULT_S, Message, Queue, QueueAttributes
from simplu_worker.consumers.sqs.receive.deleter import DeleteBatcher
from simplu_worker.consumers.sqs.receive.group_scheduler import GroupScheduler, SchedulerLimits, Settled
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages
from simplu_worker.consumers.sqs.receive.poller import (
    POLL_WAIT_S,
    RETRY_BASE_S,
    RETRY_MAX_S,
    SILENCE_S,
    STOP_WAIT_S,
    Poller,
    note_unreachable,
)
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems
from simplu_worker.consumers.sqs.receive.verdicts import ToDeadLetter, Verdict, after_trouble
from simplu_worker.consumers.sqs.receive.visibility import Visibility
from simplu_worker.dead_letters.queue import DeadLetter, DeadLetterStore
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import (
    RETRIES,
    SQS_IN_FLIGHT,
    SQS_MESSAGES,
    SQS_OLDEST_IN_HAND,
    SQS_QUEUE_DEPTH,
    outcomes_of,
    start_queue_at_zero,
)
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event

__all__ = ["LONGEST_TURN_S", "POLL_WAIT_S", "STOP_WAIT_S", "Handler", "QueueReceiver", "SchedulerLimits"]

DRAIN_S: Final = 15.0
DEPTH_INTERVAL_S: Final = 30.0
IDLE_S: Final = 5.0  # how often the loop turns with nothing to do, to show that it lives
LONGEST_TURN_S: Final = POLL_WAIT_S + POLL_MARGIN_S + RETRY_MAX_S  # a dead poll, and the pause after it

log = structlog.get_logger(__name__)


class Handler(Protocol):
    """What a receiver hands its messages to."""

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return one verdict for each of *messages*, in their order. Idempotent; raises nothing but a cancellation.

        Those of one FIFO group come in order, and none of them is in two calls at the same time. When one does not end
        Done or Bury, those of its group behind it must not be applied: they get Later(0).
        """


class QueueReceiver:
    """Receives from *queue* and has *handler* handle what comes, within *limits*.

    At a stop, what was not begun goes back, and what was has *drain_s* to end. *rules*, when given, are held against
    the queue's own settings at start. *gate* is awaited before each poll. For the others see `Poller`.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        dead_letters: DeadLetterStore,
        *,
        limits: SchedulerLimits | None = None,
        rules: RedriveRules | None = None,
        gate: Callable[[], Awaitable[None]] | None = None,
        poll_wait_s: int = POLL_WAIT_S,
        stop_wait_s: float = STOP_WAIT_S,
        silence_s: float = SILENCE_S,
        drain_s: float = DRAIN_S,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._dead_letters = dead_letters
        self._limits = limits or SchedulerLimits()
        self._rules = rules
        self._drain_s = drain_s
        self._clock = clock
        self._draw = draw
        self._hand = hand = InFlightMessages(visibility_timeout_s=VISIBILITY_DEFAULT_S)
        self._groups = GroupScheduler(is_fifo=queue.is_fifo)
        self._deletes = DeleteBatcher(queue, hand, on_gone=self._on_gone, clock=clock, draw=draw)
        self._visibility = Visibility(
            queue,
            hand,
            on_lost=self._on_lost,
            is_being_deleted=self._deletes.is_being_deleted,
            clock=clock,
            draw=draw,
        )
        self._polls = Poller(
            queue,
            hand,
            limits=self._limits,
            on_messages=self._take,
            gate=gate,
            poll_wait_s=poll_wait_s,
            stop_wait_s=stop_wait_s,
            silence_s=silence_s,
            clock=clock,
            draw=draw,
        )
        self._calls: dict[asyncio.Task[None], Sequence[Message]] = {}
        self._call_count = 0
        self._handled_count = 0
        self._handling_s = 0.0
        self._changed = asyncio.Event()
        self._polls_ended = asyncio.Event()
        self._work_ended = asyncio.Event()
        self._ended = asyncio.Event()
        self._attributes: QueueAttributes | None = None
        self._opening_error: str | None = None
        self._turned_at = clock()
        self._is_running = False
        self.overdue_message_ids: list[
            str
        ] = []  # ids of the messages whose handlers were cancelled at the end of a drain

    def __repr__(self) -> str:
        return f"QueueReceiver({self._queue.name!r}, {self._hand!r}, {self._groups!r}, {self._polls!r})"

    @property
    def in_flight_count(self) -> int:
        """How many messages are received and not decided yet."""
        return len(self._hand)

    @property
    def last_turn(self) -> float:
        """When the loop turned last that has not turned for longest."""
        if not self._is_running:
            return self._turned_at
        return min(self._turned_at, self._polls.last_turn, self._visibility.last_turn, self._deletes.last_turn)

    @property
    def last_error(self) -> str | None:
        """What is wrong with the queue now."""
        return self._opening_error or self._polls.last_error

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until *stopping* is set, then finish what is in hand and return. Run once.

        Cancelling it leaves what is in hand to its visibility timeout.
        """
        name = self._queue.name
        start_queue_at_zero(name)
        SQS_OLDEST_IN_HAND.labels(name).set_function(lambda: self._hand.oldest_age_s(self._clock()))
        try:
            attributes = await self._open(stopping)
            if attributes is not None:
                await self._receive(attributes, stopping)
        finally:
            SQS_OLDEST_IN_HAND.labels(name).set_function(float)  # 0, and no hold on this receiver

    async def _receive(self, attributes: QueueAttributes, stopping: asyncio.Event) -> None:
        name = self._queue.name
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._visibility.keep_hidden(self._ended), name=f"sqs-heartbeat:{name}")
            loops.create_task(self._watch_queue(attributes), name=f"sqs-watch:{name}")
            loops.create_task(self._bound_drain(stopping), name=f"sqs-drain:{name}")
            async with asyncio.TaskGroup() as deleting:
                deleting.create_task(self._deletes.run(self._work_ended), name=f"sqs-delete:{name}")
                self._is_running = True
                await self._work(stopping)
                self._work_ended.set()
                self._deletes.wake()
            self._ended.set()

    def stats(self) -> dict[str, Any]:
        """Return what the monitoring points show."""
        queue, now = self._attributes, self._clock()
        return {
            "queue": self._queue.name,
            "isFifo": self._queue.is_fifo,
            "state": self.last_error or ("polling" if self._is_running else "opening"),
            "visible": queue and queue.visible_count,
            "inFlight": queue and queue.in_flight_count,
            "delayed": queue and queue.delayed_count,
            "visibilityTimeoutS": self._hand.visibility_timeout_s,
            "inHand": len(self._hand),
            "inHandBytes": self._hand.byte_count,
            "inHandLimit": self._limits.message_count,
            "queued": self._groups.queued_count,
            "handling": self._groups.handling_count,
            "waiting": len(self._groups.waiting()),
            "deleting": self._deletes.pending_count,
            "oldestInHandS": round(self._hand.oldest_age_s(now), 3),
            "polls": self._polls.parked_count,
            "pollsWanted": self._polls.wanted_count,
            "pollsReplaced": self._polls.replaced_count,
            "received": self._polls.received_count,
            "calls": self._call_count,
            "handled": self._handled_count,
            "handlingS": round(self._handling_s, 3),
            "heartbeatLateS": round(self._visibility.late_s, 3),
            "lastTurnS": round(now - self.last_turn, 3),
            "outcomes": outcomes_of(self._queue.name),
        }

    # Receiving

    async def _open(self, stopping: asyncio.Event) -> QueueAttributes | None:
        """Learn the queue's own visibility timeout, however long that takes; None when the stop comes before."""
        failure_count = 0
        while not stopping.is_set():
            self._turned_at = self._clock()
            try:
                attributes = await self._queue.read_attributes()
            except (RetryableError, PermanentError, OSError) as exc:
                failure_count += 1
                self._opening_error = str(exc)
                RETRIES.labels("sqs", "receive").inc()
                delay_s = backoff_s(failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
                note_unreachable(self._queue, exc, failure_count, delay_s)
                await sleep_or_event(delay_s, until=stopping)
            else:
                self._opening_error = None
                self._learn(attributes)
                log.info("queue.opened", queue=self._queue.name, visibility_timeout_s=self._hand.visibility_timeout_s)
                return attributes
        return None

    def _learn(self, attributes: QueueAttributes) -> None:
        self._attributes = attributes
        self._hand.set_visibility_timeout(attributes.visibility_timeout_s)
        SQS_QUEUE_DEPTH.labels(self._queue.name).set(attributes.visible_count)

    async def _watch_queue(self, attributes: QueueAttributes) -> None:
        """Tell what of the queue's settings does not fit, and follow them and its depth."""
        await self._tell_unfit(attributes)
        while not await sleep_or_event(DEPTH_INTERVAL_S, until=self._ended):
            try:
                self._learn(await self._queue.read_attributes())
            except (RetryableError, PermanentError, OSError) as exc:
                log.debug("queue.depth_unread", queue=self._queue.name, error=str(exc))

    async def _tell_unfit(self, attributes: QueueAttributes) -> None:
        if self._rules is None:
            return
        policy, target = parse_redrive_policy(attributes.redrive_policy), None
        if policy is not None:
            try:
                target = await (await self._queue.find_queue(policy.target_name)).read_attributes()
            except (RetryableError, PermanentError) as exc:
                log.debug("queue.redrive_target_unread", queue=self._queue.name, error=str(exc))
        for problem in redrive_problems(attributes, target, self._rules):
            log.warning("queue.redrive_unfit", queue=self._queue.name, problem=problem)

    def _take(self, messages: Sequence[Message], received_at: float) -> None:
        fresh = self._hand.take(messages, received_at=received_at, draw=self._draw())
        self._groups.add(fresh)
        if fresh:
            self._changed.set()
            self._show_in_flight()

    # Handling

    async def _work(self, stopping: asyncio.Event) -> None:
        """Poll and handle; at the stop, first let the polls end, then give back what has not begun, then finish."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._dispatch(tasks, stopping), name=f"sqs-dispatch:{self._queue.name}")
            await self._polls.run(stopping)
            self._polls_ended.set()
            await self._give_back(self._groups.take_unstarted(self._is_last_receive))
            self._changed.set()

    async def _dispatch(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Hand messages to the handler as they come; after a stop only those that must not go back."""
        while not (self._polls_ended.is_set() and not self._groups.queued_count):
            self._changed.clear()
            self._turned_at = now = self._clock()
            if back := self._visibility.expire():
                tasks.create_task(self._put_back([(message, 0.0) for message in back]))
            while self._may_start(stopping) and (call := self._groups.next_call(self._limits, now=now)):
                self._call_count += 1
                task = tasks.create_task(self._run_call(call, stopping), name=f"sqs-call:{self._queue.name}")
                self._calls[task] = call
                task.add_done_callback(self._calls.pop)
            # With no call to spare, whatever has waited long enough goes on waiting for one.
            wait_s = self._groups.next_wait_in(now) if self._may_start(stopping) else None
            await sleep_or_event(IDLE_S if wait_s is None else min(wait_s, IDLE_S), until=self._changed)

    def _may_start(self, stopping: asyncio.Event) -> bool:
        has_stopped = stopping.is_set() and not self._polls_ended.is_set()
        return not has_stopped and not self.overdue_message_ids and self._call_count < self._limits.call_count

    def _is_last_receive(self, message: Message) -> bool:
        """Tell whether SQS would move *message* to the queue's own dead-letter queue instead of giving it out again."""
        policy = parse_redrive_policy(self._attributes.redrive_policy) if self._attributes else None
        return policy is not None and message.receive_count >= policy.max_receive_count

    async def _run_call(self, call: Sequence[Message], stopping: asyncio.Event) -> None:
        started_at = self._clock()
        try:
            verdicts = await self._handler.handle(call)
        except asyncio.CancelledError:
            if self.overdue_message_ids:
                self._groups.decided(call)
                await self._put_back([(message, 0.0) for message in call])
            raise
        finally:
            self._call_count -= 1
            self._changed.set()
        now = self._clock()
        self._handled_count += len(call)
        self._handling_s += now - started_at
        settled = self._groups.settle(
            call,
            verdicts,
            now=now,
            limits=self._limits,
            is_ours=lambda message: self._hand.is_ours(message, now=now),
            may_wait=not stopping.is_set(),
        )
        await self._carry_out(settled, stopping)

    async def _carry_out(self, settled: Settled, stopping: asyncio.Event) -> None:
        self._deletes.add(settled.done, "deleted")
        self._lose(settled.lost)
        if settled.back:
            self._count("retried", settled.retried_count)
            self._count("given_back", len(settled.back) - settled.retried_count)
            if stopping.is_set():
                await self._polls_ended.wait()  # else a poll that is still parked takes it again
            await self._put_back(settled.back)
        if settled.bury:
            await self._bury(settled.bury, stopping)

    async def _bury(self, burials: Sequence[tuple[Message, ToDeadLetter]], stopping: asyncio.Event) -> None:
        """Store the letters, mark what is to be marked, and only then delete; what fails of it comes again."""
        buried: list[Message] = []
        undone: list[tuple[Message, float]] = []
        try:
            await self._dead_letters.store([self._letter(*burial) for burial in burials], stopping=stopping)
        except RetryableError:
            undone = [(message, 0.0) for message, _ in burials]
        else:
            for message, verdict in burials:
                delay_s = await self._mark(message, verdict)
                if delay_s is None:
                    buried.append(message)
                else:
                    undone.append((message, delay_s))
        behind = [(other, 0.0) for message, _ in undone for other in self._groups.leave(message)]
        self._groups.decided([message for message, _ in burials])
        self._deletes.add(buried, "dead_letter")
        self._changed.set()
        self._count("retried", len(undone))
        self._count("given_back", len(behind))
        await self._put_back([*behind, *undone])

    def _letter(self, message: Message, verdict: ToDeadLetter) -> DeadLetter:
        return DeadLetter(
            reason=verdict.reason,
            error=verdict.error,
            origin=self._queue.origin_of(message),
            failed_at=datetime.now(UTC),
            attempts=message.receive_count,
            record=message.body.encode("utf-8", "surrogatepass"),
            request_id=verdict.request_id,
            resource_id=verdict.resource_id,
            business_id=verdict.business_id,
            location_id=verdict.location_id,
            message_attributes=message.attributes,
            deduplication_id=message.deduplication_id,
        )

    async def _mark(self, message: Message, verdict: ToDeadLetter) -> float | None:
        """Mark what *message* asked for as given up; return after how long it is to come again when that failed."""
        if verdict.mark is None or not self._hand.is_ours(message, now=self._clock()):
            return None  # one that is lost is not deleted either: whoever has it marks it
        try:
            await verdict.mark()
        except RetryableError as exc:
            delay_s = after_trouble(exc, try_count=message.try_count, draw=self._draw()).delay_s
            log.warning("message.not_marked", queue=self._queue.name, message_id=message.message_id, error=str(exc))
            return delay_s
        except Exception as exc:  # its letter is stored: the message has to come again, whatever it was
            error = type(exc).__name__
            log.exception("message.not_marked", queue=self._queue.name, message_id=message.message_id, error=error)
            return RETRY_MAX_S
        return None

    # What leaves the hand

    async def _give_back(self, messages: Sequence[Message]) -> None:
        """Let others have *messages* at once: nobody here has begun with them."""
        if messages:
            self._count("given_back", len(messages))
            log.info("message.given_back", queue=self._queue.name, count=len(messages))
            await self._put_back([(message, 0.0) for message in messages])

    async def _put_back(self, changes: Sequence[tuple[Message, float]]) -> None:
        if changes:
            await self._visibility.put_back(changes)
            self._on_gone()

    def _on_lost(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Drop *messages*, ours no more, unless they are being handled; return what has to go back with them."""
        queued = [message for message in messages if self._groups.is_queued(message)]
        behind = [other for message in messages for other in self._groups.leave(message)]
        self._lose(queued)
        lost = {message.message_id for message in queued}
        back = [other for other in behind if other.message_id not in lost]
        self._count("given_back", len(back))
        return back

    def _lose(self, messages: Sequence[Message]) -> None:
        if messages:
            self._count("lease_lost", len(messages))
            self._hand.drop(messages)
            self._on_gone()

    def _on_gone(self) -> None:
        self._polls.wake()
        self._show_in_flight()

    def _count(self, outcome: str, count: int) -> None:
        if count:
            SQS_MESSAGES.labels(self._queue.name, outcome).inc(count)

    def _show_in_flight(self) -> None:
        SQS_IN_FLIGHT.labels(self._queue.name).set(len(self._hand))

    async def _bound_drain(self, stopping: asyncio.Event) -> None:
        """Let a stop begin at once, and end: cancel the handlers that are not through in time."""
        await stopping.wait()
        log.info("queue.draining", queue=self._queue.name, in_hand=len(self._hand), calls=len(self._calls))
        self._changed.set()
        if await sleep_or_event(self._drain_s, until=self._ended):
            return
        self._deletes.hurry()
        calls = dict(self._calls)
        self.overdue_message_ids = [message.message_id for call in calls.values() for message in call]
        log.error(
            "queue.drain_overdue", queue=self._queue.name, drain_s=self._drain_s, message_ids=self.overdue_message_ids
        )
        for task in calls:
            task.cancel()
        await self._give_back(self._groups.take_unstarted())
