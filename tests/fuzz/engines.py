"""The two engines: hypothesis draws inputs of known structure, atheris mutates bytes towards new branches."""

from __future__ import annotations

import importlib.util
import itertools
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fuzz.bounds import check_bounded, check_growth, check_memory
from fuzz.quiet import silence
from fuzz.target import Target, load_target
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

STRUCTURE, COVERAGE = "structure", "coverage"
HANGS_AFTER_CPU_S = 20
GROWN_HANGS_AFTER_CPU_S = 100  # after a suspicion all is measured many times
HANGS_AFTER_S = 300  # and does not compute: beside other work a second of the processor may take thirty
MEMORY_MAX_MB = 2_048
INPUT_MAX_BYTES = 4_096  # of atheris: short inputs reach all branches; bounds are checked on grown ones
EXAMPLES = 200  # of hypothesis in one round
GROWN_SIZES = (1 << 14, 1 << 16, 1 << 18)


class HangError(AssertionError):
    """An input does not end."""


def has_coverage() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run_structure(name: str, *, seconds: float, number: int, found: Path) -> int:
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


def run_coverage(name: str, *, seconds: float, number: int, found: Path, corpus: Path | None) -> None:
    """Check inputs that atheris finds; does not return. A failing one is in *found*."""
    import atheris  # `make fuzz` installs it, on Linux on x86_64

    silence()
    with atheris.instrument_imports(include=["simplu_worker"]):
        target = load_target(name)
    with tempfile.TemporaryDirectory() as folder:
        seeds, words = Path(folder, "seeds"), Path(folder, "words")
        seeds.mkdir()
        for place, data in enumerate(target.seeds):
            Path(seeds, str(place)).write_bytes(data)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        corpora = [str(seeds)] if corpus is None else [str(corpus), str(seeds)]
        options = {
            "seed": number,
            "max_total_time": max(1, round(seconds)),
            "max_len": INPUT_MAX_BYTES,
            "timeout": HANGS_AFTER_S,
            "rss_limit_mb": MEMORY_MAX_MB,
            "dict": words,
            "exact_artifact_path": found,
            "print_final_stats": 1,
            "verbosity": 0,
        }
        arguments = [f"-{option}={value}" for option, value in options.items()]
        atheris.Setup([sys.argv[0], *arguments, *corpora], lambda data: check_bounded(target, bytes(data)))
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def repeat(name: str, path: Path) -> None:
    """Check the input in *path* alone, every bound of it; raises what it raises."""
    silence()
    target, data = load_target(name), path.read_bytes()
    check_bounded(target, data)
    check_memory(target, data)


def report_count(count: int) -> None:
    sys.stdout.write(json.dumps({"inputs": count}) + "\n")
