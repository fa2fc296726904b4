from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.aws.endpoints import CREDENTIALS, REGION, client_of
from support.citrus.cases import API_KEY
from support.postgres.databases import PoolMaker, ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch
from support.settings import settings_in

from simplu_local.stack.aws import put_businesses
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.aws.clients import Client
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.inventory import audit_tenants, provision_listed
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.pool import ShardPool

pytestmark = pytest.mark.usefixtures("aws_credentials")

_numbers = itertools.count(1)


@dataclass(frozen=True)
class World:
    dynamodb: Client
    table: str
    citrus: CitrusServer
    settings: Settings
    pools: dict[str, ShardPool]

    async def enlist(self, business_id: str, business_type: str, *locations: str) -> None:
        await put_businesses(self.dynamodb, self.table, {business_id: (business_type, locations)})

    async def close(self, business_id: str, location_id: str) -> None:
        location = {"M": {"id": {"S": location_id}, "active": {"BOOL": False}}}
        item = {"id": {"S": business_id}, "type": {"S": "gym"}, "locations": {"L": [location]}}
        await self.dynamodb.put_item(TableName=self.table, Item=item)

    def register(self, shard_id: str, *names: tuple[str, str]) -> None:
        for name in names:
            self.citrus.registry.place("-".join(name), self.citrus.registry.shards[shard_id])

    async def add(self, shard_id: str, *names: tuple[str, str], **row: Any) -> None:
        for name in names:
            await add_tenant(self.pools[shard_id], name, **row)

    async def live(self, name: tuple[str, str], shard_id: str = "shard-1", **row: Any) -> None:
        self.register(shard_id, name)
        await self.add(shard_id, name, **row)

    async def tenants(self, shard_id: str) -> list[tuple[Any, ...]]:
        rows = await fetch(
            self.pools[shard_id], "SELECT id, business_type, state, extract(year FROM control_at) AS year FROM tenants"
        )
        return sorted((row["id"], row["business_type"], row["state"], int(row["year"])) for row in rows)


@pytest.fixture
async def world(endpoint_url: str, make_shard: ShardMaker, make_pool: PoolMaker) -> AsyncIterator[World]:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]

    async def make() -> tuple[str, str]:
        raise AssertionError("all shards are full")

    citrus = CitrusServer(api_key=API_KEY, make_shard=make, max_businesses=1000)
    for shard in shards:
        citrus.add_shard(shard.shard_id, shard.connection_string)
    table = f"businesses-{next(_numbers)}"
    pools = {shard.shard_id: await make_pool(shard) for shard in shards}
    async with citrus.serve() as url, client_of("dynamodb", endpoint_url) as dynamodb:
        await dynamodb.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        env = {
            **CREDENTIALS,
            "AWS_REGION": REGION,
            "DYNAMODB_ENDPOINT": endpoint_url,
            "DYNAMODB_BUSINESS_INFO_TABLE": table,
            "CITRUS_SERVER_URL": url,
            "CITRUS_API_KEY": API_KEY,
        }
        yield World(dynamodb, table, citrus, settings_in(env), pools)


async def audited(world: World, capsys: pytest.CaptureFixture[str]) -> tuple[int, set[tuple[Any, ...]], dict[str, Any]]:
    status = await show(audit_tenants(world.settings, page_size=3), as_json=True)
    printed = json.loads(capsys.readouterr().out)
    found = [
        (one["kind"], *(one[name] for name in ("businessId", "locationId") if name in one))
        for one in printed["differences"]
    ]
    assert len(found) == len(set(found)), "a difference was named twice"
    return status, set(found), printed


