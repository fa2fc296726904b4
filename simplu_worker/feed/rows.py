"""The rows of the feed on a shard: the publisher, the cursors, refused events; and its reads of the log.

Each write is fenced: it has an effect only while the row of the publisher has the writer's token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.feed import events, types
from simplu_worker.shards.apply.commit_safety import server_of
from simplu_worker.shards.apply.durability import ReplicationFacts, Server, facts_of
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema

NEW_S: Final = 300.0  # a shard whose log began later is new; it takes a minute until the feed knows it


class NotPublisherError(Exception):
    """The row of the publisher has another token: of another replica, or because a person took it."""


class FeedState(msgspec.Struct, frozen=True):
    """What one answer of the shard says about its feed."""

    incarnation: str
    noted_run: str | None  # in which the incarnation began
    run: str
    server: Server
    newest: int
    forgotten: int | None  # the highest batch that the retention has deleted
    forgotten_at: datetime | None
    read_at: datetime


class CursorRow(msgspec.Struct, frozen=True):
    """The row of one destination, which has had the `reset` of *incarnation*."""

    destination: str
    place: types.Place
    incarnation: str = ""
    waits_for: types.Arrival | None = None
    stopped: str | None = None
    error: str | None = None
    refused_event: str | None = None  # at which it stopped; tried once more where it goes on
    passed_event: str | None = None  # by a person's word; tried once more, whatever the answer
    behind_since: datetime | None = None


class ReadDocuments(msgspec.Struct, frozen=True):
    """Documents by the number of their resource, up to *left_at*; one that is too large, or not here, is empty."""

    facts: ReplicationFacts
    by_number: Mapping[int, bytes]
    left_at: int | None


class OtherPublisher(msgspec.Struct, frozen=True):
    """For how many seconds another replica publishes the shard (0 or less: none), and its destinations."""

    free_in_s: float
    destinations: tuple[types.ShardView, ...] = ()


async def find_publisher(pool: ShardPool) -> OtherPublisher | None:
    """Return the publisher of the shard; None if the shard is empty."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["find_feed_publisher"])
        cursors = await connection.fetch(QUERIES["read_feed_cursors"])
    names = "destination", "behind_since", "is_waiting", "stopped", "error"
    views = tuple(types.ShardView(pool.address.shard_id, *(one[name] for name in names)) for one in cursors)
    return OtherPublisher(0.0 if row is None else row["expires_in_s"], views)


async def claim(pool: ShardPool, *, token: str, publisher: str) -> bool:
    """Take the row of the publisher; return whether it was free."""
    async with pool.transaction() as connection:
        return (await connection.fetchrow(QUERIES["claim_feed"], token, publisher, events.LEASE_S)) is not None


async def renew(pool: ShardPool, token: str) -> FeedState:
    """Keep the row for LEASE_S from now on. Raises `NotPublisherError`."""
    async with pool.connection() as connection:
        return _state(await connection.fetchrow(QUERIES["renew_feed"], token, events.LEASE_S))


async def release(pool: ShardPool, token: str) -> None:
    """Give the row back, so that another replica takes it at once."""
    async with pool.connection() as connection:
        await connection.execute(QUERIES["release_feed"], token)


async def load(
    pool: ShardPool, token: str, terms: Sequence[types.DestinationTerms], *, last_incarnation: str, noise: str
) -> tuple[FeedState, Mapping[str, CursorRow]]:
    """Return the state, and the cursors of *terms* with those that are new. Raises `NotPublisherError`.

    If the server has another run since the incarnation began, a new one begins, whose id ends with *noise*. It is later
    than *last_incarnation*, the last one that this publisher knows, and that the server may have lost.
    """
    async with pool.transaction() as connection:
        state = _state(await connection.fetchrow(QUERIES["lock_feed"], token))
        names, begins = [one.name for one in terms], [str(one.begin) for one in terms]
        await connection.execute(QUERIES["begin_feed_cursors"], names, begins, NEW_S)
        rows = await connection.fetch(QUERIES["read_feed_cursors"])
        await connection.execute(QUERIES["note_feed_file"], names)
        if state.noted_run != state.run:
            incarnation = events.incarnation_id(state.read_at, noise, [state.incarnation, last_incarnation])
            await connection.execute(QUERIES["begin_incarnation"], token, incarnation, state.run)
            state = msgspec.structs.replace(state, incarnation=incarnation)
        return state, {row["destination"]: _cursor(row) for row in rows if row["destination"] in names}


