"""A pytest plugin for runs under mutation.

Hypothesis tries what CI tries, and does not shrink what it finds. Searches for the faults of wrong designs do not run:
they take long, and every mutant that they notice fails the same properties of the right one. Tests of the cost of
decoding do not run either: mutated code is slower, whatever the mutant.
"""

from __future__ import annotations

import sys

import hypothesis
import pytest
from hypothesis import Phase


def pytest_configure() -> None:
    """Load the profile after conftest has loaded its own, and allow for mutmut's frames between two of a recursion."""
    sys.setrecursionlimit(4 * sys.getrecursionlimit())
    hypothesis.settings.register_profile(
        "mutation", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    hypothesis.settings.load_profile("mutation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if "wrong_design" not in item.nodeid and "is_cheap" not in item.nodeid]
