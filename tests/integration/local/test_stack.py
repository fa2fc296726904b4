"""The embedded stack for real: it starts, its parts fail independently, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from yarl import URL

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import running_processes, send_signal
from simplu_local.stack.stack import Stack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(2)]

STACK_PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from simplu_local.stack.stack import Stack, run_stack

async def hold():
    async with Stack(shards=2) as stack:
        stack.servers["shard-2"].suspend()
        print(json.dumps({"pids": sorted(stack.group.pids), "directory": str(stack.group.directory)}), flush=True)
        await asyncio.Event().wait()

sys.exit(asyncio.run(run_stack(Path(sys.argv[1]), 1) if sys.argv[1:] else hold()))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with Stack(shards=3) as running:
        yield running


def pid_listening_on(port: int | None) -> int:
    listing = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    return next(int(line.split()[0]) for line in listing.stdout.splitlines() if f"/postgres -p {port} " in line)


@contextlib.contextmanager
def program(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STACK_PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environ) as process:
        try:
            yield process
        finally:
            process.kill()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def is_left(pids: set[int], *paths: Path) -> bool:
    running = {process.pid for process in running_processes()}
    return bool(pids & running) or any(path.exists() for path in paths)


async def answer_of(url: str, *, timeout_s: float = 5.0) -> object:
    connection = await asyncpg.connect(url, timeout=timeout_s)
    try:
        return await connection.fetchval("SELECT current_database()")
    finally:
        await connection.close(timeout=timeout_s)


def environment_by_shell(file: Path) -> dict[str, str]:
    script = f"set -a; . {shlex.quote(str(file))}; env -0"
    shell = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
    pairs = dict(entry.split("=", 1) for entry in shell.stdout.decode().split("\0") if entry)
    return {name: value for name, value in pairs.items() if name not in {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}}


async def test_env_file_is_private_and_a_shell_reads_it(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "stack env"
    stack.write_env_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert environment_by_shell(file) == stack.env
    assert names_in(tmp_path) == [file.name]
    stack.remove_env_file()
    assert not file.exists()
    stack.write_env_file(file)
    file.write_text("OTHER=1\n")
    stack.remove_env_file()
    assert file.exists()


async def test_nothing_is_left_when_the_parent_is_killed() -> None:
    with program() as parent:
        assert parent.stdout is not None
        started = json.loads(parent.stdout.readline())
        pids, directory = set(started["pids"]), Path(started["directory"])
        assert len(pids) > 8  # two servers with their children, the AWS, the watchdog
        assert is_left(set(), directory)

    async def gone() -> bool:
        return not is_left(pids, directory)

    assert await poll_until(gone, within_s=60.0)


async def test_stack_command_writes_its_file_and_cleans_up(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("API_TOKEN=stale\nSTACK_POSTGRES_URLS=stale\n")
    with program(str(file), TMPDIR=str(tmp_path)) as command:

        async def written() -> bool:
            return file.exists() and "stale" not in file.read_text()

        assert await poll_until(written, within_s=180.0)
        env = environment_by_shell(file)
        url = URL(env["STACK_POSTGRES_URLS"])
        killed = {pid_listening_on(url.port)}
        send_signal(killed, signal.SIGKILL)

        async def ended() -> bool:
            return not is_left(killed)

        assert await poll_until(ended, within_s=60.0)
        command.send_signal(signal.SIGUSR1)

        async def answered() -> bool:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                return await answer_of(str(url)) == "shard_1"
            return False

        assert await poll_until(answered, within_s=60.0)
        command.send_signal(signal.SIGINT)
        shown, _ = command.communicate(timeout=60)
    assert command.returncode == 0
    assert f"{sys.executable} -m simplu_worker run --env-file {file}" in shown
    assert not [name for name in ("API_TOKEN", "CITRUS_API_KEY", "STACK_POSTGRES_URLS") if env[name] in shown]
    assert names_in(tmp_path) == []
