"""The business types that a tenant can have: those of the shards, and those of the package."""

from __future__ import annotations

from typing import Final

from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES

READ_MAX: Final = 10_000  # of one shard


async def find_known_types(locator: Locator, pools: Pools) -> list[str]:
    """Return the types that a shard which answers has, and those that an empty one gets. Raises as *locator* does."""
    found = await fetch_from_all_shards(locator, pools, QUERIES["name_types"], READ_MAX)
    return sorted({row["name"] for _, row in found.rows} | BUSINESS_TYPES.keys())
