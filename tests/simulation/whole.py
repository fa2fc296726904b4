"""A world in which everything happens that the product does: a part of it, or all, as its seed decides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from msgspec.structs import replace
from simulation.disasters import fail_over
from simulation.simulated_feed import ReceiverFaults
from simulation.simulated_queue import order_event
from simulation.simulated_shards import SHARD_IDS
from simulation.simulated_world import Plan, WholePlan, World

from simplu_worker.feed import shard_feed

READS = (2, 5, 500)  # rows of a read of the feed
MOVE_EVERY_S = (1.0, 6.0)
FENCED_S = (0.02, 1.0)
BALANCED = 0.3
RESTORED = 0.3  # of histories
BACKUP_AGE_S = 5.0
ORDER_AGAIN = 0.05
BAD_ORDERS = 0.03
OF_OTHER_TENANT = 0.2
POISONED = 0.03
OF_STREAM = 0.03  # order events with the request id of a record


def whole_plan(plan: Plan, draws: Random) -> WholePlan:
    is_replicated = draws.random() < 0.7
    has_orders = is_replicated and draws.random() < 0.7
    has_feed = not has_orders or draws.random() < 0.7
    return replace(
        WholePlan(**{name: getattr(plan, name) for name in Plan.__struct_fields__}),
        initial_position="TRIM_HORIZON",
        tenant_count=max(2, plan.tenant_count),
        has_strangers=False,
        trouble_s=draws.uniform(5.0, 15.0),
        order_count=draws.randint(10, 60) if has_orders else 0,
        has_feed=has_feed,
        is_replicated=is_replicated,
        skew_max_s=draws.choice([0.0, 5.0, 55.0]),
        drift_max=draws.choice([0.0, 0.001, 0.02]),
    )


@contextmanager
def bounded_reads(draws: Random, plan: Plan) -> Iterator[None]:
    before = shard_feed.READ_MAX
    if isinstance(plan, WholePlan) and plan.has_feed:
        shard_feed.READ_MAX = draws.choice(READS)  # type: ignore[misc]  # Final elsewhere
    try:
        yield
    finally:
        shard_feed.READ_MAX = before  # type: ignore[misc]


async def live(world: World) -> None:
    draws = world.draws
    if draws.random() < 0.5:
        world.register_all()
    for receiver in world.receivers:
        receiver.faults = ReceiverFaults(*(draws.choice([0.0, 0.02, 0.2]) for _ in range(3)))
    async with asyncio.TaskGroup() as tasks:
        if world.queue is not None:
            tasks.create_task(_produce_orders(world))
        tasks.create_task(_move_tenants(world))
        tasks.create_task(_lose_commits(world))
        if draws.random() < RESTORED:
            tasks.create_task(_restore_tenants(world))
        if world.receivers:
            tasks.create_task(_change_file(world))


async def _produce_orders(world: World) -> None:
    plan, draws = world.parts, world.draws
    tenant_ids = list(world.shards.tenants)
    before: list[tuple[str, str]] = []
    for number in range(plan.order_count):
        await asyncio.sleep(draws.uniform(0, 2 * plan.trouble_s / plan.order_count))
        group = draws.randrange(plan.key_count)
        tenant_id = tenant_ids[(group + (draws.random() < OF_OTHER_TENANT)) % len(tenant_ids)]
        request_id = f"r-{number}.0" if draws.random() < OF_STREAM else f"o-{number}"
        body, group_id = order_event(tenant_id, request_id, f"order-{group}", str(number)), f"g-{group}"
        if draws.random() < BAD_ORDERS:
            body = f"no order {number}"
        elif before and draws.random() < ORDER_AGAIN:
            body, group_id = draws.choice(before)
        elif plan.has_poison and draws.random() < POISONED:
            if all(request_id != applied for _, applied in world.shards.log):  # a record of the stream may have it too
                world.shards.poison.add(request_id)
        else:
            before.append((body, group_id))
        world.put_order(body, group_id, f"d-{number}")


async def _move_tenants(world: World) -> None:
    draws, loop = world.draws, world.loop
    ends_at = loop.time() + world.plan.trouble_s
    while loop.time() < ends_at:
        await asyncio.sleep(draws.uniform(*MOVE_EVERY_S))
        tenants = list(world.shards.tenants.values())
        source = draws.choice(tenants).shard_id
        target = next(shard_id for shard_id in SHARD_IDS if shard_id != source)
        there = [tenant for tenant in tenants if tenant.shard_id == source]
        is_balanced = draws.random() < BALANCED
        for tenant in there[::2] if is_balanced else [draws.choice(there)]:  # one after the other
            world.shards.fence(tenant)
            loop.call_later(draws.uniform(*FENCED_S), world.shards.move, tenant, target)
            await asyncio.sleep(draws.uniform(*FENCED_S))


async def _restore_tenants(world: World) -> None:
    draws, shards = world.draws, world.shards
    for _ in range(draws.randint(1, 3)):
        await asyncio.sleep(draws.uniform(0, world.plan.trouble_s / 3))
        tenant = draws.choice(list(shards.tenants.values()))
        backup = shards.back_up(tenant.shard_id)
        await asyncio.sleep(draws.uniform(0, BACKUP_AGE_S))
        world.ledger.excuse_orders(shards.restore_tenant(tenant, backup) or [])


async def _lose_commits(world: World) -> None:
    for _ in range(world.draws.randint(0, 5)):
        await asyncio.sleep(world.draws.uniform(0, world.plan.trouble_s / 3))
        fail_over(world)


async def _change_file(world: World) -> None:
    for _ in range(world.draws.randint(0, 3)):
        await asyncio.sleep(world.draws.uniform(0, world.plan.trouble_s / 2))
        change_file(world)


def change_file(world: World) -> None:
    world.left_out ^= {world.draws.choice(world.receivers).name}
    use_file(world)


def end_faults_of_feed(world: World) -> None:
    for receiver in world.receivers:
        receiver.faults = ReceiverFaults()
    world.left_out.clear()
    use_file(world)


def use_file(world: World) -> None:
    for replica in world.alive():
        if replica.feed is not None:
            replica.process.context.run(replica.feed.replace, world.destinations())
