"""Receive from one queue, keep messages in flight hidden, and carry out the handler's verdict on each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol, cast

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Message, Queue, QueueAttributes
from simplu_worker.bulkheads import keep_running, note_trouble
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.consumers.sqs.receive import slots
from simplu_worker.consumers.sqs.receive.message_table import LossReason, MessageTable, SchedulerLimits
from simplu_worker.consumers.sqs.receive.poller import POLL_WAIT_S, RETRY_MAX_S, AttributesWatch, Poller
from simplu_worker.consumers.sqs.receive.queue_calls import IDS_MAX, QueueCalls
from simplu_worker.consumers.sqs.receive.redrive_rules import parse_redrive_policy
from simplu_worker.consumers.sqs.receive.verdicts import ToDeadLetter, Verdict, message_backoff_s, verdicts_after_defect
from simplu_worker.errors import InternalError, RetryableError, places_of
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.tries import WAIT_MAX_S
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import MessageOutcome, SourceState, TargetKind

MARK_RETRY_S: Final = 5.0
DRAIN_S: Final = 15.0
NAMED_BUSINESSES: Final = 10
IDLE_S: Final = 5.0  # how often the idle loop turns, to show that it is alive
HEARTBEAT_MIN_PAUSE_S: Final = 0.05
LONGEST_TURN_S: Final = POLL_WAIT_S + POLL_MARGIN_S + RETRY_MAX_S  # a dead poll, and the pause after it

log = structlog.get_logger(__name__)


class Handler(Protocol):
    """Handles the messages of a receiver."""

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return one verdict for each of *messages*, in their order. Idempotent; raises nothing but a cancellation.

        The messages of one FIFO group are in order, and in one call at a time. Behind one whose verdict is neither Done
        nor ToDeadLetter, those of its group must not be applied: they get ReturnToQueue(0).
        """


class ReceiverSettings(msgspec.Struct, frozen=True):
    """How much a receiver takes at a time, how long SQS waits for messages, and how long a drain takes.

    At a stop, unstarted messages return to the queue, and started ones have *drain_s* to end.
    """

    limits: SchedulerLimits = SchedulerLimits()
    poll_wait_s: int = POLL_WAIT_S
    drain_s: float = DRAIN_S


