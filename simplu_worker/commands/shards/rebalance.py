"""`shards rebalance` and `shards drain`: plan moves of tenants, and carry them out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.moves import MovePlans, check_moves, plan_moves
from simplu_worker.commands.output import print_json_line, print_note
from simplu_worker.commands.running import known_shard
from simplu_worker.commands.shards import tenant_moves
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.balance import PlannedTransfer, plan_balance, plan_by_map, plan_drain, plan_undrain


class Balance(msgspec.Struct, frozen=True):
    """How to balance: *by* a measure, or else by the map or the capacities; only *to* these shards, if any."""

    by: tenant_moves.Weight | None = None
    to: tuple[str, ...] = ()
    keep_pins: bool = False


async def rebalance_shards(
    settings: Settings, balance: Balance, terms: MoveTerms, *, apply: bool, as_json: bool
) -> int:
    """Plan moves that make the shards about equally full, or follow the map; with *apply* carry them out.

    Moves that have begun come first. Return 1 if a move fails or is refused.
    """
    async with open_shards(settings) as shards:
        survey = await tenant_moves.survey_tenants(shards, balance.by)
        if unknown := sorted({*balance.to} - {*survey.target_ids}):
            expected = ", ".join(sorted(survey.target_ids))
            problems = "".join(f"; {describe_drained(one)}" for one in unknown if one in survey.drained)
            got = ", ".join(unknown)
            raise PermanentError(f"--to: expected shards that take tenants, of {expected}, got {got}{problems}")
        plan = _plan_rebalance(survey, shards.locator, balance)
        planned = MovePlans()
        if not apply:
            requests = tenant_moves.requests_of(plan)
            planned = await plan_moves(shards, requests, max_pause_s=terms.max_pause, places=survey.places)
        tenant_moves.print_plan(
            tenant_moves.ShownPlan(survey, plan, planned, balance.by or "tenants"), as_json=as_json, apply=apply
        )
        if balance.by is None and (pinned := _count_pinned(plan, shards.locator)):
            print_note(f"{pinned} of these tenants are pinned to the shards where they are; with --keep-pins they stay")
        if not apply:
            return 1 if planned.problems else 0
        return await tenant_moves.carry_out(settings, shards, survey, plan, terms, as_json=as_json)


def _plan_rebalance(survey: tenant_moves.Survey, locator: Locator, balance: Balance) -> Sequence[PlannedTransfer]:
    target_ids = balance.to or survey.target_ids
    if balance.by is None and isinstance(locator, StaticMap):
        tenants = [one for one in survey.homes_after if one.tenant_id not in survey.settled]
        return plan_by_map(tenants, locator.map, target_ids, survey.left, keep_pins=balance.keep_pins)
    rooms = [
        one if one.shard_id in target_ids else msgspec.structs.replace(one, room=0, businesses=frozenset())
        for one in survey.rooms(by_capacity=balance.by is None)
    ]
    return plan_balance(
        survey.homes_after, rooms, settled=survey.settled, types=survey.types, by_business=balance.by is None
    )


def _count_pinned(plan: Sequence[PlannedTransfer], locator: Locator) -> int:
    pins = locator.map.tenants if isinstance(locator, StaticMap) else {}
    return sum(pins.get(one.tenant.tenant_id) == one.tenant.shard_id for one in plan)


class Drain(msgspec.Struct, frozen=True):
    """A shard to empty, or with *undo* to fill again; *partial*: even if some tenants have no place."""

    shard_id: str
    undo: bool = False
    partial: bool = False


async def drain_shard(settings: Settings, drain: Drain, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard, or back to it; with *apply* carry them out.

    Nothing moves unless all have a place. From then on the shard takes no tenants, until `undo`. Return 1 if it has to
    be kept.
    """
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), drain.shard_id)
        survey, plan, homeless = await (_plan_undo if drain.undo else _plan)(shards, drain.shard_id)
        judged = [one for one in plan if one.tenant.tenant_id not in survey.settled]
        planned = await _judge(shards, survey, judged, terms, apply=apply)
        planned = msgspec.structs.replace(planned, refused=homeless | planned.refused)
        removal = None if apply or drain.undo else await tenant_moves.find_removal(settings, shards, drain.shard_id)
        is_blocked = bool(planned.refused) and not drain.partial
        tenant_moves.print_plan(
            tenant_moves.ShownPlan(survey, plan, planned, "tenants", removal, is_blocked), as_json=as_json, apply=apply
        )
        if not apply or is_blocked:
            return 1 if planned.problems else 0
        possible = [one for one in plan if one.tenant.tenant_id not in planned.refused]
        is_drain = not drain.undo
        async with shards.pools.ensure_pool(address).transaction() as connection:
            await connection.execute(QUERIES["note_drain"], is_drain)
        status = await tenant_moves.carry_out(
            settings, shards, survey, possible, terms, as_json=as_json, is_drain=is_drain
        )
        is_whole = not (status or planned.refused)
        if not drain.undo:
            removal = await tenant_moves.find_removal(settings, shards, drain.shard_id)
            if as_json:
                print_json_line({"shard": removal.shard_id, **removal.members})
            else:
                tenant_moves.print_removal(removal)
            is_whole &= not removal.kept_by
        if not is_whole:
            way_back = "" if drain.undo else ", or with --undo to take back what has moved"
            print_note(f"this was not all: run the command again to go on{way_back}")
        return 0 if is_whole else 1


async def _plan(shards: Shards, shard_id: str) -> tuple[tenant_moves.Survey, list[PlannedTransfer], dict[str, str]]:
    """Return the moves of all tenants of a shard, and why tenants have no place, by their ids."""
    survey = await tenant_moves.survey_tenants(shards, None, without=shard_id)
    running = {one.tenant.tenant_id for one in survey.begun.running}
    tenants = [one for one in survey.homes_after if one.shard_id == shard_id and one.tenant_id not in running]
    plan, homeless = plan_drain(tenants, survey.rooms(by_capacity=False), survey.types)
    return survey, plan, {one.tenant_id: "expected a shard with room, got none; add a shard" for one in homeless}


async def _plan_undo(
    shards: Shards, shard_id: str
) -> tuple[tenant_moves.Survey, list[PlannedTransfer], dict[str, str]]:
    survey = await tenant_moves.survey_tenants(shards, None, refilled=shard_id)
    if shard_id not in survey.target_ids:
        raise PermanentError(
            f"shard {shard_id}: expected one that takes tenants, got one that is retired or inactive; "
            "take that back in the map or Citrus first"
        )
    journal = await tenant_moves.survey_shards(shards, QUERIES["list_drained"])
    drained = {row["tenant_id"]: row["target_shard_id"] for one, row in journal.rows if one == shard_id}
    stopped = {tenant_id for tenant_id, source_id in survey.drains if source_id == shard_id}
    undrained = plan_undrain(survey.homes, survey.begun, shard_id, drained, stopped)
    for one in undrained.moved_on:
        print_note(f"{one.tenant_id}: it has moved on to shard {one.shard_id} since, and stays there")
    return msgspec.structs.replace(survey, begun=undrained.begun), undrained.plan, {}


async def _judge(
    shards: Shards, survey: tenant_moves.Survey, plan: Sequence[PlannedTransfer], terms: MoveTerms, *, apply: bool
) -> MovePlans:
    if not apply:
        return await plan_moves(
            shards, tenant_moves.requests_of(plan), max_pause_s=terms.max_pause, places=survey.places
        )
    _, refused = await check_moves(shards, tenant_moves.requests_of(plan), survey.places)
    return MovePlans(refused=refused)
