"""How far each stream shard got, kept in every shard beside the effects (architecture, idea 8).

Why nothing is lost when a shard comes back without its last commits: the row is written in the transaction of each
batch, so it is never newer than the effects that it speaks of; and it is written only over a row whose random token the
reader knows. A reader that finds another token reads the row, and has the shard's tenants read again from there on.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.errors import TryAgainLaterError
from simplu_worker.shards.pools import Connection, InvalidDataError, LostRaceError, StatementFailedError
from simplu_worker.shards.queries import QUERIES

DOUBTS_MAX: Final = 20  # attempts with an unknown outcome that are remembered; of others the row has to be read


class PositionChangedError(TryAgainLaterError):
    """The row is not as its reader left it: it has to be read before anything is written."""


class StreamPosition(msgspec.Struct, frozen=True):
    """A row as it was read. *held* are targets (`TenantSet.targets`); positions are text, as the row has them."""

    owed_from: str
    owed_since: datetime | None
    parents_done: bool
    token: str
    read_to: str | None = None
    held: tuple[str, ...] = ()


class Standing(msgspec.Struct, frozen=True):
    """What one shard knows of some stream shards: the rows it has, by stream shard, and when its first tenant was made.

    *first_tenant_at* is None where there is none yet.
    """

    rows: dict[str, StreamPosition]
    first_tenant_at: datetime | None


class Claim(msgspec.Struct):
    """What a reader writes into its row with the next batch, and the tokens that the row may have now.

    The first token is that of the last write or read known; the others are of attempts whose outcome is not. Without
    any, the reader saw that there is no row.
    """

    stream: str
    stream_shard_id: str
    owed_from: str = ""
    owed_since: datetime | None = None
    read_to: str | None = None
    held: tuple[str, ...] | None = None
    parents_done: bool = False
    tokens: list[str] = []

    @contextmanager
    def attempt(self) -> Iterator[str]:
        """Return a token to be written; note that the row may have it, or has it, by how the block ends."""
        token = str(uuid.uuid4())
        self.tokens = [*self.tokens[:1], *self.tokens[1:][-DOUBTS_MAX:], token]
        try:
            yield token
        except (PositionChangedError, LostRaceError, InvalidDataError, StatementFailedError):  # rolled back for sure
            self.tokens.remove(token)
            raise
        self.tokens = [token]


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


async def read_standing(connection: Connection, stream: str, stream_shard_ids: Sequence[str]) -> Standing:
    """Return what a shard knows of stream shards."""
    rows = await connection.fetch(QUERIES["read_positions"], stream, list(stream_shard_ids))
    first_tenant_at = None
    if len(rows) < len(stream_shard_ids):
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
