"""From a clone to an applied operation, word for word: the pages on installing and on the first deployment."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from support.checkout import checkout_files, copy_files
from support.page_examples import page_examples
from support.requires import ROOT, required_program
from support.runbook.page import Step, first_missing_line, read_steps
from support.runbook.scene import QUEUES
from support.runbook.world import World, open_world
from support.systemd.manager import Systemd, running_systemd

from simplu_local.aws_server.account import ACCOUNT_ID
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, free_port

INSTALLING = ROOT / "docs" / "installing.md"
DEPLOYING = ROOT / "docs" / "runbook" / "first-deployment.md"
SERVERS = ("db-1", "db-2")
DROP_IN = """[Service]
StandardOutput=append:{folder}/worker.log
StandardError=append:{folder}/worker.log
Environment=LD_LIBRARY_PATH=/opt/python/lib HTTP_PORT={port}
"""


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


def wheel_lines() -> list[str]:
    """Return the blocks that build the wheel and install it; the first block of the page makes `.venv`."""
    setup, build, install, *_ = [example.text for example in page_examples(INSTALLING) if example.what == "run"]
    assert ("run.py setup" in setup, "hatchling build" in build, "-m venv" in install) == (True, True, True)
    return [build, install]


def write_drop_in(folder: Path, world: World, port: int) -> None:
    """Let the unit reach the local AWS, at a port of the test's; it has its settings from the page."""
    aws = {name: value for name, value in world.shell.items() if name.startswith(("AWS_", "DYNAMODB_"))}
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in aws.items())
    drop_ins = folder / "units" / "simplu-worker.service.d"
    drop_ins.mkdir(parents=True)
    (drop_ins / "tests.conf").write_text(DROP_IN.format(folder=folder, port=port) + lines, encoding="utf-8")


@pytest.mark.slow(45)
async def test_newcomer_gets_from_a_clone_to_an_applied_operation(tmp_path: Path) -> None:
    """Every block of the pages runs in one shell, as root, under a real systemd; none has a stand-in.

    `run.py setup` alone is left out, which tests/tools/test_installing.py runs: the clone has the tests' environment.
    """
    port = free_port()
    (tmp_path / "etc").mkdir()
    origin = make_origin(tmp_path / "origin")
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(open_world())
        write_drop_in(tmp_path, world, port)
        names = {QUEUES: f"{world.sqs_url}/{ACCOUNT_ID}", "localhost:8080": f"{HOST}:{port}"}
        for name in SERVERS:
            server = PostgresServer(world.group, world.programs, database="unused", name=name)
            await server.start()
            stack.push_async_callback(server.discard)
            names[f"{name}:5432"] = f"{HOST}:{server.port}"
        # The command of the worker is the one that the newcomer installs, and not that of the local AWS's folder.
        commands, *others = world.shell["PATH"].split(os.pathsep)
        path = os.pathsep.join([str(only(Path(commands, "aws"), tmp_path / "aws")), *others])
        systemd = stack.enter_context(running_systemd(tmp_path, has_worker=False))
        shell = await stack.enter_async_context(open_shell(systemd, world.shell | {"PATH": path}, names, tmp_path))
        await shell.run(f"git clone -q {origin} simplu-worker")
        lend_tools(tmp_path / "simplu-worker")
        await shell.run("cd simplu-worker")
        for lines in wheel_lines():
            await shell.run(lines)
        steps = read_steps(DEPLOYING)
        for step in steps:
            await shell.follow(step)
        assert steps[-1].expected.splitlines()[-1].rstrip(" │").endswith("succeeded")
        assert systemd.properties("simplu-worker", "ActiveState", "UnitFileState") == {
            "ActiveState": "active",
            "UnitFileState": "enabled",
        }
        await shell.run("systemctl stop simplu-worker")
