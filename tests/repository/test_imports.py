"""What commands import: `--help`, and commands that ask one shard, are quick because they leave the rest alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest
from support.requires import ROOT

from simplu_worker.cli import COMMANDS

RUN: Final = """
import json, sys
from simplu_worker.__main__ import main
sys.stdout = sys.stderr
try:
    main()
except SystemExit as end:
    status = end.code
sys.__stdout__.write(json.dumps([status, sorted(sys.modules)]))
"""
# Each takes 20 to 200 ms to import.
AWS: Final = {"aiobotocore", "aiohttp", "botocore"}
POSTGRES: Final = {"asyncpg", "prometheus_client"}
SETTINGS: Final = {"msgspec", "pydantic_settings", "structlog"}
NOT_OURS: Final = {"boto3", "moto", "opentelemetry", "redis", "requests"}
# A port on which no server listens: the command ends once it has asked the shard.
SHARD: Final = {
    "DATABASE_HOST": "127.0.0.1",
    "DATABASE_PORT": "1",
    "DATABASE_NAME": "shard",
    "DATABASE_USERNAME": "worker",
    "AWS_REGION": "eu-central-1",
    "KINESIS_STREAM_NAME": "resources-operations",
}


def imported_by(*arguments: str) -> tuple[int, set[str]]:
    """Return the exit status of a command with one silent shard, and the names of all modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, env=SHARD, capture_output=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    status, names = json.loads(done.stdout)
    return status, set(names)


def command_lines(names: set[str]) -> set[str]:
    return names & {f"simplu_worker.commands.{module}" for module, _ in COMMANDS.values()}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["tenants", "move", "--help"]])
def test_help_imports_the_command_lines_alone(arguments: list[str]) -> None:
    status, names = imported_by(*arguments)
    assert status == 0
    assert names & (AWS | POSTGRES | SETTINGS | NOT_OURS | {"asyncio", "msgspec", "ssl"}) == set()
    expected = {f"simplu_worker.commands.{COMMANDS[one][0]}" for one in arguments if one in COMMANDS}
    assert command_lines(names) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["operations", "show", "some-id"], ["tenants", "show", "business", "location"], ["shards", "list"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_command_that_asks_one_shard_imports_no_client_of_aws(arguments: list[str]) -> None:
    _, names = imported_by(*arguments)
    assert names & (AWS | NOT_OURS) == set()
    assert names >= POSTGRES | SETTINGS
    consumers = {name for name in names if name.startswith(("simplu_worker.consumers.", "simplu_worker.aws."))}
    assert consumers == set()
