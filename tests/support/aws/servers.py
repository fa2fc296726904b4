"""The servers of Kinesis and SQS that share conformance tests, each started for the first test that needs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

from support.aws.endpoints import running_moto
from support.requires import ROOT, require, required_program

from simplu_local.processes.loopback import HOST, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_sqs

KINESIS_LOCAL: Final = ROOT / ".tools" / "node_modules" / "kinesis-local"
START_TIMEOUT_S: Final = 60.0
QUICK_CHANGES: Final = {
    f"{change}_DURATION": "20ms"
    for change in ("CREATE_STREAM", "DELETE_STREAM", "MERGE_SHARDS", "SPLIT_SHARD", "UPDATE_SHARD_COUNT")
}

Starts: TypeAlias = Mapping[str, Callable[[ExitStack], str]]  # by name; each returns the endpoint URL of its server


def _spawn(stack: ExitStack, argv: list[str], port: int, *, cwd: Path = ROOT, **env: str) -> str:
    group = stack.enter_context(ProcessGroup())
    log_path = group.directory / "server.log"
    process = group.spawn(argv, log_path=log_path, cwd=cwd, env=dict(os.environ) | env)

    async def has_started_or_ended() -> bool:
        return not port_is_free(port) or process.poll() is not None

    asyncio.run(poll_until(has_started_or_ended, within_s=START_TIMEOUT_S))
    assert process.poll() is None, log_path.read_text(errors="replace")
    return f"http://{HOST}:{port}"


def _start_kinesis(stack: ExitStack) -> str:
    port = free_port()
    argv = [sys.executable, "-m", "simplu_local.kinesis.server", "--no-throttling", "--port", str(port)]
    return _spawn(stack, argv, port)


def _start_kinesis_mock(stack: ExitStack) -> str:
    how = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"
    node = shutil.which("node")
    require("kinesis-mock", found=node is not None and KINESIS_LOCAL.is_dir(), how=how)
    port = free_port()
    ports = {"KINESIS_MOCK_PLAIN_PORT": str(port), "KINESIS_MOCK_TLS_PORT": str(free_port())}
    env = QUICK_CHANGES | ports | {"LOG_LEVEL": "ERROR", "SHARD_LIMIT": "1000"}
    return _spawn(stack, [node or "", "main.js"], port, cwd=KINESIS_LOCAL, **env)


def _start_sqs(stack: ExitStack) -> str:
    return asyncio.run(start_sqs(stack.enter_context(ProcessGroup())))


def _start_ministack(stack: ExitStack) -> str:
    program, port = required_program("ministack", how="python3 run.py tools"), free_port()
    return _spawn(stack, [program], port, BIND_HOST=HOST, GATEWAY_PORT=str(port))  # it listens everywhere otherwise


def _start_moto(stack: ExitStack) -> str:
    return stack.enter_context(running_moto())


KINESIS: Final[Starts] = {"ours": _start_kinesis, "moto": _start_moto, "kinesis-mock": _start_kinesis_mock}
SQS: Final[Starts] = {"ours": _start_sqs, "moto": _start_moto, "ministack": _start_ministack}


@contextmanager
def running_servers(starts: Starts) -> Iterator[Callable[[str], str]]:
    """Yield what gives the URL of a server by its name; it skips the running test where the program is missing."""
    with ExitStack() as stack:
        yield cache(lambda name: starts[name](stack))
