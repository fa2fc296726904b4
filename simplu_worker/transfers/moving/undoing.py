"""Delete the copy of a move that has not committed, and the rows that a tenant left behind.

Each under a token of its own, so that a mover that wakes up late finds another one (ADR 0007).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

import msgspec
import structlog

from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.log import BulkChange, BulkOrigin, mark_bulk_change
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.settling import (
    MovingTenant,
    SupersededError,
    TransferRefusedError,
    read_tenant,
    read_transfer,
    take_token,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import Journal, TransferEngine, run_in_pages
from simplu_worker.transfers.moving.places import sum_counts
from simplu_worker.transfers.moving.types import GONE, LEAVING, ON_THE_WAY
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

DROP_ROWS: Final = 5_000  # deleted by one statement
UNREAD_S: Final = 10.0  # for a destination of the feed that is not down
UNREAD_POLL_S: Final = 0.2
DROPS: Final = ("drop_resources", "drop_operations", "drop_batches", "drop_rejections")

log = structlog.get_logger(__name__)


async def drop_rows(shard: ShardPool, tenant_id: str, token: int, state: TenantState) -> int | None:
    """Delete the rows of a tenant; return how many resources and operations, None if its own has another *state*.

    The feed reads the changes in the log first, for `UNREAD_S` at most.
    """
    if await _has_unread(shard, tenant_id):
        async with shard.transaction() as connection:
            if not await connection.fetchval(QUERIES["lock_tenant_for"], tenant_id, state, token):
                return None
            await mark_bulk_change(connection, BulkChange.COPIED, tenant_id, BulkOrigin.UNREAD)
        log.warning("move.changes_unread", tenant_id=tenant_id, shard_id=shard.address.shard_id)
    is_ours = True

    async def drop(query: str, limit: int) -> int:
        nonlocal is_ours
        async with shard.transaction(budget=StatementBudget.KEY_RANGE) as connection:
            is_ours = is_ours and bool(await connection.fetchval(QUERIES["lock_tenant_for"], tenant_id, state, token))
            if not is_ours:
                return 0
            return affected_count(await connection.execute(QUERIES[query], tenant_id, limit))

    counts = [await run_in_pages(partial(drop, query), limit=DROP_ROWS) for query in DROPS]
    return sum(counts[:2]) if is_ours else None


async def _has_unread(shard: ShardPool, tenant_id: str) -> bool:
    """Return whether the feed has yet to read changes of the tenant, after `UNREAD_S` at most."""
    deadline = loop_time() + UNREAD_S
    while await _is_unread(shard, tenant_id, is_in_file=True):
        if loop_time() > deadline:
            return True
        await asyncio.sleep(UNREAD_POLL_S)
    return await _is_unread(shard, tenant_id, is_in_file=False)


async def _is_unread(shard: ShardPool, tenant_id: str, *, is_in_file: bool) -> bool:
    async with shard.connection() as connection:
        return bool(await connection.fetchval(QUERIES["has_unread_changes"], tenant_id, is_in_file))


class MoveUndo(TransferEngine[int]):
    """Deletes the copy of a tenant that has not left *source_id*, or was destroyed there; it returns a count."""

    def __init__(self, pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
        super().__init__(pools.pool_of(source_id), tenant_id, lambda _: None)
        self._target = pools.pool_of(target_id)
        self._token = 0

    @property
    def journal(self) -> Journal:
        """The row of the move, on its source."""
        return Journal(self._tenant_id, TransferKind.DEPARTURE, str(self._token))

    @property
    def progress(self) -> object:
        """Whether the mover is stopped."""
        return self._token

    def describe_state(self) -> str:
        """Return the state, which is that of before."""
        return "the tenant goes on on its shard; run the same command again to delete the rest of its copy"

    async def go_on(self) -> int:
        """Stop the mover, and delete what it has copied; return the rows deleted."""
        source_id, target_id = self._shard.address.shard_id, self._target.address.shard_id
        async with self._target.connection() as connection:
            copy = await read_tenant(connection, self._tenant_id)
        async with self._shard.transaction() as connection:
            tenant = await read_tenant(connection, self._tenant_id, locked=True)
            if tenant is None or tenant.state not in LEAVING | GONE:
                state = "none" if tenant is None else tenant.state
                raise TransferRefusedError(
                    f"{self._tenant_id}: its home is not on shard {source_id}, where its row is {state}"
                )
            self._token = max(tenant.move_token, 0 if copy is None else copy.move_token) + 1
            if tenant.state in LEAVING:  # no mover can do anything about a tenant that is destroyed
                await take_token(connection, self._tenant_id, self._token)
            await self.journal.open(connection, TransferStep.UNDOING, place=target_id, detail={})
        count = 0
        if copy is not None and copy.state in ON_THE_WAY:
            count = await _drop_copy(self._target, self._tenant_id, self._token)
        async with self._shard.transaction() as connection:
            await self.journal.note(connection, TransferStep.UNDONE)
        log.info("move.undone", tenant_id=self._tenant_id, source_id=source_id, target_id=target_id, rows=count)
        return count


async def count_copied(pools: Pools, tenant_id: str, target_id: str) -> int:
    """Return how many resources and operations of a copy `MoveUndo` would delete. Raises `RetryableError`."""
    target = pools.pool_of(target_id)
    async with target.connection() as connection:
        copy = await read_tenant(connection, tenant_id)
    return 0 if copy is None or copy.state not in ON_THE_WAY else await sum_counts(target, tenant_id)


async def _drop_copy(target: ShardPool, tenant_id: str, token: int) -> int:
    """Delete the rows of a tenant on its way, if no mover with a higher token has come."""
    async with target.transaction() as connection:
        status = await connection.execute(QUERIES["take_incoming"], tenant_id, token)
        if affected_count(status) != 1:
            raise SupersededError(f"{tenant_id}: another mover has begun since; run this again once it has ended")
        await connection.execute(
            QUERIES["drop_transfer"], tenant_id, TransferKind.ARRIVAL
        )  # no mover may go on from its rest
    count = await drop_rows(target, tenant_id, token, TenantState.INCOMING)
    if count is None:
        raise SupersededError(f"{tenant_id}: another mover has begun since; run this again once it has ended")
    async with target.transaction() as connection:
        await connection.execute(QUERIES["drop_incoming"], tenant_id, token)
    return count


class LeftBehind(msgspec.Struct, frozen=True):
    """A tenant with rows on a shard that it has left for *target_id*; *differs*, if it has other ones there."""

    tenant_id: str
    target_id: str
    differs: bool


async def list_left_behind(shard: ShardPool, older_than: timedelta) -> Sequence[LeftBehind]:
    """Return the tenants that left a shard so long ago and have rows there."""
    async with shard.transaction() as connection:
        if not await has_schema(connection, shard):
            return []
        rows = await connection.fetch(QUERIES["find_left_behind"], older_than)
    return [LeftBehind(row["tenant_id"], row["target_shard_id"], row["differs"]) for row in rows]


def _has_left_for(left: MovingTenant, home: MovingTenant, target_id: str) -> bool:
    return (
        (left.state, left.moved_to) == (TenantState.MOVED, target_id)
        and home.state not in ON_THE_WAY  # it has arrived; since then it may have gone on, or been destroyed
        and home.epoch >= left.epoch
    )


async def clean_up(
    pools: Pools,
    commits: ReplicationWaiter,
    tenant_id: str,
    source_id: str,
    target_id: str,
    *,
    home_id: str | None = None,
    apply: bool = True,
) -> int | None:
    """Delete the rows that a tenant left on *source_id*, without *apply* none, and return their number; its own stays.

    None if it has not arrived, or has come back. Only once the standbys of its home have it: one that has not would
    need these rows.
    """
    home_id = home_id or target_id
    source, target = pools.pool_of(source_id), pools.pool_of(home_id)
    async with target.transaction() as connection:
        home = await read_tenant(connection, tenant_id)
        server = await note_server(connection)
    await commits.wait_for_transaction(home_id, server)
    async with source.transaction() as connection:
        left = await read_tenant(connection, tenant_id, locked=True)
        departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
        if left is None or home is None or departure is None or not _has_left_for(left, home, target_id):
            return None
        if not apply:
            return await sum_counts(source, tenant_id)
        token = max(left.move_token, home.move_token) + 1
        await take_token(connection, tenant_id, token)
        journal = Journal(tenant_id, TransferKind.DEPARTURE, str(token))
        await journal.take(connection, TransferStep.CLEANING)
    count = await drop_rows(source, tenant_id, token, TenantState.MOVED)
    if count is None:
        return None
    async with source.transaction() as connection:
        await journal.note(connection, TransferStep.CLEANED)
    log.info("move.cleaned_up", tenant_id=tenant_id, source_id=source_id, rows=count)
    return count
