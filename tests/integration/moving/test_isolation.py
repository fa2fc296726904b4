"""Moves of a tenant on databases whose transactions see one moment by default."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.moves.world import World
from support.postgres.databases import ShardMaker, execute
from support.postgres.other_settings import WAYS, isolate, reached
from support.postgres.tenant_cases import add_tenant

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts

# Each batch takes 0.1 s from the lock of its tenant's row to its commit: the fence finds one there.
LONG_BATCHES = """
CREATE FUNCTION public.take_long() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN PERFORM pg_catalog.pg_sleep(0.1); RETURN NULL; END';
CREATE TRIGGER take_long AFTER INSERT ON public.log_batches FOR EACH STATEMENT EXECUTE FUNCTION public.take_long()
"""


@pytest.mark.slow(2)
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("way", WAYS)
async def test_move_keeps_every_operation_whatever_isolation_is_the_default(
    make_shard: ShardMaker, postgres_server: PostgresServer, level: str, way: str
) -> None:
    shards = [await make_shard("a"), await make_shard("b")]
    for shard in shards:
        await isolate(shard, level)
    # Batches and the fence wait for each other, however long either takes on a slow machine.
    patient = ShardTimeouts(row_lock_s=60.0, pause_lock_s=60.0)
    async with reached(way, postgres_server, *shards) as addresses, Pools(size=6, timeouts=patient) as pools:
        world = World(pools, addresses)
        await add_tenant(world.shard_pools["a"])
        await execute(shards[0].connection_string, LONG_BATCHES)
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.write_until(stopping))
            certificate = await world.move()
            stopping.set()

        assert certificate.comparison.verdict == "equal"
        assert await world.states() == {"a": "moved", "b": "active"}
        assert len(await world.case("b").log()) == world.applied
        rows: dict[Any, Any] = await world.case("b").resources()
        assert {key: data["n"] for (kind, key), data in rows.items() if kind == "patient"} == world.values
