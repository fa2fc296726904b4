"""What a test leaves behind is found when it ends, and named."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from support.leaks import HAS_PROC, LeakDetector, processes_of

pytestmark = pytest.mark.slow(1)

on_linux = pytest.mark.skipif(not HAS_PROC, reason="there is no /proc here")


def open_socket() -> Callable[[], object]:
    """Leave a socket; return what closes it."""
    return socket.socket().close


def open_file() -> Callable[[], object]:
    """Leave a file; return what closes it."""
    reader, writer = os.pipe()
    os.close(writer)
    return lambda: os.close(reader)


def start_process() -> Callable[[], object]:
    """Leave a process that nobody has waited for; return what does."""
    return subprocess.Popen(["true"]).wait


@on_linux
@pytest.mark.parametrize(
    ("leave", "name"), [(open_socket, "socket:["), (open_file, "pipe:["), (start_process, "process ")]
)
def test_leak_fails_the_test_that_leaves_it_and_is_named(leave: Callable[[], Callable[[], object]], name: str) -> None:
    """A socket, a file and a process that are there afterwards and were not before."""
    leaks = LeakDetector()
    with pytest.raises(AssertionError, match=r"^this one leaves behind: ") as caught, leaks.nothing_left("this one"):
        end = leave()
    with leaks.nothing_left("the next one"):
        pass
    end()
    assert name in str(caught.value)


@on_linux
def test_leak_in_a_cycle_is_found_before_the_collector_would() -> None:
    """It has a warning of its own, which says what it is and would otherwise come in a later test."""

    def leave() -> None:
        cycle: list[object] = [socket.socket()]
        cycle.append(cycle)

    leaks = LeakDetector()
    with pytest.raises(AssertionError, match="unclosed <socket"), leaks.nothing_left("this one"):
        leave()


def test_task_that_its_loop_cancels_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.run` ends in silence what was not awaited; a task that was cancelled before is at its end."""

    async def forget(*, is_cancelled: bool) -> None:
        task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
        await asyncio.sleep(0)
        if is_cancelled:
            task.cancel()

    leaks = LeakDetector()
    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", lambda _: None)  # what notes the leaks of this very test
    with leaks.noting_tasks():
        with pytest.raises(AssertionError, match=r"the task forgotten \(sleep\)"), leaks.nothing_left("this one"):
            asyncio.run(forget(is_cancelled=False))
        with leaks.nothing_left("the next one"):
            asyncio.run(forget(is_cancelled=True))


@on_linux
def test_process_is_of_its_run_when_its_parent_has_ended() -> None:
    """It has the variable of the run in its environment, whoever its parent is now."""
    code = "import subprocess; n = subprocess.DEVNULL; print(subprocess.Popen(['sleep', '30'], stdout=n, stderr=n).pid)"
    environ = os.environ | {"SIMPLU_TEST_RUN": "of-a-test"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    pid = int(done.stdout)

    assert processes_of("of-a-test") == [f"process {pid}: sleep 30"]
    os.kill(pid, 9)
