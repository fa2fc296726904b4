"""What is stored is bounded by its text; what was stored beyond that, as on an adopted shard, harms no reader of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.writer import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import Failure

INVALID_DATA = failed(Failure.INVALID_DATA)
TOO_LARGE = failed(Failure.RESULT_TOO_LARGE)
BOMB = f'{{"a": [{",".join(["1e131071"] * 7000)}]}}'  # 63 KB, and 917 MB of text
ZEROS = f'{{"a": [{",".join(["0e-16383"] * 7000)}]}}'


def without_bounds(operation: Operation) -> Operation:
    """Return *operation* as a worker decodes it that has no bounds."""
    return msgspec.structs.replace(operation, exceeds_bounds=False)


async def stored_before(tenant: TenantCase, data: str, resource_id: str = "r1") -> None:
    """Store *data* whatever its size."""
    created = without_bounds(tenant.operation("create", resource_id, data))
    assert await tenant.apply(created) == [SUCCEEDED]


@pytest.mark.parametrize("kind", ["create", "update", "patch"])
async def test_bomb_is_invalid_data_and_its_neighbours_are_applied(tenant: TenantCase, kind: str) -> None:
    await tenant.apply(tenant.operation("create", "old", {"v": 1}))
    bomb = tenant.operation(kind, "new" if kind == "create" else "old", BOMB)

    outcomes = await tenant.apply(tenant.operation("create", "r1", {}), bomb, tenant.operation("create", "r2", {}))

    assert outcomes == [SUCCEEDED, INVALID_DATA, SUCCEEDED]
    assert (await tenant.log())[bomb.request_id] == ("failed", "invalid_data")
    assert await tenant.resources() == {("patient", "old"): {"v": 1}, ("patient", "r1"): {}, ("patient", "r2"): {}}
    assert await tenant.apply(bomb) == [DUPLICATE]
    assert await tenant.apply(without_bounds(bomb)) == [DUPLICATE]


async def test_bomb_is_a_duplicate_when_a_worker_with_other_bounds_applied_it(tenant: TenantCase) -> None:
    bomb = tenant.operation("create", "r1", BOMB)
    assert await tenant.apply(without_bounds(bomb)) == [SUCCEEDED]

    assert await tenant.apply(bomb) == [DUPLICATE]

    assert (await tenant.log())[bomb.request_id] == ("succeeded", None)


def nested(depth: int) -> str:
    """Return a document nested *depth* deep."""
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


async def test_data_is_stored_read_and_merged_up_to_the_bound_of_levels(tenant: TenantCase) -> None:
    patch = '{"a":' * 511 + '{"b": 1}' + "}" * 511
    reading = tenant.operation("read", "r1")

    outcomes = await tenant.apply(
        tenant.operation("create", "r1", nested(512)), tenant.operation("patch", "r1", patch), reading
    )

    assert outcomes == [SUCCEEDED] * 3
    (row,) = await fetch(tenant.pool, "SELECT data::text AS text FROM resources WHERE id = $1", tenant.tenant_id)
    assert row["text"].replace(" ", "") == patch.replace(" ", "")


async def test_numbers_are_stored_up_to_the_bounds(tenant: TenantCase) -> None:
    numbers = f'{{"a": [{",".join(["1e999"] * 10_000)}]}}'
    reading, listing = tenant.operation("read", "r1"), tenant.operation("list", None)

    outcomes = await tenant.apply(tenant.operation("create", "r1", numbers), reading, listing)

    assert outcomes == [SUCCEEDED, SUCCEEDED, TOO_LARGE]
    (row,) = await fetch(
        tenant.pool,
        "SELECT octet_length(result::text) AS size FROM operations WHERE request_id = $1 AND tenant_id = $2",
        reading.request_id,
        tenant.tenant_id,
    )
    assert row["size"] > 10_000_000


@pytest.mark.parametrize("bomb", [BOMB, ZEROS], ids=["large", "small"])
@pytest.mark.slow(0.3)
async def test_stored_bomb_is_never_written_out(tenant: TenantCase, bomb: str) -> None:
    for resource_id in ("read", "replaced", "deleted", "shrunk"):
        await stored_before(tenant, bomb, resource_id)

    outcomes = await tenant.apply(
        tenant.operation("list", None),
        tenant.operation("read", "read"),
        tenant.operation("patch", "read", {"b": 1}),
        tenant.operation("update", "replaced", {"v": 1}),
        tenant.operation("delete", "deleted"),
        tenant.operation("patch", "shrunk", {"a": None}),
    )

    assert outcomes == [TOO_LARGE, TOO_LARGE, INVALID_DATA, SUCCEEDED, SUCCEEDED, INVALID_DATA]
    await tenant.apply(*(tenant.operation("delete", one) for one in ("read", "shrunk")))
    assert await tenant.resources() == {("patient", "replaced"): {"v": 1}}


@pytest.mark.parametrize("member", ["1e5000", "1e-5000", "0e-5000", "1" * 1200])
@pytest.mark.parametrize("size", [10, 1000])
async def test_patch_counts_what_was_stored_before(tenant: TenantCase, size: int, member: str) -> None:
    await stored_before(tenant, f'{{"long": {member}, "text": "{"x" * size}"}}')
    reading = tenant.operation("read", "r1")

    outcomes = await tenant.apply(tenant.operation("patch", "r1", {"b": 1}), reading)
    assert outcomes == [INVALID_DATA, SUCCEEDED]

    outcomes = await tenant.apply(tenant.operation("update", "r1", {}), tenant.operation("patch", "r1", {"b": 2}))
    assert outcomes == [SUCCEEDED, SUCCEEDED]
    assert await tenant.resources() == {("patient", "r1"): {"b": 2}}


async def test_patches_end_as_invalid_data_when_each_adds_a_little(tenant: TenantCase) -> None:
    def patch(name: str, count: int) -> Operation:
        return tenant.operation("patch", "r1", {name: [1] * count})

    outcomes = await tenant.apply(
        tenant.operation("create", "r1", {}),
        *(patch(f"m{number}", 9_999) for number in range(11)),
        patch("last", 999),
        tenant.operation("patch", "r1", {"m0": None}),
        patch("m0", 9_999),
    )

    assert outcomes == [SUCCEEDED] * 11 + [INVALID_DATA, INVALID_DATA] + [SUCCEEDED] * 2
    stored: Any = (await tenant.resources())["patient", "r1"]
    assert sorted(stored) == sorted(f"m{number}" for number in range(10))


async def test_patches_are_merged_once_more_only_when_a_resource_is_found_to_be_large(tenant: TenantCase) -> None:
    large = json.dumps({f"m{number}": "x" * 100 for number in range(2000)})
    ids = [f"r{number}" for number in range(3)]
    await tenant.apply(*(tenant.operation("create", name, large) for name in ids), tenant.operation("create", "s", {}))
    batch = [
        one
        for name in ids
        for one in (
            tenant.operation("patch", name, {"m0": name, "m1": None}),
            tenant.operation("patch", "s", {name: 1}),
            tenant.operation("patch", name, {"n": {"o": 1, "p": None}}),
        )
    ]

    assert await tenant.apply(*batch) == [SUCCEEDED] * len(batch)

    stored: Any = await tenant.resources()
    for name in ids:
        assert "m1" not in stored["patient", name]
        assert stored["patient", name]["m0"] == name
        assert stored["patient", name]["n"] == {"o": 1}
        assert len(stored["patient", name]) == 2000
    assert stored["patient", "s"] == dict.fromkeys(ids, 1)
