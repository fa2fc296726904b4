"""The rows of the feed on a shard: the publisher, the cursors, refused events; and its reads of the log.

Each write is fenced: it has an effect only while the row of the publisher has the writer's token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.feed.events import (
    DOCUMENT_MAX_BYTES,
    LEASE_S,
    READ_MAX_BYTES,
    LogBatch,
    LogRow,
    Resource,
    bounds_with,
    incarnation_id,
    incarnations_in,
    run_of_server,
)
from simplu_worker.feed.types import (
    BatchRef,
    DestinationTerms,
    FeedEvent,
    FeedTenant,
    HeldTenant,
    Incarnation,
    LeftOut,
    Place,
    ShardView,
    decode_held,
)
from simplu_worker.shards.apply.commit_safety import server_of
from simplu_worker.shards.apply.durability import ReplicationFacts, Server, facts_of
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema

NEW_S: Final = 300.0  # a shard whose log began later is new; it takes a minute until the feed knows it

_views: Final = msgspec.json.Decoder(tuple[ShardView, ...])


class NotPublisherError(Exception):
    """The row of the publisher has another token: of another replica, or because a person took it."""


class FeedState(msgspec.Struct, frozen=True):
    """What one answer of the shard says about its feed."""

    incarnation: str
    noted_run: str | None  # in which the incarnation was found to hold
    run: str
    server: Server
    newest: int
    forgotten: int | None  # the highest batch that the retention has deleted
    forgotten_at: datetime | None
    read_at: datetime


class CursorRow(msgspec.Struct, frozen=True):
    """The row of one destination."""

    destination: str
    place: Place
    bounds: str
    undone_due: bool
    held: tuple[HeldTenant, ...]
    stopped: str | None = None
    error: str | None = None
    refused_event: str | None = None  # at which it stopped; tried once more where it goes on
    passed_event: str | None = None  # by a person's word; tried once more, whatever the answer
    again_through: int | None = None  # events of batches up to this one may have been sent before a replay
    left_out: LeftOut | None = None  # by that replay; a person writes it, and a new incarnation deletes it
    behind_since: datetime | None = None


class LoadedFeed(msgspec.Struct, frozen=True):
    """What a publisher begins with. *there* are the tokens of remembered batches that the log has."""

    state: FeedState
    cursors: Mapping[str, CursorRow]
    there: frozenset[str]
    is_new: bool  # the incarnation


class ReadDocuments(msgspec.Struct, frozen=True):
    """Documents by the number of their resource, up to *left_at*. *elsewhere* has the shards of moved tenants.

    A document that is too large is empty.
    """

    facts: ReplicationFacts
    by_number: Mapping[int, bytes]
    left_at: int | None
    elsewhere: Mapping[int, str]


class OtherPublisher(msgspec.Struct, frozen=True):
    """For how many seconds another replica publishes the shard (0 or less: none), and its destinations."""

    free_in_s: float
    destinations: tuple[ShardView, ...] = ()


async def find_publisher(pool: ShardPool) -> OtherPublisher | None:
    """Return the publisher of the shard; None if the shard is empty."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return None
        row = await connection.fetchrow(QUERIES["find_feed_publisher"])
    if row is None:
        return OtherPublisher(0.0)
    views = _views.decode(row["destinations"] or "[]")
    shard_id, free_in_s = pool.address.shard_id, row["expires_in_s"]
    if free_in_s > 2 * LEASE_S:  # as `claim_feed` has it
        free_in_s = 0.0
    return OtherPublisher(free_in_s, tuple(msgspec.structs.replace(one, shard_id=shard_id) for one in views))


async def claim(pool: ShardPool, *, token: str, publisher: str, noise: str) -> bool:
    """Take the row of the publisher; return whether it was free. *noise* ends the id of the first incarnation."""
    async with pool.transaction() as connection:
        return (await connection.fetchrow(QUERIES["claim_feed"], token, publisher, noise, LEASE_S)) is not None


async def renew(pool: ShardPool, token: str) -> FeedState:
    """Keep the row for LEASE_S from now on. Raises `NotPublisherError`."""
    async with pool.connection() as connection:
        return _state(await connection.fetchrow(QUERIES["renew_feed"], token, LEASE_S))


