"""Whether two shards are ready for a move, and what it would take; nothing is written."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec
from msgspec.structs import replace

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.settling import FIRST, read_positions, read_tenant
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.changes import read_last_changes
from simplu_worker.transfers.moving.copying import RESOURCES, find_end
from simplu_worker.transfers.moving.types import Move, PauseTooLongError

COMMITS_IN_PAUSE: Final = 4  # fence, ready, commit, activation
LAST_ROUND: Final = timedelta(seconds=0.1)  # about the changes of the last round of a move, which there is not yet


class PredictedPause(msgspec.Struct, frozen=True):
    """The parts of a pause: until the standbys of both shards have the commits, and the statements."""

    standby_s: float
    statement_s: float

    @property
    def total_s(self) -> float:
        """The whole pause."""
        return self.standby_s + self.statement_s

    def describe(self, move: Move) -> str:
        """Return the pause with its parts, for people."""
        return (
            f"one of about {self.total_s:.2f} s: {self.standby_s:.2f} s until the standbys of shards {move.source_id} "
            f"and {move.target_id} follow, and {self.statement_s:.2f} s of statements"
        )


async def time_standbys(pools: Pools, commits: ReplicationWaiter, move: Move) -> float:
    """Wait, not for long, for the standbys of both shards, as the switch will; return how long that took."""
    began_at = loop_time()
    for shard_id in (move.target_id, move.source_id):
        async with pools.pool_of(shard_id).transaction() as connection:
            server = await note_server(connection)
        await commits.wait_for_transaction(shard_id, server)
    return loop_time() - began_at


async def _predict_pause(pools: Pools, commits: ReplicationWaiter, move: Move) -> PredictedPause:
    """Return how long the tenant would wait; before a move its statements cannot be sent."""
    source, target = pools.pool_of(move.source_id), pools.pool_of(move.target_id)
    async with source.transaction() as connection:
        tenant = await read_tenant(connection, move.tenant_id)
        if tenant is None:
            raise RetryableError("the tenant's row has gone from its shard")
        began_at = loop_time()
        await read_positions(connection)
        await read_last_changes(connection, move.tenant_id, tenant.read_at - LAST_ROUND)
        reading_s = loop_time() - began_at
    commit_s = max([await _time_commit(source), await _time_commit(target)])
    standby_s = await time_standbys(pools, commits, move)
    # The changes are read on the source and written on the target, which takes about as long.
    return PredictedPause(standby_s, 2 * reading_s + COMMITS_IN_PAUSE * commit_s)


async def _time_commit(pool: ShardPool) -> float:
    began_at = loop_time()
    async with pool.transaction() as connection:
        await note_server(connection)
    return loop_time() - began_at


SAMPLE_ROWS: Final = 2_000
WRITING_TAKES: Final = 3.0  # times the reading of a sample
PREDICTIONS_MAX: Final = 3  # a single one may meet a slow moment
# Of a row beside its document or result, with its entries in the indexes: PostgreSQL 18 takes 260 to 440 for resources
# of 70 to 1,300 bytes, and 410 for operations, all with random ids.
RESOURCE_BYTES: Final = 400
OPERATION_BYTES: Final = 400


class MovePlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a move would take; times in seconds, estimated from a sample of the rows and from commits.

    *byte_count* is of documents, *disk_bytes* of all rows with indexes; None if rows take long to count.
    """

    tenant: str
    source_shard: str
    target_shard: str
    pause_s: float
    standby_s: float
    goes_on: bool = False
    resources: int | None = None
    byte_count: int | None = None
    operations: int | None = None
    disk_bytes: int | None = None
    duration_s: float | None = None


