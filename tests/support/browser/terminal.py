"""A command of ours in a terminal of some size, as a person sees it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

POLL_S = 0.02
HOME = "\x1b[H"  # the cursor goes to the first line


class Terminal:
    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self.text = ""
        self._descriptor = descriptor
        self._process = process

    def read(self) -> None:
        with suppress(BlockingIOError, OSError):  # the program has ended
            self.text += os.read(self._descriptor, 1_000_000).decode(errors="replace")

    @property
    def screen(self) -> str:
        return ("", *self.text.split(HOME))[-2]

    async def wait_for(self, is_shown: Callable[[str], bool], *, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not is_shown(self.screen):  # noqa: ASYNC110  (the event is in another process)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise TimeoutError(f"expected another screen within {within_s:g} s, got {self.screen!r}") from None

    def resize(self, *, rows: int, columns: int) -> None:
        set_size(self._descriptor, rows, columns)
        self._process.send_signal(signal.SIGWINCH)

    def send(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    async def wait(self, *, within_s: float) -> int:
        async with asyncio.timeout(within_s):
            return await self._process.wait()


def set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@asynccontextmanager
async def open_terminal(env: Mapping[str, str], *arguments: str, rows: int, columns: int) -> AsyncIterator[Terminal]:
    person, program = pty.openpty()
    set_size(program, rows, columns)
    os.set_blocking(person, False)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LEADER, *arguments),
            env={**env, "PATH": os.environ["PATH"], "TERM": "xterm-256color"},
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
        )
    finally:
        os.close(program)
    terminal = Terminal(person, process)
    loop = asyncio.get_running_loop()
    loop.add_reader(person, terminal.read)
    try:
        yield terminal
    finally:
        loop.remove_reader(person)
        terminal.read()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(person)


# Ctrl-C reaches the programs of the session that the terminal controls. A test run in the background ignores SIGINT: so
# would they, without a handler.
LEADER = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from simplu_worker.__main__ import main
sys.argv[0] = "simplu-worker"
main()
"""
