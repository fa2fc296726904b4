from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from support.postgres.tenant_cases import fetch
from support.postgres.trouble import calm, make_touchy
from support.reader_world import WAIT, World, chain, outcomes, record

from simplu_worker.commands.stream.replay_rules import ReplayTotals
from simplu_worker.commands.stream.replaying import ReplaySink
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.types import TenantControls

pytestmark = pytest.mark.usefixtures("aws_credentials")

DECODER = RecordDecoder("stream", "shard-0", operation_max_bytes=100_000, list_result_limit=10)


def operations_of(records: Sequence[bytes], *, age: timedelta = timedelta()) -> list[Operation]:
    arrived_at = datetime.now(UTC) - age
    numbered = [Record(str(number), "key", data, arrived_at) for number, data in enumerate(records, 1)]
    return [one for _, _, one in DECODER.decode(numbered) if isinstance(one, Operation)]


def sink_of(world: World, *, apply: bool = True) -> tuple[ReplaySink, ReplayTotals]:
    totals = ReplayTotals()
    return ReplaySink(world.gateway, totals, tenant_wait=WAIT, apply=apply), totals


async def test_replay_applies_each_operation_once_and_in_order(world: World) -> None:
    for tenant, shard_id in (("a-x", "one"), ("b-x", "two")):
        await world.provision(tenant, shard_id)
    sink, totals = sink_of(world)
    await world.gateway.lookups.set_business_controls("b", TenantControls(operations_per_s=3.0))  # waited for
    await sink.send(operations_of(chain("a-x", 3) + chain("b-x", 3)))
    await sink.send(operations_of(chain("a-x", 4)))
    assert totals.outcomes == {"succeeded": 7, "duplicate": 3}
    one, two = await world.shard("one"), await world.shard("two")
    await fetch(one, "UPDATE tenants SET state = 'moved', moved_to = 'two' WHERE id = 'a-x'")
    await fetch(
        two,
        "INSERT INTO tenants (id, business_id, location_id, business_type, state, epoch, control_at, created_at)"
        " SELECT 'a-x', 'a', 'x', business_type, state, 2, control_at, created_at FROM tenants",
    )
    world.citrus.registry.place("a-x", world.citrus.registry.shards["two"])
    await sink.send(operations_of(chain("a-x", 3, first=6) + chain("b-x", 3, first=3)))
    assert totals.outcomes["succeeded"] == 10
    assert totals.left == {"tenant a-x": "it is not on shard one any more; run the command again"}
    again, of_again = sink_of(world)
    await again.send(operations_of(chain("a-x", 3, first=6)))
    assert (of_again.outcomes, of_again.left) == ({"succeeded": 3}, {})
    assert await outcomes(two, "a-x") == ["succeeded"] * 3
    assert await outcomes(two, "b-x") == ["succeeded"] * 6


async def test_replay_leaves_a_tenant_from_the_first_operation_on_that_cannot_be_applied(world: World) -> None:
    for tenant in ("a-x", "b-x", "c-x"):
        await world.provision(tenant, "one")
    one = await world.shard("one")
    await fetch(one, "UPDATE tenants SET state = 'fenced' WHERE id = 'a-x'")
    await make_touchy(one)
    try:
        failing = record("update", "b-x", 1, data={"raise": "P0001"})
        sink, totals = sink_of(world)
        await sink.send(operations_of([*chain("a-x", 2), *chain("b-x", 1), failing, *chain("c-x", 3)]))
        await fetch(one, "UPDATE tenants SET state = 'active' WHERE id = 'a-x'")
        await sink.send(operations_of(chain("a-x", 2) + chain("b-x", 3)))
    finally:
        await calm(one)
    assert totals.outcomes == {"succeeded": 4}
    assert totals.left.keys() == {"tenant a-x", "tenant b-x"}
    assert totals.left_count == 8
    assert [await outcomes(one, tenant) for tenant in ("a-x", "b-x")] == [[], ["succeeded"]]


async def test_operations_without_a_tenant_are_left_until_they_are_dead_letters(world: World) -> None:
    await world.provision("a-x", "one")
    sink, _ = sink_of(world)
    await sink.send(operations_of(chain("a-x", 1)))
    dry_run, dry = sink_of(world, apply=False)
    changed = record("create", "a-x", 0, data={"another": True})
    later = chain("a-x", 2, first=1)
    await dry_run.send(operations_of([*chain("a-x", 1), *later]))
    await dry_run.send(operations_of([changed, *chain("old-x", 2)], age=2 * WAIT))
    await dry_run.send(operations_of(chain("new-x", 2)))
    assert dry.outcomes == {"duplicate": 1, "would_apply": 2, "dead_letter": 3}
    assert dry.dead_letters == {"request_id_reused": 1, "unknown_tenant": 2}
    assert (dry.left, dry.left_count) == ({"tenant new-x": "unregistered"}, 2)
    assert await outcomes(await world.shard("one"), "a-x") == ["succeeded"]


async def test_a_paused_tenant_is_left_in_a_dry_run_too(world: World) -> None:
    for tenant in ("a-x", "b-x"):
        await world.provision(tenant, "one")
    one = await world.shard("one")
    sink, totals = sink_of(world)
    await sink.send(operations_of(chain("b-x", 1)))
    await fetch(one, "UPDATE tenants SET paused_until = now() + interval '1 hour'")
    await sink.send(operations_of(chain("a-x", 2) + chain("b-x", 3)))
    dry_run, dry = sink_of(world, apply=False)
    await dry_run.send(operations_of(chain("a-x", 2) + chain("b-x", 3)))
    assert totals.outcomes == {"succeeded": 1}
    assert dry.outcomes == {"duplicate": 1}
    for left, count in ((totals, 5), (dry, 4)):
        assert (left.left, left.left_count) == ({"tenant a-x": "paused", "tenant b-x": "paused"}, count)
