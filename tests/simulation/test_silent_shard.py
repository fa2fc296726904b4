"""Order events of many tenants of a shard that does not answer, beside those of a free tenant, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any, cast

import pytest
from simulation.simulated_network import Network
from simulation.simulated_queue import order_event
from simulation.simulated_shards import SHARD_IDS, PostgresShards, SimulatedGateway, Tenant
from simulation.sqs_world import World, virtually
from simulation.virtual_time import VirtualLoop

from simplu_worker.assembly.worker import QUEUE_LIMITS
from simplu_worker.consumers.sqs.order_handler import open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules, tenant_of_order
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.tries import RetryRules

SILENT, FREE = SHARD_IDS
RULES = OrderRules(100_000)
EVENT_COUNT, TENANT_COUNT, FREE_COUNT = 3000, 150, 30
SILENT_S, PROBE_S = 5.0, 3.0  # until an error
READ_S = 0.02 * EVENT_COUNT / 40  # four polls at a time, for ten messages each


class SilentGateway(SimulatedGateway):
    is_silent = True

    async def apply(self, shard_id: str, operations: Sequence[Operation], **more: Any) -> Any:
        await self._wait(shard_id, SILENT_S)
        return await super().apply(shard_id, operations, **more)

    async def probe(self, shard_id: str) -> None:
        await self._wait(shard_id, PROBE_S)

    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None: ...

    async def _wait(self, shard_id: str, seconds: float) -> None:
        if self.is_silent and shard_id == SILENT:
            await asyncio.sleep(seconds)
            raise RetryableError("no answer")


@pytest.mark.slow(5)
@pytest.mark.parametrize(("is_fifo", "first_s"), [(True, 1.0), (False, 1.0 + READ_S)], ids=["fifo", "standard"])
def test_silent_shard_costs_one_wait_not_one_for_each_tenant(*, is_fifo: bool, first_s: float) -> None:
    """In a standard queue the first event of the free tenant comes behind all that are there."""

    async def test(world: World) -> None:
        shards = PostgresShards(Network(cast("VirtualLoop", world.loop), Random(1)), tenant_wait=timedelta(minutes=1))
        silent = [f"b{number}-l" for number in range(TENANT_COUNT)]
        homes = dict.fromkeys(silent, SILENT) | {"free-l": FREE}
        shards.tenants = {one: Tenant(one, shard_id, world.utc()) for one, shard_id in homes.items()}
        gateway, queue = SilentGateway(shards, cost_s=1e-4), world.queue(is_fifo=is_fifo, VisibilityTimeout="30")

        async def send(tenant_id: str, number: int) -> tuple[str, str]:
            name = f"{tenant_id}-{number}"
            await world.send(queue, order_event(tenant_id, name, name, "1"), group=tenant_id)
            return tenant_id, name

        for number in range(EVENT_COUNT):
            await send(silent[number % TENANT_COUNT], number)
        retries, waits_s = RetryRules((1, 5), timedelta(minutes=1)), []
        orders = open_orders(gateway, queue, rules=RULES, retries=retries, draw=world.draws.random, utc=world.utc)
        share = partial(tenant_of_order, rules=RULES)
        async with orders as handler, world.receiving(queue, handler, limits=QUEUE_LIMITS, tenant_of=share):
            for number in range(FREE_COUNT):
                await asyncio.sleep(0.5)
                sent_at = world.loop.time()
                one = await send("free-l", number)
                await world.until(partial(shards.log.__contains__, one))
                waits_s.append(world.loop.time() - sent_at)
            gateway.is_silent = False
            await world.emptied(queue)
        assert len(shards.log) == EVENT_COUNT + FREE_COUNT
        assert waits_s[0] < first_s
        assert max(waits_s[1:]) < 0.5

    virtually(test)()
