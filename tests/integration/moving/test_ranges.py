"""A tenant's rows are read by the index of their keys, and no more of it than is asked for."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.plans import plan_of
from support.postgres.tenant_cases import TENANT, add_tenant, fetch

from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget

TENANT_ID: Final = "-".join(TENANT)
RANGE: Final = (TENANT_ID, "patient", "1000", "patient", "1100")
WITHOUT_END: Final = (*RANGE[:3], None, None)
LIMITED: Final = (*RANGE[:3], 100)
# All rows of the tenant are of one type: an index by tenant, date and type seems to do for a range of that type.
ROWS: Final = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, 'dental', 'patient', number::text, jsonb_build_object('text', repeat('x', 300)), now(), now()
FROM generate_series(1, 5000) AS number
"""
OTHERS: Final = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT 'other-' || number, 'dental', 'settings', 'default', '{}', now(), now()
FROM generate_series(1, 100) AS number
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("copy_resources", RANGE),
        ("copy_resources", WITHOUT_END),
        ("checksum_resources", (*RANGE, [], [])),
        ("checksum_resources", (*WITHOUT_END, ["patient"], ["1"])),
        ("hash_resources", (*RANGE, [], [])),
        ("export_resources", RANGE),
        ("resource_boundary", LIMITED),
    ],
)
async def test_range_is_read_by_its_key_whatever_the_statistics_are(
    make_shard: ShardMaker, name: str, arguments: tuple[Any, ...]
) -> None:
    async with Pools(size=2) as pools:
        pool = pools.ensure_pool(await make_shard("a"))
        await add_tenant(pool)
        await fetch(pool, ROWS, TENANT_ID)
        plans = []
        for _ in range(2):
            async with pool.transaction(budget=StatementBudget.KEY_RANGE) as connection:
                plans.append(await plan_of(connection, name, *arguments))
            await fetch(pool, "ANALYZE resources")
    for plan in plans:
        assert "using resources_pkey" in plan
        (condition,) = [line for line in plan.splitlines() if "Index Cond" in line]
        assert condition.count("ROW(") == (4 if arguments[:5] == RANGE else 2)
        assert not re.search(r"(?<!Join )Filter:", plan)


@pytest.mark.parametrize("name", ["read_resources", "delete_resources_named"])
async def test_named_resources_are_found_by_their_keys_whatever_the_statistics_are(
    make_shard: ShardMaker, name: str
) -> None:
    async with Pools(size=2) as pools:
        pool = pools.ensure_pool(await make_shard("a"))
        await fetch(pool, "TRUNCATE resources")  # the rows that a test before has deleted take room
        await add_tenant(pool)
        await fetch(pool, OTHERS)
        await fetch(pool, "ANALYZE resources")
        await fetch(pool, ROWS, TENANT_ID)
        async with pool.connection() as connection:
            plan = await plan_of(connection, name, TENANT_ID, ["patient"] * 100, [str(one) for one in range(100)])
    assert set(re.findall("resources_by_day|resources_pkey|Seq Scan", plan)) == {"resources_pkey"}
    (condition,) = [line for line in plan.splitlines() if "Index Cond" in line]
    assert all(column in condition for column in ("id = ", '"resourceName" = ', '"resourceId" = '))
