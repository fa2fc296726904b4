"""The bounds of time and memory for one input, in terms of a control that runs in the same process."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache, partial

from fuzz.target import Target
from support.processor_time import least_cpu_s

FREE_STEPS = 20_000_000  # of the control, for an input of no size
FREE_BYTES = 4 * 1024 * 1024
CONTROL_STEPS = 200_000
MEMORY_EVERY = 32  # inputs, of which the memory of one is measured: that takes several times as long
GROWN_EVERY = 64
GROWTH = 4
GROWTH_MAX = 10.0  # linear: 4, quadratic: 16
GROWTH_LEAST_S = 0.02  # a shorter time is noise
COUNTS = 7  # of repetitions, one more each
GROWN_BYTES = 1 << 14  # and GROWTH times as much


class BoundExceededError(AssertionError):
    """An input took too much time or memory."""


def check_bounded(target: Target, data: bytes) -> None:
    """Check *data*, its time, and of some inputs the memory, and the time of one that repeats a part of it."""
    run = partial(target.check, data)
    spent_s = _once_s(run)
    if spent_s > _limit_s(target, data):
        spent_s = least_cpu_s(run)
        if spent_s > (limit_s := _limit_s(target, data, again=True)):
            raise BoundExceededError(f"expected at most {limit_s:.3f} s for {len(data)} bytes, got {spent_s:.3f} s")
    draw = zlib.crc32(data)  # the input alone decides, so that it fails again when it is repeated
    if draw % MEMORY_EVERY == 0:
        check_memory(target, data)
    if draw % GROWN_EVERY == 1 and data:
        first = (draw >> 8) % len(data)
        last = first + 1 + (draw >> 16) % min(16, len(data) - first)
        check_growth(target, data[:first], data[first:last], data[last:], size=GROWN_BYTES)


def check_memory(target: Target, data: bytes) -> None:
    tracemalloc.start()
    try:
        target.check(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > (limit := FREE_BYTES + target.bytes_per_byte * len(data)):
        raise BoundExceededError(f"expected at most {limit} bytes of memory for {len(data)} bytes, got {peak}")


def check_growth(target: Target, head: bytes, pump: bytes, tail: bytes, *, size: int) -> None:
    """Check that *pump*, repeated between *head* and *tail* up to *size* and more, takes a time linear in its count.

    It must have grown once more before or after: an input that only ends early below some count makes one step.
    """
    count = max(1, size // len(pump))
    if (text := _growth(target, (head, pump, tail), count)) is None:
        return
    others = (count // GROWTH or 1, count * GROWTH)
    if any(_growth(target, (head, pump, tail), other, least_s=0.0) is not None for other in others):
        raise BoundExceededError(f"expected at most {GROWTH_MAX:g} times the time, got more: {text}")


def _growth(
    target: Target, parts: tuple[bytes, bytes, bytes], count: int, *, least_s: float = GROWTH_LEAST_S
) -> str | None:
    """Return how much longer GROWTH times *count* repetitions take, if it is too much; None else."""
    head, pump, tail = parts
    measures: tuple[tuple[Callable[..., float], int], ...] = ((_once_s, 1), (least_cpu_s, 1), (least_cpu_s, COUNTS))
    for measure, more in measures:  # a count by which the input ends early proves nothing
        texts = [[head + pump * (count * factor + one) + tail for one in range(more)] for factor in (1, GROWTH)]
        small_s, large_s = ([measure(partial(target.check, text)) for text in same] for same in texts)
        if min(large_s) < least_s or min(large_s) <= GROWTH_MAX * max(small_s):
            return None
    return f"{pump!r} times {count} took {max(small_s):.3f} s, {GROWTH} times as many {min(large_s):.3f} s"


def _limit_s(target: Target, data: bytes, *, again: bool = False) -> float:
    if again:
        _step_s.cache_clear()
    return _step_s() * (FREE_STEPS + target.steps_per_byte * len(data))


@cache
def _step_s() -> float:
    return least_cpu_s(_count) / CONTROL_STEPS


def _count() -> None:
    for _step in range(CONTROL_STEPS):
        pass


def _once_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
