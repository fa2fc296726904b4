"""Store the dead letters of one reader beside its reading and its lanes: nothing waits for another's letter.

A record is finished, and its memory free, once its letters are stored. At a stop without an answer it stays pending.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.errors import RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.timing.waits import wait_any

REQUESTS_MAX: Final = 4  # under way

T = TypeVar("T")


class _Owed(msgspec.Struct):
    """Letters whose records are finished together."""

    count: int
    finish: Callable[[], None]


class LetterOutbox:
    """The dead letters of one reader; *stopping* returns the event of its stop."""

    def __init__(self, dead_letters: DeadLetterStore, stopping: Callable[[], asyncio.Event]) -> None:
        self._dead_letters = dead_letters
        self._stopping = stopping
        self._waiting: dict[str | None, deque[tuple[DeadLetter, _Owed]]] = {}  # by business; the next one first
        self._has_work = asyncio.Event()
        self._error: RetryableError | None = None  # since the stop

    def add(self, letters: Sequence[DeadLetter], finish: Callable[[], None]) -> None:
        """Store *letters* soon; call *finish* when all are stored."""
        owed = _Owed(len(letters), finish)
        for letter in letters:
            self._waiting.setdefault(letter.business_id, deque()).append((letter, owed))
        self._has_work.set()

    async def store(self, letters: Sequence[DeadLetter]) -> None:
        """Return when *letters* are stored. Raises RetryableError when the reader is stopped before."""
        await self._dead_letters.store(letters, stopping=self._stopping())

    async def run(self, ending: asyncio.Event) -> None:
        """Store what is added, until *ending* and nothing waits, or the queue does not answer at the stop."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(REQUESTS_MAX):
                tasks.create_task(self._store_batches(ending))

    async def finish(self, ending: asyncio.Event) -> None:
        """Store what was added after *ending*. Raises RetryableError when some letters could not be stored."""
        await self.run(ending)
        if self._error is not None:
            raise self._error

    async def _store_batches(self, ending: asyncio.Event) -> None:
        while self._error is None:
            if batch := take_in_turn(self._waiting, BATCH_MAX_COUNT):
                await self._store_batch(batch)
            elif ending.is_set():
                return
            else:
                self._has_work.clear()
                await wait_any(self._has_work, ending)

    async def _store_batch(self, batch: Sequence[tuple[DeadLetter, _Owed]]) -> None:
        try:
            await self.store([letter for letter, _ in batch])
        except RetryableError as exc:
            if not self._stopping().is_set():
                raise
            self._error = exc
            return
        for _, owed in batch:
            owed.count -= 1
            if not owed.count:
                owed.finish()


def take_in_turn(waiting: dict[str | None, deque[T]], most: int) -> list[T]:
    """Remove and return up to *most* items, one of each key in turn; who had one is behind the others."""
    taken: list[T] = []
    while waiting and len(taken) < most:
        key = next(iter(waiting))
        own = waiting.pop(key)
        taken.append(own.popleft())
        if own:
            waiting[key] = own
    return taken
