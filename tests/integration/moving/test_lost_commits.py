"""One of the two shards of a move is replaced by a standby without its last commits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from support.moves.failpoints import set_failpoint
from support.moves.world import LOGGED, OPTIONS, ROWS, TENANT_ID
from support.postgres.databases import ShardMaker, copy_shard, database_of
from support.postgres.standby_pair import require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.transfers.engine import TransferStatus
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move
from simplu_worker.vocabulary import MovePhase

POINTS = ("before _fence", "after _fence", "after _finish_copy", "before _commit", "after _commit")
POINT_OF = {f"clinic-{number}": point for number, point in enumerate(POINTS)}  # by tenant


class Meeting:
    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._are_all_here = asyncio.Event()
        self._is_over = asyncio.Event()

    async def wait(self, mover: Any) -> None:
        self._waiting.add(mover._move.tenant_id)
        if len(self._waiting) == len(POINT_OF):
            self._are_all_here.set()
        await self._is_over.wait()

    async def wait_for_all(self) -> None:
        async with asyncio.timeout(60):
            await self._are_all_here.wait()

    def end(self) -> None:
        self._is_over.set()


def let_movers_meet(monkeypatch: pytest.MonkeyPatch, before_delta: Meeting, before_failover: Meeting) -> None:
    """Let all movers wait before the last round of their catch-up, and then each at its own point."""
    rounds = Counter[str]()

    async def wait_before_second_round(mover: Any) -> None:
        rounds[mover._move.tenant_id] += 1
        if rounds[mover._move.tenant_id] == 2:
            await before_delta.wait(mover)

    async def wait_at_own_point(point: str, mover: Any) -> None:
        if POINT_OF[mover._move.tenant_id.removesuffix("-main")] == point:
            await before_failover.wait(mover)

    set_failpoint("before _catch_up", wait_before_second_round, monkeypatch.setattr)
    for point in POINTS:
        set_failpoint(point, partial(wait_at_own_point, point), monkeypatch.setattr)


@pytest.mark.slow(3)
async def test_move_ends_with_what_the_promoted_standby_has(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One mover for each step: the standby lacks the last operations, the fences, and the commit of a move.
    require_postgres()
    with ProcessGroup() as group:
        pair = await start_pair(group)
        address = await copy_shard(pair.primary, "a")
        async with Pools(size=12) as pools:
            source, target = pools.ensure_pool(address), pools.ensure_pool(await make_shard("b"))
            cases = {tenant_id: TenantCase(source, (tenant_id, "main")) for tenant_id in POINT_OF}
            late = {}
            for tenant_id, case in cases.items():
                await add_tenant(source, case.ids)
                await fetch(source, ROWS, case.tenant_id, 200)
                await fetch(source, LOGGED, case.tenant_id, 30)
                late[tenant_id] = [case.operation("update", "17", {"n": "late"}), case.operation("create", "new", {})]
            before_delta, before_failover = Meeting(), Meeting()
            let_movers_meet(monkeypatch, before_delta, before_failover)
            commits = ReplicationWaiter(pools)
            movers = [
                Mover(pools, commits, Move(case.tenant_id, "a", "b"), OPTIONS, show=lambda _: None)
                for case in cases.values()
            ]
            running = asyncio.gather(*(mover.run() for mover in movers))

            await before_delta.wait_for_all()
            await pair.standby.catch_up()
            await pair.standby.fall_behind()
            for tenant_id, case in cases.items():
                await case.apply(*late[tenant_id])
            before_delta.end()
            await before_failover.wait_for_all()
            left = await fetch(source, "SELECT state, count(*) FROM tenants GROUP BY state")
            assert {row["state"]: row["count"] for row in left} == {"active": 1, "fenced": 3, "moved": 1}
            copied = await fetch(target, "SELECT count(*) FROM resources WHERE \"resourceId\" = 'new'")
            assert copied[0]["count"] == len(POINT_OF)
            await pair.primary.kill()
            await pair.standby.promote()
            pools.pool_of("a").switch_to(ShardAddress("a", pair.standby.url_of(database_of(address))))
            before_failover.end()
            certificates = await running

            assert [one.comparison.verdict for one in certificates] == ["equal"] * len(POINT_OF)
            for tenant_id, case in cases.items():
                moved = TenantCase(target, case.ids)
                assert await moved.resources() == await case.resources()
                assert await moved.log() == await case.log()
                assert ("patient", "new") not in await moved.resources()
                for disposition in (Disposition.APPLIED, Disposition.DUPLICATE):
                    outcomes = await moved.apply(*late[tenant_id])
                    assert {one.disposition for one in outcomes} == {disposition}
                resources: Any = await moved.resources()
                assert (len(resources), resources["patient", "17"]) == (201, {"n": "late"})
                assert len(await moved.log()) == 32


@pytest.mark.slow(4)
async def test_rows_that_a_promoted_standby_lacks_are_copied_again(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_postgres()
    with ProcessGroup() as group:
        pair = await start_pair(group)
        address = await copy_shard(pair.primary, "b")
        async with Pools(size=6) as pools:
            source, target = pools.ensure_pool(await make_shard("a")), pools.ensure_pool(address)
            case, entered = TenantCase(source, TENANT), list[MovePhase]()
            await add_tenant(source)
            await fetch(source, ROWS, TENANT_ID, 1000)

            async def write_what_the_standby_misses() -> None:
                await pair.standby.catch_up()
                await pair.standby.fall_behind()
                await case.apply(case.operation("update", "17", {"n": "late"}), case.operation("create", "new", {}))

            async def fail_over() -> None:
                await pair.primary.kill()
                await pair.standby.promote()
                pools.pool_of("b").switch_to(ShardAddress("b", pair.standby.url_of(database_of(address))))

            def is_in_second_round() -> bool:
                return entered.count(MovePhase.CATCH_UP) == 2

            do_before_next(monkeypatch, source, is_in_second_round, write_what_the_standby_misses)
            do_before_next(monkeypatch, target, lambda: MovePhase.FENCE in entered, fail_over)

            def show(status: TransferStatus) -> None:
                if not entered or entered[-1] != status.phase:
                    entered.append(MovePhase(status.phase))

            mover = Mover(pools, ReplicationWaiter(pools), Move(TENANT_ID, "a", "b"), OPTIONS, show=show)
            certificate = await mover.run()

            assert certificate.comparison.verdict == "equal"
            assert entered.count(MovePhase.FENCE) == 2
            moved = TenantCase(pools.pool_of("b"), TENANT)
            assert await moved.resources() == await case.resources()
            assert await moved.log() == await case.log()


def do_before_next(
    monkeypatch: pytest.MonkeyPatch, pool: ShardPool, condition: Callable[[], bool], act: Callable[[], Awaitable[None]]
) -> None:
    original, is_done = pool.transaction, False

    @asynccontextmanager
    async def transaction(**options: Any) -> AsyncIterator[Any]:
        nonlocal is_done
        if not is_done and condition():
            is_done = True
            await act()
        async with original(**options) as connection:
            yield connection

    monkeypatch.setattr(pool, "transaction", transaction)
