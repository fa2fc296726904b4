from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest
from prometheus_client import REGISTRY
from support.postgres.databases import PoolMaker
from support.postgres.log_rows import made_up_rows
from support.postgres.tenant_cases import STREAM, STREAM_SHARD_ID, TENANT, TenantCase, add_tenant, fetch, writer_of
from support.postgres.trouble import waiters

from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.apply.duplicates import CAREFUL_COUNT
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.apply.writer import LOCKED
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import PositionClaim, StreamPosition

REQUEST: Final = "taken"
LOCKS: Final = {
    "tenant": "SELECT FROM tenants WHERE id = 'clinic-locked' FOR UPDATE",
    "resource": "SELECT FROM resources WHERE id = 'clinic-locked' FOR UPDATE",
    "new resource": (
        'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
        " VALUES ('clinic-locked', 'dental', 'patient', 'new', '{}', now(), now())"
    ),
    "log": made_up_rows(tenant_id="'clinic-locked'", request_id=f"'{REQUEST}'"),
}


@pytest.fixture
async def pool(make_pool: PoolMaker) -> ShardPool:
    return await make_pool(row_lock_s=0.05, part_lock_s=0.03)


@pytest.fixture
async def rival(pool: ShardPool) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(pool.address.connection_string)
    yield connection
    await connection.close()


async def case_on(pool: ShardPool, location: str) -> TenantCase:
    case = TenantCase(pool, ("clinic", location))
    await add_tenant(pool, case.ids)
    assert await writer_of(pool).apply([case.operation("create", "r1", {"v": 0})]) == [SUCCEEDED]
    return case


def waits(pool: ShardPool) -> float:
    labels = {"shard_id": pool.address.shard_id, "kind": "lost_race"}
    return REGISTRY.get_sample_value("simplu_shard_errors_total", labels) or 0.0


def batch_of(case: TenantCase, other: TenantCase) -> list[Operation]:
    return [
        other.operation("create", "r2", {"v": 1}),
        case.operation("update", "r1", {"v": 1}),
        case.operation("create", "new", {"v": 1}, request_id=REQUEST),
        other.operation("update", "r2", {"v": 2}),
        case.operation("update", "r1", {"v": 2}),
        other.operation("create", "r3", {"v": 1}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
@pytest.mark.parametrize("is_claimed", [True, False], ids=["with a position", "without"])
@pytest.mark.parametrize("careful_count", [0, 9], ids=["plain", "careful"])
async def test_all_others_are_applied_when_a_tenants_row_is_locked(
    pool: ShardPool, rival: asyncpg.Connection[Any], lock: str, careful_count: int, *, is_claimed: bool
) -> None:
    case, other = await case_on(pool, "locked"), await case_on(pool, "other")
    writer, batch, before = writer_of(pool, careful_count=careful_count), batch_of(case, other), waits(pool)
    claim = PositionClaim(STREAM, STREAM_SHARD_ID, StreamPosition("7/0")) if is_claimed else None
    await rival.execute(f"BEGIN; {lock}")

    assert await writer.apply(batch, claim) == [SUCCEEDED, LOCKED, LOCKED, SUCCEEDED, LOCKED, SUCCEEDED]

    assert waits(pool) - before <= 4  # of a third of a second at most: the others go on within a second
    assert await other.resources() == {
        ("patient", "r1"): {"v": 0},
        ("patient", "r2"): {"v": 2},
        ("patient", "r3"): {"v": 1},
    }
    assert await case.resources() == {("patient", "r1"): {"v": 0}}
    assert len(await case.log()) == 1
    await rival.execute("ROLLBACK")
    assert await writer.apply([one for one in batch if one.tenant_id == case.tenant_id], claim) == [SUCCEEDED] * 3
    assert await case.resources() == {("patient", "r1"): {"v": 2}, ("patient", "new"): {"v": 1}}


@pytest.mark.parametrize("lock", [LOCKS["tenant"], LOCKS["resource"]], ids=["tenant", "resource"])
async def test_writer_finds_a_locked_row_when_the_batch_went_at_once(
    pool: ShardPool, rival: asyncpg.Connection[Any], lock: str
) -> None:
    case, other = await case_on(pool, "locked"), await case_on(pool, "other")
    writer = writer_of(pool)
    await writer.apply([case.operation("patch", "r1", {}), other.operation("patch", "r1", {})])
    batch = [case.operation("patch", "r1", {"v": 1}), other.operation("patch", "r1", {"v": 1})]
    await rival.execute(f"BEGIN; {lock}")

    assert await writer.apply(batch) == [LOCKED, SUCCEEDED]
    assert await writer.apply(batch[:1]) == [LOCKED]

    await rival.execute("ROLLBACK")
    assert await writer.apply(batch[:1]) == [SUCCEEDED]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_writer_waits_for_another_writer_of_the_same_row(case: TenantCase, end: str) -> None:
    create = case.operation("create", "r1", {"v": 1})
    rival = await asyncpg.connect(case.pool.address.connection_string)
    await rival.execute("BEGIN")
    written = made_up_rows(tenant_id="$1", request_id="$2", operation="'create'", digest="$3")
    await rival.execute(written, case.tenant_id, create.request_id, create.digest)

    async with asyncio.TaskGroup() as tasks:
        applying = tasks.create_task(case.apply(create))
        await waiters(rival)
        await rival.execute(end)

    await rival.close()
    assert applying.result() == [DUPLICATE if end == "COMMIT" else SUCCEEDED]
    assert await case.resources() == ({} if end == "COMMIT" else {("patient", "r1"): {"v": 1}})


@pytest.mark.parametrize("careful_count", [0, CAREFUL_COUNT])
async def test_operation_is_blamed_that_an_owners_constraint_refuses(case: TenantCase, careful_count: int) -> None:
    await fetch(case.pool, "CREATE UNIQUE INDEX ON resources ((data ->> 'email'))")
    other = TenantCase(case.pool, (TENANT[0], "other"))
    await add_tenant(case.pool, other.ids)
    writer = writer_of(case.pool, careful_count=careful_count)
    await writer.apply([case.operation("create", "r1", {"email": "a"})])

    outcomes = await writer.apply(
        [case.operation("create", "r2", {"email": "a"}), other.operation("create", "r3", {"email": "b"})]
    )

    refused = Outcome(disposition=Disposition.FAILING, error=state_words("23505"))
    assert outcomes == [refused, SUCCEEDED]
    assert case.pool.is_healthy


@pytest.mark.parametrize("careful_count", [0, CAREFUL_COUNT])
async def test_batch_of_redeliveries_alone_leaves_nothing(case: TenantCase, careful_count: int) -> None:
    operations = [case.operation("create", f"r{number}", {}) for number in range(3)]
    writer = writer_of(case.pool, careful_count=careful_count)
    await writer.apply(operations)
    for _ in range(3):
        assert await writer.apply(operations) == [DUPLICATE] * 3
    assert await writer.apply([*operations, case.operation("create", "r3", {})]) == [*[DUPLICATE] * 3, SUCCEEDED]

    rows = await fetch(case.pool, "SELECT row_count FROM log_batches ORDER BY batch_id")
    assert [row["row_count"] for row in rows] == [3, 4]
