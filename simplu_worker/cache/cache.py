"""Invalidate the cache in Redis after each commit (docs/reading.md), without delaying a commit.

`invalidate` only queues the keys; `run` sends them in pipelines. At every new connection the epoch is moved first: the
process before may have been killed between a commit and its invalidation. An orderly stop sends the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import translate
from simplu_worker.cache import invalidations
from simplu_worker.errors import ConfigurationError, RetryableError
from simplu_worker.timing.clock import utc_now
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import CacheOutcome, TargetKind

if TYPE_CHECKING:
    from simplu_worker.cache.redis_commands import RedisCommands

CALL_TIMEOUT_S: Final = 3.0  # of a pipeline too, with all its replies
PING_INTERVAL_S: Final = 5.0  # so that an unreachable Redis is noticed without any write
BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0

log = structlog.get_logger(__name__)


class Cache:
    """Sends the invalidations of one process to Redis. Created without a connection; to be closed."""

    def __init__(
        self, url: str, *, call_timeout_s: float = CALL_TIMEOUT_S, ping_interval_s: float = PING_INTERVAL_S
    ) -> None:
        self._redis = create_redis_commands(url, on_connect=self._on_connect, call_timeout_s=call_timeout_s)
        self._invalidations = invalidations.InvalidationQueue()
        self._ping_interval_s = ping_interval_s
        self._work_added = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._sending_count = 0
        self._counts = dict.fromkeys(CacheOutcome, 0)
        self._connection_count = 0
        self._failure_count = 0
        self._unreachable_since: float | None = None
        self._last_error: str | None = None
        self._epoch: int | None = None
        self._epoch_moved_at: datetime | None = None
        self._epoch_reason: str | None = None
        self._sweep_cursor: int | None = None

    @property
    def is_reachable(self) -> bool:
        """Whether the last call to Redis succeeded; True before the first call."""
        return self._unreachable_since is None

    def invalidate(self, keys: Iterable[invalidations.ResourceKey]) -> None:
        """Queue the invalidation of changed resources, after the commit. Never waits."""
        self._report_dropped(self._invalidations.add(keys))
        self._note_work()

    def note_replica_ended(self) -> None:
        """Require a move of the epoch: another replica ended."""
        self._invalidations.require_epoch_move(invalidations.EpochMoveReason.TAKEN_OVER)
        self._note_work()

    def _note_work(self) -> None:
        if self._invalidations:
            self._work_added.set()
            self._drained.clear()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.close()

    async def run(self) -> None:
        """Send invalidations to Redis until cancelled, with a back-off."""
        while True:
            try:
                with translate(TargetKind.CACHE, self._redis.place, "invalidations", RetryableError):
                    await self._run_once()
            except RetryableError as exc:
                self._record_failure(exc)
                count, draw = self._failure_count, random.random()
                await asyncio.sleep(backoff_s(count, draw=draw, base_s=BACKOFF_BASE_S, max_s=BACKOFF_MAX_S))
            else:
                self._record_success()

    async def flush(self, within_s: float) -> None:
        """Wait until the queue is empty; not while Redis is unreachable."""
        if self.is_reachable:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._drained.wait()
        if not self._drained.is_set():
            log.warning("cache.not_flushed", resource_count=len(self._invalidations) + self._sending_count)

    async def _run_once(self) -> None:
        self._work_added.clear()
        if self._connection_count == 0 or not self.is_reachable:
            await self._redis.ping()  # connects, so that the epoch is moved before the next keys are sent
        if self._invalidations:
            await self._send()
        if self._sweep_cursor is not None:
            await self._sweep(self._sweep_cursor)
        if self._invalidations:
            return
        self._drained.set()
        if self._sweep_cursor is not None or not self.is_reachable:
            return  # Redis is reachable now, which `run` has to record before the wait
        try:
            async with asyncio.timeout(self._ping_interval_s):
                await self._work_added.wait()
        except TimeoutError:
            await self._redis.ping()

    async def _send(self) -> None:
        batch = self._invalidations.take()
        self._sending_count = len(batch.keys)
        is_sent = False
        try:
            epoch = await self._redis.send_invalidations(
                move_epoch=batch.epoch_move is not None,
                entries=[key.entry for key in batch.keys],
                versions=invalidations.versions_of(batch.keys),
            )
            is_sent = True
        finally:  # after a cancellation too: `flush` may be called later
            self._sending_count = 0
            self._count(CacheOutcome.DONE if is_sent else CacheOutcome.RETRIED, len(batch.keys))
            if not is_sent:
                self._report_dropped(self._invalidations.requeue(batch))
            instruments.CACHE_WAITING.set(len(self._invalidations))
        if batch.epoch_move is not None:
            self.record_epoch(epoch, batch.epoch_move)
            log.info("cache.epoch_moved", redis=self._redis.place, epoch=epoch, reason=batch.epoch_move)
            self._sweep_cursor = 0

    async def _sweep(self, cursor: int) -> None:
        after, keys = await self._redis.scan(cursor, invalidations.ENTRY_PREFIX)
        await self._redis.delete(keys)
        if self._sweep_cursor == cursor:
            self._sweep_cursor = after or None

    def _record_failure(self, exc: RetryableError) -> None:
        self._failure_count += 1
        self._last_error = str(exc)
        if self._unreachable_since is None:
            self._unreachable_since = time.monotonic()
            log.warning("cache.unreachable", redis=self._redis.place, error=str(exc))
        if self._sweep_cursor is not None:  # the next connection moves the epoch and restarts the sweep
            self._sweep_cursor = 0
        instruments.CACHE_UNREACHABLE.set(time.monotonic() - self._unreachable_since)
        instruments.CACHE_WAITING.set(len(self._invalidations))

    def _record_success(self) -> None:
        self._failure_count = 0
        instruments.CACHE_WAITING.set(len(self._invalidations))
        if self._unreachable_since is not None:
            outage_s = round(time.monotonic() - self._unreachable_since, 1)
            self._unreachable_since = None
            instruments.CACHE_UNREACHABLE.set(0)
            log.info("cache.recovered", redis=self._redis.place, outage_s=outage_s)

    def _on_connect(self) -> None:
        self._invalidations.require_epoch_move(
            invalidations.EpochMoveReason.RECONNECTED
            if self._connection_count
            else invalidations.EpochMoveReason.STARTED
        )
        self._connection_count += 1
        self._work_added.set()

    def _report_dropped(self, number: int) -> None:
        self._count(CacheOutcome.DROPPED, number)
        if number:
            log.warning("cache.overflowed", redis=self._redis.place, resource_count=number)

    def _count(self, outcome: CacheOutcome, number: int) -> None:
        if number:
            self._counts[outcome] += number
            instruments.CACHE_INVALIDATIONS.labels(outcome).inc(number)

    def record_epoch(self, epoch: int | None, reason: str) -> None:
        """Record that the epoch was moved."""
        self._epoch, self._epoch_moved_at, self._epoch_reason = epoch, utc_now(), reason

    def summary(self) -> dict[str, Any]:
        """Return the state of this process's invalidations, without a call to Redis."""
        return {
            "reachable": self.is_reachable,
            "redis": self._redis.place,
            "lastError": self._last_error,
            "waiting": len(self._invalidations) + self._sending_count,
            "invalidations": dict(self._counts),
            "epoch": self._epoch,
            "epochMovedAt": None if self._epoch_moved_at is None else self._epoch_moved_at.isoformat(),
            "epochMovedFor": self._epoch_reason,
            "sweeping": self._sweep_cursor is not None,
        }


