"""Store dead letters: no record that is given up is lost, so storing never gives up.

Safe because `store` returns only when the queue has confirmed every letter, and the caller skips a record only after
that. A letter that is stored twice is harmless, because a replay is de-duplicated.

Read the dead-letter queue without removing anything.

Letters are hidden from other readers by a short visibility timeout, which is renewed while the reading goes on, and are
returned at the end; after a kill, when the timeout expires.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self, TypeAlias

import msgspec
import structlog
from yarl import URL

from simplu_worker.aws import sqs_queue
from simplu_worker.aws.clients import Client
from simplu_worker.aws.sending import RequestBounds, cut, queue_producer
from simplu_worker.dead_letters.letter import (
    NotADeadLetterError,
    ParsedDeadLetter,
    encode_dead_letter,
    fifo_ids_of,
    parse_dead_letter,
)
from simplu_worker.dead_letters.plan import LettersRequest, visibility_timeout_s
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.instruments import DEAD_LETTERS
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.timing.waits import backoff_s, sleep_or_event
from simplu_worker.vocabulary import DeadLetterReason

MAX_MESSAGE_DEFAULT_BYTES: Final = 262_144  # the limit of every queue before August 2025
BATCH_MIN_BYTES: Final = 262_144  # limit of a whole batch, even when that of one message is lower
IN_THREAD_BYTES: Final = 262_144  # compressing more would block the event loop for tens of milliseconds
RETRY_BASE_S: Final = 0.5
RETRY_MAX_S: Final = 30.0

log = structlog.get_logger(__name__)


class DeadLetterQueue:
    """The queue of dead letters of all sources. Calls of `store` may run concurrently."""

    def __init__(self, client: Client, url: str, *, draw: Callable[[], float] = random.random) -> None:
        self.queue = sqs_queue.Queue(client, url)
        self._producer = queue_producer(self.queue)
        self._draw = draw
        self._max_bytes = MAX_MESSAGE_DEFAULT_BYTES

    async def read_limits(self) -> None:
        """Read the maximum size of a message; without an answer the default stays."""
        try:
            attributes = await self.queue.read_attributes()
        except (RetryableError, PermanentError) as exc:
            log.warning("dead_letter.queue_unread", queue=self.queue.name, error=str(exc))
        else:
            self._max_bytes = attributes.max_message_bytes or MAX_MESSAGE_DEFAULT_BYTES

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        """Store all *letters*, however long it takes.

        Raises RetryableError when *stopping* is set before: their records must then stay unacknowledged, to be read
        again.
        """
        failure_count = 0
        while True:
            left, error = await self._send_all(letters)
            if error is None:
                return
            failure_count = failure_count + 1 if len(left) == len(letters) else 1
            letters = left
            delay_s = backoff_s(failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
            log.warning(
                "dead_letter.deferred",
                queue=self.queue.name,
                count=len(letters),
                failure_count=failure_count,
                retry_in_s=round(delay_s, 1),
                error=error,
            )
            if await sleep_or_event(delay_s, until=stopping):
                raise RetryableError(f"stopping with {len(letters)} dead letters not stored: {error}")
            await self.read_limits()  # a limit that was unknown, or lowered, may be the cause

    async def _send_all(self, letters: Sequence[DeadLetter]) -> tuple[list[DeadLetter], str | None]:
        """Send each letter once, until the queue does not answer; return those not stored, and the last error."""
        left: list[DeadLetter] = []
        error: str | None = None
        bounds = RequestBounds(sqs_queue.BATCH_MAX_COUNT, max(BATCH_MIN_BYTES, self._max_bytes))
        position = 0
        while position < len(letters):
            few = [(one, await self._encode(one)) for one in letters[position : position + bounds.max_count]]
            for request in cut(few, bounds, key_of=lambda _: None, size_of=lambda pair: len(pair[1].body)):
                position += len(request)
                unsent = await self._producer.put([message for _, message in request])
                left += [letter for index, (letter, _) in enumerate(request) if index in unsent]
                self._log_stored([letter for index, (letter, _) in enumerate(request) if index not in unsent])
                error = next((one.error for one in unsent.values()), error)
                if len(unsent) == len(request) and not any(one.is_at_fault for one in unsent.values()):
                    return [*left, *letters[position:]], error
        return left, error

    async def _encode(self, letter: DeadLetter) -> sqs_queue.OutgoingMessage:
        if len(letter.record) < IN_THREAD_BYTES:
            body = encode_dead_letter(letter, self._max_bytes)
        else:
            body = await asyncio.to_thread(encode_dead_letter, letter, self._max_bytes)
        return sqs_queue.OutgoingMessage(body, fifo_ids_of(letter) if self.queue.is_fifo else None)

    def _log_stored(self, letters: Sequence[DeadLetter]) -> None:
        alike: defaultdict[tuple[DeadLetterReason, str | None, str | None], list[DeadLetter]] = defaultdict(list)
        for letter in letters:
            alike[letter.reason, letter.business_id, letter.location_id].append(letter)
        for (reason, business_id, location_id), group in alike.items():
            DEAD_LETTERS.labels(reason).inc(len(group))
            log.warning(
                "dead_letter.stored",
                reason=reason,
                business_id=business_id,
                location_id=location_id,
                source=group[0].origin.source,
                name=group[0].origin.name,
                count=len(group),
                positions=[letter.origin.sequence_number or letter.origin.message_id for letter in group],
                error=group[0].error,
            )


async def ensure_default_queue(
    client: Client,
    url: str,
    stopping: asyncio.Event,
    *,
    on_failure: Callable[[], None] = lambda: None,
    draw: Callable[[], float] = random.random,
) -> None:
    """Create the queue at *url* unless it exists; return early when *stopping* is set.

    Tries again while SQS does not answer, and calls *on_failure* after each try. Raises `ConfigurationError` when the
    queue may not be created.
    """
    failure_count = 0
    while not stopping.is_set():
        try:
            await _ensure_queue(client, url)
        except RetryableError as exc:
            failure_count += 1
            delay_s = backoff_s(failure_count, draw=draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
            log.warning("dead_letter.queue_not_ensured", url=url, retry_in_s=round(delay_s, 1), error=str(exc))
            on_failure()
            await sleep_or_event(delay_s, until=stopping)
        except PermanentError as exc:
            raise ConfigurationError(
                f"SQS_DEAD_LETTER_QUEUE_URL: expected a queue, or the right to create {url}, got: {exc}; "
                "create a queue and name it here, or allow sqs:GetQueueUrl and sqs:CreateQueue"
            ) from exc
        else:
            return


async def _ensure_queue(client: Client, url: str) -> None:
    name = url.rpartition("/")[2]
    found_url = await sqs_queue.find_queue_url(client, name)
    is_new = found_url is None
    if found_url is None:
        found_url = await sqs_queue.create_queue(client, name, retention_s=sqs_queue.RETENTION_MAX_S)
    if URL(found_url).path != URL(url).path:
        raise PermanentError(f"{found_url}, of another account than the control queue")
    log.info("dead_letter.default_queue", queue=name, url=url, is_new=is_new)


DELETED_AT_ONCE: Final = 100
POLL_WAIT_S: Final = 1  # a long poll asks all of SQS's servers, however short it is
LAST_POLLS: Final = 2  # polls in a row without a new letter that end the reading
Note: TypeAlias = Callable[[str], None]
IN_FLIGHT_MAX: Final = 100_000  # a queue has at most 120,000 messages in flight: SQS developer guide


class DeadLetterBrowser:
    """Reads the dead-letter queue while it is open, and returns the letters at its end. *note* takes remarks."""

    def __init__(self, queue: sqs_queue.Queue, note: Note) -> None:
        self.queue = queue
        self.note = note
        self._in_flight: dict[str, sqs_queue.Message] = {}  # by message id; without their bodies
        self._read_count = 0
        self.ended_early = False
        self._was_cut = False  # as many letters were in flight as can be, so that not all of the queue's were read

    async def __aenter__(self) -> Self:
        self.before = await self.queue.read_attributes()
        self._visibility_s = visibility_timeout_s(self.before.visible_count + self.before.in_flight_count)
        self.started_at = utc_now()
        self.note(
            f"queue {self.queue.name}: about {self.before.visible_count} dead letters are hidden from other readers "
            "while they are read, and then returned"
        )
        if self.before.redrive_policy is not None:
            self.note("the queue has a redrive policy of its own: each read counts as a receive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._return_all()

    async def read(
        self, filters: LettersRequest, *, to_act: bool = True, within_s: float = math.inf
    ) -> AsyncGenerator[tuple[sqs_queue.Message, ParsedDeadLetter | NotADeadLetterError], None]:
        """Yield the letters that *filters* match and that were not read before; without a filter other messages too.

        *to_act*: without those that arrived after the start. Ends after *within_s*: see `ended_early`.
        """
        ends_at, matched_count = loop_time() + within_s, 0
        async with aclosing(self.read_messages()) as messages:
            async for message in messages:
                if loop_time() > ends_at:
                    self.ended_early = True
                    self.note(
                        f"the reading ended after {within_s:g} s, with {self._read_count} messages; "
                        f"the queue had about {self.before.visible_count} when it began"
                    )
                    return
                if to_act and message.sent_at > self.started_at:
                    continue
                try:
                    parsed = parse_dead_letter(message.body)
                except NotADeadLetterError as exc:
                    if filters.is_all:
                        yield message, exc
                    continue
                if filters.match(parsed.letter, message.message_id):
                    yield message, parsed
                    matched_count += 1
                    if filters.is_complete(matched_count):
                        return

    async def read_messages(self) -> AsyncGenerator[sqs_queue.Message, None]:
        """Yield each message of the queue once, until no new one arrives."""
        without_new = 0
        while without_new < LAST_POLLS:
            if len(self._in_flight) >= IN_FLIGHT_MAX:
                self._was_cut = True
                return
            received = await self.queue.receive(
                wait_s=POLL_WAIT_S, max_messages=sqs_queue.BATCH_MAX_COUNT, visibility_s=self._visibility_s
            )
            new = [message for message in received if message.message_id not in self._in_flight]
            for message in received:
                self._in_flight[message.message_id] = msgspec.structs.replace(message, body="")
            without_new = 0 if new else without_new + 1
            self._read_count += len(new)
            for message in new:
                yield message

    async def delete(self, message_ids: Sequence[str]) -> set[str]:
        """Delete letters; return the ids of those that could not be deleted."""
        left_ids = set[str]()
        for at in range(0, len(message_ids), DELETED_AT_ONCE):
            messages = [self._in_flight[message_id] for message_id in message_ids[at : at + DELETED_AT_ONCE]]
            try:
                left = await self.queue.delete(messages)
            except WorkerError as exc:
                self.note(f"{len(messages)} dead letters could not be deleted: {exc}")
                left = messages
            left_ids.update(message.message_id for message in left)
            for message in messages:
                if message.message_id not in left_ids:
                    del self._in_flight[message.message_id]
        return left_ids

    def warn_of_hidden(self) -> int:
        """Return how many letters were hidden from this reader, by SQS's estimates, and note it."""
        before = self.before
        count = min(before.in_flight_count, max(0, before.visible_count + before.in_flight_count - self._read_count))
        if count:
            self.note(
                f"{count} dead letters were hidden from this command: another one is running, or was killed a short "
                "while ago; wait until they are visible again, then repeat the command"
            )
        return count

    async def count_behind(self, *, is_plan: bool = True, has_reached_limit: bool = False) -> int:
        """Return how many letters are behind those that were read: too many for one run, or withheld.

        A FIFO queue shows about ten letters of a group until these are gone. The number is SQS's estimate for all
        groups.
        """
        if not self._was_cut:
            leaves_old = any(message.sent_at <= self.started_at for message in self._in_flight.values())
            may_withhold = is_plan or (leaves_old and not has_reached_limit)
            if not (self.queue.is_fifo and may_withhold):
                return 0
        behind = (await self.queue.read_attributes()).visible_count
        if self._was_cut:
            self.note("the queue has more dead letters than one run can process; run it again for the rest")
            return max(behind, 1)  # the count of the queue is an estimate
        if behind:
            self.note(
                f"{behind} dead letters may be behind the letters that stay in their groups: a FIFO queue shows at "
                "most ten of a group until these are deleted"
            )
        return behind

    async def _return_all(self) -> None:
        messages = list(self._in_flight.values())
        self._in_flight.clear()
        try:
            for batch in sqs_queue.batches(messages):
                await self.queue.change_visibility_batch([(message, 0) for message in batch])
        except WorkerError as exc:
            self.note(f"the dead letters stay hidden from other readers for up to {self._visibility_s} s: {exc}")
