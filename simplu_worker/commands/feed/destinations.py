"""The commands of `feed`: show destinations, send them events again, let them go on, forget them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, assert_never

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, Facts, Line, Part, Table, table_of
from simplu_worker.commands.running import known_shard, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.feed.cloud_events import TYPE_PREFIX
from simplu_worker.feed.cursors import (
    REFUSALS_SHOWN,
    ForgetPlan,
    ShardDestination,
    forget,
    read_destinations,
    replay,
    skip,
)
from simplu_worker.feed.events import PassEvent, Resume
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
            "changeCount": plan.change_count or 0,
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
        choice = await skip(shards.pools.ensure_pool(address), destination, event_id, apply=apply)
    members: dict[str, Any] = {"destination": destination, "shardId": shard_id}
    match choice:
        case Resume(stopped, error, refused_event):
            members |= {"stopped": stopped, "error": scrub_text(error or ""), "refusedEvent": refused_event}
            effect = "the feed goes on where it was; an event that it refused is tried once more, then kept as refused"
        case PassEvent(event_id):
            members |= {"eventId": event_id}
            effect = "the event is tried once more, kept as refused if that fails for any reason, and the feed goes on"
        case _:
            assert_never(choice)
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


BEHIND_S: Final = 10.0  # a killed publisher is replaced within that


class StoppedShard(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A shard that sends the destination nothing any more."""

    shard_id: str
    reason: FeedStop
    error: str
    refused_event: str | None = None


class WaitingTenant(msgspec.Struct, frozen=True, rename="camel"):
    """A tenant that has moved to *shard_id*, where all that is behind its arrival waits for its source."""

    tenant_id: str
    shard_id: str
    source_shard_id: str


class Refusal(msgspec.Struct, frozen=True, rename="camel"):
    """An event that the destination refused for good. It has no data."""

    shard_id: str
    event_id: str
    type: str
    subject: str
    error: str
    since: datetime


class DestinationSummary(msgspec.Struct, frozen=True, rename="camel"):
    """A destination over all shards that answered. One that no publisher has in its file waits for nothing."""

    name: str
    lag_seconds: float  # of the shard that is the furthest behind
    shard_count: int
    shards_behind: tuple[str, ...]
    shards_without_publisher: tuple[str, ...]
    stopped: tuple[StoppedShard, ...]
    waiting_tenants: tuple[WaitingTenant, ...]
    refusal_count: int
    refusals: tuple[Refusal, ...] = ()  # the latest REFUSALS_SHOWN, the newest first
    is_in_file: bool = True


def summarise(answers: Mapping[str, Sequence[ShardDestination]]) -> list[DestinationSummary]:
    """Return the destinations by name, of the answers by shard id."""
    found: defaultdict[str, list[tuple[str, ShardDestination]]] = defaultdict(list)
    for shard_id, destinations in sorted(answers.items()):
        for one in destinations:
            found[one.destination].append((shard_id, one))
    return [_summary(name, found[name]) for name in sorted(found)]


def _summary(name: str, found: Sequence[tuple[str, ShardDestination]]) -> DestinationSummary:
    is_in_file = any(one.is_in_file for _, one in found)
    shards = found if is_in_file else ()
    return DestinationSummary(
        name=name,
        lag_seconds=max((one.lag_s or 0.0 for _, one in shards), default=0.0),
        shard_count=len(found),
        shards_behind=tuple(shard_id for shard_id, one in shards if (one.lag_s or 0.0) >= BEHIND_S),
        shards_without_publisher=tuple(shard_id for shard_id, one in shards if one.publisher is None),
        stopped=tuple(
            StoppedShard(shard_id, one.stopped, scrub_text(one.error or ""), one.refused_event)
            for shard_id, one in shards
            if one.stopped is not None
        ),
        waiting_tenants=tuple(
            WaitingTenant(one.waits_for.tenant_id, shard_id, one.waits_for.source)
            for shard_id, one in shards
            if one.waits_for is not None
        ),
        refusal_count=sum(one.refusal_count for _, one in found),
        refusals=_latest_refusals(found),
        is_in_file=is_in_file,
    )


def _latest_refusals(shards: Sequence[tuple[str, ShardDestination]]) -> tuple[Refusal, ...]:
    found = [
        Refusal(
            shard_id,
            one.event.id,
            f"{TYPE_PREFIX}{one.event.kind}",
            one.event.subject,
            scrub_text(one.error),
            one.since,
        )
        for shard_id, destination in shards
        for one in destination.refusals
    ]
    return tuple(sorted(found, key=lambda one: one.since, reverse=True)[:REFUSALS_SHOWN])


SHOW_COLUMNS: Final = (
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


async def show_feed(settings: Settings, destination: str | None) -> Answer:
    """Return the destinations that the shards know, or the one that is named.

    It fails if a shard did not answer, or none has the named destination.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        answers, causes = await query_with_causes(
            known, lambda address: read_destinations(shards.pools.ensure_pool(address))
        )
    silent = {one: scrub_text(causes.get(one, "")) for one in sorted({one.shard_id for one in known} - answers.keys())}
    found = [one for one in summarise(answers) if destination in {None, one.name}]
    is_failed = destination is not None and not found
    return Answer({"destinations": found}, _describe(found, destination), silent, is_failed)


def _describe(found: Sequence[DestinationSummary], destination: str | None) -> Iterator[Part]:
    if not found:
        wanted = "a destination" if destination is None else f"the destination {destination}"
        yield f"no shard that answered has {wanted}: it has one once a worker with FEED_FILE publishes the shard"
        return
    yield Table(SHOW_COLUMNS, map(_row, found))
    notes: defaultdict[str, list[str]] = defaultdict(list)
    for one in found:
        for stop in one.stopped:
            at = "" if stop.refused_event is None else f" at the event {stop.refused_event}"
            notes["stopped"].append(f"{one.name}, {stop.shard_id}: stopped{at} ({stop.reason}): {stop.error}")
        for wait in one.waiting_tenants:
            waits = f"waits at the arrival of {wait.tenant_id} for the feed of its source, {wait.source_shard_id}"
            notes["waiting"].append(f"{one.name}, {wait.shard_id}: {waits}")
        for refusal in one.refusals:
            refused = f"refused {refusal.type} of {refusal.subject} at {refusal.since:%Y-%m-%d %H:%M:%S}"
            notes["refused"].append(f"{one.name}, {refusal.shard_id}: {refused}, {refusal.event_id}: {refusal.error}")
        if not one.is_in_file:
            command = f"`simplu-worker feed forget {one.name}`"
            notes["left"].append(f"{one.name}: no replica has it in FEED_FILE; {command} deletes its places")
    for _, lines in sorted(notes.items()):
        for line in lines[:SHOWN_MAX]:
            yield Line(line)
        if len(lines) > SHOWN_MAX:
            yield Line(f"and {len(lines) - SHOWN_MAX} more; --json has all")


def _row(summary: DestinationSummary) -> tuple[object, ...]:
    return (
        summary.name,
        f"{summary.lag_seconds:.1f} s",
        summary.shard_count,
        len(summary.shards_behind),
        len(summary.shards_without_publisher),
        len(summary.stopped),
        len(summary.waiting_tenants),
        summary.refusal_count,
    )
