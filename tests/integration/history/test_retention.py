from __future__ import annotations

import json

import pytest
from support.postgres.databases import PoolMaker
from support.postgres.histories import age_versions, keep_history, version_numbers
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.shards.histories import HistoryRetention
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Pools, ShardPool

AS_OF = "SELECT resource_id, version, document::text FROM simplu_as_of($1, 'patient', now() - $2 * interval '1 day')"


@pytest.fixture
async def kept(make_pool: PoolMaker) -> TenantCase:
    """Give a tenant whose patients have changed a hundred days ago, and some of them since then."""
    pool = await make_pool()
    await keep_history(pool, "patient", keep="90d")
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    for name in ("still", "changed", "deleted", "again"):
        await case.apply_each(case.operation("create", name, {"a": 1}), case.operation("update", name, {"a": 2}))
    await case.apply_each(case.operation("delete", "deleted"), case.operation("delete", "again"))
    await age_versions(pool, case.tenant_id)
    await case.apply_each(case.operation("update", "changed", {"a": 3}), case.operation("create", "again", {"a": 4}))
    return case


async def forget(pool: ShardPool, *, limit: int = 2000) -> int:
    """Delete what is too old, in statements of so many rows; return how many."""
    async with Pools(size=1) as pools:
        pools.ensure_pool(pool.address)
        counts = await HistoryRetention(pools, statement_rows=limit).take_turn()
    return counts[pool.address.shard_id]


@pytest.mark.parametrize("limit", [1, 3, 2000])
async def test_versions_that_were_replaced_before_the_days_go(kept: TenantCase, limit: int) -> None:
    count = await forget(kept.pool, limit=limit)

    assert count == 8
    assert await version_numbers(kept) == {"still": [2], "changed": [2, 3], "again": [4]}
    formers = await fetch(kept.pool, "SELECT version, former::text FROM resource_versions WHERE former IS NOT NULL")
    assert [(row["version"], json.loads(row["former"])) for row in formers] == [(3, {"a": 2})]
    assert await forget(kept.pool) == 0


async def test_what_was_within_the_days_is_told_as_before(kept: TenantCase) -> None:
    before = await fetch(kept.pool, AS_OF, kept.tenant_id, 89)

    await forget(kept.pool)

    assert await fetch(kept.pool, AS_OF, kept.tenant_id, 89) == before
    assert [(row["resource_id"], row["version"]) for row in before] == [("changed", 2), ("still", 2)]
    now = await fetch(kept.pool, AS_OF, kept.tenant_id, 0)
    assert [(row["resource_id"], row["version"]) for row in now] == [("again", 4), ("changed", 3), ("still", 2)]


@pytest.mark.parametrize("days", [91, -1])
async def test_a_time_of_which_nothing_is_known_is_refused(kept: TenantCase, days: int) -> None:
    with pytest.raises(StatementFailedError) as raised:
        await fetch(kept.pool, AS_OF, kept.tenant_id, days)
    assert str(raised.value.__cause__).startswith("expected a time from")


async def test_a_type_without_a_history_is_refused(kept: TenantCase) -> None:
    with pytest.raises(StatementFailedError) as raised:
        await fetch(kept.pool, AS_OF.replace("patient", "treatment"), kept.tenant_id, 0)
    assert str(raised.value.__cause__).startswith("treatment of tenant clinic-main has no history here")


@pytest.mark.parametrize("state", ["incoming", "fenced", "moved"])
async def test_tenants_that_do_not_live_here_keep_all(kept: TenantCase, state: str) -> None:
    await kept.set_state(state)

    assert await forget(kept.pool) == 0


async def test_days_of_a_history_may_change(kept: TenantCase) -> None:
    await keep_history(kept.pool, "patient")
    assert await forget(kept.pool) == 0

    await keep_history(kept.pool, "patient", keep="120d")
    assert await forget(kept.pool) == 0

    await keep_history(kept.pool, "patient", keep="30d")
    assert await forget(kept.pool) == 8


async def test_numbers_go_on_behind_what_was_deleted(kept: TenantCase) -> None:
    await forget(kept.pool)

    await kept.apply_each(kept.operation("update", "still", {"a": 5}), kept.operation("create", "deleted", {"a": 6}))

    assert await version_numbers(kept) == {"still": [2, 3], "changed": [2, 3], "again": [4], "deleted": [1]}


async def test_as_of_reads_one_tenant_by_the_index(kept: TenantCase) -> None:
    """Of a table with ten thousand versions of others it reads none."""
    await fetch(
        kept.pool,
        """
        INSERT INTO resource_versions (applied_at, tenant_no, version, type_no, source_no, kind, digest, resource)
        SELECT now(), 1000000 + n / 100, 1, 1, 1, 'c', '', convert_to(n::text, 'UTF8')
        FROM generate_series(1, 10000) AS n
        """,
    )
    await fetch(kept.pool, "ANALYZE resource_versions")
    query = "SELECT * FROM resource_history WHERE tenant_id = $1 AND resource_type = 'patient'"
    (row,) = await fetch(kept.pool, f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", kept.tenant_id)
    assert '"Seq Scan", "Relation Name": "resource_versions"' not in " ".join(row["QUERY PLAN"].split())
