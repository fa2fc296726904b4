"""End what a killed mover has left: a fence after its deadline, and a tenant between two shards.

The rows of the two shards decide, the same for a mover and for any worker that looks up the tenant.

A row of positions states that everything before it is applied for the tenants of its shard. For a tenant that has come
the lower of both shards' rows counts; where one has none, nothing is known (docs/adr/0015-readers-follow-a-move.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import uuid4

import msgspec
import structlog

from simplu_worker.errors import PermanentError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.positions import timed_token
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.types import token_time
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

PositionKey: TypeAlias = tuple[str, str]  # the stream and the stream shard

_ENDS: Final[Mapping[str, tuple[float, int]]] = {"TRIM_HORIZON": (-1, 0), "SHARD_END": (float("inf"), 0)}


class CarriedPosition(msgspec.Struct, frozen=True):
    """A row of `stream_positions`, without what counts on its own shard alone."""

    stream: str
    stream_shard_id: str
    pending_from: str
    pending_since: datetime | None
    parents_done: bool
    token: str = ""
    written_at: datetime | None = None

    @property
    def key(self) -> PositionKey:
        """What identifies the row."""
        return self.stream, self.stream_shard_id


class LoweredPosition(msgspec.Struct, frozen=True):
    """What a row of the target gets, and the former tokens of it and of the source's row."""

    position: CarriedPosition
    former_token: str
    carried_token: str


class MergedPositions(msgspec.Struct, frozen=True):
    """The rows of the target to write with lower positions, and the keys of those to delete."""

    lowered: tuple[LoweredPosition, ...]
    deleted: tuple[PositionKey, ...]


def merge_positions(carried: Iterable[CarriedPosition], own: Iterable[CarriedPosition]) -> MergedPositions:
    """Return what becomes of the rows *own* of a target when a tenant comes with the rows *carried* of its source."""
    by_key = {one.key: one for one in carried}
    lowered = [
        LoweredPosition(_lower(one, other), one.token, other.token)
        for one in own
        if (other := by_key.get(one.key)) is not None
    ]
    kept = {one.position.key for one in lowered}
    return MergedPositions(tuple(lowered), tuple(one.key for one in own if one.key not in kept))


def _lower(one: CarriedPosition, other: CarriedPosition) -> CarriedPosition:
    low = min(one, other, key=lambda position: _order_of(position.pending_from))
    return msgspec.structs.replace(
        low,
        pending_since=None if low.pending_from in _ENDS else _earlier(one.pending_since, other.pending_since),
        parents_done=one.parents_done and other.parents_done,
        written_at=_earlier(one.written_at, other.written_at),
    )


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else min(one, other)


def _order_of(position: str) -> tuple[float, int]:
    if position in _ENDS:
        return _ENDS[position]
    number, _, sub_number = position.partition("/")
    return int(number), int(sub_number)


RowKey: TypeAlias = tuple[str, str]  # of a row of one tenant in a table that is copied; "" for a part it does not have

FIRST: Final[RowKey] = ("", "")


class TransferRefusedError(PermanentError):
    """A transfer cannot go on; the message has the state of the tenant, and the next command."""


class SupersededError(TransferRefusedError):
    """Another command has begun a transfer of the tenant since, or a worker has ended the fence."""


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
    operations_per_s: float | None = None
    bytes_per_s: float | None = None
    business_controls: str | None = None  # the row of its business on the shard, JSON
    buckets: str | None = None  # what it and its business owe there of their limits, JSON


class Progress(msgspec.Struct, frozen=True):
    """What of a tenant is on the target, stored there with the rows themselves.

    All changes on the source before *barrier*, by the clock of *server*, are on the target up to *cursors*: the last
    key of each table, None for a whole one. *positions* are those of the source as of the fence; on *target_server* all
    rows have arrived.
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


AT_WORK: Final = frozenset(
    {TransferStep.OPEN, TransferStep.COMMITTED, TransferStep.UNDOING, TransferStep.REPLACING, TransferStep.COPIED}
)  # of a move or a restore: its command notes that it runs


class Transfer(msgspec.Struct, frozen=True):
    """A row of the journal of transfers, at *read_at*; *place* is the other shard, or the database that is read."""

    place: str
    token: str
    step: str  # a `TransferStep`, or one that only a newer command knows
    writes: int
    detail: dict[str, Any]
    updated_at: datetime
    read_at: datetime

    @property
    def move_token(self) -> int:
        """The token of the tenant's row."""
        return int(self.token.partition("/")[0])

    @property
    def progress(self) -> Progress:
        """How far the copy of an arrival is."""
        return msgspec.convert(self.detail, Progress)

    @property
    def ready_at(self) -> datetime | None:
        """When an arrival had all rows: everything since was written there."""
        return self.updated_at if self.step == TransferStep.READY else None

    @property
    def silent_s(self) -> float | None:
        """How long the command of the transfer has written nothing; None if it has ended, well or not."""
        if self.step not in AT_WORK or not self.detail.keys().isdisjoint(("error", "stopped")):
            return None
        seen_at = self.detail.get("seenAt")
        noted_at = self.updated_at if seen_at is None else max(self.updated_at, datetime.fromisoformat(seen_at))
        return (self.read_at - noted_at).total_seconds()

    @property
    def export(self) -> str | None:
        """The file with the rows that a restore has overwritten."""
        return self.detail.get("export")

    @property
    def positions(self) -> tuple[CarriedPosition, ...]:
        """The stream positions as of the fence of a departure that has committed."""
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
    """Write a mover's token into the row that its transaction has locked. Raises during a restore."""
    if affected_count(await connection.execute(QUERIES["take_move_token"], tenant_id, token)) != 1:
        raise TransferRefusedError(
            f"{tenant_id}: the tenant is being restored: its rows are being replaced; "
            "run: simplu-worker tenants restore, and then this command again"
        )


