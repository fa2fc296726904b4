"""The engine: hypothesis draws inputs of known structure, and makes those smaller that fail."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fuzz.bounds import check_bounded, check_growth, check_memory
from fuzz.quiet import silence
from fuzz.target import Target, load_target
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

HANGS_AFTER_CPU_S = 20
GROWN_HANGS_AFTER_CPU_S = 100  # after a suspicion all is measured many times
HANGS_AFTER_S = 300  # and does not compute: beside other work a second of the processor may take thirty
EXAMPLES = 200  # of hypothesis in one round
GROWN_SIZES = (1 << 14, 1 << 16, 1 << 18)


class HangError(AssertionError):
    """An input does not end."""


def run(name: str, *, seconds: float, number: int, found: Path) -> int:
    """Check inputs that hypothesis draws, round after round; return their count. The last failing one is in *found*."""
    silence()
    for number_of_signal in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number_of_signal, _hang)
    target = load_target(name)
    until = time.monotonic() + seconds
    counts = itertools.count()

    def check(check_one: Callable[[], None], data: bytes, limit_cpu_s: int = HANGS_AFTER_CPU_S) -> None:
        if time.monotonic() > until and not found.exists():
            return
        next(counts)
        signal.setitimer(signal.ITIMER_PROF, limit_cpu_s)
        signal.alarm(HANGS_AFTER_S)
        try:
            check_one()
        except BaseException:
            found.write_bytes(data)
            raise
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)

    for data in target.seeds:
        check(partial(check_bounded, target, data), data)
        check(partial(check_memory, target, data), data)
    for round_number in itertools.count():
        if time.monotonic() > until:
            return next(counts)
        _run_round(target, number + round_number, check)
    raise AssertionError


def _run_round(target: Target, number: int, check: Callable[..., None]) -> None:
    common = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    @common
    @given(target.inputs)
    def check_inputs(data: bytes) -> None:
        check(partial(check_bounded, target, data), data)

    @seed(number)
    @settings(common, max_examples=EXAMPLES // 20)
    @given(target.inputs, st.data())
    def check_grown(data: bytes, draw: st.DataObject) -> None:
        first = draw.draw(st.integers(0, len(data)))
        pump = draw.draw(st.sampled_from(target.words) | st.just(data[first : first + 12] or b"["))
        size = draw.draw(st.sampled_from(GROWN_SIZES))
        size = min(size, GROWN_SIZES[-1] * 2_000 // target.steps_per_byte)
        grown = data[:first] + pump * (4 * size // len(pump)) + data[first:]
        check(lambda: check_growth(target, data[:first], pump, data[first:], size=size), grown, GROWN_HANGS_AFTER_CPU_S)

    check_inputs()
    check_grown()


def _hang(*_: object) -> None:
    raise HangError("expected an end, got none")


def repeat(name: str, path: Path) -> None:
    """Check the input in *path* alone, every bound of it; raises what it raises."""
    silence()
    target, data = load_target(name), path.read_bytes()
    check_bounded(target, data)
    check_memory(target, data)


def report_count(count: int) -> None:
    sys.stdout.write(json.dumps({"inputs": count}) + "\n")
