"""The rejected records of a shard's tenants: a row each, found by request id.

The row is written beside the dead letter, once, and by nothing else: it decides about no operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import Rejection


async def note_rejections(pool: ShardPool, dead_letter_queue: str, rejections: Sequence[Rejection]) -> dict[str, str]:
    """Write the rows of *rejections* of tenants that live on the shard, the last one for each key.

    Return the businesses of the tenants with these ids that live there. Raises `RetryableError` when the shard does not
    answer.
    """
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return {}
        own = await connection.fetch(QUERIES["note_rejections"], dead_letter_queue, *_columns(rejections))
    return {row["id"]: row["business_id"] for row in own}


async def note_unplaced_rejections(pool: ShardPool, dead_letter_queue: str, rejections: Sequence[Rejection]) -> bool:
    """Write the rows of *rejections* of tenants without a home; return False where the shard has no room for them.

    Raises `RetryableError` when the shard does not answer.
    """
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return False
        return bool(
            await connection.fetch(QUERIES["note_unplaced_rejections"], dead_letter_queue, *_columns(rejections))
        )


def _columns(rejections: Sequence[Rejection]) -> list[list[str | None]]:
    """Return the columns of the last rejection for each key."""
    rows = {(one.tenant_id, one.business_id, one.request_id): one for one in rejections}.values()
    names = ("tenant_id", "business_id", "request_id", "reason", "error", "source", "sequence_number", "message_id")
    return [[getattr(row, name) for row in rows] for name in names]


async def find_rejections(pool: ShardPool, query: str, *arguments: object) -> list[dict[str, Any]]:
    """Return the rows of one of the queries of rejections.

    Raises `RetryableError` when the shard does not answer.
    """
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        return [dict(row) for row in await connection.fetch(QUERIES[query], *arguments)]


async def forget_rejections_of_tenant(connection: Connection, tenant_id: str, max_rows: int) -> None:
    """Delete at most *max_rows* rows of a tenant; the retention deletes the others with the tenant's log."""
    await connection.execute(QUERIES["forget_rejections_of_tenant"], tenant_id, max_rows)


async def forget_old_rejections(connection: Connection, retention: timedelta, max_rows: int) -> int:
    """Delete at most *max_rows* rows of each table that are older than *retention*; return the higher number."""
    arguments = retention.total_seconds(), max_rows
    of_tenants = affected_count(await connection.execute(QUERIES["forget_old_rejections"], *arguments))
    unplaced = affected_count(await connection.execute(QUERIES["forget_old_unplaced_rejections"], *arguments))
    return max(of_tenants, unplaced)
