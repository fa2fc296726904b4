"""Files of settings that are read again while the worker runs: a renewed certificate, another list of tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import structlog

from simplu_worker.bulkheads import keep_running
from simplu_worker.errors import ConfigurationError
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.periodic import repeat_every
from simplu_worker.vocabulary import TargetKind

REREAD_EVERY_S: Final = 5.0
REFUSED_LOG_EVERY_S: Final = 60.0
FILE_MAX_BYTES: Final = 1 << 20

Value = TypeVar("Value")

log = structlog.get_logger(__name__)


class WatchedFiles(Generic[Value]):
    """The *value* that *load* makes of the bytes of *files*, which are given by the variables that name them.

    *load* raises ValueError, or OSError, for files that it cannot use. Raises `ConfigurationError` for the first ones;
    later the value before them stays.
    """

    def __init__(self, files: Mapping[str, Path], load: Callable[[Sequence[bytes]], Value]) -> None:
        self._files = files
        self._load = load
        self._contents: Sequence[bytes] = ()
        self._refused_at = float("-inf")
        try:
            self.value = self._read()
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"{self._names}: {_problem_of(exc)}") from exc

    def __repr__(self) -> str:
        return self._names

    @property
    def _names(self) -> str:
        return ", ".join(self._files)

    async def reread(self) -> None:
        """Take over what the files have now; log where they cannot be used, once a minute."""
        before = self._contents
        try:
            self.value = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as exc:
            if loop_time() - self._refused_at >= REFUSED_LOG_EVERY_S:
                self._refused_at = loop_time()
                log.error("file.refused", variables=list(self._files), problem=_problem_of(exc))  # noqa: TRY400  # the text tells it all
            return
        self._refused_at = float("-inf")
        if self._contents != before:
            log.info("file.reread", variables=list(self._files))

    def _read(self) -> Value:
        contents = [_read_bounded(path) for path in self._files.values()]
        if contents == self._contents:
            return self.value
        value = self._load(contents)
        self._contents = contents
        return value


@contextlib.asynccontextmanager
async def rereading(watched: Sequence[WatchedFiles[Any]]) -> AsyncIterator[None]:
    """Read the files again and again while the context is open."""
    tasks = [
        asyncio.create_task(
            keep_running(TargetKind.REPLICA, str(one), "files", partial(repeat_every, REREAD_EVERY_S, one.reread)),
            name=f"files:{one}",
        )
        for one in watched
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_MAX_BYTES + 1)
    if len(content) > FILE_MAX_BYTES:
        raise ValueError(f"expected at most {FILE_MAX_BYTES} bytes, got more")
    return content


def _problem_of(exc: Exception) -> str:
    """Return what is wrong; an error of the system or of TLS without the path, and ValueErrors are for people."""
    return f"expected a file that can be used, got: {exc.strerror or exc}" if isinstance(exc, OSError) else str(exc)
