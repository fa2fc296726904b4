"""Of many like cases a few run in every test run, and the rest where the slow tests do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import pytest


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
    marks: list[list[pytest.MarkDecorator]] = [[], [pytest.mark.slow]]
    return [pytest.param(value, marks=marks[number >= count]) for number, value in enumerate(values)]


def slow_ones(names: AbstractSet[str], cases: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    return _marked(pytest.mark.slow(1), names, cases)


def nightly_ones(names: AbstractSet[str], cases: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    return _marked(pytest.mark.nightly, names, cases)


def _marked(mark: pytest.MarkDecorator, names: AbstractSet[str], cases: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    assert names <= cases.keys(), f"expected names of cases, got {sorted(names - cases.keys())}"
    marks: list[list[pytest.MarkDecorator]] = [[], [mark]]
    return [pytest.param(*values, id=name, marks=marks[name in names]) for name, values in cases.items()]
