"""Delete handled messages, many at a time; keep the others hidden from other receivers, and return them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, BatchFailure, Message, Queue
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages, LossReason
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import SQS_HEARTBEAT_LATENESS, SQS_LEASE_MARGIN, SQS_MESSAGES, SQS_STALE_RECEIPTS
from simplu_worker.timing.waits import backoff_s, sleep_or_event
from simplu_worker.vocabulary import MessageOutcome, QueueCall

CALLS_AT_ONCE: Final = 8
CALL_S: Final = 5.0
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
IDLE_S: Final = 5.0  # how often the idle loop turns, to show that it is alive
IDS_MAX: Final = 20

log = structlog.get_logger(__name__)


class _PendingDelete(msgspec.Struct):
    message: Message
    outcome: MessageOutcome
    added_at: float


class DeleteBatcher:
    """Deletes messages, each of which stays *in_flight*, and so hidden, until then."""

    def __init__(
        self,
        queue: Queue,
        in_flight: InFlightMessages,
        *,
        on_removed: Callable[[], None],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._in_flight = in_flight
        self._on_removed = on_removed
        self._clock = clock
        self._draw = draw
        self._pending: list[_PendingDelete] = []
        self._changed = asyncio.Event()
        self._no_retries = asyncio.Event()
        self._call_count = 0
        self._in_calls: set[str] = set()
        self.last_turn = clock()

    @property
    def pending_count(self) -> int:
        """How many messages are decided and not deleted yet."""
        return len(self._pending) + len(self._in_calls)

    def add(self, messages: Sequence[Message], outcome: MessageOutcome) -> None:
        """Delete *messages* soon, and count them as *outcome*."""
        now = self._clock()
        self._pending += [_PendingDelete(message, outcome, now) for message in messages]
        self._changed.set()

    def is_being_deleted(self, message: Message) -> bool:
        """Return whether a call that deletes *message* is under way."""
        return message.message_id in self._in_calls

    def stop_retrying(self) -> None:
        """Retry nothing from now on."""
        self._no_retries.set()

    async def run(self, no_more: asyncio.Event) -> None:
        """Delete until *no_more* is set and every pending message was tried."""
        async with asyncio.TaskGroup() as calls:
            while self._pending or not no_more.is_set():
                self.last_turn = self._clock()
                # Messages that gather during a call go with the next; beside it only calls that are full.
                while self._pending and (not self._call_count or self._has_full_call()):
                    batch, self._pending = self._pending[:BATCH_MAX_COUNT], self._pending[BATCH_MAX_COUNT:]
                    self._call_count += 1
                    self._in_calls |= {one.message.message_id for one in batch}
                    calls.create_task(self._delete(batch), name=f"sqs-delete:{self._queue.name}")
                if self._pending or not no_more.is_set():
                    await sleep_or_event(IDLE_S, until=self._changed)
                    self._changed.clear()

    def wake(self) -> None:
        """Let `run` check whether it may end."""
        self._changed.set()

    def _has_full_call(self) -> bool:
        return len(self._pending) >= BATCH_MAX_COUNT and self._call_count < CALLS_AT_ONCE

    async def _delete(self, batch: Sequence[_PendingDelete]) -> None:
        left = await self._delete_once(batch)
        self._call_count -= 1  # the next call need not wait for this one's further tries
        self._changed.set()
        attempt = 0
        while left:
            attempt += 1
            delay_s = backoff_s(attempt, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
            if await sleep_or_event(delay_s, until=self._no_retries):
                self._give_up(left, MessageOutcome.NOT_DELETED, "the worker stops")
                break
            left = await self._delete_once(left)
        self._in_calls -= {one.message.message_id for one in batch}
        self._changed.set()

    async def _delete_once(self, batch: Sequence[_PendingDelete]) -> list[_PendingDelete]:
        now = self._clock()
        lost = [one for one in batch if not self._in_flight.is_ours(one.message, now=now)]
        self._give_up(lost, MessageOutcome.LEASE_LOST, "")
        entries = [one for one in batch if self._in_flight.is_ours(one.message, now=now)]
        if not entries:
            return []
        messages = [self._in_flight.with_newest_handle(one.message) for one in entries]
        try:
            async with asyncio.timeout(CALL_S):
                failures = await self._queue.delete_batch(messages)
        except (RetryableError, TimeoutError) as exc:
            return self._give_up_overdue(entries, str(exc) or "no answer")
        except PermanentError as exc:
            self._give_up(entries, MessageOutcome.NOT_DELETED, str(exc))
            return []
        return self._finish_call(entries, messages, failures)

    def _finish_call(
        self, entries: Sequence[_PendingDelete], messages: Sequence[Message], failures: Sequence[BatchFailure]
    ) -> list[_PendingDelete]:
        failed = {failure.message.message_id: failure for failure in failures}
        now = self._clock()
        again: list[_PendingDelete] = []
        stale: list[_PendingDelete] = []
        deleted: list[_PendingDelete] = []
        for one, sent in zip(entries, messages, strict=True):
            failure = failed.get(one.message.message_id)
            if failure is None:
                deleted.append(one)
            elif not failure.is_sender_fault or self._has_newer_handle(one.message, sent):
                again.append(one)
            else:
                stale.append(one)
        for one in deleted:
            SQS_MESSAGES.labels(self._queue.name, one.outcome).inc()
            SQS_LEASE_MARGIN.labels(self._queue.name).observe(max(self._in_flight.remaining_s(one.message, now), 0.0))
        self._remove(deleted)
        if stale:
            SQS_STALE_RECEIPTS.labels(self._queue.name, QueueCall.DELETE).inc(len(stale))
            self._give_up(stale, MessageOutcome.STALE_RECEIPT, "receipt handle refused")
        return self._give_up_overdue(again, next((one.code for one in failures if not one.is_sender_fault), ""))

    def _has_newer_handle(self, message: Message, sent: Message) -> bool:
        return self._in_flight.with_newest_handle(message).receipt_handle != sent.receipt_handle

    def _give_up_overdue(self, entries: Sequence[_PendingDelete], error: str) -> list[_PendingDelete]:
        ends_at = self._clock() - self._in_flight.visibility_timeout_s
        self._give_up([one for one in entries if one.added_at <= ends_at], MessageOutcome.NOT_DELETED, error)
        return [one for one in entries if one.added_at > ends_at]

    def _give_up(self, entries: Sequence[_PendingDelete], outcome: MessageOutcome, error: str) -> None:
        if not entries:
            return
        SQS_MESSAGES.labels(self._queue.name, outcome).inc(len(entries))
        log.warning(
            "message.not_deleted",
            queue=self._queue.name,
            outcome=outcome,
            count=len(entries),
            message_ids=[one.message.message_id for one in entries[:IDS_MAX]],
            error=error,
        )
        self._remove(entries)

    def _remove(self, entries: Sequence[_PendingDelete]) -> None:
        self._in_flight.remove([one.message for one in entries])
        self._on_removed()


EXTENSIONS_AT_ONCE: Final = 8  # calls; each is for ten messages, so that thousands in flight are extended in seconds
HEARTBEAT_MIN_PAUSE_S: Final = 0.05
EXTENSION_MIN_S: Final = 0.5  # for one call
RETURN_S: Final = 3.0  # for one call; messages of a failed one become visible after their visibility timeout
RETURN_TRIES: Final = 3


class Visibility:
    """Extends the visibility timeouts of the messages that are *in_flight*, and ends them at their return.

    *on_lost* gets messages that are no longer ours, and returns those that have to return because of it.
    *is_being_deleted* tells whether a refusal means that a delete was faster.
    """

    def __init__(
        self,
        queue: Queue,
        in_flight: InFlightMessages,
        *,
        on_lost: Callable[[Sequence[Message]], Sequence[Message]],
        on_removed: Callable[[], None],
        is_being_deleted: Callable[[Message], bool],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._in_flight = in_flight
        self._on_lost = on_lost
        self._on_removed = on_removed
        self._is_being_deleted = is_being_deleted
        self._clock = clock
        self._draw = draw
        self._under_way: dict[str, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(EXTENSIONS_AT_ONCE)
        self.last_turn = clock()
        self.late_s = 0.0

    async def keep_hidden(self, ended: asyncio.Event) -> None:
        """Extend the messages in flight in time, until *ended* is set."""
        async with asyncio.TaskGroup() as calls:
            while not await sleep_or_event(max(self._pause_s(), HEARTBEAT_MIN_PAUSE_S), until=ended):
                self.last_turn = now = self._clock()
                self.report_expired(calls)
                for due_at, batch in self._in_flight.take_due(now):
                    calls.create_task(self._extend(batch, due_at=due_at), name=f"sqs-extend:{self._queue.name}")

    def report_expired(self, tasks: asyncio.TaskGroup) -> None:
        """Report expired messages as lost; return what has to return because of it, in *tasks*."""
        lost = self._in_flight.mark_expired(self._clock())
        if behind := self._report_lost([message for message, _ in lost], {loss for _, loss in lost}):
            tasks.create_task(self.return_to_queue(behind), name=f"sqs-return:{self._queue.name}")

    async def return_to_queue(self, changes: Sequence[tuple[Message, float]], *, retried_count: int = 0) -> None:
        """Make each message visible after its seconds, in this order; it leaves *in_flight* in any case.

        One that SQS does not accept becomes visible when its visibility timeout has passed. *retried_count* of them are
        retried.
        """
        if not changes:
            return
        SQS_MESSAGES.labels(self._queue.name, MessageOutcome.RETRIED).inc(retried_count)
        SQS_MESSAGES.labels(self._queue.name, MessageOutcome.GIVEN_BACK).inc(len(changes) - retried_count)
        now = self._clock()
        left = [
            (self._in_flight.with_newest_handle(message), self._in_flight.allowed_timeout_s(message, delay_s, now))
            for message, delay_s in changes
        ]
        self._in_flight.remove([message for message, _ in left])
        await self._wait_for_extensions([message for message, _ in left])
        for start in range(0, len(left), BATCH_MAX_COUNT):
            error = await self._return_batch(left[start : start + BATCH_MAX_COUNT])
            if error:
                count = len(left) - start
                log.warning("message.not_put_off", queue=self._queue.name, count=count, error=error)
                break  # the next batch would fail in the same way
        self._on_removed()

    async def _return_batch(self, changes: Sequence[tuple[Message, int]]) -> str:
        error = ""
        for attempt in range(1, RETURN_TRIES + 1):
            try:
                async with asyncio.timeout(RETURN_S):
                    failures = await self._queue.change_visibility_batch(changes)
            except (RetryableError, TimeoutError) as exc:
                error = str(exc) or "no answer"
            except PermanentError as exc:
                return str(exc)
            else:
                self._count_stale([failure for failure in failures if failure.is_sender_fault])
                again = {failure.message.message_id for failure in failures if not failure.is_sender_fault}
                changes = [change for change in changes if change[0].message_id in again]
                error = next((failure.code for failure in failures if not failure.is_sender_fault), "")
            if not changes:
                return ""
            if attempt < RETURN_TRIES:
                await asyncio.sleep(backoff_s(attempt, draw=self._draw(), base_s=0.1, max_s=1.0))
        return error or "no answer"

    async def _extend(self, batch: Sequence[Message], *, due_at: float) -> None:
        async with self._slots:
            now = self._clock()
            timeout_s = self._in_flight.visibility_timeout_s
            extensions = [
                (message, self._in_flight.allowed_timeout_s(message, timeout_s, now))
                for message in batch
                if self._in_flight.is_ours(message, now=now) and self._in_flight.with_newest_handle(message) is message
            ]
            extensions = [(message, seconds) for message, seconds in extensions if seconds > 0]
            if extensions:
                await self._send_extensions(extensions)
                SQS_HEARTBEAT_LATENESS.labels(self._queue.name).observe(max(self._clock() - due_at, 0.0))
                self.late_s = self._clock() - due_at

    async def _send_extensions(self, extensions: Sequence[tuple[Message, int]]) -> None:
        messages = [message for message, _ in extensions]
        ended = asyncio.Event()
        self._under_way |= {message.message_id: ended for message in messages}
        sent_at = self._clock()
        try:
            async with asyncio.timeout(max(self._in_flight.heartbeat_s / 2, EXTENSION_MIN_S)):
                failures = await self._queue.change_visibility_batch(extensions)
        except (RetryableError, PermanentError, TimeoutError) as exc:
            self._in_flight.retry_soon(messages, now=self._clock())
            error = str(exc) or "no answer"
            log.warning("message.not_claimed", queue=self._queue.name, count=len(messages), error=error)
            return
        finally:
            for message in messages:
                if self._under_way.get(message.message_id) is ended:
                    del self._under_way[message.message_id]
            ended.set()
        await self._record_extensions(extensions, failures, sent_at)

    async def _record_extensions(
        self, extensions: Sequence[tuple[Message, int]], failures: Sequence[BatchFailure], sent_at: float
    ) -> None:
        failed = {failure.message.message_id for failure in failures}
        extended = [extension for extension in extensions if extension[0].message_id not in failed]
        self._in_flight.record_extended(extended, sent_at=sent_at, draw=self._draw())
        self._in_flight.retry_soon([one.message for one in failures if not one.is_sender_fault], now=self._clock())
        refused = [one for one in failures if one.is_sender_fault and not self._is_being_deleted(one.message)]
        lost = self._in_flight.mark_refused([failure.message for failure in refused])
        self._count_stale([failure for failure in refused if failure.message in lost])
        await self.return_to_queue(self._report_lost(lost, {LossReason.REFUSED}))

    def _report_lost(self, messages: Sequence[Message], losses: set[LossReason]) -> Sequence[tuple[Message, float]]:
        if not messages:
            return []
        ids = [message.message_id for message in messages[:IDS_MAX]]
        facts = {"queue": self._queue.name, "count": len(messages), "message_ids": ids}
        if LossReason.CEILING in losses:
            log.error("message.ceiling_reached", **facts)
        else:
            log.warning("message.lease_lost", **facts, reasons=sorted(losses))
        return [(message, 0.0) for message in self._on_lost(messages)]

    def _count_stale(self, failures: Sequence[BatchFailure]) -> None:
        if failures:
            SQS_STALE_RECEIPTS.labels(self._queue.name, QueueCall.CHANGE_VISIBILITY).inc(len(failures))

    async def _wait_for_extensions(self, messages: Sequence[Message]) -> None:
        for message in messages:
            while (ended := self._under_way.get(message.message_id)) is not None:
                await ended.wait()

    def _pause_s(self) -> float:
        return min(self._in_flight.next_due_in_s(self._clock()), self._in_flight.heartbeat_s / 4, IDLE_S)
