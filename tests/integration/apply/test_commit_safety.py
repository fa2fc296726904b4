from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.postgres.databases import copy_shard, database_of, execute
from support.postgres.standby_pair import (
    Pair,
    eventually,
    require_postgres,
    restored,
    running_pair,
    sender_count_is,
    start_pair,
)
from support.postgres.tenant_cases import add_tenant, fetch, operation, writer_of

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.vocabulary import CommitSafety

pytestmark = pytest.mark.slow


SHARD_ID = "shard-1"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    yield from running_pair()


@pytest.fixture
async def pair(_pair: Pair) -> AsyncIterator[Pair]:
    async for pair in restored(_pair):
        yield pair


class CountingPools(Pools):
    look_count = 0

    def by_shard_id(self) -> Mapping[str, ShardPool]:
        self.look_count += 1
        return super().by_shard_id()


class Shard:
    def __init__(self, pools: CountingPools, pool: ShardPool, tasks: asyncio.TaskGroup) -> None:
        self.pools = pools
        self.pool = pool
        self.commits = ReplicationWaiter(pools)
        self._tasks = tasks

    async def applied(self, count: int = 1) -> list[Operation]:
        operations = [operation("create", f"r{next(_numbers)}", "{}") for _ in range(count)]
        outcomes = await writer_of(self.pool).apply(operations)
        assert {outcome.disposition for outcome in outcomes} == {"applied"}
        return operations

    async def are_safe(self, operations: Sequence[Operation]) -> None:
        async with asyncio.timeout(60):
            await self.commits.wait_for_operations(SHARD_ID, operations)

    def wait_for(self, operations: Sequence[Operation]) -> asyncio.Task[None]:
        return self._tasks.create_task(self.are_safe(operations))

    async def looks_in_vain(self, *tasks: asyncio.Task[None]) -> None:
        seen = self.pools.look_count
        await eventually(lambda: self.pools.look_count >= seen + 3)
        assert [task for task in tasks if task.done()] == []

    async def note_server(self) -> Server:
        async with self.pool.transaction() as connection:
            return await note_server(connection)

    @property
    def safety(self) -> list[str]:
        name = "simplu_shard_commit_safety"
        return [one for one in CommitSafety if REGISTRY.get_sample_value(name, {"shard_id": SHARD_ID, "safety": one})]


@asynccontextmanager
async def open_shard(address: ShardAddress) -> AsyncIterator[Shard]:
    async with CountingPools(size=4) as pools, asyncio.TaskGroup() as tasks:
        yield Shard(pools, pools.ensure_pool(address), tasks)


@pytest.fixture
async def shard(pair: Pair) -> AsyncIterator[Shard]:
    async with open_shard(await copy_shard(pair.primary)) as shard:
        await add_tenant(shard.pool)
        yield shard


