"""The search for a page of a tenant's operations: its results, its position and its end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.shards.listing.request import INSTANT, OLDEST, ListRequest, SearchPosition


class SearchLimits(msgspec.Struct, frozen=True):
    """The bounds of the work for a page.

    A search reads chunks of at most *chunk_rows* batches of the log and as many rows, *rows* of both in all, and begins
    none after *seconds*. A tenant with at most *few* operations has all of them read instead.
    """

    chunk_rows: int = 10_000
    rows: int = 200_000
    few: int = 5_000
    seconds: float = 2.0


SEARCH_LIMITS: Final = SearchLimits()


class ListedOperation(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One operation as its row in the shard's log, without its result."""

    request_id: str
    status: str
    operation: str
    resource_type: str
    received_at: datetime
    completed_at: datetime
    resource_id: str | None = None
    error: str | None = None


_LISTED: Final = tuple(field.name for field in msgspec.structs.fields(ListedOperation))


def listed_members(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a `ListedOperation` from a row of the log."""
    return {name: row[name] for name in _LISTED}


class OperationPage(msgspec.Struct, frozen=True, rename="camel"):
    """Operations of a tenant, newest first.

    *next* is the cursor of the next page, None after the last one; *searched_to* the time to which the search came,
    None for the end. A page with *next* may be short, or empty: the search has bounds.
    """

    operations: list[ListedOperation]
    next: str | None
    searched_to: datetime | None
    shard_id: str


class SearchChunk(msgspec.Struct, frozen=True):
    """The wanted operations of a part of the log, of which *oldest* is the oldest time.

    *row_count* is the number of its batches and of the rows that were read; *is_last*: there are no older batches.
    """

    operations: list[ListedOperation]
    row_count: int
    oldest: datetime | None
    is_last: bool


class SearchStep(StrEnum):
    """What to read next for a page."""

    CHUNK = "chunk"  # of the log of all tenants, by time
    INSTANT = "instant"  # the operations of one time: its batches fill a chunk
    FEW = "few"  # all operations of the tenant, if these are few


class PageSearch:
    """The state of the search for the page *request*."""

    def __init__(self, request: ListRequest, limits: SearchLimits = SEARCH_LIMITS) -> None:
        self._request = request
        self._limits = limits
        self._row_count = 0
        self._has_ended = False
        self._found: list[ListedOperation] = []
        self.position = request.start
        self.step = SearchStep.CHUNK

    def __repr__(self) -> str:
        return f"PageSearch({self.position}, {self.step}, found={len(self._found)}, rows={self._row_count})"

    @property
    def since(self) -> datetime:
        """The oldest time of a wanted operation."""
        return self._request.since or OLDEST

    @property
    def missing_count(self) -> int:
        """How many operations to read at most: one more than the page has room for shows that there is a next one."""
        return self._request.limit + 1 - len(self._found)

    def is_complete(self, spent_s: float) -> bool:
        """Return whether the page ends here, after *spent_s*: full, with nothing left to read, or at a bound.

        The search ends only before a chunk, so that each page gets further than the one before.
        """
        if self._has_ended or self.missing_count <= 0:
            return True
        may_go_on = self._row_count < self._limits.rows and spent_s < self._limits.seconds
        return self._row_count > 0 and self.step is SearchStep.CHUNK and not may_go_on

    def add_chunk(self, chunk: SearchChunk) -> None:
        """Take the operations of a chunk that began at the position."""
        self._found += chunk.operations
        self._row_count += chunk.row_count
        if chunk.oldest is None or chunk.is_last:
            self._has_ended = True
        elif chunk.oldest == self.position.at:
            self.step = SearchStep.INSTANT
        else:
            self._move_to(chunk.oldest)
            self.step = SearchStep.CHUNK if self.position.is_large else SearchStep.FEW

    def add_instant(self, operations: Sequence[ListedOperation]) -> None:
        """Take the operations of the time of the position; if there was room for more, these are all."""
        has_all = len(operations) < self.missing_count
        self._found += operations
        if has_all:
            self._move_to(self.position.at - INSTANT)
        self.step = SearchStep.CHUNK

    def add_few(self, operations: Sequence[ListedOperation]) -> None:
        """Take the operations after the position of a tenant that has few."""
        self._found += operations
        self._has_ended = True

    def note_large(self) -> None:
        """Note that the tenant has many operations."""
        self.position = msgspec.structs.replace(self.position, is_large=True)
        self.step = SearchStep.CHUNK

    def result(self, shard_id: str) -> OperationPage:
        """Return the page."""
        shown = self._found[: self._request.limit]
        if len(self._found) > len(shown):
            last = shown[-1]
            after = SearchPosition(last.completed_at, last.request_id, self.position.is_large)
        elif self._has_ended:
            return OperationPage(shown, None, None, shard_id)
        else:
            after = self.position
        return OperationPage(shown, after.encode(), after.at, shard_id)

    def _move_to(self, at: datetime) -> None:
        self.position = SearchPosition(at, is_large=self.position.is_large)
