"""A worker that goes by a shard map in a file, for tests, and what a person does to the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs
from support.postgres.databases import QUICK
from support.postgres.tenant_cases import TENANT_WAIT, fetch, operation

from simplu_worker.operations.operation import Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_map import hash_of, jump_hash
from simplu_worker.shards.routing.shard_watch import ShardMapReloader
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
from simplu_worker.vocabulary import Absence

Shards = tuple[ShardAddress, ShardAddress, ShardAddress]


def tenant_on(place: int, count: int, *, number: int = 0, before: int | None = None) -> tuple[str, str]:
    """Return a tenant whose key falls on the shard at *place* of *count*, and at *before* where there is one less."""
    found = (
        ("clinic", f"{one}")
        for one in range(10_000)
        if jump_hash(hash_of(f"clinic-{one}"), count) == place
        and (before is None or jump_hash(hash_of(f"clinic-{one}"), count - 1) == before)
    )
    return next(tenant for index, tenant in enumerate(found) if index == number)


@dataclass
class World:
    """All of a worker that goes by a map in a file, and what a person does to the file."""

    path: Path
    locator: StaticMap
    pools: Pools
    directory: Directory
    gateway: ShardGateway
    provisioner: Provisioner
    map_reload: ShardMapReloader

    async def reload(
        self,
        *shards: ShardAddress,
        retired: tuple[str, ...] = (),
        was_retired: Collection[str] = (),
        pins: dict[str, str] | None = None,
        replicas: dict[str, str] | None = None,
        all_in_place: bool = False,
    ) -> dict[str, Any]:
        """Write the file, reload, drain; return what was logged of it."""
        write_map(
            self.path,
            *shards,
            retired=retired,
            was_retired=was_retired,
            pins=pins,
            replicas=replicas,
            all_in_place=all_in_place,
        )
        return await self.hang_up()

    async def hang_up(self) -> dict[str, Any]:
        """Reload the file as it is, and drain; return what was logged of it."""
        with capture_logs() as logs:
            for pool in await self.map_reload.reload():
                await pool.drain()
        (line,) = [line for line in logs if line["event"].startswith("shard_map.")]
        return dict(line)

    async def provision(self, tenant: tuple[str, str]) -> ProvisionResult:
        return await self.provisioner.provision(ProvisionRequest(*tenant, "dental", datetime.now(UTC)))

    async def found(self, tenant: tuple[str, str]) -> str | Absence:
        return await self.gateway.find_again("-".join(tenant))

    async def apply(self, shard_id: str, tenant: tuple[str, str]) -> list[Outcome]:
        return await self.gateway.apply(
            shard_id, [operation("create", "r1", {}, tenant=tenant, arrived_at=datetime.now(UTC))]
        )


def write_map(
    path: Path,
    *shards: ShardAddress,
    retired: tuple[str, ...] = (),
    was_retired: Collection[str] = (),
    pins: dict[str, str] | None = None,
    replicas: dict[str, str] | None = None,
    all_in_place: bool = False,
) -> None:
    listed = [
        {
            "shardId": one.shard_id,
            "connectionString": one.connection_string,
            "retired": one.shard_id in retired,
            "wasRetired": one.shard_id in was_retired,
        }
        | ({"replicaConnectionString": replicas[one.shard_id]} if replicas and one.shard_id in replicas else {})
        for one in shards
    ]
    path.write_text(json.dumps({"shards": listed, "tenants": pins or {}, "allInPlace": all_in_place}))


@contextlib.asynccontextmanager
async def worker(path: Path) -> AsyncIterator[World]:
    read = partial(read_shard_map, path, ())
    async with Pools(size=2, timeouts=QUICK) as pools:
        locator = StaticMap(read())
        directory = Directory(locator, pools)
        yield World(
            path=path,
            locator=locator,
            pools=pools,
            directory=directory,
            gateway=ShardGateway(directory, locator, pools, tenant_wait=TENANT_WAIT),
            provisioner=Provisioner(locator, directory, pools),
            map_reload=ShardMapReloader(read, locator, pools, directory.routes),
        )


async def row_counts(shards: Shards, tenant_id: str) -> list[int]:
    counts = []
    for shard in shards:
        pool = ShardPool(shard, size=1)
        counts += [row["count"] for row in await fetch(pool, "SELECT count(*) FROM tenants WHERE id = $1", tenant_id)]
        await pool.close()
    return counts
