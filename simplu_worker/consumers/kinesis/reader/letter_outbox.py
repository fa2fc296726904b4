"""Store the dead letters of one reader beside its reading and its lanes: nothing waits for another's letter.

A record is finished, and its memory free, once its letters are stored. At a stop without an answer it stays pending.
Of each tenant few bytes wait here: what is beyond is held, and read again. What is no operation has one for a business.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.errors import RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.timing.waits import wait_any

REQUESTS_MAX: Final = 4  # under way
NOTHING: Final[Mapping[str, int]] = {}
WAITING_MAX_BYTES: Final = 512 * 1024  # of tenants together: with more than its part, one is held
STORED_BYTES_PER_S: Final = 1024 * 1024  # as expected, for the pace of a catch-up

Rejection: TypeAlias = tuple[int, RejectedRecord, bytes]
"""The ticket of a record that is no operation, why, and its bytes."""

T = TypeVar("T")


class _Owed(msgspec.Struct):
    """Letters whose records are finished together."""

    count: int
    finish: Callable[[], None]
    sizes: Mapping[str, int]


class LetterOutbox:
    """The dead letters of one reader; *stopping* returns the event of its stop."""

    def __init__(self, dead_letters: DeadLetterStore, stopping: Callable[[], asyncio.Event]) -> None:
        self._dead_letters = dead_letters
        self._stopping = stopping
        self._waiting: dict[str | None, deque[tuple[DeadLetter, _Owed]]] = {}  # by business; the next one first
        self._sizes: Counter[str] = Counter()  # bytes that wait, by tenant
        self._has_work = asyncio.Event()
        self._error: RetryableError | None = None  # since the stop

    def add(
        self, letters: Sequence[DeadLetter], finish: Callable[[], None], sizes: Mapping[str, int] = NOTHING
    ) -> None:
        """Store *letters* soon; call *finish* when all are stored. *sizes* are the bytes by tenant."""
        owed = _Owed(len(letters), finish, sizes)
        self._sizes.update(sizes)
        for letter in letters:
            self._waiting.setdefault(letter.business_id, deque()).append((letter, owed))
        self._has_work.set()

    def has_room(self, tenant_id: str, size_bytes: int) -> bool:
        """Return whether more than *size_bytes* of a tenant may wait; all tenants that wait share the room."""
        return (self._sizes[tenant_id] + size_bytes) * max(1, len(self._sizes)) < WAITING_MAX_BYTES

    def expected_s(self, size_bytes: int) -> float:
        """Return the seconds that so many bytes of a tenant are expected to take."""
        return size_bytes * max(1, len(self._sizes)) / STORED_BYTES_PER_S

    def waiting_s(self, tenants: TenantSet) -> float:
        """Return the same of what waits of *tenants*."""
        return self.expected_s(sum([size for one, size in self._sizes.items() if one in tenants]))

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
                self._sizes -= Counter(owed.sizes)  # drops those of which nothing waits
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
