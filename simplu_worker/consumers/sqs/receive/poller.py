"""Poll a queue: several polls at a time while there is much in it, one while there is little, each with a deadline."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from simplu_worker.aws.clients import ThrottledError
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Message, Queue
from simplu_worker.consumers.sqs.receive.group_scheduler import SchedulerLimits
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages
from simplu_worker.consumers.sqs.receive.poll_count import PollCount, PollReservations, ReceiveAttempt
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import RETRIES, SQS_POLLS, SQS_POLLS_REPLACED
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event

POLL_WAIT_S: Final = 5  # a stop waits it out; a longer one would save a few cheap requests and make stops slow
STOP_WAIT_S: Final = POLL_WAIT_S + 1.0  # after this a poll that is parked at a stop is cut: the server is silent
SILENCE_S: Final = POLL_MARGIN_S - 1.0  # past its wait: a little before the poll client's own timeout, if it has one
ROOM_WAIT_S: Final = 5.0  # with full hands, how often the loop turns to show that it lives
RETRY_BASE_S: Final = 0.5
RETRY_MAX_S: Final = 30.0

log = structlog.get_logger(__name__)


class Poller:
    """Polls *queue* while there is room in *hand*, and gives what comes, with when it came, to *on_messages*.

    *stop_wait_s* is how long polls that are parked when the stop comes may still answer. Keep it above *poll_wait_s*:
    SQS may give a message to a poll that was cut, which is then hidden until its visibility timeout has passed. *gate*,
    when given, is awaited before each poll. *silence_s* past its wait, a poll is given up and another one made.
    """

    def __init__(
        self,
        queue: Queue,
        hand: InFlightMessages,
        *,
        limits: SchedulerLimits,
        on_messages: Callable[[Sequence[Message], float], None],
        gate: Callable[[], Awaitable[None]] | None,
        poll_wait_s: int,
        stop_wait_s: float,
        silence_s: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._queue = queue
        self._hand = hand
        self._limits = limits
        self._on_messages = on_messages
        self._gate = gate
        self._poll_wait_s = poll_wait_s
        self._stop_wait_s = stop_wait_s
        self._silence_s = silence_s
        self._clock = clock
        self._draw = draw
        self._new_id = new_id
        self._pace = PollCount(limits.poll_count)
        self._reserve = PollReservations(message_count=limits.message_count, byte_count=limits.byte_count)
        self._parked: dict[int, asyncio.Timeout] = {}
        self._turns: dict[int, float] = {0: clock()}
        self._changed = asyncio.Event()
        self.received_count = 0
        self.replaced_count = 0
        self.last_error: str | None = None

    def __repr__(self) -> str:
        return f"Polls({self._queue.name!r}, parked={sorted(self._parked)}, {self._pace!r}, {self._reserve!r})"

    @property
    def last_turn(self) -> float:
        """When the loop turned last that has not turned for longest; those that rest do not count."""
        return min(self._turns.values())

    @property
    def parked_count(self) -> int:
        """How many polls are under way."""
        return len(self._parked)

    @property
    def wanted_count(self) -> int:
        """How many polls there shall be."""
        return self._pace.wanted_count

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until *stopping* is set and the last poll has ended."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._stop_at(stopping), name=f"sqs-stop:{self._queue.name}")
            for number in range(max(self._limits.poll_count, 1)):
                loops.create_task(self._loop(number, stopping), name=f"sqs-poll-{number}:{self._queue.name}")

    def wake(self) -> None:
        """Let loops that rest, or wait for room, look again."""
        self._changed.set()
        self._changed.clear()

    async def _loop(self, number: int, stopping: asyncio.Event) -> None:
        attempt: ReceiveAttempt | None = None
        failure_count = 0
        while not stopping.is_set():
            self._turns[number] = self._clock()
            if number >= self._pace.wanted_count and attempt is None:
                del self._turns[number]
                await self._changed.wait()
                continue
            if self._gate is not None:
                await self._gate()
                if stopping.is_set():
                    return
            asked_count = self._ask(attempt)
            if not asked_count:
                await sleep_or_event(ROOM_WAIT_S, until=self._changed)
                continue
            attempt = self._attempt(attempt, asked_count)
            error = await self._poll(number, asked_count, attempt, stopping)
            if error is None:
                if failure_count and not stopping.is_set():
                    log.info("queue.recovered", queue=self._queue.name, failure_count=failure_count)
                failure_count, attempt = 0, None
                continue
            if isinstance(error, ThrottledError | PermanentError):
                attempt = None  # that is an answer: nothing was received
            failure_count += 1
            await self._back_off(error, failure_count, stopping)

    def _ask(self, attempt: ReceiveAttempt | None) -> int:
        """Return how many messages to ask for; as many as before where a receive is repeated."""
        asked_count = self._reserve.ask(in_hand_count=len(self._hand), in_hand_bytes=self._hand.byte_count)
        if asked_count and attempt is not None and attempt.is_usable(self._clock()):
            self._reserve.end(asked_count - attempt.max_messages, [])
            return attempt.max_messages
        return asked_count

    def _attempt(self, attempt: ReceiveAttempt | None, asked_count: int) -> ReceiveAttempt | None:
        """Return the receive to make: of a FIFO queue one with an id, the one before where its answer got lost."""
        if not self._queue.is_fifo:
            return None
        now = self._clock()
        return (
            attempt
            if attempt is not None and attempt.is_usable(now)
            else ReceiveAttempt(self._new_id(), asked_count, now)
        )

    async def _poll(
        self, number: int, asked_count: int, attempt: ReceiveAttempt | None, stopping: asyncio.Event
    ) -> Exception | None:
        """Poll once; return what was wrong. A poll that a stop cut is no error."""
        messages: list[Message] = []
        sent_at = self._clock()
        try:
            messages = await self._receive(number, asked_count, attempt)
        except TimeoutError:
            if stopping.is_set():
                return None
            return self._replaced()
        except (RetryableError, PermanentError, OSError) as exc:
            return exc
        finally:
            self._parked.pop(number, None)
            SQS_POLLS.labels(self._queue.name).set(len(self._parked))
            self._reserve.end(asked_count, [message.size_bytes for message in messages])
        self.last_error = None
        wanted_count = self._pace.wanted_count
        self._pace.note(len(messages), asked_count)
        # SQS took them at the end of the wait at the latest: an answer that came later does not make the lease longer.
        self.received_count += len(messages)
        self._on_messages(messages, min(self._clock(), sent_at + self._poll_wait_s))
        if self._pace.wanted_count > wanted_count:
            self.wake()
        return None

    async def _receive(self, number: int, asked_count: int, attempt: ReceiveAttempt | None) -> list[Message]:
        async with asyncio.timeout(self._poll_wait_s + self._silence_s) as deadline:
            self._parked[number] = deadline
            SQS_POLLS.labels(self._queue.name).set(len(self._parked))
            return await self._queue.receive(
                wait_s=self._poll_wait_s,
                max_messages=asked_count,
                visibility_s=self._hand.visibility_timeout_s,
                attempt_id=None if attempt is None else attempt.attempt_id,
            )

    def _replaced(self) -> RetryableError:
        self.replaced_count += 1
        SQS_POLLS_REPLACED.labels(self._queue.name).inc()
        silent_s = self._poll_wait_s + self._silence_s
        log.warning("queue.poll_replaced", queue=self._queue.name, silent_s=silent_s)
        return RetryableError(f"a poll of {self._poll_wait_s} s had no answer after {silent_s:g} s")

    async def _stop_at(self, stopping: asyncio.Event) -> None:
        """When *stopping* is set, wake what rests, and end the polls under way soon."""
        await stopping.wait()
        self.wake()
        ends_at = asyncio.get_running_loop().time() + self._stop_wait_s
        for deadline in self._parked.values():
            deadline.reschedule(min(deadline.when() or ends_at, ends_at))

    async def _back_off(self, exc: Exception, failure_count: int, stopping: asyncio.Event) -> None:
        """Wait after a failed call; log the first failure in a row, and then ever fewer."""
        self.last_error = str(exc)
        self._pace.note_failure()
        RETRIES.labels("sqs", "receive").inc()
        delay_s = backoff_s(failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        note_unreachable(self._queue, exc, failure_count, delay_s)
        await sleep_or_event(delay_s, until=stopping)


def note_unreachable(queue: Queue, exc: Exception, failure_count: int, delay_s: float) -> None:
    """Log that *queue* does not answer: the 1st, 2nd, 4th, 8th … time in a row."""
    if failure_count.bit_count() > 1:
        return
    level = log.error if isinstance(exc, PermanentError) else log.warning
    level(
        "queue.unreachable",
        queue=queue.name,
        failure_count=failure_count,
        retry_in_s=round(delay_s, 1),
        error=str(exc),
    )
