"""A Postgres shard that comes back without its last commits loses no operation: the lost ones are read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from structlog.testing import capture_logs
from support.aws.kinesis_endpoints import kinesis_servers
from support.full_stack import poll_until_true
from support.postgres.databases import ShardMaker
from support.postgres.snapshots import ShardSnapshot
from support.postgres.tenant_cases import fetch
from support.reader_world import (
    ONLY,
    SETTINGS,
    World,
    chain,
    eventually,
    logs,
    looked_after,
    mixed,
    open_world,
    outcomes,
    reaches,
    record,
)

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fleet import position_sync
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.shard_tree import HASH_KEY_LAST
from simplu_worker.consumers.kinesis.recovery import shard_positions
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Ancestor, Lineage
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, AtSequenceNumber, HashRange, Position
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.vocabulary import Role

_AT_ONCE_AHEAD = msgspec.structs.replace(SETTINGS, ahead_from_s=0.0)

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.8)]


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    """Run our Kinesis, which can split stream shards."""
    with kinesis_servers() as servers:
        yield servers.url_of("ours")


@pytest.fixture
async def world(endpoint_url: str, kinesis_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give a world with two tenants on one shard, and one on another."""
    async with open_world(endpoint_url, make_shard, kinesis_url=kinesis_url, timeouts=DEFAULT_TIMEOUTS) as world:
        await world.provision("a-x", "shard-1")
        await world.provision("b-x", "shard-1")
        await world.provision("c-x", "shard-2")
        yield world


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after idle shards more often than every few seconds."""
    monkeypatch.setattr(position_sync, "INTERVAL_S", 0.1)
    monkeypatch.setattr(shard_positions, "WRITE_AFTER_S", 0.2)


def backfill_count(shard_id: str) -> float:
    """Return how often a shard was read for again."""
    return float(instruments.SHARD_BACKFILLS.labels(shard_id)._value.get())


async def all_succeeded(pool: ShardPool, **counts: int) -> None:
    """Wait until every tenant's log has as many rows, all succeeded."""
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


async def test_answer_does_not_call_decided_what_a_shard_has_lost_when_nobody_knows_of_the_loss(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader, looked_after(world, reader):
        await world.put(*chain("a-x", 3))
        await all_succeeded(shard, a=3)
        snapshot = await ShardSnapshot.take(shard)
        sent_at = utc_now()
        numbers = await world.put(*chain("a-x", 30, first=3))
        await reaches(reader, numbers[-1])
        replica = ReplicaStatus("replica-2", asyncio.Event())
        lease = Lease(ONLY, TRIM_HORIZON, hash_range=HashRange(0, HASH_KEY_LAST))

        async def read_on() -> bool:
            """Wait until the reader has passed the time of sending, for tenants on a shard that has lost nothing."""
            noted = reader.with_progress(lease)
            fleet = SimpleNamespace(readers=list, leases=lambda: [noted], stream_name=world.stream.name)
            replica.start(world.gateway, world.pools, world.locator, fleet=cast("Fleet", fleet))
            return (await decided_before("b-x-0", "b")) > sent_at

        async def decided_before(request_id: str, business_id: str) -> datetime:
            _, answer = await replica.started.find_operation(request_id, business_id, "x", Role.OPERATOR)
            return answer["readUpTo"] or datetime.min.replace(tzinfo=UTC)

        assert await poll_until_true(read_on, within_s=60)
        assert (await replica.started.find_operation("a-x-32", "a", "x", Role.OPERATOR))[1]["status"] == "succeeded"
    await snapshot.promote()

    status, answer = await replica.started.find_operation("a-x-32", "a", "x", Role.OPERATOR)
    assert (status, answer["status"]) == (404, "unknown")
    for request_id, business_id in (("a-x-32", "a"), ("b-x-0", "b")):
        assert await decided_before(request_id, business_id) < sent_at
    assert await decided_before("c-x-0", "c") > sent_at, "another shard has lost nothing"


async def test_row_gets_the_last_batch_soon_when_no_other_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_positions, "WRITE_AFTER_S", 3600.0)
    shard = await world.shard("shard-1")
    async with world.reading() as reader, looked_after(world, reader):
        numbers = await world.put(*chain("a-x", 3))

        async def has_all() -> bool:
            rows = await fetch(shard, "SELECT pending_from, read_up_to FROM stream_positions")
            return [(row["pending_from"], row["read_up_to"] is not None) for row in rows] == [
                (f"{numbers[-1]}/0", True)
            ]

        assert await poll_until_true(has_all, within_s=60)


