"""Follow the shards: list them, try the addresses that they may have, and replace the shard map at SIGHUP.

Why no new map splits a tenant: its home is the shard that has its row, and its possible homes by the new map are asked
before it is made again. A shard is removed only if it was retired in the old map and confirms that it has no tenants;
it is never written to again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from simplu_worker import instruments
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import HOME_STATES
from simplu_worker.shards.routing.following import follow_shards
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.routing.route_cache import RouteCache
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, change_of, first_problems, refusals_of
from simplu_worker.shards.routing.shard_query import fetch_from_shard, query_all_shards
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import backoff_s, jittered, shared_pause_s
from simplu_worker.vocabulary import ReloadOutcome

TICK_S: Final = 0.25
CALM_S: Final = 60.0  # between two lists, while all is well
JITTER: Final = 0.2  # of CALM_S, to either side
TROUBLE_BASE_S: Final = 0.5  # while a shard does not answer, or Citrus named none
TROUBLE_MAX_S: Final = 2.0

log = structlog.get_logger(__name__)


class ShardWatch:
    """Lists the shards of *locator*, and follows those that are at another address."""

    def __init__(
        self, locator: Locator, pools: Pools, routes: RouteCache, *, clock: Callable[[], float] = loop_time
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._routes = routes
        self._clock = clock
        self._listed_at = float("-inf")
        self._lists_in_trouble = 0
        self._draw = 0.0

    async def run(self) -> None:
        """List shards and follow them until cancelled."""
        while True:
            await self.list_when_due()
            await asyncio.sleep(shared_pause_s(self._clock(), TICK_S))

    async def list_when_due(self) -> None:
        """List the shards if it is time, and take over the list.

        Pools follow their shards, inactive ones lose their routes, and silent ones that are not listed any more are
        retired.
        """
        now = self._clock()
        if now < self._listed_at + self._pause_s():
            return
        self._listed_at, self._draw = now, random.random()
        self._lists_in_trouble += 1
        try:
            shards = await self._locator.list_shards()
        except (RetryableError, PermanentError):
            return  # the last list stays
        self._routes.remove_shards({shard.shard_id for shard in shards if not shard.is_active})
        silent = {shard_id for shard_id, pool in self._pools.by_shard_id().items() if not pool.is_healthy}
        listed = {shard.shard_id for shard in shards}
        self._pools.restore(listed)
        for pool in self._pools.retire(silent - listed):
            log.info("shard.removed", shard_id=pool.address.shard_id)
            await pool.close()
        await follow_shards(self._pools, shards)

    def _pause_s(self) -> float:
        are_all_well = all(pool.is_healthy for pool in self._pools.by_shard_id().values())
        if are_all_well and self._locator.inability is None:
            self._lists_in_trouble = 0
            return jittered(CALM_S, ratio=JITTER, draw=self._draw)
        if not self._lists_in_trouble:
            return 0.0
        return backoff_s(self._lists_in_trouble, draw=self._draw, base_s=TROUBLE_BASE_S, max_s=TROUBLE_MAX_S)


class ShardMapReloader:
    """Replaces the map of *static_map* by the one that *read* returns."""

    def __init__(self, read: Callable[[], ShardMap], static_map: StaticMap, pools: Pools, routes: RouteCache) -> None:
        """*read* raises `ConfigurationError`; it is called in a thread."""
        self._read = read
        self._static_map = static_map
        self._pools = pools
        self._routes = routes

    async def run(self, wanted: asyncio.Event) -> None:
        """Reload at each event *wanted*, one reload at a time, until cancelled."""
        async with asyncio.TaskGroup() as drains:
            while True:
                await wanted.wait()
                wanted.clear()  # before the read: a change during the read is read again
                for pool in await self.reload():
                    drains.create_task(pool.drain(), name=f"drain:{pool.address.shard_id}")

    async def reload(self) -> list[ShardPool]:
        """Read the map and use it, or log why not; return the pools of removed shards."""
        try:
            new = await asyncio.to_thread(self._read)
            await self._check(new)
        except ConfigurationError as exc:
            problems = list(exc.problems)
        else:
            return await self._apply(new)
        instruments.SHARD_MAP_RELOADS.labels(ReloadOutcome.REFUSED).inc()
        log.error("shard_map.refused", problems=problems)
        return []

    async def _check(self, new: ShardMap) -> None:
        old = self._static_map.map
        problems = refusals_of(old, new) or await self._find_obstacles(change_of(old, new).removed)
        if new.all_in_place:
            problems += await self._find_displaced(new)
        if problems:
            raise ConfigurationError(*(f"SHARD_MAP_FILE: {problem}" for problem in problems))

    async def _find_obstacles(self, removed: Sequence[MappedShard]) -> list[str]:

        async def count_tenants(address: ShardAddress) -> int:
            rows = await fetch_from_shard(self._pools.ensure_pool(address), QUERIES["count_living_tenants"])
            return sum(row["count"] for row in rows)

        counts = await query_all_shards([shard.address for shard in removed], count_tenants)
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
        self._routes.apply_map_change(removed)
        await follow_shards(self._pools, [shard.address for shard in change.readdressed])
        instruments.SHARD_MAP_RELOADS.labels(ReloadOutcome.APPLIED).inc()
        log.info(
            "shard_map.reloaded",
            shard_count=len(new.shards),
            pin_count=len(new.tenants),
            added=[shard.shard_id for shard in change.added],
            readdressed=[shard.shard_id for shard in change.readdressed],
            left=sorted(removed),
        )
        return pools
