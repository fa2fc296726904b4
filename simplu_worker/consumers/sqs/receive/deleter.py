"""Delete handled messages, many at a time; retry failed deletes while the messages are hidden from other receivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, BatchFailure, Message, Queue
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import SQS_LEASE_MARGIN, SQS_MESSAGES, SQS_STALE_RECEIPTS
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import MessageOutcome, QueueCall

CALLS_AT_ONCE: Final = 8
CALL_S: Final = 5.0
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
IDLE_S: Final = 5.0  # how often the idle loop turns, to show that it is alive
IDS_MAX: Final = 20

log = structlog.get_logger(__name__)


class _PendingDelete(msgspec.Struct):
    """A decided message, and the outcome that is counted once it is deleted."""

    message: Message
    outcome: MessageOutcome
    added_at: float


class DeleteBatcher:
    """Deletes messages of *queue*; each stays in *in_flight*, and so hidden, until it is deleted or given up.

    *on_removed* is called after messages left *in_flight*.
    """

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

    def __repr__(self) -> str:
        return f"DeleteBatcher({self._queue.name!r}, pending={len(self._pending)}, calls={self._call_count})"

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
        """Retry nothing from now on: the process is about to end."""
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
        """Send one call; return the messages to try again."""
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
        """Remove the deleted and the refused messages; return those to try again."""
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
        """Give up those of *entries* that were added a visibility timeout ago; return the others, to try again."""
        ends_at = self._clock() - self._in_flight.visibility_timeout_s
        self._give_up([one for one in entries if one.added_at <= ends_at], MessageOutcome.NOT_DELETED, error)
        return [one for one in entries if one.added_at > ends_at]

    def _give_up(self, entries: Sequence[_PendingDelete], outcome: MessageOutcome, error: str) -> None:
        """Let *entries* be received again; their handlers then find them done."""
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
