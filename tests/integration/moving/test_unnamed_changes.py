"""Changes that no operation of the log names: a move takes all of them along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs
from support.moves.failpoints import set_failpoint
from support.moves.world import TENANT_ID, World
from support.postgres.tenant_cases import TENANT

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.types import AdminAccount, ChangeResult
from simplu_worker.transfers.moving.checksums import Comparison, compare_shards
from simplu_worker.vocabulary import Source

SENT_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = timedelta(hours=1)
pytestmark = pytest.mark.slow(0.8)

FIRST, SECOND = ("order", "first"), ("order", "second")
PERSON, ROLE = ("medic", "u-1"), ("role", "u-1")


def order_event(world: World, number: int, resource_id: str) -> Operation:
    """Return the order event *number* of those with one id, each sent longer after the one before than that counts."""
    sent_at = SENT_AT + number * 2 * WINDOW
    event = world.case("a").operation(
        "create",
        resource_id,
        {"n": number},
        resource_type="order",
        request_id="the-id",
        source=Source.SQS,
        timestamp=sent_at.isoformat(),
    )
    return structs.replace(event, window_start=(sent_at - WINDOW).isoformat())


async def take_id(world: World, shard_id: str) -> None:
    """Apply two order events with one id: the second one takes it from the first in the log."""
    events = order_event(world, 1, "first"), order_event(world, 2, "second")
    assert await world.case(shard_id).apply_each(*events) == [SUCCEEDED] * 2
    assert [request for request in await world.case(shard_id).log() if request == "the-id"] == ["the-id"]


async def rename(world: World, shard_id: str) -> None:
    await world.rename(shard_id, "17", "renamed")


async def add_admin(world: World, shard_id: str) -> None:
    """Add an administrator as a control message does, and then give the role another name by an operation."""
    changes = world.changes_on(shard_id)
    admin = AdminAccount(*TENANT, "dental", "ann@clinic.example", "u-1", SENT_AT)
    assert await changes.add_admin(admin) is ChangeResult.APPLIED
    case = world.case(shard_id)
    renamed = case.operation("patch", "u-1", {"name": "Owner"}, resource_type="role")
    assert await case.apply(renamed) == [SUCCEEDED]


CHANGES: dict[str, tuple[Callable[[World, str], Any], set[tuple[str, str]]]] = {
    "an id used again": (take_id, {FIRST, SECOND}),
    "a rename": (rename, {("patient", "renamed")}),
    "an administrator": (add_admin, {PERSON, ROLE}),
}
EACH_CHANGE = pytest.mark.parametrize(("change", "keys"), CHANGES.values(), ids=CHANGES)


async def compared(world: World) -> Comparison:
    ready_at = (await world.arrival("b")).ready_at
    assert ready_at is not None
    source, target = world.shard_pools["a"], world.shard_pools["b"]
    kept = timedelta(days=1)
    return await compare_shards(source, target, TENANT_ID, ready_at, live_on_source=False, log_kept=kept)


@EACH_CHANGE
@pytest.mark.parametrize("point", ["after _copy", "after _verify_live", "before _fence"])
async def test_move_takes_along_what_the_log_does_not_name_when_it_changes_after_the_copy(
    world: World,
    point: str,
    change: Callable[[World, str], Any],
    keys: set[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(_: Any) -> None:
        await change(world, "a")

    set_failpoint(point, act, monkeypatch.setattr)
    certificate = await world.move()

    there = await world.case("b").resources()
    assert keys <= there.keys()
    assert there == await world.case("a").resources()
    assert certificate.comparison.verdict == "equal"


@EACH_CHANGE
async def test_next_mover_takes_along_what_the_log_does_not_name_when_the_first_one_is_killed(
    world: World, change: Callable[[World, str], Any], keys: set[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(_: Any) -> None:
        await change(world, "a")
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        set_failpoint("after _copy", act, patch.setattr)
        with pytest.raises(asyncio.CancelledError):
            await world.move()
    certificate = await world.move()

    assert keys <= (await world.case("b").resources()).keys()
    assert (certificate.comparison.verdict, certificate.rows_copied < 7000) == ("equal", True)


@EACH_CHANGE
async def test_warm_way_back_takes_along_what_the_log_does_not_name(
    world: World, change: Callable[[World, str], Any], keys: set[tuple[str, str]]
) -> None:
    await world.move()
    await change(world, "b")

    assert (await compared(world)).is_equal
    there = await world.case("b").resources()
    certificate = await world.move("b", "a")

    assert keys <= there.keys()
    assert await world.case("a").resources() == there
    assert (certificate.comparison.verdict, certificate.rows_copied < 3000) == ("equal", True)
