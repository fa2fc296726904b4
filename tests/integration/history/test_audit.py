from __future__ import annotations

from typing import Any

import pytest
from support.postgres.databases import PoolMaker
from support.postgres.histories import age_versions, keep_history
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_worker.shards.postgres.queries import QUERIES

Finding = tuple[str | None, int, str]


@pytest.fixture
async def kept(make_pool: PoolMaker) -> TenantCase:
    """Give a tenant with versions of patients: one that was there before, one that was deleted, one that lives."""
    pool = await make_pool()
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    await case.apply(case.operation("create", "old", {"a": 1}), case.operation("create", "quiet", {"a": 1}))
    await keep_history(pool, "patient")
    await case.apply_each(
        case.operation("update", "old", {"a": 2}),
        case.operation("create", "gone", {"a": 1}),
        case.operation("patch", "gone", {"b": [1, "\u00e4"]}),
        case.operation("delete", "gone"),
        case.operation("create", "here", {"a": 1.5}),
        case.operation("update", "here", {"a": 2}),
        case.operation("update", "here", {"a": 3}),
    )
    return case


async def audit(case: TenantCase, *, rows: int = 2000) -> list[Finding]:
    """Return what is wrong, by pages of so many rows."""
    place, found = "-1//-1", list[Finding]()
    while place:
        page: list[dict[str, Any]] = await fetch(case.pool, QUERIES["audit_versions"], case.tenant_id, "", place, rows)
        found += [(row["resource_id"], row["version"], row["finding"]) for row in page if row["finding"]]
        place = page[-1]["place"]
    return found


@pytest.mark.parametrize("rows", [1, 4, 2000])
async def test_versions_as_they_were_written_are_right(kept: TenantCase, rows: int) -> None:
    assert await audit(kept, rows=rows) == []


NO_TRIGGERS = "ALTER TABLE resources DISABLE TRIGGER USER"
HERE_2 = "WHERE resource = simplu_key('here') AND version = 2"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (f"UPDATE resource_versions SET former = '{{\"a\": 9}}' {HERE_2}", [("here", 1, "changed")]),
        (f"UPDATE resource_versions SET applied_at = applied_at - interval '1 us' {HERE_2}", [("here", 2, "changed")]),
        (f"UPDATE resource_versions SET request = simplu_key('x') {HERE_2}", [("here", 2, "changed")]),
        (f"UPDATE resource_versions SET kind = 'p' {HERE_2}", [("here", 2, "changed")]),
        (f"UPDATE resource_versions SET digest = 'x' {HERE_2}", [("here", 2, "changed"), ("here", 3, "changed")]),
        (f"DELETE FROM resource_versions {HERE_2}", [("here", 1, "changed"), ("here", 3, "missing")]),
        (HERE_2.replace("WHERE", "DELETE FROM resource_versions WHERE").replace("2", "3"), [("here", 2, "changed")]),
        (HERE_2.replace("WHERE", "DELETE FROM resource_versions WHERE").replace("2", "1"), [("here", 2, "missing")]),
        (
            f"{NO_TRIGGERS}; UPDATE resources SET data = '{{}}' WHERE \"resourceId\" = 'here'",
            [("here", 3, "changed")],
        ),
        (
            f"{NO_TRIGGERS}; DELETE FROM resources WHERE \"resourceId\" = 'here'",
            [("here", 3, "changed")],
        ),
        ("DELETE FROM resource_versions WHERE resource = simplu_key('gone') AND kind = 'd'", [("gone", 2, "changed")]),
        (f"UPDATE resource_versions SET former = NULL {HERE_2}", [("here", 1, "erased")]),
    ],
)
async def test_what_was_changed_afterwards_shows(kept: TenantCase, change: str, expected: list[Finding]) -> None:
    async with kept.pool.connection() as connection:
        for statement in change.split("; "):
            await connection.execute(statement)

    assert await audit(kept) == expected


async def test_the_oldest_versions_of_a_history_with_days_may_be_missing(kept: TenantCase) -> None:
    await keep_history(kept.pool, "patient", keep="90d")
    await age_versions(kept.pool, kept.tenant_id)
    assert await audit(kept) == []

    assert await fetch(kept.pool, QUERIES["forget_versions"], -1, -1, "", -1, 2000)

    assert await audit(kept) == []
    (row,) = await fetch(kept.pool, "SELECT count(*) FROM resource_versions WHERE version > 1")
    assert row["count"] == 1
