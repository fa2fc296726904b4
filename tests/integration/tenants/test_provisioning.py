from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TENANT_MADE_AT, TenantCase, add_tenant, fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, hash_of, jump_hash
from simplu_worker.shards.schema import schema_check
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES
from simplu_worker.shards.schema.type_files import read_type
from simplu_worker.shards.schema.upgrade import Upgrader
from simplu_worker.shards.tenants.provisioning import Provisioner, SplitTenants, TenantSplitError
from simplu_worker.shards.types import (
    HomeUnknownError,
    ProvisionRequest,
    ProvisionResult,
    RefusedOnShardError,
    ShardUnavailableError,
    UnknownBusinessTypeError,
)
from simplu_worker.vocabulary import Absence

REQUESTED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = ("settings", "default")
OTHER = ("b", "2")


def request(
    tenant: tuple[str, str] = TENANT, business_type: str = "dental", at: datetime = REQUESTED_AT
) -> ProvisionRequest:
    return ProvisionRequest(*tenant, business_type, at)


async def tenants(routed: RoutedShards, shard_id: str) -> list[dict[str, Any]]:
    return await fetch(routed.pool(shard_id), "SELECT id, business_type, state, control_at FROM tenants ORDER BY id")


def provisioned(outcome: str) -> float:
    return REGISTRY.get_sample_value("simplu_provisioning_total", {"outcome": outcome}) or 0.0


@pytest.mark.parametrize("business_type", sorted(BUSINESS_TYPES))
async def test_provision_makes_tenant_and_default_row(routed: RoutedShards, business_type: str) -> None:
    before = provisioned("succeeded")
    with capture_logs() as logs:
        result = await routed.provisioner.provision(request(business_type=business_type))

    assert result is ProvisionResult.PROVISIONED
    (row,) = await fetch(routed.pool(), "SELECT * FROM tenants")
    assert abs(datetime.now(UTC) - row.pop("created_at")) < timedelta(minutes=1)
    assert abs(datetime.now(UTC) - row.pop("state_changed_at")) < timedelta(minutes=1)
    assert row.pop("number") > 0
    assert row == {
        "id": "clinic-main",
        "business_id": "clinic",
        "location_id": "main",
        "business_type": business_type,
        "state": "active",
        "epoch": 1,
        "moved_to": None,
        "control_at": REQUESTED_AT,
        "deletion_began_at": None,
        "move_token": 0,
        "fenced_until": None,
        "paused_until": None,
        "weight": 1.0,
        "operations_per_s": None,
        "bytes_per_s": None,
    }
    (default,) = await fetch(routed.pool(), "SELECT *, data::text FROM resources")
    assert (default["resourceName"], default["resourceId"]) == SETTINGS
    assert (default["businessType"], default["date"], default["lastUpdated"]) == (
        business_type,
        REQUESTED_AT,
        REQUESTED_AT,
    )
    assert await tenants(routed, "shard-2") == []
    assert provisioned("succeeded") == before + 1
    (entry,) = [entry for entry in logs if entry["event"] == "tenant.provisioned"]
    assert (entry["business_id"], entry["location_id"], entry["shard_id"]) == ("clinic", "main", "shard-1")
    assert await fetch(routed.pool(), "SELECT * FROM operations") == []  # only operations write there
    case = TenantCase(routed.pool(), TENANT)
    fresh = case.operation("read", "default", resource_type="settings", arrived_at=datetime.now(UTC))
    assert await case.apply(fresh) == [SUCCEEDED]


async def test_provision_changes_nothing_when_it_is_redelivered(routed: RoutedShards) -> None:
    await routed.provisioner.provision(request())
    case = TenantCase(routed.pool(), TENANT)
    before = provisioned("existed")

    def now(kind: str, data: Any = None) -> Operation:
        return case.operation(kind, "default", data, resource_type="settings", arrived_at=datetime.now(UTC))

    assert await case.apply(now("patch", {"locale": "nb"})) == [SUCCEEDED]
    changed = await case.resources()
    assert await routed.provisioner.provision(request()) is ProvisionResult.EXISTED
    assert await case.resources() == changed
    assert await case.apply(now("delete")) == [SUCCEEDED]
    assert await routed.provisioner.provision(request()) is ProvisionResult.EXISTED
    assert await case.resources() == {}
    assert provisioned("existed") == before + 2


async def test_provision_goes_on_when_it_was_killed_after_the_registration(routed: RoutedShards) -> None:
    routed.register(TENANT, "shard-2")

    assert await routed.provisioner.provision(request()) is ProvisionResult.PROVISIONED

    assert (len(await tenants(routed, "shard-1")), len(await tenants(routed, "shard-2"))) == (0, 1)


