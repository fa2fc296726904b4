"""Follow shards to other addresses: a pool uses one once the shard was found there, and takes writes.

A locator may name a wrong address, and a standby may have been promoted or not: an address that does not lead to the
shard is refused, and tried again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import contain
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import check_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.waits import run_at_once
from simplu_worker.vocabulary import TargetKind

TRIALS_AT_ONCE: Final = 16

log = structlog.get_logger(__name__)


async def find_addresses(locator: Locator, pools: Pools) -> None:
    """Give the pools the present addresses of their shards, as far as the locator answers."""
    with contextlib.suppress(WorkerError):
        listed = await locator.list_shards()
        for shard in listed:
            with contextlib.suppress(WorkerError):  # an address that may not be used
                pools.ensure_pool(shard)
        await follow_shards(pools, listed)


async def follow_shards(pools: Pools, listed: Sequence[ShardAddress]) -> None:
    """Try the other addresses of *listed* shards, where there are any."""

    async def follow(shard: ShardAddress) -> None:
        with contain(TargetKind.SHARD, shard.shard_id, "address"):
            if (pool := pools.by_shard_id().get(shard.shard_id)) is not None:
                await _follow(pool, shard)

    await run_at_once(follow, listed, most=TRIALS_AT_ONCE)


async def _follow(pool: ShardPool, listed: ShardAddress) -> None:
    address = pool.address.successor(listed, is_healthy=pool.is_healthy)
    is_standby = pool.address.connection_string in {listed.connection_string, listed.standby_string}
    if address is None or (is_standby and await _takes_writes(pool)):
        return
    try:
        if pool.was_found or is_standby:
            await _check(address)
    except RetryableError as exc:
        # The pool of the trial has set the gauge, for an address that is not in use.
        instruments.SHARD_HEALTHY.labels(address.shard_id).set(pool.is_healthy)
        log.warning("shard.address_refused", shard_id=address.shard_id, place=address.place, error=str(exc))
        return
    if not pool.is_retired:
        pool.switch_to(address)
        await _takes_writes(pool)  # the pool's health shows the result


async def _takes_writes(pool: ShardPool) -> bool:
    try:
        await pool.probe()
    except RetryableError:
        return False
    return True


async def _check(address: ShardAddress) -> None:
    # A pool of its own: an error of the trial must not count against the pool in use.
    async with ShardPool(address, size=1).fresh_connection() as connection:
        if await check_schema(connection, address.shard_id) is None:
            raise ShardUnavailableError(f"shard {address.shard_id}: the database at {address.place} is empty")
        if await connection.fetchval(QUERIES["is_read_only"]):
            raise ShardUnavailableError(f"shard {address.shard_id}: the server at {address.place} is read-only")
