"""What a shard knows of a stream shard, and what a reader claims there with each write (architecture, idea 8). Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.errors import InvalidDataError, LostRaceError, StatementFailedError

DOUBTS_MAX: Final = 20  # attempts with an unknown outcome that are remembered; of others the row has to be read


class PositionChangedError(RetryableError):
    """The row is not as its reader left it: it has to be read before anything is written."""


class StreamPosition(msgspec.Struct, frozen=True):
    """A row as it was read. *held* are targets (`TenantSet.targets`); positions are text, as the row has them."""

    owed_from: str
    owed_since: datetime | None
    parents_done: bool
    token: str
    read_to: str | None = None
    held: tuple[str, ...] = ()


class StoredPositions(msgspec.Struct, frozen=True):
    """What one shard knows of some stream shards: the rows it has, by stream shard, and when its first tenant was made.

    *first_tenant_at* is None where there is none yet, or that was not asked for. So is *moved_in_s*, how long ago the
    last tenant was moved here, where none was; *moves* is another with each that is, and also None if not asked for.
    *is_as_left* tells that the row of who asked was as it was left, before it was marked: then nothing of what was
    written there is lost.
    """

    rows: dict[str, StreamPosition]
    first_tenant_at: datetime | None
    moved_in_s: float | None = None
    moves: str | None = None
    is_as_left: bool = False


class PositionClaim(msgspec.Struct):
    """What a reader writes into its row with the next batch, and the tokens that the row may have now.

    The first token is that of the last write or read known; the others are of attempts whose outcome is not. Without
    any, the reader saw that there is no row. Then *moves*, as the shard had it, has to be the same still when one is
    made: who was moved here meanwhile may lack something, and there was no row that the move would have changed.
    """

    stream: str
    stream_shard_id: str
    owed_from: str = ""
    owed_since: datetime | None = None
    read_to: str | None = None
    held: tuple[str, ...] | None = None
    parents_done: bool = False
    moves: str | None = None
    tokens: list[str] = []

    @contextmanager
    def attempt(self) -> Iterator[str]:
        """Return a token to be written; note that the row may have it, or has it, by how the block ends.

        Blocks may overlap: a transaction that its caller has given up goes on where it is others' too.
        """
        token = str(uuid.uuid4())
        self.tokens = [*self.tokens[:1], *self.tokens[1:][-DOUBTS_MAX:], token]
        try:
            yield token
        except (PositionChangedError, LostRaceError, InvalidDataError, StatementFailedError):  # rolled back for sure
            self.tokens = [known for known in self.tokens if known != token]
            raise
        if token in self.tokens:  # else one that began later has committed already
            self.tokens = self.tokens[self.tokens.index(token) :]
