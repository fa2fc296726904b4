"""A tenant moves between two shards while it is written to: each operation once, in order, and every row there."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from msgspec import structs
from support.moves.failpoints import set_failpoint
from support.moves.world import OPTIONS, ROWS, TENANT_ID, World
from support.postgres.databases import ShardMaker
from support.postgres.histories import AGE, history_of, keep_history
from support.postgres.plans import plan_of
from support.postgres.tenant_cases import fetch, operation
from support.postgres.trouble import waiters

from simplu_local.processes.loopback import poll_until
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.histories import HistoryRetention
from simplu_worker.shards.log import note_rejections
from simplu_worker.shards.postgres import pool as pool_module
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.settling import MoveSettler, MovingTenant, Progress, SupersededError, read_tenant
from simplu_worker.shards.types import Rejection
from simplu_worker.timing.clock import utc_now
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.checksums import Comparison, check_former_rows, compare_shards
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.sides import MoveUndo, clean_up
from simplu_worker.transfers.moving.types import Certificate

LEFT = QUERIES["find_left_behind"]
OTHERS_SQL = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
END_OTHERS_SQL = OTHERS_SQL.replace("count(*)", "pg_terminate_backend(pid)")
COPIED_SQL = """
INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
SELECT -number, now(), 1, 'c', ARRAY[100 + number % 100], '{patient}', '{sqs}'
FROM generate_series(1, 20000) AS made (number)
"""
SCANS_SQL = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('resources', 'log_rows', 'log_outcomes')"


@pytest.mark.slow
async def test_tenant_moves_with_all_of_its_rows(world: World) -> None:
    before = await world.case("a").resources(), await world.case("a").log()

    certificate = await world.move()

    assert await world.states() == {"a": "moved", "b": "active"}
    assert (await world.case("b").resources(), await world.case("b").log()) == before
    assert (certificate.comparison.verdict, certificate.epoch) == ("equal", 2)
    assert certificate.comparison.source["patient"].row_count == 3000
    assert certificate.comparison.source == certificate.comparison.target
    assert certificate.pause_s is not None


@pytest.mark.slow(0.3)
async def test_what_people_have_set_and_is_owed_moves_with_the_tenant(world: World) -> None:
    source, target = world.shard_pools["a"], world.shard_pools["b"]
    await fetch(source, "UPDATE tenants SET paused_until = now() + interval '1 hour', weight = 0.25, bytes_per_s = 9")
    controls = "INSERT INTO business_controls (business_id, weight, set_at) VALUES ('clinic', $1, now() - $2::interval)"
    await fetch(source, controls, 2.0, timedelta())
    await fetch(target, controls, 3.0, timedelta(seconds=1))
    owed = "INSERT INTO limit_buckets SELECT {}, now() + $1 * interval '1 h', now() + $2 * interval '1 h'"
    await fetch(source, owed.format("'t/' || number") + " FROM tenants WHERE business_id = 'clinic'", 1, 2)
    for pool, hours in ((source, (3, -4)), (target, (-5, 6))):
        await fetch(pool, owed.format("'b/clinic'"), *hours)
    query = """
    SELECT tenants.paused_until, tenants.weight, tenants.bytes_per_s, business_controls.weight AS business_weight
    FROM tenants LEFT JOIN business_controls USING (business_id) WHERE id = $1
    """
    before = await fetch(source, query, TENANT_ID)

    await world.move()
    assert await fetch(target, query, TENANT_ID) == before
    owed = """
    SELECT target = 't/' || number AS of_tenant, round(extract(epoch FROM operations_at - now()) / 3600)::int AS a,
        round(extract(epoch FROM bytes_at - now()) / 3600)::int AS b
    FROM limit_buckets CROSS JOIN tenants WHERE id = $1 ORDER BY of_tenant
    """
    assert [tuple(row.values()) for row in await fetch(target, owed, TENANT_ID)] == [(False, 3, 6), (True, 1, 2)]

    await fetch(target, "UPDATE tenants SET paused_until = NULL, weight = 4, bytes_per_s = NULL")
    await fetch(source, "UPDATE business_controls SET weight = 5, set_at = now()")
    await world.move("b", "a")
    assert [tuple(row.values()) for row in await fetch(source, query, TENANT_ID)] == [(None, 4.0, None, 5.0)]


@pytest.mark.slow(3)
async def test_tenant_is_written_to_while_it_moves_there_and_back(world: World) -> None:
    stopping = asyncio.Event()
    world.values = {str(number): number for number in range(1, 401)}
    writing = asyncio.create_task(world.write_until(stopping))
    certificates = []
    for source, target in (("a", "b"), ("b", "a"), ("a", "b")):
        certificates.append(await world.move(source, target))
    stopping.set()
    await writing

    assert [one.comparison.verdict for one in certificates] == ["equal"] * 3
    assert await world.states() == {"a": "moved", "b": "active"}
    resources = await world.case("b").resources()
    for key in map(str, range(1, 401)):
        data: Any = resources.get(("patient", key))
        assert (None if data is None else data["n"]) == world.values.get(key), key
    history = await history_of(world.shard_pools["b"], TENANT_ID)
    for key, written in world.history.items():
        assert history["patient", key][1:] == written
    assert len(await world.case("b").log()) == 500 + world.applied
    back = certificates[1]
    assert (
        back.rows_copied < 3000 or back.epoch > back.epoch_before + 1
    )  # warm, unless a worker has ended the first fence


@pytest.mark.slow
async def test_two_movers_exclude_each_other(world: World) -> None:
    results = await asyncio.gather(world.move(), world.move(), return_exceptions=True)

    assert any(isinstance(one, Certificate) for one in results), results
    assert all(isinstance(one, Certificate | PermanentError) for one in results), results
    assert not all(isinstance(one, SupersededError) for one in results)
    assert await world.states() == {"a": "moved", "b": "active"}


async def test_worker_ends_a_fence_after_its_deadline_only(world: World) -> None:
    pool = world.shard_pools["a"]
    settler = MoveSettler(world.pools, world.commits)
    fence = "UPDATE tenants SET state = 'fenced', move_token = 7, fenced_until = clock_timestamp() + $1::interval"
    await fetch(pool, fence, timedelta(minutes=1))
    assert not await settler.end_overdue_fence("a", TENANT_ID)
    assert (await world.states())["a"] == "fenced"

    await fetch(pool, fence, timedelta(seconds=-1))
    assert await settler.end_overdue_fence("a", TENANT_ID)
    assert await fetch(pool, "SELECT state, move_token FROM tenants") == [{"state": "active", "move_token": 8}]


async def test_time_of_a_locked_row_is_that_after_the_wait(world: World) -> None:
    pool = world.shard_pools["a"]
    async with pool.transaction() as batch:
        await batch.fetch("SELECT FROM public.tenants WHERE id = $1 FOR SHARE", TENANT_ID)
        locking = asyncio.create_task(_read_locked(pool))
        await waiters(batch)
        ends_at = await batch.fetchval("SELECT pg_catalog.clock_timestamp()")
    tenant = await locking
    assert tenant is not None
    assert tenant.read_at > ends_at


async def _read_locked(pool: ShardPool) -> MovingTenant | None:
    async with pool.transaction() as connection:
        return await read_tenant(connection, TENANT_ID, locked=True)


@pytest.mark.slow(0.3)
async def test_notes_beside_the_log_are_moved_though_they_come_after_the_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def note(shard_id: str, request_id: str) -> None:
        pool = world.shard_pools[shard_id]
        business_id = TENANT_ID.partition("-")[0]
        origin = operation("read").origin
        rejection = Rejection(TENANT_ID, business_id, request_id, "invalid_json", "no JSON", origin)
        assert await note_rejections(pool, "dead-letters", [rejection]) == {TENANT_ID: rejection.business_id}

    async def notes(shard_id: str) -> list[str]:
        pool = world.shard_pools[shard_id]
        rejected = await fetch(pool, "SELECT request_id FROM rejections WHERE tenant_id = $1 ORDER BY 1", TENANT_ID)
        return [row["request_id"] for row in rejected]

    original = Mover._verify_live

    async def verify(mover: Mover, progress: Progress) -> None:
        await original(mover, progress)
        await note("a", "after-the-copy")

    await note("a", "before")
    with monkeypatch.context() as patch:
        patch.setattr(Mover, "_verify_live", verify)
        assert (await world.move()).comparison.verdict == "equal"
    assert await notes("b") == ["after-the-copy", "before"]

    await note("b", "on-the-target")
    certificate = await world.move("b", "a")
    assert certificate.rows_copied < 3000  # warm
    assert await notes("a") == ["after-the-copy", "before", "on-the-target"]


@pytest.mark.slow(1)
async def test_cleanup_deletes_what_the_tenant_left_and_the_way_back_copies_everything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.move()
    before = await world.case("b").resources()

    assert await fetch(world.shard_pools["b"], LEFT, timedelta()) == []
    assert await fetch(world.shard_pools["a"], LEFT, timedelta(hours=1)) == []
    left = [{"tenant_id": TENANT_ID, "target_shard_id": "b", "differs": False}]
    assert await fetch(world.shard_pools["a"], LEFT, timedelta()) == left
    await fetch(world.shard_pools["a"], "UPDATE transfers SET step = 'cleaning'")  # as by a command that was killed
    assert await fetch(world.shard_pools["a"], LEFT, timedelta(hours=1)) == left
    async with Pools(size=1) as pools:  # a count holds no other connection
        for pool in world.shard_pools.values():
            pools.ensure_pool(pool.address)
        assert await clean_up(pools, world.commits, TENANT_ID, "a", "b", apply=False) == 3500
        monkeypatch.setattr(pool_module, "COUNT_S", 0.0)
        with pytest.raises(RetryableError, match="were not counted"):
            await clean_up(pools, world.commits, TENANT_ID, "a", "b", apply=False)
    assert await clean_up(world.pools, world.commits, TENANT_ID, "a", "b") == 3500

    assert await world.states() == {"a": "moved", "b": "active"}
    assert (await world.case("a").resources(), await world.case("a").log()) == ({}, {})
    assert await world.case("b").resources() == before
    assert await fetch(world.shard_pools["a"], LEFT, timedelta()) == []
    certificate = await world.move("b", "a")
    assert (certificate.rows_copied, certificate.comparison.verdict) == (6501, "equal")
    assert await world.case("a").resources() == before
    assert await clean_up(world.pools, world.commits, TENANT_ID, "a", "b") is None  # it is at home there


@pytest.mark.slow(1)
async def test_cleanup_finds_rows_by_their_keys(fresh_world: World) -> None:
    await fresh_world.move()
    observer = await asyncpg.connect(fresh_world.shard_pools["a"].address.connection_string)

    async def are_alone() -> bool:
        return bool(await observer.fetchval(OTHERS_SQL) == 0)

    async def scan_count() -> int:
        await observer.execute(END_OTHERS_SQL)
        assert await poll_until(are_alone, within_s=60)
        return int(await observer.fetchval(SCANS_SQL))

    before = await scan_count()
    async with Pools(size=2) as pools:
        for pool in fresh_world.shard_pools.values():
            pools.ensure_pool(pool.address)
        assert await clean_up(pools, fresh_world.commits, TENANT_ID, "a", "b") == 3500
    assert await scan_count() == before
    await observer.close()


async def test_copied_batches_of_a_tenant_are_found_among_those_of_others(world: World) -> None:
    pool = world.shard_pools["b"]
    await fetch(pool, COPIED_SQL)
    await fetch(pool, "ANALYZE log_batches, tenants")
    async with pool.transaction(budget=StatementBudget.KEY_RANGE) as connection:
        plan = await plan_of(connection, "drop_batches", TENANT_ID, 5000)
    assert "log_batches_moves" in plan


@pytest.mark.slow(0.4)
async def test_move_is_undone_before_its_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    is_copied, is_undone = asyncio.Event(), asyncio.Event()

    async def wait(_: object) -> None:
        is_copied.set()
        await is_undone.wait()

    set_failpoint("after _copy", wait, monkeypatch.setattr)
    run = asyncio.create_task(world.move())
    await is_copied.wait()
    await MoveUndo(world.pools, TENANT_ID, "a", "b").run()
    is_undone.set()

    with pytest.raises(PermanentError, match="another mover has started since"):
        await run
    assert await world.states() == {"a": "active"}
    assert await world.case("b").resources() == {}
    assert [(one.step, one.outcome) for one in await world.journal("a")] == [("undone", "undone")]
    assert (await world.move()).comparison.verdict == "equal"


@pytest.mark.slow(0.3)
async def test_journal_has_why_a_mover_gave_up_and_then_the_certificate(world: World) -> None:
    with pytest.raises(PermanentError, match="expected a pause of at most 0 s"):
        await world.mover(options=structs.replace(OPTIONS, max_pause_s=0.0)).run()
    (failed,) = await world.journal("a")
    assert (failed.step, failed.outcome, failed.target_shard_id) == ("open", "failed", "b")
    assert (failed.phase, failed.row_count) == ("catch up", 6501)
    assert "expected a pause" in (failed.error or "")

    certificate = await world.move()
    (ended,) = await world.journal("a")
    assert (ended.outcome, ended.error, ended.is_unfinished) == ("moved", None, False)
    assert (ended.rows_copied, ended.pause_s) == (6501, certificate.pause_s)

    assert (await world.move()).pause_s is None
    (again,) = await world.journal("a")
    assert (again.pause_s, again.updated_at) == (certificate.pause_s, ended.updated_at)


@pytest.mark.slow(0.4)
async def test_difference_is_found_until_operations_correct_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, case = world.shard_pools["b"], world.case("b")

    async def spoil(_: Any) -> None:
        await fetch(pool, """UPDATE resources SET data = data || '{"n": -1}' WHERE "resourceId" = '7'""")
        await fetch(pool, "DELETE FROM resources WHERE \"resourceId\" = '8'")
        await fetch(pool, ROWS.replace("'patient'", "'stranger'"), TENANT_ID, 1)

    set_failpoint("after _verify_live", spoil, monkeypatch.setattr)
    assert (await world.move()).comparison.verdict == "differs"
    await case.apply(case.operation("update", "5", {"n": 0}))
    arrival = await world.arrival("b")

    async def compared() -> Comparison:
        assert arrival.ready_at is not None
        return await compare_shards(
            world.shard_pools["a"], pool, TENANT_ID, arrival.ready_at, live_on_source=False, log_kept=timedelta(days=1)
        )

    comparison = await compared()
    assert (comparison.verdict, comparison.differing) == (
        "differs",
        [("patient", "7"), ("patient", "8"), ("stranger", "1")],
    )
    for key in ("7", "8"):
        await case.apply(case.operation("update", key, {"n": int(key)}))
    await case.apply(case.operation("delete", "1", resource_type="stranger"))
    assert (await compared()).is_equal  # what its producers have sent again


@pytest.mark.parametrize("since", ["cleanup", "another life"])
@pytest.mark.slow(0.3)
async def test_rows_are_not_compared_that_are_not_those_of_the_move_any_more(
    world: World, since: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.move()
    source, target = world.shard_pools["a"], world.shard_pools["b"]
    if since == "cleanup":

        async def killed(shard: ShardPool, tenant_id: str, *_: object) -> int:
            await fetch(shard, "DELETE FROM resources WHERE \"resourceId\" < '5' AND id = $1", tenant_id)
            raise asyncio.CancelledError

        monkeypatch.setattr("simplu_worker.transfers.moving.sides.drop_rows", killed)
        with pytest.raises(asyncio.CancelledError):
            await clean_up(world.pools, world.commits, TENANT_ID, "a", "b")
    else:
        await fetch(target, "DELETE FROM resources")
        await fetch(target, "UPDATE tenants SET epoch = epoch + 1")
    with pytest.raises(PermanentError, match="as of the move"):
        await check_former_rows(source, target, TENANT_ID, await world.arrival("b"))


@pytest.mark.slow(0.5)
async def test_histories_with_days_are_equal_though_one_shard_has_deleted_more(world: World) -> None:
    source, target = world.shard_pools["a"], world.shard_pools["b"]
    await fetch(source, "UPDATE resources SET data = '{}' WHERE \"resourceId\" < '5'")
    await fetch(source, AGE, TENANT_ID)
    for pool in (source, target):
        await keep_history(pool, "patient", keep="90d")
    await world.move()

    counts = await HistoryRetention(world.pools).take_turn()

    assert counts["a"] == 0 < counts["b"]

    async def are_equal() -> bool:
        kept = timedelta(days=15)
        found = await compare_shards(source, target, TENANT_ID, utc_now(), live_on_source=False, log_kept=kept)
        return found.is_equal

    assert await are_equal()
    for pool in (source, target):
        await keep_history(pool, "patient")
    assert not await are_equal()


@pytest.mark.slow(0.3)
async def test_target_that_lost_the_tenant_after_the_commit_gets_it_again_as_of_the_fence(world: World) -> None:
    position = (
        "INSERT INTO stream_positions (stream, stream_shard_id, pending_from, parents_done, token)"
        " VALUES ('s', 'shard-1', $1, true, gen_random_uuid())"
    )
    for shard_id, pending_from in (("a", "100/0"), ("b", "120/0")):
        await fetch(world.shard_pools[shard_id], position, pending_from)
    before = await world.case("a").resources()
    await world.move()
    for table in ("tenants", "resources", "log_batches", "log_rows", "transfers"):
        await fetch(world.shard_pools["b"], f"DELETE FROM {table}")
    for pool in world.shard_pools.values():
        await fetch(pool, "UPDATE stream_positions SET pending_from = '150/0'")

    certificate = await world.move()

    assert (certificate.comparison.verdict, await world.states()) == ("equal", {"a": "moved", "b": "active"})
    assert await world.case("b").resources() == before
    assert await fetch(world.shard_pools["b"], "SELECT pending_from FROM stream_positions") == [
        {"pending_from": "100/0"}
    ]


@pytest.mark.slow(0.3)
async def test_target_that_lost_the_tenant_after_a_cleanup_is_not_filled_with_nothing(world: World) -> None:
    await world.move()
    assert await clean_up(world.pools, world.commits, TENANT_ID, "a", "b") == 3500
    for table in ("tenants", "resources", "log_batches", "log_rows", "transfers"):
        await fetch(world.shard_pools["b"], f"DELETE FROM {table}")

    with pytest.raises(PermanentError, match="cleanup"):
        await world.move()
    assert await world.states() == {"a": "moved"}


@pytest.mark.parametrize("since", ["moved on", "destroyed"])
@pytest.mark.slow(1)
async def test_cleanup_deletes_what_a_tenant_left_that_is_not_on_its_next_shard_any_more(
    world: World, make_shard: ShardMaker, since: str
) -> None:
    await world.move()
    if since == "moved on":
        world.shard_pools["c"] = world.pools.ensure_pool(await make_shard("c"))
        await keep_history(world.shard_pools["c"], "patient")
        await world.move("b", "c")
    else:
        await fetch(world.shard_pools["b"], "DELETE FROM resources")
        await fetch(world.shard_pools["b"], "UPDATE tenants SET state = 'destroyed'")

    assert await clean_up(world.pools, world.commits, TENANT_ID, "a", "b") == 3500
    assert (await world.case("a").resources(), await world.case("a").log()) == ({}, {})
    assert (await world.states())["a"] == "moved"
