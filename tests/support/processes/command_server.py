"""The process that starts commands by forks of itself, and the argument vectors of commands that it starts."""

from __future__ import annotations

import os
import sys

from support.requires import ROOT

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup

START_S = 90.0
TESTS = ROOT / "tests"
MODULE = "support.processes.forked_commands"
PROGRAM = TESTS.joinpath(*MODULE.split(".")).with_suffix(".py")


class CommandServer:
    """The process, in *group*. It ends with the group."""

    def __init__(self, group: ProcessGroup) -> None:
        self._socket = group.directory / "commands.socket"
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)])
        command = [sys.executable, "-m", MODULE, str(self._socket)]
        group.spawn(command, log_path=group.directory / "commands.log", env=dict(os.environ) | {"PYTHONPATH": path})

    async def wait_ready(self) -> None:
        async def is_served() -> bool:
            return self._socket.exists()

        assert await poll_until(is_served, within_s=START_S)

    def command(self, name: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(PROGRAM), str(self._socket), name]
