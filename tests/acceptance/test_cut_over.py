"""The cut-over from the TypeScript worker, on a small scale and by the page's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("adopting.py")
RUN_S = 240.0


@pytest.mark.slow
def test_shard_of_the_typescript_worker_is_adopted_under_load_by_the_commands_of_the_page() -> None:
    """Killed while it copied, run again, swapped: no operation is lost, no old row is, and nothing is dropped."""
    argv = [sys.executable, str(PROGRAM), "--rows", "10000", "--kills", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