async def read_transfer(connection: Connection, tenant_id: str, kind: TransferKind) -> Transfer | None:
    """Return the row of a tenant in the journal of this shard."""
    row = await connection.fetchrow(QUERIES["find_transfer"], tenant_id, kind)
    return None if row is None else transfer_of(row)


def transfer_of(row: Any) -> Transfer:
    """Return the row of the journal that a statement has returned."""
    values = {name: row[name] for name in Transfer.__struct_fields__}
    return Transfer(**values | {"detail": msgspec.json.decode(row["detail"])})


POSITION_COLUMNS: Final = ("stream", "stream_shard_id", "pending_from", "pending_since", "parents_done", "token")

LEFT_FOR: Final = timedelta(seconds=1)  # before a worker takes the mover of a ready tenant for killed

log = structlog.get_logger(__name__)


class MoveSettler:
    """Ends fences and activates tenants on the shards of *pools*."""

    def __init__(self, pools: Pools, commits: ReplicationWaiter) -> None:
        self._pools = pools
        self._commits = commits

    async def end_overdue_fence(self, shard_id: str, tenant_id: str) -> bool:
        """Make a fenced tenant active again if the fence is past its deadline; return whether it was."""
        pool = self._pools.pool_of(shard_id)
        async with pool.transaction() as connection:
            has_ended = affected_count(await connection.execute(QUERIES["end_overdue_fence"], tenant_id)) == 1
        if has_ended:
            log.warning("move.fence_ended", shard_id=shard_id, tenant_id=tenant_id)
        return has_ended

    async def activate_left(self, source_id: str, target_id: str, tenant_id: str) -> bool:
        """Do as `activate` for a tenant that has been ready for a while."""
        async with self._pools.pool_of(target_id).connection() as connection:
            arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
        if arrival is None or arrival.ready_at is None or arrival.read_at - arrival.ready_at < LEFT_FOR:
            return False
        return await self.activate(source_id, target_id, tenant_id)

    async def activate(self, source_id: str, target_id: str, tenant_id: str) -> bool:
        """Make a tenant that has left *source_id* active on *target_id*; return whether this call did.

        Only once the standbys of the source have the commit: a promoted one would still have the tenant active.
        """
        async with self._pools.pool_of(source_id).transaction() as connection:
            left = await read_tenant(connection, tenant_id)
            server = await note_server(connection)
        if left is None or left.state is not TenantState.MOVED or left.moved_to != target_id:
            return False
        return await self.activate_after(source_id, server, target_id, tenant_id, left.move_token)

    async def activate_after(self, source_id: str, server: Server, target_id: str, tenant_id: str, token: int) -> bool:
        """Do the same after the commit on *source_id*, made by *server*; *token* is that of its `moved` row."""
        await self._commits.wait_for_transaction(source_id, server)
        target = self._pools.pool_of(target_id)
        if not await _activate(target, tenant_id, token):
            return False
        log.info("move.activated", tenant_id=tenant_id, source_id=source_id, shard_id=target_id)
        return True


async def _activate(target: ShardPool, tenant_id: str, token: int) -> bool:
    async with target.transaction(budget=StatementBudget.PAUSE) as connection:
        return await activate_in(connection, tenant_id, token)


async def activate_in(connection: Connection, tenant_id: str, token: int) -> bool:
    """Activate the tenant, and merge the stream positions, in the transaction of *connection*."""
    # In the order in which batches lock: first the positions, then the tenant.
    await connection.execute(QUERIES["lock_positions"])
    row = await connection.fetchrow(QUERIES["activate_tenant"], tenant_id, token)
    if row is None:
        return False
    if row["token"] is None:  # deleted by hand
        await lower_positions(connection, ())
    else:
        arrival = transfer_of(row)
        await lower_positions(connection, arrival.progress.positions, source_id=arrival.place)
    return True


async def lower_positions(
    connection: Connection, carried: Sequence[CarriedPosition], *, source_id: str | None = None
) -> None:
    """Merge *carried* into the rows of the shard, with tokens that no reader knows: all of them read again from there.

    With the *source_id* of a tenant that has come, readers that know the former tokens may go on.
    """
    merged = merge_positions(carried, await read_positions(connection))
    if merged.lowered:
        rows = []
        for one in merged.lowered:
            position, token = one.position, timed_token(uuid4(), one.position.written_at)
            content = (position.pending_from, _text_of(position), str(position.parents_done))
            rows.append((*position.key, *content, token, one.former_token, one.carried_token))
        await connection.execute(QUERIES["merge_positions"], *map(list, zip(*rows, strict=True)), source_id)
    if merged.deleted:
        await connection.execute(QUERIES["delete_positions"], *map(list, zip(*merged.deleted, strict=True)))


async def read_positions(connection: Connection) -> tuple[CarriedPosition, ...]:
    """Return the rows of `stream_positions` of all streams."""
    rows = await connection.fetch(QUERIES["read_all_positions_of_shard"])
    return tuple(
        CarriedPosition(**{name: row[name] for name in POSITION_COLUMNS}, written_at=token_time(row["token"]))
        for row in rows
    )


def _text_of(position: CarriedPosition) -> str | None:
    return None if position.pending_since is None else position.pending_since.isoformat()
