from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT_WAIT, add_tenant, fetch, operation

from simplu_worker.business_info import FRESH_S, Business
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.tenants.provisioning import BEFORE_ANY_CONTROL, FirstUse
from simplu_worker.shards.types import TenantNotMadeError
from simplu_worker.vocabulary import Absence

NAME = ("clinic", "main")
ID = "clinic-main"
NO_SPA = (
    "businessType: expected one of dental, gym, hotel, restaurant, shop, which shard shard-1 has, got 'spa'; "
    "write the type with `simplu-worker types apply`"
)
CLINIC = Business("clinic", "dental", frozenset({"main", "closed"}), frozenset({"closed"}))


class Businesses:
    def __init__(self, *businesses: Business) -> None:
        self.known = {business.id: business for business in businesses}
        self.error: Exception | None = None
        self.ages: list[float] = []

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        self.ages.append(max_age_s)
        if self.error is not None:
            raise self.error
        return self.known.get(business_id)


@dataclass(frozen=True)
class World:
    routed: RoutedShards
    businesses: Businesses
    gateway: ShardGateway

    async def tenants(self, shard_id: str) -> list[dict[str, Any]]:
        query = "SELECT id, business_id, business_type, state, control_at FROM tenants ORDER BY id"
        return await fetch(self.routed.pool(shard_id), query)

    async def use(self, *names: tuple[str, str]) -> str | Absence:
        tenant_id = "-".join(names[0])
        found = await self.gateway.find(tenant_id)
        return await self.gateway.provision_on_first_use(tenant_id, names) if found is Absence.NOT_HERE else found


@asynccontextmanager
async def open_world(shards: list[ShardAddress], *businesses: Business) -> AsyncIterator[World]:
    async with routed_shards(shards) as routed:
        info = Businesses(*businesses)
        first_use = FirstUse(info, routed.provisioner, routed.locator, routed.pools)
        gateway = ShardGateway(
            routed.directory, routed.locator, routed.pools, tenant_wait=TENANT_WAIT, first_use=first_use
        )
        yield World(routed, info, gateway)


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world([await make_shard("shard-1"), await make_shard("shard-2")], CLINIC) as world:
        yield world


async def why(world: World, *names: tuple[str, str]) -> str:
    with pytest.raises(TenantNotMadeError) as caught:
        await world.use(*names)
    return str(caught.value)


async def test_tenant_is_made_at_its_first_use_where_citrus_names_it(world: World) -> None:
    world.routed.register(NAME, "shard-2")

    assert await world.use(NAME) == "shard-2"

    assert await world.tenants("shard-1") == []
    assert await world.tenants("shard-2") == [
        {
            "id": ID,
            "business_id": "clinic",
            "business_type": "dental",
            "state": "active",
            "control_at": BEFORE_ANY_CONTROL,
        }
    ]
    first = operation("create", data={"name": "Ann"}, arrived_at=datetime.now(UTC))
    assert [outcome.disposition for outcome in await world.gateway.apply("shard-2", [first])] == [Disposition.APPLIED]
    assert await world.use(NAME) == "shard-2"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("nobody", "main"), "its business is not in business-info"),
        (("clinic", "elsewhere"), "its business in business-info has no such location"),
        (("clinic", "closed"), "its location is not active in business-info"),
        (("spa", "main"), NO_SPA),
    ],
)
async def test_nothing_is_made_when_business_info_gives_no_reason(
    world: World, name: tuple[str, str], expected: str
) -> None:
    world.businesses.known["spa"] = Business("spa", "spa", frozenset({"main"}))
    world.routed.register(name, "shard-1")

    with capture_logs() as logs:
        assert {await why(world, name) for _ in range(3)} == {expected}

    told = [line for line in logs if line["event"] == "tenant.not_provisioned"]
    assert [(line["business_id"], line["location_id"], line["error"]) for line in told] == [(*name, expected)]
    assert await world.tenants("shard-1") == []
    world.businesses.known[name[0]] = Business(name[0], "gym", frozenset({name[1]}))
    assert await world.use(name) == "shard-1"


async def test_nothing_is_made_of_a_tenant_destroyed_elsewhere(world: World) -> None:
    await add_tenant(world.routed.pool("shard-2"), NAME, state="destroyed")
    world.routed.register(NAME, "shard-1")

    assert await why(world, NAME) == "it was destroyed on shard shard-2; only a SHARD_CREATION makes it again"
    assert await world.tenants("shard-1") == []


async def test_nothing_is_made_while_a_possible_home_is_silent(make_shard: ShardMaker) -> None:
    async with open_world([await make_shard("shard-1"), silent("shard-2")], CLINIC) as world:
        world.routed.register(NAME, "shard-1")
        with pytest.raises(RetryableError, match="shard-2"):
            await world.use(NAME)
        with pytest.raises(TenantNotMadeError, match="no answer from shards that may have it: shard-2"):
            await world.gateway.provision_on_first_use(ID, [NAME])
        assert await world.tenants("shard-1") == []
