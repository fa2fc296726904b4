"""Usage equals the log of the shards, whatever happens between two counts; `tenants usage` sums it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from support.moves.world import TENANT_ID, World, open_world
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, add_tenant, fetch, operation, writer_of
from support.postgres.trouble import waiters
from support.settings import settings_of

from simplu_local.processes.loopback import poll_until
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.usage import UsageRequest, show_usage, sum_shards
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.log import LogRetention
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.usage import UsageCount, carry_usage
from simplu_worker.transfers.moving.sides import clean_up

pytestmark = pytest.mark.slow

NOW = datetime.now(UTC)
BEGIN, END = NOW - timedelta(days=1), NOW + timedelta(days=1)
OTHERS = (("clinic", "second"), ("smile", "berlin"))
COUNTED = "SELECT coalesce(sum(operation_count), 0)::int AS count FROM usage"
OLD = "INSERT INTO usage SELECT now() - make_interval(days => n), 'b', 'l', '', 'a' FROM generate_series(399, 401) AS n"


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(make_shard) as world:
        yield world


async def check(world: World, sent: list[Operation], *, is_counted: bool = False, shards: str = "ab") -> None:
    """Check that the usage of the shards is *sent*; *is_counted* where soon the log alone has none of it."""
    expected, found = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for one in sent:
        name = one.business_id, one.location_id, one.resource_type
        expected.update({(*name, "operations"): 1, (*name, "bytes"): one.size_bytes})
    asked = QUERIES["read_usage"], BEGIN, END, "day", None
    rows = [list(row.values()) for one in shards for row in await fetch(world.shard_pools[one], *asked)]
    for _, *key, count, size_bytes, _, _, _ in sum_shards(rows):
        found.update({(*key, "operations"): count, (*key, "bytes"): size_bytes})
    assert +found == expected

    async def is_all_counted() -> bool:  # a transaction of another database is in the way for a moment
        await UsageCount(world.pools, {}).take_turn()
        return await counted(world) == len(sent)

    assert not is_counted or await poll_until(is_all_counted, within_s=30)


async def counted(world: World) -> int:
    return sum([(await fetch(pool, COUNTED))[0]["count"] for pool in world.shard_pools.values()])


async def at_once() -> timedelta:
    return timedelta(0)


def some(chance: random.Random, count: int, *tenants: tuple[str, str]) -> list[Operation]:
    def make() -> Operation:
        data, kind = {"text": "x" * chance.randint(0, 99)}, chance.choice(("create", "update", "patch"))
        named = chance.choice(("patient", "appointment"))
        return operation(
            kind, str(chance.randint(1, 20)), data, tenant=chance.choice((TENANT, *tenants)), resource_type=named
        )

    return [make() for _ in range(count)]


async def test_usage_equals_the_log_after_random_batches(world: World) -> None:
    pool, chance, sent = world.shard_pools["a"], random.Random(5), list[Operation]()
    for tenant in OTHERS:
        await add_tenant(pool, tenant)
    writer, child = writer_of(pool), writer_of(pool)
    count, other = (UsageCount(world.pools, {}, statement_batches=batches) for batches in (3, 2))
    for number in range(12):
        batch = some(chance, chance.randint(1, 40), *OTHERS)
        again = chance.sample(sent, min(len(sent), 5))
        await asyncio.gather(
            writer.apply([*batch, *again]), child.apply(batch)
        )  # as of two readers of one stream shard
        sent += batch
        if number % 3 == 1:
            await asyncio.gather(count.take_turn(), other.take_turn())
        await check(world, sent, is_counted=number == 11)


async def test_roll_up_that_is_killed_counts_nothing(world: World) -> None:
    """So does one whose commit is lost. A batch behind a transaction that still runs is left for later."""
    pool, sent, count = world.shard_pools["a"], some(random.Random(7), 30), UsageCount(world.pools, {})
    running = await asyncpg.connect(pool.address.connection_string)
    await running.execute("BEGIN; SELECT pg_current_xact_id()")
    await writer_of(pool).apply(sent)
    await count.take_turn()
    await check(world, sent)
    assert await LogRetention(world.pools, at_once).take_turn() == {}
    await running.close()

    killed = await asyncpg.connect(pool.address.connection_string)
    await killed.execute("BEGIN")
    await killed.execute(QUERIES["lock_usage"])
    await killed.fetchval(QUERIES["roll_up_usage"], 100)
    waiting = asyncio.create_task(count.take_turn())
    await waiters(killed)
    killed.terminate()
    await waiting
    await check(world, sent, is_counted=True)
    assert await LogRetention(world.pools, at_once).take_turn() == {"a": 30}
    await check(world, sent)


async def test_usage_counts_a_moved_tenant_once(world: World) -> None:
    chance, sent, count = random.Random(8), list[Operation](), UsageCount(world.pools, {})
    for source, target in (("a", "b"), ("b", "a"), ("a", "b")):
        batch = some(chance, 30)
        await writer_of(world.shard_pools[source]).apply(batch)
        sent += batch
        if source == "b":
            await count.take_turn()
        await world.move(source, target)
        await check(world, sent)
    assert await clean_up(world.pools, world.commits, TENANT_ID, "a", "b")
    for _ in range(2):  # as after a kill
        await check(world, sent)
        await check(world, sent, shards="b")  # the other one may go
        await count.take_turn()
        await carry_usage(world.shard_pools["a"], world.shard_pools["b"], *TENANT)


async def test_turn_adds_time_samples_once_a_day_and_forgets(world: World) -> None:
    pool, time = world.shard_pools["a"], ShardTime()
    await fetch(pool, OLD)
    await writer_of(pool).apply([operation("create", str(number), {"text": "x" * 100}) for number in range(7)])
    for _ in range(2):
        time.note([Demand.of([operation("create", "1", {})])], 0.25)
        await UsageCount(world.pools, {"a": time}).take_turn()
        await fetch(pool, "DELETE FROM resources")
    old, timed, stored = await fetch(pool, "SELECT * FROM usage ORDER BY business_id, resource_type")
    assert (old["business_id"], timed["took_ms"], timed["stored_rows"]) == ("b", 500.0, None)
    assert (stored["resource_type"], stored["stored_rows"], stored["stored_bytes"] > 700) == ("patient", 7, True)


async def test_command_sums_the_shards_and_names_the_silent_one(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await writer_of(world.shard_pools["a"]).apply([operation("create", "r1", {}), operation("update", "r1", {})])
    await world.move()
    await UsageCount(world.pools, {}).take_turn()
    await writer_of(world.shard_pools["b"]).apply([operation("update", "r1", {}, timestamp="2026-03-01T12:00:01Z")])
    addresses = [pool.address for pool in world.shard_pools.values()]
    request = UsageRequest(BEGIN, END, "day", "clinic")
    assert await show(show_usage(settings_of(tmp_path, *addresses), request), as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["usage"]
    assert (row["businessId"], row["resourceType"], row["operations"], row["storedRows"]) == ("clinic", "patient", 3, 1)
    silent = ShardAddress("silent", "postgresql://nobody@127.0.0.1:1/none")
    assert await show(show_usage(settings_of(tmp_path, *addresses, silent), request, as_csv=True), as_json=False) == 1
    out, err = capsys.readouterr()
    assert [line.split(",")[4] for line in out.splitlines()] == ["operations", "3"]
    assert "silent" in err
