"""The router for readers, on real shards: no empty answer, none of another tenant, none older than was asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from simplu_router import (
    Citrus,
    MapFile,
    NotSeenYetError,
    Router,
    RouterError,
    ShardUnavailableError,
    TenantUnknownError,
)
from support.citrus.cases import silent
from support.clients.readers import READER, drop_reader, make_reader
from support.moves.failpoints import POINTS, set_failpoint
from support.moves.world import ROWS, TENANT_ID, World, open_world
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.standby_pair import Pair, running_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch
from support.shard_map_world import write_map

from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool

pytestmark = pytest.mark.slow

COUNT = "SELECT count(*) FROM resources WHERE id = $1"
ROW_COUNT = 300


@dataclass
class Readers:
    world: World
    path: Path
    router: Router

    @property
    def addresses(self) -> list[ShardAddress]:
        return [pool.address for pool in self.world.shard_pools.values()]

    async def count(self, **asked: Any) -> int:
        async with self.router.connection(*TENANT, **asked) as connection:
            count: int = await connection.fetchval(COUNT, TENANT_ID)
            return count


@pytest.fixture
async def readers(make_shard: ShardMaker, tmp_path: Path) -> AsyncIterator[Readers]:
    """Give two shards, of which the map names "a" for the tenant, and a router that logs in as a reader."""
    path = tmp_path / "map.json"
    async with open_world(make_shard) as world:
        pools = list(world.shard_pools.values())
        await fetch(pools[0], ROWS, TENANT_ID, ROW_COUNT)
        write_map(path, *(pool.address for pool in pools), pins={TENANT_ID: "a"})
        await make_reader(*pools)
        async with Router(MapFile(path), user=READER) as router:
            yield Readers(world, path, router)
        await drop_reader(pools)


async def test_router_reads_all_rows_at_each_point_of_a_move(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    for point in POINTS:

        async def read(_: Any, point: str = point) -> None:
            async with Router(MapFile(readers.path), user=READER) as fresh, fresh.connection(*TENANT) as connection:
                counts[point] = await connection.fetchval(COUNT, TENANT_ID)
            assert await readers.count() == ROW_COUNT

        set_failpoint(point, read, monkeypatch.setattr)
    await readers.world.move("a", "b")
    await readers.world.move("b", "a")

    assert counts == dict.fromkeys(counts, ROW_COUNT)
    assert {"after _fence", "after _finish_copy", "after _commit", "after _activate"} <= counts.keys()


async def test_router_reads_every_write_while_the_tenant_moves(readers: Readers) -> None:
    has_moved = asyncio.Event()

    async def write_and_read() -> int:
        applied, seen = 0, None
        for number in itertools.count(1):
            if has_moved.is_set():
                return applied
            case = readers.world.case("ab"[number % 2])
            one = case.operation("update", "1", {"n": number})
            (outcome,) = await case.apply(one)
            if outcome.disposition is Disposition.APPLIED:
                applied, seen = number, one.request_id
            async with readers.router.connection(*TENANT, seen=seen) as connection:
                rows = await connection.fetch(
                    "SELECT \"resourceId\" AS id, (data ->> 'n')::int AS n FROM resources WHERE id = $1", TENANT_ID
                )
            values = {row["id"]: row["n"] for row in rows}
            assert (len(values), values["1"]) == (ROW_COUNT, applied or 1)
        return applied

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(write_and_read())
        for source, target in ("ab", "ba", "ab"):
            await readers.world.move(source, target)
        has_moved.set()
    assert reading.result() > 3


async def test_router_finds_a_tenant_that_an_earlier_map_placed(readers: Readers) -> None:
    write_map(readers.path, *readers.addresses, pins={TENANT_ID: "b"})
    assert await readers.count() == ROW_COUNT


async def test_router_has_no_answer_while_a_shard_is_silent(readers: Readers) -> None:
    with pytest.raises(TenantUnknownError, match="nobody-here"):
        async with readers.router.connection("nobody", "here"):
            pass
    write_map(readers.path, *readers.addresses, silent("c"))
    with pytest.raises(ShardUnavailableError, match="Shard c"):
        async with readers.router.connection("nobody", "here"):
            pass
    assert await readers.count() == ROW_COUNT


async def test_router_keeps_tenants_of_one_key_apart(readers: Readers) -> None:
    pool = readers.world.shard_pools["a"]
    await add_tenant(pool, ("other", "main"))
    await fetch(pool, ROWS, "other-main", 5)
    async with readers.router.connection(*TENANT) as connection:
        assert await connection.fetchval("SELECT count(*) FROM resources") == ROW_COUNT
        assert await connection.fetchval(COUNT, "other-main") == 0
    await add_tenant(pool, ("one-two", "three"))
    with pytest.raises(TenantUnknownError):
        async with readers.router.connection("one", "two-three"):
            pass


async def test_router_refuses_what_it_cannot_promise(readers: Readers) -> None:
    with pytest.raises(NotSeenYetError, match="never-sent"):
        await readers.count(seen="never-sent")
    with pytest.raises(ValueError, match="name in `seen`"):
        await readers.count(replica=True)
    await fetch(readers.world.shard_pools["a"], "UPDATE tenants SET state = 'fenced'")
    with pytest.raises(ShardUnavailableError, match="is being restored"):
        await readers.count()
    async with Router(MapFile(readers.path)) as router:
        with pytest.raises(RouterError, match="sees all tenants"):
            async with router.connection(*TENANT):
                pass


async def test_router_asks_citrus(readers: Readers) -> None:
    async def make_shard() -> tuple[str, str]:
        raise AssertionError("no shard is made")

    local = CitrusServer(api_key="key", make_shard=make_shard)
    for shard in readers.addresses:
        local.add_shard(shard.shard_id, shard.connection_string)
    local.registry.place(TENANT_ID, local.registry.shards["b"])
    async with local.serve() as url, Router(Citrus(url, api_key="key"), user=READER) as router:
        async with router.connection(*TENANT) as connection:
            assert await connection.fetchval(COUNT, TENANT_ID) == ROW_COUNT
        async with Router(Citrus(url, api_key="wrong"), user=READER) as refused:
            with pytest.raises(RouterError, match="check the API key"):
                async with refused.connection(*TENANT):
                    pass


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from running_pair()


async def test_router_reads_standbys_and_follows_a_promotion(pair: Pair, tmp_path: Path) -> None:
    address = await copy_shard(pair.primary, "a")
    standby_url = address.connection_string.replace(f":{pair.primary.port}/", f":{pair.standby.port}/")
    write_map(tmp_path / "map.json", address, replicas={"a": standby_url})
    pool = ShardPool(address, size=2)
    case = TenantCase(pool, TENANT)
    await add_tenant(pool)
    await make_reader(pool)
    first, second = (case.operation("create", name, {}) for name in ("r1", "r2"))
    await case.apply(first)
    await pair.standby.catch_up()
    standby = ShardPool(ShardAddress("a", standby_url), size=1)

    async def read(seen: str) -> tuple[bool, int]:
        async with router.connection(*TENANT, replica=True, seen=seen) as connection:
            count = await connection.fetchval(COUNT, TENANT_ID)
            return await connection.fetchval("SELECT pg_is_in_recovery()"), count

    async with Router(MapFile(tmp_path / "map.json"), user=READER) as router:
        assert await read(first.request_id) == (True, 1)
        await fetch(standby, "SELECT pg_wal_replay_pause()")
        await case.apply(second)
        assert await read(second.request_id) == (False, 2)
        assert await read(first.request_id) == (True, 1)
        await fetch(standby, "SELECT pg_wal_replay_resume()")
        await pair.standby.catch_up()
        await standby.close()
        await pool.close()
        await pair.primary.stop()
        await pair.standby.promote()
        async with router.connection(*TENANT, seen=second.request_id) as connection:
            assert await connection.fetchval(COUNT, TENANT_ID) == 2
