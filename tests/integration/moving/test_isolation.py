"""Moves of a tenant on databases whose transactions see one moment by default."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from support.moves.failpoints import set_failpoint
from support.moves.world import TENANT_ID, World
from support.postgres.databases import ShardMaker, execute
from support.postgres.other_settings import WAYS, isolate, reached
from support.postgres.tenant_cases import add_tenant, fetch
from support.postgres.trouble import waiters

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.transfers.moving.checksums import repair_resources

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

        assert certificate.verdict == "equal"
        assert await world.states() == {"a": "moved", "b": "active"}
        assert len(await world.case("b").log()) == world.applied
        rows: dict[Any, Any] = await world.case("b").resources()
        assert {key: data["n"] for (kind, key), data in rows.items() if kind == "patient"} == world.values


UPDATE_OF_A_BATCH = """
UPDATE resources SET data = '{"n": 70}' WHERE "resourceId" = '7';
INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
SELECT pg_current_xact_id()::text::bigint, clock_timestamp(), 1, 'o', ARRAY[number], '{patient}', '{kinesis}'
FROM tenants WHERE id = 'clinic-main';
INSERT INTO log_rows (batch_id, requested_at, received_at, tenant_no, position, type_at, origin_at, kind, digest,
    request, resource)
SELECT pg_current_xact_id()::text::bigint, now(), now(), number, 0, 1, 1, 'u', '', simplu_key('new'), simplu_key('7')
FROM tenants WHERE id = 'clinic-main'
"""


@pytest.mark.slow
async def test_repair_keeps_what_a_batch_wrote_that_it_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pool in world.shard_pools.values():
        await isolate(pool.address, "repeatable read")
        pool.address = pool.address  # connections from now on have the new default
    target = world.shard_pools["b"]

    async def spoil(_: Any) -> None:
        await fetch(target, """UPDATE resources SET data = '{"n": -1}' WHERE "resourceId" IN ('7', '8')""")

    set_failpoint("after _verify_live", spoil, monkeypatch.setattr)
    await world.move()
    batch = await asyncpg.connect(target.address.connection_string)
    await batch.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT FROM tenants FOR SHARE")
    keys = [("patient", "7"), ("patient", "8")]
    repairing = asyncio.create_task(
        repair_resources(world.shard_pools["a"], target, TENANT_ID, await world.arrival("b"), keys)
    )
    await waiters(batch)
    await batch.execute(UPDATE_OF_A_BATCH)
    await batch.execute("COMMIT")
    await batch.close()

    assert (await repairing).count == 1
    resources: Any = await world.case("b").resources()
    assert [resources["patient", key]["n"] for key in ("7", "8")] == [70, 8]
