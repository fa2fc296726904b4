"""Record the terminal for docs/images/: `python -m support.pictures` writes demo.svg and fleet.svg.

A test asks for new ones once they are old. The status page is pictured by `WRITE_PICTURES=1 make test
ARGS=tests/acceptance/test_page.py`, with Chromium.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from io import StringIO
from typing import Any, Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from support.full_stack import Chain, FullStack, poll_until_true
from support.requires import ROOT

from simplu_local.demo.demo import run_demo
from simplu_local.processes.worker_process import WorkerProcess
from simplu_worker.commands.fleet.actions import draw

IMAGES: Final = ROOT / "docs" / "images"
# Without the fonts, which come from another host.
FORMAT: Final = re.sub(r"(?s)@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT).replace("Fira Code, ", "")
LOAD_S: Final = 20.0
PUT_EVERY_S: Final = 0.5
SEEN_WITHIN_S: Final = 60.0


async def record_demo() -> Console:
    console = new_console(112)
    assert await run_demo(operations=20_000, console=console, seed=1) == 0
    return console


async def record_fleet() -> Console:
    """Record `simplu-worker top` of two replicas under load, of which one shard was killed."""
    async with FullStack() as full_stack:
        second = WorkerProcess(full_stack.stack.group, full_stack.worker_env, number=1)
        second.start()
        await second.wait_ready()
        chains = [Chain(tenant) for tenant in full_stack.steady for _ in range(8)]
        load = asyncio.create_task(put_without_end(full_stack, chains))
        await asyncio.sleep(LOAD_S)
        await full_stack.servers[0].kill()
        fleet = await poll_until_true(lambda: find_fleet_with_a_problem(full_stack), within_s=SEEN_WITHIN_S)
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load
        await second.stop(within_s=SEEN_WITHIN_S)
    console = new_console(150)
    console.print(draw(fleet))
    return console


async def put_without_end(full_stack: FullStack, chains: list[Chain]) -> None:
    while True:
        await full_stack.put(*chains)
        await asyncio.sleep(PUT_EVERY_S)


async def find_fleet_with_a_problem(full_stack: FullStack) -> Any:
    worker = full_stack.worker
    async with full_stack.http.get(f"{worker.url}/fleet", headers=worker.operator) as answer:
        fleet = await answer.json()
    causes = {problem["cause"] for problem in fleet["problems"]}
    told = [replica for replica in fleet["replicas"] if replica["heldTargets"] and replica["latencyP99Seconds"]]
    return fleet if "shard_lost" in causes and len(told) == 2 else None


def new_console(width: int) -> Console:
    return Console(file=StringIO(), record=True, width=width, force_terminal=False)


def main() -> None:
    for name, title, record in (("demo", "make demo", record_demo), ("fleet", "simplu-worker top", record_fleet)):
        svg = asyncio.run(record()).export_svg(title=title, code_format=FORMAT, unique_id=name)
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
