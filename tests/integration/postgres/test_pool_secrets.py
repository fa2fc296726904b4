"""Authentication of a pool and of its server: TLS with certificates, passwords in files."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, copy_shard, database_of
from support.postgres.pool_trouble import UNHURRIED
from support.postgres.pooler import running_pooler
from support.requires import required_program

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import NO_TLS, state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow


GUEST = "visitor"
PASSWORD = "swordfish:7"
TLS = {"client_tls_key_file": "server.key", "client_tls_cert_file": "server.crt", "client_tls_ca_file": "authority.crt"}
OFFERED = {"auth_type": "any", "client_tls_sslmode": "allow", **TLS}
DEMANDED = {"auth_type": "cert", "auth_file": "users", "client_tls_sslmode": "verify-full", **TLS}
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
    papers.issue("guest", issuer="authority", subject=GUEST)
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
    assert PASSWORD not in str(caught.value)
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


async def test_pool_shows_its_papers_when_the_server_asks(guarded: Guard, papers: Papers) -> None:
    mine = f"sslcert={papers.path('guest.crt')}&sslkey={papers.path('guest.key')}"
    async with guarded(DEMANDED) as make_pool:
        assert await is_encrypted(make_pool(f"sslmode=require&{mine}"))
        await unavailable(make_pool("sslmode=require"))


def rewritten(path: Path, rewrite: Callable[[str], str]) -> str:
    before = path.read_text()
    path.write_text(rewrite(before))
    return before


@pytest.fixture
async def strict(breakable_server: PostgresServer) -> AsyncIterator[ShardAddress]:
    address = await copy_shard(breakable_server)
    superuser = await asyncpg.connect(address.connection_string)
    clients = Path(await superuser.fetchval("SHOW hba_file"))
    before = rewritten(clients, lambda text: f"host all {GUEST} all scram-sha-256\n{text}")
    await superuser.execute(f"CREATE ROLE {GUEST} LOGIN PASSWORD '{PASSWORD}'")
    await superuser.execute(f"GRANT SELECT ON shard_meta TO {GUEST}")
    await superuser.execute("SELECT pg_reload_conf()")
    yield address
    rewritten(clients, lambda _: before)
    await superuser.execute("SELECT pg_reload_conf()")
    await superuser.execute(f"DROP OWNED BY {GUEST}; DROP ROLE {GUEST}")
    await superuser.close()


@pytest.mark.parametrize("way", ["the string", "PGPASSFILE", "passfile"])
async def test_pool_has_its_password_from_the_string_or_from_a_file(
    strict: ShardAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    place = strict.place.partition("/")[0]
    file = tmp_path / "pass"
    file.write_text(f"nowhere:*:*:{GUEST}:no\n{place}:*:{GUEST}:wrong\n")
    file.chmod(0o600)
    user, option = GUEST, ""
    match way:
        case "PGPASSFILE":
            monkeypatch.setenv("PGPASSFILE", str(file))
        case "passfile":
            option = f"passfile={file}"
        case _:
            user = f"{GUEST}:wrong"
    assert await unavailable(pool_of(strict, option, place=place, user=user)) == state_words("28P01")

    file.write_text(f"{place}:*:{GUEST}:{PASSWORD}\n")
    user = user.replace("wrong", PASSWORD.replace(":", "%3A"))

    assert not await is_encrypted(pool_of(strict, option, place=place, user=user))
