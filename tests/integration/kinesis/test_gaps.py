from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.aws.servers import KINESIS, running_servers
from support.postgres.databases import ShardMaker
from support.postgres.snapshots import ShardSnapshot
from support.postgres.tenant_cases import fetch
from support.reader_world import (
    World,
    chain,
    eventually,
    logs,
    looked_after,
    mixed,
    open_world,
    outcomes,
    reaches,
)

from simplu_local.aws_server.faults import AdvanceClock
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_worker.consumers.kinesis.fleet import position_sync
from simplu_worker.consumers.kinesis.reader import catch_up
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery import shard_positions
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position
from simplu_worker.shards.health.assessment import ShardObservation, assess
from simplu_worker.shards.health.prober import probe_shard
from simplu_worker.shards.positions import accept_gaps
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import ShardProblem

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(3)]

RETENTION = timedelta(hours=24)


class Later:
    """The clocks of Kinesis and of the readers, which are put forward together."""

    def __init__(self, kinesis_url: str) -> None:
        self._kinesis_url = kinesis_url
        self._by = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self._by

    async def let_pass(self, time: timedelta) -> None:
        self._by += time
        await send_commands(self._kinesis_url, AdvanceClock(ms=int(time.total_seconds() * 1000)))

    def reading(self, world: World, after: str | None = None) -> AbstractAsyncContextManager[StreamShardReader]:
        start = None if after is None else AtSequenceNumber(after)
        checkpoint = None if after is None else Position.from_sequence_number(after)
        return world.reading(start, checkpoint=checkpoint, utc=self, retention=RETENTION)


@pytest.fixture
def later() -> Iterator[Later]:
    with running_servers(KINESIS) as url_of:
        yield Later(url_of("ours"))


@pytest.fixture
async def world(endpoint_url: str, later: Later, make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(endpoint_url, make_shard, kinesis_url=later._kinesis_url, timeouts=DEFAULT_TIMEOUTS) as world:
        for tenant, shard_id in (("a-x", "shard-1"), ("b-x", "shard-1"), ("c-x", "shard-2")):
            await world.provision(tenant, shard_id)
        yield world


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_sync, "INTERVAL_S", 0.1)
    monkeypatch.setattr(shard_positions, "WRITE_AFTER_S", 0.2)
    monkeypatch.setattr(catch_up, "GAP_CHECK_S", 0.1)


async def rows_of(pool: ShardPool) -> list[Any]:
    return list(await fetch(pool, "SELECT * FROM stream_positions"))


async def has_position(pool: ShardPool, number: str) -> None:
    async def has() -> bool:
        return [row["pending_from"] for row in await rows_of(pool)] == [f"{number}/0"]

    assert await poll_until(has, within_s=60)


async def back_up_and_lose(world: World, later: Later, reader: StreamShardReader) -> tuple[ShardSnapshot, str]:
    shard = await world.shard("shard-1")
    numbers = await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
    await logs(shard, "a-x", 3)
    await has_position(shard, numbers[-1])
    backup = await ShardSnapshot.take(shard)
    numbers = await world.put(*mixed(chain("a-x", 3, first=3), chain("b-x", 3, first=3)))
    await reaches(reader, numbers[-1])
    await later.let_pass(RETENTION + timedelta(hours=1))
    numbers = await world.put(*chain("c-x", 3))
    await reaches(reader, numbers[-1])
    return backup, numbers[-1]


def is_held(reader: StreamShardReader) -> bool:
    held = reader.view.held_status()
    return [(one["target"], one["reason"], one["state"]) for one in held] == [("shard shard-1", "gap", "held")]


async def test_shard_restored_beyond_retention_is_held_until_the_gap_is_accepted(world: World, later: Later) -> None:
    shard, other = await world.shard("shard-1"), await world.shard("shard-2")
    async with later.reading(world) as reader, looked_after(world, reader):
        backup, last = await back_up_and_lose(world, later, reader)
        await backup.promote()
        await world.put(*mixed(chain("a-x", 3, first=6), chain("b-x", 3, first=6), chain("c-x", 3, first=3)))
        await eventually(lambda: is_held(reader))
        await logs(other, "c-x", 6)
        assert reader.checkpoint == Position.from_sequence_number(last)
    async with later.reading(world, last) as reader, looked_after(world, reader):
        await eventually(lambda: is_held(reader))
        assert await outcomes(shard, "a-x") == ["succeeded"] * 3
        probe = await probe_shard(shard)
        problems = assess(ShardObservation(probe)).problems
        assert (len(probe.gaps), problems) == (1, frozenset({ShardProblem.GAP}))

        async with shard.connection() as connection:
            accepted = await accept_gaps(connection)
        assert [row["gap_from"] for row in accepted] == [row["pending_from"] for row in await rows_of(shard)]
        await logs(shard, "a-x", 6)
        await logs(shard, "b-x", 6)
        await eventually(lambda: not reader.view.held_status())
        assert (await probe_shard(shard)).gaps == []
    assert await world.letters() == []


async def test_idle_shard_restored_beyond_retention_is_marked_and_nothing_else(world: World, later: Later) -> None:
    shard = await world.shard("shard-1")
    async with later.reading(world) as reader, looked_after(world, reader):
        backup, last = await back_up_and_lose(world, later, reader)
        await has_position(shard, last)
        better = await ShardSnapshot.take(shard)
        await backup.promote()

        async def is_marked() -> bool:
            return (await probe_shard(shard)).gaps != []

        assert await poll_until(is_marked, within_s=60)
        assert reader.view.held_status() == []
        await world.put(*chain("a-x", 3, first=6))
        await eventually(lambda: is_held(reader))
        await better.promote()
        await logs(shard, "a-x", 9)
        assert (await probe_shard(shard)).gaps == []
