"""The worker on the oldest version of Postgres that it supports; all other tests run on the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.requires import ROOT, require

from simplu_local.postgres.server import INITIAL_DATA_VARIABLE, PROGRAMS_VARIABLE

NODE_MODULES = ROOT / ".tools" / "node_modules"
OLDEST = NODE_MODULES / "postgres-14" / "native" / "bin"
NODE_PACKAGES = (
    "npm ci, and npm rebuild for their links, with requirements/npm in .tools (`node_packages` of .ci/functions)"
)
RUN_S = 580
KEPT = 6000  # of what the tests printed: the end
FILES = (
    "apply/test_writer.py",
    "commands/test_check_writes.py::test_check_leaves_a_shard_as_it_was",
    "importing",
    "moving/test_mover.py",
    "restoring",
    "schema/test_business_types.py",
    "schema/test_upgrade.py",
)


@pytest.mark.nightly
def test_worker_does_the_same_on_postgres_14(tmp_path: Path) -> None:
    require("PostgreSQL 14", found=(OLDEST / "postgres").is_file(), how=NODE_PACKAGES)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "REQUIRE_ALL"))}
    environment = kept | {"CI": "1", PROGRAMS_VARIABLE: str(OLDEST), INITIAL_DATA_VARIABLE: str(tmp_path)}
    files = [f"tests/integration/{name}" for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stdout[-KEPT:] + done.stderr[-KEPT:]
    assert [path.read_text() for path in tmp_path.glob("*/PG_VERSION")] == ["14\n"]
