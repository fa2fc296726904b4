from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch
from support.postgres.trouble import waiters

from simplu_worker.operations.json_record import is_laborious
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


BATCH_COUNT = "SELECT count(*) AS count FROM log_batches"
LABORIOUS = {f"n{number}": None for number in range(1000)}


async def test_laborious_patches_keep_their_place_in_the_batch(tenant: TenantCase) -> None:
    assert is_laborious(json.dumps(LABORIOUS))
    batch = [
        tenant.operation("create", "r1", {"n1": 1, "keep": 1.50}),
        tenant.operation("list", None),
        tenant.operation("patch", "r1", {"n2": 2}),
        tenant.operation("read", "r1"),
        tenant.operation("patch", "r1", LABORIOUS | {"object": {"x": None, "y": 1}}),
        tenant.operation("read", "r1"),
        tenant.operation("patch", "r1", {"n1": 3}),
        tenant.operation("patch", "missing", LABORIOUS),
        tenant.operation("patch", "r1", LABORIOUS),
        tenant.operation("list", None),
    ]

    outcomes = await tenant.apply(*batch)

    assert outcomes == [SUCCEEDED] * 7 + [failed(Failure.NOT_FOUND)] + [SUCCEEDED] * 2
    first, before, after, last = [await tenant.result(batch[index]) for index in (1, 3, 5, 9)]
    assert [item["data"] for item in first["items"]] == [{"n1": 1, "keep": 1.5}]
    assert before["data"] == {"n1": 1, "n2": 2, "keep": 1.5}
    assert after["data"] == {"keep": 1.5, "object": {"y": 1}}
    assert [item["data"] for item in last["items"]] == [after["data"]]
    assert await tenant.apply(*batch) == [DUPLICATE] * len(batch)
    (row,) = await fetch(tenant.pool, "SELECT data::text FROM resources WHERE id = $1", tenant.tenant_id)
    assert '"keep": 1.5' in row["data"]


@pytest.mark.parametrize(
    "patches",
    [
        [{"a": 1}],
        [{"a": 1, "b": {"c": 1}}],
        [{"a": 1, "b": {"c": {"d": 1}}}],
        [LABORIOUS | {"a": 1}],
        [LABORIOUS | {"a": 1}, LABORIOUS | {"b": 1}],
        [{"a": {"c": {"d": 1}}}, {"b": {"c": {"d": 1}}}],
    ],
    ids=["flat", "nested", "deep", "laborious", "together", "deep together"],
)
@pytest.mark.parametrize("size", [1, 40_000], ids=["small", "large"])
async def test_patch_keeps_what_was_written_while_it_waited(
    tenant: TenantCase, patches: Sequence[dict[str, Any]], size: int
) -> None:
    await tenant.apply(tenant.operation("create", "r1", {"old": "x" * size, "gone": 1}))
    rival = await asyncpg.connect(tenant.pool.address.connection_string)
    async with rival.transaction():
        await rival.execute("UPDATE resources SET data = data - 'gone' || '{\"new\": 1}'")
        applying = asyncio.create_task(tenant.apply(*(tenant.operation("patch", "r1", patch) for patch in patches)))
        await waiters(rival)
    await rival.close()

    assert await applying == [SUCCEEDED] * len(patches)
    expected: dict[str, Any] = {"old": "x" * size, "new": 1}
    for patch in patches:
        expected |= {name: value for name, value in patch.items() if value is not None}
    assert await tenant.resources() == {("patient", "r1"): expected}


async def test_small_patches_of_one_resource_take_one_transaction(tenant: TenantCase) -> None:
    await tenant.apply(tenant.operation("create", "r1", {"steps": {"0": True}}))
    steps = [{"steps": {str(number): None, str(number + 1): True}} for number in range(5)]
    assert all(is_laborious(json.dumps(step)) for step in steps)
    (before,) = await fetch(tenant.pool, BATCH_COUNT)

    outcomes = await tenant.apply(*(tenant.operation("patch", "r1", step) for step in steps))

    assert outcomes == [SUCCEEDED] * 5
    assert await tenant.resources() == {("patient", "r1"): {"steps": {"5": True}}}
    (after,) = await fetch(tenant.pool, BATCH_COUNT)
    assert after["count"] == before["count"] + 1
