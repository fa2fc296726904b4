"""Read the dead-letter queue without removing anything.

Letters are hidden from other readers by a short visibility timeout, which is renewed while the reading goes on, and are
returned at the end; after a kill, when the timeout expires.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message, Queue
from simplu_worker.dead_letters.letter import NotADeadLetterError, ParsedDeadLetter, parse_dead_letter
from simplu_worker.dead_letters.plan import DeadLetterFilter, visibility_timeout_s
from simplu_worker.errors import WorkerError
from simplu_worker.timing.clock import loop_time, utc_now

DELETED_AT_ONCE: Final = 100
POLL_WAIT_S: Final = 1  # a long poll asks all of SQS's servers, however short it is
LAST_POLLS: Final = 2  # polls in a row without a new letter that end the reading
IN_FLIGHT_MAX: Final = 100_000  # a queue has at most 120,000 messages in flight: SQS developer guide


class Counted(Protocol):
    """A count that goes on."""

    def show(self, done: int) -> None:
        """Show that *done* of the total are done."""


class Narration(Protocol):
    """The place for remarks and progress of a long action."""

    def note(self, text: str) -> None:
        """Take a remark for people."""

    def count(self, what: str, total: int) -> AbstractContextManager[Counted]:
        """Begin to count: so many of *total* are *what*."""


class DeadLetterBrowser:
    """Reads the dead-letter queue while it is open, and returns the letters at its end."""

    def __init__(self, queue: Queue, narration: Narration) -> None:
        self.queue = queue
        self.narration = narration
        self._in_flight: dict[str, Message] = {}  # by message id; without their bodies
        self._read_count = 0
        self.ended_early = False
        self._was_cut = False  # as many letters were in flight as can be, so that not all of the queue's were read

    async def __aenter__(self) -> Self:
        self.before = await self.queue.read_attributes()
        self._visibility_s = visibility_timeout_s(self.before.visible_count + self.before.in_flight_count)
        self.started_at = utc_now()
        self.narration.note(
            f"queue {self.queue.name}: dead letters are hidden from other readers while they are read, and then "
            "returned"
        )
        if self.before.redrive_policy is not None:
            self.narration.note("the queue has a redrive policy of its own: each read counts as a receive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._return_all()

    async def read(
        self, filters: DeadLetterFilter, *, to_act: bool = True, within_s: float = math.inf
    ) -> AsyncGenerator[tuple[Message, ParsedDeadLetter | NotADeadLetterError], None]:
        """Yield the letters that *filters* match and that were not read before; without a filter other messages too.

        *to_act*: without those that arrived after the start. Ends after *within_s*: see `ended_early`.
        """
        ends_at, seen_count, matched_count = loop_time() + within_s, 0, 0
        with self.narration.count("read", self.before.visible_count) as progress:
            async with aclosing(self.read_messages()) as messages:
                async for message in messages:
                    if loop_time() > ends_at:
                        self.ended_early = True
                        self.narration.note(
                            f"the reading ended after {within_s:g} s, with {self._read_count} messages; "
                            f"the queue had about {self.before.visible_count} when it began"
                        )
                        return
                    progress.show(seen_count := seen_count + 1)
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

    async def read_messages(self) -> AsyncGenerator[Message, None]:
        """Yield each message of the queue once, until no new one arrives."""
        without_new = 0
        while without_new < LAST_POLLS:
            if len(self._in_flight) >= IN_FLIGHT_MAX:
                self._was_cut = True
                return
            received = await self.queue.receive(
                wait_s=POLL_WAIT_S, max_messages=BATCH_MAX_COUNT, visibility_s=self._visibility_s
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
                self.narration.note(f"{len(messages)} dead letters could not be deleted: {exc}")
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
            self.narration.note(
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
            self.narration.note("the queue has more dead letters than one run can process; run it again for the rest")
            return max(behind, 1)  # the count of the queue is an estimate
        if behind:
            self.narration.note(
                f"{behind} dead letters may be behind those that stay in their groups: a FIFO queue shows at most ten "
                "of a group until these are deleted"
            )
        return behind

    async def _return_all(self) -> None:
        messages = list(self._in_flight.values())
        self._in_flight.clear()
        try:
            await self.queue.change_visibility(messages, 0)
        except WorkerError as exc:
            self.narration.note(
                f"the dead letters stay hidden from other readers for up to {self._visibility_s} s: {exc}"
            )
