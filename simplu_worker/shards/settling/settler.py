"""End what a mover that was killed has left: a fence after its deadline, and a tenant between two shards.

The same for a mover and for any worker that looks up the tenant: the rows of the two shards decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import uuid4

import structlog

from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.positions.claims import timed_token
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.clock_check import check_clocks
from simplu_worker.shards.settling.merged_positions import CarriedPosition, merge_positions
from simplu_worker.shards.settling.rows import arrival_of, read_arrival, read_tenant
from simplu_worker.shards.types import token_time
from simplu_worker.vocabulary import TenantState

POSITION_COLUMNS: Final = ("stream", "stream_shard_id", "pending_from", "pending_since", "parents_done", "token")

LEFT_FOR: Final = timedelta(seconds=1)  # before a worker takes the mover of a ready tenant for killed

log = structlog.get_logger(__name__)


class MoveSettler:
    """Ends fences and activates tenants on the shards of *pools*."""

    def __init__(self, pools: Pools, commits: ReplicationWaiter) -> None:
        self._pools = pools
        self._commits = commits

    async def end_overdue_fence(self, shard_id: str, tenant_id: str) -> bool:
        """Make a fenced tenant active again if the fence is past its deadline; return whether it was.

        Raises `RetryableError` if the shard does not answer, or its deadline may be wrong: the clocks are apart.
        """
        pool = self._pools.pool_of(shard_id)
        async with pool.transaction() as connection:
            has_ended = affected_count(await connection.execute(QUERIES["end_overdue_fence"], tenant_id)) == 1
            if has_ended:
                await check_clocks(connection, pool)
        if has_ended:
            log.warning("move.fence_ended", shard_id=shard_id, tenant_id=tenant_id)
        return has_ended

    async def activate_left(self, source_id: str, target_id: str, tenant_id: str) -> bool:
        """Do as `activate` for a tenant that has been ready for a while: its mover takes milliseconds."""
        async with self._pools.pool_of(target_id).connection() as connection:
            arrival = await read_arrival(connection, tenant_id)
        if arrival is None or arrival.ready_at is None or arrival.read_at - arrival.ready_at < LEFT_FOR:
            return False
        return await self.activate(source_id, target_id, tenant_id)

    async def activate(self, source_id: str, target_id: str, tenant_id: str) -> bool:
        """Make a tenant that has left *source_id* active on *target_id*; return whether this call did.

        Only once the standbys of the source have the commit: a promoted one would still have the tenant active. Raises
        `RetryableError` if a shard does not answer, or the standbys do not confirm.
        """
        async with self._pools.pool_of(source_id).transaction() as connection:
            left = await read_tenant(connection, tenant_id)
            server = await note_server(connection)
        if left is None or left.state is not TenantState.MOVED or left.moved_to != target_id:
            return False
        return await self.activate_after(source_id, server, target_id, tenant_id, left.move_token)

    async def activate_after(self, source_id: str, server: Server, target_id: str, tenant_id: str, token: int) -> bool:
        """Do the same after the commit on *source_id*, made by *server*; *token* is that of the `moved` row there."""
        await self._commits.wait_for_transaction(source_id, server)
        target = self._pools.pool_of(target_id)
        if not await _activate(target, tenant_id, token):
            return False
        log.info("move.activated", tenant_id=tenant_id, source_id=source_id, shard_id=target_id)
        return True


async def _activate(target: ShardPool, tenant_id: str, token: int) -> bool:
    """Activate the tenant, and merge the stream positions, in one transaction."""
    async with target.transaction(budget=StatementBudget.PAUSE) as connection:
        return await activate_in(connection, tenant_id, token)


async def activate_in(connection: Connection, tenant_id: str, token: int) -> bool:
    """Activate the tenant, and merge the stream positions, in the transaction of *connection*, which begins with it."""
    # In the order in which batches lock: first the positions, then the tenant.
    await connection.execute(QUERIES["lock_positions"])
    row = await connection.fetchrow(QUERIES["activate_tenant"], tenant_id, token)
    if row is None:
        return False
    if row["progress"] is None:  # deleted by hand
        await lower_positions(connection, ())
    else:
        arrival = arrival_of(row)
        await lower_positions(connection, arrival.progress.positions, source_id=arrival.source_shard_id)
    return True


async def lower_positions(
    connection: Connection, carried: Sequence[CarriedPosition], *, source_id: str | None = None
) -> None:
    """Merge *carried* into the rows of the shard, with tokens that no reader knows: all of them read again from there.

    With the *source_id* of a tenant that has come, readers that know the former tokens may go on without reading again.
    In a transaction that has locked the rows against other writes.
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
