"""The commands of `feed`: show destinations, send them events again, let them go on, forget them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, Facts, Line, Part, Table, table_of
from simplu_worker.commands.running import known_shard, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.feed.cloud_events import TYPE_PREFIX
from simplu_worker.feed.cursors import (
    ForgetPlan,
    ShardDestination,
    forget,
    read_destinations,
    replay,
    skip,
)
from simplu_worker.feed.types import Arrival
from simplu_worker.shards.routing.shard_query import query_all_shards, query_with_causes
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import FeedStop

UNKNOWN: Final = "no shard that answered has the destination {}; `simplu-worker feed show` lists them"
COLUMNS: Final = {
    "shardId": "shard",
    "changeCount": "changes to send again, about",
    "beginsAt": "begins at (the log keeps nothing older)",
    "stopped": "stopped",
}


async def replay_feed(
    settings: Settings, destination: str, since: datetime, shard_ids: Sequence[str], *, apply: bool
) -> Answer:
    """Return what each shard, or each of *shard_ids*, sends again; with *apply* begin it.

    It fails if a shard did not answer, or none has the destination.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        chosen = [known_shard(known, shard_id) for shard_id in dict.fromkeys(shard_ids)] or list(known)
        answers = await query_all_shards(
            chosen, lambda address: replay(shards.pools.ensure_pool(address), destination, since, apply=apply)
        )
    found = [
        {
            "shardId": shard_id,
            "changeCount": plan.change_count,
            "beginsAt": plan.begins_at,
            "stopped": plan.stopped,
        }
        for shard_id, plan in sorted(answers.items())
        if plan is not None
    ]
    note = (
        "begun: the events come within ten seconds, and the lag of the destination grows until they are sent"
        if apply
        else "nothing was changed; with --apply these events are sent again, under the same ids"
    )
    has_stopped = any(one["stopped"] is not None for one in found)
    parts = [
        table_of(COLUMNS, found),
        "a destination that has stopped goes on after `simplu-worker feed skip`" if has_stopped else None,
        note,
    ]
    return _answer(destination, found, parts, {one.shard_id for one in chosen} - answers.keys(), apply=apply)


def _answer(
    destination: str, found: Sequence[Mapping[str, Any]], parts: Iterable[Part], silent: Iterable[str], *, apply: bool
) -> Answer:
    parts = parts if found else [UNKNOWN.format(destination)]
    return Answer({"applied": apply, "shards": found}, parts, sorted(silent), is_failed=not found)


async def skip_feed(
    settings: Settings, destination: str, shard_id: str, event_id: str | None = None, *, apply: bool
) -> Answer:
    """Return what is passed; with *apply* pass it.

    Raises `PermanentError` if there is nothing to pass, `RetryableError` if the shard does not answer.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        stopped = await skip(shards.pools.ensure_pool(address), destination, event_id, apply=apply)
    effect = "the feed goes on where it was; an event that it refused is tried once more, then kept as refused"
    if event_id is not None:
        effect = "the event is tried once more, kept as refused if that fails for any reason, and the feed goes on"
    members: dict[str, Any] = {
        "destination": destination,
        "shardId": shard_id,
        "stopped": stopped.why,
        "error": scrub_text(stopped.error or "") if event_id is None else None,
        "refusedEvent": stopped.refused_event,
        "eventId": event_id,
    }
    note = f"{'done' if apply else 'nothing was changed; with --apply'}: {effect}"
    facts = Facts({name: value for name, value in members.items() if value})
    return Answer(members | {"applied": apply}, [facts, note])


FORGET_COLUMNS: Final = {"shardId": "shard", "updatedAt": "cursor of", "refusalCount": "refused events"}


async def forget_destination(settings: Settings, destination: str, *, apply: bool) -> Answer:
    """Return what the shards have of a destination; with *apply* delete it.

    It fails if a shard did not answer, or none has it. Raises `PermanentError` if a replica has it in its file.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        answers = await query_all_shards(
            known, lambda one: forget(shards.pools.ensure_pool(one), destination, apply=False)
        )
        plans = _unused(destination, answers)
        if apply:
            answers = await query_all_shards(
                known, lambda one: forget(shards.pools.ensure_pool(one), destination, apply=True)
            )
            plans = _unused(destination, answers)
    found = [
        {"shardId": shard_id, "updatedAt": plan.updated_at, "refusalCount": plan.refusal_count}
        for shard_id, plan in plans.items()
    ]
    note = (
        "done: the destination begins anew if a file has it again"
        if apply
        else "nothing was changed; with --apply this is deleted, and the destination begins anew if a file has it again"
    )
    silent = {one.shard_id for one in known} - answers.keys()
    return _answer(destination, found, [table_of(FORGET_COLUMNS, found), note], silent, apply=apply)