class QueueReceiver:
    """Receives from *queue* and lets *handler* handle the messages.

    *gate* lets its polls pass. *tenant_of* tells the business and the location of a message; a business has its share
    of the messages in hand while it waits.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        dead_letters: DeadLetterStore,
        settings: ReceiverSettings | None = None,
        *,
        gate: slots.PriorityGate | None = None,
        tenant_of: Callable[[Message], slots.Tenant | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        utc: UtcClock = utc_now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._dead_letters = dead_letters
        self._settings = settings or ReceiverSettings()
        self._limits = self._settings.limits
        self._clock = clock
        self._utc = utc
        self._draw = draw
        self._gate = gate
        self._tenant_of = tenant_of
        self._stopping = asyncio.Event()
        self.overdue_message_ids: list[str] = []  # of calls that were cancelled at the end of a drain
        self.internal_error: str | None = None  # unforeseen; polls reset it
        self._handled_count = 0  # calls write it, and the next
        self._handling_s = 0.0
        self._turned_at = clock()  # the loop writes it
        self._start_afresh()

    def _start_afresh(self) -> None:
        queue, limits, clock, draw = self._queue, self._limits, self._clock, self._draw
        self._table = MessageTable(limits, is_fifo=queue.is_fifo)  # each of its fields says who writes it
        self._watch = AttributesWatch(queue, on_read=self._update_attributes, draw=draw)
        self._share = slots.SlotShare(limits.message_count, self._tenant_of, is_fifo=queue.is_fifo)
        self._put_back_room = 0  # how many messages may be put back until the attributes of the queue are read again
        self._poller = Poller(
            queue,
            self._table,
            limits=limits,
            wait_s=self._settings.poll_wait_s,
            on_messages=self._add,
            gate=self._gate,
            clock=clock,
            draw=draw,
        )
        self._out = QueueCalls(
            queue,
            self._table,
            start=self._start,
            on_lost=self._lose,
            on_removed=self._on_removed,
            clock=clock,
            draw=draw,
        )
        self._tasks = asyncio.TaskGroup()
        self._work: dict[asyncio.Task[None], Sequence[Message]] = {}  # with the messages that a task handles
        self._call_count = 0  # calls write it
        self._extend_at = self._clock()  # when to look next; the loop writes it, and each read of attributes
        self._changed = asyncio.Event()  # whoever posts something for the loop sets it
        self._polls_ended = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def in_flight_count(self) -> int:
        """How many messages are received and not decided yet."""
        return len(self._table)

    def activity(self) -> tuple[bool, int]:
        """Return whether messages are with the handler, or may be, and how many polls were answered."""
        is_busy = self._call_count > 0 or bool(self._table.ready_messages(self._clock()))
        return is_busy, self._poller.answer_count

    @property
    def last_turn(self) -> float:
        """The last turn of the loop, or the begin of the oldest poll under way."""
        return min(self._turned_at, self._poller.oldest_start)

    @property
    def last_error(self) -> str | None:
        """The current error of the queue."""
        return self.internal_error or self._watch.last_error or self._poller.last_error

    @property
    def is_reachable(self) -> bool:
        """Whether the queue has answered the last call."""
        return self._watch.attributes is not None and self.last_error is None

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until *stopping* is set, then finish the messages in flight and return. Run once.

        A cancellation leaves the messages in flight to their visibility timeouts.
        """
        name = self._queue.name
        self._stopping = stopping
        instruments.start_queue_at_zero(name)
        try:
            await keep_running(TargetKind.QUEUE, name, "receiver", self._run_once, stopping=stopping, draw=self._draw)
        finally:
            instruments.SQS_OLDEST_MESSAGE.labels(name).set(0)

    async def _run_once(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._watch.run(self._ended), name=f"sqs-watch:{self._queue.name}")
                self._tasks.create_task(self._drain(), name=f"sqs-drain:{self._queue.name}")
                await self._loop()
                self._ended.set()
        except Exception as exc:
            self.internal_error = str(note_trouble(TargetKind.QUEUE, self._queue.name, "receiver", exc))
            self._turned_at = self._clock()
            self._start_afresh()
            instruments.SQS_IN_FLIGHT.labels(self._queue.name).set(0)
            raise InternalError(self.internal_error) from exc

    async def _loop(self) -> None:
        """Start what is due: polls, calls of the handler, extensions; until a stop, and all work has ended."""
        while True:
            self._changed.clear()
            self._turned_at = now = self._clock()
            while not self._stopping.is_set() and self._watch.attributes and (poll := self._poller.next_poll()):
                self._start(self._poller.run(poll, self._stopping))
            self._start_calls()
            if now >= self._extend_at:
                for batch in self._table.take_due(now):
                    self._tasks.create_task(self._out.extend(batch), name=f"sqs-extend:{self._queue.name}")
                pause_s = min(self._table.next_due_in_s(now), self._table.heartbeat_s / 4, IDLE_S)
                self._extend_at = now + max(pause_s, HEARTBEAT_MIN_PAUSE_S)
            if self._stopping.is_set() and not self._poller.under_way_count and not self._polls_ended.is_set():
                self._polls_ended.set()
                unstarted = self._table.take_unstarted(self._share.is_last_receive)
                self._start(self._out.return_to_queue([(one, 0.0) for one in unstarted]))
                continue
            if self._polls_ended.is_set() and not self._work and not self._table.queued_count:
                return
            wakes_at = [self._extend_at, now + IDLE_S, self._table.next_retry_at(now), self._poller.next_at]
            await sleep_or_event(min(at for at in wakes_at if at > now) - now, until=self._changed)

    def _start(self, work: Coroutine[None, None, None], messages: Sequence[Message] = ()) -> None:
        def note_end(task: asyncio.Task[None]) -> None:
            self._work.pop(task, None)
            self._changed.set()

        task = self._tasks.create_task(work, name=f"sqs-work:{self._queue.name}")
        self._work[task] = messages
        task.add_done_callback(note_end)

    def refresh_gauges(self) -> None:
        """Set the gauges that no single event sets."""
        now = self._clock()
        oldest = self._table.oldest_sent_at(now)
        age_s = 0.0 if oldest is None else max((self._utc() - oldest).total_seconds(), 0.0)
        instruments.SQS_OLDEST_MESSAGE.labels(self._queue.name).set(age_s)

    def stats(self) -> dict[str, Any]:
        """Return the members that the monitoring endpoints show."""
        queue, now = self._watch.attributes if self.last_error is None else None, self._clock()
        activity = SourceState.OPENING if self._watch.attributes is None else SourceState.POLLING
        return {
            "queue": self._queue.name,
            "isFifo": self._queue.is_fifo,
            "state": self.last_error or ("draining" if self._stopping.is_set() else activity),
            "visible": queue and queue.visible_count,
            "inFlight": queue and queue.in_flight_count,
            "delayed": queue and queue.delayed_count,
            "visibilityTimeoutSeconds": self._table.visibility_timeout_s,
            "inHand": len(self._table),
            "inHandBytes": self._table.byte_count,
            "inHandLimit": self._limits.message_count,
            "queued": self._table.queued_count,
            "handling": self._table.handling_count,
            "waiting": len(self._table.held_messages(now)),
            "deleting": self._out.undeleted_count,
            "oldestInHandSeconds": round(self._table.oldest_age_s(now), 3),
            "polls": self._poller.under_way_count,
            "pollsWanted": self._poller.wanted_count,
            "received": self._poller.received_count,
            "calls": self._call_count,
            "handled": self._handled_count,
            "handlingSeconds": round(self._handling_s, 3),
            "lastTurnSeconds": round(now - self.last_turn, 3),
            "outcomes": instruments.message_outcomes(self._queue.name),
        }

    def _update_attributes(self, attributes: QueueAttributes) -> None:
        timeout_s = attributes.visibility_timeout_s
        if self._watch.attributes is None:
            log.info("queue.opened", queue=self._queue.name, visibility_timeout_s=timeout_s)
        self._table.set_visibility_timeout(timeout_s)
        self._extend_at = self._clock()
        policy = parse_redrive_policy(attributes.redrive_policy)
        self._share.max_receive_count = None if policy is None else policy.max_receive_count
        self._put_back_room = min(slots.PUT_BACK_MAX_COUNT, slots.HIDDEN_MAX_COUNT - attributes.in_flight_count)
        instruments.SQS_QUEUE_DEPTH.labels(self._queue.name).set(attributes.visible_count)
        self._changed.set()

    # Results of polls, calls, and calls to the queue

    async def _add(self, messages: Sequence[Message], received_at: float) -> None:
        """Add messages, and handle them here: what waits for nothing meets no other task on its way."""
        self.internal_error = None
        fresh = self._table.add(messages, received_at=received_at)
        instruments.SQS_IN_FLIGHT.labels(self._queue.name).set(len(self._table))
        self._changed.set()  # for the next poll
        if fresh and (put_back := self._take_over_share(fresh)):
            self._start(self._out.return_to_queue(put_back))
        if call := self._take_call():
            self._start_calls()
            await self._run_call(call)

    def _take_over_share(self, unstarted: Sequence[Message]) -> list[tuple[Message, float]]:
        if self._put_back_room <= 0 or self._stopping.is_set():
            return []
        now, put_back = self._clock(), list[tuple[Message, float]]()
        self._share.note_late(message.message_id for message in self._table.held_messages(now))
        if len(self._table) >= slots.SHORT_RATIO * self._limits.message_count:
            self._share.note_late(self._table.received_before(now - slots.LATE_AFTER_S))
        for message in self._share.over_share(unstarted, self._table.messages(), now=now):
            if self._table.is_queued(message):  # else it left with one before it
                put_back += [(other, 0.0) for other in self._table.take_behind(message)]
                hidden_s = self._share.put_back_s(message, now=now, draw=self._draw())
                put_back.append((message, hidden_s))  # it locks its group
        self._put_back_room -= len(put_back)
        return put_back

    def _start_calls(self) -> None:
        while call := self._take_call():
            self._start(self._run_call(call), call)

    def _take_call(self) -> Sequence[Message]:
        """Take messages for the handler; after a stop only those that must not return to the queue."""
        now = self._clock()
        self._lose(self._table.mark_expired(now), LossReason.EXPIRED)  # the handler must not get them
        has_stopped = self._stopping.is_set() and not self._polls_ended.is_set()
        if has_stopped or self.overdue_message_ids or self._call_count >= self._limits.call_count:
            return ()
        call = self._table.take_call(now=now)
        self._call_count += bool(call)
        return call

    async def _run_call(self, call: Sequence[Message]) -> None:
        task, started_at = cast("asyncio.Task[None]", asyncio.current_task()), self._clock()
        self._work[task] = call
        try:
            verdicts = await self._handler.handle(call)
        except Exception as exc:  # noqa: BLE001  # the handler's defect: these messages alone are handled again
            note_trouble(TargetKind.QUEUE, self._queue.name, "handler", exc)
            verdicts = verdicts_after_defect(call, is_fifo=self._queue.is_fifo, draw=self._draw())
        finally:
            self._call_count -= 1
            self._work[task] = ()
        now = self._clock()
        self._handled_count += len(call)
        self._handling_s += now - started_at
        decision = self._table.apply_verdicts(call, verdicts, now=now, may_hold=not self._stopping.is_set())
        self._out.remove_lost(decision.lost)
        returned = [*decision.returned, *self._take_over_share(self._table.queued_messages())]
        if begun := self._share.take_begun():
            named = begun[:NAMED_BUSINESSES]
            log.info("queue.over_share", queue=self._queue.name, businesses=named, business_count=len(begun))
        if returned:
            self._start(self._return(returned, decision.retried_count))
        if pairs := decision.dead_letters:
            self._start(self._store_dead_letters(pairs), [message for message, _ in pairs])
        self._start_calls()
        await self._out.delete(decision.done, MessageOutcome.DELETED)

    async def _return(self, changes: Sequence[tuple[Message, float]], retried_count: int) -> None:
        if self._stopping.is_set():
            await self._polls_ended.wait()  # else a poll that is still under way receives it again
        await self._out.return_to_queue(changes, retried_count=retried_count)

    async def _store_dead_letters(self, pairs: Sequence[tuple[Message, ToDeadLetter]]) -> None:
        stored: list[Message] = []
        failed: list[tuple[Message, float]] = []
        try:
            letters = [_dead_letter_of(self._queue, *pair) for pair in pairs]
            await self._dead_letters.store(letters, stopping=self._stopping)
            for message, verdict in pairs:
                # A lost message is not deleted either: its next receiver marks it.
                is_ours = self._table.is_ours(message, now=self._clock())
                delay_s = await _mark(self._queue, message, verdict, draw=self._draw()) if is_ours else None
                if delay_s is None:
                    stored.append(message)
                else:
                    failed.append((message, delay_s))
        except RetryableError:  # of the store
            failed = [(message, 0.0) for message, _ in pairs]
        behind = [(other, 0.0) for message, _ in failed for other in self._table.take_behind(message)]
        self._table.finish([message for message, _ in pairs])
        self._start(self._out.return_to_queue([*behind, *failed], retried_count=len(failed)))
        self._start(self._out.delete(stored, MessageOutcome.DEAD_LETTER))

    def _lose(self, messages: Sequence[Message], reason: LossReason) -> None:
        """Forget messages that are no longer ours, and return those that have to return because of it."""
        if not messages:
            return
        ids = [message.message_id for message in messages]
        log.warning(
            "message.lease_lost", queue=self._queue.name, count=len(ids), message_ids=ids[:IDS_MAX], reason=reason
        )
        queued = [message for message in messages if self._table.is_queued(message)]
        behind = [other for message in messages for other in self._table.take_behind(message)]
        self._out.remove_lost(queued)
        if left := [(other, 0.0) for other in behind if other.message_id not in ids]:
            self._start(self._out.return_to_queue(left))

    def _on_removed(self) -> None:
        self._changed.set()
        instruments.SQS_IN_FLIGHT.labels(self._queue.name).set(len(self._table))

    async def _drain(self) -> None:
        await self._stopping.wait()
        calls = sum(map(bool, self._work.values()))
        log.info("queue.draining", queue=self._queue.name, in_hand=len(self._table), calls=calls)
        self._changed.set()
        drain_s = self._settings.drain_s
        if await sleep_or_event(drain_s, until=self._ended):
            return
        overdue = {task: messages for task, messages in self._work.items() if messages}
        self.overdue_message_ids = [message.message_id for call in overdue.values() for message in call]
        log.error("queue.drain_overdue", queue=self._queue.name, drain_s=drain_s, message_ids=self.overdue_message_ids)
        for task in overdue:
            task.cancel()
        if overdue:
            await asyncio.wait(overdue)
        messages = [message for call in overdue.values() for message in call]
        self._table.finish(messages)
        changes = [(one, 0.0) for one in (*self._table.take_unstarted(), *messages)]
        self._start(self._out.return_to_queue(changes, retried_count=len(messages)))