async def release(pool: ShardPool, token: str) -> None:
    """Give the row back, so that another replica takes it at once."""
    async with pool.connection() as connection:
        await connection.execute(QUERIES["release_feed"], token)


async def load(
    pool: ShardPool,
    token: str,
    terms: Sequence[DestinationTerms],
    *,
    remembered: Mapping[str, Sequence[BatchRef]],
    complete_from: Mapping[str, Place],
    last_incarnation: str,
    noise: str,
) -> LoadedFeed:
    """Return the state and the cursors, with those of new destinations. Raises `NotPublisherError`.

    If the server has another run since the incarnation was found to hold, a new one, whose id ends with *noise*, begins
    behind the cursors. It does not if the publisher knows that nothing is undone: the log has all batches that it
    *remembered* behind *complete_from*, and the incarnation is not older than *last_incarnation*, its own. The cursor
    of a destination that is not in *terms* keeps the run in which it was judged.
    """
    async with pool.transaction() as connection:
        state = _state(await connection.fetchrow(QUERIES["lock_feed"], token))
        begins = [one.begin.isoformat() if isinstance(one.begin, datetime) else one.begin.value for one in terms]
        rows = await connection.fetch(QUERIES["read_feed_cursors"], [one.name for one in terms], begins, NEW_S)
        await connection.execute(QUERIES["note_feed_file"], [one.name for one in terms])
        cursors = {row["destination"]: _cursor(row) for row in rows}
        noted_runs = {row["destination"]: row["server_run"] for row in rows}
        mine = {one.name: cursors[one.name] for one in terms}
        refs = [
            ref
            for name, cursor in mine.items()
            for ref in remembered.get(name, ())
            if ref.batch_id >= cursor.place.batch_id
        ]
        there = await _find_batches(connection, refs)
        if {state.noted_run, *(noted_runs[name] for name in mine)} == {state.run}:
            return LoadedFeed(state, mine, there, is_new=False)
        if state.noted_run is None:
            # Nobody has published in it; if this publisher has, the server has lost that, with rows of destinations.
            holds = last_incarnation < state.incarnation
        else:
            holds = (
                last_incarnation <= state.incarnation
                and all(
                    name in complete_from and complete_from[name] <= cursor.place and cursor.again_through is None
                    for name, cursor in mine.items()
                )
                and all(ref.token in there for ref in refs)
            )
        known = [state.incarnation, *(one for cursor in cursors.values() for one in incarnations_in(cursor.bounds))]
        known += [last_incarnation] if last_incarnation else []
        incarnation = state.incarnation if holds else incarnation_id(state.read_at, noise, known)
        await connection.execute(QUERIES["begin_incarnation"], token, incarnation, state.run)
        if not holds:
            for name, cursor in cursors.items():
                bounds = bounds_with(cursor.bounds, incarnation, cursor.place)
                await connection.execute(QUERIES["bound_feed_cursor"], name, bounds)
                cursors[name] = msgspec.structs.replace(cursor, bounds=bounds, undone_due=True, left_out=None)
        await connection.execute(QUERIES["note_feed_run"], [*(mine if holds else cursors)], state.run)
        state = msgspec.structs.replace(state, incarnation=incarnation, noted_run=state.run)
        return LoadedFeed(state, {name: cursors[name] for name in mine}, there, is_new=not holds)


async def _find_batches(connection: Connection, refs: Sequence[BatchRef]) -> frozenset[str]:
    if not refs:
        return frozenset()
    found = await connection.fetch(
        QUERIES["find_feed_batches"], [str(one.batch_id) for one in refs], [one.token for one in refs]
    )
    return frozenset(row["token"] for row in found)


async def write_cursors(pool: ShardPool, token: str, server: Server, rows: Sequence[CursorRow]) -> bool:
    """Write the rows of destinations; return whether publisher and server are those known: another may lack commits."""
    async with pool.connection() as connection:
        written = await connection.fetch(
            QUERIES["write_feed_cursors"],
            token,
            [one.destination for one in rows],
            [str(one.place.batch_id) for one in rows],
            [str(one.place.position) for one in rows],
            [str(one.undone_due) for one in rows],
            [msgspec.json.encode(one.held).decode() for one in rows],
            [one.stopped or "" for one in rows],
            [one.error or "" for one in rows],
            [one.refused_event or "" for one in rows],
            [one.passed_event or "" for one in rows],
            ["" if one.again_through is None else str(one.again_through) for one in rows],
            ["" if one.behind_since is None else one.behind_since.isoformat() for one in rows],
            server.timeline,
            server.started_at,
        )
    return len(written) == len(rows)


