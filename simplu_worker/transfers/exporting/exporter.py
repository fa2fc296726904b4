"""Follow the log of each shard and write what changed, or compare; one shard after the other.

A shard is compared whole where its log alone does not tell what the target lacks: at the first time, with another
mapping, behind another run of its server, which may have lost commits, and where the log has a gap. A tenant is
compared where it has come to a shard, was made, destroyed, restored or imported. A comparison writes what differs
alone, so one that was broken off is made again.

Changes of a tenant that has left the shard are not looked for: they were made before it came to where it is, and it
is compared there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.feed import events
from simplu_worker.feed.rows import read_log
from simplu_worker.feed.types import END, POSITION_MAX, FeedTenant, Place, Publication
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.route_cache import RouteCache
from simplu_worker.shards.routing.shard_watch import ShardWatch
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.timing.waits import backoff_s
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.exporting.rules import (
    ExportKey,
    ExportRow,
    Position,
    digest_of_mapping,
    in_statements,
    may_be_of,
    plan_round,
)
from simplu_worker.transfers.exporting.target import RowsRefusedError, TargetDatabase, TargetSession
from simplu_worker.transfers.importing.queries import RowSelection, hash_documents, list_tenants
from simplu_worker.transfers.importing.source import SourceUnavailableError
from simplu_worker.transfers.moving.checksums import TypeSum
from simplu_worker.vocabulary import TenantState

READ_MAX: Final = 500  # rows of the log
HASHES_MAX: Final = 2000  # of a page
KEYS_MAX: Final = 500  # whose documents are read together
DOCUMENTS_MAX_BYTES: Final = 4 * 1024 * 1024
STATEMENT_MAX_ROWS: Final = 200
IDLE_S: Final = 0.5
RETRY_MAX_S: Final = 10.0
NAMED_MAX: Final = 1000  # resources of a tenant that differ
LOOKS: Final = 3  # at a tenant with rows that differ, as they may be on their way
HERE: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED})
GOING: Final = frozenset({TenantState.DESTROYING, TenantState.DESTROYED})

ReadRows: TypeAlias = Callable[[Sequence[ExportKey]], Awaitable[Sequence[ExportRow | None]]]


class ExportShards(msgspec.Struct, frozen=True):
    """The access of an export to the shards."""

    locator: Locator
    pools: Pools
    commits: ReplicationWaiter


class _LogEnd(msgspec.Struct, frozen=True):
    run: str
    through: int
    forgotten: int


class Comparison(msgspec.Struct, frozen=True, rename="camel"):
    """A tenant on its shard and in the target: rows, their checksums, what differs, and types that are not exported.

    *names* are all that differ, or some of more than NAMED_MAX.
    """

    tenant_id: str
    business_id: str
    location_id: str
    shard_id: str
    rows: int
    target_rows: int
    checksum: str
    target_checksum: str
    differing: int = 0
    names: Sequence[str] = ()
    not_exported: Mapping[str, int] = {}


class ShardLag(msgspec.Struct, frozen=True, rename="camel"):
    """How far the export of a shard is behind; None where all of its tenants are to be compared first."""

    shard_id: str
    changes: int | None
    seconds: float | None


class Exporter:
    """The export of the tenants of all shards to *target*; *note* gets lines for a person."""

    def __init__(
        self, target: TargetDatabase, shards: ExportShards, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self._target = target
        self._shards = shards
        self._note = note
        self._types = list(target.mapping)
        self._digest = digest_of_mapping(target.mapping.values())
        self._positions: dict[str, Position] = {}
        self._troubles: dict[str, str] = {}
        self._is_noted = False
        self._watch = ShardWatch(shards.locator, shards.pools, RouteCache())

    async def follow(self) -> None:
        """Write what changes, until cancelled: that ends at any moment without a loss, or a write that comes twice.

        Raises `PermanentError` if the target refuses a statement, or another export has started since.
        """
        failure_count = 0
        while True:
            try:
                async with self._target.open() as session:
                    self._positions.clear()
                    while True:
                        is_busy = await self.run_once(session)
                        failure_count = 0
                        await asyncio.sleep(0 if is_busy else IDLE_S)
            except (SourceUnavailableError, RetryableError) as exc:
                failure_count += 1
                pause_s = backoff_s(failure_count, draw=random.random(), base_s=0.2, max_s=RETRY_MAX_S)
                self._note(f"{exc}; tried again in {pause_s:.1f} s")
                await asyncio.sleep(pause_s)

    async def run_once(self, session: TargetSession) -> bool:
        """Write what each shard has now, a part of it at most; return whether there was anything."""
        is_busy = False
        for pool in await self._pools():
            shard_id = pool.address.shard_id
            try:
                is_busy |= await self._export_from(session, pool)
                self._troubles.pop(shard_id, None)
            except RetryableError as exc:
                if self._troubles.get(shard_id) != str(exc):
                    self._note(f"{exc}; tried again")
                self._troubles[shard_id] = str(exc)
        if not is_busy and not self._troubles and not self._is_noted:
            self._is_noted = True
            self._note("the target has all that the shards have; following until Ctrl-C")
        return is_busy

    async def _pools(self) -> list[ShardPool]:
        """Return the pools of all shards, at their present addresses. Raises `RetryableError` if nobody lists any."""
        await self._watch.list_when_due()
        shards = [one for one in self._shards.locator.known_shards() if one.refusal is None]
        if not shards:
            raise RetryableError("expected a list of shards, got none; look at the shard map, or at Citrus")
        return [self._shards.pools.ensure_pool(one) for one in shards]

    async def _export_from(self, session: TargetSession, pool: ShardPool) -> bool:
        shard_id = pool.address.shard_id
        end = await _read_end(pool)
        if end is None:
            return False
        if shard_id not in self._positions:
            self._positions[shard_id] = await session.take(shard_id)
        position, basis = self._positions[shard_id], f"{end.run} {self._digest}"
        if position.basis != basis or end.forgotten > position.place.batch_id:
            await self._begin(session, pool, Position(basis, Place(end.through, POSITION_MAX)))
            return True
        rows = await read_log(pool, None, position.place, READ_MAX, END)
        if not rows:
            return False
        latest = rows[-1].batch
        if not end.run.startswith(_text_of(latest.timeline, latest.started_at)):
            return True  # another server answered: the next round sees it
        if (latest.forgotten or 0) > position.place.batch_id:
            return True
        await self._shards.commits.wait_for_read(shard_id, latest.facts)
        plan = plan_round([events.read_row(row, Publication(shard_id, "", "")) for row in rows], self._types)
        for tenant in plan.tenants:
            await self._refresh(session, pool, tenant.tenant_id)
        await self._write(session, pool, plan.keys, _reader(pool), Position(basis, rows[-1].place))
        return True

    async def _begin(self, session: TargetSession, pool: ShardPool, position: Position) -> None:
        """Compare all tenants of a shard; *position* was its end before that."""
        async with pool.connection() as connection:
            tenants = await connection.fetch(QUERIES["list_tenants"])
        count = 0
        for tenant in tenants:
            count += await self._refresh(session, pool, tenant["id"])
        await self._write(session, pool, [], _reader(pool), position)
        self._note(f"shard {pool.address.shard_id}: compared {len(tenants)} tenants, wrote {count} rows that differed")

    async def _refresh(self, session: TargetSession, pool: ShardPool, tenant_id: str) -> int:
        """Make the target's rows of a tenant equal to those of its shard; return how many were not."""
        tenant, state, _ = await _find_tenant(pool, tenant_id)
        if state in GOING and tenant is not None and not await self._lives_elsewhere(pool, tenant_id):
            return await self._delete_all(session, pool, tenant)
        found = await self._compare(session, pool, tenant_id, is_written=True)
        return 0 if found is None else found.differing

    async def _lives_elsewhere(self, pool: ShardPool, tenant_id: str) -> bool:
        for other in await self._pools():
            if other is not pool:
                _, state, _ = await _find_tenant(other, tenant_id)
                if state is not None and state not in GOING and state is not TenantState.MOVED:
                    return True
        return False

    async def _delete_all(self, session: TargetSession, pool: ShardPool, tenant: FeedTenant) -> int:
        async def read_as_gone(keys: Sequence[ExportKey]) -> list[ExportRow | None]:
            return [ExportRow(key) for key in keys]

        count = 0
        for name in reversed(self._types):
            there = await self._hashes_of_target(session, tenant, name, name)
            keys = [ExportKey(tenant, name, name, one) for one in there]
            await self._write(session, pool, keys, read_as_gone)
            count += len(keys)
        return count

    async def _compare(
        self, session: TargetSession, pool: ShardPool, tenant_id: str, *, is_written: bool
    ) -> Comparison | None:
        """Compare a tenant, and write what differs if wanted; None if it does not live on the shard.

        The ids of one of its types are in memory.
        """
        tenant, state, stored_names = await _find_tenant(pool, tenant_id)
        if tenant is None or state not in HERE:
            return None
        own, of_target = TypeSum(), TypeSum()
        extra: list[list[ExportKey]] = []
        names: list[str] = []
        count = 0
        for name in self._types:
            stored = stored_names.get(name, name)
            there = await self._hashes_of_target(session, tenant, name, stored)
            of_target += TypeSum(len(there), 0, sum(there.values()))
            async for page in _hash_pages(pool, tenant_id, stored):
                own += TypeSum(len(page), 0, sum(page.values()))
                differing = [one for one, hashed in page.items() if there.pop(one, None) != hashed]
                keys = [ExportKey(tenant, name, stored, one) for one in differing]
                count += len(keys)
                names += [key.name for key in keys[: NAMED_MAX - len(names)]]
                if is_written and keys:
                    await self._write(session, pool, keys, _reader(pool))
            extra.append([ExportKey(tenant, name, stored, one) for one in there])
        for left in reversed(extra):
            count += len(left)
            names += [f"{key.name}, in the target alone" for key in left[: NAMED_MAX - len(names)]]
            if is_written and left:
                await self._write(session, pool, left, _reader(pool))
        return Comparison(
            tenant_id=tenant_id,
            business_id=tenant.business_id,
            location_id=tenant.location_id,
            shard_id=pool.address.shard_id,
            rows=own.row_count,
            target_rows=of_target.row_count,
            checksum=own.digest,
            target_checksum=of_target.digest,
            differing=count,
            names=names,
        )

    async def _hashes_of_target(
        self, session: TargetSession, tenant: FeedTenant, name: str, stored: str
    ) -> dict[str, int]:
        found: dict[str, int] = {}
        query, names = session.queries[name], (tenant.business_id, tenant.location_id)
        columns = query.types["business_id"], query.types["location_id"]
        if not all(may_be_of(one, of) for one, of in zip(names, columns, strict=True)):
            return {}  # a comparison with the column would fail
        selection = RowSelection(query, stored, names)
        async with session.reading() as reader:
            async for page in reader.read_pages(hash_documents(selection), HASHES_MAX):
                for row in page:
                    found[row["resource_id"]] = found.get(row["resource_id"], 0) + row["hash"]
        return found

    async def _write(
        self,
        session: TargetSession,
        pool: ShardPool,
        keys: Sequence[ExportKey],
        read: ReadRows,
        position: Position | None = None,
    ) -> None:
        """Write resources, and the position with them; if several together are refused, one by one."""
        try:
            await self._write_in_parts(session, pool, keys, read, position, STATEMENT_MAX_ROWS)
        except RowsRefusedError:
            await self._write_in_parts(session, pool, keys, read, position, 1)

    async def _write_in_parts(
        self,
        session: TargetSession,
        pool: ShardPool,
        keys: Sequence[ExportKey],
        read: ReadRows,
        position: Position | None,
        most: int,
    ) -> None:
        shard_id, rest = pool.address.shard_id, list(keys)
        async with session.transaction(shard_id):
            while rest:
                rows = await read(rest[:KEYS_MAX])
                for part in in_statements([row for row in rows if row is not None], most):
                    await session.write(part)
                del rest[: len(rows)]
            if position is not None:
                await session.note(shard_id, position)
        if position is not None:
            self._positions[shard_id] = position

    async def verify(self, pause: Callable[[], Awaitable[None]]) -> tuple[list[Comparison], list[str]]:
        """Compare all tenants of all shards; return what was found, and the tenants that only the target has.

        Rows differ if they do so behind each of two calls of *pause*: others were on their way.
        """
        found: list[Comparison] = []
        async with self._target.open() as session:
            for pool in await self._pools():
                async with pool.connection() as connection:
                    is_there = await has_schema(connection, pool)
                    tenants = await connection.fetch(QUERIES["list_tenants"]) if is_there else []
                for tenant in tenants:
                    one = await self._look(session, pool, tenant["id"], pause)
                    if one is not None:
                        found.append(msgspec.structs.replace(one, not_exported=await self._not_exported(pool, one)))
            known = {f"{one.business_id} {one.location_id}" for one in found}
            others: set[str] = set()
            async with session.reading() as reader:
                for query in session.queries.values():
                    for row in await reader.fetch_all(list_tenants(query)):
                        others.add(f"{row['business_id']} {row['location_id']}")
        return found, sorted(others - known)

    async def _look(
        self, session: TargetSession, pool: ShardPool, tenant_id: str, pause: Callable[[], Awaitable[None]]
    ) -> Comparison | None:
        one = await self._compare(session, pool, tenant_id, is_written=False)
        for _ in range(LOOKS - 1):
            if one is None or not 0 < one.differing <= NAMED_MAX:
                break
            await pause()
            again = await self._compare(session, pool, tenant_id, is_written=False)
            if again is not None:
                left = [name for name in one.names if name in set(again.names)]
                again = msgspec.structs.replace(again, differing=len(left), names=left)
            one = again
        return one

    async def _not_exported(self, pool: ShardPool, one: Comparison) -> dict[str, int]:
        _, _, stored_names = await _find_tenant(pool, one.tenant_id)
        stored = [stored_names.get(name, name) for name in self._types]
        async with pool.connection() as connection:
            rows = await connection.fetch(QUERIES["count_not_exported"], one.tenant_id, stored)
        return {row["resource_type"]: row["row_count"] for row in rows}

    async def read_lag(self) -> list[ShardLag]:
        """Return how far each shard is behind."""
        async with self._target.open() as session:
            positions = await session.positions()
        lags = []
        for pool in await self._pools():
            end = await _read_end(pool)
            position = positions.get(pool.address.shard_id)
            if end is None:
                continue
            if position is None or position.basis != f"{end.run} {self._digest}":
                lags.append(ShardLag(pool.address.shard_id, None, None))
                continue
            async with pool.connection() as connection:
                row = await connection.fetchrow(QUERIES["read_export_lag"], position.place.batch_id)
            lags.append(ShardLag(pool.address.shard_id, row["change_count"], row["lag_s"] or 0.0))
        return lags


