"""Run `tenants move` in processes that kill themselves with SIGKILL at a failpoint.

`python -m support.moves.killed_movers` reads a line of JSON for each, with the `map`, the `shard` to move to and the
`point`, and writes the exit status. It forks for each of them: the imports take longer than the move.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from support.moves.failpoints import set_failpoint
from support.postgres.tenant_cases import TENANT
from support.settings import settings_in

from simplu_worker.commands.command_line import DEFAULT_BOUNDS
from simplu_worker.commands.moves import MoveRequest, move_tenant
from simplu_worker.commands.output import show
from simplu_worker.config.settings import Settings


class KilledMovers:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def move(self, path: Path, shard_id: str, point: str) -> int:
        """Move the tenant of the map at *path* as far as *point*; return the exit status of the command."""
        request = {"map": str(path), "shard": shard_id, "point": point}
        return int(await asyncio.to_thread(self._ask, json.dumps(request)))

    def _ask(self, line: str) -> str:
        requests, answers = cast("Any", self._process.stdin), cast("Any", self._process.stdout)
        requests.write(f"{line}\n")
        requests.flush()
        return str(answers.readline())


@contextmanager
def running_movers() -> Iterator[KilledMovers]:
    argv = [sys.executable, "-m", "support.moves.killed_movers"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield KilledMovers(process)


def settings_of(path: Path) -> Settings:
    return settings_in({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)})


async def move(settings: Settings, shard_id: str) -> int:
    request = MoveRequest(*TENANT, shard_id)
    return await show(move_tenant(settings, request, DEFAULT_BOUNDS, apply=True, as_json=True), as_json=True)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _move_in_this_process(request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _move_in_this_process(request: dict[str, str]) -> None:
    os.dup2(2, 1)  # the answers of the program alone go to its output

    async def kill_this_process(_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    set_failpoint(request["point"], kill_this_process, setattr)
    status = 70
    try:
        status = asyncio.run(move(settings_of(Path(request["map"])), request["shard"]))
    except Exception:  # noqa: BLE001  # shown here: nothing else of this fork may run
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