def _dead_letter_of(queue: Queue, message: Message, verdict: ToDeadLetter) -> DeadLetter:
    return DeadLetter(
        reason=verdict.reason,
        error=verdict.error,
        origin=queue.origin_of(message),
        failed_at=datetime.now(UTC),
        attempts=verdict.attempts,
        record=message.body.encode("utf-8", "surrogatepass"),
        request_id=verdict.ids.request_id,
        resource_id=verdict.ids.resource_id,
        business_id=verdict.ids.business_id,
        location_id=verdict.ids.location_id,
        message_attributes=message.attributes,
        deduplication_id=message.deduplication_id,
    )


async def _mark(queue: Queue, message: Message, verdict: ToDeadLetter, *, draw: float) -> float | None:
    """Record on its shard that a message was given up; return the seconds until it comes again if that fails."""
    if verdict.before_delete is None:
        return None
    about = {"queue": queue.name, "message_id": message.message_id}
    try:
        await verdict.before_delete()
    except RetryableError as exc:
        log.warning("message.not_marked", **about, error=str(exc), traceback=None)
        return max(message_backoff_s(message, draw=draw), min(exc.retry_after_s or 0.0, WAIT_MAX_S))
    except Exception as exc:  # noqa: BLE001  # its dead letter is stored: the message must come again after any error
        error, places = type(exc).__name__, places_of(exc)
        log.error("message.not_marked", **about, error=error, traceback=places)  # noqa: TRY400  # it may quote one
        return MARK_RETRY_S
    return None
