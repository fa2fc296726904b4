"""The program `faults`, small: a few nemeses, and nothing but what the worker promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from acceptance.programs import run_program
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_local.postgres.server import find_postgres_bin
from simplu_local.processes.loopback import StackError

NEMESES = "kill,half-answered postgres,move"

pytestmark = pytest.mark.slow(40)


def test_promises_are_kept_beside_a_kill_broken_connections_and_a_move(tmp_path: Path) -> None:
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")
    small = ("--minutes", "0", "--operations", "200", "--rate", "25", "--nemeses", NEMESES, "--keep", str(tmp_path))
    run_program("faults.__main__", *small)
    assert (tmp_path / "1.jsonl").stat().st_size > 0
