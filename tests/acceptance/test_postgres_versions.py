"""The worker on the oldest version of Postgres that it supports; all other tests run on the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.postgres.databases import execute
from support.requires import ROOT, require

from simplu_local.postgres.server import INITIAL_DATA_VARIABLE, PROGRAMS_VARIABLE, PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import ensure_schema

NOWHERE = "http://127.0.0.1:1"
NODE_MODULES = ROOT / ".tools" / "node_modules"
OLDEST = NODE_MODULES / "postgres-14" / "native" / "bin"
NODE_PACKAGES = (
    "npm ci, and npm rebuild for their links, with requirements/npm in .tools (`node_packages` of .ci/functions)"
)
RUN_S = 580
KEPT = 6000  # of what the tests printed: the end
FILES = (
    "apply/test_writer.py",
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


@pytest.mark.slow(5)
async def test_check_ends_well_on_the_oldest_version() -> None:
    require("PostgreSQL 14", found=(OLDEST / "postgres").is_file(), how=NODE_PACKAGES)
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory, folder=OLDEST), database="shard")
        await server.start()
        url = server.url_of("shard")
        pool = ShardPool(ShardAddress("database", url), size=1)
        await ensure_schema(pool)
        await pool.close()
        rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest"
        await execute(url, f"CREATE ROLE guest LOGIN; {rights}")
        for user in ("postgres", "guest"):
            environment = {
                "PATH": os.environ["PATH"],
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "y",
                "AWS_REGION": "eu-west-1",
                "AWS_ENDPOINT_URL": NOWHERE,
                "SQS_ORDER_EVENTS_QUEUE_URL": f"{NOWHERE}/queue",
                "SQS_DEAD_LETTER_QUEUE_URL": f"{NOWHERE}/dead-letters",
                "DATABASE_HOST": "127.0.0.1",
                "DATABASE_PORT": str(server.port),
                "DATABASE_NAME": "shard",
                "DATABASE_USERNAME": user,
            }
            command = [sys.executable, "-m", "simplu_worker", "check", "--json"]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: ASYNC221
            assert ended.stdout, ended.stderr
            checked = json.loads(ended.stdout)["dependencies"]
            (shard,) = [one for one in checked if one["dependency"].startswith("shard ")]
            assert (shard["status"], shard["result"].startswith("PostgreSQL 14.")) == ("ok", True), shard
