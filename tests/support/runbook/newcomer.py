"""A newcomer's machine: a systemd, a clone of the repository, and a shell in which pages are followed to the letter."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from support.checkout import checkout_files, copy_files
from support.requires import ROOT, required_program
from support.runbook.page import Step, first_missing_line
from support.systemd.manager import Systemd

REPEAT_S: Final = 120.0
BLOCK_S: Final = 240.0
PAUSE_S: Final = 0.3
# The Python of the namespaces (`support/systemd/manager.py`): units see no home directory, where the tests' may be.
PYTHON: Final = "/opt/python"
NOBODY: Final = ("-c", "user.name=a newcomer", "-c", "user.email=newcomer@example.org")


class NewcomerShell:
    """One shell for all blocks: what one of them changes, such as the folder or the umask, is so for the next one.

    *names* are those of the pages, with the true ones. The shell ends at the first line that fails.
    """

    def __init__(self, process: asyncio.subprocess.Process, names: Mapping[str, str]) -> None:
        self._process = process
        self._names = names
        self._numbers = itertools.count(1)

    async def run(self, text: str) -> str:
        for name, true_name in self._names.items():
            text = text.replace(name, true_name)
        end = f"--- the end of block {next(self._numbers)} ---"
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{text}\necho '{end}'\n".encode())
        await stdin.drain()
        lines: list[str] = []
        async with asyncio.timeout(BLOCK_S):
            while (line := (await stdout.readline()).decode()).strip() != end:
                lines.append(line)
                assert line, f"the shell has ended:\n$ {text}\n{''.join(lines)}"
        output = "".join(lines)
        for name, true_name in self._names.items():
            output = output.replace(true_name, name)
        return output

    async def follow(self, step: Step) -> None:
        """Run a step of a page, whatever its kind, and compare its output with that of the page."""
        deadline = asyncio.get_running_loop().time() + (REPEAT_S if step.kind == "repeat" else 0.0)
        text = f"( {step.text} ) || true" if step.kind == "repeat" else step.text
        while True:
            output = await self.run(text)
            missing = first_missing_line(step.expected, output)
            if missing is None:
                return
            assert asyncio.get_running_loop().time() < deadline, f"no line {missing!r}:\n$ {step.text}\n{output}"
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def open_shell(
    systemd: Systemd, environment: Mapping[str, str], names: Mapping[str, str], folder: Path
) -> AsyncIterator[NewcomerShell]:
    """Open a root's shell beside *systemd*, in *folder*, in which the Python of the namespaces is `python3`."""
    path = environment["PATH"].replace(os.pathsep, f"{os.pathsep}{PYTHON}/bin:/usr/local/bin{os.pathsep}", 1)
    # pip compiles no module: half of its time. The value of an option that begins with "no" is reversed.
    env = {**environment, "PATH": path, "LD_LIBRARY_PATH": f"{PYTHON}/lib", "PIP_NO_COMPILE": "0"}
    process = await asyncio.create_subprocess_exec(
        *systemd.inside("env", f"--chdir={folder}", "sh", "-eu"),
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield NewcomerShell(process, names)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


def make_origin(folder: Path) -> Path:
    """Make a repository to clone, of the files that a commit made now would have; return its folder."""
    git = required_program("git", how="apt-get install git")
    copy_files(checkout_files(), folder)
    for arguments in (["init", "-q"], ["add", "--all"], [*NOBODY, "commit", "-q", "-m", "All"]):
        subprocess.run([git, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


def lend_tools(clone: Path) -> None:
    """Give a clone the environment of the tests in place of the one that `run.py setup` makes."""
    (clone / ".venv").symlink_to(ROOT / ".venv", target_is_directory=True)


def only(program: Path, folder: Path) -> Path:
    """Make a *folder* for the PATH with one *program* of `forked_commands.py`, and return it.

    It runs outside of the namespaces, which have folders of their own.
    """
    folder.mkdir()
    path = folder / program.name
    path.write_text(f'#!/bin/sh\ncd /\nexec "{program}" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return folder
