"""Read `FEED_FILE` and the secrets that it names; read them again at SIGHUP. A bad file changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.feed_file import FeedFile, parse_feed_file
from simplu_worker.metrics.instruments import FEED_FILE_RELOADS
from simplu_worker.vocabulary import FeedFileOutcome

FILE_MAX_BYTES: Final = 16 * 1024 * 1024  # a hundred destinations with as many tenants as a filter may have
SECRET_FILE_MAX_BYTES: Final = 4096

log = structlog.get_logger(__name__)


def read_feed_file(path: Path, allowed_hosts: tuple[str, ...]) -> FeedFile:
    """Read and check the file at *path*; raise `ConfigurationError` with every problem."""
    try:
        content = _read(path, FILE_MAX_BYTES)
    except OSError as exc:
        raise ConfigurationError(f"FEED_FILE: expected a readable file at {path}, got: {exc.strerror}") from None
    except ValueError as exc:
        raise ConfigurationError(f"FEED_FILE: {exc}") from None
    return parse_feed_file(content, AllowedHosts.parse(allowed_hosts), _read_secret)


def _read_secret(path: str) -> str:
    return _read(Path(path), SECRET_FILE_MAX_BYTES).decode("ascii", "replace")


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"expected at most {max_bytes} bytes, got more")
    return content


class FeedFileReloader:
    """Gives *use* the file that *read* returns, whenever it has become another one."""

    def __init__(self, current: FeedFile, *, read: Callable[[], FeedFile], use: Callable[[FeedFile], None]) -> None:
        """*read* raises `ConfigurationError`; it is called in a thread."""
        self._current = current
        self._read = read
        self._use = use

    def __repr__(self) -> str:
        return f"FeedFileReloader({len(self._current.destinations)} destinations)"

    async def run(self, wanted: asyncio.Event) -> None:
        """Reload at each event *wanted*, one reload at a time, until cancelled."""
        while True:
            await wanted.wait()
            wanted.clear()  # before the read: a change during the read is read again
            await self.reload()

    async def reload(self) -> None:
        """Read the file and have it used, or log why not."""
        try:
            new = await asyncio.to_thread(self._read)
        except ConfigurationError as exc:
            FEED_FILE_RELOADS.labels(FeedFileOutcome.REFUSED).inc()
            log.error("feed_file.refused", problems=list(exc.problems))  # noqa: TRY400 - the problems tell it all
            return
        old = {destination.name: destination for destination in self._current.destinations}
        names = {destination.name for destination in new.destinations}
        self._use(new)
        self._current = new
        FEED_FILE_RELOADS.labels(FeedFileOutcome.APPLIED).inc()
        log.info(
            "feed_file.reloaded",
            added=sorted(names - old.keys()),
            changed=[one.name for one in new.destinations if one.name in old and old[one.name] != one],
            removed=sorted(old.keys() - names),
        )
