"""Delete what is handled: many at a time, and again what SQS had trouble with, for as long as it is ours."""

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

CALLS_AT_ONCE: Final = 8
CALL_S: Final = 5.0
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
IDLE_S: Final = 5.0  # how often the loop turns with nothing to do, to show that it lives
IDS_MAX: Final = 20

log = structlog.get_logger(__name__)


class _Finished(msgspec.Struct):
    """A message that is decided, and as what it counts once it is deleted."""

    message: Message
    outcome: str
    finished_at: float


class DeleteBatcher:
    """Deletes messages of *queue*; each is in *hand*, and so kept hidden, until it is deleted or given up."""

    def __init__(
        self,
        queue: Queue,
        hand: InFlightMessages,
        *,
        on_gone: Callable[[], None],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._hand = hand
        self._on_gone = on_gone
        self._clock = clock
        self._draw = draw
        self._pending: list[_Finished] = []
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._call_count = 0
        self._in_calls: set[str] = set()
        self.last_turn = clock()

    def __repr__(self) -> str:
        return f"Deletes({self._queue.name!r}, pending={len(self._pending)}, calls={self._call_count})"

    @property
    def pending_count(self) -> int:
        """How many messages are decided and not deleted yet."""
        return len(self._pending) + len(self._in_calls)

    def add(self, messages: Sequence[Message], outcome: str) -> None:
        """Delete *messages* soon, and count them as *outcome*."""
        now = self._clock()
        self._pending += [_Finished(message, outcome, now) for message in messages]
        self._changed.set()

    def is_being_deleted(self, message: Message) -> bool:
        """Tell whether a call that deletes *message* is under way."""
        return message.message_id in self._in_calls

    def hurry(self) -> None:
        """Try nothing again from now on: the process is about to end."""
        self._hurry.set()

    async def run(self, nothing_more: asyncio.Event) -> None:
        """Delete until *nothing_more* is set, and then what is left."""
        async with asyncio.TaskGroup() as calls:
            while self._pending or not nothing_more.is_set():
                self.last_turn = self._clock()
                # What gathers during a call goes with the next; beside it only calls that are full.
                while self._pending and (not self._call_count or self._is_full()):
                    batch, self._pending = self._pending[:BATCH_MAX_COUNT], self._pending[BATCH_MAX_COUNT:]
                    self._call_count += 1
                    self._in_calls |= {one.message.message_id for one in batch}
                    calls.create_task(self._delete(batch), name=f"sqs-delete:{self._queue.name}")
                if self._pending or not nothing_more.is_set():
                    await sleep_or_event(IDLE_S, until=self._changed)
                    self._changed.clear()

    def wake(self) -> None:
        """Let `run` look whether it may end."""
        self._changed.set()

    def _is_full(self) -> bool:
        return len(self._pending) >= BATCH_MAX_COUNT and self._call_count < CALLS_AT_ONCE

    async def _delete(self, batch: Sequence[_Finished]) -> None:
        left = await self._try(batch)
        self._call_count -= 1  # the next call need not wait for this one's further tries
        self._changed.set()
        attempt = 0
        while left:
            attempt += 1
            delay_s = backoff_s(attempt, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
            if await sleep_or_event(delay_s, until=self._hurry):
                self._give_up(left, "not_deleted", "the worker stops")
                break
            left = await self._try(left)
        self._in_calls -= {one.message.message_id for one in batch}
        self._changed.set()

    async def _try(self, finished: Sequence[_Finished]) -> list[_Finished]:
        """Delete once; return what is to be tried again."""
        now = self._clock()
        lost = [one for one in finished if not self._hand.is_ours(one.message, now=now)]
        self._give_up(lost, "lease_lost", "")
        entries = [one for one in finished if self._hand.is_ours(one.message, now=now)]
        if not entries:
            return []
        messages = [self._hand.newest(one.message) for one in entries]
        try:
            async with asyncio.timeout(CALL_S):
                failures = await self._queue.delete_batch(messages)
        except (RetryableError, TimeoutError) as exc:
            return self._again(entries, str(exc) or "no answer")
        except PermanentError as exc:
            self._give_up(entries, "not_deleted", str(exc))
            return []
        return self._take_in(entries, messages, failures)

    def _take_in(
        self, entries: Sequence[_Finished], messages: Sequence[Message], failures: Sequence[BatchFailure]
    ) -> list[_Finished]:
        failed = {failure.message.message_id: failure for failure in failures}
        now = self._clock()
        again: list[_Finished] = []
        stale: list[_Finished] = []
        gone: list[_Finished] = []
        for one, sent in zip(entries, messages, strict=True):
            failure = failed.get(one.message.message_id)
            if failure is None:
                gone.append(one)
            elif not failure.is_sender_fault or self._hand.newest(one.message).receipt_handle != sent.receipt_handle:
                again.append(one)
            else:
                stale.append(one)
        for one in gone:
            SQS_MESSAGES.labels(self._queue.name, one.outcome).inc()
            SQS_LEASE_MARGIN.labels(self._queue.name).observe(max(self._hand.margin_s(one.message, now), 0.0))
        self._let_go(gone)
        if stale:
            SQS_STALE_RECEIPTS.labels(self._queue.name, "delete").inc(len(stale))
            self._give_up(stale, "stale_receipt", "receipt handle refused")
        return self._again(again, next((one.code for one in failures if not one.is_sender_fault), ""))

    def _again(self, finished: Sequence[_Finished], error: str) -> list[_Finished]:
        """Return those of *finished* that there is still time for: one visibility timeout since they were handled."""
        ends_at = self._clock() - self._hand.visibility_timeout_s
        self._give_up([one for one in finished if one.finished_at <= ends_at], "not_deleted", error)
        return [one for one in finished if one.finished_at > ends_at]

    def _give_up(self, finished: Sequence[_Finished], outcome: str, error: str) -> None:
        """Leave *finished* to come again, when they will be found done."""
        if not finished:
            return
        SQS_MESSAGES.labels(self._queue.name, outcome).inc(len(finished))
        log.warning(
            "message.not_deleted",
            queue=self._queue.name,
            outcome=outcome,
            count=len(finished),
            message_ids=[one.message.message_id for one in finished[:IDS_MAX]],
            error=error,
        )
        self._let_go(finished)

    def _let_go(self, finished: Sequence[_Finished]) -> None:
        self._hand.drop([one.message for one in finished])
        self._on_gone()
