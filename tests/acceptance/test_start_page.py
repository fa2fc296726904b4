"""docs/start.md is true: its commands are run in their order, in terminals of their own, as a newcomer does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.checkout import run_lines
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker.config.loading import KNOWN_VARIABLES

PAGE = ROOT / "docs" / "start.md"
PATIENCE_S = 60.0
STOP_S = 40.0
STEP_S = 0.05
SHARD_PROCESS = re.compile(r"(shard-\d) .*?(\d+) +\S$", re.MULTILINE)
STACK_PROCESS = re.compile(r"Citrus .*?(\d+) +\S$", re.MULTILINE)


class Checkout:
    """A folder with the `.venv` that `make demo` leaves, and the page's commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".venv").symlink_to(sys.prefix)
        others = KNOWN_VARIABLES | {name for name in os.environ if name.startswith("AWS_")}
        self._environment = {name: value for name, value in os.environ.items() if name not in others}
        # The commands print tables as wide as the terminal.
        self._environment |= {"COLUMNS": "200", "LC_ALL": "C.UTF-8"}
        self._examples = {(what, name): text for what, name, text in page_examples(PAGE)}

    def run(self, name: str) -> str:
        """Run the commands *name* of the page; return their output."""
        lines = self._examples.pop(("run", name))
        return self.run_again(lines)

    def run_again(self, lines: str) -> str:
        return run_lines(lines, folder=self.folder, environment=self._environment).stdout

    def unused(self) -> list[tuple[str, str]]:
        return list(self._examples)

    @contextmanager
    def terminal(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        line = self._examples.pop(("terminal", name)).strip()
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["env", *line.split()],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                # In the background Ctrl-C would be ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for *condition*; return whether it became true."""
    until = time.monotonic() + PATIENCE_S
    while not (is_true := condition()) and time.monotonic() < until:
        time.sleep(STEP_S)
    return is_true


def end_by_ctrl_c(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(STOP_S)


@pytest.mark.slow(12)
def test_commands_of_the_page_lead_to_operations_on_a_shard(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    settings = tmp_path / "local.env"
    with checkout.terminal("stack") as stack:
        assert wait_until(lambda: "all services answer" in checkout.output("stack")), checkout.output("stack")
        table = checkout.output("stack")
        with checkout.terminal("worker") as worker:
            assert wait_until(lambda: "worker.ready" in checkout.output("worker")), checkout.output("worker")
            (operations,) = [example.text for example in page_examples(PAGE) if example.name == "operations"]
            printed = checkout.run("operations")
            assert printed.count("succeeded") == 3
            assert '"name": "Ada", "visits": 1' in printed
            assert json.loads(checkout.run("row"))["data"] == {"name": "Ada", "visits": 1}
            address, token = checkout.run("address").strip().split(" token ")
            assert f"\nAPI_TOKEN={token}\n" in settings.read_text(encoding="utf-8")
            with urllib.request.urlopen(address, timeout=10) as page:
                assert page.headers.get_content_type() == "text/html"
            shards = re.findall(r"provisioned: (?:smile|zoo) berlin, dental, on shard (shard-\d)", printed)
            assert len(set(shards)) == 2
            shard = shards[0]
            os.kill(int(dict(SHARD_PROCESS.findall(table))[shard]), signal.SIGKILL)
            assert [int(process) for process in STACK_PROCESS.findall(table)] == [stack.pid]

            def is_started_again() -> bool:  # once it has ended: it may take a moment to
                os.kill(stack.pid, signal.SIGUSR1)
                return f"restarted: {shard}" in checkout.output("stack")

            assert wait_until(is_started_again), checkout.output("stack")
            send_again = operations.partition("done\n")[2].replace('"create"', '"update"')
            assert checkout.run_again(send_again).count("succeeded") == 3
            assert end_by_ctrl_c(worker) == 0
        assert end_by_ctrl_c(stack) == 0
    folders = [Path(folder) for folder in re.findall(r"data, removed at the end .*?(/\S+)", table)]
    assert [folder.exists() for folder in folders] == [False]
    assert not settings.exists()
    assert checkout.unused() == []
