"""Make sure that files can be read at once, before a library opens them on the event loop.

Each is read here first, in a thread, since a file of a network may not answer, and one of `/proc` may have no end. A
file that is replaced between this and its use is not noticed: only whoever may write in its folder can do that.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from simplu_worker.shards.postgres.files.connection_files import NamedFile

FILE_MAX_BYTES: Final = 1_048_576
READ_S: Final = 3.0
UNENDED_MAX: Final = 2  # of the same files
_CHUNK_BYTES: Final = 65_536

_unended: dict[threading.Thread, frozenset[str]] = {}  # reads that were given up, and their files


class FileRefusedError(OSError):
    """A file may not be used for a connection, or cannot be; its text is for people."""


async def require_readable(files: Iterable[NamedFile], *, within_s: float = READ_S) -> None:
    """Raise `FileRefusedError` for the first of *files* that may not or cannot be read within *within_s*.

    A missing file that is not required is fine.
    """
    checked = list(files)
    named, paths = ", ".join(file.path for file in checked), frozenset(file.path for file in checked)
    for thread in [one for one in _unended if not one.is_alive()]:
        del _unended[thread]
    if list(_unended.values()).count(paths) >= UNENDED_MAX:
        raise FileRefusedError(f"expected to read {named}, but {UNENDED_MAX} earlier reads of them do not end")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[FileRefusedError | None] = loop.create_future()

    def note(problem: FileRefusedError | None) -> None:
        if not answer.done():
            answer.set_result(problem)

    def examine_all() -> None:
        problem = next(filter(None, map(_problem_with, checked)), None)
        if not loop.is_closed():
            loop.call_soon_threadsafe(note, None if problem is None else FileRefusedError(problem))

    thread = threading.Thread(target=examine_all, name="files", daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(within_s):
            problem = await answer
    except TimeoutError:
        raise FileRefusedError(f"expected to read {named} within {within_s:g} s, got no end of it") from None
    finally:
        if not answer.done() or answer.cancelled():
            _unended[thread] = paths
    if problem is not None:
        raise problem


def _problem_with(file: NamedFile) -> str | None:
    real = os.path.realpath(file.path)
    if file.folders is not None and not any(Path(real).is_relative_to(os.path.realpath(one)) for one in file.folders):
        folders = ", ".join(file.folders)
        return f"{file.name}: expected a file below {folders}, got {file.path}; see DATABASE_FILE_FOLDERS"
    if real == os.devnull:
        return None
    try:
        size = _size_of(file.path)
    except BlockingIOError:
        return f"{file.name}: expected a file that can be read at once, got {file.path}"
    except OSError as exc:
        if not file.is_required:
            return None
        return f"{file.name}: expected to read {file.path}, got {exc.strerror}; give it to the user of this process"
    if size is None:
        return f"{file.name}: expected a regular file, got another kind at {file.path}"
    if size > FILE_MAX_BYTES:
        return f"{file.name}: expected at most {FILE_MAX_BYTES} bytes, got more in {file.path}"
    return None


def _size_of(path: str) -> int | None:
    """Return how many bytes there are to read, as far as they matter; None if *path* is not a regular file."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  # to open a device may already do something
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        size = 0
        while size <= FILE_MAX_BYTES and (chunk := os.read(descriptor, _CHUNK_BYTES)):
            size += len(chunk)
        return size
    finally:
        os.close(descriptor)
