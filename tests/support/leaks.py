"""What a test leaves behind: processes, sockets, files and tasks. The test that leaves them fails, not a later one.

Without this the garbage collector finds them some time later, and the test that runs then fails by their warning.
Processes and open files are seen where there is a /proc. A test that shares a fixture with its module's other tests is
judged together with them, at the end of the module. What a fixture of the whole session makes is left out; but no
process may outlive the session.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import time
import warnings
from asyncio import runners
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

THREADS = Path("/proc/self/task")
DESCRIPTORS = Path("/proc/self/fd")
HAS_PROC = DESCRIPTORS.is_dir()
RUN_VARIABLE = "SIMPLU_TEST_RUN"  # processes inherit it, also those whose parent has ended
LAST_END_S = 60.0
ENDING_S = 20.0  # a thread that was told to end may still be closing what it has open
POLL_S = 0.01


class Descriptor(NamedTuple):
    """An open descriptor, with the file, socket or pipe behind it."""

    number: int
    device: int
    inode: int


class Child(NamedTuple):
    """A process that this one has started and not waited for."""

    pid: int
    group: int


class Belongings:
    """What this process has open and running at one time."""

    def __init__(self) -> None:
        self.descriptors = _descriptors() if HAS_PROC else set()
        self.children = _children() if HAS_PROC else set()

    def is_something(self) -> bool:
        return bool(self.descriptors or self.children)

    def lines(self) -> list[str]:
        return [
            *(f"{_target(one.number)} (descriptor {one.number})" for one in sorted(self.descriptors)),
            *(f"process {child.pid}: {_command_line(child.pid)}" for child in sorted(self.children)),
        ]


class LeakDetector:
    """Compares what a test finds with what it leaves; a plugin of pytest."""

    def __init__(self) -> None:
        self._known = Belongings()
        self._kept_groups: set[int] = set()  # of processes: a server of the session may be started again
        self._unfinished_tasks: list[str] = []
        self._run = ""  # empty in xdist's workers, which end before the one that looks

    def install(self, config: pytest.Config) -> None:
        noting = ExitStack()
        noting.enter_context(self.noting_tasks())
        config.add_cleanup(noting.close)
        config.pluginmanager.register(self)
        if HAS_PROC and not hasattr(config, "workerinput"):
            self._run = os.environ[RUN_VARIABLE] = secrets.token_hex(8)

    @contextmanager
    def noting_tasks(self) -> Iterator[None]:
        """Take note of the tasks that are unfinished when an event loop closes; asyncio cancels these in silence."""
        cancel_all: Callable[[asyncio.AbstractEventLoop], None] = vars(runners)["_cancel_all_tasks"]

        def note_and_cancel_all(loop: asyncio.AbstractEventLoop) -> None:
            # aiohttp's server cancels those of its connections and does not wait for their end.
            unfinished = [task for task in asyncio.all_tasks(loop) if not task.cancelling()]
            self._unfinished_tasks += map(_describe, unfinished)
            cancel_all(loop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runners, "_cancel_all_tasks", note_and_cancel_all)
            yield

    @contextmanager
    def nothing_left(self, what: str) -> Iterator[None]:
        """Raise AssertionError when the context leaves something; *what* is its name in the message."""
        before = Belongings()
        self._unfinished_tasks.clear()
        yield
        left = self._left_since(before)
        deadline = time.monotonic() + ENDING_S
        while left.is_something() and time.monotonic() < deadline:
            time.sleep(POLL_S)
            left = self._left_since(before)
        tasks = [f"the task {name}" for name in self._unfinished_tasks]
        self._unfinished_tasks.clear()
        if left.is_something() or tasks:
            lines = [*left.lines(), *tasks, *_collect_garbage()]
            self._known.descriptors |= left.descriptors  # one failure is enough
            self._known.children |= left.children
            raise AssertionError(f"{what} leaves behind: " + "; ".join(lines))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Let what a fixture of the session makes stay; any test may be the first that asks for it."""
        if fixturedef.scope != "session":
            return (yield)
        before = Belongings()
        try:
            return (yield)
        finally:
            after = Belongings()
            self._known.descriptors |= after.descriptors - before.descriptors
            self._kept_groups |= {child.group for child in after.children - before.children}

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Fail the run when a process of it is left; xdist's own processes have ended then."""
        yield
        if self._run and (left := _wait_for_end_of(self._run)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print("\nThe tests leave running: " + "; ".join(left))  # noqa: T201

    def _left_since(self, before: Belongings) -> Belongings:
        left = Belongings()
        left.descriptors -= before.descriptors | self._known.descriptors
        left.children -= before.children | self._known.children
        left.children = {child for child in left.children if child.group not in self._kept_groups}
        return left


def _collect_garbage() -> list[str]:
    """Let the collector find now what would warn in a later test; return its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        gc.collect()
    return [str(warning.message) for warning in caught]


def _describe(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()} ({getattr(task.get_coro(), '__qualname__', task)})"


def _descriptors() -> set[Descriptor]:
    found = set()
    for entry in os.scandir(DESCRIPTORS):
        with suppress(OSError):  # the descriptor of the listing itself
            number = int(entry.name)
            status = os.fstat(number)
            found.add(Descriptor(number, status.st_dev, status.st_ino))
    return found


def _target(number: int) -> str:
    try:
        return str(Path(DESCRIPTORS, str(number)).readlink())
    except OSError:  # closed by now
        return "closed"


def _children() -> set[Child]:
    pids = [int(pid) for thread in os.scandir(THREADS) for pid in _read(Path(thread.path, "children")).split()]
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(Child(pid, os.getpgid(pid)))
    return found


def _wait_for_end_of(run: str) -> list[str]:
    deadline = time.monotonic() + LAST_END_S
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def processes_of(run: str) -> list[str]:
    mark = f"{RUN_VARIABLE}={run}\0"
    pids = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()} - {os.getpid()}
    return [f"process {pid}: {_command_line(pid)}" for pid in pids if mark in _read(Path(f"/proc/{pid}/environ"))]


def _command_line(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()[:200] or "ended, and not waited for"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the thread or the process has ended
        return ""
