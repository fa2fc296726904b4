"""A shard that Citrus has left out of its list for long is dropped if it is dead, and no tenant's route leads there."""

from __future__ import annotations

import pytest

from simplu_worker.shards.health.prober import DROPPED_AFTER_S, UnlistedShards
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap

GONE = ShardAddress("gone", "postgresql://u@127.0.0.1:1/gone")
LISTED = ("kept",)


class World:
    def __init__(self) -> None:
        self.pools = Pools(size=1)
        self.locator = StaticMap(ShardMap((MappedShard(GONE.shard_id, GONE.connection_string),)))
        self.directory = Directory(self.locator, self.pools)
        self.unlisted = UnlistedShards(self.pools, self.directory)
        self.pool = self.pools.ensure_pool(GONE)
        self.pool.is_healthy = False
        self.now = 0.0

    def drop_later(self, *listed: str, after_s: float = DROPPED_AFTER_S) -> list[ShardPool]:
        assert self.unlisted.drop(listed, now=self.now) == []
        self.now += after_s
        return self.unlisted.drop(listed, now=self.now)


@pytest.fixture
def world() -> World:
    return World()


def test_dead_shard_is_dropped_when_it_was_long_left_out(world: World) -> None:
    assert world.drop_later(*LISTED, after_s=DROPPED_AFTER_S - 1) == []
    assert world.drop_later(*LISTED, after_s=1) == [world.pool]
    assert dict(world.pools.by_shard_id()) == {}
    assert world.locator.address_book.known_address("gone") is None
    assert world.pools.ensure_pool(GONE) is not world.pool


def test_shard_stays_when_it_answers(world: World) -> None:
    world.pool.is_healthy = True
    assert world.drop_later(*LISTED) == []
    world.pool.is_healthy = False
    assert world.drop_later(*LISTED, after_s=1) == []


@pytest.mark.parametrize("listed", [(), ("gone", "kept")])
def test_shard_stays_when_the_list_is_empty_or_has_it(world: World, listed: tuple[str, ...]) -> None:
    assert world.drop_later(*LISTED, after_s=1) == []
    assert world.drop_later(*listed) == []
    assert world.drop_later(*LISTED, after_s=1) == []


def test_shard_stays_while_a_route_leads_there(world: World) -> None:
    world.directory.routes.put("tenant", "gone", now=0.0, draw=0.0)
    assert world.drop_later(*LISTED) == []
    assert world.directory.routes.take_due() == ("tenant", "gone")
    world.directory.forget("tenant")
    assert world.drop_later(*LISTED, after_s=DROPPED_AFTER_S - 1) == []
    assert world.drop_later(*LISTED, after_s=1) == [world.pool]
