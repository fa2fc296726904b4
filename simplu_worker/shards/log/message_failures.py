"""How often the operations of messages have failed, counted on the shard of their tenant.

Why exact: the count is a row of its own transaction, made after the failed try. A process that is killed between two
tries loses nothing, and another replica goes on counting; one that is killed during a try counts nothing, because the
operation did not fail. An operation that never fails costs no statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, TypeAlias

from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES

KEPT_FOR: Final = timedelta(days=15)  # SQS keeps a message for 14 days at most

MessageKey: TypeAlias = tuple[str, str]  # the tenant's id and the message's id


async def count_failures(pool: ShardPool, failed: Sequence[MessageKey]) -> list[int | None]:
    """Count one failure more of each message; return their numbers by now.

    A message whose tenant lives on another shard by now has no number. Raises `RetryableError` when the shard does not
    answer: whether they were counted is then unknown.
    """
    async with pool.connection() as connection:
        tenant_ids, message_ids = zip(*failed, strict=True)
        rows = await connection.fetch(QUERIES["count_failures"], list(tenant_ids), list(message_ids))
    counts = {(row["tenant_id"], row["message_id"]): int(row["failure_count"]) for row in rows}
    return [counts.get(key) for key in failed]


async def forget_failures(pool: ShardPool, message: MessageKey) -> None:
    """Delete the count of one message. Raises `RetryableError` when the shard does not answer."""
    async with pool.connection() as connection:
        await connection.execute(QUERIES["forget_failures"], *message)


async def forget_failures_of_tenant(connection: Connection, tenant_id: str) -> None:
    """Delete the counts of all messages of a tenant."""
    await connection.execute(QUERIES["forget_failures_of_tenant"], tenant_id)


async def forget_old_failures(connection: Connection, max_rows: int) -> None:
    """Delete at most *max_rows* counts of messages that no queue can still have."""
    await connection.execute(QUERIES["forget_old_failures"], KEPT_FOR.total_seconds(), max_rows)