async def read_log(
    pool: ShardPool, token: str, behind: Place, limit: int, through: Place, *, tenant_no: int | None = None
) -> list[LogRow]:
    """Return at most *limit* rows of the log behind *behind* up to *through*; of one tenant alone with *tenant_no*."""
    async with pool.connection() as connection:
        batches = await connection.fetch(QUERIES["read_feed"], token, *behind, limit, through.batch_id, tenant_no)
    rows = (row for batch in batches for row in LogBatch(*batch).rows())
    return [row for row in rows if behind < row.place <= through][:limit]


async def read_documents(pool: ShardPool, resources: Sequence[Resource], max_bytes: int) -> ReadDocuments:
    """Return the present documents of *resources*, as many as begin within *max_bytes* and READ_MAX_BYTES."""
    columns = [list(column) for column in zip(*resources, strict=True)]
    async with pool.connection() as connection:
        limits = DOCUMENT_MAX_BYTES, min(max_bytes, READ_MAX_BYTES)
        row = await connection.fetchrow(QUERIES["read_feed_data"], *columns, *limits)
    places = dict(row["elsewhere"])
    documents = zip(map(int, row["numbers"]), row["documents"], strict=True)
    return ReadDocuments(
        facts_of(row[:7]),
        {number: text.encode() for number, text in documents},
        row["left_at"],
        {number: places[one[0]] for number, one in enumerate(resources) if one[0] in places},
    )


async def find_tenant(pool: ShardPool, tenant_id: str) -> FeedTenant | None:
    """Return what events say of a tenant; None if it was made here by mistake, and unmade."""
    async with pool.connection() as connection:
        row = await connection.fetchrow(QUERIES["find_feed_tenant"], tenant_id)
    return None if row is None else FeedTenant(*row)


async def find_passed(
    pool: ShardPool, destination: str, held: Sequence[HeldTenant]
) -> tuple[list[HeldTenant], Server | None]:
    """Return those of *held* whose departure *destination* has passed, and the server that has the cursor."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return [], None
        rows = await connection.fetch(
            QUERIES["find_passed_departures"],
            destination,
            [one.tenant_id for one in held],
            [str(one.epoch) for one in held],
        )
    return [held[row["index"]] for row in rows], server_of(rows[0]) if rows else None


async def note_refusal(pool: ShardPool, token: str, destination: str, event: FeedEvent, error: str) -> None:
    """Keep an event that a destination refused for good."""
    document = msgspec.json.encode(msgspec.structs.replace(event, data=None)).decode()
    async with pool.connection() as connection:
        await connection.execute(QUERIES["note_feed_refusal"], token, destination, event.id, document, error)


def incarnation_of(state: FeedState, cursor: CursorRow) -> Incarnation:
    """Return what the events for one destination are part of."""
    return Incarnation(state.incarnation, cursor.bounds)


def left_out_of(row: Any) -> LeftOut | None:
    """Return what a replay leaves out, by the row of a cursor."""
    behind, through = row["left_out_behind"], row["left_out_through"]
    return None if behind is None else LeftOut(behind, through)


def _state(row: Any) -> FeedState:
    if row is None:
        raise NotPublisherError
    return FeedState(
        incarnation=row["incarnation"],
        noted_run=row["server_run"],
        run=run_of_server(row["timeline"], row["started_at"], row["batch_offset"]),
        server=Server(row["timeline"], row["started_at"]),
        newest=row["newest"] or 0,
        forgotten=row["forgotten"],
        forgotten_at=row["forgotten_at"],
        read_at=row["read_at"],
    )


def _cursor(row: Any) -> CursorRow:
    return CursorRow(
        destination=row["destination"],
        place=Place(row["batch_id"], row["position"]),
        bounds=row["bounds"],
        undone_due=row["undone_due"],
        held=decode_held(row["held"]),
        stopped=row["stopped"],
        refused_event=row["refused_event"],
        passed_event=row["passed_event"],
        again_through=row["again_through"],
        left_out=left_out_of(row),
        error=row["error"],
        behind_since=row["behind_since"],
    )
