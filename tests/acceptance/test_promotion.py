"""A standby that lacks the last commits is promoted, on a small scale: the same program tells it at full size."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_local.postgres.server import find_postgres_bin
from simplu_local.processes.loopback import StackError

SMALL = ("--rate", "100", "--lag-operations", "60")

pytestmark = pytest.mark.slow(30)


def test_nothing_is_lost_when_a_standby_without_the_last_commits_is_promoted() -> None:
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")
    run_program("acceptance.promotion", "--rounds", "2", *SMALL, "--variants", "loaded,idle-restarted")
