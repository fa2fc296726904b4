"""The last step of provisioning: one home for every tenant, whatever Citrus says, and nobody's data undone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, fetch
from support.postgres.unfinished_tenants import AT, TENANT_ID, homes, make_unfinished

from simplu_worker.cache.invalidations import ResourceKey
from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.type_files import read_type
from simplu_worker.shards.schema.upgrade import Upgrader
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult, UnknownBusinessTypeError

pytestmark = pytest.mark.slow


REQUEST = ProvisionRequest(*TENANT, "dental", AT)
SETTINGS = ResourceKey(TENANT_ID, "settings", "default")


class Meddler:
    def __init__(self, inner: Locator, before: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        await self._before()
        return await self._inner.locate(tenant_id)


def meddled(routed: RoutedShards, before: Callable[[], Awaitable[None]], changed: list[ResourceKey]) -> Provisioner:
    locator: Any = Meddler(routed.locator, before)
    return Provisioner(locator, routed.directory, routed.pools, on_change=changed.extend)


@pytest.mark.parametrize("age_s", [3600.0, -3600.0])
async def test_provision_keeps_one_home_when_citrus_changed_its_answer(routed: RoutedShards, age_s: float) -> None:
    changed: list[ResourceKey] = []

    async def make_elsewhere() -> None:
        if routed.citrus.registry.homes[TENANT_ID].shard_id == "shard-1":
            routed.register(TENANT, "shard-2")
            await make_unfinished(routed.pool("shard-2"), age_s=age_s)

    with capture_logs() as logs:
        result = await meddled(routed, make_elsewhere, changed).provision(REQUEST)

    kept, undone = ("shard-2", "shard-1") if age_s > 0 else ("shard-1", "shard-2")
    assert await homes(routed) == {kept: ("active", True, 1)}
    assert result is (ProvisionResult.EXISTED if age_s > 0 else ProvisionResult.PROVISIONED)
    (entry,) = [entry for entry in logs if entry["event"] == "tenant.undone"]
    assert (entry["shard_id"], entry["log_level"]) == (undone, "warning")
    assert changed.count(SETTINGS) == (3 if age_s > 0 else 2)  # made, undone, found
    assert await routed.gateway.find(TENANT_ID) == kept


async def test_provision_all_leaves_one_home_of_two_replicas(
    make_shard: ShardMaker,
) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    requests = [ProvisionRequest("b", f"{number:02}", "gym", AT) for number in range(20)]
    async with routed_shards(shards) as one, routed_shards(shards[::-1]) as other:
        for routed, shard_id in ((one, "shard-1"), (other, "shard-2")):
            for request in requests:
                routed.register((request.business_id, request.location_id), shard_id)

        async def provisioned(routed: RoutedShards) -> list[ProvisionAnswer]:
            answers: list[ProvisionAnswer] = [RetryableError("not asked")]
            while any(isinstance(answer, RetryableError) for answer in answers):
                answers = await routed.provisioner.provision_all(requests)
            return answers

        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(provisioned(routed)) for routed in (one, other)]
        assert all(isinstance(answer, ProvisionResult) for task in both for answer in task.result())

        query = "SELECT id, state_changed_at <> created_at AS is_confirmed FROM tenants"
        rows = [row for shard_id in ("shard-1", "shard-2") for row in await fetch(one.pool(shard_id), query)]
        assert sorted(row["id"] for row in rows) == [request.tenant_id for request in requests]
        assert all(row["is_confirmed"] for row in rows)


@pytest.mark.slow(0.4)
async def test_provision_all_puts_single_calls_into_few_transactions(make_shard: ShardMaker) -> None:
    address = await make_shard("shard-1", is_empty=True)
    async with routed_shards([address]) as routed, asyncio.TaskGroup() as tasks:
        for number in range(60):
            tasks.create_task(routed.provisioner.provision(ProvisionRequest("b", str(number), "gym", AT)))
    async with routed_shards([address]) as routed:
        counts = "count(*), count(DISTINCT created_at) AS made, count(DISTINCT xmin::text) AS confirmed"
        (row,) = await fetch(routed.pool(), f"SELECT {counts} FROM tenants")
        assert row["count"] == 60
        assert row["made"] <= 15
        assert row["confirmed"] <= 30


async def test_provision_waits_when_the_shard_lacks_the_business_type(routed: RoutedShards) -> None:
    pool = routed.pool()
    requests = [ProvisionRequest("b", name, kind, AT) for name, kind in (("1", "spa"), ("2", "hotel"), ("3", "spa"))]

    answers = await routed.provisioner.provision_all(requests)

    assert isinstance(answers[0], UnknownBusinessTypeError)
    assert answers[0].given_up == (
        "businessType: expected one of dental, gym, hotel, restaurant, shop, which shard shard-1 has, got 'spa'"
    )
    assert answers[1] is ProvisionResult.PROVISIONED
    assert [row["id"] for row in await fetch(pool, "SELECT id FROM tenants")] == ["b-2"]

    spa = read_type('{"name": "spa", "defaultSettings": {}, "staffResourceType": "host"}')
    await Upgrader(pool, patience_s=0.0).apply_types({"spa": spa}, remove=())
    assert await routed.provisioner.provision_all(requests) == [
        ProvisionResult.PROVISIONED,
        ProvisionResult.EXISTED,
        ProvisionResult.PROVISIONED,
    ]
