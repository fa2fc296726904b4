"""Designs of order events and of the feed that must not be: the weather with all that the product does notices each.

As in `wrong_designs`, each overrides what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace
from simulation.simulated_log import Answer, FeedTables, Server, ShardLog
from simulation.simulated_shards import Backup, LogKey, PostgresShards, Tenant
from simulation.simulated_world import Weather, World
from simulation.wrong_designs import WrongDesign

from simplu_worker.feed.destination_feed import DestinationFeed
from simplu_worker.feed.feed import Feed
from simplu_worker.feed.rows import CursorRow, find_passed
from simplu_worker.feed.shard_feed import RunChangedError, ShardFeed
from simplu_worker.feed.types import Arrival
from simplu_worker.feed.window import Window, WindowEvent
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import ReplicationFacts

Twist = Callable[[World], None]


class _HastyCommits(ReplicationWaiter):
    async def wait_for_operations(self, shard_id: str, operations: Sequence[Operation]) -> None:
        return


class _HorizonlessLog(ShardLog):
    @property
    def horizon(self) -> int:
        return self._next_number


class _OneRunServer(Server):
    @property
    def _run(self) -> dict[str, Any]:
        return {"timeline": "1", "started_at": datetime(2026, 1, 1, tzinfo=UTC)}


class _NotingServer(Server):
    def _begin_incarnation(
        self, tables: FeedTables, token: str, incarnation: str, run: str
    ) -> tuple[FeedTables, Answer]:
        tables, answer = super()._begin_incarnation(tables, token, incarnation, run)
        told = {
            name: one if one.is_in_file else replace(one, incarnation=incarnation)
            for name, one in tables.cursors.items()
        }
        return replace(tables, cursors=told), answer


class _CarelessServer(Server):
    def _write_feed_cursors(self, tables: FeedTables, token: str, *arguments: Any) -> tuple[FeedTables, Answer]:
        return super()._write_feed_cursors(tables, token, *arguments[:-2], *self._run.values())


class _EagerFeed(DestinationFeed):
    def row(self) -> CursorRow:
        return replace(super().row(), place=self.window.head)


class _SureFeed(DestinationFeed):
    def row(self) -> CursorRow:
        return replace(super().row(), incarnation=self.publication.incarnation)


class _LooseWindow(Window):
    def due(self, max_events: int, *, now: float) -> list[WindowEvent]:
        return [one for one in self._events if not one.is_done and one.due_at <= now][:max_events]


class _LooseFeed(DestinationFeed):
    @property
    def is_reading(self) -> bool:
        self.window.__class__ = _LooseWindow
        return super().is_reading


class _UnsafeShardFeed(ShardFeed):
    async def _becomes_safe(self, facts: Sequence[ReplicationFacts]) -> bool:
        if self._state is None or {one.server for one in facts} != {self._state.server}:
            raise RunChangedError
        return True


class _ImpatientShardFeed(ShardFeed):
    async def _is_passed(self, name: str, arrival: Arrival) -> bool:
        return True


class _CredulousShardFeed(ShardFeed):
    async def _is_passed(self, name: str, arrival: Arrival) -> bool:
        return await find_passed(self._pools.pool_of(arrival.source), name, arrival) is not None


class _HighShards(PostgresShards):
    def restore_tenant(self, tenant: Tenant, backup: Backup) -> list[LogKey] | None:
        before = dict(self.positions)
        gone = super().restore_tenant(tenant, backup)
        self.positions = before
        return gone


class _KnownShards(PostgresShards):
    def restore_tenant(self, tenant: Tenant, backup: Backup) -> list[LogKey] | None:
        before = dict(self.positions)
        gone = super().restore_tenant(tenant, backup)
        for place, row in self.positions.items():
            self.positions[place] = replace(row, fencing_token=before[place].fencing_token)
        return gone


def _with_feed(
    shard_feed_class: type[ShardFeed] = ShardFeed, destination_feed_class: type[DestinationFeed] = DestinationFeed
) -> Twist:
    class WrongShardFeed(shard_feed_class):  # type: ignore[valid-type, misc]  # a class of this call
        def _feeds_behind(self, *loaded: Any) -> dict[str, DestinationFeed]:
            feeds: dict[str, DestinationFeed] = super()._feeds_behind(*loaded)
            for feed in feeds.values():
                feed.__class__ = destination_feed_class
            return feeds

    class WrongFeed(Feed):
        def _shard_feed(self, shard_id: str) -> ShardFeed:
            feed = super()._shard_feed(shard_id)
            feed.__class__ = WrongShardFeed
            return feed

    def twist(world: World) -> None:
        world.make_feed = WrongFeed

    return twist


def _with_server(server_class: type[Server]) -> Twist:
    def twist(world: World) -> None:
        for server in world.shards.servers.values():
            server.__class__ = server_class

    return twist


def _read_beyond_horizon(world: World) -> None:
    for one in world.shards.logs.values():
        one.__class__ = _HorizonlessLog


def _with_shards(shards_class: type[PostgresShards]) -> Twist:
    def twist(world: World) -> None:
        world.shards.__class__ = shards_class

    return twist


def _trust_commits(world: World) -> None:
    world.make_commits = _HastyCommits


def _design(twist: Twist, *, weather: Weather = Weather.WHOLE, seed: int = 0) -> WrongDesign:
    return WrongDesign(twist=twist, weather=weather, seed=seed)


WRONG_IN_WHOLE = {
    "an order event is deleted before its commit is safe": _design(_trust_commits, seed=4),
    "the feed reads beyond the oldest running transaction": _design(
        _read_beyond_horizon, seed=4, weather=Weather.FEEDS
    ),
    "the feed writes its cursor before the delivery": _design(
        _with_feed(destination_feed_class=_EagerFeed), seed=0, weather=Weather.FEEDS
    ),
    "the feed of a target does not wait for the source": _design(
        _with_feed(_ImpatientShardFeed), seed=2, weather=Weather.FEEDS
    ),
    "an event overtakes one of its resource that was put off": _design(
        _with_feed(destination_feed_class=_LooseFeed), seed=1, weather=Weather.FEEDS
    ),
    "a restore does not lower the rows of its shard": _design(_with_shards(_HighShards), seed=13),
}

# Not in each run: they take too many histories, or none that notices them is known.
MORE_WRONG_IN_WHOLE = {
    "the feed publishes commits that may be lost": _design(_with_feed(_UnsafeShardFeed), weather=Weather.FEEDS),
    "the feed of a target trusts a cursor that may go back": _design(
        _with_feed(_CredulousShardFeed), weather=Weather.FEEDS
    ),
    "no incarnation begins with a promotion": _design(_with_server(_OneRunServer), seed=23),
    "a cursor is written on a server that was promoted since": _design(
        _with_server(_CarelessServer), weather=Weather.FEEDS
    ),
    "a restore leaves the tokens of the rows that it lowers": _design(_with_shards(_KnownShards), seed=38),
    "a destination that is out of the file counts as told": _design(_with_server(_NotingServer), weather=Weather.FEEDS),
    "a reset counts as delivered when it is due": _design(
        _with_feed(destination_feed_class=_SureFeed), weather=Weather.FEEDS
    ),
}
