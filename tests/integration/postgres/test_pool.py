from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import traceback
from pathlib import Path

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.postgres.databases import QUICK, ShardMaker, copy_shard, database_of, execute
from support.postgres.plain_errors import PlainErrorsLine
from support.postgres.pool_trouble import (
    AT_ONCE_S,
    PATIENT_S,
    UNHURRIED,
    ask,
    forget_probes,
    nothing_is_open,
    unavailable,
    within,
)
from support.postgres.shard_line import TOO_MANY, ShardLine
from support.postgres.trouble import nobody_is_left

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_worker import instruments
from simplu_worker.config.loading import draft_settings, prepare_environment
from simplu_worker.errors import RetryableError
from simplu_worker.network_errors import NO_ANSWER, NO_SERVER
from simplu_worker.shards.postgres import pool as pool_module
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import StatementFailedError, ValueRefusedError, state_words
from simplu_worker.shards.postgres.pool import REFUSAL_COUNTS_S, Pools, ShardPool
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.telemetry.log import MASK, scrub_text
from simplu_worker.timing.circuit_breaker import FAILURES_MAX

PASSWORD = "swordfish-7/@:x"
ENCODED_PASSWORD = "swordfish-7%2F%40%3Ax"


async def test_variable_that_asyncpg_takes_is_named_or_harmless(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, found = await make_shard(), {}
    source = inspect.getsource(asyncpg.connect_utils)
    names = re.findall(r"""(?:getenv|environ\.get)\(\s*["'](PG\w+)""", source)
    for name in names:
        with monkeypatch.context() as patch:
            patch.setenv(name, "/nowhere/bogus")
            settings, problems = draft_settings(for_run=False)
            prepare_environment(settings)
            async with Pools(size=1) as pools:
                assert problems or await ask(pools.ensure_pool(address)) == 1
            if problems:
                found[name] = problems[0]
    assert [text for name, text in found.items() if not text.startswith(f"{name}: expected ")] == []
    assert {"PGSSLMODE", "PGSSLCERT"} <= found.keys() < set(names)


async def test_transaction_leaves_nothing_when_its_user_fails(shard: ShardPool) -> None:
    await ask(shard, "CREATE TABLE numbers (n int)")

    async def insert(*, then: str = "SELECT 1", error: Exception | None = None) -> None:
        async with shard.transaction() as connection:
            await connection.execute("INSERT INTO numbers VALUES (1)")
            await connection.execute(then)
            if error is not None:
                raise error

    for error in (RetryableError("later"), RuntimeError("bug")):
        with pytest.raises(type(error)):
            await insert(error=error)
    with pytest.raises(ValueRefusedError, match=r"\(22012\)"):
        await insert(then="SELECT 1 / 0")

    assert await ask(shard, "SELECT count(*) FROM numbers") == 0
    assert await nobody_is_left(shard.address, "state LIKE 'idle in transaction%'")


@pytest.mark.slow
async def test_pool_ends_the_connection_when_its_use_is_cancelled(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=2)
    await ask(pool, "CREATE TABLE pairs (n int)")

    async def insert_pair(number: int) -> None:
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO pairs VALUES ($1)", number)
            await connection.execute("INSERT INTO pairs VALUES ($1)", number)

    for number in range(60):
        async with asyncio.TaskGroup() as tasks:
            inserting = tasks.create_task(insert_pair(number))
            for _ in range(number % 30):
                await asyncio.sleep(0)
                if number >= 30:
                    await asyncio.sleep(0.0005)
            inserting.cancel()
        assert await ask(pool, "SELECT pg_current_xact_id_if_assigned() IS NULL") is True

    assert await ask(pool, "SELECT count(*) FROM (SELECT n FROM pairs GROUP BY n HAVING count(*) <> 2) AS odd") == 0
    assert await nobody_is_left(address, "state LIKE 'idle in transaction%'")
    await pool.close()


async def test_pool_follows_its_address_when_that_changes(make_shard: ShardMaker) -> None:
    old, new = await make_shard(), await make_shard()
    async with ShardLine(new) as line, Pools(size=2) as pools:
        pool = pools.ensure_pool(old)
        async with pool.connection() as in_use:
            pool.switch_to(line.address)
            assert pools.ensure_pool(old) is pool
            assert await ask(pool, "SELECT current_database()") == database_of(new)
            assert await in_use.fetchval("SELECT current_database()") == database_of(old)
        assert await ask(pool, "SELECT current_database()") == database_of(new)
        assert await nobody_is_left(old)
        assert f":{line.port}/" in pool.address.place


async def end_last_use(pool: ShardPool) -> None:
    async with pool.connection() as connection:
        pool.is_retired = True
        instruments.SHARD_HEALTHY.remove(pool.address.shard_id)
        await execute(pool.address.connection_string, f"SELECT pg_terminate_backend({connection.get_server_pid()})")
        await connection.fetchval("SELECT 1")


async def test_pool_says_that_it_is_healthy_again_when_it_is(make_shard: ShardMaker) -> None:
    address = await make_shard("shard-health")
    labels = {"shard_id": "shard-health"}
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(at_port(address, free_port()))
        with pytest.raises(ShardUnavailableError):
            await ask(pool)
        assert (pool.is_healthy, pool.last_error) == (False, NO_SERVER)
        assert REGISTRY.get_sample_value("simplu_shard_healthy", labels) == 0

        pool.switch_to(address)
        await ask(pool)

        assert (pool.is_healthy, pool.last_error) == (True, None)
        assert REGISTRY.get_sample_value("simplu_shard_healthy", labels) == 1
        with pytest.raises(RetryableError):
            await end_last_use(pool)
        assert REGISTRY.get_sample_value("simplu_shard_healthy", labels) is None


@pytest.mark.parametrize(
    ("trouble", "look_is_enough"),
    [
        ("CREATE TABLE refused ()", True),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$", False),
        ("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege'; END $$", False),
    ],
)
async def test_pool_is_not_healthy_again_by_a_read_when_a_write_was_refused(
    make_shard: ShardMaker, trouble: str, *, look_is_enough: bool
) -> None:
    async with PlainErrorsLine(await make_shard()) as line:
        pool = ShardPool(line.address, size=2)
        await _check_unhealthy_after_refusal(pool, trouble, look_is_enough=look_is_enough)


async def _check_unhealthy_after_refusal(pool: ShardPool, trouble: str, *, look_is_enough: bool) -> None:
    async def refused() -> None:
        async with pool.connection() as connection:
            await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(ShardUnavailableError):
            await ask(pool, trouble)

    with capture_logs() as logs:
        await refused()
        pool._lender.expire()
        assert await ask(pool) == 1
        async with pool.fresh_connection() as connection:
            await connection.fetchval("SELECT 1")
        assert (pool.is_healthy, pool.last_error is None) == (False, False)
        await pool.probe()
        assert (pool.is_healthy, pool.last_error is None) == (look_is_enough, look_is_enough)
        async with pool.transaction() as connection:
            await connection.execute("SELECT 1")
        assert (pool.is_healthy, pool.last_error) == (True, None)
    assert [entry["event"] for entry in logs].count("shard.recovered") == 1

    await refused()
    assert pool._refused_at is not None
    pool._refused_at -= REFUSAL_COUNTS_S
    pool.record_writable()
    assert pool.is_healthy
    await pool.close()


def at_port(address: ShardAddress, port: int) -> ShardAddress:
    head, _, tail = address.connection_string.rpartition(":")
    return ShardAddress(address.shard_id, f"{head}:{port}/{tail.partition('/')[2]}")


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT '\\u0000'::jsonb", ValueRefusedError),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", StatementFailedError),
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", StatementFailedError),
        ("DO $$ BEGIN RAISE SQLSTATE '57014'; END $$", StatementFailedError),
        ("DO $$ BEGIN PERFORM no_such_function(); END $$", StatementFailedError),
        ("DO $$ BEGIN RAISE 'no'; END $$", StatementFailedError),
        ("SELECT * FROM no_such_table", ShardUnavailableError),
        ("SELECT pg_terminate_backend(pg_backend_pid())", ShardUnavailableError),
    ],
)
async def test_pool_translates_errors_of_the_server(shard: ShardPool, statement: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        async with shard.transaction() as connection:
            await connection.execute(statement)

    assert type(caught.value) is error
    assert await ask(shard) == 1


BAD_PLACES = ["127.0.0.1:1/d?sslmode=verify-full&sslrootcert=/nowhere/root.crt", f"{'a' * 70}.invalid/d", "\u2100/d"]


@pytest.mark.parametrize("place", BAD_PLACES)
async def test_pool_is_unavailable_when_its_address_is_no_good(place: str) -> None:
    pool = ShardPool(ShardAddress("shard-9", f"postgresql://u:{ENCODED_PASSWORD}@{place}"), size=1, timeouts=QUICK)

    with pytest.raises(ShardUnavailableError, match="shard shard-9") as caught:
        await ask(pool)

    shown = "".join([*traceback.format_exception(caught.value), str(pool.last_error)])
    assert "swordfish" not in shown
    await pool.close()


def put_first(path: Path, line: str) -> None:
    path.write_text(line + path.read_text())


async def test_pool_shows_no_password_when_the_server_refuses_it(breakable_server: PostgresServer) -> None:
    address = await copy_shard(breakable_server)
    superuser = await asyncpg.connect(address.connection_string)
    await superuser.execute("CREATE ROLE guest LOGIN PASSWORD 'another'")
    put_first(Path(await superuser.fetchval("SHOW hba_file")), "host all guest all scram-sha-256\n")
    await superuser.execute("SELECT pg_reload_conf()")
    await superuser.close()
    place = f"{HOST}:{breakable_server.port}"
    expected = {
        f"postgresql://guest:{ENCODED_PASSWORD}@{place}/{database_of(address)}": state_words("28P01"),
        f"postgresql://postgres:{ENCODED_PASSWORD}@{place}/nowhere": state_words("3D000"),
    }
    for url, error in expected.items():
        pool = ShardPool(ShardAddress("shard-1", url), size=1)
        with pytest.raises(ShardUnavailableError) as caught:
            await ask(pool)
        await pool.close()

        assert str(caught.value) == f"shard shard-1 at {place}/{url.rpartition('/')[2]}: {error}"
        shown = "".join([*traceback.format_exception(caught.value), repr(pool), repr(pool.address)])
        assert "swordfish" not in shown
    assert scrub_text(f"x {PASSWORD} y {ENCODED_PASSWORD}") == f"x {MASK} y {MASK}"
    assert REGISTRY.get_sample_value("simplu_shard_errors_total", {"shard_id": "shard-1", "kind": "broken"})


@pytest.fixture
def no_probe_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PROBE_INTERVAL_S", 1000.0)


async def test_pool_fails_fast_when_the_way_to_its_shard_does_not_work(
    no_probe_is_due: None, line: ShardLine, pool: ShardPool
) -> None:
    async with line.refuse_connections():
        assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)
        for _ in range(FAILURES_MAX):
            assert await unavailable(pool) == NO_SERVER
    connection_count = line.connection_count

    assert await unavailable(pool) == NO_SERVER
    assert line.connection_count == connection_count
    await pool.probe()
    assert (await ask(pool), pool.is_healthy, pool.last_error) == (1, True, None)


