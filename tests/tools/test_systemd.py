"""The units under a real systemd, with all of their hardening: start, reload, watchdog, drain, credentials."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.aws.endpoints import CREDENTIALS, REGION, client_of
from support.page_examples import page_examples
from support.requires import ROOT
from support.systemd.manager import Systemd, running_systemd

from simplu_local.processes.loopback import free_port, poll_until
from simplu_worker import __version__

pytestmark = pytest.mark.slow(4)

UNITS = ROOT / "deploy" / "systemd"
PAGE = ROOT / "docs" / "installing.md"
PLAIN, TEMPLATE = "simplu-worker.service", "simplu-worker@.service"
TOKEN = "a-token-from-a-file"
PATIENCE_S = 60.0
MAP = {"shards": [{"shardId": "db-1", "connectionString": "postgresql://worker@127.0.0.1:1/shard"}]}
TEST_DROP_IN = """[Service]
StandardOutput=append:{folder}/%N.log
StandardError=append:{folder}/%N.log
"""


class Machine:
    """A machine on which the units are installed as the page describes it. *folder* has the logs of the workers."""

    def __init__(self, systemd: Systemd, folder: Path, settings: dict[str, str]) -> None:
        self.systemd = systemd
        self._folder = folder
        self._settings = settings

    def configure(self, file: str = "worker.env", **settings: str) -> int:
        """Write the environment in *file*; return the port in it."""
        port = free_port()
        whole = {"HTTP_PORT": str(port)} | (self._settings if file == "worker.env" else {}) | settings
        self.write(file, "".join(f"{name}={value}\n" for name, value in whole.items()))
        return port

    def write_map(self, content: object, *, mode: int = 0o644) -> None:
        """Put the shard map in place; with 0644 any user reads it, the one that systemd makes for the service too."""
        self.write("shard-map.json", json.dumps(content), mode=mode)

    def write(self, file: str, text: str, *, mode: int = 0o600) -> None:
        path = self._folder / "etc" / file
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def follow_page(self, part: str, **ports: int) -> None:
        """Run the commands of a *part* of the page in a checkout, with the free *ports* in place of the page's."""
        (lines,) = [example.text for example in page_examples(PAGE) if example[:2] == ("systemd", part)]
        for name, port in ports.items():
            lines, count = re.subn(rf"HTTP_PORT=\d+ > (\S+/{name}\.env)", rf"HTTP_PORT={port} > \1", lines)
            assert count == 1
        (self._folder / "checkout").mkdir(exist_ok=True)
        (self._folder / "checkout" / "deploy").unlink(missing_ok=True)
        (self._folder / "checkout" / "deploy").symlink_to("/opt/checkout/deploy")
        shutil.copy(self._folder / "etc" / "worker.env", self._folder / "checkout")
        self.systemd.run("sh", "-euc", f"cd {self._folder / 'checkout'}\n{lines}")

    def events(self, unit: str) -> list[str]:
        path = self._folder / f"{unit.removesuffix('.service')}.log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line).get("event", "") for line in lines if line.startswith("{")]

    async def wait_for_event(self, unit: str, event: str) -> None:
        async def is_logged() -> bool:
            return event in self.events(unit)

        assert await poll_until(is_logged, within_s=PATIENCE_S), self.events(unit)

    def end(self, *units: str) -> None:
        self.systemd.systemctl("stop", "--no-block", *units)
        self.systemd.systemctl("kill", "--signal=SIGKILL", *units, status=None)
        self.systemd.systemctl("stop", *units)
        self.systemd.systemctl("reset-failed")


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    folder = tmp_path_factory.mktemp("systemd")
    (folder / "etc" / "credentials").mkdir(parents=True)
    (folder / "units").mkdir()
    for name in (PLAIN, TEMPLATE):
        shutil.copy(UNITS / name, folder / "units")
        drop_ins = folder / "units" / f"{name}.d"
        drop_ins.mkdir()
        shutil.copy(UNITS / f"{PLAIN}.d" / "credentials.conf", drop_ins)
        (drop_ins / "tests.conf").write_text(TEST_DROP_IN.format(folder=folder), encoding="utf-8")
    for name, value in {"API_TOKEN": TOKEN, "CITRUS_API_KEY": "unused"}.items():
        path = folder / "etc" / "credentials" / name
        path.write_text(value + "\n", encoding="utf-8")
        path.chmod(0o600)
    with running_systemd(folder) as running:
        yield running


@pytest.fixture
async def machine(systemd: Systemd, endpoint_url: str, aws_credentials: None) -> AsyncIterator[Machine]:
    """Give a machine whose worker has a queue to read, and a map that names a shard; no unit outlives its test."""
    async with client_of("sqs", endpoint_url) as client:
        urls = [(await client.create_queue(QueueName=name))["QueueUrl"] for name in ("orders", "letters")]
    settings = CREDENTIALS | {
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint_url,
        "SQS_ORDER_EVENTS_QUEUE_URL": urls[0],
        "SQS_DEAD_LETTER_QUEUE_URL": urls[1],
        "SHARD_MAP_FILE": "/etc/simplu-worker/shard-map.json",
    }
    made = Machine(systemd, systemd.folder, settings)
    made.write_map(MAP)
    yield made
    made.end("simplu-worker*")


@contextmanager
def setting(systemd: Systemd, unit: str, line: str) -> Iterator[None]:
    drop_in = systemd.folder / "units" / f"{unit}.d" / "setting.conf"
    drop_in.write_text(f"[Service]\n{line}\n", encoding="utf-8")
    systemd.systemctl("daemon-reload")
    yield
    drop_in.unlink()
    systemd.systemctl("daemon-reload")


@pytest.fixture
def short_watchdog(systemd: Systemd) -> Iterator[None]:
    with setting(systemd, PLAIN, "WatchdogSec=6"):
        yield


def status_of(port: int, token: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/status", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


async def test_unit_starts_reloads_and_drains(machine: Machine) -> None:
    """`start` returns once the worker is ready; the token comes from a file that only the service sees.

    The worker runs as a user without rights, without capabilities, and its token is in no environment.
    """
    port = machine.configure()
    systemd = machine.systemd
    systemd.systemctl("start", PLAIN)
    assert systemd.properties(PLAIN, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert "worker.ready" in machine.events(PLAIN)
    assert (status_of(port, TOKEN), status_of(port, "another")) == (200, 401)
    check_rights(systemd)
    machine.write_map({"shards": []})
    systemd.systemctl("reload", PLAIN)
    await machine.wait_for_event(PLAIN, "shard_map.refused")
    assert status_of(port, TOKEN) == 200
    systemd.systemctl("stop", PLAIN)
    assert systemd.properties(PLAIN, "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert "worker.draining" in machine.events(PLAIN)
    assert machine.events(PLAIN)[-1] == "worker.stopped"


def check_rights(systemd: Systemd) -> None:
    """Check what the service may do, and that it sees neither homes nor secrets of others."""
    pid = systemd.properties(PLAIN, "MainPID")["MainPID"]
    status = systemd.run("cat", f"/proc/{pid}/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(facts["Uid"].split()[0]) >= 61184  # those of DynamicUser=
    assert (int(facts["CapEff"], 16), facts["NoNewPrivs"], facts["Seccomp"]) == (0, "1", "2")
    assert TOKEN not in systemd.run("cat", f"/proc/{pid}/environ") + systemd.run("cat", f"/proc/{pid}/cmdline")
    inside = ["nsenter", f"--target={pid}", "--mount"]
    for path in ("/root/x", "/opt/x", "/etc/x", "/usr/x"):
        assert "Read-only file system" in systemd.run(*inside, "sh", "-c", f"touch {path} 2>&1", status=1)


async def test_watchdog_restarts_a_worker_that_is_stuck(machine: Machine, short_watchdog: None) -> None:
    machine.configure()
    systemd = machine.systemd
    systemd.systemctl("start", PLAIN)
    systemd.systemctl("kill", "--signal=SIGSTOP", PLAIN)
    systemd.wait_for(PLAIN, within_s=120, NRestarts="1", ActiveState="active")


@pytest.mark.nightly
async def test_commands_of_the_page_run_a_worker_with_its_files(machine: Machine) -> None:
    port = machine.configure()
    systemd = machine.systemd
    machine.write_map(MAP, mode=0o600)
    machine.follow_page("user")
    systemd.run("chown", "simplu-worker:", "/etc/simplu-worker/shard-map.json")
    machine.follow_page("unit")
    pid = systemd.properties(PLAIN, "MainPID")["MainPID"]
    user = systemd.run("id", "--user", "simplu-worker")
    assert systemd.run("ps", "-o", "uid=", "-p", pid).split() == user.split()
    assert status_of(port, TOKEN) == 200
    systemd.systemctl("reload", PLAIN)
    await machine.wait_for_event(PLAIN, "shard_map.reloaded")
    ports = {"a": free_port(), "b": free_port()}
    machine.follow_page("template", **ports)
    assert [status_of(one, TOKEN) for one in ports.values()] == [200, 200]
    assert systemd.run("simplu-worker", "--version").strip() == __version__
    units = [PLAIN, *(f"simplu-worker@{name}.service" for name in ports)]
    systemd.systemctl("disable", *units)
    machine.end(*units)  # the user is theirs
    systemd.run("userdel", "simplu-worker")
