"""How many businesses more the shards take, by the answers of Citrus."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, TypeAlias

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Capacity, Locator
from simplu_worker.transfers.moving.situation import LEAVING

REQUESTS_AT_ONCE: Final = 16

CapacityAnswer: TypeAlias = Capacity | RetryableError | PermanentError | None
"""The answer of Citrus about one shard, or why there is none; None without a limit."""


async def fetch_capacities(locator: Locator, shard_ids: Collection[str]) -> dict[str, CapacityAnswer]:
    """Ask Citrus for the capacities of all shards at once; without Citrus there are no limits."""
    found: dict[str, CapacityAnswer] = dict.fromkeys(shard_ids)
    if not isinstance(locator, CitrusClient):
        return found
    at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def fetch(shard_id: str) -> None:
        async with at_once:
            try:
                found[shard_id] = await locator.fetch_capacity(shard_id)
            except (RetryableError, PermanentError) as exc:
                found[shard_id] = exc

    async with asyncio.TaskGroup() as tasks:
        for shard_id in sorted(shard_ids):
            tasks.create_task(fetch(shard_id), name=f"capacity:{shard_id}")
    return found


async def has_business(pool: ShardPool, business_id: str) -> bool:
    """Return whether a shard is the home of a location of a business, so that Citrus counts it there already."""
    async with pool.connection() as connection:
        rows = await connection.fetch(QUERIES["find_locations"], business_id)
    return any(row["state"] in LEAVING for row in rows)


def room_of(capacity: Capacity) -> int | None:
    """Return how many businesses more a shard takes; None where Citrus has no limit. Pure."""
    if capacity.accepts_new is False:
        return 0
    if capacity.business_max is None or capacity.business_count is None:
        return None
    return max(1 if capacity.accepts_new else 0, capacity.business_max - capacity.business_count)


def check_room(shard_id: str, answer: CapacityAnswer, *, coming_count: int = 0, is_counted: bool = False) -> None:
    """Raise `PermanentError` unless a shard takes another business beside *coming_count* that are to come. Pure.

    One that *is_counted* there, or among these, needs no room. Raises the error where Citrus has not answered.
    """
    if isinstance(answer, RetryableError | PermanentError):
        raise answer
    room = None if answer is None else room_of(answer)
    if is_counted or answer is None or room is None or room > coming_count:
        return
    coming = f", and {coming_count} are to move there before" if coming_count else ""
    raise PermanentError(
        f"shard {shard_id}: expected room for a business, got a full shard "
        f"({answer.business_count} of {answer.business_max}{coming}); raise maxBusinesses in Citrus, or choose another"
    )
