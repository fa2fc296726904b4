from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.queued_operations import queued_operation

from simplu_worker.operations.limits import NO_LIMIT, Limit
from simplu_worker.operations.operation import Disposition, Operation, Origin, Outcome
from simplu_worker.operations.waves import TenantRow, admit, admits_all, is_too_late
from simplu_worker.vocabulary import DeadLetterReason, Failure, Source, TenantState

WAIT = timedelta(seconds=900)
CREATED_AT = datetime(2026, 1, 31, 9, tzinfo=UTC)
HOLD = Outcome(disposition=Disposition.HOLD)
DESTROYED = Outcome(disposition=Disposition.APPLIED, failure=Failure.TENANT_DESTROYED)


def operation(*, arrived_at: datetime = CREATED_AT, source: Source = Source.KINESIS) -> Operation:
    origin = Origin(source=source, name="stream", arrived_at=arrived_at)
    return replace(queued_operation("a-b-c").operation, business_id="a-b", location_id="c", origin=origin)


def tenant(state: TenantState = TenantState.ACTIVE, *, business_id: str = "a-b", location_id: str = "c") -> TenantRow:
    return TenantRow(
        business_id=business_id,
        location_id=location_id,
        business_type="gym",
        state=state,
        created_at=CREATED_AT,
        number=1,
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TenantState.ACTIVE, None),
        (TenantState.INCOMING, HOLD),
        (TenantState.READY, HOLD),
        (TenantState.FENCED, HOLD),
        (TenantState.MOVED, HOLD),
        (TenantState.DESTROYING, DESTROYED),
        (TenantState.DESTROYED, DESTROYED),
    ],
)
@pytest.mark.parametrize("source", list(Source))
def test_state_of_the_tenant_decides(state: TenantState, expected: Outcome | None, source: Source) -> None:
    assert admit(operation(source=source), tenant(state), tenant_wait=WAIT) == expected


def test_operation_is_held_while_its_tenant_is_paused() -> None:
    paused = replace(tenant(), is_paused=True)
    assert admit(operation(), paused, tenant_wait=WAIT) == HOLD
    assert not admits_all([operation()], {"a-b-c": paused}, tenant_wait=WAIT)
    other = replace(operation(), tenant_id="d", business_id="d")
    assert not admits_all([operation(), other], {"a-b-c": tenant()}, tenant_wait=WAIT)


def test_operation_is_held_when_the_shard_has_no_row() -> None:
    early = operation(arrived_at=CREATED_AT - 2 * WAIT)

    assert admit(early, None, tenant_wait=WAIT) == HOLD


@pytest.mark.parametrize("state", list(TenantState))
def test_operation_is_a_dead_letter_when_its_id_is_anothers(state: TenantState) -> None:
    outcome = admit(operation(), tenant(state, business_id="a", location_id="b-c"), tenant_wait=WAIT)

    assert outcome is not None
    assert (outcome.disposition, outcome.reason) == (Disposition.DEAD_LETTER, DeadLetterReason.UNKNOWN_TENANT)
    assert "a-b-c" in (outcome.error or "")


@pytest.mark.parametrize("state", list(TenantState))
@pytest.mark.parametrize(
    ("arrived_before", "is_late"),
    [(WAIT, True), (WAIT + timedelta(days=1), True), (WAIT - timedelta(microseconds=1), False), (-WAIT, False)],
)
def test_operation_is_a_dead_letter_when_its_tenant_is_late(
    state: TenantState,
    arrived_before: timedelta,
    is_late: bool,  # noqa: FBT001
) -> None:
    outcome = admit(operation(arrived_at=CREATED_AT - arrived_before), tenant(state), tenant_wait=WAIT)

    came_too_late = outcome is not None and outcome.reason is DeadLetterReason.UNKNOWN_TENANT
    assert came_too_late == is_late


def test_message_of_a_queue_is_never_too_late() -> None:
    message = operation(arrived_at=CREATED_AT - 2 * WAIT, source=Source.SQS)

    assert admit(message, tenant(), tenant_wait=WAIT) is None


@pytest.mark.parametrize(
    ("arrived_before", "admitted"),
    [
        ([timedelta(0), timedelta(0)], True),
        ([timedelta(0), WAIT], False),
        ([WAIT, timedelta(0)], False),
        ([WAIT - timedelta(microseconds=1)] * 2, True),
    ],
)
def test_batch_is_not_admitted_whole_with_one_late_operation(
    arrived_before: list[timedelta], *, admitted: bool
) -> None:
    batch = [operation(arrived_at=CREATED_AT - before) for before in arrived_before]

    assert admits_all(batch, {"a-b-c": tenant()}, tenant_wait=WAIT) is admitted


cases = st.tuples(
    st.sampled_from([*TenantState, None]), st.sampled_from([("a-b", "c"), ("a", "b-c")]), st.sampled_from([-1, 0, 1])
)


@given(row=cases, late=st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=3))
def test_batch_is_admitted_whole_only_when_each_operation_is(
    row: tuple[TenantState | None, tuple[str, str], int], late: list[int]
) -> None:
    state, (business_id, location_id), _ = row
    found = None if state is None else tenant(state, business_id=business_id, location_id=location_id)
    rows = {} if found is None else {"a-b-c": found}
    batch = [operation(arrived_at=CREATED_AT - WAIT - timedelta(microseconds=one)) for one in late]

    each = [admit(one, found, tenant_wait=WAIT) is None for one in batch]
    assert admits_all(batch, rows, tenant_wait=WAIT) == all(each)


def test_operation_is_not_too_late_for_another_tenant() -> None:
    late = operation(arrived_at=CREATED_AT - 2 * WAIT)

    assert is_too_late(late, tenant(), tenant_wait=WAIT)
    assert not is_too_late(late, None, tenant_wait=WAIT)
    assert not is_too_late(late, tenant(business_id="a", location_id="b-c"), tenant_wait=WAIT)


def test_batch_is_not_admitted_whole_with_one_late_tenant() -> None:
    other = replace(operation(arrived_at=CREATED_AT - WAIT / 2), business_id="z", tenant_id="z-c")
    rows = {"a-b-c": tenant(), "z-c": replace(tenant(business_id="z"), created_at=CREATED_AT + WAIT)}

    assert not admits_all([operation(), other], rows, tenant_wait=WAIT)


LIMITED = [
    ({}, NO_LIMIT, []),
    ({}, Limit(9.0), [("t/1", Limit(9.0))]),
    ({"operations_per_s": 2.0}, Limit(9.0, 9.0), [("t/1", Limit(2.0))]),
    ({"bytes_per_s": 3.0}, NO_LIMIT, [("t/1", Limit(None, 3.0))]),
    ({"business_operations_per_s": 4.0}, NO_LIMIT, [("b/a-b", Limit(4.0))]),
    ({"business_bytes_per_s": 5.0}, Limit(9.0), [("t/1", Limit(9.0)), ("b/a-b", Limit(None, 5.0))]),
]


@pytest.mark.parametrize(("set_to", "default", "buckets"), LIMITED)
def test_limit_is_own_or_default_and_that_of_the_business(
    set_to: dict[str, float], default: Limit, buckets: list[tuple[str, Limit]]
) -> None:
    row = replace(tenant(), **set_to)
    assert (row.limits(default), row.is_limited) == (buckets, bool(set_to))
