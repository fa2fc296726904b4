"""Exceptions that nobody foresaw, raised at places that the seed draws: by the doors to services, and in our own code.

In our own code one is raised at a drawn step of the interpreter, in the middle of whatever runs then. Python ends the
trace with the first exception, so a history has one of these.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from random import Random
from types import FrameType
from typing import Any, Final

STEPS_MAX: Final = 60_000  # lines of our code that a usual history runs, and some more
# Where the memory of a reader, a lane or the fleet is. What catches the exceptions is trusted, and so are structs.
WATCHED: Final = tuple(
    f"/simplu_worker/consumers/kinesis/{package}/" for package in ("fleet", "reader", "dispatch", "holding", "recovery")
)
LOOKS: Final = ("problems", "check_read_status", "check_fates", "start_replica")


class DefectError(Exception):
    """Raised where nobody foresees it."""


@contextlib.contextmanager
def a_defect(draws: Random) -> Iterator[list[str]]:
    """Raise `DefectError` at one drawn step inside the block; yield the list that gets the place."""
    left = draws.randrange(STEPS_MAX)
    places: list[str] = []

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0 and not places and not _is_looked_at(frame):
                places.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
                raise DefectError
        return count

    def watch(frame: FrameType, _: str, __: object) -> Any:
        return count if any(part in frame.f_code.co_filename for part in WATCHED) else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield places
    finally:
        sys.settrace(before)


def _is_looked_at(frame: FrameType | None) -> bool:
    """Return whether the simulation itself looks at the state of the worker now."""
    while frame is not None:
        if frame.f_code.co_name in LOOKS:
            return True
        frame = frame.f_back
    return False
