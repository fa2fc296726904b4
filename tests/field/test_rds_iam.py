"""Passwords by IAM for databases of RDS, on a real Postgres behind a line that checks them as RDS does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

import pytest
from support.postgres.databases import ShardMaker, database_of, execute
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch
from support.requires import required_program

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, poll_until
from simplu_worker.aws.clients import credential_source
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow


SSL_REQUEST: Final = 80877103  # PostgreSQL manual, "Message Formats"
ASK_PASSWORD: Final = b"R" + struct.pack("!ii", 8, 3)
REGION: Final = "eu-central-1"
LIFETIME: Final = timedelta(seconds=900)
CLOCKS_DIFFER: Final = timedelta(minutes=5)
USER: Final = "worker"
SECRETS = {"AKIAFIRST": "first/secret", "AKIASECOND": "second+secret"}


def refusal_of(password: str, *, place: str, user: str, secrets: Mapping[str, str], now: datetime) -> str | None:
    """Return why RDS at *place* refuses a password, None if it lets *user* in.

    The signature is computed here as the documentation of Signature Version 4 has it, without botocore.
    """
    url = urlsplit(f"//{password}")
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    signature = query.pop("X-Amz-Signature", "")
    key_id, _, scope = query.get("X-Amz-Credential", "").partition("/")
    day = query["X-Amz-Date"][:8]
    if (url.netloc, url.path, query.get("Action"), query.get("DBUser")) != (place, "/", "connect", user):
        return f"it is for {query.get('DBUser')} at {url.netloc}"
    if key_id not in secrets or scope != f"{day}/{REGION}/rds-db/aws4_request":
        return f"it is of {key_id} with the scope {scope}"
    if query.get("X-Amz-Expires") != "900" or not -CLOCKS_DIFFER <= now - time_of(password) < LIFETIME:
        return "it has expired"
    canonical = urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
    empty = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{canonical}\nhost:{place}\n\nhost\n{empty}"
    to_sign = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secrets[key_id]}".encode()
    for part in [*scope.split("/"), to_sign]:
        key = hmac.digest(key, part.encode(), "sha256")
    return None if hmac.compare_digest(key.hex(), signature) else "its signature is wrong"


def time_of(password: str) -> datetime:
    (text,) = parse_qs(urlsplit(f"//{password}").query)["X-Amz-Date"]
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def issue_certificate(folder: Path) -> Path:
    path = folder / "rds.pem"
    subprocess.run(
        [required_program("openssl", how="apt-get install openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes",
         "-keyout", path, "-out", folder / "rds.crt", "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (folder / "rds.crt").read_bytes())
    return path


class RdsLine:
    """Such a line to *shard*, on a port of its own; *secrets* are those of the keys that IAM knows, by their ids."""

    def __init__(self, shard: ShardAddress, certificate: Path, secrets: dict[str, str]) -> None:
        self.secrets = secrets
        self.passwords: list[str] = []  # that came, in order
        self.refusals: list[str] = []
        self.takes_connections = True
        self._shard = shard
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        self._port = 0

    @property
    def place(self) -> str:
        return f"localhost:{self._port}"

    def address_at(self, *places: str, options: str = "") -> ShardAddress:
        url = f"postgresql://{USER}@{','.join(places)}/{database_of(self._shard)}?auth=rds-iam{options}"
        return ShardAddress(self._shard.shard_id, url).validate(())

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[RdsLine]:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self._port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._let_in(reader, writer)
        finally:
            writer.transport.abort()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, code = struct.unpack("!ii", await reader.readexactly(8))
        if code != SSL_REQUEST:
            if self.passwords or length != 16:  # one of 16 bytes cancels a statement
                self.refusals.append("it came without TLS")
            return
        writer.write(b"S")
        await writer.start_tls(self._context)
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        startup = await reader.readexactly(length - 4)
        names = startup[4:].split(b"\0")
        user = dict(zip(names[::2], names[1::2], strict=False))[b"user"].decode()
        if not self.takes_connections:
            writer.write(_error("57P03", "it is starting"))
            return
        writer.write(ASK_PASSWORD)
        _, length = struct.unpack("!ci", await reader.readexactly(5))
        password = (await reader.readexactly(length - 4)).removesuffix(b"\0").decode()
        self.passwords.append(password)
        refusal = refusal_of(password, place=self.place, user=user, secrets=self.secrets, now=datetime.now(UTC))
        if refusal is not None:
            self.refusals.append(refusal)
            writer.write(_error("28000", "PAM authentication failed"))
            return
        await self._join(reader, writer, struct.pack("!i", len(startup) + 4) + startup)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, startup: bytes) -> None:
        place = urlsplit(self._shard.connection_string)
        from_server, to_server = await asyncio.open_connection(place.hostname, place.port)
        to_server.write(startup)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, to_server), name="to the server")
                tasks.create_task(_copy(from_server, writer), name="from the server")
        except* (OSError, EOFError):
            pass
        finally:
            to_server.transport.abort()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    raise EOFError  # which ends the other direction


def _error(sqlstate: str, message: str) -> bytes:
    fields = b"".join(
        name + value.encode() + b"\0"
        for name, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", sqlstate), (b"M", message))
    )
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return issue_certificate(tmp_path_factory.mktemp("rds"))


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_REGION", REGION)
    use_key(monkeypatch, "AKIAFIRST")
    yield
    credential_source.cache_clear()


def use_key(monkeypatch: pytest.MonkeyPatch, key_id: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[key_id])
    credential_source.cache_clear()


@pytest.fixture
async def shard_at_rds(make_shard: ShardMaker, postgres_server: PostgresServer) -> ShardAddress:
    create = f"DO $$ BEGIN CREATE ROLE {USER} SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    await execute(postgres_server.url_of("postgres"), create)
    return await make_shard()


@pytest.fixture
async def line(shard_at_rds: ShardAddress, certificate: Path) -> AsyncIterator[RdsLine]:
    async with RdsLine(shard_at_rds, certificate, dict(SECRETS)).opened() as line:
        yield line


async def test_shard_is_used_with_passwords_by_iam(line: RdsLine, caplog: pytest.LogCaptureFixture) -> None:
    pool = ShardPool(line.address_at(line.place), size=2)
    await add_tenant(pool)
    case = TenantCase(pool, ("clinic", "main"))
    assert await case.apply(case.operation("create", arrived_at=datetime.now(UTC), data={})) == [SUCCEEDED]
    async with pool.connection() as one, pool.connection() as other:
        users = {await connection.fetchval("SELECT current_user") for connection in (one, other)}
        assert all(connection._transport.get_extra_info("ssl_object") for connection in (one, other))  # type: ignore[attr-defined]
    await pool.probe()
    await pool.close()

    assert users == {USER}
    assert (len(line.passwords), line.refusals) == (3, [])
    assert not any(password in f"{pool!r} {caplog.text}" for password in line.passwords)


async def test_new_connection_has_a_new_password_after_expiry(line: RdsLine, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ShardPool(line.address_at(line.place), size=1)
    (server,) = await fetch(pool, "SELECT pg_backend_pid() AS pid")
    (first,) = line.passwords
    later = datetime.now(UTC) + LIFETIME
    assert refusal_of(first, place=line.place, user=USER, secrets=SECRETS, now=later) == "it has expired"

    async def is_later() -> bool:
        return datetime.now(UTC) > time_of(first) + timedelta(seconds=1)

    assert await poll_until(is_later, within_s=60)
    use_key(monkeypatch, "AKIASECOND")
    del line.secrets["AKIAFIRST"]
    await pool.probe()
    assert await fetch(pool, "SELECT pg_backend_pid() AS pid") == [server]
    await pool.close()

    assert ["AKIAFIRST" in password for password in line.passwords] == [True, False]
    assert time_of(line.passwords[1]) > time_of(first)
    assert line.refusals == []


async def test_shard_is_back_once_there_are_credentials(
    line: RdsLine, make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    credential_source.cache_clear()
    pool, other = ShardPool(line.address_at(line.place), size=1), ShardPool(await make_shard(), size=1)
    with pytest.raises(ShardUnavailableError, match=r"no password by IAM: .*credentials"):
        await fetch(pool, "SELECT 1 AS one")
    assert (pool.is_healthy, "no password by IAM" in str(pool.last_error)) == (False, True)
    assert await fetch(other, "SELECT 1 AS one") == [{"one": 1}]

    use_key(monkeypatch, "AKIAFIRST")

    async def has_a_password() -> bool:
        with contextlib.suppress(ShardUnavailableError):
            return await fetch(pool, "SELECT 1 AS one") == [{"one": 1}]
        return False

    assert await poll_until(has_a_password, within_s=60.0)
    assert pool.is_healthy
    for one in (pool, other):
        await one.close()
    assert line.refusals == []
