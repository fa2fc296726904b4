"""What a test does in place of the lines of a page that it cannot run: services, and servers of Postgres elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from support.runbook.page import Step, first_missing_line
from support.runbook.scene import REPEAT_S, Scene

from simplu_local.processes.loopback import poll_until


class StandIn(NamedTuple):
    """What the test does instead, in the words of the pages, and how: *act* returns the output."""

    instead: str
    act: Callable[[Scene], Awaitable[str]]


async def _start(scene: Scene) -> str:
    await scene.start_worker()
    return ""


async def _stop(scene: Scene) -> str:
    await scene.stop_worker()
    return ""


async def _restart(scene: Scene) -> str:
    await scene.stop_worker()
    await scene.start_worker()
    return ""


async def _reload(scene: Scene) -> str:
    assert scene.worker is not None
    scene.worker.send_signal(signal.SIGHUP)
    return ""


async def _read_log(scene: Scene) -> str:
    return scene.read_log()


async def _make_standby(scene: Scene) -> str:
    await scene.add_standby("db-1b", "db-1")
    return ""


async def _start_server(scene: Scene) -> str:
    await scene.servers["db-1"].start()
    return ""


async def _stop_server(scene: Scene) -> str:
    await scene.servers["db-1"].stop()
    return ""


async def _restore_server(scene: Scene) -> str:
    await scene.restore("db-1", "db-1b")
    return ""


async def _do_nothing(_scene: Scene) -> str:
    return ""


READS_LOG: Final = "journalctl -u simplu-worker"
INSTALLED: Final = StandIn("nothing: another test runs the whole page, under a real systemd", _do_nothing)
STAND_INS: Final = {
    "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin simplu-worker": INSTALLED,
    "ln -s /opt/simplu-worker/bin/simplu-worker /usr/local/bin/simplu-worker": INSTALLED,
    "install -m 0644 deploy/systemd/simplu-worker.service /etc/systemd/system/": INSTALLED,
    "systemctl daemon-reload": INSTALLED,
    "install -d /etc/simplu-worker": StandIn("makes a folder for the page", _do_nothing),
    "cd /etc/simplu-worker": StandIn("runs each command in that folder", _do_nothing),
    "chown simplu-worker: api-token pgpass shards.json": StandIn(
        "nothing: the worker of the test runs as the same user", _do_nothing
    ),
    "systemctl enable --now simplu-worker": StandIn("starts the worker with `worker.env`", _start),
    "systemctl start simplu-worker": StandIn("starts the worker with `worker.env`", _start),
    "systemctl stop simplu-worker": StandIn("sends the worker SIGTERM, and waits for its end", _stop),
    "systemctl restart simplu-worker": StandIn(
        "sends the worker SIGTERM, waits for its end, and starts it with `worker.env`", _restart
    ),
    "systemctl reload simplu-worker": StandIn("sends the worker SIGHUP", _reload),
    READS_LOG: StandIn("reads the worker's log", _read_log),
    "ssh db-1b 'pg_basebackup --pgdata $PGDATA --write-recovery-conf --host db-1 && pg_ctl start'": StandIn(
        "makes a standby with `pg_basebackup`", _make_standby
    ),
    "ssh db-1 'pg_ctl start'": StandIn("starts the server", _start_server),
    "ssh db-1 'pg_ctl stop --mode fast'": StandIn("stops the server in the mode `fast`", _stop_server),
    "ssh db-1b 'tar --extract --file base.tar --directory $PGDATA && pg_ctl start'": StandIn(
        "starts a copy that `pg_basebackup` made before the loss", _restore_server
    ),
}


async def carry_out(scene: Scene, step: Step) -> None:
    """Run a step of a page, or do what stands in for its lines."""
    if step.kind != "elsewhere":
        await scene.run(step)
        return
    lines = step.text.splitlines()

    async def does_output_fit() -> bool:
        scene.output.append(scene.page_text("".join([await STAND_INS[line].act(scene) for line in lines])))
        return first_missing_line(step.expected, scene.output[-1]) is None

    fits = await (poll_until(does_output_fit, within_s=REPEAT_S) if lines == [READS_LOG] else does_output_fit())
    assert fits, f"expected {step.expected}, got {scene.output[-1]}"
