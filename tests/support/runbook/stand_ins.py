"""What a test does in place of the lines of a page that it cannot run: services, and servers of Postgres elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from support.runbook.page import Step, first_missing_line
from support.runbook.scene import REPEAT_S, Scene

from simplu_local.processes.loopback import poll_until

StandIn = Callable[[Scene], Awaitable[object]]  # does the same in another way, and returns the output if it has one


async def _restart(scene: Scene) -> None:
    await scene.stop_worker()
    await scene.start_worker()


async def _read_log(scene: Scene) -> str:
    return scene.read_log()


READS_LOG: Final = "journalctl -u simplu-worker"
STAND_INS: Final[Mapping[str, StandIn]] = {
    "systemctl start simplu-worker": Scene.start_worker,
    "systemctl stop simplu-worker": Scene.stop_worker,
    "systemctl restart simplu-worker": _restart,
    "systemctl reload simplu-worker": Scene.reload_worker,
    READS_LOG: _read_log,
    "ssh db-1b 'pg_basebackup --pgdata $PGDATA --write-recovery-conf --host db-1 && pg_ctl start'": (
        lambda scene: scene.add_standby("db-1b", "db-1")
    ),
    "ssh db-1 'pg_ctl start'": lambda scene: scene.servers["db-1"].start(),
    "ssh db-1 'pg_ctl stop --mode fast'": lambda scene: scene.servers["db-1"].stop(),
    "ssh db-1b 'tar --extract --file base.tar --directory $PGDATA && pg_ctl start'": (
        lambda scene: scene.restore("db-1", "db-1b")
    ),
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
        output = await STAND_INS[last](scene)
        scene.output.append(scene.page_text(output) if isinstance(output, str) else "")
        return first_missing_line(step.expected, scene.output[-1]) is None

    fits = await (poll_until(does_output_fit, within_s=REPEAT_S) if last == READS_LOG else does_output_fit())
    assert fits, f"expected {step.expected}, got {scene.output[-1]}"
