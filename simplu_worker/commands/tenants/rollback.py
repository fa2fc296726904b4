"""`tenants rollback`: take a move back."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves.plans import COLUMNS, MovePlans, plan_moves, plan_row
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner, with_tenant
from simplu_worker.commands.moves.terms import DEFAULT_BOUNDS, MoveBounds, MoveTerms
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_table
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.settling.rows import read_arrival, read_departure
from simplu_worker.transfers.moving.planning.going_back import WayBack, way_back
from simplu_worker.transfers.moving.planning.places import TenantPlaces, find_places
from simplu_worker.transfers.moving.undoing import count_copied, undo_move
from simplu_worker.vocabulary import MoveOutcome


class RollbackPlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a rollback does, in this order.

    The rows of the copies on the shards *deletes_copies_on* are deleted, the last move, to the tenant's shard, is ended
    if *ends_last_move*, and the tenant moves *back_to* a shard. *shard* has its home, or its row if it was destroyed.
    """

    tenant: str
    shard: str
    deletes_copies_on: tuple[str, ...] = ()
    rows_deleted: int = 0
    ends_last_move: bool = False
    back_to: str | None = None


async def rollback_tenant(
    settings: Settings,
    tenant: tuple[str, str],
    bounds: MoveBounds = DEFAULT_BOUNDS,
    *,
    apply: bool,
    as_json: bool,
    stay: bool = False,
) -> int:
    """Plan to delete the copy of a move that has not ended, or to move the tenant back; with *apply* do so.

    A rollback that was stopped goes on. With *stay* copies are deleted, and the tenant stays. Return 1 if it fails or
    would be refused.
    """
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(*tenant)
    async with open_shards(settings) as shards:
        places = await find_places(shards.locator, shards.pools, tenant_id)
        copies, destroyed_on = places.arriving_on(), places.destroyed_on()
        if destroyed_on is not None and copies:
            home, state = destroyed_on, f"was destroyed on shard {destroyed_on}"
            way = WayBack(tuple(copies))
        else:
            home = _home_of(places)
            state = f"stays on shard {home}"
            way = await _find_way_back(shards, tenant_id, home, copies, stay=stay)
        if not way.undone and stay:
            raise PermanentError(f"{tenant_id}: expected a move that has not ended, got none: its home is shard {home}")
        if way.back_to is not None and way.back_to == way.returned_from:
            await _check_published(shards, settings, tenant_id, home, way.back_to, shlex.join(tenant))
        if not apply:
            return await _plan(shards, tenant, home, way, bounds, as_json=as_json)
        if way.undone:
            count = sum([await undo_move(shards.pools, tenant_id, home, copy) for copy in way.undone])
            if way.back_to is None:
                _print_undone(tenant_id, count, state, as_json=as_json)
                return 0
        terms = MoveTerms(bounds.max_rows_per_second, bounds.max_pause)
        runner = MoveRunner(settings, shards, terms, as_json=as_json)
        status = await runner.run([MoveRequest(*tenant, home)]) if way.ends_last_move else 0
        if way.back_to is not None:
            status = await runner.run([MoveRequest(*tenant, way.back_to)])
    if way.back_to is None:
        _note_return(tenant, home, way)
    elif status:
        print_note(f"{tenant_id}: run the command again to go on, or with --stay to leave the tenant on shard {home}")
    return status


def _home_of(places: TenantPlaces) -> str:
    """Return the shard of a tenant. Raises `RetryableError` if it has left one and not arrived on another."""
    home = places.home()
    if home is None:
        raise RetryableError(
            f"{places.tenant_id}: expected a home, got a tenant that has left its shard; workers activate it within "
            "seconds: run the command again"
        )
    return home


def _note_return(tenant: tuple[str, str], home: str, way: WayBack) -> None:
    if way.returned_from is not None:
        print_note(
            f"{'-'.join(tenant)}: ended the last move, to shard {home}, which had been stopped; to move the tenant "
            f"away from there, run: simplu-worker tenants move {shlex.join(tenant)} --to {way.returned_from} --apply"
        )