async def _read_end(pool: ShardPool) -> _LogEnd | None:
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["read_log_end"])
    run = f"{_text_of(row['timeline'], row['started_at'])}{row['batch_offset']}"
    return _LogEnd(run, row["through"], row["forgotten"] or 0)


def _text_of(timeline: str, started_at: Any) -> str:
    return events.run_of_server(timeline, started_at, 0).removesuffix("0")


async def _find_tenant(
    pool: ShardPool, tenant_id: str
) -> tuple[FeedTenant | None, TenantState | None, Mapping[str, str]]:
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return None, None, {}
        row = await connection.fetchrow(QUERIES["find_exported_tenant"], tenant_id)
    if row is None:
        return None, None, {}
    names = "tenant_id", "business_id", "location_id", "business_type"
    return FeedTenant(*(row[one] for one in names)), TenantState(row["state"]), msgspec.json.decode(row["stored_names"])


def _reader(pool: ShardPool) -> ReadRows:
    """Return what reads resources as they are, as many as fit; None for one whose tenant does not live on the shard."""

    async def read(keys: Sequence[ExportKey]) -> list[ExportRow | None]:
        columns = [(key.tenant.tenant_id, key.stored_type, key.resource_id) for key in keys]
        sent = [list(column) for column in zip(*columns, strict=True)]
        async with pool.connection() as connection:
            rows = await connection.fetch(QUERIES["read_exported"], *sent, DOCUMENTS_MAX_BYTES)
        return [
            ExportRow(key, row["document"], row["created"], row["changed"]) if row["is_here"] else None
            for key, row in zip(keys, rows, strict=False)
        ]

    return read


async def _hash_pages(pool: ShardPool, tenant_id: str, resource_type: str) -> AsyncIterator[dict[str, int]]:
    after = ""
    while True:
        async with pool.connection() as connection:
            rows = await connection.fetch(QUERIES["hash_exported"], tenant_id, resource_type, after, HASHES_MAX)
        yield {row["resource_id"]: row["hash"] for row in rows}
        if len(rows) < HASHES_MAX:
            return
        after = rows[-1]["resource_id"]
