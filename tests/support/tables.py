"""A table of `parametrize` is one test, which tries every row: as a test of its own, each would cost 5 ms more.

So it is in `tests/unit` and `tests/repository`, for functions that use no fixture and whose rows have no marks. Rows
are tests of their own again where one may be chosen: with `-k`, with a row's id in an argument, and with `--rows`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import update_wrapper
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from hypothesis import is_hypothesis_test

FOLDERS = {"unit", "repository"}  # of tests/
# Fixtures that a test has without asking for them, and which allow for many rows.
HARMLESS = {"_module_leaves_nothing", "_test_leaves_nothing", "event_loop_policy", "request"}

Row = tuple[str, dict[str, Any]]  # its id, and the arguments


def add_options(parser: pytest.Parser) -> None:
    """Add the option of this plugin."""
    parser.getgroup("selection").addoption("--rows", action="store_true", help="have a test for each row of a table")


class Tables:
    """A plugin of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        words: list[str] = config.args
        self._is_on = not (config.option.keyword or config.option.rows or any("[" in word for word in words))
        self._stops_at_first = config.option.maxfail == 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, name: str, obj: object
    ) -> list[pytest.Item] | None:
        """Make one test of a table."""
        if not (self._is_on and FOLDERS & {*collector.nodeid.split("/")[1:2]} and inspect.isfunction(obj)):
            return None
        if not collector.funcnamefilter(name) or (rows := rows_of(obj)) is None:
            return None
        arguments = {argument for _, row in rows for argument in row}
        manager = collector.session._fixturemanager
        fixtures = manager.getfixtureinfo(node=collector, func=obj, cls=None)  # type: ignore[arg-type]  # as pytest does
        if set(fixtures.names_closure) - arguments - HARMLESS:
            return None
        whole = all_rows(obj, rows, stops_at_first=self._stops_at_first)
        return [pytest.Function.from_parent(collector, name=name, callobj=whole)]


def rows_of(function: Callable[..., object]) -> list[Row] | None:
    """Return the rows that a function has by its marks; None if they are not to be one test."""
    marks: list[pytest.Mark] = getattr(function, "pytestmark", [])
    if not marks or is_hypothesis_test(function) or inspect.iscoroutinefunction(function):
        return None
    tables: list[list[Row]] = []
    for mark in marks:
        if mark.name != "parametrize" or mark.kwargs.keys() - {"ids"} or len(mark.args) != 2:
            return None
        names, values = mark.args
        table = _rows(names, values, mark.kwargs.get("ids"))
        if not table:
            return None
        tables.append(table)
    rows = [_joined(parts) for parts in itertools.product(*tables)]
    is_all = all(row.keys() == inspect.signature(function).parameters.keys() for _, row in rows)
    return rows if is_all else None


def _rows(names: str | Sequence[str], values: object, ids: object) -> list[Row] | None:
    if not isinstance(values, Collection) or not (ids is None or isinstance(ids, Collection)):
        return None
    own_names = [None] * len(values) if ids is None else list(ids)
    words = [word.strip() for word in names.split(",")] if isinstance(names, str) else list(names)
    rows: list[Row] = []
    for value, own_name in zip(values, own_names, strict=True):
        parameters = ParameterSet.extract_from(value, force_tuple=len(words) == 1)
        if parameters.marks:
            return None
        row = dict(zip(words, parameters.values, strict=True))
        name = parameters.id or own_name or ", ".join(map(_shown, row.values()))
        rows.append((str(name), row))
    return rows


def _shown(value: object) -> str:
    return repr(value)[:80]


def _joined(parts: Sequence[Row]) -> Row:
    return "-".join(name for name, _ in parts), {name: value for _, row in parts for name, value in row.items()}


def all_rows(function: Callable[..., None], rows: Sequence[Row], *, stops_at_first: bool = False) -> Callable[[], None]:
    """Return a test of all rows; its error names the rows that fail."""

    def whole() -> None:
        errors = list(itertools.islice(_errors(function, rows), 1 if stops_at_first else None))
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {len(rows)} rows fail", errors)

    update_wrapper(whole, function)
    del whole.__wrapped__  # type: ignore[attr-defined]  # its parameters would be fixtures
    vars(whole).pop("pytestmark")
    return whole


def _errors(function: Callable[..., None], rows: Sequence[Row]) -> Iterator[BaseException]:
    for name, row in rows:
        try:
            function(**row)
        except (Exception, pytest.fail.Exception) as exc:  # noqa: BLE001 - whatever fails a test
            exc.add_note(f"in the row [{name}]")
            yield exc