async def write_cursors(pool: ShardPool, token: str, server: Server, rows: Sequence[CursorRow]) -> bool:
    """Write the rows of destinations; return whether publisher and server are those known: another may lack commits."""
    sent = msgspec.json.encode([msgspec.structs.asdict(one) | one.place._asdict() for one in rows]).decode()
    async with pool.connection() as connection:
        written = await connection.fetch(QUERIES["write_feed_cursors"], token, sent, server.timeline, server.started_at)
    return len(written) == len(rows)


async def read_log(
    pool: ShardPool, token: str | None, behind: types.Place, limit: int, through: types.Place
) -> list[events.LogRow]:
    """Return at most *limit* rows of the log behind *behind* up to *through*; with None for who publishes nothing."""
    async with pool.connection() as connection:
        batches = await connection.fetch(QUERIES["read_feed"], token, *behind, limit, through.batch_id)
    rows = (row for batch in batches for row in events.LogBatch(*batch).rows())
    return [row for row in rows if behind < row.place <= through][:limit]


async def read_documents(pool: ShardPool, resources: Sequence[events.Resource], max_bytes: int) -> ReadDocuments:
    """Return the present documents of *resources*, as many as begin within *max_bytes* and READ_MAX_BYTES."""
    columns = [list(column) for column in zip(*resources, strict=True)]
    async with pool.connection() as connection:
        limits = events.DOCUMENT_MAX_BYTES, min(max_bytes, events.READ_MAX_BYTES)
        row = await connection.fetchrow(QUERIES["read_feed_data"], *columns, *limits)
    documents = zip(map(int, row["numbers"]), row["documents"], strict=True)
    return ReadDocuments(facts_of(row[:7]), {number: text.encode() for number, text in documents}, row["left_at"])


async def find_passed(pool: ShardPool, destination: str, arrival: types.Arrival) -> Server | None:
    """Return the server of the source, if *destination* has passed the departure of a tenant there."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["find_passed_departure"], destination, arrival.tenant_id, arrival.epoch)
    return None if row is None else server_of(row)


async def note_refusal(pool: ShardPool, token: str, destination: str, event: types.FeedEvent, error: str) -> None:
    """Keep an event that a destination refused for good."""
    document = msgspec.json.encode(msgspec.structs.replace(event, data=None, sender="")).decode()
    async with pool.connection() as connection:
        await connection.execute(QUERIES["note_feed_refusal"], token, destination, event.id, document, error)


def _state(row: Any) -> FeedState:
    if row is None:
        raise NotPublisherError
    return FeedState(
        incarnation=row["incarnation"],
        noted_run=row["server_run"],
        run=events.run_of_server(row["timeline"], row["started_at"], row["batch_offset"]),
        server=Server(row["timeline"], row["started_at"]),
        newest=row["newest"] or 0,
        forgotten=row["forgotten"],
        forgotten_at=row["forgotten_at"],
        read_at=row["read_at"],
    )


def _cursor(row: Any) -> CursorRow:
    return CursorRow(
        destination=row["destination"],
        place=types.Place(row["batch_id"], row["position"]),
        incarnation=row["incarnation"],
        stopped=row["stopped"],
        refused_event=row["refused_event"],
        passed_event=row["passed_event"],
        error=row["error"],
        behind_since=row["behind_since"],
    )
