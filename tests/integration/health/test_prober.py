from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import asyncpg
import msgspec
import pytest
from support.postgres.databases import QUICK, ShardMaker, copy_shard, execute
from support.postgres.faults import frozen, killed, read_only, without_connections
from support.postgres.standby import StandbyServer, can_copy
from support.postgres.tenant_cases import add_tenant, fetch
from support.postgres.trouble import nobody_is_left
from support.requires import require

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.health.assessment import Health, ShardObservation, ShardProbe, assess, role_of
from simplu_worker.shards.health.prober import (
    KNOWN_INTERVAL_S,
    Prober,
    inspect_shard,
    probe_shard,
)
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION
from simplu_worker.vocabulary import ServerRole, ShardProblem, ShardState

pytestmark = pytest.mark.slow(0.7)

HURRIED = msgspec.structs.replace(QUICK, probe_s=2.0)
PATIENT = msgspec.structs.replace(DEFAULT_TIMEOUTS, acquire_s=QUICK.acquire_s, probe_s=20.0)
SOON_S = 20.0  # on a busy machine

Sees = Callable[[Health], bool]


@pytest.fixture
async def pools(make_shard: ShardMaker) -> AsyncIterator[Pools]:  # closed before its shards are given back
    async with Pools(size=2, timeouts=PATIENT) as pools:
        yield pools


@pytest.fixture
async def hurried_pools(make_shard: ShardMaker) -> AsyncIterator[Pools]:
    async with Pools(size=2, timeouts=HURRIED) as pools:
        yield pools


@contextlib.asynccontextmanager
async def looking(pools: Pools) -> AsyncIterator[HealthRegistry]:
    book = HealthRegistry()
    async with asyncio.TaskGroup() as tasks:
        prober = tasks.create_task(Prober(pools, book, ReplicationWaiter(pools)).run())
        yield book
        prober.cancel()
    for shard_id in list(book.by_shard_id):
        book.end(shard_id)


async def comes_to(book: HealthRegistry, shard_id: str, sees: Sees) -> Health:
    async def seen() -> bool:
        return sees(book.by_shard_id.get(shard_id, Health()))

    assert await poll_until(seen, within_s=SOON_S), book.by_shard_id.get(shard_id)
    return book.by_shard_id[shard_id]


async def well(pools: Pools, address: ShardAddress) -> ShardProbe:
    seen = await inspect_shard(pools.ensure_pool(address))
    assert isinstance(seen, ShardProbe), seen
    return seen


def is_(state: ShardState) -> Sees:
    return lambda health: health.state is state


