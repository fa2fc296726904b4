"""Poll a queue: one poll while it is nearly empty, several while it is full, each with a deadline.

And the priority of one queue over another: while the other has work, a queue polls in a turn of its own, or each
second.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from simplu_worker.aws.clients import ThrottledError, longest_pause_s
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Message, Queue
from simplu_worker.consumers.sqs.receive.group_scheduler import SchedulerLimits
from simplu_worker.consumers.sqs.receive.in_flight import InFlightMessages, PollCount, PollReservations, ReceiveAttempt
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import RETRIES, SQS_POLLS, SQS_POLLS_REPLACED
from simplu_worker.timing.waits import backoff_s, move_deadline, sleep_or_event
from simplu_worker.vocabulary import QueueRetry, Source

POLL_WAIT_S: Final = 5  # a stop waits for it to end; a longer one would save a few cheap requests and slow down stops
STOP_WAIT_S: Final = POLL_WAIT_S + 1.0  # after this a poll that is under way at a stop is cut: the server is silent
SILENCE_S: Final = POLL_MARGIN_S - 1.0  # past its wait: a little before the poll client's own timeout, if it has one
FULL_WAIT_S: Final = 5.0  # without room in flight, how often the loop turns to show that it is alive
RETRY_BASE_S: Final = 0.5
RETRY_MAX_S: Final = 30.0

log = structlog.get_logger(__name__)


class PollTimes(msgspec.Struct, frozen=True):
    """The times of a poll. *wait_s* is how long SQS waits for messages.

    *stop_wait_s*, longer than that, is how long polls may still answer at a stop. *silence_s* after its wait, a poll is
    replaced.
    """

    wait_s: int = POLL_WAIT_S
    stop_wait_s: float = STOP_WAIT_S
    silence_s: float = SILENCE_S


class Poller:
    """Polls while there is room in *in_flight*; awaits *gate* before each poll, *on_messages* after it."""

    def __init__(
        self,
        queue: Queue,
        in_flight: InFlightMessages,
        *,
        limits: SchedulerLimits,
        times: PollTimes,
        on_messages: Callable[[Sequence[Message], float], Awaitable[None]],
        gate: Callable[[], Awaitable[None]] | None,
        clock: Callable[[], float],
        draw: Callable[[], float],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._queue = queue
        self._in_flight = in_flight
        self._limits = limits
        self._times = times
        self._on_messages = on_messages
        self._gate = gate
        self._clock = clock
        self._draw = draw
        self._new_id = new_id
        self._count = PollCount(limits.poll_count)
        self._reservations = PollReservations(message_count=limits.message_count, byte_count=limits.byte_count)
        self._under_way: dict[int, asyncio.Timeout] = {}
        self._turns: dict[int, float] = {0: clock()}
        self._changed = asyncio.Event()
        self.received_count = 0
        self.answer_count = 0
        self.replaced_count = 0
        self.last_error: str | None = None

    @property
    def last_turn(self) -> float:
        """The oldest last turn of any loop; idle loops do not count."""
        return min(self._turns.values())

    @property
    def under_way_count(self) -> int:
        """How many polls are under way."""
        return len(self._under_way)

    @property
    def wanted_count(self) -> int:
        """How many polls are to run."""
        return self._count.wanted_count

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until *stopping* is set and the last poll has ended."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._limit_stop(stopping), name=f"sqs-stop:{self._queue.name}")
            for number in range(max(self._limits.poll_count, 1)):
                loops.create_task(self._loop(number, stopping), name=f"sqs-poll-{number}:{self._queue.name}")

    def wake(self) -> None:
        """Let idle loops check again."""
        self._changed.set()
        self._changed.clear()

    async def _loop(self, number: int, stopping: asyncio.Event) -> None:
        attempt: ReceiveAttempt | None = None
        failure_count = 0
        while not stopping.is_set():
            self._turns[number] = self._clock()
            if number >= self._count.wanted_count and attempt is None:
                del self._turns[number]
                await self._changed.wait()
                continue
            if self._gate is not None:
                await self._gate()
                if stopping.is_set():
                    return
            asked_count = self._reserve(attempt)
            if not asked_count:
                await sleep_or_event(FULL_WAIT_S, until=self._changed)
                continue
            attempt = self._next_attempt(attempt, asked_count)
            error = await self._poll(number, asked_count, attempt, stopping)
            if error is None:
                if failure_count and not stopping.is_set():
                    log.info("queue.recovered", queue=self._queue.name, failure_count=failure_count)
                failure_count, attempt = 0, None
                continue
            if isinstance(error, ThrottledError | PermanentError):
                attempt = None  # that is an answer: no message was received
            failure_count += 1
            await self._back_off(error, failure_count, stopping)

    def _reserve(self, attempt: ReceiveAttempt | None) -> int:
        asked_count = self._reservations.reserve(
            in_flight_count=len(self._in_flight), in_flight_bytes=self._in_flight.byte_count
        )
        if asked_count and attempt is not None and attempt.is_usable(self._clock()):
            self._reservations.release(asked_count - attempt.max_messages, [])
            return attempt.max_messages
        return asked_count

    def _next_attempt(self, attempt: ReceiveAttempt | None, asked_count: int) -> ReceiveAttempt | None:
        if not self._queue.is_fifo:
            return None
        now = self._clock()
        if attempt is not None and attempt.is_usable(now):
            return attempt
        return ReceiveAttempt(self._new_id(), asked_count, now)

    async def _poll(
        self, number: int, asked_count: int, attempt: ReceiveAttempt | None, stopping: asyncio.Event
    ) -> Exception | None:
        messages: list[Message] = []
        sent_at = self._clock()
        try:
            messages = await self._receive(number, asked_count, attempt)
        except TimeoutError:
            if stopping.is_set():
                return None
            return self._replace_poll()
        except (RetryableError, PermanentError, OSError) as exc:
            return exc
        finally:
            self._under_way.pop(number, None)
            SQS_POLLS.labels(self._queue.name).set(len(self._under_way))
            self._reservations.release(asked_count, [message.size_bytes for message in messages])
        self.last_error = None
        wanted_count = self._count.wanted_count
        self._count.record_answer(len(messages), asked_count)
        self.received_count += len(messages)
        self.answer_count += 1
        if self._count.wanted_count > wanted_count:
            self.wake()
        # SQS hid them at the end of the wait at the latest: a late answer does not make their visibility period longer.
        await self._on_messages(messages, min(self._clock(), sent_at + self._times.wait_s))
        return None

    async def _receive(self, number: int, asked_count: int, attempt: ReceiveAttempt | None) -> list[Message]:
        async with asyncio.timeout(self._times.wait_s + self._times.silence_s) as deadline:
            self._under_way[number] = deadline
            SQS_POLLS.labels(self._queue.name).set(len(self._under_way))
            return await self._queue.receive(
                wait_s=self._times.wait_s,
                max_messages=asked_count,
                visibility_s=self._in_flight.visibility_timeout_s,
                attempt_id=None if attempt is None else attempt.attempt_id,
            )

    def _replace_poll(self) -> RetryableError:
        self.replaced_count += 1
        SQS_POLLS_REPLACED.labels(self._queue.name).inc()
        silent_s = self._times.wait_s + self._times.silence_s
        log.warning("queue.poll_replaced", queue=self._queue.name, silent_s=silent_s)
        return RetryableError(f"a poll of {self._times.wait_s} s had no answer after {silent_s:g} s")

    async def _limit_stop(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.wake()
        ends_at = asyncio.get_running_loop().time() + self._times.stop_wait_s
        for deadline in self._under_way.values():
            move_deadline(deadline, min(deadline.when() or ends_at, ends_at))

    async def _back_off(self, exc: Exception, failure_count: int, stopping: asyncio.Event) -> None:
        self.last_error = str(exc)
        self._count.record_failure()
        RETRIES.labels(Source.SQS, QueueRetry.RECEIVE).inc()
        delay_s = backoff_s(
            failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=longest_pause_s(exc, RETRY_MAX_S)
        )
        log_unreachable(self._queue, exc, failure_count, delay_s)
        await sleep_or_event(delay_s, until=stopping)


def log_unreachable(queue: Queue, exc: Exception, failure_count: int, delay_s: float) -> None:
    """Log that *queue* does not answer: the 1st, 2nd, 4th, 8th … time."""
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


GATE_MAX_WAIT_S: Final = 1.0  # of one poll, so that the lower queue is never starved
CHECK_INTERVAL_S: Final = 0.05
POLLS_AHEAD: Final = 4  # of the other queue, before it is this one's turn


class PriorQueue(Protocol):
    """The queue that goes first, as its receiver knows it."""

    @property
    def is_busy(self) -> bool:
        """Whether messages are with the handler, or may be."""

    @property
    def poll_count(self) -> int:
        """How many polls were answered."""


class PriorityGate:
    """A gate before each poll of a queue, which is shut while *prior* has work; after some polls of that it opens."""

    def __init__(self, prior: PriorQueue, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._prior = prior
        self._sleep = sleep
        self._opens_at = POLLS_AHEAD

    async def __call__(self) -> None:
        """Wait until the other queue has no work, or it is this one's turn, at most GATE_MAX_WAIT_S."""
        for _ in range(round(GATE_MAX_WAIT_S / CHECK_INTERVAL_S)):
            if not self._prior.is_busy or self._prior.poll_count >= self._opens_at:
                break
            await self._sleep(CHECK_INTERVAL_S)
        self._opens_at = self._prior.poll_count + POLLS_AHEAD
