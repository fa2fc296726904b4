"""Pools share few connections, and every caller gets a turn; each encrypts and checks papers as its string says."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import asyncpg
import msgspec
import pytest
from support.postgres.databases import ShardMaker, database_of
from support.postgres.pool_trouble import AT_ONCE_S, UNHURRIED
from support.postgres.pooler import running_pooler
from support.postgres.shard_line import ShardLine
from support.requires import required_program

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import NO_TLS
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import ShardUnavailableError


@pytest.fixture
async def empty(make_shard: ShardMaker) -> ShardAddress:
    return await make_shard(is_empty=True)


def shards(pools: Pools, address: ShardAddress, count: int) -> list[ShardPool]:
    return [pools.ensure_pool(ShardAddress(f"shard-{n}", address.connection_string)) for n in range(count)]


async def use(pool: ShardPool, seconds: float = 0.0) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)


@contextlib.asynccontextmanager
async def watched(address: ShardAddress) -> AsyncIterator[list[int]]:
    counts: list[int] = []
    is_over = False

    async def watch() -> None:
        observer = await asyncpg.connect(address.connection_string)
        try:
            while not is_over:
                counts.append(
                    await observer.fetchval(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
        finally:
            await observer.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        try:
            yield counts
        finally:
            is_over = True


@pytest.mark.slow(2)
@pytest.mark.parametrize(("shard_count", "max_connections"), [(60, 1), (150, 15)])
async def test_pools_serve_every_shard_when_there_are_few_connections(
    empty: ShardAddress, shard_count: int, max_connections: int
) -> None:
    patient = ShardTimeouts(acquire_s=60.0)
    async with watched(empty) as counts, Pools(size=4, max_connections=max_connections, timeouts=patient) as pools:
        for _ in range(2):
            async with asyncio.TaskGroup() as tasks:
                for pool in shards(pools, empty, shard_count):
                    for _ in range(3):
                        tasks.create_task(use(pool))
            opened = [pool.counts()["open"] for pool in pools.by_shard_id().values()]
            assert sum(opened) <= max_connections
    # One that was closed is gone for us before it is for the server.
    assert max(counts) <= max_connections + max(10, max_connections // 2)


@pytest.mark.slow(2)
async def test_pools_give_the_places_of_a_shard_that_hangs_to_others(empty: ShardAddress) -> None:
    timeouts = msgspec.structs.replace(UNHURRIED, reply_s=1.0, cancel_s=0.5)
    async with ShardLine(empty) as line, Pools(size=2, max_connections=2, timeouts=timeouts) as pools:
        hanging = pools.ensure_pool(line.address)
        (other,) = shards(pools, empty, 1)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(use(hanging, 0.05))
        with line.blackhole():
            ended_count = 0

            async def hang() -> None:
                nonlocal ended_count
                with contextlib.suppress(ShardUnavailableError):
                    await use(hanging)
                ended_count += 1

            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(hang()) for _ in range(20)]
                await asyncio.sleep(0)
                started = time.monotonic()
                await use(other)
                assert time.monotonic() - started < AT_ONCE_S
                assert ended_count == 2  # not behind all the others that wait for the shard
                for task in waiting:
                    task.cancel()


GUEST = "visitor"
TLS = {"client_tls_key_file": "server.key", "client_tls_cert_file": "server.crt", "client_tls_ca_file": "server.crt"}
OFFERED = {"auth_type": "any", "client_tls_sslmode": "allow", **TLS}
IMPOSSIBLE = {"auth_type": "any"}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("papers")
    program = required_program("openssl", how="apt-get install openssl")
    for name in ("server", "stranger"):  # each its own authority, made out to localhost
        arguments = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=DNS:localhost"
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run([program, *arguments.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder


def pool_of(address: ShardAddress, option: str = "", *, place: str, user: str = GUEST) -> ShardPool:
    url = f"postgresql://{user}@{place}/{database_of(address)}?{option}".rstrip("?")
    return ShardPool(ShardAddress(address.shard_id, url).validate(()), size=1, timeouts=UNHURRIED)


PoolMaker = Callable[..., ShardPool]  # (option, *, host)


@pytest.fixture
def guarded(
    make_shard: ShardMaker, postgres_server: PostgresServer, papers: Path
) -> Callable[[Mapping[str, object]], contextlib.AbstractAsyncContextManager[PoolMaker]]:
    files = {name: (papers / name).read_bytes() for name in ("server.key", "server.crt")}

    @contextlib.asynccontextmanager
    async def run(settings: Mapping[str, object]) -> AsyncIterator[PoolMaker]:
        address = await make_shard()
        users = f'"{GUEST}" ""\n'.encode()
        async with running_pooler(postgres_server, settings, {**files, "users": users}) as port:
            yield lambda option="", *, host=HOST: pool_of(address, option, place=f"{host}:{port}")

    return run


Guard = Callable[[Mapping[str, object]], contextlib.AbstractAsyncContextManager[PoolMaker]]


async def is_encrypted(pool: ShardPool) -> bool:
    try:
        async with pool.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
            return connection._transport.get_extra_info("ssl_object") is not None  # type: ignore[attr-defined]
    finally:
        await pool.close()


async def unavailable(pool: ShardPool) -> str:
    with pytest.raises(ShardUnavailableError) as caught:
        await is_encrypted(pool)
    return str(caught.value).rpartition(": ")[2]


@pytest.mark.slow
async def test_pool_encrypts_as_its_string_says(guarded: Guard) -> None:
    expected = {"": True, "sslmode=disable": False, "sslmode=prefer": True, "sslmode=require": True}
    async with guarded(OFFERED) as make_pool:
        assert {option: await is_encrypted(make_pool(option)) for option in expected} == expected


@pytest.mark.slow
async def test_pool_is_unavailable_when_it_must_encrypt_and_the_server_cannot(guarded: Guard) -> None:
    async with guarded(IMPOSSIBLE) as make_pool:
        assert not await is_encrypted(make_pool())
        assert not await is_encrypted(make_pool("sslmode=prefer"))
        assert await unavailable(make_pool("sslmode=require")) == NO_TLS


@pytest.mark.slow
async def test_pool_talks_only_to_a_server_with_the_right_papers(guarded: Guard, papers: Path) -> None:
    async with guarded(OFFERED) as make_pool:
        for mode, authority, host, is_good in [
            ("verify-ca", "server", HOST, True),
            ("verify-ca", "stranger", HOST, False),
            ("verify-full", "server", "localhost", True),
            ("verify-full", "server", HOST, False),
            ("require", "stranger", "localhost", False),  # as for libpq: an authority that is named is asked
        ]:
            pool = make_pool(f"sslmode={mode}&sslrootcert={papers / authority}.crt", host=host)
            if is_good:
                assert await is_encrypted(pool)
            else:
                assert (await unavailable(pool)).startswith("expected a certificate ")