@pytest.mark.parametrize("is_registered", [True, False])
async def test_provision_makes_nothing_when_the_tenant_lives_elsewhere(
    routed: RoutedShards, *, is_registered: bool
) -> None:
    await add_tenant(routed.pool("shard-2"))
    if is_registered:
        routed.register(TENANT, "shard-1")

    assert await routed.provisioner.provision(request()) is ProvisionResult.EXISTED

    assert await tenants(routed, "shard-1") == []
    assert [row["control_at"] for row in await tenants(routed, "shard-2")] == [REQUESTED_AT]


@pytest.mark.parametrize("is_empty", [True, False])
async def test_provision_waits_for_a_silent_shard_unless_new(make_shard: ShardMaker, *, is_empty: bool) -> None:
    async with routed_shards([await make_shard("shard-1", is_empty=is_empty), silent("shard-2")]) as routed:
        routed.register(TENANT, "shard-1")
        with pytest.raises(ShardUnavailableError, match="shard shard-2"):
            await routed.provisioner.provision(request())

        new = ("new", "one")
        assert await routed.provisioner.provision(request(new)) is ProvisionResult.PROVISIONED
        assert [row["id"] for row in await tenants(routed, "shard-1")] == ["new-one"]
        with pytest.raises(ShardUnavailableError, match="shard shard-2"):
            await routed.provisioner.provision(request())


async def test_provision_is_undone_when_its_transaction_took_too_long(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "REGISTRATION_MOST", timedelta())
    async with routed_shards([await make_shard("shard-1")]) as routed:
        with pytest.raises(RetryableError, match="took over 30 s"):
            await routed.provisioner.provision(request())

        assert await tenants(routed, "shard-1") == []
        assert await fetch(routed.pool(), "SELECT * FROM resources") == []


async def test_provision_takes_a_destruction_back_when_it_is_newer(routed: RoutedShards) -> None:
    routed.register(TENANT, "shard-1")
    case = TenantCase(routed.pool(), TENANT)
    await add_tenant(case.pool)
    assert await case.apply(case.operation("create", "r1", {"n": 1})) == [SUCCEEDED]
    await case.set_state("destroying")

    assert await routed.provisioner.provision(request(at=TENANT_MADE_AT)) is ProvisionResult.STALE
    assert [row["state"] for row in await tenants(routed, "shard-1")] == ["destroying"]
    assert await routed.provisioner.provision(request()) is ProvisionResult.RESTORED
    assert await routed.provisioner.provision(request()) is ProvisionResult.EXISTED

    (row,) = await fetch(case.pool, "SELECT state, control_at, created_at, epoch FROM tenants")
    assert row == {"state": "active", "control_at": REQUESTED_AT, "created_at": TENANT_MADE_AT, "epoch": 1}
    assert await case.resources() == {("patient", "r1"): {"n": Decimal(1)}}


async def test_provision_all_makes_the_others_when_some_cannot_be_made(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1"), silent("shard-2")]) as routed:
        pool = routed.pool()
        await fetch(pool, "ALTER TABLE tenants ADD CONSTRAINT picky CHECK (location_id <> 'bad')")
        await add_tenant(pool, ("a-b", "c"))
        routed.register(("far", "away"), "shard-2")
        names = [("x", "1"), ("x", "bad"), ("a", "b-c"), ("x", "spa"), ("far", "away"), ("x", "2"), ("x", "3")]
        requests = [request(name, "spa" if name[1] == "spa" else "dental") for name in names]
        before = provisioned("failed")

        answers = await routed.provisioner.provision_all(requests)

        kinds = [answer if isinstance(answer, ProvisionResult) else type(answer) for answer in answers]
        made = ProvisionResult.PROVISIONED
        assert kinds == [
            made,
            RefusedOnShardError,
            PermanentError,
            UnknownBusinessTypeError,
            ShardUnavailableError,
            made,
            made,
        ]
        assert [row["id"] for row in await tenants(routed, "shard-1")] == ["a-b-c", "x-1", "x-2", "x-3"]
        assert await fetch(pool, "SELECT count(*) FROM resources") == [{"count": 3}]
        assert provisioned("failed") == before + 4
        await fetch(pool, "ALTER TABLE tenants DROP CONSTRAINT picky")


async def test_provision_waits_for_no_shard_but_its_own_in_a_marked_map(make_shard: ShardMaker) -> None:
    shards = [silent("shard-1"), silent("shard-2"), await make_shard("shard-3")]
    mapped = tuple(MappedShard(shard.shard_id, shard.connection_string) for shard in shards)
    hashed = next(("b", str(one)) for one in range(200) if jump_hash(hash_of(f"b-{one}"), 3) == 2)
    for is_marked in (False, True):
        locator = StaticMap(ShardMap(mapped, {"b-pinned": "shard-3"}, all_in_place=is_marked))
        async with Pools(size=1) as pools:
            directory = Directory(locator, pools)
            provisioner = Provisioner(locator, directory, pools)
            for tenant in (("b", "pinned"), hashed):
                if is_marked:
                    assert await directory.find("-".join(tenant)) is Absence.NOT_HERE
                    assert await provisioner.provision(request(tenant)) is ProvisionResult.PROVISIONED
                else:
                    for find in (provisioner.provision(request(tenant)), directory.find("-".join(tenant))):
                        with pytest.raises(
                            HomeUnknownError, match="do not have the tenant, and another one may: shard"
                        ):
                            await find
            ids = {row["id"] for row in await fetch(pools.pool_of("shard-3"), "SELECT id FROM tenants")}
            assert ids == ({"b-pinned", "-".join(hashed)} if is_marked else set())


class MadeElsewhere:
    """A locator after whose register another replica makes the tenants on shard-2, as this one does on shard-1."""

    def __init__(self, routed: RoutedShards) -> None:
        self._routed = routed
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._routed.locator, name)

    async def list_shards(self) -> list[ShardAddress]:
        await fetch(self._routed.pool("shard-2"), "DELETE FROM tenants")
        self._count += 1
        for tenant in (TENANT, OTHER)[: self._count]:
            await add_tenant(self._routed.pool("shard-2"), tenant)
        if self._count == 1:
            raise RetryableError("no answer")
        shards = await self._routed.locator.list_shards()
        return [shards[0], silent("shard-3")] if self._count == 2 else shards


