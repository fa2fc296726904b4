"""The fuzz itself: its usual inputs and those that failed once pass, and each kind of fault is found."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from fuzz import bounds, memory_network
from fuzz.bounds import BoundExceededError, check_bounded, check_growth, check_memory
from fuzz.engines import STRUCTURE, run_structure
from fuzz.inputs import messages
from fuzz.quiet import TOKEN, check_faults, check_secrets, silence
from fuzz.run import Job, main
from fuzz.target import NAMES, Target, load_target
from hypothesis import given, settings
from hypothesis import strategies as st
from support.requires import ROOT

from simplu_worker.telemetry import log as log_module

KNOWN = sorted((ROOT / "tests" / "fuzz" / "known").iterdir(), key=lambda path: path.name)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Log as the fuzz does, and close its event loop at the end."""
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(log_module, "_secrets", log_module._Secrets())
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)
    memory_network.close()


@pytest.mark.parametrize("name", NAMES)
def test_usual_inputs_pass(name: str) -> None:
    """Otherwise the fuzz would find nothing else."""
    target = load_target(name)
    for data in target.seeds:
        target.check(data)


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.name)
def test_input_that_failed_once_passes(path: Path) -> None:
    """The name of its file begins with its target."""
    check_bounded(load_target(path.name.partition("-")[0]), path.read_bytes())


def target_of(work: Callable[[bytes], object]) -> Target:
    """Return a target that does *work* with an input."""
    return Target(check=work, seeds=(), words=(), inputs=st.binary())


@pytest.mark.parametrize("step_s", [1e-9, 1e-6])
def test_quadratic_time_is_found(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    """Whatever its constant, once it can be measured; here each target returns the time that it takes."""
    monkeypatch.setattr(bounds, "_cpu_s", lambda work, data: work(data))

    with pytest.raises(BoundExceededError, match="expected at most 10 times the time"):
        check_growth(target_of(lambda data: step_s * len(data) ** 2), b"x", b"bc", b"y", size=1 << 13)
    check_growth(target_of(lambda data: step_s * len(data)), b"x", b"bc", b"y", size=1 << 13)


def test_step_of_time_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of a target that refuses short inputs at once."""
    monkeypatch.setattr(bounds, "_cpu_s", lambda work, data: work(data))
    refusing = target_of(lambda data: 1e-6 * len(data) if len(data) > 1 << 14 else 0.0)

    check_growth(refusing, b"x", b"bc", b"y", size=1 << 13)


def test_memory_without_bound_is_found() -> None:
    """Here of ten megabytes for one byte."""
    with pytest.raises(BoundExceededError, match="bytes of memory for 1 bytes"):
        check_memory(target_of(lambda _: [bytes(10_000_000)]), b"x")
    check_memory(target_of(bytes), b"x")


def test_time_without_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of a loop that has nothing to do with the size of the input."""

    def spin(_: bytes) -> None:
        ends_at = time.process_time() + 0.05
        while time.process_time() < ends_at:
            pass

    monkeypatch.setattr(bounds, "FREE_STEPS", 100_000)
    with pytest.raises(BoundExceededError, match="for 1 bytes"):
        check_bounded(target_of(spin), b"x")
    check_bounded(target_of(bytes), b"x")


def test_traceback_and_secret_in_a_log_are_found() -> None:
    """And noted no longer than for one input."""
    log = structlog.get_logger()
    log.info("http.failed", header=f"Bearer {TOKEN}")
    with pytest.raises(AssertionError, match="a secret is shown"):
        check_faults()
    try:
        int("x")
    except ValueError:
        log.exception("http.failed")
    with pytest.raises(AssertionError, match="ValueError: invalid literal"):
        check_faults()
    check_secrets("nothing")
    check_faults()


def test_failing_input_is_kept_with_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has the input, and nothing else."""
    monkeypatch.setattr("fuzz.run.KEPT", ROOT / ".fuzz")
    (ROOT / ".fuzz").mkdir(exist_ok=True)
    job = Job("redis", STRUCTURE, tmp_path)
    job.process = subprocess.Popen([sys.executable, "-c", ""])
    job.process.wait()
    job.log.touch()
    assert job.report()
    job.found.write_bytes(b"redis-input")

    assert not job.report()

    command = capsys.readouterr().out.splitlines()[-1].partition("Repeat: ")[2]
    path = ROOT / command.split()[-1].strip('"')
    assert command.startswith('make fuzz ARGS="--target redis --input .fuzz/redis-')
    assert path.read_bytes() == b"redis-input"
    assert main(["--target", "redis", "--input", str(path)]) == 0
    path.unlink()


@settings(max_examples=20)
@given(messages({"a": 1, "b": "text"}))
def test_messages_are_bytes_that_may_be_no_json(data: bytes) -> None:
    """They begin and end as an object."""
    assert data.startswith(b"{")
    assert data.endswith(b"}")


def test_structure_is_the_same_for_a_seed(tmp_path: Path) -> None:
    """Without time only the usual inputs are tried, if those."""
    assert run_structure("redis", until=time.monotonic() + 0.0, number=1, found=tmp_path / "found") == 0
