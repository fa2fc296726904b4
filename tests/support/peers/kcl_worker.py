"""A real worker of the Kinesis Client Library as a process, and what it has printed."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from support.peers.programs import JavaProgram

from simplu_local.aws_server.account import REGION
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import CREDENTIALS

STOP_WITHIN_S = 60.0
LINE_MAX, TAIL_MAX = 200, 8000  # characters of a line, and of all


class ReadRecord(NamedTuple):
    """A record as the KCL gave it to its application: of an aggregate each part is one."""

    stream_shard_id: str
    sequence_number: int
    sub_sequence_number: int
    data: bytes

    @property
    def request_id(self) -> str:
        return str(json.loads(self.data)["requestId"])


class KclWorker:
    """A worker with the id *name*, in *group*; its output is appended to a file, and stays when it ends."""

    def __init__(
        self,
        group: ProcessGroup,
        program: JavaProgram,
        name: str,
        *,
        urls: tuple[str, str],
        table: str,
        stream: str,
        **options: str,
    ) -> None:
        kinesis, dynamodb = urls
        given = {"kinesis": kinesis, "dynamodb": dynamodb, "application": table, "stream": stream, "worker": name}
        self.name = name
        self._group = group
        self._log = group.directory / f"{name}.log"
        self._output = group.directory / f"{name}.output"
        java, *rest = program.command()
        # In a file of its own: its lines would come into the middle of the others.
        log_option = f"-Dorg.slf4j.simpleLogger.logFile={self._log}"
        self._command = [java, log_option, *rest, *(f"{key}={value}" for key, value in (given | options).items())]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {"PATH": os.environ["PATH"], "AWS_REGION": REGION} | CREDENTIALS
        self._process = self._group.spawn(self._command, log_path=self._output, env=env)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)

        async def has_ended() -> bool:
            return process.poll() is not None

        assert await poll_until(has_ended, within_s=STOP_WITHIN_S), f"{self!r} does not end: {self.log_tail}"

    def check_running(self) -> None:
        """Raise AssertionError, with the end of its output, unless it runs."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self!r} has ended: {self.log_tail}"

    async def wait_for(self, condition: Callable[[KclWorker], bool], *, within_s: float) -> None:
        """Wait until *condition* of it; raise AssertionError when it ends before, or *within_s* is over."""

        async def is_reached() -> bool:
            self.check_running()
            return condition(self)

        assert await poll_until(is_reached, within_s=within_s), f"{self!r}: {self.log_tail}"

    @property
    def records(self) -> Sequence[ReadRecord]:
        return [
            ReadRecord(shard, int(number), int(sub), base64.b64decode(data))
            for event, shard, number, sub, data in (words for words in self._lines() if len(words) == 5)
            if event == "record"
        ]

    @property
    def request_ids(self) -> set[str]:
        return {record.request_id for record in self.records}

    def noted(self, event: str) -> list[str]:
        """Return the stream shards of an event, in the order of the events: begins, lost, ended or leaves."""
        return [words[1] for words in self._lines() if words[0] == event]

    def begun_at(self, stream_shard_id: str) -> list[str]:
        return [words[2] for words in self._lines() if words[:2] == ["begins", stream_shard_id]]

    @property
    def log_tail(self) -> str:
        """The end of its log and of its output, for the message of a failed test."""
        texts = [_read(self._output), _read(self._log)]
        lines = [line[:LINE_MAX] for text in texts for line in text.splitlines() if not line.startswith("record ")]
        return "\n".join(lines)[-TAIL_MAX:]

    def _lines(self) -> list[list[str]]:
        return [words for line in _read(self._output).split("\n")[:-1] if (words := line.split())]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
