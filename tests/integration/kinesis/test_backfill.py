from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime

import pytest
from structlog.testing import capture_logs
from support.aws.servers import KINESIS, running_servers
from support.postgres.databases import ShardMaker
from support.postgres.snapshots import ShardSnapshot
from support.postgres.tenant_cases import fetch
from support.reader_world import (
    ONLY,
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

from simplu_worker.consumers.kinesis.fleet import position_sync
from simplu_worker.consumers.kinesis.recovery import shard_positions
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Ancestor, Lineage
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS
from simplu_worker.timing.clock import loop_time, utc_now

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.8)]


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    with running_servers(KINESIS) as url_of:
        yield url_of("ours")


@pytest.fixture
async def world(endpoint_url: str, kinesis_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(endpoint_url, make_shard, kinesis_url=kinesis_url, timeouts=DEFAULT_TIMEOUTS) as world:
        await world.provision("a-x", "shard-1")
        await world.provision("b-x", "shard-1")
        await world.provision("c-x", "shard-2")
        yield world


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_sync, "INTERVAL_S", 0.1)
    monkeypatch.setattr(shard_positions, "WRITE_AFTER_S", 0.2)


async def all_succeeded(pool: ShardPool, **counts: int) -> None:
    for tenant, count in counts.items():
        await logs(pool, f"{tenant}-x", count)


async def test_what_a_shard_lost_is_applied_again_before_anything_new(world: World) -> None:
    shard, other = await world.shard("shard-1"), await world.shard("shard-2")
    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 6), chain("b-x", 6), chain("c-x", 6)))
        await all_succeeded(shard, a=6, b=6)
        snapshot = await ShardSnapshot.take(shard)
        numbers = await world.put(
            *mixed(chain("a-x", 30, first=6), chain("b-x", 30, first=6), chain("c-x", 30, first=6))
        )
        await all_succeeded(shard, a=36, b=36)
        await reaches(reader, numbers[-1])
        before = reader.checkpoint
        await snapshot.promote()
        assert len(await outcomes(shard, "b-x")) == 6
        numbers = await world.put(*mixed(chain("a-x", 3, first=36), chain("c-x", 3, first=36)))
        await all_succeeded(shard, a=39, b=36)
        await reaches(reader, numbers[-1])
        assert before is not None
        assert reader.checkpoint is not None
        assert reader.checkpoint > before
        assert reader.view.held_status() == []
    await all_succeeded(other, c=39)
    assert await world.letters() == []


async def test_what_an_idle_shard_lost_is_applied_again(world: World) -> None:
    shard = await world.shard("shard-1")
    begin = utc_now().replace(microsecond=0)
    async with world.reading() as reader, looked_after(world, reader):
        await world.put(*chain("a-x", 3))
        await all_succeeded(shard, a=3)
        snapshot = await ShardSnapshot.take(shard)
        numbers = await world.put(*mixed(chain("a-x", 30, first=3), chain("b-x", 30)))
        await reaches(reader, numbers[-1])
        with capture_logs() as logged:
            await snapshot.promote()
            await all_succeeded(shard, a=33, b=30)
    (told,) = [one for one in logged if one["event"] == "shard.backfilling"]
    assert told["log_level"] == "info"
    assert begin <= datetime.fromisoformat(told["pending_since"]) <= datetime.fromisoformat(told["read_until"])


async def test_shard_is_read_for_again_for_tenants_too_of_whom_others_believe_that_they_live_elsewhere(
    world: World,
) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3), chain("c-x", 3)))
        await all_succeeded(shard, a=3, b=3)
        snapshot = await ShardSnapshot.take(shard)
        numbers = await world.put(*mixed(chain("a-x", 30, first=3), chain("c-x", 30, first=3)))
        await reaches(reader, numbers[-1])
    await snapshot.promote()
    world.gateway._directory.routes.put("a-x", "shard-2", now=loop_time(), draw=0.5)
    async with world.reading(AtSequenceNumber(numbers[-1]), checkpoint=reader.checkpoint):
        await world.put(*chain("b-x", 3, first=3))
        await all_succeeded(shard, a=33, b=6)


async def test_two_readers_of_one_stream_shard_apply_everything_once_and_in_order(world: World) -> None:
    shard, other = await world.shard("shard-1"), await world.shard("shard-2")
    async with world.reading(), world.reading():
        for first in range(0, 60, 6):
            some = mixed(*(chain(tenant, 6, first=first) for tenant in ("a-x", "b-x", "c-x")))
            await world.put(*some)
            await asyncio.sleep(0)
        await all_succeeded(shard, a=60, b=60)
        await all_succeeded(other, c=60)
    assert await world.letters() == []


async def test_child_reads_of_its_parent_what_a_shard_lacks_before_its_own(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*chain("a-x", 3))
        await all_succeeded(shard, a=3)
        snapshot = await ShardSnapshot.take(shard)
        await world.put(*chain("a-x", 30, first=3))
        await all_succeeded(shard, a=33)
        await world.kinesis.split_shard(StreamName=world.stream.name, ShardToSplit=ONLY, NewStartingHashKey=str(2**127))
        await eventually(lambda: reader.is_finished)
    await snapshot.promote()
    lineage = Lineage(frozenset([ONLY]), {ONLY: Ancestor(frozenset(), None, None)}, is_ended=True)
    listed = await world.kinesis.list_shards(StreamName=world.stream.name)
    children = [one["ShardId"] for one in listed["Shards"] if one.get("ParentShardId") == ONLY]
    reading = [world.reading(stream_shard_id=child, lineage=lineage) for child in children]
    async with reading[0] as one, reading[1] as two:
        await world.put(*chain("a-x", 3, first=33))
        await all_succeeded(shard, a=36)
        await eventually(lambda: not one.view.held_status() and not two.view.held_status())
    rows = await fetch(shard, "SELECT parents_done FROM stream_positions WHERE stream_shard_id <> $1", ONLY)
    assert True in [row["parents_done"] for row in rows]
