"""A pool encrypts, and checks the certificate of its server, as its string says."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
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
TLS = {"client_tls_key_file": "server.key", "client_tls_cert_file": "server.crt", "client_tls_ca_file": "authority.crt"}
OFFERED = {"auth_type": "any", "client_tls_sslmode": "allow", **TLS}
IMPOSSIBLE = {"auth_type": "any"}


@dataclass(frozen=True)
class Papers:
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def issue(self, name: str, *, issuer: str, subject: str, names: str | None = None) -> None:
        extensions = self.path(f"{name}.ext")
        extensions.write_text(
            "basicConstraints=critical,CA:TRUE" if name == issuer else f"subjectAltName={names or 'DNS:nowhere'}"
        )
        signing = (
            ["-signkey", f"{name}.key"]
            if name == issuer
            else ["-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key", "-CAcreateserial"]
        )
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                      "-subj", f"/CN={subject}")  # fmt: skip
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-out", f"{name}.crt",
                      "-extfile", str(extensions), *signing)  # fmt: skip
        self.path(f"{name}.key").chmod(0o600)

    def _openssl(self, *arguments: str) -> None:
        program = required_program("openssl", how="apt-get install openssl")
        subprocess.run([program, *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    papers = Papers(tmp_path_factory.mktemp("papers"))
    for name in ("authority", "stranger"):
        papers.issue(name, issuer=name, subject=name)
    papers.issue("server", issuer="authority", subject="whoever", names="DNS:localhost")
    return papers


def pool_of(address: ShardAddress, option: str = "", *, place: str, user: str = GUEST) -> ShardPool:
    url = f"postgresql://{user}@{place}/{database_of(address)}?{option}".rstrip("?")
    return ShardPool(ShardAddress(address.shard_id, url).validate(()), size=1, timeouts=UNHURRIED)


PoolMaker = Callable[..., ShardPool]  # (option, *, host)


@pytest.fixture
def guarded(
    make_shard: ShardMaker, postgres_server: PostgresServer, papers: Papers
) -> Callable[[Mapping[str, object]], contextlib.AbstractAsyncContextManager[PoolMaker]]:
    files = {name: papers.path(name).read_bytes() for name in ("server.key", "server.crt", "authority.crt")}

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


async def test_pool_talks_only_to_a_server_with_the_right_papers(guarded: Guard, papers: Papers) -> None:
    async with guarded(OFFERED) as make_pool:
        for mode, authority, host, is_good in [
            ("verify-ca", "authority", HOST, True),
            ("verify-ca", "stranger", HOST, False),
            ("verify-full", "authority", "localhost", True),
            ("verify-full", "authority", HOST, False),  # its papers are made out to localhost
            ("verify-full", "stranger", "localhost", False),
            ("require", "stranger", "localhost", False),  # as for libpq: an authority that is named is asked
        ]:
            pool = make_pool(f"sslmode={mode}&sslrootcert={papers.path(f'{authority}.crt')}", host=host)
            if is_good:
                assert await is_encrypted(pool)
            else:
                assert (await unavailable(pool)).startswith("expected a certificate ")
