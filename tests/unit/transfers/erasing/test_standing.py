"""When a resource may be erased, by what the shards have of its tenant."""

from __future__ import annotations

import msgspec
import pytest

from simplu_worker.transfers.erasing import Erasure, Standing, obstacle_to
from simplu_worker.vocabulary import TenantState

ERASURE = Erasure("clinic", "main", "patient", "p")
AT_HOME = Standing("clinic", "main", TenantState.ACTIVE, 1, 0, [], False, None, ["patient"])


@pytest.mark.parametrize(
    ("state", "may"),
    [
        (TenantState.INCOMING, False),
        (TenantState.READY, False),
        (TenantState.ACTIVE, True),
        (TenantState.FENCED, False),
        (TenantState.MOVED, True),
        (TenantState.DESTROYING, True),
        (TenantState.DESTROYED, True),
    ],
)
def test_resource_may_be_erased_while_no_shard_has_a_row_on_its_way(state: TenantState, *, may: bool) -> None:
    obstacle = obstacle_to(ERASURE, {"a": AT_HOME, "b": msgspec.structs.replace(AT_HOME, state=state)})
    assert may is (obstacle is None)
    assert obstacle is None or f"its row is {state} on shard b" in obstacle


def test_resource_may_not_be_erased_while_a_mover_runs() -> None:
    obstacle = obstacle_to(ERASURE, {"a": msgspec.structs.replace(AT_HOME, is_leaving=True)})
    assert "a mover runs on shard a" in str(obstacle)


def test_resource_of_another_tenant_with_the_same_id_is_not_erased() -> None:
    other = Erasure("a", "b-c", "patient", "p")
    standing = msgspec.structs.replace(AT_HOME, business_id="a-b", location_id="c")
    assert other.tenant_id == "a-b-c"
    assert "for another business or location than a and b-c" in str(obstacle_to(other, {"s": standing}))
