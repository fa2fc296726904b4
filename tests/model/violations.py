"""What a search of a wrong design has to find."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
from model.search import Model, Violation, search

Rules = TypeVar("Rules")


def but_for(rules: type[Rules], names: str) -> Rules:
    """Return the agreed rules but for those with these names, separated by spaces."""
    return rules(**dict.fromkeys(names.split(), True))


def assert_is_violated(model: Model[Any], promise: str, length: int, *, forbids_cycles: bool = False) -> None:
    with pytest.raises(Violation) as caught:
        search(model, forbids_cycles=forbids_cycles)
    assert promise == caught.value.promise.partition(":")[0], caught.value
    assert length == len(caught.value.trace), caught.value