@asynccontextmanager
async def without_wal_writer(pair: Pair) -> AsyncIterator[None]:
    connection = await asyncpg.connect(pair.primary.url)
    try:
        pid = await connection.fetchval("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    finally:
        await connection.close()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow(0.3)
async def test_commits_are_on_disk_where_none_waits_for_it_by_default(shard: Shard, pair: Pair) -> None:
    database = database_of(shard.pool.address)
    await execute(pair.primary.url, f"ALTER DATABASE {database} SET synchronous_commit = off")
    async with without_wal_writer(pair), open_shard(shard.pool.address) as unhurried:
        at_end = "SELECT pg_current_wal_insert_lsn()::text AS position"
        flushed = "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn AS is_flushed"
        operations = await unhurried.applied()
        (end,) = await fetch(unhurried.pool, at_end)
        assert await fetch(unhurried.pool, flushed, end["position"]) == [{"is_flushed": False}]
        await unhurried.are_safe(operations)
        assert await fetch(unhurried.pool, flushed, end["position"]) == [{"is_flushed": True}]
        assert unhurried.safety == ["replicated"]

        async with unhurried.pool.transaction() as connection:
            await note_server(connection)
            assert await connection.fetchval("SHOW synchronous_commit") == "local"
        assert await fetch(unhurried.pool, "SHOW synchronous_commit") == [{"synchronous_commit": "off"}]


# With a standby


async def test_commit_is_safe_once_the_standby_has_it(shard: Shard, pair: Pair) -> None:
    await shard.are_safe(await shard.applied())
    assert shard.safety == ["replicated"]
    pair.standby.suspend()
    tasks = [shard.wait_for(await shard.applied()) for _ in range(3)]
    await shard.looks_in_vain(*tasks)
    pair.standby.resume()
    await asyncio.gather(*tasks)
    assert shard.safety == ["replicated"]


@pytest.mark.slow(0.3)
async def test_named_standby_confirms_commits_that_do_not_wait(shard: Shard, pair: Pair) -> None:
    database = database_of(shard.pool.address)
    # The warning that a wait was cut short is to come whatever the database sends by default.
    for setting in ("synchronous_commit = local", "client_min_messages = error"):
        await execute(pair.primary.url, f"ALTER DATABASE {database} SET {setting}")
    await pair.standby.make_synchronous()
    try:
        async with open_shard(shard.pool.address) as named:
            await named.are_safe(await named.applied())
            assert named.safety == ["synchronous"]
            pair.standby.suspend()
            operations = await named.applied()
            with pytest.raises(RetryableError, match=r"shard-1 did not confirm a commit within 0\.5 s"):
                await ReplicationWaiter(named.pools, write_s=0.5).wait_for_operations(SHARD_ID, operations)

            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

            async def is_waited() -> bool:
                return bool(await fetch(named.pool, waiting))

            async def is_not_waited() -> bool:
                return not await is_waited()

            assert await poll_until(is_not_waited, within_s=20)  # the standby hangs: it would last for ever
            task = asyncio.ensure_future(named.are_safe(operations))
            assert await poll_until(is_waited, within_s=20)
            await fetch(named.pool, f"SELECT pg_cancel_backend(pid) FROM ({waiting}) AS waiting")
            with pytest.raises(RetryableError, match="the wait was cancelled"):
                await task

            pair.standby.resume()
            await named.are_safe(operations)
    finally:
        pair.standby.resume()
        await pair.configure("synchronous_standby_names", None)


@pytest.mark.slow(0.4)
async def test_receivers_that_cannot_be_promoted_are_not_waited_for(shard: Shard, pair: Pair) -> None:
    copies = pair.primary._folder / "copies"
    copies.mkdir()
    copies.chmod(0o777)
    address = ["-h", "127.0.0.1", "-p", str(pair.primary.port), "-U", "postgres"]
    await execute(pair.primary.url, "CREATE PUBLICATION news")
    await execute(pair.primary.url, "SELECT pg_create_logical_replication_slot('far', 'pgoutput')")
    keeper = pair.primary._spawn("pg_receivewal", *address, "-D", str(copies))
    options = ["-S", "far", "-d", "safe", "-f", "-", "--start", "-o", "proto_version=1", "-o", "publication_names=news"]
    reader = pair.primary._spawn("pg_recvlogical", *address, *options)
    try:
        await sender_count_is(pair, 3)
        with capture_logs() as logs:
            await shard.are_safe(await shard.applied())
        (told,) = logs
        assert (told["safety"], len(told["standbys"])) == ("replicated", 1)
    finally:
        for process in (keeper, reader):
            process.kill()
            process.wait()
        await sender_count_is(pair, 1)
        await execute(pair.primary.url, "SELECT pg_drop_replication_slot('far'); DROP PUBLICATION news")


# A failover between the commit and the look at it


@pytest.mark.slow(2)
async def test_promoted_standby_without_the_last_commits_is_found_out() -> None:
    require_postgres()
    with ProcessGroup() as group:
        pair = await start_pair(group)
        address = await copy_shard(pair.primary)
        async with open_shard(address) as shard:
            await add_tenant(shard.pool)
            kept, server = await shard.applied(), await shard.note_server()
            await shard.are_safe(kept)
            await pair.standby.fall_behind()
            lost = await shard.applied()
            await pair.primary.kill()
            await pair.standby.promote()
            there = pair.standby.url_of(database_of(address))
            shard.pool.switch_to(ShardAddress(SHARD_ID, there))

            with pytest.raises(RetryableError, match="lost its last commits"):
                await shard.are_safe(lost)
            with pytest.raises(RetryableError, match="has another server now"):
                await shard.commits.wait_for_transaction(SHARD_ID, server)
            await shard.are_safe(kept)
            assert shard.safety == ["volatile"]
