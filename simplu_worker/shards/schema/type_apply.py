"""Plan and apply the business types of a folder on one shard while workers run (`types apply`).

Safe under load: a replaced view keeps its readers' grants, and is locked until the commit, some milliseconds later; a
lock is waited for no longer than `UPGRADE_TIMEOUTS` say. It and upgrades of the shard exclude each other by the
advisory lock of the schema.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping

import structlog

from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.migrations import pause_s
from simplu_worker.shards.schema.schema_check import read_schema
from simplu_worker.shards.schema.type_files import TypeFile
from simplu_worker.shards.schema.type_plan import TypesPlan, plan_types
from simplu_worker.shards.schema.type_store import read_types, write_types
from simplu_worker.shards.schema.upgrade import Upgrader
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

log = structlog.get_logger(__name__)


async def plan_on(pool: ShardPool, files: Mapping[str, TypeFile], *, remove: Collection[str]) -> TypesPlan | None:
    """Return the plan of `types apply` for one shard; None if its database is empty. Raises `RetryableError`."""
    async with pool.connection() as connection:
        if await read_schema(connection, pool.address.shard_id) is None:
            return None
        return plan_types(await read_types(connection, files.values()), files, remove=remove)


async def apply_types(
    pool: ShardPool,
    files: Mapping[str, TypeFile],
    *,
    remove: Collection[str],
    patience_s: float,
    draw: Callable[[], float] = random.random,
) -> TypesPlan | None:
    """Carry out the plan of `types apply` on one shard, and return it; None if its database is empty. Idempotent.

    Raises `ShardUnavailableError` when the shard does not answer, or a lock is not available for *patience_s*.
    """
    started, tries = loop_time(), 0
    while True:
        tries += 1
        try:
            plan = await _apply_once(pool, files, remove)
            break
        except LostRaceError as exc:
            if loop_time() - started >= patience_s:
                raise ShardUnavailableError(
                    f"shard {pool.address.shard_id}: expected its locks within {patience_s:.0f} s, got none: {exc}; "
                    "end the session that holds one, such as a reader of a view, or run the command again later"
                ) from exc
        await asyncio.sleep(pause_s(tries, draw=draw()))
    if plan is not None and plan.index_statements and not plan.refusals:
        await Upgrader(pool, patience_s=patience_s).run_text(";\n".join(plan.index_statements))
    return plan


async def _apply_once(pool: ShardPool, files: Mapping[str, TypeFile], remove: Collection[str]) -> TypesPlan | None:
    shard_id = pool.address.shard_id
    async with pool.transaction() as connection:
        if await read_schema(connection, shard_id) is None:
            return None
        if not await connection.fetchval(QUERIES["try_lock_schema"]):
            raise LostRaceError(f"an upgrade of shard {shard_id}, or another `types apply`, is under way")
        plan = await write_types(connection, files, remove=remove)
    if plan.is_needed and not plan.refusals:
        log.info("schema.types_applied", shard_id=shard_id, written=plan.to_write, removed=plan.to_remove)
    return plan
