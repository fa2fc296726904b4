"""Go by another shard map while at work, when SIGHUP says that its file has changed; a bad one changes nothing.

Why no tenant is split by it: who has a row somewhere lives there, whatever the map says, and its earlier homes by the
new map are asked before it is made anew. A shard leaves only when it took no new tenants before, in any worker that
goes by the map of before, and says that it has none. From then on it is never written to: what is in flight there ends,
and what comes later is told that nobody lives there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from simplu_worker.errors import ConfigurationError
from simplu_worker.metrics import instruments
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.routing.shard_map_changes import change_of, refusals_of
from simplu_worker.shards.routing.shard_query import query_all_shards
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema

ROUTES_PER_STEP: Final = 500  # about two milliseconds, then the event loop gets its turn

log = structlog.get_logger(__name__)


async def log_unused_reloads(wanted: asyncio.Event) -> None:
    """Say, whenever a reload is *wanted*, that there is nothing to read; a hangup must not end the process."""
    while True:
        await wanted.wait()
        wanted.clear()
        log.info("shard_map.unused")


class ShardMapReloader:
    """Puts the map that *read* returns in the place of the one that *static_map* goes by."""

    def __init__(self, read: Callable[[], ShardMap], static_map: StaticMap, directory: Directory, pools: Pools) -> None:
        """*read* raises `ConfigurationError`; it is called in a thread."""
        self._read = read
        self._static_map = static_map
        self._directory = directory
        self._pools = pools

    def __repr__(self) -> str:
        return f"ShardMapReloader({len(self._static_map.map.shards)} shards)"

    async def run(self, wanted: asyncio.Event) -> None:
        """Reload whenever that is *wanted*, one after another, until cancelled."""
        async with asyncio.TaskGroup() as drains:
            while True:
                await wanted.wait()
                wanted.clear()  # first: a file that changes while it is read is read again
                for pool in await self.reload():
                    drains.create_task(pool.drain(), name=f"drain:{pool.address.shard_id}")

    async def reload(self) -> list[ShardPool]:
        """Read the map and go by it, or log why not; return the pools of the shards that left, to be drained."""
        try:
            new = await asyncio.to_thread(self._read)
            await self._check(new)
        except ConfigurationError as exc:
            problems = list(exc.problems)
        else:
            return await self._apply(new)
        instruments.SHARD_MAP_RELOADS.labels("refused").inc()
        log.error("shard_map.refused", problems=problems)
        return []

    async def _check(self, new: ShardMap) -> None:
        """Raise `ConfigurationError` when *new* may not take the place of the map of now."""
        old = self._static_map.map
        problems = refusals_of(old, new) or await self._find_obstacles(change_of(old, new).removed)
        if problems:
            raise ConfigurationError(*(f"SHARD_MAP_FILE: {problem}" for problem in problems))

    async def _find_obstacles(self, left: Sequence[MappedShard]) -> list[str]:
        """Ask shards that are to leave for their tenants; return what there is against it."""

        async def ask(address: ShardAddress) -> int:
            async with self._pools.ensure_pool(address).connection() as connection:
                if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                    return 0
                return int(await connection.fetchval(QUERIES["count_living_tenants"]))

        book = self._static_map.address_book
        counts = await query_all_shards([book.known_address(shard.shard_id) or shard.address for shard in left], ask)
        silent = [
            f"shard {shard.shard_id}: expected, as it does not say that it has no tenants; "
            "list it until it answers, or start the worker anew to go without it unasked"
            for shard in left
            if shard.shard_id not in counts
        ]
        return silent + [
            f"shard {shard_id}: expected, as it has {count} tenants; list it, retired, until they are moved"
            for shard_id, count in counts.items()
            if count
        ]

    async def _apply(self, new: ShardMap) -> list[ShardPool]:
        change = self._static_map.replace(new)
        left = {shard.shard_id for shard in change.removed}
        pools = self._pools.retire(left)  # in one step with the change: nobody is sent there any more
        self._pools.restore(shard.shard_id for shard in change.added)
        self._directory.apply_map_change(left)
        for shard in change.readdressed:
            address = self._static_map.address_book.known_address(shard.shard_id)
            if address is not None and shard.shard_id in self._pools.by_shard_id():
                self._pools.ensure_pool(address)  # the new one, unless it is to be tried first
        instruments.SHARD_MAP_RELOADS.labels("applied").inc()
        log.info(
            "shard_map.reloaded",
            shard_count=len(new.shards),
            pin_count=len(new.tenants),
            added=[shard.shard_id for shard in change.added],
            readdressed=[shard.shard_id for shard in change.readdressed],
            left=sorted(left),
            moved_route_count=await self._mark_moved_routes_due(),
        )
        return pools

    async def _mark_moved_routes_due(self) -> int:
        """Have those asked for soon whom the map has somewhere else than where they were found; return how many."""
        routes, shard_map = self._directory.routes, self._static_map.map
        count = 0
        for number, (tenant_id, shard_id) in enumerate(routes.items(), start=1):
            if shard_map.shard_of(tenant_id).shard_id != shard_id:
                routes.mark_due(tenant_id)
                count += 1
            if number % ROUTES_PER_STEP == 0:
                await asyncio.sleep(0)
        return count
