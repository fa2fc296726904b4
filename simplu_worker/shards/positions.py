"""The positions of stream shards, stored in every shard beside the effects (architecture, idea 8).

Nothing is lost when a shard comes back without its last commits: the transaction of each batch writes the row, so the
row is never newer than its effects, and a reader overwrites only a row with a random token that it knows. One that
finds another token backfills the shard's tenants from the position in the row.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import msgspec

from simplu_worker.bulkheads import of_shard
from simplu_worker.shards.postgres.errors import LostRaceError, RolledBackError, StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import (
    PositionChangedError,
    PositionClaim,
    PositionMerge,
    StoredPositions,
    StreamPosition,
)
from simplu_worker.timing.clock import uuid7


async def write_positions(connection: Connection, claims: Sequence[tuple[PositionClaim, str]]) -> list[PositionClaim]:
    """Write claims, each with its new token, within the transaction of their batch, in order of the rows.

    Returns the claims with a row that another reader has written: those rows stay as they are.
    """
    in_order = sorted(claims, key=lambda pair: _key_of(pair[0]))
    if all(is_row_known(claim, token) for claim, token in in_order):
        written = await _update_positions(connection, in_order)
    else:  # one by one: an insert waits for a transaction that writes the row too
        written = set()
        for claim, token in in_order:
            if is_row_known(claim, token):
                written |= await _update_positions(connection, [(claim, token)])
                continue
            status = await connection.execute(QUERIES["insert_position"], *_values_of(claim), token, claim.move_token)
            if status.endswith(" 1"):
                written.add(_key_of(claim))
    return [claim for claim, _ in in_order if _key_of(claim) not in written]


async def _update_positions(
    connection: Connection, claims: Sequence[tuple[PositionClaim, str]]
) -> set[tuple[str, str]]:
    values = [position_arguments(claim, token) for claim, token in claims]
    rows = await connection.fetchmany(QUERIES["update_position"], values) if values else ()
    return {(row["stream"], row["stream_shard_id"]) for row in rows}


def position_arguments(claim: PositionClaim, token: str) -> tuple[object, ...]:
    """Return the arguments with which a known row gets *claim* and its new *token*."""
    return (*_values_of(claim), _known_tokens(claim, token), token)


def is_row_known(claim: PositionClaim, token: str) -> bool:
    """Return whether the row of *claim* is one that its reader has seen."""
    return bool(_known_tokens(claim, token))


def position_changed_error(claims: Sequence[PositionClaim]) -> PositionChangedError:
    """Return the error for *claims* with rows that other readers have written."""
    names = ", ".join(claim.stream_shard_id for claim in claims)
    return PositionChangedError(f"stream shard {names}: another reader has written its position", claims=claims)


def _key_of(claim: PositionClaim) -> tuple[str, str]:
    return claim.stream, claim.stream_shard_id


def _known_tokens(claim: PositionClaim, token: str) -> list[str]:
    return [known for known in claim.fencing_tokens if known != token]


def _values_of(claim: PositionClaim) -> tuple[object, ...]:
    position = claim.position
    held = None if position.read_to is None else list(position.held)
    reach = position.pending_from, position.pending_since, position.read_to, held
    return (*_key_of(claim), *reach, position.parents_done, position.read_up_to)


async def read_stored_positions(
    connection: Connection, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool
) -> StoredPositions:
    """Return the stored positions of stream shards, and when the tenants came if that may matter."""
    if not is_first:
        rows = await read_position_rows(connection, stream, stream_shard_ids)
        if len(rows) == len(stream_shard_ids) and all(row.parents_done for row in rows.values()):
            return StoredPositions(rows, None)
    (arrivals,) = await connection.fetch(QUERIES["read_tenant_arrivals"])
    rows = await read_position_rows(connection, stream, stream_shard_ids)  # read last: not older than the move token
    move_age_s = arrivals["last_move_age_s"]
    return StoredPositions(rows, arrivals["first_at"], move_age_s, arrivals["move_token"])


async def read_position_rows(
    connection: Connection, stream: str, stream_shard_ids: Sequence[str] | None = None
) -> dict[str, StreamPosition]:
    """Return the stored positions of stream shards, all of the stream's without ids, by stream shard."""
    rows = await connection.fetch(QUERIES["read_positions"], stream, stream_shard_ids)
    return {row["stream_shard_id"]: _position(row) for row in rows}


def _position(row: Any) -> StreamPosition:
    return StreamPosition(
        pending_from=row["pending_from"],
        pending_since=row["pending_since"],
        parents_done=row["parents_done"],
        fencing_token=row["token"],
        read_to=row["read_to"],
        held=tuple(row["held"] or ()),
        gap_from=row["gap_from"],
        is_gap_accepted=row["is_gap_accepted"],
    )


