"""Receive from one queue, keep what is in hand hidden, and do with each message what its handler decides.

Safe because a message leaves the queue only by a delete, and is deleted only after its handler was through with it or
its dead letter is stored. Everything else – a crash, a lost claim, a failed delete – makes it come again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never

import structlog

from simplu_worker.consumers.backoff import backoff_s
from simplu_worker.consumers.dead_letters import DeadLetter, DeadLetterQueue
from simplu_worker.consumers.pauses import pause
from simplu_worker.consumers.sqs.in_hand import InHand
from simplu_worker.consumers.sqs.queue import POLL_MARGIN_S, VISIBILITY_DEFAULT_S, Message, Queue
from simplu_worker.consumers.sqs.verdicts import Bury, Done, Later, Stay, Verdict
from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics.instruments import (
    RETRIES,
    SQS_IN_FLIGHT,
    SQS_MESSAGES,
    SQS_QUEUE_DEPTH,
    start_queue_at_zero,
)

IN_HAND_MAX: Final = 20
POLL_WAIT_S: Final = 5  # a stop waits it out; a longer one would save a few cheap requests and make stops slow
STOP_WAIT_S: Final = POLL_WAIT_S + 1.0  # after this a poll that is parked at a stop is cut: the server is silent
ROOM_WAIT_S: Final = 5.0  # with full hands, how often the loop turns to show that it lives
RECEIVE_RETRY_BASE_S: Final = 0.5
RECEIVE_RETRY_MAX_S: Final = 30.0
DEPTH_INTERVAL_S: Final = 30.0
BEAT_MIN_PAUSE_S: Final = 0.05
LONGEST_TURN_S: Final = POLL_WAIT_S + POLL_MARGIN_S + RECEIVE_RETRY_MAX_S  # a dead poll, and the pause after it

Handler: TypeAlias = Callable[[Message], Awaitable[Verdict]]

log = structlog.get_logger(__name__)


class QueueReceiver:
    """Receives from *queue* and runs *handler* for each message, up to *limit* at a time.

    *stop_wait_s* is how long a poll that is parked when the stop comes may still answer. Keep it above *poll_wait_s*:
    SQS may give a message to a poll that was cut, which is then hidden until its visibility timeout has passed.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        dead_letters: DeadLetterQueue,
        *,
        limit: int = IN_HAND_MAX,
        poll_wait_s: int = POLL_WAIT_S,
        stop_wait_s: float = STOP_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._dead_letters = dead_letters
        self._poll_wait_s = poll_wait_s
        self._stop_wait_s = stop_wait_s
        self._clock = clock
        self._draw = draw
        self._hand = InHand(limit=limit, visibility_timeout_s=VISIBILITY_DEFAULT_S)
        self._finished: list[tuple[Message, str]] = []
        self._something_finished = asyncio.Event()
        self._room_made = asyncio.Event()
        self._handlers_ended = asyncio.Event()
        self._ended = asyncio.Event()
        self._visibility_lock = asyncio.Lock()
        self._poll_deadline: asyncio.Timeout | None = None
        self.last_turn = clock()
        self.last_error: str | None = None

    def __repr__(self) -> str:
        return f"QueueReceiver({self._queue.name!r}, {self._hand!r}, last_error={self.last_error!r})"

    @property
    def in_hand(self) -> int:
        """How many messages are received and not decided yet."""
        return len(self._hand)

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until *stopping* is set, then finish what is in hand and return. Run once.

        Cancelling it leaves what is in hand to its visibility timeout.
        """
        start_queue_at_zero(self._queue.name)
        await self._read_visibility(stopping)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._cut_poll_at(stopping), name=f"sqs-stop:{self._queue.name}")
            loops.create_task(self._keep_hidden(), name=f"sqs-heartbeat:{self._queue.name}")
            loops.create_task(self._watch_depth(), name=f"sqs-depth:{self._queue.name}")
            loops.create_task(self._delete_finished(), name=f"sqs-delete:{self._queue.name}")
            async with asyncio.TaskGroup() as handlers:
                await self._poll(handlers, stopping)
            self._handlers_ended.set()
            self._something_finished.set()

    async def _read_visibility(self, stopping: asyncio.Event) -> None:
        """Learn the queue's own visibility timeout, however long that takes."""
        failure_count = 0
        while not stopping.is_set():
            self.last_turn = self._clock()
            try:
                attributes = await self._queue.attributes()
            except (TryAgainLaterError, RefusedError) as exc:
                failure_count += 1
                await self._back_off(exc, failure_count, stopping)
            else:
                self.last_error = None
                timeout_s = attributes.visibility_timeout_s
                self._hand = InHand(limit=self._hand.limit, visibility_timeout_s=timeout_s)
                log.info("queue.opened", queue=self._queue.name, visibility_timeout_s=timeout_s)
                return

    async def _poll(self, handlers: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        failure_count = 0
        while not stopping.is_set():
            self.last_turn = self._clock()
            if not self._hand.room:
                self._room_made.clear()
                await pause(ROOM_WAIT_S, until=self._room_made)
                continue
            try:
                messages = await self._receive()
            except (TryAgainLaterError, RefusedError) as exc:
                failure_count += 1
                await self._back_off(exc, failure_count, stopping)
                continue
            if failure_count:
                log.info("queue.recovered", queue=self._queue.name, failure_count=failure_count)
            failure_count = 0
            self.last_error = None
            fresh = self._hand.take(messages, now=self._clock())
            if stopping.is_set():
                await self._give_back(fresh)
                break
            for message in fresh:
                handlers.create_task(self._handle(message, stopping), name=f"sqs-message:{message.message_id}")
            self._show_in_flight()

    async def _receive(self) -> list[Message]:
        """Poll once; empty when a stop cut the poll."""
        try:
            async with asyncio.timeout(None) as deadline:
                self._poll_deadline = deadline
                return await self._queue.receive(wait_s=self._poll_wait_s, max_messages=self._hand.room)
        except TimeoutError:
            return []
        finally:
            self._poll_deadline = None

    async def _cut_poll_at(self, stopping: asyncio.Event) -> None:
        """When *stopping* is set, end the poll under way soon."""
        await stopping.wait()
        self._room_made.set()
        if self._poll_deadline is not None:
            self._poll_deadline.reschedule(asyncio.get_running_loop().time() + self._stop_wait_s)

    async def _back_off(self, exc: Exception, failure_count: int, stopping: asyncio.Event) -> None:
        """Wait after a failed call; log the first failure in a row, and then ever fewer."""
        self.last_error = str(exc)
        RETRIES.labels("sqs", "receive").inc()
        delay_s = backoff_s(failure_count, draw=self._draw(), base_s=RECEIVE_RETRY_BASE_S, most_s=RECEIVE_RETRY_MAX_S)
        if failure_count.bit_count() == 1:  # 1, 2, 4, 8, …
            level = log.error if isinstance(exc, RefusedError) else log.warning
            level(
                "queue.unreachable",
                queue=self._queue.name,
                failure_count=failure_count,
                retry_in_s=round(delay_s, 1),
                error=str(exc),
            )
        await pause(delay_s, until=stopping)

    async def _handle(self, message: Message, stopping: asyncio.Event) -> None:
        verdict = await self._handler(message)
        match verdict:
            case Done():
                self._finish(message, "deleted")
            case Later(delay_s=delay_s):
                await self._put_off(message, delay_s)
            case Stay():
                self._let_go([message])
            case Bury():
                await self._bury(message, verdict, stopping)
            case _:
                assert_never(verdict)

    async def _bury(self, message: Message, verdict: Bury, stopping: asyncio.Event) -> None:
        letter = DeadLetter(
            reason=verdict.reason,
            error=verdict.error,
            origin=self._queue.origin_of(message),
            failed_at=datetime.now(UTC),
            attempts=message.receive_count,
            record=message.body.encode("utf-8", "surrogatepass"),
            business_id=verdict.business_id,
            location_id=verdict.location_id,
        )
        try:
            await self._dead_letters.store([letter], stopping=stopping)
        except TryAgainLaterError:
            await self._put_off(message, 0)
        else:
            self._finish(message, "dead_letter")

    def _finish(self, message: Message, outcome: str) -> None:
        self._finished.append((message, outcome))
        self._something_finished.set()

    async def _delete_finished(self) -> None:
        """Delete what handlers have finished, as many in one call as have gathered during the last one."""
        while self._finished or not self._handlers_ended.is_set():
            if self._finished:
                finished, self._finished = self._finished, []
                await self._delete(finished)
            else:
                await self._something_finished.wait()
                self._something_finished.clear()
        self._ended.set()

    async def _delete(self, finished: Sequence[tuple[Message, str]]) -> None:
        messages = [self._hand.newest(message) for message, _ in finished]
        error = "receipt handle refused"
        try:
            left = await self._queue.delete(messages)
        except (TryAgainLaterError, RefusedError) as exc:
            left, error = messages, str(exc)
        left_ids = {message.message_id for message in left}
        if left:
            log.warning("message.not_deleted", queue=self._queue.name, message_ids=sorted(left_ids), error=error)
        for message, outcome in finished:
            if message.message_id not in left_ids:
                SQS_MESSAGES.labels(self._queue.name, outcome).inc()
        self._let_go(messages)

    async def _put_off(self, message: Message, delay_s: int) -> None:
        """Let *message* come again after *delay_s*; its heartbeat has ended before, so that none undoes this."""
        await self._set_visibility([message], delay_s)
        SQS_MESSAGES.labels(self._queue.name, "retried").inc()

    async def _give_back(self, messages: Sequence[Message]) -> None:
        """Let others have *messages* at once: nobody here has begun with them."""
        if messages:
            await self._set_visibility(messages, 0)
            log.info("message.given_back", queue=self._queue.name, count=len(messages))

    async def _set_visibility(self, messages: Sequence[Message], visibility_s: int) -> None:
        """Change when *messages* come again and let them go; failing, they come when their timeout has passed."""
        async with self._visibility_lock:
            newest = [self._hand.newest(message) for message in messages]
            self._hand.rest(newest)
            try:
                await self._queue.change_visibility(newest, visibility_s)
            except (TryAgainLaterError, RefusedError) as exc:
                log.warning("message.not_put_off", queue=self._queue.name, count=len(newest), error=str(exc))
        self._let_go(messages)

    async def _keep_hidden(self) -> None:
        """Claim what is in hand again, in time."""
        while not await pause(max(self._hand.next_due_in(self._clock()), BEAT_MIN_PAUSE_S), until=self._ended):
            async with self._visibility_lock:
                if due := self._hand.due(self._clock()):
                    await self._claim(due)

    async def _claim(self, messages: Sequence[Message]) -> None:
        try:
            lost = await self._queue.change_visibility(messages, self._hand.visibility_timeout_s)
        except (TryAgainLaterError, RefusedError) as exc:
            self._hand.retry_soon(messages, now=self._clock())
            log.warning("message.not_claimed", queue=self._queue.name, count=len(messages), error=str(exc))
            return
        self._hand.renew(messages, now=self._clock())
        self._hand.rest(lost)
        if lost:
            log.warning("message.claim_lost", queue=self._queue.name, message_ids=[item.message_id for item in lost])

    async def _watch_depth(self) -> None:
        while True:
            try:
                attributes = await self._queue.attributes()
            except (TryAgainLaterError, RefusedError) as exc:
                log.debug("queue.depth_unread", queue=self._queue.name, error=str(exc))
            else:
                SQS_QUEUE_DEPTH.labels(self._queue.name).set(attributes.visible_count)
            if await pause(DEPTH_INTERVAL_S, until=self._ended):
                return

    def _let_go(self, messages: Sequence[Message]) -> None:
        self._hand.drop(messages)
        self._room_made.set()
        self._show_in_flight()

    def _show_in_flight(self) -> None:
        SQS_IN_FLIGHT.labels(self._queue.name).set(len(self._hand))
