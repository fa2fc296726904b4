"""Moves that are refused, or given up: what people are told, and that the tenant goes on."""

from __future__ import annotations

import re

import pytest
from msgspec import structs
from support.moves.world import OPTIONS, TENANT_ID, World
from support.postgres.databases import execute
from support.postgres.tenant_cases import fetch

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.settling import TransferRefusedError
from simplu_worker.transfers.moving import places
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move, PauseTooLongError


@pytest.mark.parametrize(("shard_id", "trouble"), [("b", "53100"), ("b", "25006"), ("a", "25006")])
@pytest.mark.slow(3)
async def test_mover_gives_up_with_the_state_of_the_tenant_and_goes_on_later(
    world: World, monkeypatch: pytest.MonkeyPatch, shard_id: str, trouble: str
) -> None:
    monkeypatch.setattr("simplu_worker.transfers.engine.PATIENCE_S", 0.0)
    monkeypatch.setattr("simplu_worker.transfers.engine.PAUSE_S", 0.05)
    table = "resources" if shard_id == "b" else "transfers"
    pool = world.shard_pools[shard_id]
    await fetch(
        pool,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE 'refused' USING ERRCODE = '{trouble}'; END $$",
    )
    await fetch(pool, f"CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail()")

    with pytest.raises(RetryableError, match=rf"({trouble}).*the tenant stays on shard a; run the same command again"):
        await world.move()
    assert (await world.states())["a"] == "active"

    await fetch(pool, f"DROP TRIGGER fail ON {table}")
    await pool.probe()
    assert (await world.move()).comparison.verdict == "equal"


REFUSED_DATA = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused' USING ERRCODE = '22023'; END $$;
CREATE TRIGGER fail BEFORE INSERT ON resources FOR EACH ROW EXECUTE FUNCTION fail()
"""
OTHER_TENANT = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
VALUES ('clinic-main', 'clinic-main', '', 'dental', 'destroyed', now(), now())
"""


@pytest.mark.parametrize(
    ("shard_id", "statements", "error"),
    [
        ("b", REFUSED_DATA, "the tenant stays on shard a; run the same command again to continue, or tenants rollback"),
        ("a", "UPDATE tenants SET state = 'fenced'", "is being restored: .* run: simplu-worker tenants restore"),
        ("a", "UPDATE tenants SET state = 'destroyed'", "the tenant is destroyed; run: simplu-worker tenants rollback"),
        ("b", OTHER_TENANT, "has this id for business clinic-main at location ; the tenant stays on shard a; run: "),
    ],
    ids=["data", "restore", "destroyed", "other tenant"],
)
async def test_error_that_ends_a_mover_has_the_state_of_the_tenant_and_the_next_command(
    world: World, shard_id: str, statements: str, error: str
) -> None:
    await execute(world.shard_pools[shard_id].address.connection_string, statements)
    with pytest.raises(TransferRefusedError, match=error):
        await world.move()
    for entry in await world.journal("a"):
        assert re.search(error, entry.error or "")


class Time:
    """The time of moves: it passes a little when it is asked for, and where a test says so, on any machine alike."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now

    def mover(self, world: World) -> Mover:
        """Return a mover that pauses a tenant for a quarter of a second at most, by this time."""
        options = structs.replace(OPTIONS, max_pause_s=0.25)
        move = Move(TENANT_ID, "a", "b")
        return Mover(world.pools, world.commits, move, options, show=world.statuses.append, clock=self)

    def commits(self, world: World, *, late_count: int) -> ReplicationWaiter:
        class LateByThisTime(ReplicationWaiter):
            async def wait_for_transaction(_, shard_id: str, server: Server, *, within_s: float | None = None) -> None:  # noqa: N805
                nonlocal late_count
                late_count -= 1
                self.now += 0.15 if late_count >= 0 else 0.0
                await super().wait_for_transaction(shard_id, server, within_s=within_s)

        return LateByThisTime(world.pools)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Time:
    moment = Time()
    monkeypatch.setattr(places, "loop_time", moment)
    return moment


@pytest.mark.slow(2)
async def test_move_is_refused_before_the_fence_while_standbys_take_too_long(world: World, moment: Time) -> None:
    world.commits = moment.commits(world, late_count=100)
    with pytest.raises(PauseTooLongError, match="standbys of shards a and b"):
        await moment.mover(world).run()
    assert await fetch(world.shard_pools["a"], "SELECT state, fenced_until FROM tenants") == [
        {"state": "active", "fenced_until": None}
    ]

    world.commits = moment.commits(world, late_count=4)  # a standby that hung, and is not awaited any more
    certificate = await moment.mover(world).run()
    assert certificate.comparison.verdict == "equal"
    assert certificate.pause_s is not None
    assert certificate.pause_s < certificate.phases_s["rehearse"]


@pytest.mark.slow(0.4)
async def test_standbys_are_looked_at_before_a_move_begins(world: World) -> None:
    seen: list[tuple[str, int]] = []

    class WatchedCommits(ReplicationWaiter):
        async def wait_for_transaction(self, shard_id: str, server: Server, *, within_s: float | None = None) -> None:
            seen.append((shard_id, len(await fetch(world.shard_pools["a"], "SELECT FROM transfers"))))
            await super().wait_for_transaction(shard_id, server, within_s=within_s)

    world.commits = WatchedCommits(world.pools)
    await world.move()
    assert seen[:2] == [("b", 0), ("a", 0)]
