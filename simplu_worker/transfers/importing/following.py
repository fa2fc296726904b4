"""Follow a source by its change columns: round by round, each from a snapshot of its own, until a person cuts over.

A tenant that a round cannot bring up to date keeps its time: the next round reads it from there, behind the others. So
does each if the source fails. Rows that a round misses are found by the comparison of all rows, which comes before the
activation in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.transfers.importing.copying import TenantCopier
from simplu_worker.transfers.importing.follow_rules import FOLLOWING, OVERLAP, FollowState
from simplu_worker.transfers.importing.mapping import ReadTable
from simplu_worker.transfers.importing.rules import SourceTenant
from simplu_worker.transfers.importing.source import (
    ImportSource,
    SourceRefusedError,
    SourceSnapshot,
    SourceUnavailableError,
)
from simplu_worker.transfers.importing.statements import list_changed_tenants
from simplu_worker.transfers.importing.target import ImportTakenError, TargetTenant

INTERVAL_S: Final = 5.0
NOTE_INTERVAL_S: Final = 60.0  # between two writes of the time into all journals


class FollowedTenant(msgspec.Struct, frozen=True):
    """A tenant that was copied, and is kept up to date. *made_at* is the time of resources without one."""

    source: SourceTenant
    target: TargetTenant
    made_at: datetime


class FollowRound(msgspec.Struct, frozen=True):
    """A round: the time of its snapshot, the rows written or deleted. *error*: of tenants that are behind it."""

    followed_to: datetime
    row_count: int = 0
    error: str | None = None


class Follower:
    """Follows *source* for *tenants*, from the snapshot of *followed_to* on.

    *find_addresses* gives the pools the addresses that their shards have now.
    """

    def __init__(
        self,
        source: ImportSource,
        tables: Sequence[ReadTable],
        tenants: Iterable[FollowedTenant],
        make_copier: Callable[[SourceSnapshot], TenantCopier],
        find_addresses: Callable[[], Awaitable[None]],
        *,
        mapping: str,
        followed_to: datetime,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._tables = [table for table in tables if table.mapping.changed is not None]
        self._tenants = {one.source.key: one for one in tenants}
        self._make_copier = make_copier
        self._find_addresses = find_addresses
        self._mapping = mapping
        self._followed_to = followed_to
        self._behind: dict[tuple[str, ...], datetime] = {}  # how far the tenants are that the last round left
        self._clock = clock
        self.failures: dict[tuple[str, ...], str] = {}  # of tenants that another run has, or with no note in the end

    def __repr__(self) -> str:
        return f"Follower({self._source!r}, {len(self._tenants)} tenants, {self._followed_to})"

    async def run(
        self, stopping: asyncio.Event, report: Callable[[FollowRound], None], *, interval_s: float = INTERVAL_S
    ) -> None:
        """Follow until *stopping* is set; *report* each round. `failures` has what could not be noted at the end."""
        noted_at = self._clock()
        while not await sleep_or_event(interval_s, until=stopping):
            report(await self._follow())
            if self._clock() - noted_at >= NOTE_INTERVAL_S:
                noted_at = self._clock()
                await self._note()  # what fails here was reported, or is tried again
        self.failures |= await self._note()

    async def _follow(self) -> FollowRound:
        try:
            if self._behind:
                await self._find_addresses()
            async with self._source.open_snapshot() as snapshot:
                count, errors = await self._copy_changes(snapshot)
        except WorkerError as exc:
            return FollowRound(self._followed_to, error=str(exc))
        return FollowRound(self._followed_to, count, text_of(errors))

    async def _copy_changes(self, snapshot: SourceSnapshot) -> tuple[int, list[str]]:
        """Bring all tenants up to date; return the number of rows, and the errors. Raises those of the source."""
        changed: set[tuple[str, ...]] = set()
        for table in self._tables:
            async for page in snapshot.reader.read_pages(list_changed_tenants(table, self._followed_to - OVERLAP)):
                changed |= {tuple(row.values()) for row in page}
        copier = self._make_copier(snapshot)
        count, behind, errors = 0, {}, []
        # Those that failed before come last: a shard that hangs then delays nobody else.
        for key in [*sorted(changed & (self._tenants.keys() - self._behind.keys())), *sorted(self._behind)]:
            one, followed_to = self._tenants[key], self._behind.get(key, self._followed_to)
            try:
                count += await copier.copy_changes(one.source, one.made_at, followed_to - OVERLAP, one.target)
            except (SourceUnavailableError, SourceRefusedError):
                raise
            except ImportTakenError as exc:
                errors.append(str(exc))
                self.failures[key] = str(exc)
            except WorkerError as exc:
                errors.append(f"{' '.join(key)}: {exc}")
                behind[key] = followed_to
        for key in self.failures:
            self._tenants.pop(key, None)
        self._behind = behind
        self._followed_to = datetime.fromisoformat(snapshot.facts.taken_at)
        return count, errors

    async def _note(self) -> dict[tuple[str, ...], str]:
        """Write into the journals how far each tenant was followed; return the errors by tenant."""
        errors = {}
        for key, one in self._tenants.items():
            state = FollowState(self._mapping, self._behind.get(key, self._followed_to))
            try:
                await one.target.note(FOLLOWING, msgspec.json.encode(state))
            except WorkerError as exc:
                errors[key] = str(exc)
        return errors


def text_of(errors: Sequence[str]) -> str | None:
    """Return a text for the errors of several tenants; None without any."""
    if not errors:
        return None
    return errors[0] if len(errors) == 1 else f"{errors[0]} (the first of {len(errors)} tenants)"