class CacheAdmin:
    """What people may ask of the cache and do to it: only our own keys are read and changed."""

    def __init__(self, cache: Cache, redis: RedisCommands) -> None:
        self._cache = cache
        self._redis = redis

    async def read_stats(self) -> dict[str, Any]:
        """Return the state of this process and that of a reachable Redis, with the hits of all clients."""
        stats = self._cache.summary()
        try:
            about = await self._redis.read_info()
        except RetryableError as exc:
            return stats | {"server": None, "error": str(exc)}
        server = {
            "version": about.get("redis_version"),
            "uptimeSeconds": about.get("uptime_in_seconds"),
            "usedMemoryBytes": about.get("used_memory"),
            "maxMemoryBytes": about.get("maxmemory"),
            "evictionPolicy": about.get("maxmemory_policy"),
            "evictedKeys": about.get("evicted_keys"),
            "clients": about.get("connected_clients"),
            "hits": about.get("keyspace_hits"),
            "misses": about.get("keyspace_misses"),
            "epoch": about["epoch"],
        }
        return stats | {"server": server, "error": None}

    async def list_keys(self, limit: int) -> tuple[list[str], bool]:
        """Return at most *limit* of our keys, sorted, and whether these are all."""
        found: set[str] = set()
        async for keys in self._scan_keys():
            found.update(keys)
            if len(found) > limit:
                return sorted(found)[:limit], False
        return sorted(found), True

    async def clear(self) -> dict[str, Any]:
        """Move the epoch and delete all our entries; return their number and the epoch.

        Versions and the epoch stay: restarted at 0, they would reuse numbers that stale lists may still have.
        """
        epoch = await self._redis.send_invalidations(move_epoch=True)
        self._cache.record_epoch(epoch, "cleared")
        deleted = 0
        async for keys in self._scan_keys():
            counters = {invalidations.EPOCH_KEY, *(key for key in keys if key.startswith(invalidations.VERSION_PREFIX))}
            deleted += await self._redis.delete([key for key in keys if key not in counters])
        log.info("cache.cleared", redis=self._redis.place, key_count=deleted, epoch=epoch)
        return {"deleted": deleted, "epoch": epoch}

    async def _scan_keys(self) -> AsyncIterator[list[str]]:
        cursor, is_first = 0, True
        while cursor or is_first:
            cursor, keys = await self._redis.scan(cursor, invalidations.PREFIX)
            is_first = False
            yield keys


def create_redis_commands(
    url: str, *, on_connect: Callable[[], None] | None = None, call_timeout_s: float = CALL_TIMEOUT_S
) -> RedisCommands:
    """Return a client of Redis, not yet connected. Raises `ConfigurationError` without the package `redis`."""
    try:
        from simplu_worker.cache.redis_commands import RedisCommands  # noqa: PLC0415 - the package is an extra
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"REDIS_URL: expected the extra `cache` to be installed, got no module {exc.name}; "
            "install simplu-worker[cache]"
        ) from None
    return RedisCommands(url, on_connect=on_connect, call_timeout_s=call_timeout_s)


@contextlib.asynccontextmanager
async def open_cache(url: str) -> AsyncIterator[tuple[Cache, CacheAdmin]]:
    """Open the cache for a worker, and its administration."""
    async with AsyncExitStack() as stack:
        cache = Cache(url)
        stack.push_async_callback(cache.close)
        commands = create_redis_commands(url)
        stack.push_async_callback(commands.close)
        yield cache, CacheAdmin(cache, commands)
