"""Chains: what went wrong with a resource's operations must show in what they leave behind."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from support.load.operation_chains import CYCLE, ChainPlan

from simplu_local.workload.reference_model import LogEntry, OperationRequest, ReferenceModel, parse_timestamp
from simplu_local.workload.workload import Tenant

TENANT = Tenant("clinic", "main", "dental")
ONE_CHAIN = ChainPlan("p", (TENANT,), types=1, resources=1)
PLAN = ChainPlan("p", tuple(Tenant(f"clinic-{one}", "main", "dental") for one in range(3)), types=2, resources=2)


def _applied(plan: ChainPlan, numbers: list[int]) -> ReferenceModel:
    model = ReferenceModel()
    for tenant in plan.tenants:
        model.add_tenant(tenant.business_id, tenant.location_id, tenant.business_type)
    for number in numbers:
        model.apply(_request(plan.item(number).record))
    return model


def _request(record: bytes) -> OperationRequest:
    members = json.loads(record)
    return OperationRequest(
        members["operation"],
        members["businessId"],
        members["locationId"],
        members["resourceType"],
        members["resourceId"],
        parse_timestamp(members["timestamp"]),
        members["requestId"],
        json.dumps(members["data"]) if "data" in members else None,
    )


def _result(entry: LogEntry) -> tuple[int, int] | None:
    if not isinstance(entry.result, dict) or not isinstance(data := entry.result["data"], dict):
        return None
    return int(str(data["n"])), int(str(data["made"]))


def _outcomes(plan: ChainPlan, model: ReferenceModel) -> dict[int, tuple[str | None, tuple[int, int] | None]]:
    log = {key: entry for tenant in model.tenants.values() for key, entry in tenant.log.items()}
    return {int(key.rpartition("-")[2]): (entry.error, _result(entry)) for key, entry in log.items()}


@pytest.mark.parametrize("count", [0, 1, 12, 13, 30, 48, 100])
def test_plan_names_what_the_model_says_when_everything_is_applied_in_order(count: int) -> None:
    """Rows and outcomes follow from the numbers alone, and are what the contract says."""
    model = _applied(PLAN, list(range(count)))
    expected = {number: (None, PLAN.row(number).result) for number in range(count)}
    assert _outcomes(PLAN, model) == expected
    rows = {
        (tenant_id, *key): (int(str(row.data["n"])), int(str(row.data["made"])))
        for tenant_id, tenant in model.tenants.items()
        for key, row in tenant.rows.items()
        if isinstance(row.data, dict)
    }
    assert PLAN.remaining_rows(count) == rows


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_plan_tells_another_order_when_four_operations_follow_in_it(order: tuple[int, ...]) -> None:
    """Every other order of a cycle's four leaves another outcome of at least one of them."""
    model = _applied(ONE_CHAIN, list(order))
    expected = {number: (None, ONE_CHAIN.row(number).result) for number in range(len(CYCLE))}
    assert (_outcomes(ONE_CHAIN, model) == expected) is (order == (0, 1, 2, 3))


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("missing", range(4))
def test_plan_tells_a_lost_operation_when_others_follow(shift: int, missing: int) -> None:
    """A missing operation has no row, whatever its place."""
    numbers = [number for number in range(8) if number != shift + missing]
    assert shift + missing not in _outcomes(ONE_CHAIN, _applied(ONE_CHAIN, numbers))


@pytest.mark.parametrize("count", [0, 1, 5, 12, 25])
def test_plan_counts_the_operations_of_some_tenants_when_asked(count: int) -> None:
    """Those of a tenant are counted as they are made."""
    chosen = frozenset({"clinic-0-main", "clinic-2-main"})
    wanted = sum(PLAN.row(number).tenant_id in chosen for number in range(count))
    assert PLAN.count_of(chosen, count) == wanted
