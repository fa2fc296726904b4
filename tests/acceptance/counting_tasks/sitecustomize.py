"""Have a worker tell how many tasks its event loop has: Python imports this first where its folder is on PYTHONPATH.

Each second the number replaces the content of the file that TASKS_FILE names.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

EVERY_S = 1.0


def note(path: Path, count: int) -> None:
    path.write_text(f"{count}\n")


async def counted(main: Coroutine[Any, Any, Any], path: Path) -> Any:
    async def count() -> None:
        while True:
            note(path, len(asyncio.all_tasks()) - 1)
            await asyncio.sleep(EVERY_S)

    counting = asyncio.create_task(count())
    try:
        return await main
    finally:
        counting.cancel()


def install(path: Path) -> None:
    """Have the worker's loop count."""
    import uvloop

    run = uvloop.run

    @functools.wraps(run)
    def run_counted(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        return run(counted(main, path), **options)

    uvloop.run = run_counted


if "TASKS_FILE" in os.environ:
    install(Path(os.environ["TASKS_FILE"]))
