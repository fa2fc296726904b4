"""Whether two shards are ready for a move between them, and what one would take; nothing is written."""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import note_server
from simplu_worker.shards.moving.copying import RESOURCES, find_end
from simplu_worker.shards.moving.rows import FIRST
from simplu_worker.shards.moving.types import Move
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import read_schema
from simplu_worker.timing.clock import loop_time

SCHEMA_NEEDED: Final = 3
SAMPLE_ROWS: Final = 2_000
COMMITS_IN_PAUSE: Final = 4  # fence, ready, commit, activation
WRITING_TAKES: Final = 3.0  # times the reading of a sample


class MovePlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a move would take; times in seconds, estimated from a sample of the rows and from commits on both shards."""

    tenant: str
    source_shard: str
    target_shard: str
    resources: int
    byte_count: int
    operations: int
    duration_s: float
    pause_s: float


async def check_shards(locator: Locator, pools: Pools, source_id: str, target_id: str) -> None:
    """Raise `PermanentError` if no tenant can move from one shard to the other, `RetryableError` if one is silent."""
    known = {shard.shard_id: shard for shard in await locator.list_shards()}
    for shard_id in (source_id, target_id):
        if shard_id not in known:
            names = ", ".join(sorted(known))
            raise PermanentError(f"shard {shard_id}: expected one of {names}, got a shard that is unknown")
        await check_schema_version(pools.ensure_pool(known[shard_id]))
    target = known[target_id]
    if not target.is_active:
        raise PermanentError(f"shard {target_id}: expected an active shard, got one that is marked inactive")
    await check_copy(pools.pool_of(target_id))
    if isinstance(locator, CitrusClient):
        capacity = await locator.fetch_capacity(target_id)
        if capacity is not None and capacity.accepts_new is False:
            raise PermanentError(
                f"shard {target_id}: expected room for a tenant, got a full shard "
                f"({capacity.tenant_count} of {capacity.tenant_max}); raise maxBusinesses in Citrus, or choose another"
            )


async def check_copy(pool: ShardPool) -> None:
    """Raise `PermanentError` if the role may not write the tables of a shard by COPY."""
    async with pool.connection() as connection:
        if not await connection.fetchval(QUERIES["may_copy_into"]):
            raise PermanentError(
                f"shard {pool.address.shard_id}: expected the role that owns the tables, or one with BYPASSRLS, got "
                "another role; COPY needs it: run the command with the connection strings of that role"
            )


async def check_schema_version(pool: ShardPool) -> None:
    """Raise `PermanentError` if a shard has not the schema that moves need, `RetryableError` if it does not answer."""
    shard_id = pool.address.shard_id
    await pool.probe()
    async with pool.connection() as connection:
        schema = await read_schema(connection, shard_id)
    if schema is None or schema.version is None:
        raise PermanentError(f"shard {shard_id}: expected our schema, got an empty database; provision a tenant there")
    if schema.version < SCHEMA_NEEDED:
        raise PermanentError(
            f"shard {shard_id}: expected schema version {SCHEMA_NEEDED} or newer, got {schema.version}; "
            f"run: simplu-worker shards upgrade {shard_id} --apply"
        )


async def plan_move(pools: Pools, move: Move) -> MovePlan:
    """Return what *move* would take."""
    source, target = pools.pool_of(move.source_id), pools.pool_of(move.target_id)
    async with source.transaction(budget=StatementBudget.KEY_RANGE) as connection:
        size = await connection.fetchrow(QUERIES["describe_tenant_size"], move.tenant_id)
        began_at = loop_time()
        end = await find_end(connection, RESOURCES, move.tenant_id, FIRST, SAMPLE_ROWS)
        await connection.fetch(QUERIES["copy_resources"], move.tenant_id, *FIRST, *(end or (None, None)))
        sample_s = loop_time() - began_at
    if size is None:
        raise RetryableError("the tenant's row has gone from its shard")
    row_count = size["resource_count"] + size["operation_count"]
    sampled = min(SAMPLE_ROWS, max(1, size["resource_count"]))
    commit_s = max([await _time_commit(source), await _time_commit(target)])
    return MovePlan(
        move.tenant_id,
        move.source_id,
        move.target_id,
        size["resource_count"],
        size["byte_count"],
        size["operation_count"],
        duration_s=row_count / sampled * sample_s * WRITING_TAKES + 2 * COMMITS_IN_PAUSE * commit_s,
        pause_s=2 * COMMITS_IN_PAUSE * commit_s,
    )


async def _time_commit(pool: ShardPool) -> float:
    began_at = loop_time()
    async with pool.transaction() as connection:
        await note_server(connection)
    return loop_time() - began_at
