"""Child processes that do not outlive their parent: a watchdog process ends all of them when the parent is gone.

Why it is safe, after kill -9 too: the watchdog leads a process group of its own, every child is put into that group
before its program starts, and the watchdog waits on a pipe, of which only the parent has the other end. However the
parent ends, the system closes that end. A terminal's signals reach only the terminal's group: Ctrl-C is for the parent.

The watchdog runs this file by path, without site-packages: the file may import the standard library only.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

TERMINATION_GRACE_S = 3.0  # how long children may take to end before SIGKILL
POLL_S = 0.02
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class RunningProcess(NamedTuple):
    """A row of the process table."""

    pid: int
    parent: int
    group: int


def running_processes() -> list[RunningProcess]:
    """Return all processes except zombies: a zombie has ended, and its parent has not yet read its exit status."""
    table = _read_proc() if Path("/proc/self/stat").exists() else _read_ps()
    return [process for process, state in table if not state.startswith("Z")]


def _read_proc() -> list[tuple[RunningProcess, str]]:
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # the process has ended since the listing
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                # The name in parentheses may itself contain spaces and parentheses: proc(5).
                state, parent, group = text[text.rindex(")") + 2 :].split()[:3]
                table.append((RunningProcess(int(entry.name), int(parent), int(group)), state))
    return table


def _read_ps() -> list[tuple[RunningProcess, str]]:
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listing.stdout.splitlines())
    return [(RunningProcess(int(pid), int(parent), int(group)), state) for pid, parent, group, state in rows]


def with_descendants(pids: Iterable[int], table: Sequence[RunningProcess]) -> set[int]:
    """Return *pids* and their descendants: a Postgres backend has a session, and so a process group, of its own."""
    found, fresh = set[int](), set(pids)
    while fresh:
        found |= fresh
        fresh = {process.pid for process in table if process.parent in fresh} - found
    return found


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each of *pids* that still exists."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class ProcessGroup:
    """Child processes that end, and a folder that is removed, with this process. Enter it as a context manager.

    *directory* has a short path and mode 0700.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="simplu-"))
        self._children: list[subprocess.Popen[bytes]] = []
        try:
            self._watchdog = _start_watchdog(self.directory)
        except BaseException:
            self.directory.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        running = [child.pid for child in self._children if child.poll() is None]
        return f"ProcessGroup({str(self.directory)!r}, watchdog={self._watchdog.pid}, running={running})"

    @property
    def pids(self) -> set[int]:
        """The running processes of this group: the watchdog, the children and their descendants."""
        table = running_processes()
        members = [process.pid for process in table if process.group == self._watchdog.pid]
        return with_descendants(members, table)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a child and append its output to *log_path*; with *user* (root only) it runs as that user."""
        with log_path.open("ab") as log:
            child: subprocess.Popen[bytes] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=self._watchdog.pid,
                env=env,
                cwd=cwd,
                **user_arguments(user),
            )
        self._children = [*(other for other in self._children if other.poll() is None), child]
        return child

    def close(self) -> None:
        """End all children and remove the folder. Blocks for up to some seconds; idempotent."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait()
        for child in self._children:
            child.kill()  # no effect unless the watchdog was killed
            child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _start_watchdog(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        cwd="/",
    )


def user_arguments(user: str | None) -> dict[str, Any]:
    """Return the arguments of `subprocess.Popen` that run a program as *user*, with its group alone; none: as now."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def watch(directory: str) -> None:
    """Wait until the parent is gone, then end the group that this process leads, this process included."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        sys.exit("expected to lead a process group: start the watchdog with ProcessGroup")
    with suppress(OSError):
        while os.read(0, 1):
            pass
    end_others(os.getpid())
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)  # children that joined late, and this process


def end_others(leader: int) -> None:
    """Ask all processes of *leader*'s group to end, wait, and kill the remaining ones with their descendants."""
    deadline = time.monotonic() + TERMINATION_GRACE_S
    pids = _live_descendants(leader, set())
    members = {process.pid for process in running_processes() if process.group == leader} - {leader}
    # SIGINT is Postgres's fast shutdown. SIGTERM too is for programs that were started with SIGINT ignored, as a shell
    # does in the background, and changes nothing for Postgres. A stopped process has to continue to receive either.
    for number in (signal.SIGINT, signal.SIGTERM):
        send_signal(members, number)
    send_signal(pids, signal.SIGCONT)
    while pids and time.monotonic() < deadline:
        time.sleep(POLL_S)
        pids = _live_descendants(leader, pids)
    send_signal(pids, signal.SIGKILL)


def _live_descendants(leader: int, known: set[int]) -> set[int]:
    """Return the group's members, their descendants, and the *known* processes that still run without their parent."""
    table = running_processes()
    alive = {process.pid for process in table}
    members = {process.pid for process in table if process.group == leader} - {leader}
    return with_descendants(members | (known & alive), table)


if __name__ == "__main__":
    watch(sys.argv[1])
