"""The log of a tenant is compared with its former shard; notes beside it are copied."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.moves.world import TENANT_ID, World
from support.postgres.databases import execute
from support.postgres.tenant_cases import fetch

from simplu_worker.transfers.moving.checksums import Comparison, compare_shards

NOTES = """
INSERT INTO rejections (tenant_id, request_id, reason, error, dead_letter_queue, source, rejected_at)
SELECT 'clinic-main', 'bad-' || number, 'invalid_json', 'no JSON', 'dead-letters', 'stream', now() - interval '1 minute'
FROM generate_series(1, 3) AS number
"""


OLD_7 = "WHERE request = simplu_key('old-7')"


def outcome(column: str, value: str) -> str:
    return (
        f"INSERT INTO log_outcomes (batch_id, position, tenant_no, {column})"
        f" SELECT batch_id, position, tenant_no, '{value}' FROM log_rows {OLD_7}"
    )


OUTCOMES = {"error": "not_found", "result": '{"n": 1}', "sequence_number": "1"}


async def compared(world: World) -> Comparison:
    since = (await world.arrival("b")).ready_at
    assert since is not None
    source, target = world.shard_pools["a"], world.shard_pools["b"]
    kept = timedelta(days=1)
    return await compare_shards(source, target, TENANT_ID, since, live_on_source=False, log_kept=kept)


def differing(comparison: Comparison) -> list[str]:
    names = sorted({**comparison.source, **comparison.target})
    return [name for name in names if comparison.source.get(name) != comparison.target.get(name)]


@pytest.mark.slow(0.6)
async def test_sums_of_the_log_are_the_same_in_ranges_of_any_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute(world.shard_pools["a"].address.connection_string, NOTES)
    certificate = await world.move()
    sums = certificate.comparison.source
    assert sums["operations"].row_count == 500
    source, target = [await fetch(one, "SELECT * FROM rejections") for one in world.shard_pools.values()]
    assert len(source) == 3
    assert {tuple(one.values()) for one in source} == {tuple(one.values()) for one in target}
    assert certificate.comparison.row_count == 3000

    monkeypatch.setattr("simplu_worker.transfers.moving.checksums.RANGE_S", 1e-9)
    assert (await compared(world)).source == sums


@pytest.mark.parametrize(
    ("shard_id", "statement"),
    [
        ("b", f"UPDATE log_rows SET kind = 'd' {OLD_7}"),
        ("b", f"UPDATE log_rows SET type_at = 2 {OLD_7}"),
        ("b", f"UPDATE log_rows SET resource = NULL {OLD_7}"),
        *(("b", outcome(name, value)) for name, value in OUTCOMES.items()),
        ("b", f"UPDATE log_rows SET origin_at = 2 {OLD_7}"),
        ("b", f"UPDATE log_rows SET received_at = now() {OLD_7}"),
        ("a", f"DELETE FROM log_rows {OLD_7}"),
    ],
)
@pytest.mark.slow(0.4)
async def test_difference_of_the_log_is_found(world: World, shard_id: str, statement: str) -> None:
    await world.move()
    await fetch(world.shard_pools[shard_id], statement)
    assert differing(await compared(world)) == ["operations"]
