from __future__ import annotations

import asyncio
from typing import cast

from simulation.sqs_world import Desk, World, virtually

from simplu_local.sqs.faults import SqsFault
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.sqs.receive.receiver import LONGEST_TURN_S, QueueReceiver
from simplu_worker.consumers.sqs.receive.slots import PriorityGate
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.replica import FLEET_TURN_MAX_S, ReplicaStatus


class FleetThatTurned:
    """A fleet of which only the last turn is known."""

    def __init__(self, last_turn: float) -> None:
        self.last_turn = last_turn


def replica_of(stopping: asyncio.Event, **receivers: QueueReceiver) -> ReplicaStatus:
    return ReplicaStatus("r", stopping, monitoring=Monitoring(receivers=receivers))


class DefectiveGate(PriorityGate):
    """A gate that may stay shut for longer than a gate does."""

    is_stuck = False

    def lets_pass(self, now: float) -> bool:
        """Return whether a poll may begin."""
        return not self.is_stuck and super().lets_pass(now)


@virtually
async def test_t28_stuck_loop_is_named_by_its_queue(world: World) -> None:
    gate = DefectiveGate(lambda: (False, 0))
    async with (
        world.receiving(world.queue(), Desk()) as fine,
        world.receiving(world.queue(), Desk(), gate=gate) as stuck,
    ):
        replica = replica_of(asyncio.Event(), fine=fine.receiver, stuck=stuck.receiver)
        await asyncio.sleep(1000)
        assert replica.liveness_problem() is None
        gate.is_stuck = True
        await asyncio.sleep(2 * LONGEST_TURN_S + 20)
        reason = replica.liveness_problem() or ""
        assert "queue stuck" in reason
        assert "fine" not in reason
        gate.is_stuck = False
        await asyncio.sleep(10)
        assert replica.liveness_problem() is None


@virtually
async def test_queue_that_does_not_answer_is_not_stuck(world: World) -> None:
    world.faults.add(SqsFault(action="GetQueueAttributes", kind="fail", count=5))
    world.faults.add(SqsFault(action="ReceiveMessage", kind="hang", count=3))
    world.faults.add(SqsFault(action="ReceiveMessage", kind="fail", count=200))
    async with world.receiving(world.queue(), Desk()) as running:
        replica = replica_of(asyncio.Event(), a=running.receiver)
        for _ in range(100):
            await asyncio.sleep(30)
            assert replica.liveness_problem() is None


@virtually
async def test_drain_of_minutes_is_live(world: World) -> None:
    queue, desk = world.queue(), Desk(takes_s=500)
    await world.send(queue, "a")
    async with world.receiving(queue, desk, drain_s=0.8 * 600) as running:
        replica = replica_of(running.stopping, a=running.receiver)
        await asyncio.sleep(10)
        running.stopping.set()
        for _ in range(47):
            await asyncio.sleep(10)
            assert running.receiver.in_flight_count
            assert replica.liveness_problem() is None


@virtually
async def test_loop_of_the_leases_counts_until_the_drain(world: World) -> None:
    stopping = asyncio.Event()
    replica = replica_of(stopping)
    replica.fleet = cast(Fleet, FleetThatTurned(last_turn=world.loop.time()))
    await asyncio.sleep(FLEET_TURN_MAX_S)
    assert replica.liveness_problem() is None
    await asyncio.sleep(1)
    assert replica.liveness_problem() == "leases: the loop has not turned for 61 s"
    stopping.set()
    assert replica.liveness_problem() is None
