"""Passwords by IAM for databases of RDS, on a real Postgres behind a line that checks them as RDS does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.field.rds_line import LIFETIME, REGION, USER, RdsLine, issue_certificate, refusal_of, time_of
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import credential_source
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow


SECRETS = {"AKIAFIRST": "first/secret", "AKIASECOND": "second+secret"}


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
