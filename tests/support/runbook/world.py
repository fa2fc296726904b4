"""What all pages of docs/runbook/ share while a test carries them out: the local AWS, and the programs of a shell."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from support.requires import ROOT, require, required_program

from simplu_worker.config.misspellings import KNOWN_VARIABLES
from simplu_worker.local.aws_server.account import REGION
from simplu_worker.local.postgres.server import PostgresPrograms, find_postgres_bin
from simplu_worker.local.processes.loopback import StackError, poll_until
from simplu_worker.local.processes.watchdog import ProcessGroup
from simplu_worker.local.stack.aws import CREDENTIALS, start_kinesis, start_moto, start_sqs

CLIENTS = ("psql", "pg_basebackup")
START_S = 30.0
TESTS = ROOT / "tests"


@dataclass(frozen=True)
class World:
    """The local AWS, its processes' group, and the variables of a shell that reaches it."""

    group: ProcessGroup
    programs: PostgresPrograms
    sqs_url: str
    shell: dict[str, str]


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """Start the local AWS; skip the test where a program of the pages is not installed."""
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    for name in CLIENTS:
        require(name, found=(folder / name).is_file(), how="install simplu-worker[local]")
    required_program("curl", how="apt-get install curl")
    with ProcessGroup() as group:
        moto, kinesis, sqs = await start_moto(group), await start_kinesis(group), await start_sqs(group)
        commands = await _write_commands(group)
        others = KNOWN_VARIABLES | {name for name in os.environ if name.startswith(("AWS_", "PG"))}
        shell = {name: value for name, value in os.environ.items() if name not in others} | CREDENTIALS
        shell |= {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": moto}
        shell |= {"AWS_ENDPOINT_URL_KINESIS": kinesis, "AWS_ENDPOINT_URL_SQS": sqs, "DYNAMODB_ENDPOINT": moto}
        shell |= {"PATH": os.pathsep.join([str(commands), str(folder), os.environ["PATH"]]), "LC_ALL": "C.UTF-8"}
        yield World(group, PostgresPrograms.find(group.directory), sqs, shell)


async def _write_commands(group: ProcessGroup) -> Path:
    """Write the commands of the pages that are ours, the worker's and the AWS CLI's stand-in; return their folder."""
    folder, served = group.directory / "commands", group.directory / "commands.socket"
    folder.mkdir()
    module = "support.runbook.forked_commands"
    environ = dict(os.environ) | {"PYTHONPATH": str(TESTS)}
    group.spawn([sys.executable, "-m", module, str(served)], log_path=group.directory / "commands.log", env=environ)
    program = TESTS.joinpath(*module.split(".")).with_suffix(".py")
    for name in ("simplu-worker", "aws"):
        line = f'exec "{sys.executable}" -I -S "{program}" "{served}" {name} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    async def is_served() -> bool:
        return served.exists()

    assert await poll_until(is_served, within_s=START_S)
    return folder
