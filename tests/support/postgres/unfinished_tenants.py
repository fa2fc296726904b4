"""One tenant on shards behind a local Citrus, as provisioning has it between its steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from support.citrus.cases import RoutedShards
from support.postgres.tenant_cases import TENANT, TenantCase, fetch

from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool

TENANT_ID = "clinic-main"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def make_unfinished(
    pool: ShardPool, *, age_s: float = 0.0, confirmed: bool = False, touched: bool = False, epoch: int = 1
) -> None:
    """Make the tenant on a shard as provisioning does, up to its confirmation, so long ago."""
    made_at = datetime.now(UTC) - timedelta(seconds=age_s)
    await fetch(
        pool,
        "INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at,"
        " state_changed_at, epoch) VALUES ($1, $2, $3, 'dental', 'active', $4, $5, $6, $7)",
        TENANT_ID,
        *TENANT,
        AT,
        made_at,
        made_at + timedelta(seconds=confirmed),
        epoch,
    )
    await fetch(
        pool,
        'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
        " SELECT $1, name, 'settings', 'default', default_settings, $2, $2 FROM business_types WHERE name = 'dental'",
        TENANT_ID,
        AT,
    )
    if touched:
        case = TenantCase(pool, TENANT)
        assert await case.apply(case.operation("create", "r1", {}, arrived_at=datetime.now(UTC))) == [SUCCEEDED]


async def homes(routed: RoutedShards) -> dict[str, tuple[str, bool, int]]:
    """Return the tenant's state, whether it is confirmed, and how many resources it has, by shard."""
    query = (
        "SELECT state, state_changed_at <> created_at AS is_confirmed,"
        " (SELECT count(*) FROM resources WHERE resources.id = tenants.id) AS count FROM tenants"
    )
    found = {}
    for shard_id in routed.citrus.registry.shards:
        for row in await fetch(routed.pool(shard_id), query):
            found[shard_id] = (row["state"], row["is_confirmed"], row["count"])
    return found
