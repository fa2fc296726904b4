"""The facts about a shard's server from which `check` names settings that cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from support.postgres.databases import ShardMaker, execute

from simplu_worker.shards.health.prober import OWN_CHECKPOINTER_SINCE, read_server_facts
from simplu_worker.shards.health.server_costs import find_costs
from simplu_worker.shards.postgres.pool import ShardPool

CURRENT, OLD = 180000, 160000
# The server counts a transaction's rows when its session ends, or is told to.
FLUSH = "SELECT pg_stat_force_next_flush()"


async def version_of(pool: ShardPool) -> int:
    """Return the version of the server: the counts of checkpoints have another view since 17."""
    async with pool.connection() as connection:
        return int(await connection.fetchval("SELECT current_setting('server_version_num')"))


async def test_facts_are_those_of_the_server(make_shard: ShardMaker) -> None:
    pool = ShardPool(await make_shard(is_empty=True), size=1)
    try:
        version = await version_of(pool)
        before = await read_server_facts(pool, version)
        async with pool.connection() as connection:
            await connection.execute("CHECKPOINT")
            settings = {
                row["name"]: row["setting"]
                for row in await connection.fetch("SELECT name, setting FROM pg_settings WHERE context <> 'internal'")
            }
            megabytes = int(settings["max_wal_size"])
            pages = int(settings["shared_buffers"])
        after = await read_server_facts(pool, version)
    finally:
        await pool.close()

    assert before is not None
    assert after is not None
    assert after.checkpoints_requested > before.checkpoints_requested
    assert after.wal_bytes >= before.wal_bytes > 0
    assert (after.max_wal_size, after.shared_buffers) == (megabytes * 2**20, pages * 8192)
    assert {"off", "pglz"} <= set(after.wal_compressions)
    assert after.wal_compression == settings["wal_compression"]
    assert after.synchronous_commit == settings["synchronous_commit"]
    assert after.has_autovacuum is (settings["autovacuum"] == "on")
    assert after.database_bytes > 2**20
    assert after.tables == ()


async def test_dead_rows_are_those_that_wait_for_a_vacuum(make_shard: ShardMaker) -> None:
    pool = ShardPool(await make_shard(is_empty=True), size=1)
    try:
        url = pool.address.connection_string
        for table in ("resources", "others"):
            await execute(url, f"CREATE TABLE public.{table} (number integer) WITH (autovacuum_enabled = false)")
            await execute(url, f"INSERT INTO public.{table} SELECT generate_series(1, 120000)")
            await execute(url, f"DELETE FROM public.{table} WHERE number > 60000")
        await execute(url, FLUSH)
        version = await version_of(pool)
        behind = await read_server_facts(pool, version)
        began_at = datetime.now(UTC)
        await execute(url, "VACUUM public.resources")
        await execute(url, FLUSH)
        vacuumed = await read_server_facts(pool, version)
    finally:
        await pool.close()

    assert behind is not None
    assert vacuumed is not None
    assert [(rows.table, rows.dead, rows.vacuumed_at) for rows in behind.tables] == [("resources", 60000, None)]
    assert any("50% of 120,000 rows of resources are dead" in cost.problem for cost in find_costs(behind))
    (rows,) = vacuumed.tables
    assert rows.dead == 0
    assert rows.vacuumed_at is not None
    assert rows.vacuumed_at - began_at > timedelta(seconds=-1)
    assert not any("are dead" in cost.problem for cost in find_costs(vacuumed))


async def test_facts_are_left_out_where_the_server_lacks_one(make_shard: ShardMaker) -> None:
    pool = ShardPool(await make_shard(), size=1)
    try:
        another = OLD if await version_of(pool) >= OWN_CHECKPOINTER_SINCE else CURRENT
        assert await read_server_facts(pool, another) is None
        assert pool.is_healthy
    finally:
        await pool.close()
