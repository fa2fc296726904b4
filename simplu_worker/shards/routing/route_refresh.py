"""Refresh cached routes and addresses in the background; replace the shard map at SIGHUP.

Unhealthy shards are located with one request each. Why no new map splits a tenant: its home is the shard that has its
row, and its possible homes by the new map are asked before it is made again. A shard is removed only if it was retired
in the old map and confirms that it has no tenants; it is never written to again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import contain, translate
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import HOME_STATES, Directory
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, change_of, first_problems, refusals_of
from simplu_worker.shards.routing.shard_query import fetch_from_shard, query_all_shards
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import Pacer, backoff_s, shared_pause_s
from simplu_worker.vocabulary import ShardMapOutcome, TargetKind

TICK_S: Final = 0.25
REFRESHES_AT_ONCE: Final = 4
REFRESHES_PER_S: Final = 50.0
REFRESH_BACKOFF_S: Final = 2.0  # of each concurrent refresher, after no answer
LOCATE_BACKOFF_BASE_S: Final = 0.5  # between two requests about an unhealthy shard
LOCATE_BACKOFF_MAX_S: Final = 2.0
LOCATED_SINGLY_MAX: Final = 4  # unhealthy shards; for more of them the list of all shards is requested
TRIALS_AT_ONCE: Final = 16

log = structlog.get_logger(__name__)


class _UnhealthyShard(msgspec.Struct):
    """A shard that does not answer: how often the locator was asked for its address, and when it is asked again."""

    attempt_count: int = 0
    due_at: float = 0.0


class RouteRefresh:
    """Refreshes the routes and addresses of *directory*."""

    def __init__(
        self,
        directory: Directory,
        locator: Locator,
        pools: Pools,
        *,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self._clock = clock
        self._unhealthy: dict[str, _UnhealthyShard] = {}
        self._trials: dict[str, asyncio.Task[None]] = {}
        self._is_any_due = asyncio.Event()
        self._pacer = Pacer(REFRESHES_PER_S)
        self._is_silent = False  # the last refresh got no answer

    async def run(self) -> None:
        """Refresh routes, locate unhealthy shards and try candidate addresses until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_forever(tasks), name="routes:tick")
            tasks.create_task(self._locate_forever(), name="routes:shards")
            for number in range(REFRESHES_AT_ONCE):
                tasks.create_task(self._refresh_forever(), name=f"routes:refresh-{number}")

    async def _tick_forever(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self.tick()
            for shard_id in self._directory.address_changer.due_shard_ids():
                if shard_id not in self._trials and len(self._trials) < TRIALS_AT_ONCE:
                    self._trials[shard_id] = tasks.create_task(self._try_candidate(shard_id), name=f"follow:{shard_id}")
            await asyncio.sleep(shared_pause_s(self._clock(), TICK_S))

    def tick(self) -> None:
        """Set the routes' time, and wake the refreshers if a route is due."""
        self._directory.routes.set_time(self._clock())
        if self._directory.routes.due_count:
            self._is_any_due.set()

    async def _try_candidate(self, shard_id: str) -> None:
        try:
            with contain(TargetKind.SHARD, shard_id, "address"):
                await self._directory.address_changer.try_candidate(shard_id)
        finally:
            del self._trials[shard_id]

    async def _refresh_forever(self) -> None:
        while True:
            if await self.refresh_next():
                await asyncio.sleep(self._pacer.pause_s(1, now=self._clock()))
            elif self._is_silent:
                await asyncio.sleep(REFRESH_BACKOFF_S * (0.5 + random.random()))
            else:
                self._is_any_due.clear()
                await self._is_any_due.wait()

    async def refresh_next(self) -> bool:
        """Refresh the route due for longest; return whether there was one, and an answer."""
        due = self._directory.routes.take_due()
        if due is None:
            return False
        try:
            with translate(TargetKind.SHARD, due[1], "routes", WorkerError):
                await self._directory.refresh(*due)
        except RetryableError:
            self._directory.routes.mark_due(due[0])
            self._is_silent = True
            return False
        except PermanentError as exc:
            log.warning("route.refused", shard_id=due[1], error=str(exc))
            self._directory.routes.renew(*due, now=self._clock(), draw=random.random())
        self._is_silent = False
        return True

    async def _locate_forever(self) -> None:
        while True:
            await self.locate_unhealthy_shards()
            await asyncio.sleep(shared_pause_s(self._clock(), TICK_S))

    async def locate_unhealthy_shards(self) -> None:
        """Ask for the addresses of the unhealthy shards that are due."""
        now = self._clock()
        unhealthy = [shard_id for shard_id, pool in self._pools.by_shard_id().items() if not pool.is_healthy]
        self._unhealthy = {
            shard_id: self._unhealthy.get(shard_id) or _UnhealthyShard(due_at=now) for shard_id in unhealthy
        }
        due = {shard_id: shard for shard_id, shard in self._unhealthy.items() if shard.due_at <= now}
        if not due:
            return
        tenant_ids = set()
        for shard_id, shard in due.items():
            sample = self._directory.routes.sample_tenant_id(shard_id)
            # Alternately: the answer about one tenant is quicker, but may name another shard by now.
            if sample is not None and shard.attempt_count % 2 == 0 and len(due) <= LOCATED_SINGLY_MAX:
                tenant_ids.add(sample)
            shard.attempt_count += 1
            shard.due_at = now + backoff_s(
                shard.attempt_count, draw=random.random(), base_s=LOCATE_BACKOFF_BASE_S, max_s=LOCATE_BACKOFF_MAX_S
            )
        async with asyncio.TaskGroup() as tasks:  # the answers go into the address book
            for tenant_id in tenant_ids:
                tasks.create_task(_ignore_errors(self._locator.locate(tenant_id)), name=f"locate:{tenant_id}")
            if len(tenant_ids) < len(due):
                tasks.create_task(_ignore_errors(self._locator.list_shards()), name="locate:all")


async def _ignore_errors(request: Awaitable[object]) -> None:
    with contextlib.suppress(RetryableError, PermanentError):
        await request


ROUTES_PER_STEP: Final = 500  # about two milliseconds, then other tasks run


async def log_unused_reloads(wanted: asyncio.Event) -> None:
    """Log at each *wanted* reload that there is no map file."""
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
        instruments.SHARD_MAP_RELOADS.labels(ShardMapOutcome.REFUSED).inc()
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
        routes, shard_map = self._directory.routes, self._static_map.map
        count = 0
        for number, (tenant_id, shard_id) in enumerate(routes.items(), start=1):
            if shard_map.shard_of(tenant_id).shard_id != shard_id:
                routes.mark_due(tenant_id)
                count += 1
            if number % ROUTES_PER_STEP == 0:
                await asyncio.sleep(0)
        return count
