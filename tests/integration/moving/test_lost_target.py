"""The target of a move is replaced by a standby without its last commits, while the tenant is fenced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.moves.world import OPTIONS, ROWS, TENANT_ID
from support.postgres.databases import ShardMaker, copy_shard, database_of
from support.postgres.standby_pair import require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move, MoveStatus
from simplu_worker.vocabulary import MovePhase


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
                pools.ensure_pool(ShardAddress("b", pair.standby.url_of(database_of(address))))

            def is_in_second_round() -> bool:
                return entered.count(MovePhase.CATCH_UP) == 2

            do_before_next(monkeypatch, source, is_in_second_round, write_what_the_standby_misses)
            do_before_next(monkeypatch, target, lambda: MovePhase.FENCE in entered, fail_over)

            def show(status: MoveStatus) -> None:
                if not entered or entered[-1] is not status.phase:
                    entered.append(status.phase)

            mover = Mover(pools, ReplicationWaiter(pools), Move(TENANT_ID, "a", "b"), OPTIONS, show=show)
            certificate = await mover.run()

            assert certificate.verdict == "equal"
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
