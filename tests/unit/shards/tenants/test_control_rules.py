from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.tenants.control_rules import (
    ControlledTenant,
    ControlStep,
    error_of,
    homes_to_destroy,
    is_row_of,
    step_of_creation,
    step_of_destruction,
    tenant_of,
    timestamp_text,
    unforeseen_with_shard,
    with_shard,
)
from simplu_worker.shards.types import (
    FailedOnShardError,
    ProvisionRequest,
    RefusedOnShardError,
    ShardNotAllowedError,
    TenantControls,
)
from simplu_worker.vocabulary import TenantState

CONTROL_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
OLDER, SAME, NEWER = CONTROL_AT - TICK, CONTROL_AT, CONTROL_AT + TICK
MOVING = (TenantState.INCOMING, TenantState.READY, TenantState.FENCED, TenantState.MOVED)


def tenant(state: TenantState, *, is_deletion_begun: bool = False) -> ControlledTenant:
    return ControlledTenant("a-b", "c", state, CONTROL_AT, is_deletion_begun)


def creation(at: datetime) -> ProvisionRequest:
    return ProvisionRequest("a-b", "c", "gym", at)


@pytest.mark.parametrize(
    ("row", "older", "same", "newer"),
    [
        (tenant(TenantState.ACTIVE), ControlStep.STALE, ControlStep.NOTE, ControlStep.NOTE),
        (tenant(TenantState.DESTROYING), ControlStep.STALE, ControlStep.STALE, ControlStep.RESTORE),
        (
            tenant(TenantState.DESTROYING, is_deletion_begun=True),
            ControlStep.STALE,
            ControlStep.STALE,
            ControlStep.WAIT_FOR_DELETION,
        ),
        (tenant(TenantState.DESTROYED), ControlStep.STALE, ControlStep.STALE, ControlStep.REMAKE),
        *((tenant(state), ControlStep.STALE, ControlStep.WAIT_FOR_MOVE, ControlStep.WAIT_FOR_MOVE) for state in MOVING),
    ],
)
def test_creation_decides_by_state_and_by_what_is_newer(
    row: ControlledTenant, older: ControlStep, same: ControlStep, newer: ControlStep
) -> None:
    steps = [step_of_creation(row, creation(at)) for at in (OLDER, SAME, NEWER)]
    assert steps == [older, same, newer]


@pytest.mark.parametrize(
    ("row", "older", "same", "newer"),
    [
        (tenant(TenantState.ACTIVE), ControlStep.STALE, ControlStep.DESTROY, ControlStep.DESTROY),
        (tenant(TenantState.DESTROYING), ControlStep.STALE, ControlStep.NOTE, ControlStep.NOTE),
        (tenant(TenantState.DESTROYING, is_deletion_begun=True), ControlStep.STALE, ControlStep.NOTE, ControlStep.NOTE),
        (tenant(TenantState.DESTROYED), ControlStep.STALE, ControlStep.NOTE, ControlStep.NOTE),
        *((tenant(state), ControlStep.STALE, ControlStep.WAIT_FOR_MOVE, ControlStep.WAIT_FOR_MOVE) for state in MOVING),
    ],
)
def test_destruction_decides_by_state_and_by_what_is_newer(
    row: ControlledTenant, older: ControlStep, same: ControlStep, newer: ControlStep
) -> None:
    steps = [step_of_destruction(row, "a-b", "c", at) for at in (OLDER, SAME, NEWER)]
    assert steps == [older, same, newer]


@pytest.mark.parametrize("state", list(TenantState))
@pytest.mark.parametrize("at", [OLDER, SAME, NEWER])
def test_message_does_nothing_to_another_tenant_with_the_same_id(state: TenantState, at: datetime) -> None:
    assert step_of_creation(tenant(state), ProvisionRequest("a", "b-c", "gym", at)) is ControlStep.TAKEN
    assert step_of_destruction(tenant(state), "a", "b-c", at) is ControlStep.TAKEN


def test_steps_that_cannot_be_taken_say_why() -> None:
    kinds = {step: type(error_of(step, "a-b-c")) for step in ControlStep}
    assert {step: kind for step, kind in kinds.items() if kind is not type(None)} == {
        ControlStep.TAKEN: PermanentError,
        ControlStep.WAIT_FOR_MOVE: RetryableError,
        ControlStep.WAIT_FOR_DELETION: RetryableError,
    }


STATES = {
    ControlStep.MAKE: TenantState.ACTIVE,
    ControlStep.REMAKE: TenantState.ACTIVE,
    ControlStep.RESTORE: TenantState.ACTIVE,
    ControlStep.DESTROY: TenantState.DESTROYING,
}


