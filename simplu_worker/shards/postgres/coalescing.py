"""Coalesce concurrent calls: items submitted while a batch runs form the next batch.

So a burst of single calls costs as few transactions as one call with all items, and a lone call waits for no timer.
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
    """Runs one batch at a time by *run_batch*, which returns the answers in the order of the items.

    An exception of *run_batch*, or a cancellation, ends only the call that ran the batch: the next caller of the batch
    runs it again. So an item may be run twice.
    """

    def __init__(self, run_batch: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._run_batch = run_batch
        self._forming: _Batch[Item, Answer] = _Batch()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Coalescer({len(self._forming.items)} waiting)"

    async def submit(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Return the answers to *items*, in their order, once their batch has run."""
        batch = self._forming
        start = len(batch.items)
        batch.items += items
        async with self._lock:
            if batch.answers is None:
                if self._forming is batch:
                    self._forming = _Batch()
                batch.answers = await self._run_batch(batch.items)
        return batch.answers[start : start + len(items)]