async def test_look_tells_what_a_shard_is(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    await add_tenant(pools.ensure_pool(address))
    await add_tenant(pools.ensure_pool(address), ("gone", "main"), state="destroyed")
    probe = await well(pools, address)
    assert (probe.schema_version, probe.tenant_count, probe.refusal) == (SCHEMA_VERSION, 1, None)
    assert (role_of(probe), probe.standby_count, probe.lag_s) == ("primary", 0, None)
    assert probe.connections_used is not None
    assert probe.connections_used >= 1
    assert probe.connections_max == 97  # 100, of which 3 are for superusers
    assert probe.version_number >= 140000
    assert probe.server_version.startswith(str(probe.version_number // 10000))
    assert abs(probe.skew_s) < 5
    assert 0 < probe.response_s < PATIENT.probe_s
    assert not probe.is_cut_short
    assert await nobody_is_left(address, "state <> 'idle'")


async def test_look_tells_an_empty_shard_from_one_that_is_not_to_be_touched(
    pools: Pools, make_shard: ShardMaker
) -> None:
    empty, others = await make_shard("empty", is_empty=True), await make_shard("others", is_empty=True)
    await execute(others.connection_string, "CREATE TABLE theirs (id int)")
    wrong = ShardAddress("wrong", (await make_shard("right")).connection_string)
    probe = await well(pools, empty)
    assert (probe.schema_version, probe.tenant_count, assess(ShardObservation(probe=probe)).state) == (
        None,
        None,
        ShardState.HEALTHY,
    )
    probe = await well(pools, others)
    assert probe.refusal is not None
    assert "another program's tables" in probe.refusal
    assert assess(ShardObservation(probe=probe)).state is ShardState.LOST
    book = HealthRegistry()
    book.begin("wrong")
    book.note_probe("wrong", await inspect_shard(pools.ensure_pool(wrong)))
    health = book.by_shard_id["wrong"]
    assert health.state is ShardState.LOST
    assert health.problems == {ShardProblem.REFUSED}
    assert health.findings[0].detail.startswith("its connection string leads to the database of shard right")
    book.end("wrong")


async def test_look_says_what_it_has_seen_when_the_shard_is_slow(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = pools.ensure_pool(address)
    await fetch(pool, "SELECT 1")
    async with held_lock(address, "tenants"):
        probe = await probe_shard(pool, within_s=3.0)
    assert (probe.is_cut_short, probe.schema_version, probe.tenant_count) == (True, SCHEMA_VERSION, None)
    assert assess(ShardObservation(probe=probe)).problems == {ShardProblem.SLOW}
    assert (pool.is_healthy, pool.last_error) == (True, None)
    assert await nobody_is_left(address, "state <> 'idle'")


@contextlib.asynccontextmanager
async def held_lock(address: ShardAddress, table: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(address.connection_string)
    try:
        await connection.execute(f"BEGIN; LOCK TABLE {table}")
        yield
    finally:
        connection.terminate()


async def test_look_shows_how_far_a_standby_is_behind() -> None:
    with ProcessGroup() as group:
        programs = PostgresPrograms.find(group.directory)
        require("pg_basebackup", found=can_copy(programs.folder), how="install simplu-worker[local]")
        primary = PostgresServer(group, programs, database="fed")
        await primary.start()
        standby = StandbyServer(group, programs, primary, name="follower")
        await standby.start()
        await standby.wait_streaming()
        await execute(primary.url, "COMMENT ON DATABASE fed IS 'a commit to replay'")
        await standby.catch_up()
        async with Pools(size=1) as pools:
            roles: list[ServerRole] = []
            for shard_id, server in (("primary", primary), ("standby", standby)):
                probe = await well(pools, ShardAddress(shard_id, server.url))
                assert assess(ShardObservation(probe=probe)).problems <= {ShardProblem.READ_ONLY}
                roles.append(role_of(probe))
                assert probe.standby_count == (1 if server is primary else 0)
                assert (probe.replication is None) == (server is standby)
            assert roles == ["primary", "standby"]
            await standby.fall_behind()
            await execute(primary.url, "CREATE TABLE missed AS SELECT generate_series(1, 1000) AS number")
            probe = await well(pools, ShardAddress("standby", standby.url))
            assert probe.lag_s is not None
            assert probe.lag_s > 0
            assert (await well(pools, ShardAddress("primary", primary.url))).standby_count == 0


async def test_prober_looks_at_known_shards_that_no_operation_uses(pools: Pools, make_shard: ShardMaker) -> None:
    idle = await make_shard("idle-1")
    refused = ShardAddress("refused-1", "", refusal="host x is not in DATABASE_ALLOWED_HOSTS")
    known = [msgspec.structs.replace(idle, business_count=3, business_max=10), refused]
    now = 0.0
    book = HealthRegistry()
    async with asyncio.TaskGroup() as tasks:
        prober = Prober(pools, book, ReplicationWaiter(pools), known=lambda: known, clock=lambda: now)
        running = tasks.create_task(prober.run())
        await comes_to(book, "refused-1", is_(ShardState.LOST))
        assert book.by_shard_id["refused-1"].problems == {ShardProblem.REFUSED}
        now += 2.0
        await comes_to(book, "idle-1", is_(ShardState.HEALTHY))
        assert book.by_shard_id["idle-1"].observation.listed is known[0]
        known.remove(refused)
        now += KNOWN_INTERVAL_S

        async def is_forgotten() -> bool:
            return "refused-1" not in book.by_shard_id

        assert await poll_until(is_forgotten, within_s=SOON_S)
        running.cancel()
    assert list(pools.by_shard_id()) == ["idle-1"]
    book.end("idle-1")


@pytest.mark.parametrize("trouble", [killed, frozen, read_only, without_connections])
async def test_prober_sees_trouble_and_its_end_within_two_seconds(
    trouble: Callable[[PostgresServer], contextlib.AbstractAsyncContextManager[None]],
    hurried_pools: Pools,
    breakable_server: PostgresServer,
    make_shard: ShardMaker,
) -> None:
    pool = hurried_pools.ensure_pool(await copy_shard(breakable_server))
    other = hurried_pools.ensure_pool(await make_shard("shard-2"))
    async with looking(hurried_pools) as book:
        await comes_to(book, "shard-1", is_(ShardState.HEALTHY))
        async with trouble(breakable_server):
            await notice(pool)
            health = await comes_to(book, "shard-1", lambda health: health.takes_operations is False)
            assert health.problems == {ShardProblem.READ_ONLY if trouble is read_only else ShardProblem.NO_ANSWER}
            assert health_of(pool)[0] is False
            seen = await inspect_shard(other)
            assert isinstance(seen, ShardProbe)
            assert other.is_healthy
        ended = time.monotonic()
        await comes_to(book, "shard-1", is_(ShardState.HEALTHY))
        took_s = time.monotonic() - ended
    assert health_of(pool) == (True, None)
    assert took_s < 8.0  # 2 s, and a busy machine


def health_of(pool: ShardPool) -> tuple[bool, str | None]:
    return pool.is_healthy, pool.last_error


async def notice(pool: ShardPool) -> None:
    async def fails() -> bool:
        with contextlib.suppress(Exception):
            await pool.probe()
        return not pool.is_healthy

    assert await poll_until(fails, within_s=SOON_S)
