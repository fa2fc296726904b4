"""Of many like cases a few run in every test run, and the rest where the slow tests do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
    """Return *values* for `parametrize`, marked as slow but for the first *count*."""
    marks: list[list[pytest.MarkDecorator]] = [[], [pytest.mark.slow]]
    return [pytest.param(value, marks=marks[number >= count]) for number, value in enumerate(values)]
