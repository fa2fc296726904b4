"""Poll a queue, and read its attributes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Message, Queue, QueueAttributes
from simplu_worker.consumers.sqs.receive.message_table import MessageTable, SchedulerLimits
from simplu_worker.consumers.sqs.receive.slots import PollPlan, PriorityGate
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import RETRIES
from simplu_worker.timing.waits import backoff_s, sleep_or_event
from simplu_worker.vocabulary import Retry, Source

POLL_WAIT_S: Final = 5  # a stop waits for it to end; a longer one would save a few cheap requests and slow down stops
RETRY_BASE_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
GATE_CHECK_S: Final = 0.05
DEPTH_INTERVAL_S: Final = 30.0

log = structlog.get_logger(__name__)


class _Poll(msgspec.Struct, eq=False):
    asked_count: int
    started_at: float


class Poller:
    """The polls of a queue, each of which receives once.

    *on_messages* is awaited after a poll, with the time from which the messages are hidden.
    """

    def __init__(
        self,
        queue: Queue,
        table: MessageTable,
        *,
        limits: SchedulerLimits,
        wait_s: int,
        on_messages: Callable[[Sequence[Message], float], Awaitable[None]],
        gate: PriorityGate | None,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._table = table
        self._wait_s = wait_s
        self._on_messages = on_messages
        self._gate = gate
        self._clock = clock
        self._draw = draw
        self._plan = PollPlan(
            poll_count=limits.poll_count, message_count=limits.message_count, byte_count=limits.byte_count
        )
        self._polls: set[_Poll] = set()
        self._failure_count = 0  # in a row
        self.next_at = 0.0  # after a failure
        self.received_count = 0
        self.answer_count = 0
        self.last_error: str | None = None

    @property
    def oldest_start(self) -> float:
        """When the oldest poll under way began; now without one."""
        return min([self._clock(), *(poll.started_at for poll in self._polls)])

    @property
    def under_way_count(self) -> int:
        """How many polls are under way."""
        return len(self._polls)

    @property
    def wanted_count(self) -> int:
        """How many polls are to run."""
        return self._plan.wanted_count

    def next_poll(self) -> _Poll | None:
        """Return the poll to `run` now, if one more is wanted and there is room for its messages."""
        now = self._clock()
        if now < self.next_at or len(self._polls) >= self._plan.wanted_count:
            return None
        asked_count = self._plan.reserve(in_flight_count=len(self._table), in_flight_bytes=self._table.byte_count)
        if not asked_count:
            return None
        poll = _Poll(asked_count, now)
        self._polls.add(poll)
        return poll

    async def run(self, poll: _Poll, stopping: asyncio.Event) -> None:
        """Receive once, and hand over what came."""
        messages: list[Message] | None = None
        error: Exception | None = None
        try:
            while self._gate is not None and not self._gate.lets_pass(self._clock()):  # noqa: ASYNC110  # its rule
                await asyncio.sleep(GATE_CHECK_S)
            if not stopping.is_set():
                messages = await self._receive(poll)
        except TimeoutError:
            error = None if stopping.is_set() else RetryableError(f"no answer to a poll of {self._wait_s} s")
        except (RetryableError, PermanentError, OSError) as exc:
            error = exc
        finally:
            self._polls.discard(poll)
        if messages is None:
            self._plan.record_failure(poll.asked_count)
            if error is not None:
                self._note_failure(error)
            return
        if self._failure_count and not stopping.is_set():
            log.info("queue.recovered", queue=self._queue.name, failure_count=self._failure_count)
        self._failure_count, self.next_at, self.last_error = 0, 0.0, None
        self._plan.record_answer(poll.asked_count, [message.size_bytes for message in messages])
        self.received_count += len(messages)
        self.answer_count += 1
        # SQS hid them at the end of the wait at the latest: a late answer does not make their visibility period longer.
        await self._on_messages(messages, min(self._clock(), poll.started_at + self._wait_s))

    async def _receive(self, poll: _Poll) -> list[Message]:
        poll.started_at = self._clock()
        async with asyncio.timeout(self._wait_s + POLL_MARGIN_S):
            return await self._queue.receive(
                wait_s=self._wait_s,
                max_messages=poll.asked_count,
                visibility_s=self._table.visibility_timeout_s,
            )

    def _note_failure(self, error: Exception) -> None:
        self._failure_count += 1
        self.last_error = str(error)
        self.next_at = self._clock() + back_off(self._queue, error, self._failure_count, draw=self._draw())


def back_off(queue: Queue, exc: Exception, failure_count: int, *, draw: float) -> float:
    """Count a failed call, and log the 1st, 2nd, 4th, 8th … one; return the pause before the next."""
    RETRIES.labels(Source.SQS, Retry.READ_FAILED).inc()
    delay_s = backoff_s(failure_count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
    if failure_count.bit_count() == 1:
        level = log.error if isinstance(exc, PermanentError) else log.warning
        level(
            "queue.unreachable",
            queue=queue.name,
            failure_count=failure_count,
            retry_in_s=round(delay_s, 1),
            error=str(exc),
        )
    return delay_s


class AttributesWatch:
    """Reads the attributes of a queue again and again; *on_read* gets them."""

    def __init__(self, queue: Queue, *, on_read: Callable[[QueueAttributes], None], draw: Callable[[], float]) -> None:
        self._queue = queue
        self._on_read = on_read
        self._draw = draw
        self.attributes: QueueAttributes | None = None
        self.last_error: str | None = None  # until they are read for the first time

    async def run(self, ended: asyncio.Event) -> None:
        """Read the attributes until *ended*: soon again until they are read for the first time."""
        failure_count, pause_s = 0, 0.0
        while not await sleep_or_event(pause_s, until=ended):
            pause_s = DEPTH_INTERVAL_S
            try:
                attributes = await self._queue.read_attributes()
            except (RetryableError, PermanentError, OSError) as exc:
                if self.attributes is None:
                    failure_count += 1
                    self.last_error = str(exc)
                    pause_s = back_off(self._queue, exc, failure_count, draw=self._draw())
            else:
                self._on_read(attributes)
                self.attributes, self.last_error = attributes, None