def _unused(destination: str, answers: Mapping[str, ForgetPlan | None]) -> dict[str, ForgetPlan]:
    plans = {shard_id: plan for shard_id, plan in sorted(answers.items()) if plan is not None}
    for shard_id, plan in plans.items():
        if plan.user is not None:
            raise PermanentError(
                f"{plan.user}, which publishes {shard_id}, has {destination} in its FEED_FILE; take it out of "
                "the file of every replica, and send SIGHUP"
            )
    return plans


SHOW_COLUMNS: Final = ("destination", "lag", "shards", "stopped", "waiting", "without publisher", "refused")
SHOWN_MAX: Final = 20  # lines of one kind for people; --json has all


class ShownShard(msgspec.Struct, frozen=True, rename="camel"):
    """A destination on one shard. One that no publisher has in its file waits for nothing."""

    name: str
    shard_id: str
    lag_seconds: float
    publisher: str | None
    is_in_file: bool
    stopped: FeedStop | None
    error: str
    refused_event: str | None
    waits_for: Arrival | None
    refusal_count: int
    refusals: tuple[dict[str, Any], ...] = ()  # the latest ones, the newest first, without data


def shown_shard(shard_id: str, one: ShardDestination) -> ShownShard:
    """Return what people see of a destination on a shard."""
    refusals = tuple(
        {
            "eventId": refusal.event.id,
            "type": f"{TYPE_PREFIX}{refusal.event.kind}",
            "subject": refusal.event.subject,
            "error": scrub_text(refusal.error),
            "since": refusal.since,
        }
        for refusal in one.refusals
    )
    return ShownShard(
        name=one.destination,
        shard_id=shard_id,
        lag_seconds=(one.lag_s or 0.0) if one.is_in_file else 0.0,
        publisher=one.publisher,
        is_in_file=one.is_in_file,
        stopped=one.stopped if one.is_in_file else None,
        error=scrub_text(one.error or ""),
        refused_event=one.refused_event,
        waits_for=one.waits_for if one.is_in_file else None,
        refusal_count=one.refusal_count,
        refusals=refusals,
    )


async def show_feed(settings: Settings, destination: str | None) -> Answer:
    """Return what the shards know of their destinations, or of the one that is named.

    It fails if a shard did not answer, or none has the named destination.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        answers, causes = await query_with_causes(
            known, lambda address: read_destinations(shards.pools.ensure_pool(address))
        )
    silent = {one: scrub_text(causes.get(one, "")) for one in sorted({one.shard_id for one in known} - answers.keys())}
    shown = [shown_shard(shard_id, one) for shard_id, found in answers.items() for one in found]
    found = sorted((one for one in shown if destination in {None, one.name}), key=lambda one: (one.name, one.shard_id))
    is_failed = destination is not None and not found
    return Answer({"destinations": found}, describe(found, destination), silent, is_failed)


def describe(found: Sequence[ShownShard], destination: str | None) -> Iterator[Part]:
    """Yield a table of the destinations, and a line for each thing that a person may have to do."""
    if not found:
        wanted = "a destination" if destination is None else f"the destination {destination}"
        yield f"no shard that answered has {wanted}: it has one once a worker with FEED_FILE publishes the shard"
        return
    by_name = {name: list(own) for name, own in groupby(found, key=lambda one: one.name)}
    yield Table(SHOW_COLUMNS, [_row(name, own) for name, own in by_name.items()])
    notes = _notes(found)
    for name, own in by_name.items():
        if not any(one.is_in_file for one in own):
            command = f"`simplu-worker feed forget {name}`"
            notes["left"].append(f"{name}: no replica has it in FEED_FILE; {command} deletes its places")
    for _, lines in sorted(notes.items()):
        yield from map(Line, lines[:SHOWN_MAX])
        if len(lines) > SHOWN_MAX:
            yield Line(f"and {len(lines) - SHOWN_MAX} more; --json has all")


def _notes(found: Iterable[ShownShard]) -> defaultdict[str, list[str]]:
    notes: defaultdict[str, list[str]] = defaultdict(list)
    for one in found:
        place = f"{one.name}, {one.shard_id}"
        if one.stopped is not None:
            at = "" if one.refused_event is None else f" at the event {one.refused_event}"
            notes["stopped"].append(f"{place}: stopped{at} ({one.stopped}): {one.error}")
        if (arrival := one.waits_for) is not None:
            notes["waiting"].append(
                f"{place}: waits at the arrival of {arrival.tenant_id} for the feed of its source, {arrival.source}"
            )
        for refusal in one.refusals:
            refused = f"refused {refusal['type']} of {refusal['subject']} at {refusal['since']:%Y-%m-%d %H:%M:%S}"
            notes["refused"].append(f"{place}: {refused}, {refusal['eventId']}: {refusal['error']}")
    return notes


def _row(name: str, own: Sequence[ShownShard]) -> tuple[object, ...]:
    return (
        name,
        f"{max(one.lag_seconds for one in own):.1f} s",
        len(own),
        sum(one.stopped is not None for one in own),
        sum(one.waits_for is not None for one in own),
        sum(one.is_in_file and one.publisher is None for one in own),
        sum(one.refusal_count for one in own),
    )