@pytest.mark.slow(0.3)
async def test_audit_names_every_difference(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    await world.enlist("good", "dental", "main")
    await world.live(("good", "main"))
    await world.enlist("new", "dental", "main")
    await world.add("shard-1", ("stray", "main"))
    world.register("shard-2", ("stray", "main"))
    await world.add("shard-2", ("lost", "main"))
    await world.close("closed", "main")
    await world.live(("closed", "main"), business_type="gym")
    await world.enlist("a", "dental", "b-c")
    await world.enlist("a-b", "dental", "c")
    await world.live(("a-b", "c"))
    await world.live(("torn", "main"))
    await world.add("shard-2", ("torn", "main"))
    await world.dynamodb.put_item(TableName=world.table, Item={"id": {"S": "broken"}})

    status, found, printed = await audited(world, capsys)

    assert status == 1
    assert found == {
        ("no_row", "new", "main"),
        ("not_in_citrus", "new", "main"),
        ("shard_differs", "stray", "main"),
        ("not_in_business_info", "stray", "main"),
        ("not_in_business_info", "lost", "main"),
        ("not_in_citrus", "lost", "main"),
        ("location_inactive", "closed", "main"),
        ("id_taken", "a", "b-c"),
        ("two_homes", "torn", "main"),
        ("not_in_business_info", "torn", "main"),
        ("unreadable", "broken"),
    }
    assert printed["counts"]["not_in_business_info"] == 3
    assert await show(audit_tenants(world.settings), as_json=False) == 1
    assert "its home is on shard shard-1 and shard-2" in capsys.readouterr().out


@pytest.mark.slow(2)
async def test_provision_plans_and_then_makes_what_no_shard_has(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.enlist("chain", "hotel", *(f"l-{number:02}" for number in range(20)))
    await world.enlist("there", "dental", "main")
    await world.live(("there", "main"), "shard-2")
    world.register("shard-2", ("chain", "l-00"))
    await world.close("closed", "main")

    assert await show(provision_listed(world.settings, apply=False, page_size=4), as_json=False) == 0
    said = capsys.readouterr()
    assert "1 there: 20 create" in said.out
    assert "nothing was changed; --apply creates them" in said.err
    assert await world.tenants("shard-1") == []

    assert await show(provision_listed(world.settings, apply=True, page_size=4), as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["counts"], printed["there"]) == ({"created": 20}, 1)
    made = await world.tenants("shard-1")
    assert made == [(f"chain-l-{number:02}", "hotel", "active", 1970) for number in range(1, 20)]
    assert ("chain-l-00", "hotel", "active", 1970) in await world.tenants("shard-2")

    assert await show(provision_listed(world.settings, apply=True, page_size=4), as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"tenants": [], "counts": {}, "there": 21, "shardsWithoutAnswer": []}
    assert await show(audit_tenants(world.settings), as_json=False) == 0


@pytest.mark.slow(0.3)
async def test_provision_leaves_alone_what_is_not_its_to_decide(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.enlist("gone", "dental", "main")
    await world.add("shard-2", ("gone", "main"), state="destroyed")
    await world.enlist("ending", "dental", "main")
    await world.live(("ending", "main"), state="destroying")
    await world.live(("a-b", "c"))
    await world.enlist("a", "dental", "b-c")
    await world.enlist("x-y", "dental", "z")
    await world.enlist("x", "dental", "y-z")
    await world.enlist("odd", "spa", "main")
    await world.dynamodb.put_item(TableName=world.table, Item={"id": {"S": "broken"}})
    before = [await world.tenants("shard-1"), await world.tenants("shard-2")]

    assert await show(provision_listed(world.settings, apply=True, page_size=4), as_json=True) == 1

    printed = json.loads(capsys.readouterr().out)
    kinds = {one["businessId"]: one["kind"] for one in printed["tenants"]}
    twins = {kinds.pop("x-y"), kinds.pop("x")}
    assert twins == {"created", "id_taken"}
    expected = {"gone": "destroyed", "ending": "destroyed", "a": "id_taken", "broken": "unreadable"}
    assert kinds == expected | {"odd": "no_row"}  # after `unknown_type`
    after = [await world.tenants("shard-1"), await world.tenants("shard-2")]
    assert [row for row in after[0] if row[0] != "x-y-z"] == before[0]
    assert after[1] == before[1]
