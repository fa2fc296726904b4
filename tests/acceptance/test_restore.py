"""A shard is put back to an older base backup, on a small scale: the same program does it at full size."""

from __future__ import annotations

import re

import pytest
from acceptance.programs import run_program
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_local.postgres.server import find_postgres_bin
from simplu_local.processes.loopback import StackError


@pytest.mark.slow(20)
def test_nothing_is_lost_when_a_shard_is_put_back_to_an_older_backup() -> None:
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")
    out = run_program("acceptance.restore", "--operations", "2000")
    found = re.search(r"(\d+) operations lost with the server, 0 of them not applied again", out)
    assert found is not None
    assert int(found[1]) >= 2000
