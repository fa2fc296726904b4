"""Workers as black boxes: processes with an environment, a log, HTTP endpoints and an exit status."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from simplu_local.processes.loopback import URL_HOST, free_port
from simplu_local.processes.watchdog import ProcessGroup

READY_TIMEOUT_S = 60.0
POLL_S = 0.1
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=2)
LOG_TAIL_LINES = 30
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "LOG_LEVEL")
LAG_SAMPLE = re.compile(r"^simplu_kinesis_lag_seconds(?:\{[^}]*\})? (\S+)", re.MULTILINE)


class WorkerEndedError(Exception):
    """A worker ended too early, did not become ready, did not end in time, or ended with another status than 0."""


class WorkerProcess:
    """One `simplu-worker run` in *group*, which ends with this process. The user's own settings do not reach it.

    Its log is removed with the group's folder unless *log_path* names another file.
    """

    def __init__(
        self, group: ProcessGroup, env: Mapping[str, str], *, number: int = 0, log_path: Path | None = None
    ) -> None:
        # The first worker has the port that the stack's environment names and prints.
        self.port = int(env["HTTP_PORT"]) if number == 0 else free_port()
        self.log_path = log_path or group.directory / f"worker-{number}.log"
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self._group = group
        self._env = inherited | dict(env) | {"HTTP_PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"WorkerProcess(port={self.port}, pid={self.pid}, log={self.log_path})"

    @property
    def url(self) -> str:
        """The base URL of its HTTP endpoints."""
        return f"http://{URL_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id; `None` when it is not running."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    @property
    def operator(self) -> dict[str, str]:
        """The header of an operator's requests."""
        return {"Authorization": f"Bearer {self._env.get('API_TOKEN', '')}"}

    def start(self) -> None:
        """Start the worker; its output is appended to the log."""
        self._process = self._group.spawn(
            [sys.executable, "-m", "simplu_worker", "run"], log_path=self.log_path, env=self._env
        )

    async def wait_ready(self) -> None:
        """Wait until `/readyz` answers 200.

        Raises:
            WorkerEndedError: the worker ended, or was not ready within a minute.

        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT_S
        async with aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
            while not await _answers_200(session, f"{self.url}/readyz"):
                self.check_running()
                if loop.time() > deadline:
                    raise WorkerEndedError(f"the worker is not ready after {READY_TIMEOUT_S:.0f} s{self._log_suffix()}")
                await asyncio.sleep(POLL_S)

    def check_running(self) -> None:
        """Raise `WorkerEndedError`, with the end of the log, unless the worker runs."""
        status = None if self._process is None else self._process.poll()
        if self._process is None or status is not None:
            raise WorkerEndedError(f"expected the worker to run, it ended with status {status}{self._log_suffix()}")

    def kill(self) -> None:
        """End the worker with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal to the worker, if it was started."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, *, within_s: float) -> None:
        """Send SIGTERM and wait until the worker has ended.

        Raises:
            WorkerEndedError: it did not end within *within_s*, or ended with another status than 0.

        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + within_s
        while (status := self._process.poll()) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise WorkerEndedError(f"the worker did not end within {within_s:.0f} s of SIGTERM{self._log_suffix()}")
            await asyncio.sleep(POLL_S)
        if status != 0:
            raise WorkerEndedError(
                f"expected the worker to end with status 0 after SIGTERM, got {status}{self._log_suffix()}"
            )

    async def read_kinesis_lag_s(self) -> float | None:
        """Return the largest lag of its stream shards in its metrics; `None` without an answer or a sample."""
        try:
            async with (
                aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session,
                session.get(f"{self.url}/metrics") as answer,
            ):
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return None
        return max((float(sample) for sample in LAG_SAMPLE.findall(text)), default=None)

    def _log_suffix(self) -> str:
        return f"; its log ends with:\n{log_tail(self.log_path)}"


def log_tail(path: Path) -> str:
    """Return the last lines of a log."""
    if not path.is_file():
        return "(nothing)"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"


async def _answers_200(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
