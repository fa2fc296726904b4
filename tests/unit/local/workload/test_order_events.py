"""Order events of trials: they match their plans, and every mistake with a group's events is visible."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from support.load.order_plan import REUSED, OrderPlan, PlannedEvent

from simplu_local.workload.json_values import parse_json
from simplu_local.workload.order_events import OrderEvent
from simplu_local.workload.order_workload import OrderItem, OrderWorkload
from simplu_local.workload.reference_model import Effect, OperationRequest, ReferenceModel
from simplu_local.workload.workload import make_tenants
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import Source

TENANTS = make_tenants(3, run="t")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _decoded(event: OrderEvent) -> Operation | RejectedRecord:
    origin = Origin(source=Source.SQS, name="orders.fifo", arrived_at=NOW, message_id="m", group_id=event.group_id)
    return decode_order(
        event.body, event.attributes, origin, OrderRules(1024 * 1024), deduplication_id=event.deduplication_id
    )


def _model() -> ReferenceModel:
    model = ReferenceModel()
    for tenant in TENANTS:
        model.add_tenant(tenant.business_id, tenant.location_id, tenant.business_type)
    return model


def _request(event: OrderEvent) -> OperationRequest:
    operation = _decoded(event)
    assert isinstance(operation, Operation)
    return OperationRequest(
        str(operation.kind),
        operation.business_id,
        operation.location_id,
        operation.resource_type,
        operation.resource_id,
        NOW,
        operation.request_id,
        operation.text,
    )


def _outcome(planned: list[PlannedEvent]) -> tuple[object, object]:
    model = _model()
    for one in planned:
        model.apply(_request(one.event))
    rows = {(name, key[1]): row.data for name, one in model.tenants.items() for key, row in one.rows.items()}
    errors = {(name, key): entry.error for name, one in model.tenants.items() for key, entry in one.log.items()}
    return rows, errors


def test_plan_holds_what_it_says_when_its_events_are_decoded() -> None:
    plan = OrderPlan("p", TENANTS, count=2000, groups=50, poison_percent=10)
    assert plan.poison_count == 200
    seen = set[tuple[str, str]]()
    for one in plan.planned:
        decoded = _decoded(one.event)
        if isinstance(decoded, RejectedRecord):
            assert decoded.reason in one.reasons, one
            continue
        key = (decoded.tenant_id, decoded.request_id)
        if one.step is not None:
            assert (str(decoded.kind), decoded.resource_id, *key) == (
                one.step.kind,
                one.step.order_id,
                one.step.tenant_id,
                one.step.request_id,
            )
            assert key not in seen
            seen.add(key)
        else:
            assert key in seen
            assert one.reasons in (frozenset(), REUSED)
    assert len(seen) == len(plan.steps)


def test_plan_leaves_the_rows_that_it_says_applied_in_order() -> None:
    plan = OrderPlan("p", TENANTS, count=700, groups=20)
    rows, errors = _outcome([one for one in plan.planned if one.step is not None])
    expected = {key: parse_json(json.dumps(row)) for key, row in plan.rows().items()}
    assert rows == expected
    assert isinstance(errors, dict)
    assert set(errors.values()) == {None}


def _items(count: int = 3000) -> tuple[ReferenceModel, list[OrderItem]]:
    model = _model()
    return model, list(OrderWorkload(7, TENANTS, model).items(count))


@pytest.mark.slow
def test_order_workload_agrees_with_the_decoder() -> None:
    _, items = _items()
    assert {item.verdict.effect for item in items} == {Effect.LOGGED, Effect.DROPPED, Effect.REJECTED}
    for item in items:
        decoded = _decoded(item.event)
        if isinstance(decoded, RejectedRecord):
            assert decoded.reason in item.verdict.reasons
        elif item.verdict.effect is Effect.REJECTED:
            assert item.verdict.reasons == REUSED
