"""Lists of the operations of a tenant: each one once, newest first, whatever the log is like; and with bounded work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.log_rows import COMPLETED_AT, LogRow, crowd_log, write_log_rows
from support.postgres.plans import plan_of
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.shards.listing import (
    INSTANT,
    ListRequest,
    OperationLister,
    OperationPage,
    SearchLimits,
    decode_cursor,
)
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts, StatementBudget
from simplu_worker.vocabulary import Absence, Failure, OperationStatus

TENANT_ID = "-".join(TENANT)
OTHERS = ("smile-berlin", "clinic-mai", "clinic-main-")
LOCK_LOG = "BEGIN; LOCK TABLE log_batches"
WAITING = "FROM pg_locks WHERE NOT granted AND relation = 'log_batches'::regclass"
FILTERS: list[dict[str, Any]] = [
    {},
    {"resource_type": "patient"},
    {"resource_id": "p2"},
    {"resource_type": "invoice", "resource_id": "p1"},
    {"status": OperationStatus.FAILED},
    {"status": OperationStatus.SUCCEEDED},
    {"error": Failure.NOT_FOUND},
    {"since": COMPLETED_AT + 2 * INSTANT},
    {"until": COMPLETED_AT + 3 * INSTANT},
    {"since": COMPLETED_AT + INSTANT, "until": COMPLETED_AT + 2 * INSTANT, "status": OperationStatus.SUCCEEDED},
    {"resource_type": "none of these"},
]


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    # A test that keeps the log locked has its time, also on a busy machine.
    async with routed_shards(shards, timeouts=ShardTimeouts(lock_s=60.0, search_s=120.0)) as routed:
        await add_tenants(pool_of(routed))
        routed.register(TENANT, "shard-1")
        yield routed


async def add_tenants(pool: ShardPool) -> None:
    for tenant_id in (TENANT_ID, *OTHERS):
        business_id, _, location_id = tenant_id.partition("-")
        await add_tenant(pool, (business_id, location_id))


def pool_of(routed: RoutedShards, shard_id: str = "shard-1") -> ShardPool:
    return routed.pools.ensure_pool(ShardAddress(shard_id, routed.citrus.registry.shards[shard_id].connection_string))


async def has_waiting(connection: asyncpg.Connection, count: int) -> bool:
    return bool(await connection.fetchval(f"SELECT count(*) = $1 {WAITING}", count))


def lister_of(routed: RoutedShards, limits: SearchLimits) -> OperationLister:
    """Return a lister with its own bounds, but for that of time: its clock stands, however busy the machine is."""
    return OperationLister(routed.directory, routed.pools, limits=limits, clock=lambda: 0.0)


async def page_of(lister: OperationLister, **members: Any) -> OperationPage:
    page = await lister.list_page(*TENANT, ListRequest(**members))
    assert isinstance(page, OperationPage)
    return page


async def pages_of(lister: OperationLister, **members: Any) -> list[OperationPage]:
    pages = [await page_of(lister, **members)]
    while pages[-1].next is not None:
        assert len(pages) < 200
        pages.append(await page_of(lister, **members, after=decode_cursor(pages[-1].next)))
    return pages


def ids_of(pages: list[OperationPage]) -> list[str]:
    return [one.request_id for page in pages for one in page.operations]


def expected_ids(rows: list[LogRow], **wanted: Any) -> list[str]:
    found = [
        row
        for row in rows
        if row.tenant_id == TENANT_ID
        and wanted.get("resource_type") in {None, row.resource_type}
        and wanted.get("resource_id") in {None, row.resource_id}
        and wanted.get("status") in {None, "failed" if row.error else "succeeded"}
        and wanted.get("error") in {None, row.error}
        and ("since" not in wanted or row.completed_at >= wanted["since"])
        and ("until" not in wanted or row.completed_at < wanted["until"])
    ]
    return [row.request_id for row in sorted(found, key=lambda row: (row.micros, row.request_id), reverse=True)]


def random_rows(seed: int, count: int = 60) -> list[LogRow]:
    draw = random.Random(seed)
    tenants = (TENANT_ID, TENANT_ID, *OTHERS)
    instants = draw.choice([(0,), (0, 1, 2, 3, 4), range(-40, 40)])
    return [
        LogRow(
            draw.choice(tenants),
            f"{draw.choice(['r', 'R', 'é', 'simplu:'])}{number}",
            draw.choice(instants),
            draw.choice(["patient", "invoice"]),
            draw.choice(["p1", "p2", None]),
            draw.choice([None, None, "not_found", "invalid_data"]),
            draw.choice(["", "a", "b"]),
        )
        for number in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_pages_have_each_operation_once_newest_first(routed: RoutedShards, seed: int) -> None:
    rows = random_rows(seed)
    await write_log_rows(pool_of(routed), rows)
    draw = random.Random(seed)
    for wanted in FILTERS:
        limits = SearchLimits(
            chunk_rows=draw.choice([1, 2, 3, 7, 1000]),
            rows=draw.choice([1, 10, 1000]),
            few=draw.choice([0, 0, 5, 1000]),
        )
        limit = draw.choice([1, 2, 5, 500])
        pages = await pages_of(lister_of(routed, limits), limit=limit, **wanted)

        assert ids_of(pages) == expected_ids(rows, **wanted), (wanted, limits, limit)
        assert all(len(page.operations) <= limit for page in pages)


async def test_list_has_the_members_of_an_operation(routed: RoutedShards) -> None:
    case = TenantCase(pool_of(routed), TENANT)
    await case.apply_each(
        case.operation("create", data={"a": 1}, request_id="one"),
        case.operation("create", "r2", {}, request_id="two"),
        case.operation("delete", "r3", request_id="three"),
        case.operation("list", None, request_id="four"),
    )

    page = await page_of(OperationLister(routed.directory, routed.pools))

    shown = [
        (one.request_id, one.operation, one.resource_type, one.resource_id, one.status, one.error)
        for one in page.operations
    ]
    assert shown == [
        ("four", "list", "patient", None, "succeeded", None),
        ("three", "delete", "patient", "r3", "failed", "not_found"),
        ("two", "create", "patient", "r2", "succeeded", None),
        ("one", "create", "patient", "r1", "succeeded", None),
    ]
    times = [one.completed_at for one in page.operations]
    assert times == sorted(times, reverse=True)
    assert {one.received_at for one in page.operations} == {case.operation("read").origin.arrived_at}
    assert (page.next, page.searched_to, page.shard_id) == (None, None, "shard-1")


async def test_search_reads_the_log_by_its_indexes(routed: RoutedShards) -> None:
    pool = pool_of(routed)
    await crowd_log(pool, TENANT_ID, 3000)
    await fetch(pool, "ANALYZE log_batches, log_rows")
    arguments = [TENANT_ID, COMPLETED_AT, None, COMPLETED_AT - timedelta(days=9), None, "p9", None, None, 51, 3000]
    async with pool.connection() as connection:
        usual = await plan_of(connection, "search_operations", *arguments)
    async with pool.transaction(budget=StatementBudget.SEARCH) as connection:
        searched = await plan_of(connection, "search_operations", *arguments)
        few = await plan_of(connection, "list_few_operations", *arguments)
        counted = await plan_of(connection, "has_few_operations", TENANT_ID, 10)

    assert "Seq Scan on log_batches" in usual
    assert "Index Scan Backward using log_batches_completed_at" in searched
    assert "Index Scan using log_rows_batch" in searched
    assert "Presorted Key: taken.completed_at" in searched
    for plan in (few, counted):
        assert "Index Only Scan using log_rows_pkey" in plan
        assert "log_batches_completed_at" not in plan
        assert "log_rows_batch" not in plan


async def test_lists_leave_connections_to_operations(routed: RoutedShards) -> None:
    pool = pool_of(routed)
    blocker = await asyncpg.connect(pool.address.connection_string)
    lister = OperationLister(routed.directory, routed.pools)
    try:
        await routed.directory.find(TENANT_ID)
        await blocker.execute(LOCK_LOG)
        async with asyncio.TaskGroup() as tasks:
            lists = [tasks.create_task(lister.list_page(*TENANT, ListRequest())) for _ in range(4)]
            assert await poll_until(lambda: has_waiting(blocker, 1), within_s=20)
            async with asyncio.timeout(30), pool.connection() as connection:
                assert await connection.fetchval("SELECT 1") == 1
            assert await has_waiting(blocker, 1)
            await blocker.execute("ROLLBACK")
        assert [task.result() for task in lists] == [OperationPage([], None, None, "shard-1")] * 4
    finally:
        await blocker.close()


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        (("nobody", "here"), Absence.UNREGISTERED),
        (("registered", "only"), Absence.NOT_HERE),
        (("clinic-main", ""), Absence.UNREGISTERED),
        (("cl\0", "main"), Absence.UNREGISTERED),
        (("\ud800", "main"), Absence.UNREGISTERED),
    ],
)
async def test_list_of_no_tenant_is_an_absence(
    routed: RoutedShards, tenant: tuple[str, str], expected: Absence
) -> None:
    routed.register(("registered", "only"), "shard-2")
    assert await routed.gateway.lookups.list_operations(*tenant, ListRequest()) is expected