async def check_shards(locator: Locator, pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    """Raise `PermanentError` if a tenant cannot move between the shards, `RetryableError` if one is silent."""
    known = {shard.shard_id: shard for shard in await locator.list_shards()}
    for shard_id in (source_id, target_id):
        if shard_id not in known:
            names = ", ".join(sorted(known))
            raise PermanentError(f"shard {shard_id} is unknown; choose one of {names}")
        await require_schema(pools.ensure_pool(known[shard_id]))
    target = known[target_id]
    if not target.is_active:
        raise PermanentError(f"shard {target_id} is marked inactive; choose another, or have it activated")
    if isinstance(locator, StaticMap) and target_id in locator.map.retired_ids:
        raise PermanentError(f"shard {target_id} is retired in the map, and takes no tenants; take that back first")
    await check_copy(pools.pool_of(target_id))
    await _check_type(pools, tenant_id, source_id, target_id)


async def _check_type(pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    async with pools.pool_of(source_id).connection() as connection:
        tenant = await read_tenant(connection, tenant_id)
    if tenant is None:
        return  # the move finds out why
    async with pools.pool_of(target_id).connection() as connection:
        missing = await connection.fetch(QUERIES["find_missing_types"], [tenant.business_type])
    if missing:
        raise PermanentError(
            f"shard {target_id} lacks the tenant's business type {tenant.business_type}; write it there with "
            "`simplu-worker types apply`, then move the tenant"
        )


async def check_copy(pool: ShardPool) -> None:
    """Raise `PermanentError` if the role may not write the tables of a shard by COPY."""
    async with pool.connection() as connection:
        if not await connection.fetchval(QUERIES["may_copy_into"]):
            raise PermanentError(
                f"shard {pool.address.shard_id}: COPY needs the role that owns the tables, or one with BYPASSRLS; run "
                "the command with the connection strings of that role"
            )


async def require_schema(pool: ShardPool) -> None:
    """Raise `PermanentError` if a shard is empty, `RetryableError` if it does not answer."""
    shard_id = pool.address.shard_id
    await pool.probe()
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            raise PermanentError(
                f"shard {shard_id} is an empty database; run: simplu-worker shards upgrade {shard_id} --apply"
            )


async def plan_move(
    pools: Pools, commits: ReplicationWaiter, move: Move, *, max_pause_s: float | None = None
) -> MovePlan:
    """Return what *move* would take. Raises `PauseTooLongError` if the pause would be longer than *max_pause_s*."""
    source = pools.pool_of(move.source_id)
    async with source.transaction(budget=StatementBudget.KEY_RANGE) as connection:
        began_at = loop_time()
        end = await find_end(connection, RESOURCES, move.tenant_id, FIRST, SAMPLE_ROWS)
        await connection.fetch(QUERIES["copy_resources"], move.tenant_id, *FIRST, *(end or (None, None)))
        sample_s = loop_time() - began_at
    sizes = await source.count(QUERIES["describe_tenant_size"], move.tenant_id)
    for _ in range(PREDICTIONS_MAX):
        pause = await _predict_pause(pools, commits, move)
        if max_pause_s is None or pause.total_s <= max_pause_s:
            break
    else:
        raise PauseTooLongError(
            f"{move.tenant_id}: expected a pause of at most {max_pause_s:g} s, got {pause.describe(move)}; nothing was "
            f"written, and the tenant stays on shard {move.source_id}; try again with less load, or give a longer "
            "--max-pause"
        )
    plan = MovePlan(move.tenant_id, move.source_id, move.target_id, pause.total_s, pause.standby_s)
    if sizes is None:
        return plan
    (size,) = sizes
    resources, operations = size["resource_count"], size["operation_count"]
    row_s = sample_s / min(SAMPLE_ROWS, max(1, resources)) * WRITING_TAKES
    return replace(
        plan,
        resources=resources,
        byte_count=size["byte_count"],
        operations=operations,
        disk_bytes=(
            size["byte_count"] + resources * RESOURCE_BYTES + size["result_byte_count"] + operations * OPERATION_BYTES
        ),
        duration_s=(resources + operations) * row_s + pause.total_s,
    )
