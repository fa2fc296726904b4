"""The SQS servers of the conformance tests, each started for the first test that needs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from support.aws.endpoints import running_moto
from support.requires import required_program

from simplu_local.processes.loopback import HOST, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_sqs

START_TIMEOUT_S = 60.0


class Servers:
    """Running servers by name: `ours`, `moto` or `ministack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._urls: dict[str, str] = {}

    def url_of(self, name: str) -> str:
        """Return the endpoint URL of a server; skip the running test when its program is not on this machine."""
        if name not in self._urls:
            self._urls[name] = self._start(name)
        return self._urls[name]

    def _start(self, name: str) -> str:
        match name:
            case "ours":
                return asyncio.run(start_sqs(self._stack.enter_context(ProcessGroup())))
            case "moto":
                return self._stack.enter_context(running_moto())
            case "ministack":
                return self._start_ministack()
        raise ValueError(name)

    def _start_ministack(self) -> str:
        program = required_program("ministack", how="python3 run.py tools")
        group, port = self._stack.enter_context(ProcessGroup()), free_port()
        log_path = group.directory / "ministack.log"
        env = dict(os.environ) | {"BIND_HOST": HOST, "GATEWAY_PORT": str(port)}  # it listens on every address otherwise
        process = group.spawn([program], log_path=log_path, cwd=group.directory, env=env)

        async def has_started_or_ended() -> bool:
            return not port_is_free(port) or process.poll() is not None

        asyncio.run(poll_until(has_started_or_ended, within_s=START_TIMEOUT_S))
        assert process.poll() is None, log_path.read_text(errors="replace")
        return f"http://{HOST}:{port}"


@contextmanager
def sqs_servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)
