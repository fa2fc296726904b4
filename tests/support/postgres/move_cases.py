"""A tenant on real shards, and the commands that move it: settings, rows, and a command that is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from support.postgres.tenant_cases import TENANT, add_tenant, fetch
from support.settings import settings_in

from simplu_local.processes.loopback import poll_until
from simplu_worker.commands.command_line import DEFAULT_BOUNDS
from simplu_worker.commands.moves import MoveRequest, move_tenant, rollback_tenant
from simplu_worker.commands.output import show
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool

TENANT_ID = "-".join(TENANT)
ROWS = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, 'dental', 'patient', number::text, '{}', now(), now() FROM generate_series(1, $2::int) AS number
"""
COPIED_WITHIN_S = 60.0


def write_map(folder: Path, shards: Sequence[ShardAddress], tenants: Mapping[str, str]) -> Path:
    """Write a map of *shards*, with tenants that are pinned; return its path."""
    listed = [{"shardId": shard.shard_id, "connectionString": shard.connection_string} for shard in shards]
    path = folder / "map.json"
    path.write_text(json.dumps({"shards": listed, "tenants": tenants}))
    return path


def settings_of(folder: Path, *shards: ShardAddress, tenants: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of a command with a map of *shards*, which pins *tenants*, or else ours to the first."""
    pinned = {TENANT_ID: shards[0].shard_id} if tenants is None else tenants
    path = write_map(folder, shards, pinned)
    return settings_in({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)})


def pins_of(folder: Path) -> dict[str, str]:
    pins: dict[str, str] = json.loads((folder / "map.json").read_text())["tenants"]
    return pins


async def fill(address: ShardAddress, *tenants: tuple[str, str], rows: int = 20) -> None:
    """Put tenants on a shard, each with some rows; without *tenants* the usual one."""
    pool = ShardPool(address, size=1)
    for tenant in tenants or (TENANT,):
        await add_tenant(pool, tenant)
        await fetch(pool, ROWS, "-".join(tenant), rows)
    await pool.close()


async def ask(address: ShardAddress, query: str, *arguments: object) -> Any:
    pool = ShardPool(address, size=1)
    try:
        return await fetch(pool, query, *arguments)
    finally:
        await pool.close()


async def move(settings: Settings, shard_id: str, *, apply: bool = True) -> int:
    request = MoveRequest(*TENANT, shard_id)
    return await show(move_tenant(settings, request, DEFAULT_BOUNDS, apply=apply, as_json=True), as_json=True)


async def roll_back(settings: Settings, *, apply: bool = True, stay: bool = False) -> int:
    return await show(rollback_tenant(settings, TENANT, apply=apply, stay=stay, as_json=True), as_json=True)


async def unfinished(*addresses: ShardAddress) -> list[Any]:
    """Return all that moves have left which have not ended: rows of tenants on their way, and of journals."""
    found = []
    for address in addresses:
        found += await ask(address, "SELECT id, state FROM tenants WHERE state IN ('incoming', 'ready', 'fenced')")
        found += await ask(
            address, "SELECT tenant_id, step FROM transfers WHERE kind = 'departure' AND step NOT IN ('done', 'undone')"
        )
    return found


@contextlib.asynccontextmanager
async def copy_held_up(source: ShardAddress) -> AsyncIterator[None]:
    connection = await asyncpg.connect(source.connection_string)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE resources IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def is_arriving_on(target: ShardAddress) -> bool:
    """Wait until a tenant is moving to *target*; return whether one is."""

    async def is_there() -> bool:
        return bool(await ask(target, "SELECT FROM tenants WHERE state = 'incoming'"))

    return await poll_until(is_there, within_s=COPIED_WITHIN_S)


async def stop_in_copy(command: Coroutine[Any, Any, int], source: ShardAddress, target: ShardAddress) -> None:
    """Run a command that moves a tenant from *source* to *target*, and stop it once its copy has begun."""
    async with copy_held_up(source):
        running = asyncio.create_task(command)
        try:
            assert await is_arriving_on(target)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
