"""Tenants send twice their limits, while a replica is killed with -9, and each of them moves to the other shard."""

from __future__ import annotations

import asyncio
from itertools import accumulate, pairwise

import pytest
from acceptance.moving import find_differences, ids, run_command
from support.load import testbed as load
from support.load.operation_chains import ChainPlan
from support.rows import fetch

from simplu_worker.operations.limits import HELD_MAX_S, IDLE_MAX_S, LATE_S

LIMITS = {"--operations": ("40/s", 40), "--bytes": ("20kB/s", 20_000)}
SENT_PER_S = {"--operations": 80.0, "--bytes": 100.0}  # of 400 bytes in the mean
PHASE_S = 8.0
LOG_SQL = """
SELECT extract(epoch FROM completed_at)::float8 AS at, array_agg(request_id) AS requests
FROM operations WHERE tenant_id = $1 GROUP BY at ORDER BY at
"""


def check_limit(rows: list[tuple[float, float]]) -> None:
    """Check *rows*, the time of each transaction, and the seconds that it took of a limit, beyond which more waits."""
    times, spent_s = zip(*rows, strict=True)
    sums = list(accumulate(spent_s))
    waits_s = [after - before for before, after in pairwise(times)]  # what a slow machine takes longer is lost
    for at, some in zip(times, sums, strict=True):
        longest_s = max(one for begin, one in zip(times, waits_s, strict=False) if at - LATE_S <= begin <= at + 10)
        saved_s = min(max(longest_s, IDLE_MAX_S), HELD_MAX_S)  # what a reader was late with may come at once
        assert max(more for then, more in zip(times, sums, strict=True) if at <= then <= at + 10) - some <= 10 + saved_s
    assert sums[-1] - sums[0] >= 0.95 * sum(min(one, HELD_MAX_S) for one in waits_s if one < LATE_S)


@pytest.mark.slow(40)
async def test_limits_hold_while_a_replica_is_killed_and_tenants_move() -> None:
    env = {"KINESIS_LEASE_DURATION_SECONDS": "3"}
    async with load.Testbed(shards=2, stream_shards=2, tenants_per_shard=1, replicas=2, worker_env=env) as testbed:
        tenants = dict(zip(LIMITS, testbed.tenants_of(), strict=True))
        targets = dict(zip(LIMITS, reversed(testbed.stack.servers.items()), strict=True))
        plans = {one: ChainPlan(one[2:], (tenant,), padding_bytes=400) for one, tenant in tenants.items()}

        async def run_each(verb: str, **options: list[str]) -> None:
            commands = [("tenants", verb, *ids(tenants[one]), *options[one], "--json") for one in LIMITS]
            await asyncio.gather(*(run_command(testbed, *command) for command in commands))

        await run_each("limit", **{one: [one, text] for one, (text, _) in LIMITS.items()})
        for one, plan in plans.items():
            testbed.start_flow(plan, rate=SENT_PER_S[one], interval_s=0.1)
        await asyncio.sleep(PHASE_S)
        testbed.workers.pop().kill()
        await asyncio.sleep(PHASE_S)
        await run_each("move", **{one: ["--to", shard_id, "--apply"] for one, (shard_id, _) in targets.items()})
        await asyncio.sleep(PHASE_S)

        for one, (_, server) in targets.items():
            testbed.homes[tenants[one].tenant_id] = server.url
            sizes = [len(item.record) for item in plans[one].items(10_000)] if one == "--bytes" else [1] * 10_000
            rows = await fetch(server.url, LOG_SQL, tenants[one].tenant_id)
            numbers = [[plans[one].number_of(request) or 0 for request in row["requests"]] for row in rows]
            spent_s = [sum(sizes[number] for number in own) / LIMITS[one][1] for own in numbers]
            check_limit([(row["at"], one_s) for row, one_s in zip(rows, spent_s, strict=True)])
        await run_each("limit", **{one: ["--none"] for one in LIMITS})
        assert await find_differences(testbed) == []
        await testbed.stop_workers()
