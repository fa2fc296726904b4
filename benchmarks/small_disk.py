"""A disk of a few megabytes, to be filled: a tmpfs, mounted by a process that takes it away at its own end.

    python -m benchmarks.small_disk FOLDER BYTES UID

Needs the right to mount, as root has it. The process is one of a `ProcessGroup`, so that no mount outlives the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from support.postgres.faults import TAKES_HOLD_WITHIN_S, connected

from simplu_local.processes.loopback import poll_until

if TYPE_CHECKING:
    from simplu_local.postgres.server import PostgresServer
    from simplu_local.processes.watchdog import ProcessGroup

MOUNT_WITHIN_S = 60.0
UNMOUNT_WITHIN_S = 10.0
BLOCK_BYTES = 4096
TABLESPACE = "small_disk"
END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NoDiskError(Exception):
    """No disk can be mounted here; the message names the cause."""


class SmallDisk:
    """A disk that is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def free_bytes(self) -> int:
        """The free space."""
        free = os.statvfs(self.folder)
        return free.f_bavail * free.f_frsize

    @property
    def is_mounted(self) -> bool:
        """Whether it is there."""
        return os.path.ismount(self.folder)

    def fill(self) -> None:
        """Leave no byte free; what others free later is theirs."""
        with self._filler.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):  # another process was faster
                os.posix_fallocate(file.fileno(), 0, max(BLOCK_BYTES, self.free_bytes - BLOCK_BYTES))
            file.seek(0, os.SEEK_END)
            with contextlib.suppress(OSError):  # no room left
                while True:
                    file.write(bytes(BLOCK_BYTES))

    def clear(self) -> None:
        """Remove what fills it."""
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"


@contextlib.asynccontextmanager
async def small_disk(group: ProcessGroup, folder: Path, size_bytes: int) -> AsyncIterator[SmallDisk]:
    """Mount a disk of *size_bytes* at *folder*, which is made, and gets the owner of the folder it is in.

    Raises `NoDiskError` where that cannot be done.
    """
    disk = SmallDisk(folder)
    keeper, log_path = _mount(group, folder, size_bytes)

    async def is_settled() -> bool:
        return disk.is_mounted or keeper.poll() is not None

    async def has_ended() -> bool:
        return keeper.poll() is not None

    try:
        if not await poll_until(is_settled, within_s=MOUNT_WITHIN_S) or keeper.poll() is not None:
            raise NoDiskError(f"a tmpfs cannot be mounted here: {_words_of(log_path) or 'mount does not answer'}")
        yield disk
    finally:
        keeper.send_signal(signal.SIGTERM)
        await poll_until(has_ended, within_s=UNMOUNT_WITHIN_S)
        _remove(folder)


def _mount(group: ProcessGroup, folder: Path, size_bytes: int) -> tuple[subprocess.Popen[bytes], Path]:
    folder.mkdir(mode=0o700)
    log_path = group.directory / f"{folder.parent.name}-{folder.name}.log"
    owner = str(folder.parent.stat().st_uid)
    argv = [sys.executable, "-m", "benchmarks.small_disk", str(folder), str(size_bytes), owner]
    return group.spawn(argv, log_path=log_path), log_path


def _words_of(log_path: Path) -> str:
    return " ".join(log_path.read_text(encoding="utf-8", errors="replace").split())


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # still mounted: the group removes it
        folder.rmdir()


@contextlib.asynccontextmanager
async def on_small_disk(server: PostgresServer, group: ProcessGroup, size_bytes: int) -> AsyncIterator[SmallDisk]:
    """Keep the tables of a server's own database, not its write-ahead log, on a disk that can be filled.

    They are moved there and back, and nobody can use them until then. Raises `NoDiskError` if no disk can be mounted.
    """
    async with connected(server) as connection:
        folder = Path(await connection.fetchval("SHOW data_directory")).parent
    async with small_disk(group, folder / TABLESPACE, size_bytes) as disk:
        async with connected(server, server.database) as connection:
            await connection.execute(f"CREATE TABLESPACE {TABLESPACE} LOCATION '{disk.folder}'")
        await _move_tables(server, "pg_default", TABLESPACE)
        try:
            yield disk
        finally:
            await _move_tables(server, TABLESPACE, "pg_default")
            async with connected(server, server.database) as connection:
                await connection.execute(f"DROP TABLESPACE {TABLESPACE}")


@contextlib.asynccontextmanager
async def without_disk(server: PostgresServer, disk: SmallDisk, *tables: str) -> AsyncIterator[None]:
    """Fill *disk*, which has a server's tables, and the free space within the pages of *tables*."""
    async with connected(server, server.database) as connection:
        await connection.execute(f"VACUUM FULL {', '.join(tables)}")
    await asyncio.to_thread(disk.fill)
    try:
        yield
    finally:
        disk.clear()


async def is_writable(server: PostgresServer, statement: str) -> bool:
    """Return whether a server takes a statement."""
    try:
        async with connected(server, server.database) as connection:
            await connection.execute(statement)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


async def _move_tables(server: PostgresServer, source: str, target: str) -> None:
    """Move all tables and indexes, in whatever order the server has them.

    A worker's transaction may have taken some of them in another order: it goes first.
    """
    async with connected(server, server.database) as connection:
        for kind in ("TABLE", "INDEX"):
            deadline = asyncio.get_running_loop().time() + TAKES_HOLD_WITHIN_S
            while True:
                try:
                    await connection.execute(f"ALTER {kind} ALL IN TABLESPACE {source} SET TABLESPACE {target}")
                    break
                except asyncpg.DeadlockDetectedError:
                    if asyncio.get_running_loop().time() > deadline:
                        raise


def main() -> None:
    """Mount the disk of the arguments until the process is ended."""
    folder, size_bytes, uid = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    options = f"size={size_bytes},mode=0700,uid={uid}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        sys.exit(mounted.returncode)
    signal.sigwait(END_SIGNALS)
    # Lazily: a process with an open file there keeps it, and the folder can be removed at once.
    sys.exit(subprocess.run(["umount", "-l", folder], check=False).returncode)


if __name__ == "__main__":
    main()
