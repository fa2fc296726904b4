"""Work is bounded: no operation takes the shard more than little over linear time, whatever its size and shape."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch
from support.postgres.trouble import waiters

from simplu_worker.operations.json_record import is_laborious
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


SMALL, LARGE = 2_500, 10_000
ROUNDS_MAX = 6
RATIO_MAX = 9  # for four times the members: 4 in linear time, 16 in quadratic time
LABORIOUS = {f"n{number}": None for number in range(1000)}


@pytest.fixture
async def tenant(tenant: TenantCase) -> AsyncIterator[TenantCase]:
    """Give a tenant of which locked rows are waited for: a test may take long to let one go."""
    pool = ShardPool(tenant.pool.address, size=4, timeouts=ShardTimeouts(row_lock_s=60.0))
    yield TenantCase(pool, tenant.ids)
    await pool.close()


def members(count: int, prefix: str = "m") -> dict[str, Any]:
    return {f"{prefix}{number}": number for number in range(count)}


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


async def assert_is_linear(acts: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """Run *acts*, of which the second has four times the work, until their shortest times show that it is linear."""
    shortest = [float("inf")] * len(acts)
    for _ in range(ROUNDS_MAX):
        for number, act in enumerate(acts):
            began_at = time.perf_counter()
            await act()
            shortest[number] = min(shortest[number], time.perf_counter() - began_at)
        if shortest[1] < RATIO_MAX * shortest[0]:
            return
    raise AssertionError(
        f"expected linear time, got {shortest[1] / shortest[0]:.1f} times as long for four times as much"
    )


PATCHES: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "nulls": lambda count: (members(count), dict.fromkeys(members(count, "n"))),
    "nulls within an object": lambda count: (nested(1, members(count)), nested(1, dict.fromkeys(members(count, "n")))),
    "objects": lambda count: (
        {name: {"x": 1} for name in members(count)},
        {name: {"y": None} for name in members(count)},
    ),
    "deep": lambda count: (nested(100, members(count)), nested(100, dict.fromkeys(members(count, "n")))),
}


@pytest.mark.parametrize("shape", PATCHES)
async def test_patch_takes_linear_time_whatever_its_shape(tenant: TenantCase, shape: str) -> None:
    acts = []
    for count in (SMALL, LARGE):
        document, patch = PATCHES[shape](count)
        resource_id = f"{shape}-{count}"
        assert await tenant.apply(tenant.operation("create", resource_id, document)) == [SUCCEEDED]

        async def act(patch: Any = patch, resource_id: str = resource_id) -> None:
            assert await tenant.apply(tenant.operation("patch", resource_id, patch)) == [SUCCEEDED]

        acts.append(act)

    await assert_is_linear(acts)


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
    ],
    ids=["flat", "nested", "deep", "laborious", "together"],
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
