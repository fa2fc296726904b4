"""Check in a transaction, before something of a shard ends by the time, that its clock and ours agree.

Safe because the check and what follows have the same transaction: a jump of either clock since the last probe counts.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import ClocksApartError
from simplu_worker.timing.clock_agreement import shard_problem

REGISTRATION_MOST: Final = timedelta(seconds=30)  # architecture, idea 7


async def check_clocks(connection: Connection, pool: ShardPool) -> timedelta:
    """Return the age of the transaction. Raises `ClocksApartError` if one of the clocks may be wrong."""
    row = await connection.fetchrow(QUERIES["read_clock"])
    shard_ahead_s = (row["now"] - pool.clock.utc()).total_seconds()
    if (problem := pool.clock.problem or shard_problem(shard_ahead_s, pool.clock.ahead_s)) is not None:
        raise ClocksApartError(f"shard {pool.address.shard_id}: {problem}")
    age: timedelta = row["transaction_age"]
    return age


async def check_registration(connection: Connection, pool: ShardPool) -> None:
    """Check that the start of the transaction may be the `created_at` of its tenants. Raises `RetryableError`.

    Operations that arrived long before it are given up: it must be neither far in the past nor in the future.
    """
    if not timedelta() <= await check_clocks(connection, pool) < REGISTRATION_MOST:
        raise RetryableError("the transaction that inserts tenants took over 30 s")
