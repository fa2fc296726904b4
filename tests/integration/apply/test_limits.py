"""What tenants and businesses with a limit may have applied, counted on their shard."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

import pytest
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch, writer_of

from simplu_worker.operations.limits import NO_LIMIT, WAIT_MAX_S, WAIT_S, Limit
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import RATE_MAX, RATE_MIN
from simplu_worker.timing.clock import loop_time

TENANTS = (("chain", "one"), ("chain", "other"), ("free", "one"))


@pytest.fixture
async def pool(shard: ShardPool) -> ShardPool:
    for ids in TENANTS:
        await add_tenant(shard, ids)
    return shard


async def advance(pool: ShardPool, seconds: float) -> None:
    shifted = ", ".join(f"{one} = {one} - $1::interval" for one in ("operations_at", "bytes_at", "held_until"))
    query = f"UPDATE limit_buckets SET {shifted}"
    await fetch(pool, query, timedelta(seconds=seconds))


def creates(case: TenantCase, count: int) -> list[Operation]:
    return [case.operation("create", f"r{uuid4()}", {"v": 1}) for _ in range(count)]


def applied_count(outcomes: Sequence[Outcome]) -> int:
    """Return how many were applied, and check that these were the first ones, and that the others wait."""
    count = outcomes.count(SUCCEEDED)
    assert outcomes[:count] == [SUCCEEDED] * count
    assert all(one.over_limit_s is not None for one in outcomes[count:])
    return count


@pytest.mark.parametrize(
    ("limit", "default"),
    [
        ("UPDATE tenants SET operations_per_s = 20 WHERE business_id = 'chain'", NO_LIMIT),
        ("INSERT INTO business_controls (business_id, operations_per_s) VALUES ('chain', 40)", NO_LIMIT),
        ("INSERT INTO business_controls (business_id, bytes_per_s) VALUES ('chain', 40 * SIZE)", NO_LIMIT),
        ("UPDATE tenants SET bytes_per_s = 1000000 WHERE business_id = 'free'", Limit(operations_per_s=20)),
    ],
)
async def test_two_writers_apply_what_a_limit_allows_in_order(pool: ShardPool, limit: str, default: Limit) -> None:
    one, other, free = (TenantCase(pool, ids) for ids in TENANTS)
    writers = {own: writer_of(pool, default_limit=default) for own in (one, other)}
    await fetch(pool, limit.replace("SIZE", str(creates(one, 1)[0].size_bytes)))
    for own, writer in writers.items():
        await writer.apply([*creates(own, 1), *creates(free, 1)])  # their buckets have rows
    began_at, count = loop_time(), 0
    for _ in range(40):
        await advance(pool, 0.25)
        for own, writer in writers.items():
            outcomes = await writer.apply([*creates(own, 30), *creates(free, 5)])
            assert outcomes[30:] == [SUCCEEDED] * 5
            count += applied_count(outcomes[:30])
    assert count == pytest.approx(40 * (10 + loop_time() - began_at), rel=0.05)


async def test_redeliveries_take_nothing_and_lost_transactions_give_back(pool: ShardPool) -> None:
    case = TenantCase(pool, TENANTS[0])
    await fetch(pool, "UPDATE tenants SET operations_per_s = 0.01 WHERE id = 'chain-one'")
    first, second = creates(case, 1), creates(case, 2)
    assert await case.apply(*first) == [SUCCEEDED]
    await advance(pool, 90)
    waits_s = (await case.apply(*first, *second))[1].over_limit_s
    assert waits_s is not None
    assert WAIT_S < waits_s <= WAIT_S + 9.5
    await advance(pool, 9.5)
    assert applied_count((await case.apply(*first, *second))[1:]) == 1
    await advance(pool, 100)
    assert await case.apply(*first) == [DUPLICATE]
    await fetch(pool, "UPDATE tenants SET operations_per_s = NULL WHERE id = 'chain-one'")
    assert await case.apply(*second) == [DUPLICATE, SUCCEEDED]


async def test_a_limit_that_is_set_again_forgets_what_is_owed(pool: ShardPool) -> None:
    case = TenantCase(pool, TENANTS[0])
    for query, ids in (("set_controls", ("chain-one", *TENANTS[0])), ("set_business_controls", ("chain",))):
        for rate, wait_s in ((RATE_MIN, pytest.approx(WAIT_MAX_S)), (RATE_MAX, None)):
            await fetch(pool, QUERIES[query], *ids, None, None, None, rate)
            outcomes = await case.apply(*creates(case, 2))
            assert [one.over_limit_s for one in outcomes] == [None, wait_s]
