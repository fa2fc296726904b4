"""Refresh cached routes and the addresses of shards in the background.

Routes in use are refreshed at a rate that Citrus can serve, however many there are. Unhealthy shards are located with
one request each, not one for each of their tenants, until Citrus names an address at which the shard answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from simplu_worker.bulkheads import contain, translate
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.timing.aligned_times import shared_pause_s
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import TargetKind

TICK_S: Final = 0.25
REFRESHES_AT_ONCE: Final = 4
REFRESHES_PER_S: Final = 50.0
REFRESH_BACKOFF_S: Final = 2.0  # of each concurrent refresher, after no answer
SILENCE_REPORTED_AFTER_S: Final = 30.0
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
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self._clock = clock
        self._draw = draw
        self._unhealthy: dict[str, _UnhealthyShard] = {}
        self._trials: dict[str, asyncio.Task[None]] = {}
        self._is_any_due = asyncio.Event()
        self._silent_since: float | None = None
        self._is_silence_reported = False

    def __repr__(self) -> str:
        return f"RouteRefresh({self._directory.routes!r}, unhealthy: {sorted(self._unhealthy)})"

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
            started = self._clock()
            if await self.refresh_next():
                await asyncio.sleep(max(0.0, started + REFRESHES_AT_ONCE / REFRESHES_PER_S - self._clock()))
            elif self._silent_since is not None:
                await asyncio.sleep(REFRESH_BACKOFF_S * (0.5 + self._draw()))
            else:
                self._is_any_due.clear()
                await self._is_any_due.wait()

    async def refresh_next(self) -> bool:
        """Refresh the route that has been due for longest; return whether there was one, and an answer."""
        due = self._directory.routes.take_due()
        if due is None:
            return False
        try:
            with translate(TargetKind.SHARD, due[1], "routes", WorkerError):
                await self._directory.refresh(*due)
        except RetryableError as exc:
            self._directory.routes.requeue(due[0])
            self._record_failure(exc)
            return False
        except PermanentError as exc:
            log.warning("route.refused", shard_id=due[1], error=str(exc))
            self._directory.routes.renew(*due, now=self._clock(), draw=self._draw())
        self._record_success()
        return True

    def _record_failure(self, exc: RetryableError) -> None:
        now = self._clock()
        if self._silent_since is None:
            self._silent_since = now
        if not self._is_silence_reported and now - self._silent_since >= SILENCE_REPORTED_AFTER_S:
            self._is_silence_reported = True
            routes = self._directory.routes
            log.warning("routes.stale", routes=len(routes), due=routes.due_count, error=str(exc))

    def _record_success(self) -> None:
        if self._is_silence_reported and self._silent_since is not None:
            log.info("routes.refreshed", after_s=round(self._clock() - self._silent_since, 1))
        self._silent_since, self._is_silence_reported = None, False

    async def _locate_forever(self) -> None:
        while True:
            await self.locate_unhealthy_shards()
            await asyncio.sleep(shared_pause_s(self._clock(), TICK_S))

    async def locate_unhealthy_shards(self) -> None:
        """Ask the locator for the addresses of the unhealthy shards that are due after their back-off."""
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
                shard.attempt_count, draw=self._draw(), base_s=LOCATE_BACKOFF_BASE_S, max_s=LOCATE_BACKOFF_MAX_S
            )
        async with asyncio.TaskGroup() as tasks:  # the answers go into the address book
            for tenant_id in tenant_ids:
                tasks.create_task(_ignore_errors(self._locator.locate(tenant_id)), name=f"locate:{tenant_id}")
            if len(tenant_ids) < len(due):
                tasks.create_task(_ignore_errors(self._locator.list_shards()), name="locate:all")


async def _ignore_errors(request: Awaitable[object]) -> None:
    """Await *request*; after an error it is repeated later."""
    with contextlib.suppress(RetryableError, PermanentError):
        await request
