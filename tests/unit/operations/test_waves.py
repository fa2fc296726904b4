"""Waves: applied one after the other, reads before writes, they have the effect of the batch one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.queued_operations import queued_operation

from simplu_worker.operations.operation import Operation
from simplu_worker.operations.verbs import READING_KINDS
from simplu_worker.operations.waves import isolate, plan_waves
from simplu_worker.vocabulary import OperationKind

CREATE, UPDATE, PATCH = OperationKind.CREATE, OperationKind.UPDATE, OperationKind.PATCH
DELETE, READ, LIST = OperationKind.DELETE, OperationKind.READ, OperationKind.LIST

Key: TypeAlias = tuple[str, str, str | None]
Rows: TypeAlias = dict[Key, tuple[str, ...]]
Outcome: TypeAlias = object


def operation(kind: OperationKind, resource_id: str = "1", *, tenant: str = "a", resource_type: str = "t") -> Operation:
    return replace(
        queued_operation(f"{tenant}-l").operation,
        kind=kind,
        resource_type=resource_type,
        resource_id=None if kind is LIST else resource_id,
    )


OPERATIONS = st.builds(
    operation,
    st.sampled_from(OperationKind),
    st.sampled_from(["1", "2"]),
    tenant=st.sampled_from(["a", "b"]),
    resource_type=st.sampled_from(["t", "u"]),
)


def observed(rows: Rows, one: Operation) -> Outcome:
    if one.kind is READ:
        return rows.get((one.tenant_id, one.resource_type, one.resource_id))
    return {key: row for key, row in rows.items() if key[:2] == (one.tenant_id, one.resource_type)}


def writes(one: Operation) -> bool:
    return one.kind not in READING_KINDS


def written(rows: Rows, seen: Rows, one: Operation, mark: str) -> Outcome:
    key = (one.tenant_id, one.resource_type, one.resource_id)
    row = seen.get(key)
    if (row is None) != (one.kind is CREATE):
        return "failed"
    match one.kind:
        case OperationKind.DELETE:
            del rows[key]
        case OperationKind.PATCH:
            rows[key] = (*(row or ()), mark)
        case _:
            rows[key] = (mark,)
    return "succeeded"


def apply_one_by_one(operations: Sequence[Operation]) -> tuple[list[Outcome], Rows]:
    rows: Rows = {}
    outcomes = [
        written(rows, rows, one, str(position)) if writes(one) else observed(rows, one)
        for position, one in enumerate(operations)
    ]
    return outcomes, rows


def apply_waves(operations: Sequence[Operation]) -> tuple[dict[int, Outcome], Rows]:
    """Apply wave by wave: all of one wave see the rows as they were before it, as in one SQL statement."""
    rows: Rows = {}
    outcomes: dict[int, Outcome] = {}
    for wave in plan_waves(operations):
        before = dict(rows)
        for position in wave.reads:
            outcomes[position] = observed(before, operations[position])
        for position in reversed(wave.writes):  # in any order
            outcomes[position] = written(rows, before, operations[position], str(position))
    return outcomes, rows


@given(st.lists(OPERATIONS, max_size=30))
def test_waves_have_the_effect_of_one_by_one_application(operations: list[Operation]) -> None:
    outcomes, rows = apply_waves(operations)

    assert (list(map(outcomes.get, range(len(operations)))), rows) == apply_one_by_one(operations)


@given(st.lists(OPERATIONS, max_size=30), st.data())
def test_waves_have_the_same_effect_with_isolated_writes(operations: list[Operation], data: st.DataObject) -> None:
    written_at = [position for position, one in enumerate(operations) if writes(one)]
    isolated = data.draw(st.sets(st.sampled_from(written_at))) if written_at else set()

    waves = isolate([(*wave.reads, *wave.writes) for wave in plan_waves(operations)], isolated)

    assert all(len(wave) == 1 for wave in waves if not isolated.isdisjoint(wave))
    outcomes: dict[int, Outcome] = {}
    rows: Rows = {}
    for wave in waves:
        before = dict(rows)
        for position in wave:
            one, mark = operations[position], str(position)
            outcomes[position] = written(rows, before, one, mark) if writes(one) else observed(before, one)
    assert (list(map(outcomes.get, range(len(operations)))), rows) == apply_one_by_one(operations)


@given(st.lists(OPERATIONS, max_size=12))
def test_waves_are_as_few_as_what_depends_on_each_other_allows(operations: list[Operation]) -> None:
    longest: list[int] = []
    for position, one in enumerate(operations):
        same_type = [
            (earlier, longest[place])
            for place, earlier in enumerate(operations[:position])
            if (earlier.tenant_id, earlier.resource_type) == (one.tenant_id, one.resource_type)
        ]
        lengths = [1]
        for earlier, length in same_type:
            must_see = writes(earlier) and (one.kind is LIST or (earlier.resource_id == one.resource_id))
            must_not_be_seen = writes(one) and earlier.kind is LIST
            lengths += [length + 1] * must_see + [length] * must_not_be_seen
        longest.append(max(lengths))

    assert len(plan_waves(operations)) == max(longest, default=0)


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([], []),
        ([operation(READ)], [([0], [])]),
        ([operation(CREATE), operation(CREATE, "2"), operation(CREATE, "3")], [([], [0, 1, 2])]),
        ([operation(CREATE), operation(UPDATE), operation(DELETE)], [([], [0]), ([], [1]), ([], [2])]),
        ([operation(READ), operation(CREATE)], [([0], [1])]),
        ([operation(CREATE), operation(READ)], [([], [0]), ([1], [])]),
        ([operation(CREATE), operation(READ), operation(UPDATE)], [([], [0]), ([1], [2])]),
        ([operation(CREATE), operation(READ, "2")], [([1], [0])]),
        ([operation(CREATE), operation(LIST)], [([], [0]), ([1], [])]),
        ([operation(LIST), operation(CREATE), operation(LIST)], [([0], [1]), ([2], [])]),
        ([operation(CREATE), operation(LIST), operation(CREATE, "2")], [([], [0]), ([1], [2])]),
        ([operation(CREATE), operation(LIST, resource_type="u")], [([1], [0])]),
        ([operation(CREATE), operation(LIST, tenant="b"), operation(PATCH, tenant="b")], [([1], [0, 2])]),
        ([operation(CREATE), operation(PATCH), operation(CREATE, "2")], [([], [0, 2]), ([], [1])]),
        ([operation(LIST), operation(CREATE, resource_type="settings"), operation(LIST)], [([0], [1]), ([2], [])]),
    ],
)
def test_waves_are_what_a_person_would_draw(
    operations: list[Operation], expected: list[tuple[list[int], list[int]]]
) -> None:
    assert [(wave.reads, wave.writes) for wave in plan_waves(operations)] == expected
