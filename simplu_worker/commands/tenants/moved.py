"""`tenants verify`, `rollback` and `cleanup`: after a move."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.command_line import parse_duration
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner
from simplu_worker.commands.moves.terms import DEFAULT_BOUNDS, MoveBounds, MoveTerms
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_silent, print_table
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.shards.settling.rows import Arrival, read_arrival, read_departure
from simplu_worker.transfers.moving.checksums import Comparison, TypeSum, compare_shards, describe_difference
from simplu_worker.transfers.moving.planning.going_back import WayBack, way_back
from simplu_worker.transfers.moving.planning.places import find_places
from simplu_worker.transfers.moving.repairing import Repair, check_former_rows, repair_resources
from simplu_worker.transfers.moving.undoing import clean_up, list_left_behind, undo_move
from simplu_worker.vocabulary import MoveOutcome

SHOWN_MAX = 20  # resources that differ


async def verify_tenant(settings: Settings, tenant: tuple[str, str], *, repair: bool, as_json: bool) -> int:
    """Compare a tenant with the shard that it left; print what differs. Return 1 if something does."""
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

        async def compared() -> Comparison:
            since = arrival.ready_at or arrival.read_at
            return await compare_shards(source, target, tenant_id, since, live_on_source=False, log_kept=kept / 2)

        await check_former_rows(source, target, tenant_id, arrival)
        comparison = await compared()
        done = Repair(0)
        if repair and comparison.differing:
            done = await repair_resources(source, target, tenant_id, arrival, comparison.differing)
            comparison = await compared()
    _print_comparison(tenant_id, comparison, done, as_json=as_json)
    return 0 if comparison.is_equal else 1


def _print_comparison(tenant_id: str, comparison: Comparison, done: Repair, *, as_json: bool) -> None:
    verdict = "equal" if comparison.is_equal else "differs"
    if as_json:
        members: dict[str, Any] = {"tenant": tenant_id, "verdict": verdict, "repaired": done.count}
        print_json({**members, "refused": sorted(done.refused), "comparison": comparison})
        return
    print_table(
        ("resource type", "rows", "former shard's", "bytes", "former shard's", ""),
        (_sums_row(name, comparison) for name in sorted({**comparison.source, **comparison.target})),
    )
    changed = f"; {comparison.excluded} that may have changed since the move are not compared"
    print_line(f"{tenant_id}: {comparison.row_count} resources compared{changed}: {verdict}")
    if done.count:
        print_note(f"{done.count} resources were written as they were on the former shard")
    if done.refused:
        print_note(
            f"{len(done.refused)} resources stay: somebody has written them since the move, and not by operations"
        )
    if not comparison.is_equal:
        print_note(f"differing: {describe_difference(comparison)}")
        for resource_type, resource_id in comparison.differing[:SHOWN_MAX]:
            print_note(f"  {resource_type} {resource_id}")
        print_note(
            "with --repair those not written since the move are written as they were; "
            "tenants rollback moves the tenant back"
        )


def _sums_row(name: str, comparison: Comparison) -> tuple[object, ...]:
    here, there = (sums.get(name, TypeSum()) for sums in (comparison.source, comparison.target))
    counts = (there.row_count, here.row_count, there.byte_count, here.byte_count)
    return (name, *counts, "" if there == here else "differs")


async def _find_move(shards: Shards, tenant_id: str) -> tuple[ShardPool, ShardPool, Arrival]:
    """Return the shard that a tenant left, its home, and the journal of the move there."""
    places = await find_places(shards.locator, shards.pools, tenant_id)
    home = places.home()
    if home is None:
        raise RetryableError(f"{tenant_id}: expected a home, got a tenant on its way; run tenants move again")
    target = shards.pools.pool_of(home)
    async with target.connection() as connection:
        arrival = await read_arrival(connection, tenant_id)
    if arrival is None:
        raise PermanentError(f"{tenant_id}: expected a tenant that has moved to shard {home}, got one that has not")
    return shards.pools.pool_of(arrival.source_shard_id), target, arrival


async def rollback_tenant(
    settings: Settings,
    tenant: tuple[str, str],
    bounds: MoveBounds = DEFAULT_BOUNDS,
    *,
    as_json: bool,
    stay: bool = False,
) -> int:
    """Delete the copy of a move that has not ended, or move the tenant back. Return 1 if that fails.

    A rollback that was stopped goes on. With *stay* copies are deleted, and the tenant stays.
    """
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(*tenant)
    async with open_shards(settings) as shards:
        places = await find_places(shards.locator, shards.pools, tenant_id)
        copies, destroyed_on = places.arriving_on(), places.destroyed_on()
        if destroyed_on is not None and copies:
            count = sum([await undo_move(shards.pools, tenant_id, destroyed_on, copy) for copy in copies])
            _print_undone(tenant_id, count, f"was destroyed on shard {destroyed_on}", as_json=as_json)
            return 0
        home = places.home()
        if home is None:
            raise RetryableError(
                f"{tenant_id}: expected a home, got a tenant that has left its shard; workers activate it within "
                "seconds: run the command again"
            )
        way = await _find_way_back(shards, tenant_id, home, copies, stay=stay)
        if way.undone:
            count = sum([await undo_move(shards.pools, tenant_id, home, copy) for copy in way.undone])
            if way.back_to is None:
                _print_undone(tenant_id, count, f"stays on shard {home}", as_json=as_json)
                return 0
        elif stay:
            raise PermanentError(f"{tenant_id}: expected a move that has not ended, got none: its home is shard {home}")
        names = shlex.join(tenant)
        if way.back_to is not None and way.back_to == way.returned_from:
            await _check_published(shards, settings, tenant_id, home, way.back_to, names)
        terms = MoveTerms(bounds.max_rows_per_second, bounds.max_pause)
        runner = MoveRunner(settings, shards, terms, as_json=as_json)
        status = await runner.run([MoveRequest(*tenant, home)]) if way.ends_last_move else 0
        if way.back_to is not None:
            status = await runner.run([MoveRequest(*tenant, way.back_to)])
    if way.back_to is None and way.returned_from is not None:
        print_note(
            f"{tenant_id}: ended the last move, to shard {home}, which had been stopped; to move the tenant away from "
            f"there, run: simplu-worker tenants move {names} --to {way.returned_from}"
        )
    if status and way.back_to is not None:
        print_note(f"{tenant_id}: run the command again to go on, or with --stay to leave the tenant on shard {home}")
    return status


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
        raise PermanentError(f"{tenant_id}: expected a tenant that has moved to shard {home}, got one that has not")
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
            f"the new home was not published; run: simplu-worker tenants move {names} --to {home}, to publish it, or "
            f"--to {back_to}, to move the tenant there"
        )


def _print_undone(tenant_id: str, count: int, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": tenant_id, "outcome": MoveOutcome.UNDONE, "rowsDeleted": count})
    else:
        print_line(f"{tenant_id}: {state}; {count} rows of the copy deleted")


async def clean_up_tenants(settings: Settings, older_than: str, *, apply: bool, as_json: bool) -> int:
    """Delete the rows that tenants have left on their former shards, or list them.

    Return 1 if a shard does not answer, which leaves its tenants alone, or if a deletion fails.
    """
    require_settings(settings, routes=True)
    age = parse_duration("--older-than", older_than)
    found: list[dict[str, Any]] = []
    async with open_shards(settings) as shards:

        async def ask(address: ShardAddress) -> Sequence[tuple[str, str]]:
            return await list_left_behind(shards.pools.ensure_pool(address), age)

        known = await shards.locator.list_shards()
        left, causes = await query_with_causes(known, ask)
        silent = sorted({one.shard_id for one in known} - left.keys())
        for shard_id in sorted(left):
            for tenant_id, home_id in left[shard_id]:
                one: dict[str, Any] = {"tenant": tenant_id, "left": shard_id, "home": home_id}
                if apply:
                    one |= await _clean_up_one(shards, tenant_id, shard_id, home_id, silent)
                found.append(one)
    if as_json:
        print_json({"tenants": found, "shardsWithoutAnswer": silent})
    else:
        print_table(("tenant", "left", "home", "rows deleted"), (_row(one) for one in found))
        for one in found:
            if "error" in one:
                print_note(f"{one['tenant']}: its rows stay on shard {one['left']}: {one['error']}")
        if found and not apply:
            print_note("nothing was deleted; with --apply the rows are")
        print_silent(silent, causes)
    return 1 if silent or any("error" in one for one in found) else 0


async def _clean_up_one(
    shards: Shards, tenant_id: str, shard_id: str, home_id: str, silent: Collection[str]
) -> dict[str, Any]:
    """Delete what a tenant has left on a shard; return the number of rows, or the error."""
    if home_id in silent:  # each try would take as long as its deadline
        return {"error": f"no answer from shard {home_id}, where its home is"}
    try:
        return {"rows": await clean_up(shards.pools, shards.commits, tenant_id, shard_id, home_id)}
    except WorkerError as exc:
        return {"error": str(exc)}


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    rows = one.get("rows", "none" if "error" in one else "")
    return one["tenant"], one["left"], one["home"], "its home is another one now" if rows is None else rows
