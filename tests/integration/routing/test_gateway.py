"""What consumers call: applying through a route, looking up operations and tenants, asking all shards at once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.errors import RetryableError
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards import lookups
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.lookups import FoundOperation, LoggedOperation
from simplu_worker.vocabulary import Absence, Inability

TENANT_ID = "-".join(TENANT)


@pytest.fixture
async def routed(routed: RoutedShards) -> RoutedShards:
    await add_tenant(routed.pool())
    routed.register(TENANT, "shard-1")
    return routed


def case_of(routed: RoutedShards) -> TenantCase:
    return TenantCase(routed.pool(), TENANT)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"status": 401}, Inability.CITRUS_REFUSES_KEY),
        ({"is_unreachable": True}, Inability.CITRUS_UNREACHABLE),
        ({}, Inability.SHARDS_UNREACHABLE),
    ],
)
async def test_gateway_knows_that_it_can_do_nothing_at_its_start(faults: dict[str, Any], reason: Inability) -> None:
    async with routed_shards([silent("shard-1"), silent("shard-2")]) as routed:
        for name, value in faults.items():
            setattr(routed.citrus.faults, name, value)
        assert routed.gateway.inability is None
        await routed.gateway.look_around()
        assert routed.gateway.inability is reason


async def test_gateway_forgets_the_route_when_the_shard_holds_the_tenant(routed: RoutedShards) -> None:
    case = case_of(routed)
    await routed.gateway.find(TENANT_ID)
    await add_tenant(routed.pool("shard-2"))
    await fetch(case.pool, "UPDATE tenants SET state = 'moved', moved_to = 'shard-2'")
    create = case.operation("create", data={"a": 1})

    assert await routed.gateway.apply("shard-1", [create]) == [HOLD]
    assert routed.gateway.cached_shard_id(TENANT_ID) is None
    assert await routed.gateway.find(TENANT_ID) == "shard-2"
    assert await routed.gateway.apply("shard-2", [create]) == [SUCCEEDED]
    assert await case.everything() == [[], []]


async def test_gateway_returns_an_operation_of_a_tenant(routed: RoutedShards) -> None:
    case = case_of(routed)
    create = case.operation("create", data='{"n": 12345678901234567890.10}')
    read, missing = case.operation("read"), case.operation("delete", "r2")
    await routed.gateway.find(TENANT_ID)
    await routed.gateway.apply("shard-1", [create, read, missing])

    found, silent_shards, _ = await routed.gateway.lookups.find_operation(read.request_id, TENANT_ID)
    assert found is not None
    shown = msgspec.to_builtins(found, builtin_types=(msgspec.Raw,))
    assert {name: shown[name] for name in ("requestId", "status", "operation", "resourceId", "shardId")} == {
        "requestId": read.request_id,
        "status": "succeeded",
        "operation": "read",
        "resourceId": "r1",
        "shardId": "shard-1",
    }
    assert b"12345678901234567890.10" in bytes(shown["result"])
    assert silent_shards == []
    failed, _, _ = await routed.gateway.lookups.find_operation(missing.request_id, TENANT_ID)
    assert isinstance(failed, LoggedOperation)
    assert (failed.status, failed.error, failed.result) == ("failed", "not_found", None)
    assert await routed.gateway.lookups.find_operation("unknown", TENANT_ID) == FoundOperation(None, [], [{}])
    assert await routed.gateway.lookups.find_operation(read.request_id, "unknown-tenant") == FoundOperation(
        Absence.UNREGISTERED
    )


async def test_gateway_finds_no_operation_of_another_pair_with_the_same_tenant_id(routed: RoutedShards) -> None:
    await add_tenant(routed.pool(), ("a", "b-c"))
    routed.register(("a", "b-c"), "shard-1")
    case = TenantCase(routed.pool(), ("a", "b-c"))
    assert await case.apply(case.operation("create", data={}, request_id="own")) == [SUCCEEDED]

    own, _, _ = await routed.gateway.lookups.find_operation("own", "a-b-c", names=("a", "b-c"))
    assert isinstance(own, LoggedOperation)
    other = await routed.gateway.lookups.find_operation("own", "a-b-c", names=("a-b", "c"))
    assert other == FoundOperation(Absence.UNREGISTERED)


async def test_gateway_tells_what_is_decided(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with routed_shards([*shards, silent("shard-4")]) as routed:
        for shard_id, business_id in (("shard-1", "b1"), ("shard-2", "b2"), ("shard-2", "gone")):
            await add_tenant(routed.pool(shard_id), (business_id, "l"))
            routed.register((business_id, "l"), shard_id)
            case = TenantCase(routed.pool(shard_id), (business_id, "l"))
            assert await case.apply(case.operation("create", data={}, request_id="own")) == [SUCCEEDED]
        routed.register(("b4", "l"), "shard-4")
        keys = [(f"{one}-l", one, request) for one in ("b1", "b2", "nobody", "gone", "\0") for request in ("own", "x")]

        async def decided() -> set[tuple[str, ...]]:
            answers = await asyncio.gather(*(routed.gateway.lookups.is_decided(*key) for key in keys))
            return {key for key, is_decided in zip(keys, answers, strict=True) if is_decided}

        assert await decided() == {(f"{one}-l", one, "own") for one in ("b1", "b2", "gone")}
        with pytest.raises(RetryableError):
            await routed.gateway.lookups.is_decided("b4-l", "b4", "own")
        await execute(shards[1].connection_string, "UPDATE tenants SET state = 'moved' WHERE business_id = 'gone'")
        await execute(
            shards[0].connection_string,
            "INSERT INTO rejections VALUES ('b1-l', 'x', 'r', 'e', 'q', 's', '1', NULL, now())",
        )
        assert await decided() == {("b1-l", "b1", "own"), ("b1-l", "b1", "x"), ("b2-l", "b2", "own")}
        with pytest.raises(RetryableError):  # its route is looked up again, and leads to no shard
            await routed.gateway.find("gone-l")


async def test_gateway_asks_all_shards_for_an_operation_when_the_tenant_is_not_given(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2"), await make_shard("shard-3", is_empty=True)]
    async with routed_shards([*shards, silent("shard-4")]) as routed:
        for shard_id, tenant in (("shard-2", ("b", "1")), ("shard-1", ("b", "2"))):
            pool = routed.pool(shard_id)
            await add_tenant(pool, tenant)
            case = TenantCase(pool, tenant)
            assert await case.apply(case.operation("create", data={}, request_id="same")) == [SUCCEEDED]

        found, silent_shards, _ = await routed.gateway.lookups.find_operation("same", None)

        assert isinstance(found, LoggedOperation)
        assert (found.shard_id, silent_shards) == ("shard-1", ["shard-4"])
        assert await routed.gateway.lookups.find_operation("unknown", None) == FoundOperation(
            None, ["shard-4"], [{}, {}]
        )


async def test_gateway_returns_the_present_row_of_a_resource(
    routed: RoutedShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(routed)
    await case.apply(case.operation("create", "r1", data={"n": 1}))
    found = await routed.gateway.lookups.find_resource(*TENANT, "patient", "r1")
    assert isinstance(found, tuple)
    shard_id, row = found
    assert (shard_id, row["is_there"], row["data"], row["size_bytes"]) == ("shard-1", True, '{"n": 1}', 8)
    assert row["last_updated"] >= row["date"]
    absent = await routed.gateway.lookups.find_resource(*TENANT, "patient", "other")
    assert isinstance(absent, tuple)
    assert set(absent[1].values()) == {False, None}
    monkeypatch.setattr(lookups, "RESOURCE_SHOWN_MAX_BYTES", 7)
    cut = await routed.gateway.lookups.find_resource(*TENANT, "patient", "r1")
    assert isinstance(cut, tuple)
    assert (cut[1]["data"], cut[1]["size_bytes"]) == (None, 8)
    assert await routed.gateway.lookups.find_resource("unknown", "tenant", "patient", "r1") is Absence.UNREGISTERED
    assert await routed.gateway.lookups.find_resource(*TENANT, "patient", "\0") is Absence.UNREGISTERED
