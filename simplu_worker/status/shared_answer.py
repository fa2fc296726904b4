"""One answer for all callers of a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from simplu_worker.timing.clock import loop_time

FRESH_S: Final = 1.0

Answer = TypeVar("Answer")


class SharedAnswer(Generic[Answer]):
    """An answer that *make* makes for one caller at a time; callers within *fresh_s* of its end get the same one.

    A cancelled caller leaves the work to the next one. An error is not kept.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[Answer]],
        *,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._clock = clock
        self._turn = asyncio.Lock()
        self._kept: tuple[float, Answer] | None = None
        self._forgotten_count = 0

    def __repr__(self) -> str:
        return f"SharedAnswer(made_at={None if self._kept is None else self._kept[0]})"

    async def __call__(self) -> Answer:
        """Return the present answer."""
        async with self._turn:
            if self._kept is not None and self._clock() - self._kept[0] < self._fresh_s:
                return self._kept[1]
            forgotten_count = self._forgotten_count
            answer = await self._make()
            if self._forgotten_count == forgotten_count:
                self._kept = self._clock(), answer
            return answer

    def forget(self) -> None:
        """Make a new answer for the next caller: what the kept one shows was changed."""
        self._kept = None
        self._forgotten_count += 1
