"""A real `redis-server` for tests: on a free port, without persistence; tests may kill, freeze and restart it."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import redis.asyncio
from support.requires import required_program

from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.watchdog import ProcessGroup

PASSWORD = "secret-word-of-redis"
START_TIMEOUT_S = 60.0


def require_redis() -> str:
    """Return the path of `redis-server`; skip or fail the test without it. Ask before anything else is started."""
    return required_program("redis-server", how="apt-get install redis-server")


class RedisServer:
    """One server process; *group* ends it with this process."""

    def __init__(self, group: ProcessGroup, *options: str) -> None:
        self._program = require_redis()
        self._group = group
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{HOST}:{self.port}/0"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}/0"

    async def start(self) -> None:
        """Start the server and wait until it answers: empty, or with its data at the last `SAVE`."""
        directory = self._group.directory
        self._process = self._group.spawn(
            [
                *(self._program, "--port", str(self.port), "--bind", HOST, "--requirepass", PASSWORD),
                *("--save", "", "--appendonly", "no", "--dir", str(directory), "--dbfilename", f"{self.port}.rdb"),
                *self._options,
            ],
            log_path=directory / f"redis-{self.port}.log",
        )
        assert await poll_until(self._answers, within_s=START_TIMEOUT_S), (
            directory / f"redis-{self.port}.log"
        ).read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def ask(self, *command: str) -> Any:
        client = redis.asyncio.Redis.from_url(self.url, decode_responses=True, socket_timeout=30)
        async with client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _answers(self) -> bool:
        try:
            return bool(await self.ask("PING"))
        except (redis.exceptions.RedisError, OSError):
            return False
