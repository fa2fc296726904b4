"""An upgrade of all shards under load, on a small scale: the same program tells it at full size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UPGRADING = Path(__file__).with_name("upgrading.py")
RUN_S = 240.0
SMALL = ("--shards", "2", "--rate", "150", "--seconds", "1.5")

pytestmark = pytest.mark.slow  # it takes half a minute


def test_shards_are_upgraded_under_load_while_old_and_new_workers_work_side_by_side() -> None:
    """From the first schema to the last, killed in between, with nothing held, lost, doubled or out of order."""
    argv = [sys.executable, str(UPGRADING), *SMALL]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
