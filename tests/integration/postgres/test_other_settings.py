"""Databases with other defaults than those of Postgres: the worker makes each setting that it relies on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.citrus.cases import routed_shards
from support.moves.failpoints import set_failpoint
from support.moves.world import ROWS, TENANT_ID, World
from support.postgres.databases import ShardMaker
from support.postgres.other_settings import WAYS, reached, set_otherwise
from support.postgres.tenant_cases import TENANT, fetch

from simplu_local.postgres.server import PostgresServer
from simplu_local.workload.json_values import parse_json
from simplu_worker.shards.apply.writer import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import Isolation
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
from simplu_worker.transfers.moving.checksums import compare_shards, repair_resources

EXPECTED = {
    "transaction_isolation": "read committed",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
    "extra_float_digits": "3",
    "row_security": "on",
    "client_min_messages": "warning",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "lock_timeout": "5s",
    "statement_timeout": "25s",
    "idle_in_transaction_session_timeout": "30s",
    "transaction_timeout": "0",
}
SHOWN = "SELECT name, pg_catalog.current_setting(name) AS value FROM pg_catalog.unnest($1::text[]) AS name"


@pytest.fixture
async def shards(make_shard: ShardMaker) -> list[ShardAddress]:
    """Give two shards with other settings."""
    made = [await make_shard(shard_id) for shard_id in ("a", "b")]
    for shard in made:
        await set_otherwise(shard)
    return made


@pytest.mark.parametrize("way", WAYS)
async def test_settings_are_those_of_the_worker_whatever_the_defaults_of_the_database(
    shards: list[ShardAddress], postgres_server: PostgresServer, way: str
) -> None:
    async with reached(way, postgres_server, shards[0]) as (address,):
        pool = ShardPool(address, size=1)
        for _ in range(2):
            async with pool.connection() as connection:
                single = await connection.fetch(SHOWN, [*EXPECTED])
            async with pool.transaction() as connection:
                within = await connection.fetch(SHOWN, [*EXPECTED])
            assert {row["name"]: row["value"] for row in single} == EXPECTED
            assert {row["name"]: row["value"] for row in within} == EXPECTED
        async with pool.transaction(isolation=Isolation.ONE_MOMENT) as connection:
            assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
            assert await connection.fetchval("SHOW transaction_read_only") == "on"
        await pool.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow(1)
async def test_tenant_is_made_written_to_moved_and_repaired_whatever_the_defaults_of_the_database(
    shards: list[ShardAddress], postgres_server: PostgresServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        reached(way, postgres_server, *shards) as addresses,
        routed_shards(addresses) as routed,
    ):
        made = await routed.provisioner.provision(ProvisionRequest(*TENANT, "dental", datetime(2026, 3, 1, tzinfo=UTC)))
        assert made is ProvisionResult.PROVISIONED
        world = World(routed.pools, addresses)
        case, pool = world.case("a"), world.shard_pools["a"]
        (row,) = await fetch(pool, "SELECT created_at <> state_changed_at AS is_confirmed FROM public.tenants")
        assert row["is_confirmed"]

        now = datetime.now(UTC)
        data = {"text": "ein \\ 'ö' €", "n": 0.1}
        stored = parse_json(json.dumps(data))
        days = {"startDate": "2026-03-01", "endDate": "2026-03-01"}
        create, read, listed = (
            case.operation("create", "r1", data, arrived_at=now),
            case.operation("read", "r1", arrived_at=now),
            case.operation("list", None, filters=days, arrived_at=now),
        )
        assert await case.apply(create, read, listed) == [SUCCEEDED] * 3
        assert await case.result(read) == {
            "resourceId": "r1",
            "data": stored,
            "date": "2026-03-01T12:00:00.000000Z",
            "lastUpdated": "2026-03-01T12:00:00.000000Z",
        }
        assert (await case.result(listed))["items"] == [await case.result(read)]

        await fetch(pool, ROWS, TENANT_ID, 10)

        async def spoil(_: Any) -> None:
            await fetch(world.shard_pools["b"], """UPDATE public.resources SET data = '{}' WHERE "resourceId" = '7'""")

        set_failpoint("after _verify_live", spoil, monkeypatch.setattr)
        certificate = await world.move()
        assert (certificate.verdict, await world.states()) == ("differs", {"a": "moved", "b": "active"})

        arrival = await world.arrival("b")
        assert arrival.ready_at is not None
        comparison = await compare_shards(
            pool,
            world.shard_pools["b"],
            TENANT_ID,
            arrival.ready_at,
            live_on_source=False,
            log_kept=timedelta(days=1),
        )
        assert comparison.differing == [("patient", "7")]
        repaired = await repair_resources(pool, world.shard_pools["b"], TENANT_ID, arrival, comparison.differing)
        assert repaired.count == 1
        resources: Any = await world.case("b").resources()
        assert (resources["patient", "r1"], resources["patient", "7"]["n"]) == (stored, 7)
