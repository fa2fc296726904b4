"""The rows that have all the state of a move: the tenant's on both shards, and the journal on each. Read here."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.settling.merged_positions import CarriedPosition
from simplu_worker.vocabulary import TenantState

RowKey: TypeAlias = tuple[str, str]  # of a row of one tenant in a table that is copied; "" for a part it does not have

FIRST: Final[RowKey] = ("", "")


class StatedError(PermanentError):
    """A move cannot go on; the message has the state of the tenant, and the command that comes next."""


class MovingTenant(msgspec.Struct, frozen=True):
    """A tenant's row on one shard, at *read_at* by the clock of *server*."""

    id: str
    business_id: str
    location_id: str
    business_type: str
    state: TenantState
    epoch: int
    move_token: int
    moved_to: str | None
    control_at: datetime
    created_at: datetime
    paused_until: datetime | None
    weight: float
    read_at: datetime
    server: Server


class Progress(msgspec.Struct, frozen=True):
    """What of a tenant is on the target, stored there with the rows themselves.

    All changes on the source before *barrier*, by the clock of *server*, are on the target as far as *cursors* have
    come: the key of the last row copied of each table, None for a whole table. *epoch* is that of the source.
    *positions* are those of the source as of the fence, *target_server* is the server where all rows have arrived.
    """

    server: Server
    epoch: int
    barrier: datetime
    cursors: dict[str, RowKey | None] = {}
    row_count: int = 0
    byte_count: int = 0
    positions: tuple[CarriedPosition, ...] = ()
    target_server: Server | None = None
    fenced_at: datetime | None = None


class Arrival(msgspec.Struct, frozen=True):
    """The journal of a tenant on its target, at *read_at*. *ready_at*: everything written since was written there."""

    source_shard_id: str
    move_token: int
    progress: Progress
    ready_at: datetime | None
    read_at: datetime


class Departure(msgspec.Struct, frozen=True):
    """The journal of a tenant on its source."""

    target_shard_id: str
    move_token: int
    step: str  # a `MoveStep`, or one that only a newer mover knows
    detail: dict[str, Any]

    @property
    def positions(self) -> tuple[CarriedPosition, ...]:
        """The stream positions as of the fence of a move that has committed."""
        return msgspec.convert(self.detail.get("positions", ()), tuple[CarriedPosition, ...])

    @property
    def is_equal(self) -> bool:
        """Whether the shards had the same rows when the move ended."""
        return self.detail.get("verdict") == "equal"

    @property
    def epoch_before(self) -> int:
        """The epoch before a move that has committed."""
        return int((self.detail.get("certificate") or self.detail)["epochBefore"])


async def read_tenant(connection: Connection, tenant_id: str, *, locked: bool = False) -> MovingTenant | None:
    """Return a tenant's row; *locked* waits for the batches in flight, and keeps later ones waiting."""
    row = await connection.fetchrow(QUERIES["lock_tenant_to_move" if locked else "find_tenant_to_move"], tenant_id)
    return None if row is None else tenant_of(row)


def tenant_of(row: Any) -> MovingTenant:
    """Return the tenant's row that a statement about a move has returned."""
    values = dict(row)
    server = Server(values.pop("timeline"), values.pop("started_at"))
    return MovingTenant(**values | {"state": TenantState(row["state"]), "server": server})


async def take_token(connection: Connection, tenant_id: str, token: int) -> None:
    """Write a mover's token into the row that its transaction has locked. Raises `StatedError` during a restore."""
    if affected_count(await connection.execute(QUERIES["take_move_token"], tenant_id, token)) != 1:
        raise StatedError(
            f"{tenant_id}: expected a tenant to move, got one that is being restored: its rows are being replaced; "
            "run: simplu-worker tenants restore, and then this command again"
        )


async def read_arrival(connection: Connection, tenant_id: str) -> Arrival | None:
    """Return the journal of a tenant on this target."""
    row = await connection.fetchrow(QUERIES["find_arrival"], tenant_id)
    return None if row is None else arrival_of(row)


def arrival_of(row: Any) -> Arrival:
    """Return the journal of a tenant on its target that a statement has returned."""
    progress = msgspec.json.decode(row["progress"], type=Progress)
    return Arrival(row["source_shard_id"], row["move_token"], progress, row["ready_at"], row["read_at"])


async def read_departure(connection: Connection, tenant_id: str) -> Departure | None:
    """Return the journal of a tenant on this source."""
    row = await connection.fetchrow(QUERIES["find_move"], tenant_id)
    if row is None:
        return None
    detail = msgspec.json.decode(row["detail"])
    return Departure(row["target_shard_id"], row["move_token"], row["step"], detail)


def encoded(progress: Progress) -> str:
    """Return the JSON text of *progress*."""
    return msgspec.json.encode(progress).decode()
