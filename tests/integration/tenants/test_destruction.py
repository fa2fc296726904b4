from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TENANT_MADE_AT, TenantCase, add_tenant, failed, fetch
from support.postgres.trouble import waiters

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.tenants.deletion import TenantDeleter
from simplu_worker.shards.types import DestructionResult, ProvisionRequest, ProvisionResult, ShardUnavailableError
from simplu_worker.vocabulary import Failure

DESTROYED_AT = datetime(2026, 3, 2, 12, tzinfo=UTC)
GRACE = timedelta(hours=168)
PATIENT = ShardTimeouts(pause_lock_s=60.0)  # a batch may keep the row of its tenant for long on a slow machine
NO_GRACE = timedelta()
ADD_RESOURCES = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, 'dental', 'patient', number::text, '{}', now(), now() FROM generate_series(1, $2::int) AS number
"""


@pytest.fixture
async def routed(routed: RoutedShards) -> RoutedShards:
    routed.register(TENANT, "shard-1")
    await add_tenant(routed.pool())
    await fetch(routed.pool(), ADD_RESOURCES, "clinic-main", 3)
    return routed


async def states(routed: RoutedShards, shard_id: str = "shard-1") -> dict[str, str]:
    return {row["id"]: row["state"] for row in await fetch(routed.pool(shard_id), "SELECT id, state FROM tenants")}


async def destroy(
    routed: RoutedShards, tenant: tuple[str, str] = TENANT, *, at: datetime = DESTROYED_AT
) -> DestructionResult:
    return await routed.destroyer.destroy(*tenant, at)


def deletion(routed: RoutedShards, grace: timedelta = NO_GRACE, **options: Any) -> TenantDeleter:
    return TenantDeleter(routed.pools, grace, **options)


# Beginning


async def test_destroy_ends_operations_at_once_and_keeps_the_rows(routed: RoutedShards) -> None:
    case = TenantCase(routed.pool(), TENANT)
    with capture_logs() as logs:
        assert await destroy(routed) is DestructionResult.DESTROYING

    assert await case.apply(case.operation("create", "r9", {})) == [failed(Failure.TENANT_DESTROYED)]
    assert len(await case.resources()) == 3
    (row,) = await fetch(case.pool, "SELECT state, control_at, state_changed_at, created_at FROM tenants")
    assert abs(datetime.now(UTC) - row.pop("state_changed_at")) < timedelta(minutes=1)
    assert row == {"state": "destroying", "control_at": DESTROYED_AT, "created_at": TENANT_MADE_AT}
    assert list(routed.citrus.registry.homes) == ["clinic-main"]
    (entry,) = [entry for entry in logs if entry["event"] == "tenant.destroying"]
    assert (entry["business_id"], entry["location_id"], entry["shard_id"]) == ("clinic", "main", "shard-1")


async def test_destroy_finds_the_home_that_citrus_does_not_name(routed: RoutedShards) -> None:
    away, moved, lost = ("a", "way"), ("mo", "ved"), ("lo", "st")
    routed.register(away, "shard-1")
    routed.register(moved, "shard-1")
    await add_tenant(routed.pool(), moved, state="moved", moved_to="shard-2")
    for tenant in (away, moved, lost):
        await add_tenant(routed.pool("shard-2"), tenant)

    assert [await destroy(routed, tenant) for tenant in (away, moved, lost)] == [DestructionResult.DESTROYING] * 3

    assert await states(routed, "shard-2") == dict.fromkeys(("a-way", "mo-ved", "lo-st"), "destroying")
    assert await states(routed) == {"clinic-main": "active", "mo-ved": "moved"}


async def test_destroy_waits_when_somebody_who_must_be_asked_is_silent(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1"), silent("shard-2")]) as routed:
        routed.register(TENANT, "shard-2")
        with pytest.raises(ShardUnavailableError, match="shard shard-2"):
            await destroy(routed)
        with pytest.raises(ShardUnavailableError, match="shard shard-2"):
            await destroy(routed, ("not", "registered"))
        routed.citrus.registry.shards["shard-2"].is_active = False
        with pytest.raises(RetryableError, match="shard shard-2 is not active"):
            await destroy(routed)


async def test_destroy_waits_for_a_batch_under_way_alone(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1")], timeouts=PATIENT) as routed:
        routed.register(TENANT, "shard-1")
        case = TenantCase(routed.pool(), TENANT)
        await add_tenant(case.pool)
        batch = await asyncpg.connect(case.pool.address.connection_string)
        watcher = await asyncpg.connect(case.pool.address.connection_string)
        await batch.execute("BEGIN")
        await batch.execute("SELECT FROM tenants FOR SHARE")
        async with asyncio.TaskGroup() as tasks:
            destroying = tasks.create_task(destroy(routed))
            await waiters(watcher)
            await batch.execute(ADD_RESOURCES, "clinic-main", 1)
            await batch.execute("COMMIT")
        assert destroying.result() is DestructionResult.DESTROYING
        assert await case.apply(case.operation("create", "r2", {})) == [failed(Failure.TENANT_DESTROYED)]
        assert len(await case.resources()) == 1
        await batch.close()
        await watcher.close()


# Every location of a business


async def test_destroy_all_destroys_every_location_on_every_shard(routed: RoutedShards) -> None:
    await add_tenant(routed.pool(), ("clinic", "newer"), created_at=DESTROYED_AT + timedelta(days=1))
    await add_tenant(routed.pool(), ("clinic", "moved"), state="moved", moved_to="shard-2")
    await add_tenant(routed.pool(), ("clinic", "again"), state="destroyed")
    await add_tenant(routed.pool(), ("clinic-a", "b"))
    for location in ("moved", "second", "again"):
        await add_tenant(routed.pool("shard-2"), ("clinic", location))

    results = await routed.destroyer.destroy_all("clinic", DESTROYED_AT)

    assert results == {
        "main": DestructionResult.DESTROYING,
        "newer": DestructionResult.STALE,
        "moved": DestructionResult.DESTROYING,
        "second": DestructionResult.DESTROYING,
        "again": DestructionResult.DESTROYING,
    }
    assert await states(routed) == {
        "clinic-main": "destroying",
        "clinic-newer": "active",
        "clinic-moved": "moved",
        "clinic-again": "destroyed",
        "clinic-a-b": "active",
    }
    assert set((await states(routed, "shard-2")).values()) == {"destroying"}
    again = await routed.destroyer.destroy_all("clinic", DESTROYED_AT)
    assert again == results | dict.fromkeys(("main", "moved", "second", "again"), DestructionResult.EXISTED)
    assert await routed.destroyer.destroy_all("nobody", DESTROYED_AT) == {}


async def test_destroy_all_begins_nothing_when_a_shard_is_silent(make_shard: ShardMaker) -> None:
    shards = [await make_shard("shard-1"), await make_shard("shard-2", is_empty=True), silent("shard-3")]
    async with routed_shards(shards) as routed:
        await add_tenant(routed.pool())
        with pytest.raises(ShardUnavailableError, match="shard shard-3"):
            await routed.destroyer.destroy_all("clinic", DESTROYED_AT)
        assert await states(routed) == {"clinic-main": "active"}

        del routed.citrus.registry.shards["shard-3"]
        assert await routed.destroyer.destroy_all("clinic", DESTROYED_AT) == {"main": DestructionResult.DESTROYING}


# The deletion


async def test_deletion_deletes_nothing_before_the_grace_time_is_over(routed: RoutedShards) -> None:
    await add_tenant(routed.pool(), ("still", "there"))
    await fetch(routed.pool(), ADD_RESOURCES, "still-there", 2)
    await destroy(routed)
    age = "UPDATE tenants SET state_changed_at = now() - $1::interval WHERE id = 'clinic-main'"

    await fetch(routed.pool(), age, GRACE - timedelta(minutes=1))
    assert await deletion(routed, GRACE).delete_due() == 0
    assert await fetch(routed.pool(), "SELECT count(*) FROM resources") == [{"count": 5}]

    await fetch(routed.pool(), age, GRACE + timedelta(minutes=1))
    with capture_logs() as logs:
        assert await deletion(routed, GRACE).delete_due() == 1
    assert await states(routed) == {"clinic-main": "destroyed", "still-there": "active"}
    assert await fetch(routed.pool(), "SELECT DISTINCT id FROM resources") == [{"id": "still-there"}]
    (entry,) = [entry for entry in logs if entry["event"] == "tenant.destroyed"]
    assert (entry["location_id"], entry["shard_id"], entry["resource_count"]) == ("main", "shard-1", 3)


async def test_what_is_set_for_a_business_goes_with_its_last_tenant(routed: RoutedShards) -> None:
    pool = routed.pool()
    for business_id, state in (("still", "active"), ("left", "moved"), ("leaving", "moved")):
        await add_tenant(pool, (business_id, "there"), state=state, moved_to="shard-2" if state == "moved" else None)
    for query in (
        "INSERT INTO transfers VALUES ('leaving-there', 'departure', '', '', 'done')",
        "INSERT INTO business_controls SELECT business_id FROM tenants",
        "UPDATE business_controls SET set_at = now() - interval '61 s'",
        "INSERT INTO limit_buckets SELECT 'b/' || business_id, now(), now() FROM business_controls",
        "INSERT INTO limit_buckets VALUES ('t/0', now(), '-infinity'), ('t/2', now() - interval '2 h', '-infinity')",
    ):
        await fetch(pool, query)
    await destroy(routed)
    assert [await deletion(routed).delete_due() for _ in range(2)] == [1, 0]
    left = "SELECT array_agg(business_id ORDER BY business_id) AS of FROM business_controls"
    assert await fetch(pool, left) == [{"of": ["leaving", "still"]}]
    left = "SELECT array_agg(target ORDER BY target) AS of FROM limit_buckets"
    assert await fetch(pool, left) == [{"of": ["b/leaving", "b/still", "t/0"]}]
    assert await fetch(pool, QUERIES["set_business_controls"], "clinic", None, 2.0, None, None) == []


async def test_deletion_keeps_what_makes_the_tenant_again(routed: RoutedShards) -> None:
    case = TenantCase(routed.pool(), TENANT)
    applied = case.operation("create", "r9", {})
    assert await case.apply(applied) == [SUCCEEDED]
    await destroy(routed)
    assert await deletion(routed).delete_due() == 1
    assert await case.resources() == {}
    assert set(await case.log()) == {applied.request_id}
    assert await case.apply(case.operation("read", "r9")) == [failed(Failure.TENANT_DESTROYED)]

    old = ProvisionRequest(*TENANT, "dental", DESTROYED_AT)
    assert await routed.provisioner.provision(old) is ProvisionResult.STALE
    new = ProvisionRequest(*TENANT, "dental", DESTROYED_AT + timedelta(seconds=1))
    assert await routed.provisioner.provision(new) is ProvisionResult.PROVISIONED
    assert await deletion(routed).delete_due() == 0
    assert list(await case.resources()) == [("settings", "default")]


@pytest.mark.slow
async def test_deletion_goes_in_small_statements(routed: RoutedShards) -> None:
    await fetch(routed.pool(), ADD_RESOURCES.replace("number::text", "'more-' || number"), "clinic-main", 25)
    await destroy(routed)
    assert await deletion(routed, turn_s=0.001, statement_max_rows=10).delete_due() == 0
    left = (await fetch(routed.pool(), "SELECT count(*) FROM resources"))[0]["count"]
    assert left in {18, 28}  # no statement, or one
    again = ProvisionRequest(*TENANT, "dental", DESTROYED_AT + timedelta(days=1))
    with pytest.raises(RetryableError, match="rows are being deleted"):
        await routed.provisioner.provision(again)

    assert await deletion(routed, statement_max_rows=10).delete_due() == 1
    assert await states(routed) == {"clinic-main": "destroyed"}
    assert await routed.provisioner.provision(again) is ProvisionResult.PROVISIONED


async def test_deletion_leaves_a_tenant_that_was_made_again(routed: RoutedShards) -> None:
    late = deletion(routed)
    await destroy(routed)
    (due,) = await late._begin_due(routed.pool())
    assert await deletion(routed).delete_due() == 1
    again = ProvisionRequest(*TENANT, "dental", DESTROYED_AT + timedelta(days=1))
    assert await routed.provisioner.provision(again) is ProvisionResult.PROVISIONED

    assert await late._delete(routed.pool(), due, until=float("inf")) is False
    assert await states(routed) == {"clinic-main": "active"}
    assert await fetch(routed.pool(), "SELECT count(*) FROM resources") == [{"count": 1}]
