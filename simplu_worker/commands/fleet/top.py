"""`top`: follow a replica and its fleet in a terminal until interrupted, or print both once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.live import Live

from simplu_worker.commands.fleet.replica_client import ReplicaClient, open_replica
from simplu_worker.commands.fleet.top_screen import draw
from simplu_worker.commands.output.display import NOT_A_TERMINAL_WIDTH, print_json
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.timing.clock import loop_time

POLL_EVERY_S: Final = 2.0
QUEUES_EVERY_S: Final = 15.0  # SQS is asked


class Overview(NamedTuple):
    """The answers of one moment, as of `/status`, `/fleet` and `/sqs/stats`."""

    status: dict[str, Any]
    fleet: dict[str, Any]
    queues: list[dict[str, Any]]


async def show_top(settings: Settings, url: str | None, *, once: bool, as_json: bool) -> int:
    """Show the replica at *url*, or the one of this machine. Without a terminal, and as JSON, it is printed once.

    Raises WorkerError if it does not answer the first time, or refuses the token.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)
    async with open_replica(settings, url) as replica:
        overview = await read_overview(replica)
        if as_json:
            print_json(overview._asdict())
        elif once or not console.is_terminal:
            console.print(draw(console, *overview))
        else:
            await _follow(replica, console, overview)
    return 0


async def read_overview(replica: ReplicaClient) -> Overview:
    """Return the answers of *replica*. Raises WorkerError."""
    return Overview(
        await replica.ask("GET", "/status"), await replica.ask("GET", "/fleet"), await _read_queues(replica)
    )


async def _read_queues(replica: ReplicaClient) -> list[dict[str, Any]]:
    answer = await replica.ask("GET", "/sqs/stats")
    return list(answer["queues"])


async def _follow(replica: ReplicaClient, console: Console, overview: Overview) -> None:
    """Draw the screen, in its size of that moment, whenever the replica sends an event; without events every 2 s."""
    last, notice = overview, ""
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(draw(console, *last, notice), refresh=True)
            with contextlib.suppress(WorkerError):  # the request below has the reason
                async for changed in _changes(replica, last):
                    last = changed
                    live.update(draw(console, *last), refresh=True)
            await asyncio.sleep(POLL_EVERY_S)
            try:
                last, notice = await read_overview(replica), ""
            except WorkerError as exc:
                notice = f"{exc}; the values are the last known"


async def _changes(replica: ReplicaClient, overview: Overview) -> AsyncIterator[Overview]:
    """Yield *overview* with each event of the replica; the queues change less often."""
    queues_at = loop_time()
    async with contextlib.aclosing(replica.listen("/events")) as events:
        async for name, _, answer in events:
            match name:
                case "status":
                    overview = overview._replace(status=answer)
                case "fleet":
                    overview = overview._replace(fleet=answer)
                case _:
                    continue
            if loop_time() - queues_at >= QUEUES_EVERY_S:
                queues_at = loop_time()
                overview = overview._replace(queues=await _read_queues(replica))
            yield overview
