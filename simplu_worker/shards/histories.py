"""Delete the versions of resources that are older than the days of their history, on all shards of *pools*.

Each shard's table is read once an hour, in the order of its key, by small statements with long pauses.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, TypeAlias

from simplu_worker.operations.retention_rules import deletion_pause_s
from simplu_worker.shards.log import on_each_shard
from simplu_worker.shards.postgres.errors import StatementFailedError, fewer_after
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.timing.waits import repeat_every

TURN_S: Final = 3600.0
STATEMENT_ROWS: Final = 2000

Place: TypeAlias = tuple[int, int, str, int]  # numbers of tenant and type, the key of a resource, a version
BEGIN: Final[Place] = (-1, -1, "", -1)


class HistoryRetention:
    """The retention of the histories on all shards of *pools*."""

    def __init__(self, pools: Pools, *, statement_rows: int = STATEMENT_ROWS) -> None:
        self._pools = pools
        self._statement_rows = statement_rows

    async def run(self) -> None:
        """Take turns until cancelled, one an hour."""
        await repeat_every(TURN_S, self.take_turn)

    async def take_turn(self) -> dict[str, int]:
        """Read all versions once; return how many were deleted, by shard id."""
        return await on_each_shard(self._pools, "histories", self._forget_old)

    async def _forget_old(self, pool: ShardPool) -> int:
        place: Place | None = BEGIN
        count, limit = 0, self._statement_rows
        while place is not None and pool.is_healthy:
            started = time.monotonic()
            try:
                async with pool.transaction() as connection:
                    if not await has_schema(connection, pool):
                        break
                    row = await connection.fetchrow(QUERIES["forget_versions"], *place, limit)
            except StatementFailedError as exc:
                limit = fewer_after(exc, limit)
                continue
            place = None if row is None else (row["tenant_no"], row["type_no"], row["resource"], row["version"])
            count += 0 if row is None else row["row_count"]
            await asyncio.sleep(deletion_pause_s(time.monotonic() - started))
        return count
