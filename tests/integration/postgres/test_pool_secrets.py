from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from support.postgres.databases import ShardMaker, database_of
from support.postgres.pool_trouble import UNHURRIED
from support.postgres.pooler import running_pooler
from support.requires import required_program

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import NO_TLS
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow


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


async def test_pool_encrypts_as_its_string_says(guarded: Guard) -> None:
    expected = {"": True, "sslmode=disable": False, "sslmode=prefer": True, "sslmode=require": True}
    async with guarded(OFFERED) as make_pool:
        assert {option: await is_encrypted(make_pool(option)) for option in expected} == expected


async def test_pool_is_unavailable_when_it_must_encrypt_and_the_server_cannot(guarded: Guard) -> None:
    async with guarded(IMPOSSIBLE) as make_pool:
        assert not await is_encrypted(make_pool())
        assert not await is_encrypted(make_pool("sslmode=prefer"))
        assert await unavailable(make_pool("sslmode=require")) == NO_TLS


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
