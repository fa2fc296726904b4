from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import add_tenant
from support.settings import settings_of

from simplu_worker.commands.output import show
from simplu_worker.commands.shards.show import list_shards
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_rules import HASH_KEY_LAST
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, HashRange
from simplu_worker.network_errors import NO_ANSWER, NO_SERVER
from simplu_worker.shards.health.assessment import ShardSilence
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION
from simplu_worker.shards.types import StreamShards
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role

pytestmark = pytest.mark.slow


SEEN_AT = datetime(2026, 11, 1, tzinfo=UTC)
PATIENT = ShardTimeouts(probe_s=60.0)  # a shard that is down refuses at once


def replica_of(routed: RoutedShards, book: HealthRegistry | None = None) -> ReplicaStatus:
    replica = ReplicaStatus("replica-1", asyncio.Event())
    replica.health = book or replica.health
    replica.start(routed.gateway, routed.pools, routed.locator)
    return replica


def by_id(shards: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {shard["shardId"]: shard for shard in shards}


async def test_shards_view_asks_every_shard_and_names_the_silent(make_shard: ShardMaker) -> None:
    good = await make_shard("shard-1")
    async with routed_shards([good, silent("shard-2")], timeouts=PATIENT) as routed:
        await add_tenant(routed.pools.ensure_pool(good))
        status, answer = await replica_of(routed).started.inspect_shards()
    shards = by_id(answer["shards"])
    assert (status, answer["shardsWithoutAnswer"]) == (200, ["shard-2"])
    assert (
        shards["shard-1"] | {"state": "healthy", "tenantCount": 1, "isActive": True, "role": "primary"}
        == shards["shard-1"]
    )
    assert (shards["shard-2"]["state"], shards["shard-2"]["healthy"]) == ("lost", False)
    assert all(datetime.fromisoformat(shard["lastHealthCheck"]).tzinfo == UTC for shard in shards.values())
    assert "secret-word" not in json.dumps(answer)


async def test_status_shows_shards_as_last_seen_and_asks_nobody(make_shard: ShardMaker) -> None:
    good = await make_shard("shard-1")
    book = HealthRegistry()
    async with routed_shards([good, silent("shard-2")], timeouts=PATIENT) as routed:
        replica = replica_of(routed, book)
        assert replica.status()["shards"] == []
        pool = routed.pools.ensure_pool(good)
        assert replica.status()["shards"][0]["state"] == "unknown"
        book.begin("shard-1")
        book.note_probe("shard-1", await inspect_shard(pool))
        (shown,) = replica.status()["shards"]
        book.note_probe("shard-1", ShardSilence(NO_ANSWER))
        (lost,) = replica.status()["shards"]
        book.end("shard-1")
    assert shown["state"] == "healthy"
    figures = {"role", "responseMs", "tenantCount", "connectionsMax"}
    assert figures | {"connections", "healthy", "lastCheckAt"} <= shown.keys()
    assert (lost["state"], figures & lost.keys()) == ("lost", set())
    assert figures | {"at"} <= lost["lastAnswer"].keys()
    assert lost["lastAnswer"]["at"] == shown["lastCheckAt"] <= lost["lastCheckAt"]


async def test_operation_view_takes_the_time_before_it_asks_the_log(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    shard = await make_shard("shard-1")
    row = "('s', 'a', 'TRIM_HORIZON', true, gen_random_uuid())"
    columns = "(stream, stream_shard_id, pending_from, parents_done, token)"
    await execute(shard.connection_string, f"INSERT INTO stream_positions {columns} VALUES {row}")
    async with routed_shards([shard]) as routed:
        find = routed.gateway.lookups.find_operation

        async def noted_find(request_id: str, tenant_id: str | None, *, names: None, stream: StreamShards) -> object:
            order.append("log")
            return await find(request_id, tenant_id, names=names, stream=stream)

        def noted_leases() -> list[Lease]:
            order.append("leases")
            return [Lease("a", TRIM_HORIZON, hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=SEEN_AT)]

        monkeypatch.setattr(routed.gateway.lookups, "find_operation", noted_find)
        replica = ReplicaStatus("replica-1", asyncio.Event())
        fleet = cast("Fleet", SimpleNamespace(readers=list, leases=noted_leases, stream_name="s"))
        replica.start(routed.gateway, routed.pools, routed.locator, fleet=fleet)
        status, answer = await replica.started.find_operation("never-seen", None, None, Role.OPERATOR)

    assert (status, answer["status"], answer["readUpTo"]) == (404, "unknown", SEEN_AT)
    assert order == ["leases", "log"]


async def test_shards_list_prints_json_and_fails_for_a_silent_shard(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = await make_shard("shard-1")
    assert await show(list_shards(settings_of(tmp_path, good)), as_json=True) == 0
    answer = json.loads(capfd.readouterr().out)
    (shard,) = answer["shards"]
    assert answer["shardsWithoutAnswer"] == []
    assert {name: shard[name] for name in ("shardId", "state", "role", "schemaVersion", "tenantCount")} == {
        "shardId": "shard-1",
        "state": "healthy",
        "role": "primary",
        "schemaVersion": SCHEMA_VERSION,
        "tenantCount": 0,
    }
    assert await show(list_shards(settings_of(tmp_path, good, silent("shard-2"))), as_json=True) == 1
    out = capfd.readouterr().out
    assert json.loads(out)["shardsWithoutAnswer"] == ["shard-2"]
    assert by_id(json.loads(out)["shards"])["shard-2"]["odd"] == [NO_SERVER]
    assert "secret-word" not in out
