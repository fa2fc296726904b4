from __future__ import annotations

import msgspec
import pytest
from support.postgres.tenant_cases import TenantCase, failed

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import Failure

INVALID_DATA = failed(Failure.INVALID_DATA)
BOMB = f'{{"a": [{",".join(["1e131071"] * 7000)}]}}'  # 63 KB, and 917 MB of text


def without_bounds(operation: Operation) -> Operation:
    return msgspec.structs.replace(operation, exceeds_bounds=False)


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
