"""`tenants move`, `rollback`, `verify` and `cleanup`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.command_line import DEFAULT_BOUNDS, MoveBounds, parse_duration
from simplu_worker.commands.moves import (
    SUM_COLUMNS,
    MoveRequest,
    MoveRunner,
    Planned,
    find_home,
    plan_request,
    sum_rows,
    wait_for_killed,
)
from simplu_worker.commands.output import Answer, Line, Part, Table, print_note, table_of
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.shards.settling import Transfer, read_transfer
from simplu_worker.timing.waits import run_at_once
from simplu_worker.transfers.moving.balance import WayBack, way_back
from simplu_worker.transfers.moving.checksums import (
    Comparison,
    check_former_rows,
    compare_shards,
    describe_difference,
)
from simplu_worker.transfers.moving.places import find_places
from simplu_worker.transfers.moving.types import GONE
from simplu_worker.transfers.moving.undoing import (
    LeftBehind,
    MoveUndo,
    clean_up,
    count_copied,
    list_left_behind,
)
from simplu_worker.vocabulary import MoveOutcome, TransferKind


async def move_tenant(
    settings: Settings, request: MoveRequest, bounds: MoveBounds, *, apply: bool, as_json: bool
) -> Answer | int:
    """Return what the move of a tenant would take; with *apply* move it, and print a certificate.

    It fails if the tenant was not moved, or its rows differ.
    """
    require_settings(settings, routes=True)
    parse_tenant_id(request.business_id, request.location_id)
    async with open_shards(settings) as shards:
        if apply:
            return await MoveRunner(settings, shards, bounds, as_json=as_json).run([request])
        planned = await plan_request(shards, request)
    note = "nothing was moved; with --apply the tenant is" if planned.plan else None
    return Answer(planned, [*planned.describe(), note])


async def rollback_tenant(
    settings: Settings,
    tenant: tuple[str, str],
    bounds: MoveBounds = DEFAULT_BOUNDS,
    *,
    apply: bool,
    as_json: bool,
    stay: bool = False,
) -> Answer | int:
    """Plan to delete the copy of a move that has not ended, or to move the tenant back; with *apply* do so.

    With *stay* copies are only deleted.
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
            home = await find_home(shards, tenant_id, places)
            state = f"stays on shard {home}"
            way = await _find_way_back(shards, tenant, home, copies, stay=stay)
        if not way.undone and stay:
            raise PermanentError(f"{tenant_id}: expected a move that has not ended, got none: its home is shard {home}")
        if not apply:
            return await _plan(shards, tenant, home, way)
        await wait_for_killed(shards, home, tenant_id)
        count = sum([await MoveUndo(shards.pools, tenant_id, home, copy).run() for copy in way.undone])
        if way.back_to is None:
            members = {"tenant": tenant_id, "outcome": MoveOutcome.UNDONE, "rowsDeleted": count}
            return Answer(members, [Line(f"{tenant_id}: {state}; {count} rows of the copy deleted")])
        runner = MoveRunner(settings, shards, bounds, as_json=as_json)
        status = await runner.run([MoveRequest(*tenant, way.back_to)])
    if status:
        print_note(f"{tenant_id}: run the command again to go on, or with --stay to leave the tenant on shard {home}")
    return status


async def _plan(shards: Shards, tenant: tuple[str, str], home: str, way: WayBack) -> Answer:
    tenant_id = parse_tenant_id(*tenant)
    count = sum([await count_copied(shards.pools, tenant_id, copy) for copy in way.undone])
    planned = Planned()
    if way.back_to is not None and not way.undone:  # beside another copy a move is refused, and that goes first
        planned = await plan_request(shards, MoveRequest(*tenant, way.back_to))
    steps = [f"the copy on shard {copy} is deleted; the tenant is on shard {home}" for copy in way.undone]
    steps += [f"{count} rows of the copy"] if way.undone else []
    steps += [] if way.back_to is None else [f"moves back from shard {home} to shard {way.back_to}"]
    plan = {
        "tenant": tenant_id,
        "shard": home,
        "deletesCopiesOn": way.undone,
        "rowsDeleted": count,
        "backTo": way.back_to,
    }
    parts = [
        *(Line(f"{tenant_id}: {step}") for step in steps),
        *planned.describe(),
        "nothing was changed; with --apply this is done",
    ]
    return Answer({"rollback": plan, "plan": planned.plan}, parts)


async def _find_way_back(
    shards: Shards, tenant: tuple[str, str], home: str, copies: Sequence[str], *, stay: bool
) -> WayBack:
    pools, tenant_id = shards.pools, parse_tenant_id(*tenant)
    async with pools.pool_of(home).connection() as connection:
        arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
        departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
    came_from, last_move = None, None
    if arrival is not None:
        came_from = arrival.place
        with contextlib.suppress(RetryableError):  # a copy elsewhere can be deleted without this shard
            async with pools.pool_of(came_from).connection() as connection:
                last_move = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
    way = way_back(
        home,
        copies,
        came_from=came_from,
        last_departure=departure,
        last_move=last_move,
        known=pools.by_shard_id(),
        stay=stay,
    )
    if way.is_unended:
        raise PermanentError(
            f"{tenant_id}: its move to shard {home} has not ended; run: simplu-worker tenants move "
            f"{shlex.join(tenant)} --to {home} --apply, and this again if the tenant is to leave the shard"
        )
    if came_from is None and not way.undone and not stay:
        raise PermanentError(
            f"{tenant_id}: shard {home} knows of no move there, or the tenant was restored since; name the shard that "
            "it is to move to: simplu-worker tenants move, with --to"
        )
    return way


