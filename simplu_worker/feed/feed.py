"""The feed of all shards by this replica: one task a shard, one set of destinations, read again at SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import keep_running
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError
from simplu_worker.feed.feed_file import AllowedHosts, FeedDestination, parse_feed_file
from simplu_worker.feed.shard_feed import FeedServices, ShardFeed
from simplu_worker.feed.types import Destination, DestinationTerms, DestinationView, destination_views
from simplu_worker.feed.window import Budget
from simplu_worker.instruments import FEED_FILE_RELOADS
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import ReloadOutcome, TargetKind

LIST_S: Final = 60.0  # between two looks for new shards
FIRST_PAUSE_S: Final = 0.02  # between the first connections to shards: 500 at once were all too late
MEASURE_S: Final = 2.0

log = structlog.get_logger(__name__)


class ConfiguredDestination(NamedTuple):
    """A destination of `FEED_FILE`: its terms, and what opens it."""

    terms: DestinationTerms
    open: Callable[[], AbstractAsyncContextManager[Destination]]


ReadDestinations = Callable[[], Sequence[ConfiguredDestination]]


class Feed:
    """The feed of the shards that *locator* knows, by the replica *name*, to *destinations*."""

    def __init__(
        self,
        locator: Locator,
        pools: Pools,
        commits: ReplicationWaiter,
        *,
        name: str,
        destinations: Sequence[ConfiguredDestination],
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._destinations = destinations
        self._services = FeedServices(pools, commits, name, draw, utc, Budget())
        self._shards: dict[str, ShardFeed] = {}
        self._reloading = asyncio.Event()

    @property
    def published_count(self) -> int:
        """How many shards this replica publishes."""
        return sum(one.is_publishing for one in self._shards.values())

    def views(self) -> list[DestinationView]:
        """Return the state of each destination of the file over all shards."""
        return self._views_of(self._shards.values())

    def _views_of(self, shards: Iterable[ShardFeed]) -> list[DestinationView]:
        names = [terms.name for terms, _ in self._destinations]
        return destination_views(names, (one for shard in shards for one in shard.views()), self._services.utc())

    def replace(self, destinations: Sequence[ConfiguredDestination]) -> None:
        """Go on with other destinations, as soon as the requests under way have ended."""
        self._destinations = destinations
        self._reloading.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish until *stopping*; then give all rows back."""
        try:
            while not stopping.is_set():
                self._reloading.clear()
                await self._run_with_destinations(stopping)
        finally:
            async with asyncio.TaskGroup() as tasks:
                for one in self._shards.values():  # each bounds itself
                    tasks.create_task(one.give_back(), name="feed:give-back")
            self._measure()

    async def _run_with_destinations(self, stopping: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            opened = {
                terms.name: (terms, await stack.enter_async_context(open_destination()))
                for terms, open_destination in self._destinations
            }
            instruments.start_feed_at_zero(opened)
            ending = asyncio.Event()
            running: dict[str, asyncio.Task[None]] = {}
            async with asyncio.TaskGroup() as tasks:
                listed_at = float("-inf")
                while not self._is_ending(stopping):
                    if loop_time() >= listed_at + LIST_S:
                        listed_at = loop_time()
                        self._forget_retired_shards(running)
                        async for shard in self._missing_shards(running, stopping):
                            shard_id, work = shard.shard_id, partial(shard.run, opened, ending)
                            draw = self._services.draw
                            kept = keep_running(TargetKind.SHARD, shard_id, "feed", work, stopping=ending, draw=draw)
                            running[shard_id] = tasks.create_task(kept, name=f"feed:{shard_id}")
                    self._measure()
                    await wait_any(stopping, self._reloading, within_s=MEASURE_S)
                ending.set()
            instruments.end_feed_gauges(opened.keys() - {terms.name for terms, _ in self._destinations})

    def _is_ending(self, stopping: asyncio.Event) -> bool:
        return stopping.is_set() or self._reloading.is_set()

    def _forget_retired_shards(self, running: dict[str, asyncio.Task[None]]) -> None:
        for shard_id in self._shards.keys() - self._pools.by_shard_id().keys():
            del self._shards[shard_id]
            if (task := running.pop(shard_id, None)) is not None:
                task.cancel()

    async def _missing_shards(
        self, running: Mapping[str, asyncio.Task[None]], stopping: asyncio.Event
    ) -> AsyncIterator[ShardFeed]:
        for shard_id in await self._list_shards():
            if shard_id in running and not running[shard_id].done():
                continue
            if shard_id not in self._shards:
                await wait_any(stopping, self._reloading, within_s=FIRST_PAUSE_S)
                if self._is_ending(stopping):
                    return
                self._shards[shard_id] = self._shard_feed(shard_id)
            yield self._shards[shard_id]

    def _shard_feed(self, shard_id: str) -> ShardFeed:
        return ShardFeed(shard_id, self._services, lambda: self.published_count)

    async def _list_shards(self) -> list[str]:
        with contextlib.suppress(RetryableError, PermanentError):  # then those that are known
            for shard in await self._locator.list_shards():
                if shard.refusal is None:
                    self._pools.ensure_pool(shard)
        return list(self._pools.by_shard_id())

    def _measure(self) -> None:
        for view in self._views_of(shard for shard in self._shards.values() if shard.is_publishing):
            instruments.FEED_LAG.labels(view.name).set(view.lag_s)
            instruments.FEED_STOPPED_SHARDS.labels(view.name).set(len(view.stopped_shards))


def read_feed_file(path: Path, allowed_hosts: tuple[str, ...]) -> tuple[FeedDestination, ...]:
    """Read and check the file at *path*; raise `ConfigurationError` with every problem."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"FEED_FILE: expected a readable file at {path}, got: {exc.strerror}") from None
    return parse_feed_file(
        content, AllowedHosts.parse(allowed_hosts), lambda secret: Path(secret).read_text("ascii", "replace")
    )


async def keep_reading(feed: Feed, read: ReadDestinations, wanted: asyncio.Event) -> None:
    """Give *feed* the destinations that the file has by each event *wanted*; log why not. Until cancelled."""
    while True:
        await wanted.wait()
        wanted.clear()  # before the read: a change during the read is read again
        try:
            new = await asyncio.to_thread(read)
        except ConfigurationError as exc:
            FEED_FILE_RELOADS.labels(ReloadOutcome.REFUSED).inc()
            log.error("feed_file.refused", problems=list(exc.problems))  # noqa: TRY400 - the problems tell it all
            continue
        feed.replace(new)
        FEED_FILE_RELOADS.labels(ReloadOutcome.APPLIED).inc()
        log.info("feed_file.reloaded", destinations=[one.terms.name for one in new])
