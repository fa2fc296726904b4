"""Copy tenants from a snapshot of the source, and follow the source by its change columns.

A tenant is copied whole, or brought up to date by the rows with a newer `updated`. That may miss rows: those that a
query does not return any more, and those of long transactions. So a comparison of all rows comes before the activation.
A tenant that a round cannot bring up to date keeps its time: the next round reads it from there, behind the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import find_addresses
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import Pacer, sleep_or_event
from simplu_worker.transfers.importing.queries import (
    DUPLICATES_MAX,
    RowSelection,
    SourceQuery,
    digest_of,
    list_changed_tenants,
    list_duplicates,
    sum_rows,
)
from simplu_worker.transfers.importing.rules import (
    OVERLAP,
    TOO_MANY_DUPLICATES,
    TOO_MANY_REFUSED,
    FollowState,
    RefusedRow,
    SourceRow,
    SourceTenant,
    is_deleted,
    refusal_of_row,
)
from simplu_worker.transfers.importing.source import (
    ImportSource,
    SourceReader,
    SourceRefusedError,
    SourceSnapshot,
    SourceUnavailableError,
)
from simplu_worker.transfers.importing.target import ImportTakenError, TargetTenant
from simplu_worker.transfers.moving.checksums import Sums, TypeSum
from simplu_worker.vocabulary import TransferStep

REFUSED_MAX: Final = 100_000  # rows of one tenant, which are kept until all of it is read

RowSink: TypeAlias = "TargetTenant | None"
"""Where rows are written; None in a plan."""


class TakenRows(msgspec.Struct):
    """The rows of a tenant that were taken, by type, and the number of the others: deleted, or refused by reason."""

    types: Sums = {}
    deleted: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    verified_on: Server | None = None  # the server with equal rows

    def add(self, resource_type: str, rows: TypeSum) -> None:
        """Add rows of one type."""
        if rows.row_count:
            self.types[resource_type] = self.types.get(resource_type, TypeSum()) + rows

    @property
    def total(self) -> TypeSum:
        """The rows of all types."""
        return sum(self.types.values(), TypeSum())


class CopyCallbacks(msgspec.Struct, frozen=True):
    """Who is told of refused rows, of rows to read, and of rows read since the last call."""

    note_refused: Callable[[RefusedRow], None] = lambda _: None
    note_total: Callable[[int], None] = lambda _: None
    note_rows: Callable[[int], None] = lambda _: None


class TenantCopier:
    """Copies tenants from the *queries* of one snapshot."""

    def __init__(
        self, snapshot: SourceSnapshot, queries: Sequence[SourceQuery], callbacks: CopyCallbacks, pace: Pacer
    ) -> None:
        self._snapshot = snapshot
        self._queries = queries
        self._callbacks = callbacks
        self._pace = pace

    async def copy(self, source: SourceTenant, sink: RowSink) -> TakenRows:
        """Read all rows of a tenant into *sink*, emptied before."""
        selections = self._selections(source)
        taken = TakenRows()
        refused: list[RefusedRow] = []
        async with self._snapshot.open_reader() as reader:
            if sink is not None:
                await sink.clear()
            duplicates = await _find_duplicates(reader, selections)
            for selection in selections:
                async for page in reader.read_rows(selection, duplicates):
                    rows = []
                    for row in page:
                        reason = refusal_of_row(row, duplicates)
                        if reason is not None:
                            taken.refused[reason] += 1
                            refused.append(RefusedRow(source.key, row.resource_type, row.resource_id, reason))
                        elif is_deleted(row):
                            taken.deleted += 1
                        else:
                            rows.append(row)
                            taken.add(row.resource_type, row.sum)
                    if len(refused) > REFUSED_MAX:
                        raise PermanentError(TOO_MANY_REFUSED)
                    await self._write(sink, rows, page)
        for one in refused:
            self._callbacks.note_refused(one)
        return taken

    async def copy_changes(self, source: SourceTenant, since: datetime, target: TargetTenant) -> int:
        """Write the rows changed *since*, delete those without a document; return their number."""
        count = 0
        async with self._snapshot.open_reader() as reader:
            for selection in self._selections(source, changed_since=since):
                async for page in reader.read_rows(selection, ()):
                    taken = [row for row in page if refusal_of_row(row, ()) is None]
                    deleted = [(row.resource_type, row.resource_id) for row in taken if is_deleted(row)]
                    if deleted:
                        await target.delete(deleted)
                    await self._write(target, [row for row in taken if not is_deleted(row)], page)
                    count += len(taken)
        return count

    async def complete(self, source: SourceTenant, since: datetime, target: TargetTenant) -> TakenRows | None:
        """Bring a tenant up to date that was copied before; None if its rows differ from those of the source."""
        await self.copy_changes(source, since, target)
        taken = TakenRows()
        if selections := self._selections(source):
            async with self._snapshot.open_reader() as reader:
                for row in await reader.fetch_all(sum_rows(selections)):
                    rows = TypeSum(row["row_count"], int(row["byte_count"]), int(row["checksum"]))
                    taken.add(row["resource_type"], rows)
                    taken.deleted += row["deleted_count"]
        self._callbacks.note_rows(source.row_count)
        found, taken.verified_on = await target.sum_rows()
        return taken if found == taken.types else None

    def _selections(self, source: SourceTenant, *, changed_since: datetime | None = None) -> list[RowSelection]:
        return [
            RowSelection(
                query,
                source.stored_names.get(query.resource_type, query.resource_type),
                source.key,
                source.business_type or "",
                changed_since=changed_since,
            )
            for query in self._queries
            if changed_since is not None or source.row_counts.get(query.resource_type)
        ]

    async def _write(self, sink: RowSink, rows: Sequence[SourceRow], page: Sequence[SourceRow]) -> None:
        if sink is not None and rows:
            await sink.write(rows)
        self._callbacks.note_rows(len(page))
        await asyncio.sleep(self._pace.pause_s(len(page), now=loop_time()))


async def _find_duplicates(reader: SourceReader, selections: Sequence[RowSelection]) -> set[tuple[str, str]]:
    if not selections:
        return set()
    rows = await reader.fetch_all(list_duplicates(selections))
    if len(rows) > DUPLICATES_MAX:
        raise PermanentError(TOO_MANY_DUPLICATES)
    return {(row["resource_type"], row["resource_id"]) for row in rows}


INTERVAL_S: Final = 5.0
NOTE_INTERVAL_S: Final = 60.0  # between two writes of the time into all journals


class FollowedTenant(msgspec.Struct):
    """A tenant that was copied, and is kept up to date: it is as the source was at *followed_to*."""

    source: SourceTenant
    target: TargetTenant
    followed_to: datetime


class FollowRound(msgspec.Struct, frozen=True):
    """The time of a round's snapshot, the rows written or deleted, and the error of tenants that are behind it."""

    followed_to: datetime
    row_count: int = 0
    error: str | None = None


