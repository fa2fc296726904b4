"""The calls to a queue about messages in flight: deletes, extensions of visibility timeouts, and returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from math import ceil
from typing import Final

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, BatchFailure, Message, Queue, batches
from simplu_worker.consumers.sqs.receive.message_table import LossReason, MessageTable
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import SQS_MESSAGES
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import MessageOutcome

CALL_S: Final = 3.0
DELETES_AT_ONCE: Final = 8
DELETE_TRIES: Final = 4  # within a drain; then the message comes again, and is found applied
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 1.0
IDS_MAX: Final = 20
EXTENSIONS_AT_ONCE: Final = 8  # calls; each is for ten messages, so that thousands in flight are extended in seconds
EXTENSION_MIN_S: Final = 0.5  # for one call
RETURN_S: Final = 3.0  # for one call; messages of a failed one become visible after their visibility timeout
VISIBILITY_MAX_S: Final = 43_200  # SQS API reference, ChangeMessageVisibility

log = structlog.get_logger(__name__)


class _PendingDelete(msgspec.Struct):
    message: Message
    outcome: MessageOutcome


class QueueCalls:
    """Calls about the messages in *table*; each answer is posted to it at once.

    *start* starts a task that the receiver waits for; *on_lost* gets messages that are no longer ours, and *on_removed*
    is called when messages have left the table.
    """

    def __init__(
        self,
        queue: Queue,
        table: MessageTable,
        *,
        start: Callable[[Coroutine[None, None, None]], object],
        on_lost: Callable[[Sequence[Message], LossReason], None],
        on_removed: Callable[[], None],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._table = table
        self._start = start
        self._on_lost = on_lost
        self._on_removed = on_removed
        self._clock = clock
        self._draw = draw
        self._pending: list[_PendingDelete] = []  # decided, and in no call
        self._deleting: set[str] = set()  # ids, from the first call to the last
        self._delete_count = 0  # of calls, those that are repeated aside
        self._delete_error = ""  # of the last call that failed
        self._extending: dict[str, asyncio.Event] = {}  # by message id, set when the answer is there
        self._extension_slots = asyncio.Semaphore(EXTENSIONS_AT_ONCE)

    @property
    def undeleted_count(self) -> int:
        """How many messages are decided and not deleted yet."""
        return len(self._pending) + len(self._deleting)

    # Deletes

    async def delete(self, messages: Sequence[Message], outcome: MessageOutcome) -> None:
        """Delete *messages*, and count them as *outcome*.

        Messages that gather during a call go with the next one, which the task makes whose call has ended.
        """
        self._pending += [_PendingDelete(message, outcome) for message in messages]
        while self._pending and (not self._delete_count or self._has_full_call()):
            batch, self._pending = self._pending[:BATCH_MAX_COUNT], self._pending[BATCH_MAX_COUNT:]
            self._delete_count += 1
            self._deleting |= {one.message.message_id for one in batch}
            left = await self._delete_once(batch)
            self._delete_count -= 1
            if left:
                self._start(self._delete_again(left))

    def _has_full_call(self) -> bool:
        return len(self._pending) >= BATCH_MAX_COUNT and self._delete_count < DELETES_AT_ONCE

    async def _delete_again(self, left: Sequence[_PendingDelete]) -> None:
        for attempt in range(1, DELETE_TRIES):
            await asyncio.sleep(backoff_s(attempt, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S))
            if not (left := await self._delete_once(left)):
                return
        self._give_up(left, MessageOutcome.NOT_DELETED, self._delete_error)

    async def _delete_once(self, batch: Sequence[_PendingDelete]) -> list[_PendingDelete]:
        now = self._clock()
        lost = [one for one in batch if not self._table.is_ours(one.message, now=now)]
        self._give_up(lost, MessageOutcome.LEASE_LOST, "")
        entries = [one for one in batch if self._table.is_ours(one.message, now=now)]
        if not entries:
            return []
        messages = [self._table.newest(one.message) for one in entries]
        try:
            async with asyncio.timeout(CALL_S):
                failures = await self._queue.delete_batch(messages)
        except (RetryableError, TimeoutError) as exc:
            self._delete_error = str(exc) or "no answer"
            return entries
        except PermanentError as exc:
            self._give_up(entries, MessageOutcome.NOT_DELETED, str(exc))
            return []
        return self._record_deleted(entries, messages, failures)

    def _record_deleted(
        self, entries: Sequence[_PendingDelete], messages: Sequence[Message], failures: Sequence[BatchFailure]
    ) -> list[_PendingDelete]:
        failed = {failure.message.message_id: failure for failure in failures}
        again: list[_PendingDelete] = []
        stale: list[_PendingDelete] = []
        for one, sent in zip(entries, messages, strict=True):
            failure = failed.get(sent.message_id)
            if failure is None:
                SQS_MESSAGES.labels(self._queue.name, one.outcome).inc()
            elif not failure.is_sender_fault or self._table.newest(sent).receipt_handle != sent.receipt_handle:
                again.append(one)
            else:
                stale.append(one)
        self._remove([one for one in entries if one.message.message_id not in failed])
        self._give_up(stale, MessageOutcome.STALE_RECEIPT, "receipt handle refused")
        self._delete_error = next((one.code for one in failures if not one.is_sender_fault), "")
        return again

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
        self._deleting.difference_update(one.message.message_id for one in entries)
        self._table.remove([one.message for one in entries])
        self._on_removed()

    # Visibility timeouts

    async def extend(self, batch: Sequence[Message]) -> None:
        """Extend the visibility timeouts of *batch*."""
        async with self._extension_slots:
            now = self._clock()
            ours = [
                message
                for message in batch
                if self._table.is_ours(message, now=now) and self._table.newest(message) is message
            ]
            if ours:
                await self._send_extensions(ours)

    async def _send_extensions(self, messages: Sequence[Message]) -> None:
        visibility_s = self._table.visibility_timeout_s
        ended = asyncio.Event()
        self._extending |= {message.message_id: ended for message in messages}
        sent_at = self._clock()
        try:
            async with asyncio.timeout(max(self._table.heartbeat_s / 2, EXTENSION_MIN_S)):
                failures = await self._queue.change_visibility_batch([(one, visibility_s) for one in messages])
        except (RetryableError, PermanentError, TimeoutError) as exc:
            self._table.retry_soon(messages, now=self._clock())
            error = str(exc) or "no answer"
            log.warning("message.not_claimed", queue=self._queue.name, count=len(messages), error=error)
            return
        finally:
            for message in messages:
                if self._extending.get(message.message_id) is ended:
                    del self._extending[message.message_id]
            ended.set()
        failed = {failure.message.message_id for failure in failures}
        extended = [message for message in messages if message.message_id not in failed]
        self._table.record_extended(extended, visibility_s, sent_at=sent_at)
        self._table.retry_soon([one.message for one in failures if not one.is_sender_fault], now=self._clock())
        # Of a message that is being deleted a refusal means that the delete was faster.
        refused = [one for one in failures if one.is_sender_fault and one.message.message_id not in self._deleting]
        self._on_lost(self._table.mark_refused([failure.message for failure in refused]), LossReason.REFUSED)

    def remove_lost(self, messages: Sequence[Message]) -> None:
        """Remove messages that are no longer ours."""
        if messages:
            SQS_MESSAGES.labels(self._queue.name, MessageOutcome.LEASE_LOST).inc(len(messages))
            self._table.remove(messages)
            self._on_removed()

    async def return_to_queue(self, changes: Sequence[tuple[Message, float]], *, retried_count: int = 0) -> None:
        """Make each message visible after its seconds, in this order; it leaves the table in any case.

        One that SQS does not accept becomes visible when its visibility timeout has passed. *retried_count* of them are
        retried.
        """
        if not changes:
            return
        SQS_MESSAGES.labels(self._queue.name, MessageOutcome.RETRIED).inc(retried_count)
        SQS_MESSAGES.labels(self._queue.name, MessageOutcome.GIVEN_BACK).inc(len(changes) - retried_count)
        left = [(self._table.newest(message), min(ceil(delay_s), VISIBILITY_MAX_S)) for message, delay_s in changes]
        self._table.remove([message for message, _ in left])
        for message, _ in left:
            while (ended := self._extending.get(message.message_id)) is not None:
                await ended.wait()
        done_count = 0
        for batch in batches(left):
            if error := await self._return_batch(batch):
                count = len(left) - done_count
                log.warning("message.not_put_off", queue=self._queue.name, count=count, error=error)
                break  # the next batch would fail in the same way
            done_count += len(batch)
        self._on_removed()

    async def _return_batch(self, changes: Sequence[tuple[Message, int]]) -> str:
        try:
            async with asyncio.timeout(RETURN_S):
                failures = await self._queue.change_visibility_batch(changes)
        except (RetryableError, PermanentError, TimeoutError) as exc:
            return str(exc) or "no answer"
        return next((failure.code for failure in failures if not failure.is_sender_fault), "")