SHOWN_MAX: Final = 20  # resources that differ


async def verify_tenant(settings: Settings, tenant: tuple[str, str]) -> Answer:
    """Compare a tenant with the shard that it left; it fails if something differs."""
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(*tenant)
    kept = timedelta(hours=settings.operation_retention_hours)
    async with open_shards(settings) as shards:
        source, target, arrival = await _find_move(shards, tenant_id)
        if arrival.ready_at is None or arrival.read_at - arrival.ready_at > kept:
            raise PermanentError(
                f"{tenant_id}: expected a move within OPERATION_RETENTION_HOURS, got an older one: "
                "the log has not all changes since; compare with a backup"
            )
        await check_former_rows(source, target, tenant_id, arrival)
        comparison = await compare_shards(
            source, target, tenant_id, arrival.ready_at, live_on_source=False, log_kept=kept / 2
        )
    members = {"tenant": tenant_id, "verdict": comparison.verdict, "comparison": comparison}
    return Answer(members, _describe_comparison(tenant_id, comparison), is_failed=not comparison.is_equal)


def _describe_comparison(tenant_id: str, comparison: Comparison) -> Iterator[Part]:
    yield Table(SUM_COLUMNS, sum_rows(comparison))
    changed = f"; {comparison.excluded} that may have changed since the move are not compared"
    yield Line(f"{tenant_id}: {comparison.row_count} resources compared{changed}: {comparison.verdict}")
    if not comparison.is_equal:
        yield f"differing: {describe_difference(comparison)}"
        for resource_type, resource_id in comparison.differing[:SHOWN_MAX]:
            yield f"  {resource_type} {resource_id}"
        yield (
            "what its producers send again is right, and not compared any more; tenants cleanup leaves the rows on the "
            "former shard"
        )


async def _find_move(shards: Shards, tenant_id: str) -> tuple[ShardPool, ShardPool, Transfer]:
    """Return the shard that a tenant left, its home, and the journal of the move there."""
    home = await find_home(shards, tenant_id)
    target = shards.pools.pool_of(home)
    async with target.connection() as connection:
        arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
    if arrival is None:
        raise PermanentError(f"{tenant_id}: expected a tenant that has moved to shard {home}, got one that has not")
    return shards.pools.pool_of(arrival.place), target, arrival


DIFFERS: Final = (
    "its move ended with rows that differ, and these may be the better ones; run: simplu-worker tenants verify, "
    "correct what differs, then tenants move again; or with --differing they are deleted too"
)
COUNTED_AT_ONCE: Final = 8  # tenants: each takes a read of the indexes of all its rows


async def clean_up_tenants(settings: Settings, older_than: str, *, differing: bool = False, apply: bool) -> Answer:
    """Delete the rows that tenants have left on their former shards, or without *apply* count them.

    It fails if some stay.
    """
    require_settings(settings, routes=True)
    age = parse_duration("--older-than", older_than)
    async with open_shards(settings) as shards:

        async def ask(address: ShardAddress) -> Sequence[LeftBehind]:
            return await list_left_behind(shards.pools.ensure_pool(address), age)

        known = await shards.locator.list_shards()
        left, silent = await query_with_causes(known, ask)
        known_ids = {one.shard_id for one in known}

        async def look(rows: tuple[str, LeftBehind]) -> dict[str, Any]:
            (shard_id, one), home_id = rows, rows[1].target_id
            try:
                if one.differs and not differing:
                    raise PermanentError(DIFFERS)
                if home_id not in known_ids:  # it has left the map or Citrus since
                    home_id = await _find_last_home(shards, one.tenant_id)
                if home_id in silent:  # each try would take as long as its deadline
                    raise RetryableError(f"no answer from shard {home_id}, where its home is")
                way = one.tenant_id, shard_id, one.target_id
                count = await clean_up(shards.pools, shards.commits, *way, home_id=home_id, apply=apply)
                found: dict[str, Any] = {"rows": count}
            except WorkerError as exc:
                found = {"error": str(exc)}
            return {"tenant": one.tenant_id, "left": shard_id, "home": home_id} | found

        rows = [(shard_id, one) for shard_id in sorted(left) for one in left[shard_id]]
        found = await run_at_once(look, rows, most=1 if apply else COUNTED_AT_ONCE)
    count = sum(one.get("rows") or 0 for one in found)
    parts = [
        table_of({"tenant": "tenant", "left": "left", "home": "home", "rows": "rows"}, found),
        *(f"{one['tenant']}: its rows stay on shard {one['left']}: {one['error']}" for one in found if "error" in one),
        *(f"{one['tenant']}: its home is another one now" for one in found if one.get("rows", 0) is None),
        f"nothing was deleted; with --apply these {count} rows are" if found and not apply else None,
    ]
    is_failed = any("error" in one for one in found)
    return Answer({"applied": apply, "tenants": found}, parts, silent, is_failed)


async def _find_last_home(shards: Shards, tenant_id: str) -> str:
    """Return the shard with the tenant's home, or the one on which it was destroyed."""
    places = await find_places(shards.locator, shards.pools, tenant_id)
    gone = [shard_id for shard_id, state in places.states.items() if state in GONE]
    return gone[0] if len(gone) == 1 and places.home() is None else await find_home(shards, tenant_id, places)
