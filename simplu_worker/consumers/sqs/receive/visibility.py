"""Keep the messages in hand hidden from other receivers, and let those that go back be seen again.

Safe because a message that goes back leaves the hand first, and what is under way to claim it is waited for: no claim
can come after, and hide again, what was given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, BatchFailure, Message, Queue
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages, Loss
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import SQS_HEARTBEAT_LATENESS, SQS_STALE_RECEIPTS
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event

CALLS_AT_ONCE: Final = 8  # of claims; each is for ten messages, so that thousands in hand are claimed in seconds
BEAT_MIN_PAUSE_S: Final = 0.05
IDLE_S: Final = 5.0  # how often the loop turns with nothing to do, to show that it lives
CALL_MIN_S: Final = 0.5
GIVING_BACK_S: Final = 3.0  # for one call; what fails comes again by itself
GIVING_BACK_TRIES: Final = 3
IDS_MAX: Final = 20  # of messages in one line of the log

log = structlog.get_logger(__name__)


class Visibility:
    """Changes when the messages of *queue* that are in *hand* are seen again.

    *on_lost* is called with messages that turned out to be ours no more, and is to return those that have to go back
    because of it. *is_being_deleted* tells of which messages SQS may say so because a delete was faster.
    """

    def __init__(
        self,
        queue: Queue,
        hand: InFlightMessages,
        *,
        on_lost: Callable[[Sequence[Message]], Sequence[Message]],
        is_being_deleted: Callable[[Message], bool],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._hand = hand
        self._on_lost = on_lost
        self._is_being_deleted = is_being_deleted
        self._clock = clock
        self._draw = draw
        self._under_way: dict[str, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self.last_turn = clock()
        self.late_s = 0.0

    def __repr__(self) -> str:
        return f"Visibility({self._queue.name!r}, claiming={len(self._under_way)})"

    async def keep_hidden(self, ended: asyncio.Event) -> None:
        """Claim what is in hand again, in time, until *ended* is set."""
        async with asyncio.TaskGroup() as calls:
            while not await sleep_or_event(max(self._pause_s(), BEAT_MIN_PAUSE_S), until=ended):
                self.last_turn = now = self._clock()
                if back := self.expire():
                    calls.create_task(self.put_back([(message, 0.0) for message in back]))
                for due_at, batch in self._hand.due(now):
                    calls.create_task(self._claim(batch, due_at=due_at), name=f"sqs-claim:{self._queue.name}")

    def expire(self) -> Sequence[Message]:
        """Take note of what is ours no more; return what has to go back because of it."""
        lost = self._hand.expire(self._clock())
        return self._note_lost([message for message, _ in lost], {loss for _, loss in lost})

    async def put_back(self, changes: Sequence[tuple[Message, float]]) -> None:
        """Let each message come again after its seconds, in this order; it is in hand no more, whatever comes of it.

        What SQS does not take comes again when its visibility timeout has passed.
        """
        now = self._clock()
        left = [(self._hand.newest(message), self._hand.cut_s(message, delay_s, now)) for message, delay_s in changes]
        self._hand.drop([message for message, _ in left])
        await self._claims_ended([message for message, _ in left])
        for start in range(0, len(left), BATCH_MAX_COUNT):
            error = await self._put_batch_back(left[start : start + BATCH_MAX_COUNT])
            if error:
                count = len(left) - start
                log.warning("message.not_put_off", queue=self._queue.name, count=count, error=error)
                return  # the next batch would meet the same

    async def _put_batch_back(self, changes: Sequence[tuple[Message, int]]) -> str:
        """Put back what one call takes; return what is wrong with SQS, empty for nothing."""
        error = ""
        for attempt in range(1, GIVING_BACK_TRIES + 1):
            try:
                async with asyncio.timeout(GIVING_BACK_S):
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
            if attempt < GIVING_BACK_TRIES:
                await asyncio.sleep(backoff_s(attempt, draw=self._draw(), base_s=0.1, max_s=1.0))
        return error or "no answer"

    async def _claim(self, batch: Sequence[Message], *, due_at: float) -> None:
        async with self._slots:
            now = self._clock()
            claims = [
                (message, self._hand.cut_s(message, self._hand.visibility_timeout_s, now))
                for message in batch
                if self._hand.is_ours(message, now=now) and self._hand.newest(message) is message
            ]
            claims = [(message, seconds) for message, seconds in claims if seconds > 0]
            if claims:
                await self._claim_now(claims)
                SQS_HEARTBEAT_LATENESS.labels(self._queue.name).observe(max(self._clock() - due_at, 0.0))
                self.late_s = self._clock() - due_at

    async def _claim_now(self, claims: Sequence[tuple[Message, int]]) -> None:
        messages = [message for message, _ in claims]
        ended = asyncio.Event()
        self._under_way |= {message.message_id: ended for message in messages}
        sent_at = self._clock()
        try:
            async with asyncio.timeout(max(self._hand.beat_s / 2, CALL_MIN_S)):
                failures = await self._queue.change_visibility_batch(claims)
        except (RetryableError, PermanentError, TimeoutError) as exc:
            self._hand.retry_soon(messages, now=self._clock())
            error = str(exc) or "no answer"
            log.warning("message.not_claimed", queue=self._queue.name, count=len(messages), error=error)
            return
        finally:
            for message in messages:
                if self._under_way.get(message.message_id) is ended:
                    del self._under_way[message.message_id]
            ended.set()
        await self._note_claimed(claims, failures, sent_at)

    async def _note_claimed(
        self, claims: Sequence[tuple[Message, int]], failures: Sequence[BatchFailure], sent_at: float
    ) -> None:
        failed = {failure.message.message_id for failure in failures}
        done = [claim for claim in claims if claim[0].message_id not in failed]
        self._hand.renew(done, claimed_at=sent_at, draw=self._draw())
        self._hand.retry_soon([one.message for one in failures if not one.is_sender_fault], now=self._clock())
        refused = [one for one in failures if one.is_sender_fault and not self._is_being_deleted(one.message)]
        lost = self._hand.refuse([failure.message for failure in refused])
        self._count_stale([failure for failure in refused if failure.message in lost])
        back = self._note_lost(lost, {Loss.REFUSED})
        if back:
            await self.put_back([(message, 0.0) for message in back])

    def _note_lost(self, messages: Sequence[Message], losses: set[Loss]) -> Sequence[Message]:
        """Tell what was lost; return what has to go back because of it."""
        if not messages:
            return []
        ids = [message.message_id for message in messages[:IDS_MAX]]
        facts = {"queue": self._queue.name, "count": len(messages), "message_ids": ids}
        if Loss.CEILING in losses:
            log.error("message.ceiling_reached", **facts)
        else:
            log.warning("message.lease_lost", **facts, reasons=sorted(losses))
        return self._on_lost(messages)

    def _count_stale(self, failures: Sequence[BatchFailure]) -> None:
        if failures:
            SQS_STALE_RECEIPTS.labels(self._queue.name, "change_visibility").inc(len(failures))

    async def _claims_ended(self, messages: Sequence[Message]) -> None:
        """Wait for the claims of *messages* that are under way; there is no new one, they are not in hand."""
        for message in messages:
            while (ended := self._under_way.get(message.message_id)) is not None:
                await ended.wait()

    def _pause_s(self) -> float:
        return min(self._hand.next_due_in(self._clock()), self._hand.beat_s / 4, IDLE_S)
