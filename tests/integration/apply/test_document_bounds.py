"""What is stored is bounded by its text; what was stored beyond that, as on an adopted shard, harms no reader of it."""

from __future__ import annotations

import msgspec
import pytest
from support.postgres.tenant_cases import TenantCase, failed

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import Failure

INVALID_DATA = failed(Failure.INVALID_DATA)
TOO_LARGE = failed(Failure.RESULT_TOO_LARGE)
BOMB = f'{{"a": [{",".join(["1e131071"] * 7000)}]}}'  # 63 KB, and 917 MB of text
ZEROS = f'{{"a": [{",".join(["0e-16383"] * 7000)}]}}'


def without_bounds(operation: Operation) -> Operation:
    return msgspec.structs.replace(operation, exceeds_bounds=False)


async def stored_before(tenant: TenantCase, data: str, resource_id: str = "r1") -> None:
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
