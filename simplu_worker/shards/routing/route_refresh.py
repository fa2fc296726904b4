"""Keep what is remembered of tenants and shards fresh, behind everybody's back.

Routes in use are asked for anew at a pace that suits Citrus, however many they are. Shards in trouble are asked for by
one question each, not one for each of their tenants, until Citrus names a place where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.timing.clock import loop_time

TICK_S: Final = 0.25
REFRESHES_AT_ONCE: Final = 4
REFRESHES_PER_S: Final = 50.0
REFRESH_BACKOFF_S: Final = 2.0  # of each who asks, after no answer
SILENCE_REPORTED_AFTER_S: Final = 30.0
LOCATE_BACKOFF_BASE_S: Final = 0.5  # between two questions about a shard that is in trouble
LOCATE_BACKOFF_MAX_S: Final = 2.0
LOCATED_SINGLY_MAX: Final = 4  # shards in trouble; for more of them the list of all is asked for
TRIALS_AT_ONCE: Final = 16

log = structlog.get_logger(__name__)


class _UnhealthyShard(msgspec.Struct):
    """A shard that does not answer: how often it was asked for, and when it is again."""

    attempt_count: int = 0
    due_at: float = 0.0


class RouteRefresh:
    """Asks anew for what *directory* remembers."""

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
        """Look, ask and follow until cancelled."""
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
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Tell the routes the time, and those who ask that somebody is in line."""
        self._directory.routes.set_time(self._clock())
        if self._directory.routes.due_count:
            self._is_any_due.set()

    async def _try_candidate(self, shard_id: str) -> None:
        try:
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
        """Ask for the tenant that has been in line for longest; return whether there was one, and an answer."""
        due = self._directory.routes.take_due()
        if due is None:
            return False
        try:
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
            await asyncio.sleep(TICK_S)

    async def locate_unhealthy_shards(self) -> None:
        """Ask where the shards are that do not answer, those of them whose turn it is."""
        now = self._clock()
        silent = [shard_id for shard_id, pool in self._pools.by_shard_id().items() if not pool.is_healthy]
        self._unhealthy = {
            shard_id: self._unhealthy.get(shard_id) or _UnhealthyShard(due_at=now) for shard_id in silent
        }
        due = {shard_id: trouble for shard_id, trouble in self._unhealthy.items() if trouble.due_at <= now}
        tenant_ids = set()
        for shard_id, trouble in due.items():
            sample = self._directory.routes.sample_tenant_id(shard_id)
            # In turns: the answer about one tenant is the quicker one, and may be about another shard by now.
            if sample is not None and trouble.attempt_count % 2 == 0 and len(due) <= LOCATED_SINGLY_MAX:
                tenant_ids.add(sample)
            trouble.attempt_count += 1
            trouble.due_at = now + self._rest_s(trouble.attempt_count)
        async with asyncio.TaskGroup() as tasks:  # what is learned is in the book
            for tenant_id in tenant_ids:
                tasks.create_task(_ignore_errors(self._locator.locate(tenant_id)), name=f"locate:{tenant_id}")
            if len(tenant_ids) < len(due):
                tasks.create_task(_ignore_errors(self._locator.list_shards()), name="locate:all")

    def _rest_s(self, asked_count: int) -> float:
        span_s = min(LOCATE_BACKOFF_MAX_S, LOCATE_BACKOFF_BASE_S * 2.0 ** min(asked_count - 1, 8))
        return span_s * (0.5 + self._draw() / 2)


async def _ignore_errors(question: Awaitable[object]) -> None:
    """Await an answer; one that does not come is asked for again."""
    with contextlib.suppress(RetryableError, PermanentError):
        await question
