"""Find the values that Postgres cannot store in any table: by a cast of each alone, without the owner's table."""

from __future__ import annotations

from collections.abc import Sequence

from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES


async def find_unstorable(pool: ShardPool, texts: Sequence[str | None]) -> list[int]:
    """Return the indexes of the texts that cannot be stored as jsonb.

    Returns none where the statement fails as a whole: what failed was not the cast of one text. Raises
    `ShardUnavailableError`.
    """
    try:
        async with pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_unstorable"], texts)
    except StatementFailedError as exc:
        if exc.is_timeout:
            raise
        return []
    return [row["position"] for row in rows]
