"""From a clone to an applied operation, word for word: the pages on installing and on the first deployment."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.page_examples import page_examples
from support.requires import ROOT
from support.runbook.newcomer import lend_tools, make_origin, only, open_shell
from support.runbook.page import read_steps
from support.runbook.scene import QUEUES
from support.runbook.world import World, open_world
from support.systemd.manager import running_systemd

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
