"""The worker on the oldest Postgres that Debian supports; the one beside all other tests is the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.requires import ROOT, require

from simplu_local.postgres.server import INITIAL_DATA_VARIABLE, PROGRAMS_VARIABLE

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
RUN_S = 580
KEPT = 6000  # of what the tests printed: the end
FILES = (
    "apply/test_writer.py",
    "apply/test_at_once.py",
    "importing",
    "moving/test_mover.py",
    "restoring",
    "schema/test_business_types.py",
    "schema/test_upgrade.py",
)


@pytest.mark.slow(30)
def test_worker_does_the_same_on_postgres_15(tmp_path: Path) -> None:
    """A part of the integration tests: writing, moving, restoring, importing, positions, the schema."""
    require("PostgreSQL 15", found=(PROGRAMS / "postgres").is_file(), how="apt-get install postgresql-15")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "REQUIRE_ALL"))}
    environment = kept | {"CI": "1", PROGRAMS_VARIABLE: str(PROGRAMS), INITIAL_DATA_VARIABLE: str(tmp_path)}
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
    assert [path.read_text() for path in tmp_path.glob("*/PG_VERSION")] == ["15\n"]
