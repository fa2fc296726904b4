from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import cast

import pytest
from support.reader_world import World, chain, eventually, held_targets, logs, mixed, outcomes, reaches

from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.pipeline import home_lookup
from simplu_worker.shards.tenants.deletion import Destroyer
from simplu_worker.shards.types import TenantControls, TenantPausedError
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role

PAUSED = ("tenant b-x", "paused", "held")

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(2)]


@pytest.fixture(autouse=True)
def _quick_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_lookup, "PAUSED_RETRY_MAX_S", 0.25)


async def pause(world: World, seconds: float, location: str | None = "x") -> None:
    """Pause the tenant, or without *location* its business."""
    controls, lookups = TenantControls(pause_s=seconds), world.gateway.lookups
    if location is None:
        await lookups.set_business_controls("b", controls)
    else:
        assert isinstance(await lookups.set_controls("b", location, controls), tuple)


@pytest.mark.parametrize("location", ["x", None])
async def test_what_is_paused_waits_until_it_is_resumed(world: World, location: str | None) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-1")
    shard = await world.shard("shard-1")

    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await logs(shard, "b-x", 3)
        await pause(world, 3600.0, location)
        await world.put(*mixed(chain("a-x", 30, first=3), chain("b-x", 30, first=3)))
        await logs(shard, "a-x", 33)
        await eventually(lambda: held_targets(reader) == [PAUSED])
        assert await world.gateway.find("b-x") == "shard-1"  # a pause is about operations alone
        assert await outcomes(shard, "b-x") == ["succeeded"] * 3

        await pause(world, 0.0, location)
        numbers = await world.put(*chain("b-x", 3, first=33))
        await reaches(reader, numbers[-1])
        assert held_targets(reader) == []

    assert await outcomes(shard, "b-x") == ["succeeded"] * 36
    assert await world.letters() == []


class OneReader:
    """A fleet of which this replica has one reader, and no lease row is known."""

    stream_name = "operations"

    def __init__(self, reader: StreamShardReader) -> None:
        self._reader = reader

    def readers(self) -> list[StreamShardReader]:
        return [self._reader]

    def leases(self) -> list[Lease]:
        return []


async def test_hold_is_told_to_its_own_pair_of_ids_alone(world: World) -> None:
    await world.provision("b-c-x", "shard-1")
    async with world.reading() as reader:
        assert isinstance(await world.gateway.lookups.set_controls("b", "c-x", TenantControls(pause_s=3600.0)), tuple)
        await world.put(*chain("b-c-x", 3))
        await eventually(lambda: held_targets(reader) == [("tenant b-c-x", "paused", "held")])
        replica = ReplicaStatus("replica-1", asyncio.Event())
        replica.start(world.gateway, world.pools, world.locator, fleet=cast(Fleet, OneReader(reader)))
        views = replica.started
        own, others = [
            [await views.find_operation("r", *names, Role.OPERATOR), await views.find_tenant(*names, Role.OPERATOR)]
            for names in (("b", "c-x"), ("b-c", "x"))
        ]

    assert [own[0][1]["reason"], own[1][1]["held"]["reason"]] == ["paused", "paused"]
    assert others[0][1] == {"requestId": "r", "status": "held", "reason": "unregistered"}
    assert (others[1][1]["state"], others[1][1]["held"]) == ("unregistered", None)


async def test_operations_of_a_paused_tenant_end_once_it_is_destroyed_and_wait_again_once_it_is_restored(
    world: World,
) -> None:
    await world.provision("b-x", "shard-1")
    shard, gateway = await world.shard("shard-1"), world.gateway
    destroyer = Destroyer(world.locator, gateway._directory, world.pools)

    async with world.reading() as reader:
        await pause(world, 7200.0)
        numbers = await world.put(*chain("b-x", 3))
        await eventually(lambda: held_targets(reader) == [PAUSED])
        await destroyer.destroy("b", "x", datetime.now(UTC))
        await reaches(reader, numbers[-1])
    assert await gateway.find_writable_shard("b-x") == "shard-1"
    assert await outcomes(shard, "b-x") == ["tenant_destroyed"] * 3
    replica = ReplicaStatus("replica-1", asyncio.Event())
    replica.start(gateway, world.pools, world.locator)
    answer = await replica.started.set_controls("b", "x", TenantControls(pause_s=0.0))
    assert answer == (409, {"error": "expected an active tenant, got one that is destroying"})

    await world.provision("b-x", "shard-1")
    with pytest.raises(TenantPausedError):
        await gateway.find_writable_shard("b-x")


async def test_weight_is_obeyed_from_the_next_batch_on(world: World) -> None:
    await world.provision("b-x", "shard-1")
    shard, weights = await world.shard("shard-1"), world.gateway.times["shard-1"].weights

    async with world.reading():
        await world.put(*chain("b-x", 3))
        await logs(shard, "b-x", 3)
        await world.gateway.lookups.set_controls("b", "x", TenantControls(weight=0.5))
        await world.put(*chain("b-x", 3, first=3))
        await logs(shard, "b-x", 6)
        await eventually(lambda: weights == {"b-x": 0.5})  # the row may be seen before its commit is answered
        await world.gateway.lookups.set_controls("b", "x", TenantControls(weight=1.0))
        await world.put(*chain("b-x", 3, first=6))
        await logs(shard, "b-x", 9)
        await eventually(lambda: weights == {})


async def test_what_is_beyond_a_limit_waits_in_order_and_delays_nobody(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-1")
    shard, lookups = await world.shard("shard-1"), world.gateway.lookups

    async with world.reading() as reader:
        found = await lookups.set_business_controls("b", TenantControls(operations_per_s=2.0))
        assert [row["operations_per_s"] for _, row in found.rows] == [2.0]
        numbers = await world.put(*mixed(chain("a-x", 30), chain("b-x", 30)))
        await logs(shard, "a-x", 30)
        await eventually(lambda: held_targets(reader) == [("tenant b-x", "over_limit", "held")])
        assert 0 < len(await outcomes(shard, "b-x")) < 30
        await lookups.set_business_controls("b", TenantControls(operations_per_s=0.0))
        await reaches(reader, numbers[-1])
    assert await outcomes(shard, "b-x") == ["succeeded"] * 30
    assert await world.letters() == []
