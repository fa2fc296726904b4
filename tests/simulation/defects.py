"""Exceptions that nobody foresaw, raised at places that the seed draws: by the doors to services, and in our own code.

In our own code one is raised at a drawn step of the interpreter, but not between the end of a `with` block and its
exit. Python ends the trace with the first exception, so a history has one of these.
"""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, takewhile
from random import Random
from types import CodeType, FrameType
from typing import Any, Final

STEPS_MAX: Final = 60_000  # lines of our code that a usual history runs, and some more
# Where the memory of a reader, a lane or the fleet is. What catches the exceptions is trusted, and so are structs.
WATCHED: Final = tuple(
    f"/simplu_worker/consumers/kinesis/{package}/" for package in ("fleet", "reader", "dispatch", "holding", "recovery")
)
LOOKS: Final = ("problems", "check_read_status", "check_fates", "start_replica", "_let_happen")
CALLED_BACK: Final = "_note_end_of_renewals"  # by asyncio, which has nobody to give an exception to


class DefectError(Exception): ...


@contextlib.contextmanager
def a_defect(draws: Random) -> Iterator[list[str]]:
    left = draws.randrange(STEPS_MAX)
    places: list[str] = []

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            is_spared = left < 0 and frame.f_lasti in _spared_offsets(frame.f_code)
            if left < 0 and not places and not is_spared and not _is_looked_at(frame):
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


@cache
def _spared_offsets(code: CodeType) -> set[int]:
    """Return the offsets at which nothing can be raised, and at which a `with` block would not be left by its exit.

    The interpreter goes on with the exit: without an exception it begins with three loads of None, with one it begins
    with a handler. Or it does nothing: that of a `try` is in no range of handlers, nor in that of a block around it.
    """
    steps = list(dis.get_instructions(code))
    found = {step.offset for step, after in pairwise(steps) if after.opname == "WITH_EXCEPT_START"}
    found |= {step.offset for step in steps if step.opname == "NOP"}
    for at in range(len(steps) - 2):
        if all((step.opname, step.argval) == ("LOAD_CONST", None) for step in steps[at : at + 3]):
            found.add(steps[at].offset)
            found.update(step.offset for step in takewhile(_is_prelude, reversed(steps[:at])))
    return found


def _is_prelude(step: dis.Instruction) -> bool:
    return step.opname in {"SWAP", "NOP"}


def _is_looked_at(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in {*LOOKS, CALLED_BACK}:
            return True
        frame = frame.f_back
    return False
