"""What control messages change of a tenant's resources is marked in the log, in the transaction of the change.

What follows a tenant's changes finds the marks beside the operations; nobody else sees them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from support.citrus.cases import RoutedShards
from support.postgres.tenant_cases import TENANT, TenantCase, fetch

from simplu_worker.shards.listing import ListRequest, OperationPage
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import AdminAccount, ChangeResult, ProvisionRequest, ResourceRename

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
OTHER = ("clinic", "other")
MARKS = """
SELECT tenants.id, log_batches.types[log_rows.type_at] AS resource_type, simplu_id(log_rows.resource) AS resource_id
FROM log_rows
JOIN log_batches USING (batch_id)
JOIN tenants ON tenants.number = log_rows.tenant_no
WHERE log_rows.kind = 'm' AND log_batches.kind = 'o'
    AND log_batches.origins[log_rows.origin_at] IN ('control', 'rename', 'creation')
    AND tenants.number = ANY(log_batches.tenants) AND get_byte(log_rows.request, 0) = 4
ORDER BY batch_id, position
"""
SETTINGS = ("settings", "default")


@pytest.fixture
def pool(routed: RoutedShards) -> ShardPool:
    return routed.pool()


async def provision(routed: RoutedShards, *tenants: tuple[str, str], business_type: str = "dental") -> None:
    for tenant in tenants:
        await routed.provisioner.provision(ProvisionRequest(*tenant, business_type, AT))


async def marked(pool: ShardPool) -> list[tuple[str, str, str]]:
    return [(row["id"], row["resource_type"], row["resource_id"]) for row in await fetch(pool, MARKS)]


async def forget_marks(pool: ShardPool) -> None:
    await fetch(pool, "DELETE FROM log_rows WHERE kind = 'm'")


async def test_provisioning_marks_the_default_rows(routed: RoutedShards, pool: ShardPool) -> None:
    await provision(routed, TENANT, OTHER)
    await provision(routed, TENANT)

    assert await marked(pool) == [("clinic-main", *SETTINGS), ("clinic-other", *SETTINGS)]


@pytest.mark.parametrize(("business_type", "staff_type"), [("dental", "medic"), ("gym", None)])
async def test_administrator_marks_the_rows_that_were_added(
    routed: RoutedShards, pool: ShardPool, business_type: str, staff_type: str | None
) -> None:
    await provision(routed, TENANT, business_type=business_type)
    await forget_marks(pool)
    query = "SELECT staff_resource_type AS type FROM business_types WHERE name = $1"
    ((staff,),) = [row.values() for row in await fetch(pool, query, business_type)]
    admin = AdminAccount(*TENANT, business_type, "ann.lee@clinic.example", "u-1", AT)
    assert staff_type in {staff, None}

    assert await routed.changes.add_admin(admin) is ChangeResult.APPLIED
    assert await routed.changes.add_admin(admin) is ChangeResult.EXISTED
    assert sorted(await marked(pool)) == sorted([("clinic-main", "role", "u-1"), ("clinic-main", staff, "u-1")])

    await forget_marks(pool)
    await fetch(pool, "DELETE FROM resources WHERE \"resourceName\" = 'role'")
    assert await routed.changes.add_admin(admin) is ChangeResult.APPLIED
    assert await marked(pool) == [("clinic-main", "role", "u-1")]


async def test_nobody_is_shown_a_mark(routed: RoutedShards, pool: ShardPool) -> None:
    await provision(routed, TENANT)
    routed.register(TENANT, "shard-1")
    case = TenantCase(pool, TENANT)
    sent = case.operation("create", "r1", {}, arrived_at=datetime.now(UTC))
    await case.apply(sent)
    await routed.changes.rename(ResourceRename(*TENANT, "patient", "r1", "r2", None, AT))
    assert len(await marked(pool)) == 3

    assert [row["request_id"] for row in await fetch(pool, "SELECT * FROM operations")] == [sent.request_id]
    page = await routed.gateway.lookups.list_operations(*TENANT, ListRequest())
    assert isinstance(page, OperationPage)
    assert [one.request_id for one in page.operations] == [sent.request_id]
    by_type = await routed.gateway.lookups.list_operations(*TENANT, ListRequest(resource_type="settings"))
    assert isinstance(by_type, OperationPage)
    assert by_type.operations == []
    (shown,) = await fetch(pool, QUERIES["show_tenant"], case.tenant_id)
    assert shown["operation_count"] == 1
    (mark, *_) = await fetch(pool, "SELECT request FROM log_rows WHERE kind = 'm'")
    key: Any = mark["request"]
    assert await fetch(pool, "SELECT FROM operations WHERE request_key = $1", key) == []
    assert not key_of_id("").startswith(key.hex()[:2])
