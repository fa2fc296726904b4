"""Which operations of a batch are at fault where its pure steps fail."""

from __future__ import annotations

from msgspec.structs import replace
from support.postgres.tenant_cases import operation

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.apply.rehearsal import find_defects
from simplu_worker.vocabulary import DeadLetterReason

USUAL = [
    operation("create", "a", {}),
    operation("patch", "b", {"v": {"w": 1}}),
    operation("read", "c"),
    operation("list", None),
    operation("delete", "d"),
]


def test_operation_is_at_fault_when_it_fails_alone() -> None:
    broken = replace(USUAL[0], resource_id=7)  # no decoder makes such an operation

    found = find_defects([*USUAL, broken])

    assert list(found) == [len(USUAL)]
    assert found[len(USUAL)].disposition is Disposition.DEAD_LETTER
    assert found[len(USUAL)].reason is DeadLetterReason.INTERNAL_ERROR


def test_no_operation_is_at_fault_when_each_passes_alone() -> None:
    assert find_defects(USUAL) == {}
