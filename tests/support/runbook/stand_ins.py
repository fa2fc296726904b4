"""What a test does in place of the lines of a page that it cannot run: services, and servers of Postgres elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from support.runbook.page import Step, first_missing_line
from support.runbook.scene import REPEAT_S, Scene

from simplu_local.processes.loopback import poll_until

StandIn = Callable[[Scene], Awaitable[str]]  # does the same in another way, and returns the output


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
STAND_INS: Final[Mapping[str, StandIn]] = {
    # tests/acceptance/test_newcomer.py runs these, under a real systemd.
    "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin simplu-worker": _do_nothing,
    "ln -s /opt/simplu-worker/bin/simplu-worker /usr/local/bin/simplu-worker": _do_nothing,
    "install -m 0644 deploy/systemd/simplu-worker.service /etc/systemd/system/": _do_nothing,
    "systemctl daemon-reload": _do_nothing,
    "install -d /etc/simplu-worker": _do_nothing,  # the page has a folder of its own, in which all commands run
    "cd /etc/simplu-worker": _do_nothing,
    "chown simplu-worker: api-token pgpass shards.json": _do_nothing,  # the worker runs as the test's user
    "systemctl enable --now simplu-worker": _start,
    "systemctl start simplu-worker": _start,
    "systemctl stop simplu-worker": _stop,
    "systemctl restart simplu-worker": _restart,
    "systemctl reload simplu-worker": _reload,
    READS_LOG: _read_log,
    "ssh db-1b 'pg_basebackup --pgdata $PGDATA --write-recovery-conf --host db-1 && pg_ctl start'": _make_standby,
    "ssh db-1 'pg_ctl start'": _start_server,
    "ssh db-1 'pg_ctl stop --mode fast'": _stop_server,
    "ssh db-1b 'tar --extract --file base.tar --directory $PGDATA && pg_ctl start'": _restore_server,
}


async def carry_out(scene: Scene, step: Step) -> None:
    """Run a step of a page, or do what stands in for its lines, of which the last one has the output."""
    if step.kind != "elsewhere":
        await scene.run(step)
        return
    *lines, last = step.text.splitlines()
    for line in lines:
        await STAND_INS[line](scene)

    async def does_output_fit() -> bool:
        scene.output.append(scene.page_text(await STAND_INS[last](scene)))
        return first_missing_line(step.expected, scene.output[-1]) is None

    fits = await (poll_until(does_output_fit, within_s=REPEAT_S) if last == READS_LOG else does_output_fit())
    assert fits, f"expected {step.expected}, got {scene.output[-1]}"
