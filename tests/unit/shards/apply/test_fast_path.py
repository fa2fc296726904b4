from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from msgspec.structs import replace
from support.postgres.tenant_cases import TENANT, TENANT_MADE_AT, TENANT_WAIT, operation

from simplu_worker.operations.operation import Operation
from simplu_worker.operations.waves import TenantRow
from simplu_worker.shards.apply.wave_run import (
    FAST_MAX_BYTES,
    FAST_MAX_COUNT,
    ResourceId,
    fast_path_error,
    fits_fast_path,
    resource_of,
)
from simplu_worker.shards.apply.writer import remember
from simplu_worker.shards.postgres.errors import DuplicateKeyError, LockTimeoutError, StatementFailedError
from simplu_worker.vocabulary import TenantState

ROW = TenantRow(*TENANT, business_type="dental", state=TenantState.ACTIVE, created_at=TENANT_MADE_AT, number=7)
TENANT_ID = "-".join(TENANT)
CREATE, DELETE = operation("create", "a", {}), operation("delete", "b")
UPDATE, PATCH = operation("update", "c", {}), operation("patch", "d", {"v": 1})
NESTED = operation("patch", "e", {"v": {"w": 1}})
LABORIOUS = operation("patch", "f", {str(number): {"w": 1} for number in range(3000)})


@dataclass(frozen=True)
class Batch:
    operations: tuple[Operation, ...]
    row: TenantRow | None = ROW
    large: frozenset[ResourceId] = field(default_factory=frozenset)


USUAL = {
    "one": Batch((CREATE,)),
    "all kinds of writes": Batch((CREATE, DELETE, UPDATE, PATCH, NESTED)),
    "as many as may": Batch(tuple(operation("delete", str(number)) for number in range(FAST_MAX_COUNT))),
    "as large as may": Batch((replace(CREATE, size_bytes=FAST_MAX_BYTES),)),
}
UNUSUAL = {
    "none": Batch(()),
    "too many": Batch(tuple(operation("delete", str(number)) for number in range(FAST_MAX_COUNT + 1))),
    "too large": Batch((CREATE, replace(UPDATE, size_bytes=FAST_MAX_BYTES))),
    "a read": Batch((CREATE, operation("read", "c"))),
    "a list": Batch((operation("list", None),)),
    "beyond the bounds of documents": Batch((replace(CREATE, exceeds_bounds=True),)),
    "a patch that the worker merges": Batch((LABORIOUS,)),
    "a patch of large data": Batch((PATCH,), large=frozenset({resource_of(PATCH)})),
    "two waves": Batch((UPDATE, operation("delete", "c"))),
    "tenant not remembered": Batch((CREATE,), row=None),
    "tenant not active": Batch((CREATE,), row=replace(ROW, state=TenantState.FENCED)),
    "another one's tenant id": Batch((CREATE,), row=replace(ROW, business_id="clinic-main", location_id="")),
    "too late for its tenant": Batch((CREATE,), row=replace(ROW, created_at=TENANT_MADE_AT + timedelta(days=2))),
}


def is_fast(batch: Batch) -> bool:
    tenants = {} if batch.row is None else {TENANT_ID: batch.row}
    return fits_fast_path(batch.operations, tenants, large=batch.large, tenant_wait=TENANT_WAIT)


@pytest.mark.parametrize("batch", USUAL.values(), ids=USUAL)
def test_batch_goes_at_once_when_it_is_one_wave_of_writes(batch: Batch) -> None:
    assert is_fast(batch)


@pytest.mark.parametrize("batch", UNUSUAL.values(), ids=UNUSUAL)
def test_batch_goes_step_by_step_when_anything_is_unusual(batch: Batch) -> None:
    assert not is_fast(batch)


def test_memory_keeps_the_newest() -> None:
    known = {"a": 1, "b": 2}
    remember(known, {"c": 3, "b": 4}, 2)
    assert known == {"b": 4, "c": 3}


@pytest.mark.parametrize(
    ("exc", "is_timeout", "has_duplicates"),
    [
        (LockTimeoutError("locked"), True, False),
        (StatementFailedError("slow", error="e", is_timeout=True), True, False),
        (StatementFailedError("refused", error="e", is_timeout=False), False, False),
        (DuplicateKeyError("there", error="e", table="log_rows"), False, True),
    ],
)
def test_error_has_what_the_steps_are_to_know(
    exc: LockTimeoutError | StatementFailedError, *, is_timeout: bool, has_duplicates: bool
) -> None:
    error = fast_path_error(exc)
    assert (error.is_timeout, error.has_duplicates) == (is_timeout, has_duplicates)
