"""How far each stream shard got, kept in every shard beside the effects (architecture, idea 8).

Why nothing is lost when a shard comes back without its last commits: the row is written in the transaction of each
batch, so it is never newer than the effects that it speaks of; and it is written only over a row whose random token the
reader knows. A reader that finds another token reads the row, and has the shard's tenants read again from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from simplu_worker.shards.claims import Claim, PositionChangedError, Standing, StreamPosition
from simplu_worker.shards.pools import Connection
from simplu_worker.shards.queries import QUERIES


async def write_position(connection: Connection, claim: Claim, token: str) -> None:
    """Write what *claim* says, within the transaction of its batch. Raises `PositionChangedError`."""
    said = (
        claim.stream,
        claim.stream_shard_id,
        claim.owed_from,
        claim.owed_since,
        claim.read_to,
        claim.held and list(claim.held),
        claim.parents_done,
    )
    seen = [known for known in claim.tokens if known != token]
    if seen:
        status = await connection.execute(QUERIES["move_position"], *said, seen, token)
    else:
        status = await connection.execute(QUERIES["begin_position"], *said, token)
    if not status.endswith(" 1"):
        raise PositionChangedError(f"stream shard {claim.stream_shard_id}: its position was written by somebody else")


async def mark_position(connection: Connection, claim: Claim) -> bool:
    """Leave a new token, known to nobody, in the row of *claim*; return whether its reader knew the one that it had."""
    place, token = (claim.stream, claim.stream_shard_id), str(uuid4())
    status = await connection.execute(QUERIES["mark_known_position"], *place, token, claim.tokens)
    if status.endswith(" 1"):
        return True
    await connection.execute(QUERIES["mark_position"], *place, token)
    return False


async def read_standing(connection: Connection, stream: str, stream_shard_ids: Sequence[str]) -> Standing:
    """Return what a shard knows of stream shards; the first tenant is asked for where that may matter."""
    rows = await connection.fetch(QUERIES["read_positions"], stream, list(stream_shard_ids))
    first_tenant_at = None
    if len(rows) < len(stream_shard_ids) or not all(row["parents_done"] for row in rows):
        first_tenant_at = await connection.fetchval(QUERIES["first_tenant_at"])
    return Standing({row["stream_shard_id"]: _position(row) for row in rows}, first_tenant_at)


def _position(row: Any) -> StreamPosition:
    return StreamPosition(
        owed_from=row["owed_from"],
        owed_since=row["owed_since"],
        parents_done=row["parents_done"],
        token=row["token"],
        read_to=row["read_to"],
        held=tuple(row["held"] or ()),
    )
