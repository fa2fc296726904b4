"""Two real shards, and a tenant on the first one that moves to the second."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from support.postgres.databases import ShardMaker
from support.postgres.histories import Version
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.health.assessment import MoveEntry
from simplu_worker.shards.health.prober import probe_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.settling import Transfer, read_transfer
from simplu_worker.shards.tenants.resource_changes import ResourceChanges
from simplu_worker.shards.types import ChangeResult, ResourceRename
from simplu_worker.transfers.engine import TransferStatus
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Certificate, Move, MoveOptions
from simplu_worker.vocabulary import OperationKind, TransferKind

OPTIONS = MoveOptions(log_kept=timedelta(days=1), max_pause_s=10)  # no test of pauses fails on a busy machine
TENANT_ID = "clinic-main"
OTHER = ("other", "main")
ROWS = """
INSERT INTO public.resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, 'dental', 'patient', number::text, jsonb_build_object('n', number, 'text', repeat('x', number % 50)),
    now(), now() FROM generate_series(1, $2::int) AS number
"""
LOGGED = """
WITH batch AS (
    INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
    SELECT pg_current_xact_id()::text::bigint, clock_timestamp() - interval '1 hour', $2::int, 'o', ARRAY[number],
        '{patient}', '{kinesis}'
    FROM tenants WHERE id = $1
    RETURNING batch_id, tenants[1] AS tenant_no
)
INSERT INTO log_rows (batch_id, requested_at, received_at, tenant_no, position, type_at, origin_at, kind, digest,
    request, resource)
SELECT batch_id, now(), now(), tenant_no, number % 32000, 1, 1, 'c', '\\x00', simplu_key('old-' || number),
    simplu_key(number::text)
FROM batch, generate_series(1, $2::int) AS number
"""


class World:
    def __init__(self, pools: Pools, addresses: list[ShardAddress]) -> None:
        self.pools = pools
        self.commits = ReplicationWaiter(pools)
        self.shard_pools = {address.shard_id: pools.ensure_pool(address) for address in addresses}
        self.statuses: list[TransferStatus] = []
        self.values: dict[str, int] = {}
        self.applied = 0
        self.history: dict[str, list[Version]] = {}  # by key, of what is written while the tenant moves

    def changes_on(self, shard_id: str) -> ResourceChanges:
        shards = tuple(MappedShard(name, pool.address.connection_string) for name, pool in self.shard_pools.items())
        locator = StaticMap(ShardMap(shards=shards, tenants={TENANT_ID: shard_id}))
        return ResourceChanges(Directory(locator, self.pools), self.pools)

    async def rename(self, shard_id: str, old_id: str, new_id: str) -> None:
        rename = ResourceRename(*TENANT, "patient", old_id, new_id, None, datetime.now(UTC))
        assert await self.changes_on(shard_id).rename(rename) is ChangeResult.APPLIED

    def mover(self, source: str = "a", target: str = "b", options: MoveOptions = OPTIONS) -> Mover:
        return Mover(self.pools, self.commits, Move(TENANT_ID, source, target), options, show=self.statuses.append)

    async def move(self, source: str = "a", target: str = "b") -> Certificate:
        return await self.mover(source, target).run()

    def case(self, shard_id: str) -> TenantCase:
        return TenantCase(self.shard_pools[shard_id], TENANT)

    async def states(self) -> dict[str, str]:
        rows = {}
        for shard_id, pool in self.shard_pools.items():
            for row in await fetch(pool, "SELECT state FROM public.tenants WHERE id = $1", TENANT_ID):
                rows[shard_id] = row["state"]
        return rows

    async def journal(self, shard_id: str) -> list[MoveEntry]:
        probe = await probe_shard(self.shard_pools[shard_id])
        assert probe.moves is not None
        return list(probe.moves)

    async def arrival(self, shard_id: str) -> Transfer:
        async with self.shard_pools[shard_id].connection() as connection:
            arrival = await read_transfer(connection, TENANT_ID, TransferKind.ARRIVAL)
        assert arrival is not None
        return arrival

    async def write_until(self, stopping: asyncio.Event) -> None:
        writers = {name: ShardWriter(pool, tenant_wait=timedelta(days=30)) for name, pool in self.shard_pools.items()}
        names = itertools.cycle(writers)
        shard_id = next(names)
        chance = random.Random(1)
        for number in itertools.count():
            if stopping.is_set():
                return
            keys = [str(chance.randint(1, 400)) for _ in range(5)]
            operations = [self._operation(key, number * 10 + place, chance) for place, key in enumerate(keys)]
            while True:
                outcomes = await writers[shard_id].apply(operations)
                if all(one.disposition is Disposition.APPLIED and one.failure is None for one in outcomes):
                    break
                # LOCKED: a busy machine leaves the move its lock for longer than an operation waits.
                assert {one.disposition for one in outcomes} <= {Disposition.HOLD, Disposition.LOCKED}
                shard_id = next(names)
                await asyncio.sleep(0.01)
            self.applied += len(operations)
            await asyncio.sleep(0.002)

    def _operation(self, key: str, value: int, chance: random.Random) -> Any:
        kind = "update" if key in self.values else "create"
        if kind == "update" and chance.random() < 0.2:
            del self.values[key]
            made = self.case("a").operation("delete", key)
        else:
            self.values[key] = value
            made = self.case("a").operation(kind, key, {"n": value})
        of_key = self.history.setdefault(key, [])
        document = {"n": value} if made.kind is not OperationKind.DELETE else None
        of_key.append((len(of_key) + 2, made.kind, made.request_id, document))
        return made


@asynccontextmanager
async def open_world(make_shard: ShardMaker) -> AsyncIterator[World]:
    addresses = [await make_shard("a"), await make_shard("b")]
    async with Pools(size=6) as pools:
        world = World(pools, addresses)
        await add_tenant(world.shard_pools["a"])
        yield world
