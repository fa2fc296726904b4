"""Store dead letters: no record that is given up is lost, so storing never gives up.

Safe because `store` returns only when the queue has confirmed every letter, and the caller skips a record only after
that. A letter that is stored twice is harmless, because a replay is de-duplicated.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from yarl import URL

from simplu_worker.aws.clients import Client, longest_pause_s
from simplu_worker.aws.sqs_queue import (
    BATCH_MAX_COUNT,
    RETENTION_MAX_S,
    OutgoingMessage,
    Queue,
    create_queue,
    find_queue_url,
)
from simplu_worker.dead_letters.letter import encode_dead_letter, fifo_ids_of
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.instruments import DEAD_LETTERS
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.waits import sleep_or_event
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
        self.queue = Queue(client, url)
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
        batch_count = BATCH_MAX_COUNT
        failure_count = 0
        while True:
            left, error = await self._send_all(letters, batch_count)
            if error is None:
                return
            failure_count = failure_count + 1 if len(left) == len(letters) else 1
            if isinstance(error, PermanentError):
                batch_count = 1  # a letter that the queue refuses must not take others with it
            letters = left
            delay_s = backoff_s(
                failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=longest_pause_s(error, RETRY_MAX_S)
            )
            log.warning(
                "dead_letter.deferred",
                queue=self.queue.name,
                count=len(letters),
                failure_count=failure_count,
                retry_in_s=round(delay_s, 1),
                error=str(error),
            )
            if await sleep_or_event(delay_s, until=stopping):
                raise RetryableError(f"stopping with {len(letters)} dead letters not stored: {error}")
            await self.read_limits()  # a limit that was unknown, or lowered, may be the cause

    async def _send_all(
        self, letters: Sequence[DeadLetter], batch_count: int
    ) -> tuple[list[DeadLetter], WorkerError | None]:
        """Send each letter once; return those that were not stored, and the last error."""
        left: list[DeadLetter] = []
        error: WorkerError | None = None
        position = 0
        while position < len(letters):
            bodies = await self._encode_batch(letters, position, batch_count)
            batch = letters[position : position + len(bodies)]
            try:
                unsent = await self.queue.send([self._outgoing(*pair) for pair in zip(batch, bodies, strict=True)])
            except (RetryableError, PermanentError) as exc:
                return [*left, *letters[position:]], exc
            if unsent:
                error = PermanentError(f"SendMessageBatch: {len(unsent)} of {len(batch)} entries: {unsent[-1].code}")
            unsent_indexes = {entry.index for entry in unsent}
            left += [letter for index, letter in enumerate(batch) if index in unsent_indexes]
            self._log_stored([letter for index, letter in enumerate(batch) if index not in unsent_indexes])
            position += len(bodies)
        return left, error

    async def _encode_batch(self, letters: Sequence[DeadLetter], position: int, batch_count: int) -> list[str]:
        bodies: list[str] = []
        room_bytes = max(BATCH_MIN_BYTES, self._max_bytes)
        for letter in letters[position : position + batch_count]:
            body = await self._encode(letter)
            room_bytes -= len(body)
            if bodies and room_bytes < 0:
                break
            bodies.append(body)
        return bodies

    async def _encode(self, letter: DeadLetter) -> str:
        if len(letter.record) < IN_THREAD_BYTES:
            return encode_dead_letter(letter, self._max_bytes)
        return await asyncio.to_thread(encode_dead_letter, letter, self._max_bytes)

    def _outgoing(self, letter: DeadLetter, body: str) -> OutgoingMessage:
        return OutgoingMessage(body=body, fifo=fifo_ids_of(letter) if self.queue.is_fifo else None)

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
            delay_s = backoff_s(
                failure_count, draw=draw(), base_s=RETRY_BASE_S, max_s=longest_pause_s(exc, RETRY_MAX_S)
            )
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
    found_url = await find_queue_url(client, name)
    is_new = found_url is None
    if found_url is None:
        found_url = await create_queue(client, name, retention_s=RETENTION_MAX_S)
    if URL(found_url).path != URL(url).path:
        raise PermanentError(f"{found_url}, of another account than the control queue")
    log.info("dead_letter.default_queue", queue=name, url=url, is_new=is_new)
