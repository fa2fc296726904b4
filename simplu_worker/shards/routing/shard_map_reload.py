"""Replace the shard map of a running worker when SIGHUP reports a changed file; an invalid map changes nothing.

Why no tenant is split: a tenant's home is the shard that has its row, whatever the map contains, and its possible homes
by the new map are asked before the tenant is made again. A shard is removed only if it was retired in the old map, so
that no worker with that map makes tenants there, and if it confirms that it has none. After that the shard is never
written to: batches in flight end, and later operations are held as those of tenants on no shard.
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
from simplu_worker.shards.routing.directory import HOME_STATES, Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, first_problems
from simplu_worker.shards.routing.shard_map_changes import change_of, refusals_of
from simplu_worker.shards.routing.shard_query import fetch_from_shard, query_all_shards
from simplu_worker.vocabulary import ShardMapOutcome

ROUTES_PER_STEP: Final = 500  # about two milliseconds, then other tasks run

log = structlog.get_logger(__name__)


async def log_unused_reloads(wanted: asyncio.Event) -> None:
    """Log at each *wanted* reload that there is no map file: a SIGHUP must not end the process."""
    while True:
        await wanted.wait()
        wanted.clear()
        log.info("shard_map.unused")


class ShardMapReloader:
    """Replaces the map of *static_map* by the one that *read* returns."""

    def __init__(self, read: Callable[[], ShardMap], static_map: StaticMap, directory: Directory, pools: Pools) -> None:
        """*read* raises `ConfigurationError`; it is called in a thread."""
        self._read = read
        self._static_map = static_map
        self._directory = directory
        self._pools = pools

    def __repr__(self) -> str:
        return f"ShardMapReloader({len(self._static_map.map.shards)} shards)"

    async def run(self, wanted: asyncio.Event) -> None:
        """Reload at each event *wanted*, one reload at a time, until cancelled."""
        async with asyncio.TaskGroup() as drains:
            while True:
                await wanted.wait()
                wanted.clear()  # before the read: a change during the read is read again
                for pool in await self.reload():
                    drains.create_task(pool.drain(), name=f"drain:{pool.address.shard_id}")

    async def reload(self) -> list[ShardPool]:
        """Read the map and use it, or log why not; return the pools of the removed shards, to be drained."""
        try:
            new = await asyncio.to_thread(self._read)
            await self._check(new)
        except ConfigurationError as exc:
            problems = list(exc.problems)
        else:
            return await self._apply(new)
        instruments.SHARD_MAP_RELOADS.labels(ShardMapOutcome.REFUSED).inc()
        log.error("shard_map.refused", problems=problems)
        return []

    async def _check(self, new: ShardMap) -> None:
        """Raise `ConfigurationError` if *new* may not replace the present map."""
        old = self._static_map.map
        problems = refusals_of(old, new) or await self._find_obstacles(change_of(old, new).removed)
        if new.all_in_place:
            problems += await self._find_displaced(new)
        if problems:
            raise ConfigurationError(*(f"SHARD_MAP_FILE: {problem}" for problem in problems))

    async def _find_obstacles(self, removed: Sequence[MappedShard]) -> list[str]:
        """Ask the shards to be removed for their tenants; return why they may not be removed."""

        async def count_tenants(address: ShardAddress) -> int:
            rows = await fetch_from_shard(self._pools.ensure_pool(address), QUERIES["count_living_tenants"])
            return sum(row["count"] for row in rows)

        counts = await query_all_shards([self._static_map.address_of(shard) for shard in removed], count_tenants)
        silent = [
            f"shard {shard.shard_id}: expected, as it gave no answer about its tenants; "
            "list it until it answers, or restart the worker to remove it without its answer"
            for shard in removed
            if shard.shard_id not in counts
        ]
        return silent + [
            f"shard {shard_id}: expected, as it has {count} tenants; list it, retired, until they are moved"
            for shard_id, count in counts.items()
            if count
        ]

    async def _find_displaced(self, new: ShardMap) -> list[str]:
        """Ask all shards for their tenants; return those that have no row where *new* places them.

        Of shards that do not answer the map is a person's word.
        """

        async def list_tenants(address: ShardAddress) -> dict[str, str]:
            rows = await fetch_from_shard(self._pools.ensure_pool(address), QUERIES["list_tenants"])
            return {row["id"]: row["state"] for row in rows}

        known = self._static_map.known_shards()
        states = await query_all_shards(known, list_tenants)
        silent = {shard.shard_id for shard in known} - states.keys()

        def find() -> list[str]:
            return [
                f"allInPlace: tenant {tenant_id} is on shard {shard_id}, and has no row on shard {place}, where the map"
                f" places it; pin it to {shard_id}, or leave allInPlace out"
                for shard_id, tenants in states.items()
                for tenant_id, state in tenants.items()
                if state in HOME_STATES
                and (place := new.shard_of(tenant_id).shard_id) not in silent
                and tenant_id not in states.get(place, ())
            ]

        return first_problems(await asyncio.to_thread(find))

    async def _apply(self, new: ShardMap) -> list[ShardPool]:
        change = self._static_map.replace(new)
        removed = {shard.shard_id for shard in change.removed}
        pools = self._pools.retire(removed)  # without an await since the change: no operation is sent there any more
        self._pools.restore(shard.shard_id for shard in change.added)
        self._directory.apply_map_change(removed)
        for shard in change.readdressed:
            address = self._static_map.address_book.known_address(shard.shard_id)
            if address is not None and shard.shard_id in self._pools.by_shard_id():
                self._pools.switch_pool(address)  # the new address, unless it is a candidate that has to be tried first
        instruments.SHARD_MAP_RELOADS.labels(ShardMapOutcome.APPLIED).inc()
        log.info(
            "shard_map.reloaded",
            shard_count=len(new.shards),
            pin_count=len(new.tenants),
            added=[shard.shard_id for shard in change.added],
            readdressed=[shard.shard_id for shard in change.readdressed],
            left=sorted(removed),
            moved_route_count=await self._mark_moved_routes_due(),
        )
        return pools

    async def _mark_moved_routes_due(self) -> int:
        """Mark the routes that differ from the new map as due for a refresh; return their number."""
        routes, shard_map = self._directory.routes, self._static_map.map
        count = 0
        for number, (tenant_id, shard_id) in enumerate(routes.items(), start=1):
            if shard_map.shard_of(tenant_id).shard_id != shard_id:
                routes.mark_due(tenant_id)
                count += 1
            if number % ROUTES_PER_STEP == 0:
                await asyncio.sleep(0)
        return count
