"""Ids and texts of operations."""

from __future__ import annotations

from datetime import date

import pytest
from support.queued_operations import queued_operation

from simplu_worker.operations.operation import ID_MAX, Days, is_id, is_storable

TODAY = date(2026, 1, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("żó", True), ("a\0", False), ("a\ud800b", False), ("\udfff", False), ("\ud7ff\ue000", True)],
)
def test_text_is_storable_without_nul_and_surrogates(text: str, *, expected: bool) -> None:
    assert is_storable(text) is expected


@pytest.mark.parametrize(("text", "expected"), [("", False), ("x", True), ("x" * ID_MAX, True), ("x" * 129, False)])
def test_id_has_1_to_128_characters(text: str, *, expected: bool) -> None:
    assert is_id(text) is expected
    assert not is_id(text + "\0")


def test_operation_is_named_by_its_request_id_and_ids() -> None:
    operation = queued_operation().operation
    own, names = operation.request_id, (operation.business_id, operation.location_id)
    asked = [(own, None), (own, names), ("another", None), (own, ("another", names[1])), (own, (names[0], "another"))]
    assert [operation.is_named(*one) for one in asked] == [True, True, False, False, False]


@pytest.mark.parametrize(("days", "expected"), [((None, None), True), ((TODAY, None), False), ((None, TODAY), False)])
def test_days_are_open_without_any_bound(days: tuple[date | None, date | None], *, expected: bool) -> None:
    assert Days(*days).is_open is expected