async def test_pool_uses_what_it_has_when_the_server_is_full(line: ShardLine, pool: ShardPool) -> None:
    with line.saying(TOO_MANY):
        async with pool.connection():
            for _ in range(FAILURES_MAX + 1):
                assert await unavailable(pool) == state_words("53300")
            with pytest.raises(ShardUnavailableError, match="53300"):
                await pool.probe()  # there is none to ask on
            assert pool.is_healthy  # by the one it has
        forget_probes(pool)

        await pool.probe()

        assert (await ask(pool), pool.is_healthy, pool.counts()["open"]) == (1, True, 1)


@pytest.mark.slow(1)
async def test_pool_is_used_again_within_two_seconds_when_a_frozen_server_goes_on(
    breakable_server: PostgresServer, no_probe_is_due: None
) -> None:
    timeouts = msgspec.structs.replace(UNHURRIED, probe_s=0.5)
    pool = ShardPool(await copy_shard(breakable_server), size=2, timeouts=timeouts)
    await ask(pool)
    breakable_server.suspend()

    async def stuck() -> None:
        with contextlib.suppress(ShardUnavailableError):
            await ask(pool)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(stuck())
        for _ in range(FAILURES_MAX):
            forget_probes(pool)
            with pytest.raises(ShardUnavailableError, match=NO_ANSWER):
                await pool.probe()
        with within(0, AT_ONCE_S):
            assert await unavailable(pool) == NO_ANSWER
        breakable_server.resume()

        async def is_back() -> bool:
            forget_probes(pool)
            with contextlib.suppress(ShardUnavailableError):
                await pool.probe()
                return True
            return False

        with within(0, AT_ONCE_S):
            assert await poll_until(is_back, within_s=PATIENT_S)
            assert await ask(pool) == 1
    await pool.close()
