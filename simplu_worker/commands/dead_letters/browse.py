"""Read the dead-letter queue without removing anything.

Letters that were read are hidden from other readers by a short visibility timeout, which is renewed while the command
runs, and are returned at the end. After a kill they are visible again when the timeout expires.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message, OutgoingMessage, Queue, QueueAttributes
from simplu_worker.commands.dead_letters.replay_plan import visibility_timeout_s
from simplu_worker.commands.output import Narration, StderrNarration
from simplu_worker.errors import WorkerError

DELETED_AT_ONCE: Final = 100
POLL_WAIT_S: Final = 1  # a long poll asks all of SQS's servers, however short it is
LAST_POLLS: Final = 2  # polls in a row without a new letter that end the reading
IN_FLIGHT_MAX: Final = 100_000  # a queue has at most 120,000 messages in flight: SQS developer guide
KEPT_IN_MEMORY_BYTES: Final = 16 * 1024 * 1024


class SpoolPosition(NamedTuple):
    """The position of a text in the spool."""

    offset: int
    size_bytes: int


class Spool:
    """A temporary store of texts: in memory while they are small, then in an unnamed file."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=KEPT_IN_MEMORY_BYTES)  # noqa: SIM115  (closed by close)

    def put(self, text: str) -> SpoolPosition:
        """Store *text*."""
        offset = self._file.seek(0, 2)
        return SpoolPosition(offset, self._file.write(text.encode("utf-8", "surrogatepass")))

    def get(self, position: SpoolPosition) -> str:
        """Return the text at *position*."""
        self._file.seek(position.offset)
        return self._file.read(position.size_bytes).decode("utf-8", "surrogatepass")

    def close(self) -> None:
        """Delete all texts."""
        self._file.close()


class DeadLetterBrowser:
    """Reads the dead-letter queue *queue* while the context is open, and returns the letters at its end."""

    def __init__(
        self, queue: Queue, narration: Narration | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*narration* gets remarks for people, and the progress; on stderr without one."""
        self._queue = queue
        self.narration = narration or StderrNarration()
        self._clock = clock
        self._in_flight: dict[str, Message] = {}  # by message id; without their bodies
        self._renew_at: dict[str, float] = {}  # the due time of each visibility timeout's renewal, the earliest first
        self.read_count = 0
        self.was_cut = False  # as many letters were in flight as can be, so that not all of the queue's were read

    def __repr__(self) -> str:
        return f"DeadLetterBrowser({self._queue.name!r}, {len(self._in_flight)} in flight)"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._return_all()

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._queue.name

    @property
    def is_fifo(self) -> bool:
        """Whether the queue is FIFO: it shows the letters of a group that one poll returns, until these are gone."""
        return self._queue.is_fifo

    def has_in_flight(self, *, sent_until: datetime) -> bool:
        """Return whether a message that was sent until then was read and not deleted."""
        return any(message.sent_at <= sent_until for message in self._in_flight.values())

    async def read_attributes(self) -> QueueAttributes:
        """Return the queue's attributes."""
        return await self._queue.read_attributes()

    async def read_messages(self) -> AsyncGenerator[Message, None]:
        """Yield the messages of the queue that were not yielded before, each once, until no new one arrives."""
        without_new = 0
        while without_new < LAST_POLLS:
            if len(self._in_flight) >= IN_FLIGHT_MAX:
                self.was_cut = True
                return
            await self.keep_hidden()
            seconds = visibility_timeout_s(len(self._in_flight) + BATCH_MAX_COUNT)
            received = await self._queue.receive(wait_s=POLL_WAIT_S, max_messages=BATCH_MAX_COUNT, visibility_s=seconds)
            new = [message for message in received if message.message_id not in self._in_flight]
            self._record_hidden(received, seconds)
            without_new = 0 if new else without_new + 1
            self.read_count += len(new)
            for message in new:
                yield message

    async def keep_hidden(self) -> None:
        """Renew the visibility timeouts of which half is over. Call this often."""
        now = self._clock()
        due: list[str] = []
        for message_id, at in self._renew_at.items():
            if at > now:
                break
            due.append(message_id)
        if due:
            messages = [self._in_flight[message_id] for message_id in due]
            seconds = visibility_timeout_s(len(self._in_flight))
            self._record_hidden(messages, seconds)
            try:
                await self._queue.change_visibility(messages, seconds)
            except WorkerError as exc:
                self.narration.note(
                    f"the visibility timeout of {len(messages)} dead letters could not be renewed: {exc}"
                )

    async def send(self, entry: OutgoingMessage) -> bool:
        """Send a message to the queue; return whether SQS has accepted it."""
        return not await self._queue.send([entry])

    async def delete(self, message_ids: Iterable[str]) -> set[str]:
        """Delete letters; return the ids of those that could not be deleted."""
        messages = [self._in_flight[message_id] for message_id in message_ids]
        try:
            left = await self._queue.delete(messages)
        except WorkerError as exc:
            self.narration.note(f"{len(messages)} dead letters could not be deleted: {exc}")
            left = messages
        left_ids = {message.message_id for message in left}
        for message in messages:
            if message.message_id not in left_ids:
                del self._in_flight[message.message_id]
                self._renew_at.pop(message.message_id, None)
        return left_ids

    async def delete_all(self, message_ids: Sequence[str]) -> set[str]:
        """Delete letters, however many; return the ids of those that could not be deleted. The others stay hidden."""
        left = set[str]()
        for at in range(0, len(message_ids), DELETED_AT_ONCE):
            await self.keep_hidden()
            left |= await self.delete(message_ids[at : at + DELETED_AT_ONCE])
        return left

    def _record_hidden(self, messages: Iterable[Message], seconds: int) -> None:
        due = self._clock() + seconds / 2
        for message in messages:
            self._in_flight[message.message_id] = msgspec.structs.replace(message, body="")
            self._renew_at.pop(message.message_id, None)
            self._renew_at[message.message_id] = due

    async def _return_all(self) -> None:
        messages = list(self._in_flight.values())
        self._in_flight.clear()
        self._renew_at.clear()
        try:
            await self._queue.change_visibility(messages, 0)
        except WorkerError as exc:
            hidden_s = visibility_timeout_s(len(messages))
            self.narration.note(f"the dead letters stay hidden from other readers for up to {hidden_s} s: {exc}")


async def read_with_progress(browser: DeadLetterBrowser, expected: int) -> AsyncGenerator[Message, None]:
    """Yield the messages of *browser*, and show the progress towards about *expected* of them."""
    count = 0
    with browser.narration.count("read", expected) as progress:
        async with aclosing(browser.read_messages()) as messages:
            async for message in messages:
                yield message
                count += 1
                progress.show(count)
