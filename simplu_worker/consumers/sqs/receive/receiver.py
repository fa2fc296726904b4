"""Receive from one queue, keep messages in flight hidden, and carry out the handler's verdict on each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
import structlog

from simplu_worker.aws.clients import longest_pause_s
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, VISIBILITY_DEFAULT_S, Message, Queue, QueueAttributes
from simplu_worker.bulkheads import keep_running, note_trouble
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.consumers.sqs.receive.deleter import DeleteBatcher, Visibility
from simplu_worker.consumers.sqs.receive.group_scheduler import CallDecision, GroupScheduler, SchedulerLimits
from simplu_worker.consumers.sqs.receive.in_flight import (
    HIDDEN_MAX_COUNT,
    LATE_AFTER_S,
    PUT_BACK_MAX_COUNT,
    SHORT_RATIO,
    InFlightMessages,
    RecentlyReceived,
    SlotShare,
    oldest_age_s,
)
from simplu_worker.consumers.sqs.receive.poller import (
    POLL_WAIT_S,
    RETRY_BASE_S,
    RETRY_MAX_S,
    Poller,
    PollTimes,
    log_unreachable,
)
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems
from simplu_worker.consumers.sqs.receive.verdicts import (
    ToDeadLetter,
    Verdict,
    retry_delay_s,
    verdicts_after_defect,
)
from simplu_worker.errors import InternalError, PermanentError, RetryableError, places_of
from simplu_worker.instruments import (
    RETRIES,
    SQS_IN_FLIGHT,
    SQS_MESSAGES,
    SQS_OLDEST_IN_HAND,
    SQS_OLDEST_MESSAGE,
    SQS_QUEUE_DEPTH,
    message_outcomes,
    start_queue_at_zero,
)
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.timing.waits import backoff_s, sleep_or_event
from simplu_worker.vocabulary import MessageOutcome, QueueRetry, Source, SourceState, TargetKind

DRAIN_S: Final = 15.0
DEPTH_INTERVAL_S: Final = 30.0
NAMED_TENANTS: Final = 10
IDLE_S: Final = 5.0  # how often the idle loop turns, to show that it is alive
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
    """How much a receiver takes at a time, and for how long it polls and drains.

    At a stop, unstarted messages return to the queue, and started ones have *drain_s* to end.
    """

    limits: SchedulerLimits = SchedulerLimits()
    poll_times: PollTimes = PollTimes()
    drain_s: float = DRAIN_S
    redrive_rules: RedriveRules | None = None


class QueueReceiver:
    """Receives from *queue* and lets *handler* handle the messages.

    *gate* is awaited before each poll. *tenant_of* tells the tenant of a message, which has its share of the messages
    in hand while it waits.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        dead_letters: DeadLetterStore,
        settings: ReceiverSettings | None = None,
        *,
        gate: Callable[[], Awaitable[None]] | None = None,
        tenant_of: Callable[[Message], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        utc: UtcClock = utc_now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._dead_letters = dead_letters
        self._settings = settings = settings or ReceiverSettings()
        self._limits = settings.limits
        self._clock = clock
        self._utc = utc
        self._draw = draw
        self._gate = gate
        self._tenant_of = tenant_of
        self._received = RecentlyReceived()
        self._handled_count = 0
        self._handling_s = 0.0
        self._attributes: QueueAttributes | None = None
        self._opening_error: str | None = None
        self._internal_error: str | None = None  # until a poll is answered again
        self._turned_at = clock()
        self._stopping = asyncio.Event()
        self.overdue_message_ids: list[str] = []  # of calls that were cancelled at the end of a drain
        self._start_afresh()

    def _start_afresh(self) -> None:
        queue, settings, clock, draw = self._queue, self._settings, self._clock, self._draw
        self._in_flight = in_flight = InFlightMessages(visibility_timeout_s=VISIBILITY_DEFAULT_S)
        self._groups = GroupScheduler(is_fifo=queue.is_fifo)
        self._share = SlotShare(settings.limits.message_count, self._tenant_of, is_fifo=queue.is_fifo)
        self._put_back_room = 0  # how many messages may be put back until the attributes of the queue are read again
        self._deleter = DeleteBatcher(queue, in_flight, on_removed=self._on_removed, clock=clock, draw=draw)
        self._visibility = Visibility(
            queue,
            in_flight,
            on_lost=self._on_lost,
            on_removed=self._on_removed,
            is_being_deleted=self._deleter.is_being_deleted,
            clock=clock,
            draw=draw,
        )
        self._poller = Poller(
            queue,
            in_flight,
            limits=settings.limits,
            times=settings.poll_times,
            on_messages=self._add,
            gate=self._gate,
            clock=clock,
            draw=draw,
        )
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[asyncio.Task[None], Sequence[Message]] = {}
        self._call_count = 0
        self._changed = asyncio.Event()
        self._polls_ended = asyncio.Event()
        self._work_ended = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_running = False

    @property
    def in_flight_count(self) -> int:
        """How many messages are received and not decided yet."""
        return len(self._in_flight)

    @property
    def is_busy(self) -> bool:
        """Whether messages are with the handler, or may be."""
        return self._call_count > 0 or bool(self._groups.ready_messages())

    @property
    def poll_count(self) -> int:
        """How many polls were answered."""
        return self._poller.answer_count

    @property
    def last_turn(self) -> float:
        """The oldest last turn of any loop."""
        if not self._is_running:
            return self._turned_at
        return min(self._turned_at, self._poller.last_turn, self._visibility.last_turn, self._deleter.last_turn)

    @property
    def last_error(self) -> str | None:
        """The current error of the queue."""
        return self._internal_error or self._opening_error or self._poller.last_error

    @property
    def is_reachable(self) -> bool:
        """Whether the queue has answered the last call."""
        return self._attributes is not None and self.last_error is None

    @property
    def internal_error(self) -> str | None:
        """The unforeseen error for which nothing is received now."""
        return self._internal_error

    @property
    def _activity(self) -> str:
        if self._stopping.is_set():
            return "draining"
        return SourceState.POLLING if self._is_running else SourceState.OPENING

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until *stopping* is set, then finish the messages in flight and return. Run once.

        A cancellation leaves the messages in flight to their visibility timeouts.
        """
        name = self._queue.name
        self._stopping = stopping
        start_queue_at_zero(name)
        try:
            await keep_running(TargetKind.QUEUE, name, "receiver", self._run_once, stopping=stopping, draw=self._draw)
        finally:
            for gauge in (SQS_OLDEST_IN_HAND, SQS_OLDEST_MESSAGE):
                gauge.labels(name).set(0)

    async def _run_once(self) -> None:
        try:
            attributes = await self._open()
            if attributes is not None:
                await self._receive(attributes)
        except Exception as exc:
            self._internal_error = str(note_trouble(TargetKind.QUEUE, self._queue.name, "receiver", exc))
            self._turned_at = self._clock()
            self._start_afresh()
            self._set_in_flight_gauge()
            raise InternalError(self._internal_error) from exc

    async def _receive(self, attributes: QueueAttributes) -> None:
        name = self._queue.name
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._visibility.keep_hidden(self._ended), name=f"sqs-heartbeat:{name}")
            loops.create_task(self._watch_queue(attributes), name=f"sqs-watch:{name}")
            loops.create_task(self._limit_drain(), name=f"sqs-drain:{name}")
            async with asyncio.TaskGroup() as deleting:
                deleting.create_task(self._deleter.run(self._work_ended), name=f"sqs-delete:{name}")
                self._is_running = True
                await self._work()
                self._work_ended.set()
                self._deleter.wake()
            self._ended.set()

    def refresh_gauges(self) -> None:
        """Set the gauges that no single event sets."""
        SQS_OLDEST_IN_HAND.labels(self._queue.name).set(self._in_flight.oldest_age_s(self._clock()))
        known = (self._in_flight.oldest_sent_at(), self._received.oldest_sent_at(self._clock()))
        SQS_OLDEST_MESSAGE.labels(self._queue.name).set(oldest_age_s(known, utc=self._utc()))

    def stats(self) -> dict[str, Any]:
        """Return the members that the monitoring endpoints show."""
        queue, now = self._attributes if self.last_error is None else None, self._clock()
        return {
            "queue": self._queue.name,
            "isFifo": self._queue.is_fifo,
            "state": self.last_error or self._activity,
            "visible": queue and queue.visible_count,
            "inFlight": queue and queue.in_flight_count,
            "delayed": queue and queue.delayed_count,
            "visibilityTimeoutSeconds": self._in_flight.visibility_timeout_s,
            "inHand": len(self._in_flight),
            "inHandBytes": self._in_flight.byte_count,
            "inHandLimit": self._limits.message_count,
            "queued": self._groups.queued_count,
            "handling": self._groups.handling_count,
            "waiting": len(self._groups.held_messages()),
            "deleting": self._deleter.pending_count,
            "oldestInHandSeconds": round(self._in_flight.oldest_age_s(now), 3),
            "polls": self._poller.under_way_count,
            "pollsWanted": self._poller.wanted_count,
            "pollsReplaced": self._poller.replaced_count,
            "received": self._poller.received_count,
            "calls": self._call_count,
            "handled": self._handled_count,
            "handlingSeconds": round(self._handling_s, 3),
            "heartbeatLateSeconds": round(self._visibility.late_s, 3),
            "lastTurnSeconds": round(now - self.last_turn, 3),
            "outcomes": message_outcomes(self._queue.name),
        }

    # Receiving

    async def _open(self) -> QueueAttributes | None:
        failure_count = 0
        while not self._stopping.is_set():
            self._turned_at = self._clock()
            try:
                attributes = await self._queue.read_attributes()
            except (RetryableError, PermanentError, OSError) as exc:
                failure_count += 1
                self._opening_error = str(exc)
                RETRIES.labels(Source.SQS, QueueRetry.RECEIVE).inc()
                delay_s = backoff_s(
                    failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=longest_pause_s(exc, RETRY_MAX_S)
                )
                log_unreachable(self._queue, exc, failure_count, delay_s)
                await sleep_or_event(delay_s, until=self._stopping)
            else:
                self._opening_error = None
                self._update_attributes(attributes)
                timeout_s = self._in_flight.visibility_timeout_s
                log.info("queue.opened", queue=self._queue.name, visibility_timeout_s=timeout_s)
                return attributes
        return None

    def _update_attributes(self, attributes: QueueAttributes) -> None:
        self._attributes = attributes
        self._in_flight.set_visibility_timeout(attributes.visibility_timeout_s)
        policy = parse_redrive_policy(attributes.redrive_policy)
        self._share.max_receive_count = None if policy is None else policy.max_receive_count
        self._put_back_room = min(PUT_BACK_MAX_COUNT, HIDDEN_MAX_COUNT - attributes.in_flight_count)
        SQS_QUEUE_DEPTH.labels(self._queue.name).set(attributes.visible_count)

    async def _watch_queue(self, attributes: QueueAttributes) -> None:
        await self._log_redrive_problems(attributes)
        while not await sleep_or_event(DEPTH_INTERVAL_S, until=self._ended):
            try:
                self._update_attributes(await self._queue.read_attributes())
            except (RetryableError, PermanentError, OSError) as exc:
                log.debug("queue.depth_unread", queue=self._queue.name, error=str(exc))

    async def _log_redrive_problems(self, attributes: QueueAttributes) -> None:
        rules = self._settings.redrive_rules
        if rules is None:
            return
        policy, target = parse_redrive_policy(attributes.redrive_policy), None
        if policy is not None:
            try:
                target = await (await self._queue.find_queue(policy.target_name)).read_attributes()
            except (RetryableError, PermanentError) as exc:
                log.debug("queue.redrive_target_unread", queue=self._queue.name, error=str(exc))
        for problem in redrive_problems(attributes, target, rules):
            log.warning("queue.redrive_unfit", queue=self._queue.name, problem=problem)

    async def _add(self, messages: Sequence[Message], received_at: float) -> None:
        self._internal_error = None
        self._received.note([message.sent_at for message in messages], now=self._clock())
        fresh = self._in_flight.add(messages, received_at=received_at, draw=self._draw())
        self._groups.add(fresh)
        if fresh:
            put_back = self._take_over_share(fresh)
            self._set_in_flight_gauge()
            self._start_calls()
            self._changed.set()
            await self._visibility.return_to_queue(put_back)

    def _take_over_share(self, unstarted: Sequence[Message]) -> list[tuple[Message, float]]:
        if self._put_back_room <= 0 or self._stopping.is_set():
            return []
        now, draw, put_back = self._clock(), self._draw(), list[tuple[Message, float]]()
        if len(self._in_flight) >= SHORT_RATIO * self._limits.message_count:
            self._share.note_late(self._in_flight.received_before(now - LATE_AFTER_S))
        for message in self._share.over_share(unstarted, self._in_flight.messages(), now=now):
            if self._groups.is_queued(message):  # else it left with one before it
                put_back += [(other, 0.0) for other in self._groups.remove(message)]
                put_back.append((message, self._share.put_back_s(message, now=now, draw=draw)))  # it locks its group
        self._put_back_room -= len(put_back)
        return put_back

    # Handling

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._dispatch(), name=f"sqs-dispatch:{self._queue.name}")
            await self._poller.run(self._stopping)
            self._polls_ended.set()
            await self._return_unstarted(self._groups.take_unstarted(self._is_last_receive))
            self._changed.set()

    async def _dispatch(self) -> None:
        """Hand messages to the handler; after a stop only those that must not return to the queue."""
        while not (self._polls_ended.is_set() and not self._groups.queued_count):
            self._changed.clear()
            self._turned_at = self._clock()
            self._start_calls()
            # Without a free call, messages that were held for long enough go on waiting for one.
            retry_in_s = self._groups.next_retry_in_s(self._turned_at) if self._can_start() else None
            await sleep_or_event(IDLE_S if retry_in_s is None else min(retry_in_s, IDLE_S), until=self._changed)

    def _start_calls(self) -> None:
        self._visibility.report_expired(self._tasks)  # the handler must not get them
        while self._can_start() and (call := self._groups.take_call(self._limits, now=self._clock())):
            self._call_count += 1
            task = self._tasks.create_task(self._run_call(call), name=f"sqs-call:{self._queue.name}")
            self._calls[task] = call
            task.add_done_callback(self._calls.pop)

    def _can_start(self) -> bool:
        has_stopped = self._stopping.is_set() and not self._polls_ended.is_set()
        return not has_stopped and not self.overdue_message_ids and self._call_count < self._limits.call_count

    def _is_last_receive(self, message: Message) -> bool:
        most = self._share.max_receive_count
        return most is not None and message.receive_count >= most

    async def _run_call(self, call: Sequence[Message]) -> None:
        started_at = self._clock()
        try:
            verdicts = await self._handler.handle(call)
        except asyncio.CancelledError:
            await self._return_overdue(call)
            raise
        except Exception as exc:  # noqa: BLE001  # the handler's defect: these messages alone are handled again
            note_trouble(TargetKind.QUEUE, self._queue.name, "handler", exc)
            verdicts = verdicts_after_defect(call, is_fifo=self._queue.is_fifo, draw=self._draw())
        finally:
            self._call_count -= 1
            self._changed.set()
        now = self._clock()
        self._handled_count += len(call)
        self._handling_s += now - started_at
        if not self._stopping.is_set():
            verdicts = self._share.bounded(call, verdicts, self._in_flight.messages(), now=now, draw=self._draw())
        decision = self._groups.apply_verdicts(
            call,
            verdicts,
            now=now,
            limits=self._limits,
            is_ours=lambda message: self._in_flight.is_ours(message, now=now),
            may_hold=not self._stopping.is_set(),
        )
        put_back = self._take_over_share(self._groups.ready_messages())
        if begun := self._share.begun(now=now):
            log.info(
                "queue.over_share",
                queue=self._queue.name,
                tenants=begun[:NAMED_TENANTS],
                tenant_count=len(begun),
            )
        await self._carry_out(msgspec.structs.replace(decision, returned=[*decision.returned, *put_back]))

    async def _carry_out(self, decision: CallDecision) -> None:
        self._deleter.add(decision.done, MessageOutcome.DELETED)
        self._remove_lost(decision.lost)
        if decision.returned:
            if self._stopping.is_set():
                await self._polls_ended.wait()  # else a poll that is still under way receives it again
            await self._visibility.return_to_queue(decision.returned, retried_count=decision.retried_count)
        if decision.dead_letters:
            await self._store_dead_letters(decision.dead_letters)

    async def _store_dead_letters(self, pairs: Sequence[tuple[Message, ToDeadLetter]]) -> None:
        stored: list[Message] = []
        failed: list[tuple[Message, float]] = []
        try:
            await self._dead_letters.store([self._dead_letter_of(*pair) for pair in pairs], stopping=self._stopping)
            for message, verdict in pairs:
                delay_s = await self._run_before_delete(message, verdict)
                if delay_s is None:
                    stored.append(message)
                else:
                    failed.append((message, delay_s))
        except RetryableError:  # of the store
            failed = [(message, 0.0) for message, _ in pairs]
        except asyncio.CancelledError:
            await self._return_overdue([message for message, _ in pairs])
            raise
        behind = [(other, 0.0) for message, _ in failed for other in self._groups.remove(message)]
        self._groups.finish([message for message, _ in pairs])
        self._deleter.add(stored, MessageOutcome.DEAD_LETTER)
        self._changed.set()
        await self._visibility.return_to_queue([*behind, *failed], retried_count=len(failed))

    def _dead_letter_of(self, message: Message, verdict: ToDeadLetter) -> DeadLetter:
        return DeadLetter(
            reason=verdict.reason,
            error=verdict.error,
            origin=self._queue.origin_of(message),
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

    async def _run_before_delete(self, message: Message, verdict: ToDeadLetter) -> float | None:
        if verdict.before_delete is None or not self._in_flight.is_ours(message, now=self._clock()):
            return None  # a lost message is not deleted either: its next receiver runs it
        try:
            await verdict.before_delete()
        except RetryableError as exc:
            about = {"queue": self._queue.name, "message_id": message.message_id}
            log.warning("message.not_marked", **about, error=str(exc), traceback=None)
            return float(retry_delay_s(exc, message, draw=self._draw()))
        except Exception as exc:  # noqa: BLE001  # its dead letter is stored: the message must come again after any error
            about = {"queue": self._queue.name, "message_id": message.message_id}
            error, places = type(exc).__name__, places_of(exc)
            log.error("message.not_marked", **about, error=error, traceback=places)  # noqa: TRY400  # it may quote one
            return RETRY_MAX_S
        return None

    async def _return_overdue(self, messages: Sequence[Message]) -> None:
        if self.overdue_message_ids:
            self._groups.finish(messages)
            await self._visibility.return_to_queue([(one, 0.0) for one in messages], retried_count=len(messages))

    # Leaving the messages in flight

    async def _return_unstarted(self, messages: Sequence[Message]) -> None:
        if messages:
            log.info("message.given_back", queue=self._queue.name, count=len(messages))
            await self._visibility.return_to_queue([(message, 0.0) for message in messages])

    def _on_lost(self, messages: Sequence[Message]) -> Sequence[Message]:
        queued = [message for message in messages if self._groups.is_queued(message)]
        behind = [other for message in messages for other in self._groups.remove(message)]
        self._remove_lost(queued)
        lost = {message.message_id for message in queued}
        return [other for other in behind if other.message_id not in lost]

    def _remove_lost(self, messages: Sequence[Message]) -> None:
        if messages:
            SQS_MESSAGES.labels(self._queue.name, MessageOutcome.LEASE_LOST).inc(len(messages))
            self._in_flight.remove(messages)
            self._on_removed()

    def _on_removed(self) -> None:
        self._poller.wake()
        self._set_in_flight_gauge()

    def _set_in_flight_gauge(self) -> None:
        SQS_IN_FLIGHT.labels(self._queue.name).set(len(self._in_flight))

    async def _limit_drain(self) -> None:
        await self._stopping.wait()
        log.info("queue.draining", queue=self._queue.name, in_hand=len(self._in_flight), calls=len(self._calls))
        self._changed.set()
        drain_s = self._settings.drain_s
        if await sleep_or_event(drain_s, until=self._ended):
            return
        self._deleter.stop_retrying()
        calls = dict(self._calls)
        self.overdue_message_ids = overdue = [message.message_id for call in calls.values() for message in call]
        log.error("queue.drain_overdue", queue=self._queue.name, drain_s=drain_s, message_ids=overdue)
        for task in calls:
            task.cancel()
        await self._return_unstarted(self._groups.take_unstarted())
