"""Coalesce concurrent calls: items submitted while a batch runs form the next batch; reads before a query share it.

So a burst of single calls costs as few transactions as one call with all items, and a lone call waits for no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

from simplu_worker.errors import WorkerError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Source = TypeVar("Source", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")

TakeKeys: TypeAlias = Callable[[], Sequence[Key]]
"""To be called once, right before the query is sent: returns its keys."""


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


class _SharedQuery(Generic[Key, Row]):
    def __init__(self) -> None:
        self.keys: dict[Key, None] = {}
        self.has_ended = asyncio.Event()
        self.rows: Mapping[Key, Row] | None = None
        self.error: WorkerError | None = None


class ReadCoalescer(Generic[Source, Key, Row]):
    """Reads single rows by key; those that come while the query of another one waits for its connection share it.

    A read never gets the answer of a query that was sent before it came, and waits for none. A `WorkerError` goes to
    all reads of the query. After a cancellation, or another exception, of the read that runs it, the others run again.
    """

    def __init__(self, run_query: Callable[[Source, TakeKeys[Key]], Awaitable[Mapping[Key, Row]]]) -> None:
        """*run_query* returns the rows of one source by key, without keys that have none."""
        self._run_query = run_query
        self._forming: dict[Source, _SharedQuery[Key, Row]] = {}  # not sent yet

    def __repr__(self) -> str:
        return f"ReadCoalescer({len(self._forming)} queries not sent)"

    async def read(self, source: Source, key: Key) -> Row | None:
        """Return the row with *key* on *source*; None if it has none."""
        while True:
            query = self._forming.get(source)
            if query is not None:
                query.keys[key] = None
                await query.has_ended.wait()
            else:
                query = _SharedQuery()
                query.keys[key] = None
                await self._run(source, query)
            if query.error is not None:
                raise query.error
            if query.rows is not None:
                return query.rows.get(key)

    async def _run(self, source: Source, query: _SharedQuery[Key, Row]) -> None:
        def take_keys() -> Sequence[Key]:
            if self._forming.get(source) is query:
                del self._forming[source]
            return list(query.keys)

        self._forming[source] = query
        try:
            query.rows = await self._run_query(source, take_keys)
        except WorkerError as exc:
            query.error = exc
        finally:
            take_keys()  # where the query was not sent
            query.has_ended.set()
