"""How many tenants more the shards take, by the answers of Citrus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Capacity, Locator

REQUESTS_AT_ONCE: Final = 16


async def fetch_capacities(locator: Locator, shard_ids: Collection[str]) -> dict[str, Capacity]:
    """Ask Citrus for the capacities of all shards at once; those without an answer are left out, without Citrus all."""
    found: dict[str, Capacity] = {}
    if not isinstance(locator, CitrusClient):
        return found
    at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def fetch(shard_id: str) -> None:
        async with at_once:
            with contextlib.suppress(RetryableError):  # each move asks again
                if (capacity := await locator.fetch_capacity(shard_id)) is not None:
                    found[shard_id] = capacity

    async with asyncio.TaskGroup() as tasks:
        for shard_id in sorted(shard_ids):
            tasks.create_task(fetch(shard_id), name=f"capacity:{shard_id}")
    return found


def room_of(capacity: Capacity) -> int | None:
    """Return how many tenants more a shard takes; None where Citrus has no limit. Pure."""
    if capacity.accepts_new is False:
        return 0
    if capacity.tenant_max is None or capacity.tenant_count is None:
        return None
    return max(1 if capacity.accepts_new else 0, capacity.tenant_max - capacity.tenant_count)


def check_room(shard_id: str, capacity: Capacity | None, *, coming_count: int = 0) -> None:
    """Raise `PermanentError` unless a shard takes another tenant beside *coming_count* that are to come. Pure."""
    room = None if capacity is None else room_of(capacity)
    if capacity is None or room is None or room > coming_count:
        return
    coming = f", and {coming_count} are to move there before" if coming_count else ""
    raise PermanentError(
        f"shard {shard_id}: expected room for a tenant, got a full shard "
        f"({capacity.tenant_count} of {capacity.tenant_max}{coming}); raise maxBusinesses in Citrus, or choose another"
    )
