"""The programs beside the tests, which show things at full size, and the benchmarks: run by a test on a small scale."""

from __future__ import annotations

import subprocess
import sys

RUN_S = 540.0  # of a slow machine; less than `faulthandler_timeout`, which ends all tests
KEPT = 6000  # of what a program printed: its end


def run_program(module: str, *arguments: str, status: int = 0) -> str:
    """Run `python -m module`; return what it printed on stdout. A failure shows the end of what it printed."""
    argv = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == status, done.stdout[-KEPT:] + done.stderr[-KEPT:]
    return done.stdout
