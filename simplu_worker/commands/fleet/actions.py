"""`fleet show`, `fleet retry`, `tap` and `top`, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from rich.live import Live

from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.commands.fleet.top_screen import draw
from simplu_worker.commands.output import (
    Answer,
    Line,
    print_json_line,
    print_line,
    print_note,
    stdout_console,
    table_of,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.vocabulary import StreamShardState


async def tap_operations(settings: Settings, url: str | None, query: Mapping[str, str], *, as_json: bool) -> int:
    """Print the operations that *query* matches, one a line, until the replica ends the stream.

    Return 1 if it left some out.
    """
    dropped = 0
    async with open_replica(settings, url, acts="content" in query) as replica:
        print_note(f"listening to {replica.url}: operations are printed as they are decided; Ctrl-C ends it")
        async for name, text, event in replica.listen(f"/tap?{urlencode(query)}"):
            if name == "dropped":
                dropped = event["dropped"]
            else:
                _print(text, event, as_json=as_json)
    print_note("the replica has ended the tap: it does so after 15 minutes, and when it stops")
    if dropped:
        print_note(f"{dropped} operations came too fast, and are not shown: narrow the tap with --tenant or --outcome")
    return 1 if dropped else 0


def _print(text: str, event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json_line(msgspec.Raw(text.encode()))
    else:
        print_line(_describe(event))


def _describe(event: Mapping[str, Any]) -> str:
    tenant = f"{event['businessId']} {event['locationId']}"
    subject = " ".join(str(event[name]) for name in ("operation", "resourceType", "resourceId") if event.get(name))
    outcome = f"{event['outcome']} {event['reason']}" if event.get("reason") else event["outcome"]
    line = f"{event['at']}  {outcome}  {tenant}  {subject}  {event['requestId']}"
    return f"{line}  {event['content']}" if "content" in event else line


POLL_EVERY_S: Final = 2.0
NOTHING_IS_HELD: Final = "nothing is held"

Json = Mapping[str, Any]


def named_held(fleet: Json) -> list[Json]:
    """Return the held targets of `/fleet`, each with its replica, the oldest first."""
    held = [{"replica": one["replica"], **target} for one in fleet["replicas"] for target in one["held"]]
    return sorted(held, key=lambda one: -one["ageSeconds"])


def held_lines(fleet: Json, *, lease_duration_s: float) -> list[str]:
    """Return how much is held.

    Nothing is only if replicas have reported so for every stream shard within *lease_duration_s*.
    """
    return list(_held_lines(fleet, lease_duration_s)) or [NOTHING_IS_HELD]


def _held_lines(fleet: Json, lease_duration_s: float) -> Iterator[str]:
    rows = [one for one in fleet["streamShards"] if one["state"] != StreamShardState.ENDED]
    count = sum(one["heldTargets"] or 0 for one in rows)
    if count:
        yield f"held targets: {count}, each counted in every stream shard that holds it; a replica names its oldest"
    unknown = ", ".join(one["streamShard"] for one in rows if not _is_known(one, lease_duration_s))
    if unknown:
        yield f"held targets are not known of {unknown}: no replica has read it and reported lately; repeat this"
    elif fleet["stream"] is not None and not fleet["streamShards"]:
        yield "held targets are not known: the replica has not found the leases yet; repeat this"


def _is_known(row: Json, lease_duration_s: float) -> bool:
    has_read = row["heldTargets"] is not None and row["lagSeconds"] is not None
    return has_read and row["seenSecondsAgo"] <= lease_duration_s


HELD_COLUMNS: Final = {
    "replica": "replica",
    "streamShard": "stream shard",
    "target": "target",
    "reason": "reason",
    "ageSeconds": "age s",
}


async def show_fleet(settings: Settings, url: str | None) -> Answer:
    """Return the screen of `top`, and the held targets."""
    async with open_replica(settings, url) as replica:
        fleet = await replica.ask("GET", "/fleet")
    held = named_held(fleet)
    lines = held_lines(fleet, lease_duration_s=settings.kinesis_lease_duration_seconds)
    return Answer(fleet, [draw(fleet, expand=False), table_of(HELD_COLUMNS, held) if held else None, *map(Line, lines)])


async def show_top(settings: Settings, url: str | None, *, as_json: bool) -> Answer | int:
    """Show the screen until interrupted; without a terminal, and as JSON, what `fleet show` prints.

    Raises WorkerError without a first answer.
    """
    console = stdout_console()
    if as_json or not console.is_terminal:
        return await show_fleet(settings, url)
    notice = ""
    async with open_replica(settings, url) as replica:
        fleet = await replica.ask("GET", "/fleet")
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(draw(fleet, notice), refresh=True)
                await asyncio.sleep(POLL_EVERY_S)
                try:
                    fleet, notice = await replica.ask("GET", "/fleet"), ""
                except WorkerError as exc:
                    notice = f"{exc}; the values are the last known"


async def retry_held(settings: Settings, url: str | None, target: str | None) -> Answer:
    """Have all replicas try their held targets now, or *target*; it fails if none is tried, or one is not asked."""
    async with open_replica(settings, url, acts=True) as replica:
        answer = await replica.ask("POST", "/held/retry", body={"target": target})
    notes = [
        f"held targets that this replica tries now: {answer['retried']}",
        *(f"{one} tries its own with the next renewal of its leases" for one in answer["asked"]),
        *(f"{one} could not be asked: repeat the command, or ask it with --url" for one in answer["notAsked"]),
    ]
    return Answer(answer, notes, is_failed=bool(answer["notAsked"]) or not (answer["retried"] or answer["asked"]))
