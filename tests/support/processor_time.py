"""How much time of the processor some work takes."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_S = 0.02  # some systems count processor time in ticks of 4 to 10 ms, so that a short run takes 0


def cpu_s(work: Callable[[], object]) -> float:
    """Return the processor seconds of one run of *work*, from as many runs as take LEAST_S together."""
    started, runs = time.process_time(), 0
    while True:
        work()
        runs += 1
        if (spent_s := time.process_time() - started) >= LEAST_S:
            return spent_s / runs


def least_cpu_s(work: Callable[[], object]) -> float:
    """Return the least of three such measures: what else the machine does only adds to it."""
    return min(cpu_s(work) for _ in range(3))
