"""The program `feeding.py`, small: a tenant moves and shards fail over while the feed's publishers are killed."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_local.postgres.server import find_postgres_bin
from simplu_local.processes.loopback import StackError

SMALL = ("--shards", "2", "--rate", "30", "--kill-every", "10", "--hang-every", "0", "--outage", "2")

pytestmark = pytest.mark.slow(40)


def test_receivers_hold_what_the_logs_have_when_tenants_move_and_shards_fail_over() -> None:
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")
    run_program("acceptance.feeding", "--moves", "2", "--fail-overs", "1", *SMALL)
