"""The role of the router's readers, as docs/reading.md has it for a site that serves many tenants."""

from __future__ import annotations

from collections.abc import Sequence

from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.pool import ShardPool

READER = "router_reader"


async def make_reader(pool: ShardPool, *others: ShardPool) -> None:
    """Make the role on the server of *pool*, for that shard and *others* there."""
    await fetch(pool, f"CREATE ROLE {READER} LOGIN")
    for one in (pool, *others):
        await fetch(one, f"GRANT SELECT ON resources, operations, tenants TO {READER}")


async def drop_reader(pools: Sequence[ShardPool]) -> None:
    for pool in pools:
        await fetch(pool, f"DROP OWNED BY {READER}")
    await fetch(pools[0], f"DROP ROLE {READER}")
