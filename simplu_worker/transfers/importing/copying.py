"""Copy tenants from a snapshot of the source, and follow the source by its change columns.

A tenant is copied whole, or brought up to date by the rows that a change column names. That may miss rows: deleted ones
without a tombstone, and those of long transactions. So a comparison of all rows comes before the activation. A tenant
that a round cannot bring up to date keeps its time: the next round reads it from there, behind the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import find_addresses
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import Pacer, sleep_or_event
from simplu_worker.transfers.importing.mapping import ReadTable
from simplu_worker.transfers.importing.rules import (
    FOLLOWING,
    OVERLAP,
    TOO_MANY_DUPLICATES,
    TOO_MANY_REFUSED,
    FollowState,
    RefusedRow,
    RowChecksum,
    SourceRow,
    SourceTenant,
    refusal_of_row,
)
from simplu_worker.transfers.importing.source import (
    ImportSource,
    SourceReader,
    SourceRefusedError,
    SourceSnapshot,
    SourceUnavailableError,
    UnreadableRowsError,
)
from simplu_worker.transfers.importing.statements import (
    DUPLICATES_MAX,
    RowSelection,
    list_changed_tenants,
    list_deleted,
    list_duplicates,
    sum_rows,
)
from simplu_worker.transfers.importing.target import ImportTakenError, TargetTenant

REFUSED_MAX: Final = 100_000  # rows of one tenant, which are kept until all of it is read

RowSink: TypeAlias = "TargetTenant | None"
"""Where rows are written; None in a plan."""


class TakenRows(msgspec.Struct):
    """The rows of a tenant that were taken, and the number of the others by reason."""

    checksum: RowChecksum = msgspec.field(default_factory=RowChecksum)
    byte_count: int = 0
    tables: Counter[str] = msgspec.field(default_factory=Counter)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    verified_on: Server | None = None  # the server with equal rows


class CopyCallbacks(msgspec.Struct, frozen=True):
    """Who is told of refused rows, of rows to read, and of rows read since the last call."""

    note_refused: Callable[[RefusedRow], None] = lambda _: None
    note_total: Callable[[int], None] = lambda _: None
    note_rows: Callable[[int], None] = lambda _: None


class TenantCopier:
    """Copies tenants from the *tables* of one snapshot."""

    def __init__(
        self,
        snapshot: SourceSnapshot,
        tables: Sequence[ReadTable],
        callbacks: CopyCallbacks,
        pace: Pacer,
    ) -> None:
        self._snapshot = snapshot
        self._tables = tables
        self._callbacks = callbacks
        self._pace = pace

    async def copy(self, source: SourceTenant, made_at: datetime, sink: RowSink) -> TakenRows:
        """Read all rows of a tenant into *sink*, emptied before; by their keys if some cannot be returned."""
        for by_key in (False, True):
            try:
                async with self._snapshot.open_reader() as reader:
                    if sink is not None:
                        await sink.clear()
                    return await self._copy(source, made_at, sink, reader, by_key=by_key)
            except UnreadableRowsError:
                if by_key:
                    raise
        raise AssertionError("one of the two has returned, or raised")

    async def _copy(
        self, source: SourceTenant, made_at: datetime, sink: RowSink, reader: SourceReader, *, by_key: bool
    ) -> TakenRows:
        selected = self._selected(source, RowSelection(source.key, made_at, stored_names=source.stored_names))
        duplicates = await _find_duplicates(reader, selected)
        taken = TakenRows()
        refused: list[RefusedRow] = []
        for table, selection in selected:
            async for page in reader.read_table(table, selection, duplicates, by_key=by_key):
                rows = []
                for row in page:
                    reason = refusal_of_row(row, duplicates)
                    if reason is None:
                        rows.append(row)
                        taken.checksum.add(row.high, row.low)
                        taken.byte_count += row.byte_count or 0
                    else:
                        taken.refused[reason] += 1
                        refused.append(
                            RefusedRow(table.mapping.name, source.key, row.resource_type, row.resource_id, reason)
                        )
                if len(refused) > REFUSED_MAX:
                    raise PermanentError(TOO_MANY_REFUSED)
                taken.tables[table.mapping.name] += len(rows)
                await self._write(sink, rows, page)
        for one in refused:
            self._callbacks.note_refused(one)
        return taken

    async def copy_changes(self, source: SourceTenant, made_at: datetime, since: datetime, target: TargetTenant) -> int:
        """Write the rows changed *since*, delete those with a tombstone; return their number.

        Raises `UnreadableRowsError` if the source cannot return some.
        """
        count = 0
        changing = [table for table in self._tables if table.mapping.changed is not None]
        selection = RowSelection(source.key, made_at, changed_since=since, stored_names=source.stored_names)
        async with self._snapshot.open_reader() as reader:
            for table in changing:
                async for page in reader.read_table(table, selection, (), by_key=False):
                    rows = [row for row in page if refusal_of_row(row, ()) is None]
                    await self._write(target, rows, page)
                    count += len(rows)
                if table.mapping.deleted is not None:
                    async for deleted in reader.read_pages(list_deleted(table, selection)):
                        await target.delete([(row["resource_type"], row["resource_id"]) for row in deleted])
                        count += len(deleted)
        return count

    async def complete(
        self, source: SourceTenant, made_at: datetime, since: datetime, target: TargetTenant
    ) -> TakenRows | None:
        """Bring a tenant up to date that was copied before; None if its rows differ from those of the source."""
        try:
            await self.copy_changes(source, made_at, since, target)
            selected = self._selected(source, RowSelection(source.key, made_at, stored_names=source.stored_names))
            async with self._snapshot.open_reader() as reader:
                rows = await reader.fetch_all(sum_rows(selected)) if selected else []
        except UnreadableRowsError:
            return None
        taken = TakenRows(tables=Counter(source.row_counts))
        for row in rows:
            taken.checksum.add(int(row["high"]), int(row["low"]), row_count=row["row_count"])
            taken.byte_count += int(row["byte_count"])
        self._callbacks.note_rows(source.row_count)
        found = await target.sum_rows()
        taken.verified_on = found.server
        return taken if found.checksum == taken.checksum else None

    def _selected(self, source: SourceTenant, selection: RowSelection) -> list[tuple[ReadTable, RowSelection]]:
        return [(table, selection) for table in self._tables if source.row_counts[table.mapping.name]]

    async def _write(self, sink: RowSink, rows: Sequence[SourceRow], page: Sequence[SourceRow]) -> None:
        if sink is not None and rows:
            await sink.write(rows)
        self._callbacks.note_rows(len(page))
        await asyncio.sleep(self._pace.pause_s(len(page), now=loop_time()))


async def _find_duplicates(
    reader: SourceReader, selected: Sequence[tuple[ReadTable, RowSelection]]
) -> set[tuple[str, str]]:
    if not selected:
        return set()
    rows = await reader.fetch_all(list_duplicates(selected))
    if len(rows) > DUPLICATES_MAX:
        raise PermanentError(TOO_MANY_DUPLICATES)
    return {(row["resource_type"], row["resource_id"]) for row in rows}


INTERVAL_S: Final = 5.0
NOTE_INTERVAL_S: Final = 60.0  # between two writes of the time into all journals


class FollowedTenant(msgspec.Struct, frozen=True):
    """A tenant that was copied, and is kept up to date. *made_at* is the time of resources without one."""

    source: SourceTenant
    target: TargetTenant
    made_at: datetime


class FollowRound(msgspec.Struct, frozen=True):
    """The time of a round's snapshot, the rows written or deleted, and the error of tenants that are behind it."""

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
        callbacks: CopyCallbacks,
        pace: Pacer,
        locator: Locator,
        pools: Pools,
        *,
        mapping: str,
        followed_to: datetime,
    ) -> None:
        self._source = source
        self._tables = [table for table in tables if table.mapping.changed is not None]
        self._tenants = {one.source.key: one for one in tenants}
        self._callbacks = callbacks
        self._pace = pace
        self._locator = locator
        self._pools = pools
        self._mapping = mapping
        self._followed_to = followed_to
        self._behind: dict[tuple[str, ...], datetime] = {}  # how far the tenants are that the last round left
        self.failures: dict[tuple[str, ...], str] = {}  # of tenants that another run has, or with no note in the end

    async def run(
        self, stopping: asyncio.Event, report: Callable[[FollowRound], None], *, interval_s: float = INTERVAL_S
    ) -> None:
        """Follow until *stopping*; *report* each round. `failures` has what could not be noted at the end."""
        noted_at = loop_time()
        while not await sleep_or_event(interval_s, until=stopping):
            report(await self._follow())
            if loop_time() - noted_at >= NOTE_INTERVAL_S:
                noted_at = loop_time()
                await self._note()  # what fails here was reported, or is tried again
        self.failures |= await self._note()

    async def _follow(self) -> FollowRound:
        try:
            if self._behind:
                await find_addresses(self._locator, self._pools)
            async with self._source.open_snapshot() as snapshot:
                count, errors = await self._copy_changes(snapshot)
        except WorkerError as exc:
            return FollowRound(self._followed_to, error=str(exc))
        return FollowRound(self._followed_to, count, text_of(errors))

    async def _copy_changes(self, snapshot: SourceSnapshot) -> tuple[int, list[str]]:
        changed: set[tuple[str, ...]] = set()
        for table in self._tables:
            async for page in snapshot.reader.read_pages(list_changed_tenants(table, self._followed_to - OVERLAP)):
                changed |= {tuple(row.values()) for row in page}
        copier = TenantCopier(snapshot, self._tables, self._callbacks, self._pace)
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
