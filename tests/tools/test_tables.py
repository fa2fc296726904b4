"""A table of `parametrize` as one test: what is tried, and what its error says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.tables import all_rows, rows_of


@pytest.mark.parametrize("left", [1, pytest.param(2, id="two")])
@pytest.mark.parametrize(("right", "word"), [(3, "a"), (4, "b")], ids=["three", "four"])
def _is_table(left: int, right: int, word: str) -> None:
    assert (left, word) == (1, "a"), (left, right)


def _whole(*, stops_at_first: bool = False) -> Callable[[], None]:
    rows = rows_of(_is_table)
    assert rows is not None
    return all_rows(_is_table, rows, stops_at_first=stops_at_first)


def test_table_has_a_row_for_each_combination_with_its_id() -> None:
    assert rows_of(_is_table) == [
        ("three-1", {"left": 1, "right": 3, "word": "a"}),
        ("three-two", {"left": 2, "right": 3, "word": "a"}),
        ("four-1", {"left": 1, "right": 4, "word": "b"}),
        ("four-two", {"left": 2, "right": 4, "word": "b"}),
    ]


def test_every_row_that_fails_is_named() -> None:
    with pytest.raises(ExceptionGroup, match="3 of 4 rows fail") as caught:
        _whole()()
    assert [error.__notes__ for error in caught.value.exceptions] == [
        ["in the row [three-two]"],
        ["in the row [four-1]"],
        ["in the row [four-two]"],
    ]
    with pytest.raises(AssertionError) as first:
        _whole(stops_at_first=True)()
    assert first.value.__notes__ == ["in the row [three-two]"]


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def _with_slow_row(number: int) -> None: ...


@pytest.mark.parametrize("number", [1])
def _with_fixture(number: int, tmp_path: object) -> None: ...


@pytest.mark.parametrize("number", [1])
async def _with_loop(number: int) -> None: ...


def test_rows_are_tests_of_their_own_where_they_need_something() -> None:
    functions: list[Callable[..., object]] = [_with_slow_row, _with_fixture, _with_loop]
    assert [rows_of(function) for function in functions] == [None, None, None]
