"""A pytest plugin for runs under mutation: hypothesis tries what CI tries, and does not shrink what it finds."""

from __future__ import annotations

import hypothesis
from hypothesis import Phase


def pytest_configure() -> None:
    """Load the profile after conftest has loaded its own."""
    hypothesis.settings.register_profile(
        "mutation", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    hypothesis.settings.load_profile("mutation")