async def test_what_was_lost_while_nobody_read_is_applied_again(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await all_succeeded(shard, a=3, b=3)
        snapshot = await ShardSnapshot.take(shard)
        numbers = await world.put(*mixed(chain("a-x", 30, first=3), chain("b-x", 30, first=3)))
        await reaches(reader, numbers[-1])
    await snapshot.promote()
    following = world.reading(AtSequenceNumber(numbers[-1]), checkpoint=reader.checkpoint)
    async with following as reader, looked_after(world, reader):
        await all_succeeded(shard, a=33, b=33)


async def test_first_commits_that_were_lost_with_the_row_are_applied_again(world: World) -> None:
    shard = await world.shard("shard-1")
    snapshot = await ShardSnapshot.take(shard)
    async with world.reading() as reader:
        numbers = await world.put(*mixed(chain("a-x", 12), chain("b-x", 12)))
        await reaches(reader, numbers[-1])
    await snapshot.promote()
    async with world.reading(AtSequenceNumber(numbers[-1]), checkpoint=reader.checkpoint) as reader:
        await world.put(*chain("a-x", 3, first=12))
        await all_succeeded(shard, a=15, b=12)


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


async def test_second_loss_while_the_first_is_made_good_loses_nothing(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await all_succeeded(shard, a=3, b=3)
        snapshot = await ShardSnapshot.take(shard)
        for first in range(3, 93, 30):
            numbers = await world.put(*mixed(chain("a-x", 30, first=first), chain("b-x", 30, first=first)))
            await reaches(reader, numbers[-1])
            await snapshot.promote()
        await world.put(*mixed(chain("a-x", 3, first=93), chain("b-x", 3, first=93)))
        await eventually(lambda: bool(reader.view.held_status()))
        await snapshot.promote()
        await world.put(*mixed(chain("a-x", 3, first=96), chain("b-x", 3, first=96)))
        await all_succeeded(shard, a=99, b=99)


async def test_reader_that_stopped_in_order_leaves_nothing_to_be_read_again(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader, looked_after(world, reader):
        await world.put(*mixed(chain("a-x", 30), chain("c-x", 30)))
        await all_succeeded(shard, a=30)
        numbers = await world.put(*chain("c-x", 30, first=30))
        await reaches(reader, numbers[-1])
    before = backfill_count("shard-1"), backfill_count("shard-2")
    following = world.reading(AtSequenceNumber(numbers[-1]), checkpoint=reader.checkpoint)
    async with following as reader, looked_after(world, reader):
        await world.put(*mixed(chain("a-x", 3, first=30), chain("c-x", 3, first=60)))
        await all_succeeded(shard, a=33)
        await all_succeeded(await world.shard("shard-2"), c=63)
    assert (backfill_count("shard-1"), backfill_count("shard-2")) == before


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


async def test_others_are_not_read_again_when_the_next_reader_begins_with_a_long_hold(world: World) -> None:
    shard, other = await world.shard("shard-1"), await world.shard("shard-2")
    await fetch(other, "UPDATE tenants SET state = 'fenced' WHERE id = 'c-x' RETURNING id")
    async with world.reading(settings=_AT_ONCE_AHEAD) as reader:
        await world.put(*mixed(chain("a-x", 30), chain("c-x", 30)))
        await all_succeeded(shard, a=30)
        await eventually(lambda: bool(reader.view.held_status()))
        await asyncio.sleep(shard_positions.AHEAD_MAX_AGE_S)
        await world.put(*chain("a-x", 30, first=30))
        await all_succeeded(shard, a=60)
        await eventually(lambda: reader.ahead is not None)
    ahead, done = reader.ahead, reader.checkpoint
    assert ahead is not None
    assert ahead.held == TenantSet(["c-x"]).encode()
    row = await fetch(shard, "SELECT read_to, held FROM stream_positions")
    assert [(one["read_to"] is not None, one["held"]) for one in row] == [(True, ["tenant:c-x"])]
    before = backfill_count("shard-1")
    await fetch(other, "UPDATE tenants SET state = 'active' WHERE id = 'c-x' RETURNING id")
    start = None if done is None else AtSequenceNumber(done.checkpoint)
    async with world.reading(start, checkpoint=done, read_ahead=ahead, settings=_AT_ONCE_AHEAD) as reader:
        await world.put(*mixed(chain("a-x", 3, first=60), chain("c-x", 3, first=30)))
        await all_succeeded(shard, a=63)
        await all_succeeded(other, c=33)
    assert backfill_count("shard-1") == before


async def test_tenant_that_waits_during_a_backfill_gets_what_was_lost_before_anything_else(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await all_succeeded(shard, a=3, b=3)
        snapshot = await ShardSnapshot.take(shard)
        numbers = await world.put(*mixed(chain("a-x", 30, first=3), chain("b-x", 30, first=3)))
        await reaches(reader, numbers[-1])
        await snapshot.promote()
        await fetch(shard, "UPDATE tenants SET state = 'fenced' WHERE id = 'b-x' RETURNING id")
        await world.put(*mixed(chain("a-x", 3, first=33), chain("b-x", 3, first=33)))
        await all_succeeded(shard, a=36)
        await eventually(lambda: [hold["target"] for hold in reader.view.held_status()] == ["tenant b-x"])
        assert len(await outcomes(shard, "b-x")) == 3
        await fetch(shard, "UPDATE tenants SET state = 'active' WHERE id = 'b-x' RETURNING id")
        await all_succeeded(shard, a=36, b=36)


async def test_operation_that_was_given_up_is_given_up_again_when_its_row_is_lost(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*chain("a-x", 3))
        await all_succeeded(shard, a=3)
        snapshot = await ShardSnapshot.take(shard)
        bad = record("create", "a-x", 3, data={"text": "\x00"})
        numbers = await world.put(bad, *chain("b-x", 3))
        await reaches(reader, numbers[-1])
        await snapshot.promote()
        await world.put(*chain("b-x", 3, first=3))
        await all_succeeded(shard, b=6)
        assert await outcomes(shard, "a-x") == ["succeeded"] * 3 + ["invalid_data"]


async def test_position_of_a_reader_at_its_end_says_so(world: World) -> None:
    shard = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*chain("a-x", 30))
        await all_succeeded(shard, a=30)
        await world.kinesis.split_shard(StreamName=world.stream.name, ShardToSplit=ONLY, NewStartingHashKey=str(2**127))
        await eventually(lambda: reader.is_finished)

    rows = await fetch(shard, "SELECT pending_from, parents_done FROM stream_positions")
    assert [tuple(row.values()) for row in rows] == [("SHARD_END", True)]


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


def test_position_before_all_parts_of_a_record_is_before_the_first() -> None:
    assert Position(7, -1) < Position(7, 0)