def after(row: ControlledTenant | None, message: tuple[str, datetime]) -> ControlledTenant | None:
    kind, at = message
    if kind == "create":
        step = ControlStep.MAKE if row is None else step_of_creation(row, creation(at))
    elif row is None:
        return None  # the tenant is unknown: the message waits
    else:
        step = step_of_destruction(row, "a-b", "c", at)
    if step is ControlStep.STALE:
        return row
    state = STATES.get(step) or (row.state if row else TenantState.ACTIVE)
    return ControlledTenant("a-b", "c", state, max(at, row.control_at) if row else at)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("create", OLDER), ("destroy", SAME), ("create", NEWER)], TenantState.ACTIVE),
        ([("create", OLDER), ("create", SAME), ("destroy", NEWER)], TenantState.DESTROYING),
        ([("create", OLDER), ("destroy", SAME), ("create", SAME)], TenantState.DESTROYING),
        ([("create", OLDER), ("destroy", OLDER), ("destroy", NEWER)], TenantState.DESTROYING),
    ],
)
def test_tenant_ends_the_same_in_whatever_order(messages: list[tuple[str, datetime]], expected: TenantState) -> None:
    for order in itertools.permutations(messages):
        row: ControlledTenant | None = after(None, messages[0])  # a destruction waits until the tenant is there
        for message in (*order, *order):
            row = after(row, message)
        assert row is not None
        assert row.state == expected, order
        assert msgspec.structs.asdict(row)["control_at"] == max(at for _, at in messages)


@pytest.mark.parametrize(
    ("business_id", "location_id", "expected"), [("a-b", "c", True), ("a", "b-c", False), ("a-b", "x", False)]
)
def test_row_is_of_a_tenant_when_both_ids_are_the_same(business_id: str, location_id: str, *, expected: bool) -> None:
    assert is_row_of({"business_id": "a-b", "location_id": "c"}, business_id, location_id) is expected


TIMEOUT = StatementFailedError("took too long", error="QueryCanceledError (57014)", is_timeout=True)


@pytest.mark.parametrize(
    "error", [RetryableError("down"), PermanentError("no"), ShardNotAllowedError("not allowed"), TIMEOUT]
)
def test_foreseen_error_stays_as_it_is(error: Exception) -> None:
    assert with_shard(error, shard_id="shard-1", tenant_id="b-l") is error
    with pytest.raises(type(error)) as raised, unforeseen_with_shard("shard-1", "b-l"):
        raise error
    assert raised.value is error


def test_unforeseen_error_gets_its_shard_once() -> None:
    error = KeyError("a secret")
    with pytest.raises(FailedOnShardError) as raised, unforeseen_with_shard("shard-1", "b-l"):
        raise error
    failed = raised.value
    assert (failed.error, failed.shard_id, failed.tenant_id, failed.__cause__) == ("KeyError", "shard-1", "b-l", error)
    assert "secret" not in str(failed)
    assert with_shard(failed, shard_id="shard-2", tenant_id="b-l") is failed


def test_failed_statement_is_a_failure_of_the_work() -> None:
    error = StatementFailedError("shard-1: RaiseError", error="RaiseError (P0001)", is_timeout=False)
    failed = with_shard(error, shard_id="shard-1", tenant_id="b-l")
    assert isinstance(failed, RefusedOnShardError)
    assert (failed.error, failed.shard_id, failed.tenant_id) == ("RaiseError (P0001)", "shard-1", "b-l")
    assert failed.__cause__ is error


@pytest.mark.parametrize(
    ("states", "homes"),
    [
        ({"a": "active"}, "a"),
        ({"a": "active", "b": "incoming", "c": "ready"}, "a"),  # copies of moves that were given up
        ({"a": "active", "b": "moved", "c": "destroyed"}, "ac"),
        ({"a": "active", "b": "active"}, "ab"),
        ({"a": "destroying", "b": "incoming"}, "a"),
        ({"a": "destroying", "b": "ready", "c": "moved"}, "ab"),  # it may arrive on b yet
        ({"a": "destroyed", "b": "incoming"}, "ab"),  # an import, perhaps
        ({"a": "fenced", "b": "ready"}, "ab"),
        ({"a": "moved", "b": "ready"}, "b"),
        ({"a": "moved"}, ""),
        ({}, ""),
    ],
)
def test_destruction_waits_for_no_copy_beside_the_home(states: dict[str, str], homes: str) -> None:
    assert homes_to_destroy({one: TenantState(state) for one, state in states.items()}) == list(homes)


def test_controlled_tenant_has_the_facts_of_its_row() -> None:
    row = {"business_id": "a-b", "location_id": "c", "state": "destroying", "control_at": SAME}
    for is_begun in (False, True):
        found = tenant_of(row | {"is_deletion_begun": is_begun})
        assert found == tenant(TenantState.DESTROYING, is_deletion_begun=is_begun)


def test_error_of_a_taken_id_names_it() -> None:
    assert "'a-b-c'" in str(error_of(ControlStep.TAKEN, "a-b-c"))


@pytest.mark.parametrize("at", [CONTROL_AT, datetime.max.replace(tzinfo=UTC)])
def test_time_is_sent_as_text(at: datetime) -> None:
    assert datetime.fromisoformat(timestamp_text(at)) == at


def test_controls_are_logged_by_what_they_set() -> None:
    for controls, action in (
        (TenantControls(pause_s=9.0, weight=2.0), "pause_tenant"),
        (TenantControls(pause_s=0.0), "resume_tenant"),
        (TenantControls(weight=2.0), "weigh_tenant"),
        (TenantControls(operations_per_s=2.0), "limit_tenant"),
    ):
        assert controls.action == action
