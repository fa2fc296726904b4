"""Follow a source by its change columns: round by round, each from a snapshot of its own, until a person cuts over.

A round that fails does not move the time on: the next one reads from the same time. Rows that a round misses
are found by the comparison of all rows, which comes before the activation in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.shards.importing.copying import TenantCopier
from simplu_worker.shards.importing.follow_rules import FOLLOWING, OVERLAP, FollowState
from simplu_worker.shards.importing.mapping import ReadTable
from simplu_worker.shards.importing.rules import SourceTenant
from simplu_worker.shards.importing.source import ImportSource, SourceSnapshot
from simplu_worker.shards.importing.statements import list_changed_tenants
from simplu_worker.shards.importing.target import TargetTenant
from simplu_worker.timing.waits import sleep_or_event

INTERVAL_S: Final = 5.0
NOTE_INTERVAL_S: Final = 60.0  # between two writes of the time into all journals


class FollowedTenant(msgspec.Struct, frozen=True):
    """A tenant that was copied, and is kept up to date. *made_at* is the time of resources without one."""

    source: SourceTenant
    target: TargetTenant
    made_at: datetime


class FollowRound(msgspec.Struct, frozen=True):
    """A round: the time of its snapshot, the rows written or deleted; or the *error* that ended it."""

    followed_to: datetime
    row_count: int = 0
    error: str | None = None


class Follower:
    """Follows *source* for *tenants*, from the snapshot of *followed_to* on."""

    def __init__(
        self,
        source: ImportSource,
        tables: Sequence[ReadTable],
        tenants: Iterable[FollowedTenant],
        make_copier: Callable[[SourceSnapshot], TenantCopier],
        *,
        mapping: str,
        followed_to: datetime,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._tables = [table for table in tables if table.mapping.changed is not None]
        self._tenants: Mapping[tuple[str, ...], FollowedTenant] = {one.source.key: one for one in tenants}
        self._make_copier = make_copier
        self._mapping = mapping
        self._followed_to = followed_to
        self._clock = clock

    def __repr__(self) -> str:
        return f"Follower({self._source!r}, {len(self._tenants)} tenants, {self._followed_to})"

    async def run(
        self, stopping: asyncio.Event, report: Callable[[FollowRound], None], *, interval_s: float = INTERVAL_S
    ) -> None:
        """Follow until *stopping* is set; *report* each round. Raises `WorkerError` if the last note fails."""
        noted_at = self._clock()
        report(FollowRound(self._followed_to))
        while not await sleep_or_event(interval_s, until=stopping):
            report(await self._follow())
            if self._clock() - noted_at >= NOTE_INTERVAL_S:
                noted_at = self._clock()
                await self._note()
        await self._note()

    async def _follow(self) -> FollowRound:
        try:
            async with self._source.open_snapshot() as snapshot:
                count = await self._copy_changes(snapshot)
        except WorkerError as exc:
            return FollowRound(self._followed_to, error=str(exc))
        self._followed_to = datetime.fromisoformat(snapshot.facts.taken_at)
        return FollowRound(self._followed_to, count)

    async def _copy_changes(self, snapshot: SourceSnapshot) -> int:
        since = self._followed_to - OVERLAP
        changed: set[tuple[str, ...]] = set()
        for table in self._tables:
            async for page in snapshot.reader.read_pages(list_changed_tenants(table, since)):
                changed |= {tuple(row.values()) for row in page}
        copier = self._make_copier(snapshot)
        count = 0
        for key in sorted(changed & self._tenants.keys()):
            one = self._tenants[key]
            count += await copier.copy_changes(one.source, one.made_at, since, one.target)
        return count

    async def _note(self) -> None:
        """Write into the journals how far the source was followed."""
        state = msgspec.json.encode(FollowState(self._mapping, self._followed_to))
        for one in self._tenants.values():
            await one.target.note(FOLLOWING, state)
