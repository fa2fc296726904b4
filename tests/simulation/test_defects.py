"""The exceptions that nobody foresaw are raised at every step of our code, and at none that Python keeps to itself."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from simulation.defects import WATCHED, DefectError, a_defect

SOURCE = """
def leave(lock, how):
    for _ in range(2):
        with lock:
            if how == "return":
                return str(how)
            if how == "break":
                break
            if how == "raise":
                raise KeyError(how)
            try:
                str(how)
            except KeyError:
                break

async def leave_later(lock, how):
    for _ in range(2):
        async with lock:
            if how == "return":
                return str(how)
            if how == "break":
                break
            if how == "raise":
                raise KeyError(how)
            try:
                str(how)
            except KeyError:
                break
"""
ENTERED = ("        with lock:", "        async with lock:", '            if how == "return":')
STEPS = 20  # more than any of these takes


class _At(Random):
    def __init__(self, number: int) -> None:
        self._number = number

    def randrange(self, *_: object) -> int:
        return self._number


@pytest.mark.parametrize("how", ["return", "break", "raise", "end"])
def test_defect_leaves_no_lock_held_when_it_is_raised_at_any_step(how: str) -> None:
    own: dict[str, Any] = {}
    exec(compile(SOURCE, f"{WATCHED[0]}made_up.py", "exec"), own)
    lines = set[str]()
    for step in range(STEPS):
        lock, later_lock = threading.Lock(), asyncio.Lock()
        with a_defect(_At(step)) as places, suppress(DefectError, KeyError):
            own["leave"](lock, how)
        with a_defect(_At(step)) as later_places, suppress(DefectError, KeyError):
            asyncio.run(own["leave_later"](later_lock, how))
        assert (step, lock.locked(), later_lock.locked()) == (step, False, False)
        lines.update(places, later_places)
    assert {f"made_up.py:{SOURCE.splitlines().index(line) + 1}" for line in ENTERED} <= lines
