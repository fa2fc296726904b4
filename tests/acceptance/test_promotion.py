"""A standby that lacks the last commits is promoted, on a small scale: the same program tells it at full size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_worker.local.postgres.server import find_postgres_bin
from simplu_worker.local.processes.loopback import StackError

PROMOTION = Path(__file__).with_name("promotion.py")
RUN_S = 300.0
SMALL = ("--rate", "150", "--lag-operations", "100")

pytestmark = pytest.mark.slow  # each takes half a minute and more


@pytest.mark.parametrize(
    "trouble",
    [
        ("--variants", "loaded,idle-restarted"),
        ("--variants", "interrupted", "--how", "multi-host"),
        ("--variants", "idle", "--how", "replica"),
    ],
    ids=["citrus", "multi-host", "replica"],
)
def test_nothing_is_lost_when_a_standby_without_the_last_commits_is_promoted(trouble: tuple[str, ...]) -> None:
    """What the stream still has is applied again before anything new, however the worker learns of the new primary."""
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")
    rounds = str(len(trouble[1].split(",")))
    argv = [sys.executable, str(PROMOTION), "--rounds", rounds, *SMALL, *trouble]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
