"""What all pages of docs/runbook/ share while a test carries them out: the local AWS, and the programs of a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from support.processes.command_server import CommandServer
from support.requires import require, required_program

from simplu_local.aws_server.account import REGION
from simplu_local.postgres.server import PostgresPrograms, find_postgres_bin
from simplu_local.processes.loopback import StackError
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import CREDENTIALS, start_kinesis, start_moto, start_sqs
from simplu_worker.config.loading import KNOWN_VARIABLES

CLIENTS = ("psql", "pg_basebackup")


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
    folder = group.directory / "commands"
    folder.mkdir()
    server = CommandServer(group)
    for name in ("simplu-worker", "aws"):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(server.command(name))} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    await server.wait_ready()
    return folder
