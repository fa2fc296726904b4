"""The Kinesis servers of the conformance tests, each started for the first test that needs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.aws.endpoints import running_moto
from support.requires import ROOT, require

from simplu_local.processes.loopback import HOST, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import ProcessGroup

KINESIS_LOCAL = ROOT / ".tools" / "node_modules" / "kinesis-local"
START_TIMEOUT_S = 60.0
QUICK_CHANGES = {
    f"{change}_DURATION": "20ms"
    for change in ("CREATE_STREAM", "DELETE_STREAM", "MERGE_SHARDS", "SPLIT_SHARD", "UPDATE_SHARD_COUNT")
}


class Servers:
    """Running servers by name: `ours`, `moto` or `kinesis-mock`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._urls: dict[str, str] = {}

    def url_of(self, name: str) -> str:
        """Return the endpoint URL of a server; skip the running test when its program is not on this machine."""
        if name not in self._urls:
            self._urls[name] = self._start(name)
        return self._urls[name]

    def clock_step_s(self, url: str) -> float:
        return 1.1 if url == self._urls.get("kinesis-mock") else 0.01

    def _start(self, name: str) -> str:
        port = free_port()
        match name:
            case "ours":
                argv = [sys.executable, "-m", "simplu_local.kinesis.server", "--no-throttling"]
                return self._spawn([*argv, "--port", str(port)], port)
            case "moto":
                return self._stack.enter_context(running_moto())
            case "kinesis-mock":
                return self._spawn([_node(), "main.js"], port, cwd=KINESIS_LOCAL, environ=_environ_of_mock(port))
        raise ValueError(name)

    def _spawn(self, argv: list[str], port: int, *, cwd: Path = ROOT, environ: Mapping[str, str] | None = None) -> str:
        group = self._stack.enter_context(ProcessGroup())
        log_path = group.directory / "kinesis.log"
        process = group.spawn(argv, log_path=log_path, cwd=cwd, env=environ)

        async def has_started_or_ended() -> bool:
            return not port_is_free(port) or process.poll() is not None

        asyncio.run(poll_until(has_started_or_ended, within_s=START_TIMEOUT_S))
        assert process.poll() is None, log_path.read_text(errors="replace")
        return f"http://{HOST}:{port}"


@contextmanager
def kinesis_servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


def _node() -> str:
    """Return the path of node; its package has to be here as well."""
    how = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"
    node = shutil.which("node")
    require("kinesis-mock", found=node is not None and KINESIS_LOCAL.is_dir(), how=how)
    return node or ""


def _environ_of_mock(port: int) -> dict[str, str]:
    ports = {"KINESIS_MOCK_PLAIN_PORT": str(port), "KINESIS_MOCK_TLS_PORT": str(free_port())}
    return dict(os.environ) | QUICK_CHANGES | ports | {"LOG_LEVEL": "ERROR", "SHARD_LIMIT": "1000"}