class Follower:
    """Follows *source* for *tenants*."""

    def __init__(
        self,
        source: ImportSource,
        queries: Sequence[SourceQuery],
        tenants: Iterable[FollowedTenant],
        callbacks: CopyCallbacks,
        pace: Pacer,
        locator: Locator,
        pools: Pools,
    ) -> None:
        self._source = source
        self._queries = queries
        self._tenants = {one.source.key: one for one in tenants}
        self._callbacks = callbacks
        self._pace = pace
        self._locator = locator
        self._pools = pools
        self.failures: dict[tuple[str, str], str] = {}  # of tenants that another run has, or with no note in the end

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
        followed_to = max((one.followed_to for one in self._tenants.values()), default=datetime.max.replace(tzinfo=UTC))
        behind = {key for key, one in self._tenants.items() if one.followed_to < followed_to}
        try:
            if behind:
                await find_addresses(self._locator, self._pools)
            async with self._source.open_snapshot() as snapshot:
                count, errors = await self._copy_changes(snapshot, followed_to, behind)
                return FollowRound(datetime.fromisoformat(snapshot.facts.taken_at), count, text_of(errors))
        except WorkerError as exc:
            return FollowRound(followed_to, error=str(exc))

    async def _copy_changes(
        self, snapshot: SourceSnapshot, followed_to: datetime, behind: set[tuple[str, str]]
    ) -> tuple[int, list[str]]:
        changed = set(behind)
        for query in self._queries:
            async for page in snapshot.reader.read_pages(list_changed_tenants(query, followed_to - OVERLAP)):
                changed |= {(row["business_id"], row["location_id"]) for row in page} & self._tenants.keys()
        copier = TenantCopier(snapshot, self._queries, self._callbacks, self._pace)
        count, failed, errors = 0, set(), []
        # Those that failed before come last: a shard that hangs then delays nobody else.
        for key in sorted(changed, key=lambda key: (key in behind, key)):
            one = self._tenants[key]
            try:
                count += await copier.copy_changes(one.source, one.followed_to - OVERLAP, one.target)
            except (SourceUnavailableError, SourceRefusedError):
                raise
            except ImportTakenError as exc:
                errors.append(str(exc))
                self.failures[key] = str(exc)
            except WorkerError as exc:
                errors.append(f"{' '.join(key)}: {exc}")
                failed.add(key)
        self._tenants = {key: one for key, one in self._tenants.items() if key not in self.failures}
        for key in self._tenants.keys() - failed:
            self._tenants[key].followed_to = datetime.fromisoformat(snapshot.facts.taken_at)
        return count, errors

    async def _note(self) -> dict[tuple[str, str], str]:
        errors = {}
        for key, one in self._tenants.items():
            state = FollowState(digest_of(self._queries), one.followed_to)
            try:
                await one.target.note(TransferStep.FOLLOWING, state)
            except WorkerError as exc:
                errors[key] = str(exc)
        return errors


def text_of(errors: Sequence[str]) -> str | None:
    """Return a text for the errors of several tenants; None without any."""
    if not errors:
        return None
    return errors[0] if len(errors) == 1 else f"{errors[0]} (the first of {len(errors)} tenants)"