async def test_provision_tells_when_two_shards_have_the_tenant(routed: RoutedShards) -> None:
    locator: Any = MadeElsewhere(routed)
    provisioner = Provisioner(locator, routed.directory, routed.pools)

    first = await provisioner.provision_all([request()]) + await provisioner.provision_all([request(OTHER)])
    assert [str(one) for one in first] == ["no answer", "provisioned"]

    async def is_told() -> bool:
        return REGISTRY.get_sample_value("simplu_tenants_split") == 2

    with capture_logs() as logs:
        look = asyncio.create_task(provisioner.split.run())
        assert await poll_until(is_told, within_s=30)
        look.cancel()
    entries = [(entry["log_level"], entry["business_id"], entry["shard_ids"]) for entry in logs]
    assert sorted(entries) == [("error", business_id, ["shard-1", "shard-2"]) for business_id in (OTHER[0], TENANT[0])]
    with pytest.raises(TenantSplitError, match="rows on the shards shard-1, shard-2"):  # it exists
        await provisioner.provision(request())

    assert [len(await tenants(routed, shard_id)) for shard_id in ("shard-1", "shard-2")] == [2, 2]
    split = SplitTenants(routed.locator, routed.pools)
    assert set(await split.find(["clinic-main"])) == {"clinic-main"}
    await fetch(routed.pool("shard-2"), "DELETE FROM tenants")
    assert await split.find(["clinic-main"]) == {}
    assert REGISTRY.get_sample_value("simplu_tenants_split") == 0


@pytest.mark.slow(0.4)
async def test_provision_all_puts_single_calls_into_few_transactions(make_shard: ShardMaker) -> None:
    address = await make_shard("shard-1", is_empty=True)
    async with routed_shards([address]) as routed, asyncio.TaskGroup() as tasks:
        for number in range(60):
            tasks.create_task(routed.provisioner.provision(request(("b", str(number)))))
    async with routed_shards([address]) as routed:
        (row,) = await fetch(routed.pool(), "SELECT count(*), count(DISTINCT created_at) AS made FROM tenants")
        assert row["count"] == 60
        assert row["made"] <= 15


async def test_provision_waits_when_the_shard_lacks_the_business_type(routed: RoutedShards) -> None:
    requests = [request(("b", name), kind) for name, kind in (("1", "spa"), ("2", "hotel"), ("3", "spa"))]

    answers = await routed.provisioner.provision_all(requests)

    assert isinstance(answers[0], UnknownBusinessTypeError)
    assert answers[0].given_up == (
        "businessType: expected one of dental, gym, hotel, restaurant, shop, which shard shard-1 has, got 'spa'"
    )
    assert answers[1] is ProvisionResult.PROVISIONED
    assert [row["id"] for row in await fetch(routed.pool(), "SELECT id FROM tenants")] == ["b-2"]

    spa = read_type('{"name": "spa", "defaultSettings": {}, "staffResourceType": "host"}')
    await Upgrader(routed.pool(), patience_s=0.0).apply_types({"spa": spa}, remove=())
    made = ProvisionResult.PROVISIONED
    assert await routed.provisioner.provision_all(requests) == [made, ProvisionResult.EXISTED, made]
