"""A target of the fuzz: what it checks of any bytes, and where its inputs come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from hypothesis import strategies as st

NAMES = ("records", "orders", "control", "citrus", "maps", "types", "http", "events", "feed")


@dataclass(frozen=True)
class Target:
    """One surface. *check* raises for an input with a result that no input may have, or a cost that none may have.

    *seeds* are usual inputs, and *words* what they consist of. *steps_per_byte* and *bytes_per_byte* bound the time, in
    steps of a loop in Python, and the memory. *raw* are the bytes that the surface gets of an input.
    """

    check: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    inputs: st.SearchStrategy[bytes]
    steps_per_byte: int = 2_000
    bytes_per_byte: int = 400


def load_target(name: str) -> Target:
    """Return a target of NAMES; its modules are imported now."""
    return cast("Target", importlib.import_module(f"fuzz.targets.{name}").TARGET)
