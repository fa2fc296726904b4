"""Databases that cannot store each text of a record are refused before one is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.citrus.cases import routed_shards
from support.postgres.databases import execute
from support.postgres.move_cases import settings_of
from support.postgres.tenant_cases import TENANT, TENANT_MADE_AT, operation, writer_of

from simplu_local.postgres.server import PostgresServer
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.check.checking import DependencyChecks
from simplu_worker.commands.check.dependency import CheckStatus
from simplu_worker.shards.health.assessment import ShardSilence
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.types import ProvisionRequest, ShardUnavailableError


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
async def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["empty", "with our schema"])
async def odd(
    encoding: str, request: pytest.FixtureRequest, postgres_server: PostgresServer
) -> AsyncIterator[ShardAddress]:
    server, name = postgres_server.url_of("postgres"), f"odd_{encoding.lower()}_{int(request.param)}"
    await execute(
        server, f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    address = ShardAddress("shard-1", postgres_server.url_of(name))
    if request.param:
        await execute(address.connection_string, "CREATE TABLE shard_meta AS SELECT 'shard-1' AS shard_id")
    yield address
    await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def test_database_that_is_not_utf8_is_refused(odd: ShardAddress, encoding: str, tmp_path: Path) -> None:
    reason = f"expected a database with encoding UTF8, got {encoding}; create one with ENCODING 'UTF8'"
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(odd)
        with pytest.raises(ShardUnavailableError, match=reason):
            await writer_of(pool).apply([operation("create", data={"text": "ö"})])
        health = await inspect_shard(pool)
        assert isinstance(health, ShardSilence)
        assert (health.is_refusal, health.error.startswith(reason)) == (True, True)
    async with routed_shards([odd]) as routed:
        with pytest.raises(ShardUnavailableError, match=reason):
            await routed.provisioner.provision(ProvisionRequest(*TENANT, "dental", TENANT_MADE_AT))
    settings = settings_of(tmp_path, odd)
    async with open_shards(settings) as shards:
        (checked,) = await DependencyChecks(settings).check_shards(shards)
    assert checked.status is CheckStatus.FAILED
    assert reason in checked.result
