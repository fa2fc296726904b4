"""Work that concurrent callers share: one answer for all who wait for it, or one batch of what they submit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from simplu_worker.errors import WorkerError
from simplu_worker.timing.clock import loop_time

FRESH_S: Final = 1.0

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class _Batch(Generic[Item, Answer]):
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.answers: Sequence[Answer] | WorkerError | None = None


class _Line(Generic[Item, Answer]):
    def __init__(self) -> None:
        self.forming: _Batch[Item, Answer] = _Batch()
        self.turn = asyncio.Lock()
        self.began_at = 0.0  # of the batch whose turn it is
        self.caller_count = 0


class Coalescer(Generic[Key, Item, Answer]):
    """Runs one batch for each key at a time: items that are submitted while one runs form the next.

    So a burst of single calls costs as few requests as one call with all items, and a lone call waits for no timer.
    *run_batch* returns the answers in the order of the items; its `WorkerError` is raised to all callers of the batch.
    Any other error, or a cancellation, ends only the call that ran the batch: the next caller of the batch runs it
    again. So an item may be run twice.
    """

    def __init__(self, run_batch: Callable[[Key, Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._run_batch = run_batch
        self._lines: dict[Key, _Line[Item, Answer]] = {}

    async def submit(self, key: Key, items: Sequence[Item], *, patience_s: float | None = None) -> Sequence[Answer]:
        """Return the answers to *items*, in their order, once their batch has run.

        Behind a batch that runs for *patience_s* it does not wait: `TimeoutError`.
        """
        line = self._lines.setdefault(key, _Line())
        batch, start = line.forming, len(line.forming.items)
        batch.items += items
        line.caller_count += 1
        try:
            await _take_turn(line, patience_s)
            try:
                if line.forming is batch:
                    line.forming = _Batch()
                if batch.answers is None:
                    line.began_at = loop_time()
                    try:
                        batch.answers = await self._run_batch(key, batch.items)
                    except WorkerError as exc:
                        batch.answers = exc
            finally:
                line.turn.release()
        finally:
            line.caller_count -= 1
            if not line.caller_count:
                self._lines.pop(key, None)
        if isinstance(batch.answers, WorkerError):
            raise batch.answers
        return batch.answers[start : start + len(items)]


async def _take_turn(line: _Line[Item, Answer], patience_s: float | None) -> None:
    if patience_s is None or not line.turn.locked():
        await line.turn.acquire()
        return
    while True:
        began_at = line.began_at
        try:
            async with asyncio.timeout_at(began_at + patience_s):
                await line.turn.acquire()
                return
        except TimeoutError:
            if line.began_at == began_at:  # else the turn is that of another batch
                raise


class SharedAnswer(Generic[Answer]):
    """An answer that *make* makes for one caller at a time, and that all who came before its beginning share.

    Callers within *fresh_s* of its end get it too, and its `WorkerError` within *failed_fresh_s*. Otherwise as
    `Coalescer`.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[Answer]],
        *,
        fresh_s: float = FRESH_S,
        failed_fresh_s: float = 0.0,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._failed_fresh_s = failed_fresh_s
        self._clock = clock
        self._calls: Coalescer[None, None, Answer] = Coalescer(self._answer)
        self._made: tuple[Answer] | WorkerError | None = None
        self._fresh_until = 0.0
        self._forgotten_count = 0

    async def __call__(self) -> Answer:
        """Return the answer."""
        (answer,) = await self._calls.submit(None, [None])
        return answer

    def forget(self) -> None:
        """Make a new answer for the next caller: what the last one shows was changed."""
        self._made = None
        self._forgotten_count += 1  # what is being made now is not kept

    async def _answer(self, _: None, calls: Sequence[None]) -> list[Answer]:
        made = self._made
        if made is None or self._clock() >= self._fresh_until:
            self._made, forgotten_count = None, self._forgotten_count
            try:
                made, fresh_s = (await self._make(),), self._fresh_s
            except WorkerError as exc:
                made, fresh_s = exc, self._failed_fresh_s
            if self._forgotten_count == forgotten_count:
                self._made, self._fresh_until = made, self._clock() + fresh_s
        if isinstance(made, WorkerError):
            raise made
        return [made[0]] * len(calls)
