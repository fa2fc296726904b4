"""The business types that a tenant can have: those of the shards, and those of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES

READ_MAX: Final = 10_000  # of one shard


async def find_known_types(locator: Locator, pools: Pools) -> dict[str, Mapping[str, str]]:
    """Return the types that a shard which answers has, and those that an empty one gets, by name; raise as *locator*.

    Each with its `stored_names`.
    """
    found = await fetch_from_all_shards(locator, pools, QUERIES["name_types"], READ_MAX)
    known = {name: file.type.stored_names for name, file in BUSINESS_TYPES.items()}
    known |= {row["name"]: msgspec.json.decode(row["stored_names"]) for _, row in found.rows}
    return dict(sorted(known.items()))
