"""Take what many bring at once: while one lot is being done, the next one gathers, and is done as a whole.

So a burst of single calls costs as few transactions as one call with all of it, and no timer keeps a lone one waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Batch(Generic[Item, Answer]):
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.answers: Sequence[Answer] | None = None


class Coalescer(Generic[Item, Answer]):
    """Does one lot at a time by *do*, which returns the answers in order.

    What *do* raises is raised to the one that had the turn, and the lot is the next one's; so is that of one who is
    cancelled. Items may therefore be done twice.
    """

    def __init__(self, do: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._do = do
        self._forming: _Batch[Item, Answer] = _Batch()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Coalescer({len(self._forming.items)} waiting)"

    async def submit(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Return the answers to *items*, in their order, once they are done."""
        lot = self._forming
        start = len(lot.items)
        lot.items += items
        async with self._lock:
            if lot.answers is None:
                if self._forming is lot:
                    self._forming = _Batch()
                lot.answers = await self._do(lot.items)
        return lot.answers[start : start + len(items)]