UNCERTAIN_ATTEMPTS_MAX: Final = 20  # attempts with an unknown outcome that a claim remembers; beyond, the row is read

_ROLLED_BACK: Final = (PositionChangedError, LostRaceError, StatementFailedError, RolledBackError)


@contextmanager
def attempt_claim(claim: PositionClaim) -> Iterator[str]:
    """Yield a fencing token to write; keep it in *claim* if the row has it or may have it. Blocks may overlap."""
    token, written = timed_token(uuid.uuid4(), claim.as_of), claim.written
    claim.fencing_tokens = [*claim.fencing_tokens[:1], *claim.fencing_tokens[1:][-UNCERTAIN_ATTEMPTS_MAX:], token]
    try:
        yield token
    except _ROLLED_BACK:
        claim.fencing_tokens = [known for known in claim.fencing_tokens if known != token]
        raise
    written.append(token)
    if token in claim.fencing_tokens:  # otherwise a later attempt has committed already
        claim.fencing_tokens = claim.fencing_tokens[claim.fencing_tokens.index(token) :]


def timed_token(token: uuid.UUID, at: datetime | None) -> str:
    """Return the random *token* with the time *at* of the row's content, if given; a backup keeps it."""
    return str(token if at is None else uuid7(at, token))


class ShardPositions:
    """The positions of stream shards on the shards of *pools*. Raises `ShardUnavailableError`."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    @of_shard
    async def read_positions(
        self, shard_id: str, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Return the positions of stream shards stored on a shard; None without a schema, and so without a tenant.

        With *is_first* also when the shard's tenants came.
        """
        pool = self._pools.pool_of(shard_id)
        async with pool.connection() as connection:
            if not await has_schema(connection, pool):
                return None
            return await read_stored_positions(connection, stream, stream_shard_ids, is_first=is_first)

    @of_shard
    async def fence_and_read_positions(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Write a new fencing token into the row of *claim*; return the rows of it and *ancestors*.

        In one transaction: a failover that loses rows of ancestors then loses the token too, and the reader notices.
        """
        pool, key = self._pools.pool_of(shard_id), _key_of(claim)
        async with pool.transaction() as connection:
            if not await has_schema(connection, pool):
                return None
            token = str(uuid4())
            status = await connection.execute(QUERIES["fence_known_position"], *key, token, claim.fencing_tokens)
            if not (is_unchanged := status.endswith(" 1")):  # the reader did not know the old one
                await connection.execute(QUERIES["fence_position"], *key, token)
            ids = [claim.stream_shard_id, *ancestors]
            stored = await read_stored_positions(connection, claim.stream, ids, is_first=is_first)
            return msgspec.structs.replace(stored, is_unchanged=is_unchanged)

    @of_shard
    async def write_positions(self, shard_id: str, claims: Sequence[PositionClaim]) -> list[PositionClaim]:
        """Write *claims* without operations, not waiting for the disk; return those of which the row must be read."""
        with ExitStack() as attempts:
            tokens = [attempts.enter_context(attempt_claim(claim)) for claim in claims]
            async with self._pools.pool_of(shard_id).transaction() as connection:
                await connection.execute(QUERIES["skip_disk_wait"])
                return await write_positions(connection, list(zip(claims, tokens, strict=True)))

    @of_shard
    async def read_merges(self, shard_id: str, stream: str, stream_shard_id: str) -> list[PositionMerge]:
        """Return how a shard's row of a stream shard got its last tokens from moves to the shard."""
        async with self._pools.pool_of(shard_id).connection() as connection:
            rows = await connection.fetch(QUERIES["read_position_merges"], stream, stream_shard_id)
        return [PositionMerge(**dict(row)) for row in rows]

    @of_shard
    async def mark_gap(self, shard_id: str, stream: str, stream_shard_id: str, pending_from: str) -> None:
        """Mark a row with the position *pending_from*, to which the stream does not reach back. Idempotent."""
        async with self._pools.pool_of(shard_id).connection() as connection:
            await connection.execute(QUERIES["mark_gap"], stream, stream_shard_id, pending_from)

    @of_shard
    async def forget_positions(self, shard_id: str, stream: str, stream_shard_ids: Sequence[str]) -> None:
        """Delete a shard's rows of stream shards past their retention."""
        pool = self._pools.pool_of(shard_id)
        async with pool.connection() as connection:
            if await has_schema(connection, pool):
                await connection.execute(QUERIES["forget_positions"], stream, list(stream_shard_ids))
