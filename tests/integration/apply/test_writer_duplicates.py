from __future__ import annotations

import asyncio

import asyncpg
import pytest
from support.postgres.log_rows import made_up_rows
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch, writer_of
from support.postgres.trouble import waiters

from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.shards.apply.duplicates import CAREFUL_COUNT
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.errors import state_words


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
