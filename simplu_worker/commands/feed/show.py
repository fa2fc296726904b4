"""`feed show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.text import Text

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.feed.summary import DestinationSummary, summarise
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_silent, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.feed.steering import read_destinations
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.telemetry.log import scrub_text

COLUMNS: Final = (
    "destination",
    "lag",
    "shards",
    "behind",
    "without publisher",
    "stopped",
    "waiting tenants",
    "refused",
)
SHOWN_MAX: Final = 20  # lines of one kind for people; --json has all


async def show_feed(settings: Settings, destination: str | None, *, as_json: bool) -> int:
    """Print the destinations that the shards know, or the one that is named.

    Returns 1 if a shard did not answer, or none has the named destination.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        answers, causes = await query_with_causes(
            known, lambda address: read_destinations(shards.pools.ensure_pool(address))
        )
    silent = sorted({address.shard_id for address in known} - answers.keys())
    found = [_scrubbed(one) for one in summarise(answers) if destination in {None, one.name}]
    if as_json:
        print_json({"destinations": found, "shardsWithoutAnswer": silent})
    else:
        _print(found)
        print_silent(silent, {shard_id: scrub_text(cause) for shard_id, cause in causes.items()})
    if not found and not as_json:
        wanted = "a destination" if destination is None else f"the destination {destination}"
        print_note(f"no shard that answered has {wanted}: it has one once a worker with FEED_FILE publishes the shard")
    return 1 if silent or (destination is not None and not found) else 0


def _scrubbed(summary: DestinationSummary) -> DestinationSummary:
    return msgspec.structs.replace(
        summary,
        stopped=tuple(
            msgspec.structs.replace(one, error=None if one.error is None else scrub_text(one.error))
            for one in summary.stopped
        ),
        refusals=tuple(msgspec.structs.replace(one, error=scrub_text(one.error)) for one in summary.refusals),
    )


def _print(found: Sequence[DestinationSummary]) -> None:
    if found:
        print_table(COLUMNS, map(_row, found))
    stops = [
        f"{summary.name}, {one.shard_id}: stopped{_at(one.refused_event)} ({one.reason}): {one.error}"
        for summary in found
        for one in summary.stopped
    ]
    waits = [
        f"{summary.name}, {one.shard_id}: {one.tenant_id} waits for the feed of its source, {one.source_shard_id}"
        for summary in found
        for one in summary.waiting_tenants
    ]
    refusals = [
        f"{summary.name}, {one.shard_id}: refused {one.type} of {one.subject} at {one.since:%Y-%m-%d %H:%M:%S}, "
        f"{one.event_id}: {one.error}"
        for summary in found
        for one in summary.refusals
    ]
    left = [
        f"{summary.name}: no replica has it in FEED_FILE; `simplu-worker feed forget {summary.name}` deletes its places"
        for summary in found
        if not summary.is_in_file
    ]
    for lines in (stops, waits, refusals, left):
        for line in lines[:SHOWN_MAX]:
            print_line(line)
        if len(lines) > SHOWN_MAX:
            print_line(f"and {len(lines) - SHOWN_MAX} more; --json has all")


def _at(refused_event: str | None) -> str:
    return "" if refused_event is None else f" at the event {refused_event}"


def _row(summary: DestinationSummary) -> tuple[object, ...]:
    return (
        Text(summary.name, _style(summary)),
        f"{summary.lag_seconds:.1f} s",
        summary.shard_count,
        len(summary.shards_behind),
        len(summary.shards_without_publisher),
        len(summary.stopped),
        len(summary.waiting_tenants),
        summary.refusal_count,
    )


def _style(summary: DestinationSummary) -> str:
    if not summary.is_in_file:
        return "dim"
    return "yellow" if summary.has_problem else "green"
