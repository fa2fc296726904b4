"""Show and change the cursors of a shard, for a person.

Why a replica does not overwrite a change: the transaction that makes it gives the row of the publisher another token.
The replica writes and reads only while the token is its own; whoever takes the row next reads the changed cursors.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.feed.cloud_events import TYPE_PREFIX
from simplu_worker.feed.events import skip_problem
from simplu_worker.feed.types import Arrival, FeedEvent
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_shard
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import FeedStop

REFUSALS_SHOWN: Final = 5


class RefusedEvent(msgspec.Struct, frozen=True, rename="camel"):
    """An event that a destination has refused for good *since* a time."""

    event_id: str
    type: str
    subject: str
    error: str
    since: datetime


class ShardDestination(msgspec.Struct, frozen=True, rename="camel"):
    """A destination on a shard. One that the last *publisher* has not in its file waits for nothing."""

    name: str
    shard_id: str
    lag_seconds: float = 0.0
    publisher: str | None = None
    is_in_file: bool = True
    stopped: FeedStop | None = None
    error: str = ""
    refused_event: str | None = None
    waits_for: Arrival | None = None
    refusal_count: int = 0
    refusals: tuple[RefusedEvent, ...] = ()  # the latest REFUSALS_SHOWN, the newest first, without data


class ForgetPlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a shard has of a destination."""

    shard_id: str
    updated_at: datetime
    refusal_count: int


class ReplayPlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a replay of a shard sends again."""

    shard_id: str
    change_count: int
    begins_at: datetime | None = None  # later than asked for: the log keeps nothing older
    stopped: FeedStop | None = None


async def read_destinations(pool: ShardPool) -> list[ShardDestination]:
    """Return the destinations that have a cursor on the shard, by name."""
    rows = await fetch_from_shard(pool, QUERIES["show_feed"], REFUSALS_SHOWN)
    return [_destination(pool.address.shard_id, row) for row in rows]


def _destination(shard_id: str, row: Mapping[str, Any]) -> ShardDestination:
    is_in_file = row["is_in_file"]
    refusals = [
        RefusedEvent(event.id, f"{TYPE_PREFIX}{event.kind}", event.subject, scrub_text(error), since)
        for event, error, since in _refusals.decode(row["refusals"] or "[]")
    ]
    return ShardDestination(
        name=row["destination"],
        shard_id=shard_id,
        lag_seconds=max(row["lag_s"] or 0.0, 0.0) if is_in_file else 0.0,
        publisher=row["publisher"],
        is_in_file=is_in_file,
        stopped=_stop(row["stopped"]) if is_in_file else None,
        error=scrub_text(row["error"] or ""),
        refused_event=row["refused_event"],
        waits_for=_arrival.decode(row["waits_for"] or "null") if is_in_file else None,
        refusal_count=row["refusal_count"],
        refusals=tuple(refusals),
    )


async def replay(pool: ShardPool, destination: str, since: datetime, *, apply: bool) -> ReplayPlan | None:
    """Return what a replay from *since* on sends again; with *apply* begin it. None without a cursor."""
    async with pool.transaction() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["plan_feed_replay"], destination, since)
        if apply and row is not None and row["behind"] is not None:
            await connection.execute(QUERIES["take_feed"])
            row = await connection.fetchrow(QUERIES["plan_feed_replay"], destination, since)
            await connection.execute(QUERIES["put_feed_cursor_back"], destination, row["behind"])
        if row is None:
            return None
        return ReplayPlan(pool.address.shard_id, row["change_count"], row["begins_at"], _stop(row["stopped"]))


async def skip(pool: ShardPool, destination: str, event_id: str | None = None, *, apply: bool) -> Mapping[str, Any]:
    """Return the cursor that a skip passes on the shard; with *apply* pass it.

    Raises `PermanentError` if there is nothing to pass.
    """
    async with pool.transaction() as connection:
        row = None
        if await has_schema(connection, pool):
            if apply:
                await connection.execute(QUERIES["take_feed"])
            row = await connection.fetchrow(QUERIES["read_feed_cursor"], destination)
        if row is None:
            raise PermanentError(f"{destination} has not started on this shard; run: simplu-worker feed show")
        if (problem := skip_problem(_stop(row["stopped"]), event_id)) is not None:
            raise PermanentError(problem)
        if apply:
            await connection.execute(QUERIES["skip_in_feed"], destination, event_id)
        return dict(row)


async def forget(pool: ShardPool, destination: str, *, apply: bool) -> ForgetPlan | None:
    """Return what the shard has of a destination, None if nothing; with *apply* delete it.

    Raises `PermanentError` if a replica has it in its file.
    """
    async with pool.transaction() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["plan_feed_forget"], destination)
        if row is None:
            return None
        if row["is_in_file"]:
            raise PermanentError(
                f"{row['publisher']}, which publishes {pool.address.shard_id}, has {destination} in its FEED_FILE; "
                "take it out of the file of every replica, and send SIGHUP"
            )
        if apply:
            await connection.execute(QUERIES["forget_feed_destination"], destination)
        return ForgetPlan(pool.address.shard_id, row["updated_at"], row["refusal_count"])


_arrival: Final = msgspec.json.Decoder(Arrival | None)
_refusals: Final = msgspec.json.Decoder(list[tuple[FeedEvent, str, datetime]])


def _stop(text: str | None) -> FeedStop | None:
    return None if text is None else FeedStop(text)