async def _plan(
    shards: Shards, tenant: tuple[str, str], home: str, way: WayBack, bounds: MoveBounds, *, as_json: bool
) -> int:
    """Print what a rollback would do. Return 1 if its move would be refused."""
    tenant_id = parse_tenant_id(*tenant)
    count = sum([await count_copied(shards.pools, tenant_id, copy) for copy in way.undone])
    plan = RollbackPlan(tenant_id, home, way.undone, count, way.ends_last_move, way.back_to)
    moves = MovePlans()
    if way.back_to is not None and not way.undone:  # beside another copy a move is refused, and that goes first
        moves = await plan_moves(shards, [MoveRequest(*tenant, way.back_to)], max_pause_s=bounds.max_pause)
    if as_json:
        print_json({"rollback": plan} | moves.members)
    else:
        _print_plan(plan, moves)
    return 1 if moves.problems else 0


def _print_plan(plan: RollbackPlan, moves: MovePlans) -> None:
    for copy in plan.deletes_copies_on:
        print_line(f"{plan.tenant}: the copy on shard {copy} is deleted; the tenant is on shard {plan.shard}")
    if plan.deletes_copies_on:
        print_line(f"{plan.tenant}: {plan.rows_deleted} rows of the copy")
    if plan.ends_last_move:
        print_line(f"{plan.tenant}: the last move, to shard {plan.shard}, is ended: its rows are compared")
    if plan.back_to is not None:
        print_line(f"{plan.tenant}: moves back from shard {plan.shard} to shard {plan.back_to}")
    if moves.plans:
        print_table(COLUMNS, map(plan_row, moves.plans))
    for tenant_id, problem in moves.problems.items():
        print_note(with_tenant(tenant_id, problem))
    print_note("nothing was changed; with --apply this is done")


async def _find_way_back(shards: Shards, tenant_id: str, home: str, copies: Sequence[str], *, stay: bool) -> WayBack:
    """Return the steps of a rollback. Raises `PermanentError` if there is nothing to take back."""
    pools = shards.pools
    async with pools.pool_of(home).connection() as connection:
        arrival, departure = await read_arrival(connection, tenant_id), await read_departure(connection, tenant_id)
    came_from, last_move = None, None
    if arrival is not None:
        came_from = arrival.source_shard_id
        with contextlib.suppress(RetryableError):  # a copy elsewhere can be deleted without this shard
            async with pools.pool_of(came_from).connection() as connection:
                last_move = await read_departure(connection, tenant_id)
    way = way_back(
        home,
        copies,
        came_from=came_from,
        last_departure=departure,
        last_move=last_move,
        known=pools.by_shard_id(),
        stay=stay,
    )
    if came_from is None and not way.undone and not stay:
        raise PermanentError(
            f"{tenant_id}: shard {home} knows of no move there, or the tenant was restored since; name the shard that "
            "it is to move to: simplu-worker tenants move, with --to"
        )
    return way


async def _check_published(
    shards: Shards, settings: Settings, tenant_id: str, home: str, back_to: str, names: str
) -> None:
    """Raise `PermanentError` if the shard is still named from which the tenant has come back.

    Then an earlier rollback may have been stopped before it published the home: run again, it must not move the tenant
    away once more.
    """
    if isinstance(shards.locator, StaticMap) and settings.shard_map_file is None:  # nobody can publish there
        return
    named = await shards.locator.locate(tenant_id)
    if named is not None and named.shard_id == back_to:
        raise PermanentError(
            f"{tenant_id}: expected shard {home} to be named for it, where it has come back to, got shard {back_to}: "
            f"the new home was not published; run: simplu-worker tenants move {names} --to {home} --apply, to publish "
            f"it, or --to {back_to} --apply, to move the tenant there"
        )


def _print_undone(tenant_id: str, count: int, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": tenant_id, "outcome": MoveOutcome.UNDONE, "rowsDeleted": count})
    else:
        print_line(f"{tenant_id}: {state}; {count} rows of the copy deleted")
