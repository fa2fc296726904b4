"""Show and change the cursors of a shard, for a person.

Why a replica does not overwrite a change: the transaction that makes it gives the row of the publisher another token.
The replica writes and reads only while the token is its own; whoever takes the row next reads the changed cursors.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.feed.events import skip_problem
from simplu_worker.feed.types import Arrival, FeedEvent
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.vocabulary import FeedStop

REFUSALS_SHOWN: Final = 5


class RefusedEvent(msgspec.Struct, frozen=True):
    """An event that a destination has refused for good *since* a time."""

    event: FeedEvent
    error: str
    since: datetime


class ShardDestination(msgspec.Struct, frozen=True):
    """One destination on one shard. *publisher* is the replica that publishes the shard, if any."""

    destination: str
    waits_for: Arrival | None = None  # for whose source it waits
    publisher: str | None = None
    stopped: FeedStop | None = None
    error: str | None = None
    refused_event: str | None = None
    lag_s: float | None = None  # None: everything is delivered
    refusal_count: int = 0
    refusals: tuple[RefusedEvent, ...] = ()  # the latest REFUSALS_SHOWN, the newest first
    is_in_file: bool = True  # of the replica that publishes the shard, or that did so last


class Stopped(msgspec.Struct, frozen=True):
    """Where a destination has stopped on a shard, if it has."""

    why: FeedStop | None
    error: str | None
    refused_event: str | None


class ForgetPlan(msgspec.Struct, frozen=True):
    """What a shard has of a destination; *user* is the replica that has the destination in its file, if any."""

    updated_at: datetime
    refusal_count: int
    user: str | None = None


class ReplayPlan(msgspec.Struct, frozen=True):
    """What a replay of a shard sends again."""

    change_count: int
    begins_at: datetime | None = None  # later than asked for: the log keeps nothing older
    stopped: FeedStop | None = None


async def read_destinations(pool: ShardPool) -> list[ShardDestination]:
    """Return the destinations that have a cursor on the shard, by name."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        rows = await connection.fetch(QUERIES["show_feed"], REFUSALS_SHOWN)
    return [
        ShardDestination(
            destination=row["destination"],
            waits_for=_arrival.decode(row["waits_for"] or "null"),
            publisher=row["publisher"],
            stopped=_stop(row["stopped"]),
            error=row["error"],
            refused_event=row["refused_event"],
            lag_s=None if row["lag_s"] is None else max(row["lag_s"], 0.0),
            refusal_count=row["refusal_count"],
            refusals=_refusals.decode(row["refusals"] or "[]"),
            is_in_file=row["is_in_file"],
        )
        for row in rows
    ]


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
        return ReplayPlan(row["change_count"], row["begins_at"], _stop(row["stopped"]))


async def skip(pool: ShardPool, destination: str, event_id: str | None = None, *, apply: bool) -> Stopped:
    """Return what a skip passes on the shard; with *apply* pass it. Raises `PermanentError` if there is nothing."""
    async with pool.transaction() as connection:
        row = None
        if await has_schema(connection, pool):
            if apply:
                await connection.execute(QUERIES["take_feed"])
            row = await connection.fetchrow(QUERIES["read_feed_cursor"], destination)
        if row is None:
            raise PermanentError(f"{destination} has not begun on this shard; run: simplu-worker feed show")
        stopped = Stopped(_stop(row["stopped"]), row["error"], row["refused_event"])
        if (problem := skip_problem(stopped.why, event_id)) is not None:
            raise PermanentError(problem)
        if apply:
            await connection.execute(QUERIES["skip_in_feed"], destination, event_id)
        return stopped


async def forget(pool: ShardPool, destination: str, *, apply: bool) -> ForgetPlan | None:
    """Return what the shard has of a destination, None if nothing; with *apply* delete it if no replica uses it."""
    async with pool.transaction() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["plan_feed_forget"], destination)
        if row is None:
            return None
        plan = ForgetPlan(row["updated_at"], row["refusal_count"], row["publisher"] if row["is_in_file"] else None)
        if apply and plan.user is None:
            await connection.execute(QUERIES["forget_feed_destination"], destination)
        return plan


_arrival: Final = msgspec.json.Decoder(Arrival | None)
_refusals: Final = msgspec.json.Decoder(tuple[RefusedEvent, ...])


def _stop(text: str | None) -> FeedStop | None:
    return None if text is None else FeedStop(text)
