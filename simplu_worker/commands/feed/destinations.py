"""The commands of `feed`: show destinations, send them events again, let them go on, forget them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import msgspec

from simplu_worker.commands.output import Answer, Facts, Line, Part, Table, table_of
from simplu_worker.commands.running import ask_shards, open_shard
from simplu_worker.config.settings import Settings
from simplu_worker.feed.cursors import ShardDestination, forget, read_destinations, replay, skip
from simplu_worker.telemetry.log import scrub_text

REPLAY_COLUMNS: Final = {
    "shardId": "shard",
    "changeCount": "changes to send again, about",
    "beginsAt": "begins at (the log keeps nothing older)",
    "stopped": "stopped",
}
FORGET_COLUMNS: Final = {"shardId": "shard", "updatedAt": "cursor of", "refusalCount": "refused events"}
UNKNOWN: Final = "no shard that answered has the destination {}; `simplu-worker feed show` lists them"


async def replay_feed(settings: Settings, destination: str, since: datetime, *, apply: bool) -> Answer:
    """Return what each shard sends again; with *apply* begin it.

    It fails if a shard did not answer, or none has the destination.
    """
    answers, silent = await ask_shards(settings, lambda pool: replay(pool, destination, since, apply=apply))
    note = (
        "started: the events come within ten seconds, and the lag of the destination grows until they are sent"
        if apply
        else "nothing was changed; with --apply these events are sent again, under the same ids"
    )
    if any(one is not None and one.stopped is not None for one in answers.values()):
        note += "; a destination that has stopped continues after `simplu-worker feed skip`"
    return _answer(destination, answers, silent, REPLAY_COLUMNS, note, apply=apply)


def _answer(
    destination: str,
    answers: Mapping[str, msgspec.Struct | None],
    silent: Mapping[str, str],
    columns: Mapping[str, str],
    note: str,
    *,
    apply: bool,
) -> Answer:
    found = [one for one in answers.values() if one is not None]
    parts: list[Part] = [table_of(columns, msgspec.to_builtins(found)), note]
    if not found:
        parts = [] if silent else [UNKNOWN.format(destination)]
    return Answer({"applied": apply, "shards": found}, parts, silent, is_failed=not found)


async def skip_feed(
    settings: Settings, destination: str, shard_id: str, event_id: str | None = None, *, apply: bool
) -> Answer:
    """Return what is passed; with *apply* pass it.

    Raises `PermanentError` if there is nothing to pass, `RetryableError` if the shard does not answer.
    """
    async with open_shard(settings, shard_id) as pool:
        stopped = await skip(pool, destination, event_id, apply=apply)
    effect = "the feed continues where it was; an event that it refused is tried once more, then kept as refused"
    if event_id is not None:
        effect = "the event is tried once more, kept as refused if that fails for any reason, and the feed continues"
    members: dict[str, Any] = {
        "destination": destination,
        "shardId": shard_id,
        "stopped": stopped["stopped"],
        "error": scrub_text(stopped["error"] or "") if event_id is None else None,
        "refusedEvent": stopped["refused_event"],
        "eventId": event_id,
    }
    note = f"{'done' if apply else 'nothing was changed; with --apply'}: {effect}"
    facts = Facts({name: value for name, value in members.items() if value})
    return Answer(members | {"applied": apply}, [facts, note])


async def forget_destination(settings: Settings, destination: str, *, apply: bool) -> Answer:
    """Return what the shards have of a destination; with *apply* delete it, if each shard answers.

    It fails if one did not, or a replica has the destination in its file, or no shard has it.
    """
    answers, silent = await ask_shards(settings, lambda pool: forget(pool, destination, apply=False))
    if is_done := apply and not silent:
        answers, silent = await ask_shards(settings, lambda pool: forget(pool, destination, apply=True))
    note = "the destination starts anew if a file has it again"
    note = f"done: {note}" if is_done else f"nothing was changed; with --apply this is deleted, and {note}"
    return _answer(destination, answers, silent, FORGET_COLUMNS, note, apply=is_done)


SHOW_COLUMNS: Final = ("destination", "lag", "shards", "stopped", "waiting", "without publisher", "refused")
SHOWN_MAX: Final = 20  # lines of one kind for people; --json has all


async def show_feed(settings: Settings, destination: str | None) -> Answer:
    """Return what the shards know of their destinations, or of the one that is named.

    It fails if a shard did not answer, or none has the named destination.
    """
    answers, silent = await ask_shards(settings, read_destinations)
    shown = [one for found in answers.values() for one in found if destination in {None, one.name}]
    found = sorted(shown, key=lambda one: (one.name, one.shard_id))
    is_failed = destination is not None and not found
    return Answer({"destinations": found}, describe(found, destination), silent, is_failed)


def describe(found: Sequence[ShardDestination], destination: str | None) -> Iterator[Part]:
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


def _notes(found: Iterable[ShardDestination]) -> defaultdict[str, list[str]]:
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
            refused = f"refused {refusal.type} of {refusal.subject} at {refusal.since:%Y-%m-%d %H:%M:%S}"
            notes["refused"].append(f"{place}: {refused}, {refusal.event_id}: {refusal.error}")
    return notes


def _row(name: str, own: Sequence[ShardDestination]) -> tuple[object, ...]:
    return (
        name,
        f"{max(one.lag_seconds for one in own):.1f} s",
        len(own),
        sum(one.stopped is not None for one in own),
        sum(one.waits_for is not None for one in own),
        sum(one.is_in_file and one.publisher is None for one in own),
        sum(one.refusal_count for one in own),
    )
