"""`shards rebalance` and `shards drain`: plan moves of tenants between shards, and carry them out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves.runner import MoveResult, MoveRunner, print_result
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_line, print_note
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.shards.removal import find_removal, print_removal
from simplu_worker.commands.shards.survey import Survey, Weight, survey_tenants
from simplu_worker.commands.shards.transfers import ShownPlan, print_plan, requests_of
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, plan_balance, plan_drain
from simplu_worker.transfers.moving.planning.map_plan import plan_by_map
from simplu_worker.transfers.moving.planning.removal import Removal
from simplu_worker.transfers.moving.undoing import undo_move
from simplu_worker.vocabulary import MoveOutcome


class Balance(msgspec.Struct, frozen=True):
    """How to balance: *by* a measure, or else by the map or the capacities; only *to* these shards, if any is named.

    With *keep_pins* every tenant stays where the map pins it.
    """

    by: Weight | None = None
    to: tuple[str, ...] = ()
    keep_pins: bool = False


async def rebalance_shards(
    settings: Settings, balance: Balance, terms: MoveTerms, *, apply: bool, as_json: bool
) -> int:
    """Plan moves that make the shards about equally full, or follow the map; with *apply* carry them out.

    Moves that have begun and not ended come first. Return 1 if a move fails or would be refused.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        survey = await survey_tenants(shards, balance.by)
        if unknown := sorted({*balance.to} - {*survey.target_ids}):
            expected = ", ".join(sorted(survey.target_ids))
            raise PermanentError(f"--to: expected shards that take tenants, of {expected}, got {', '.join(unknown)}")
        plan = _plan_rebalance(survey, shards.locator, balance)
        shown = ShownPlan(survey, plan, balance.by or "tenants")
        has_refused = await print_plan(shards, shown, as_json=as_json, apply=apply)
        if balance.by is None and (pinned := _count_pinned(plan, shards.locator)):
            print_note(f"{pinned} of these tenants are pinned to the shards where they are; with --keep-pins they stay")
        if not apply:
            return 1 if has_refused else 0
        return await _carry_out(settings, shards, survey, plan, terms, as_json=as_json)


def _plan_rebalance(survey: Survey, locator: Locator, balance: Balance) -> Sequence[PlannedTransfer]:
    """Return the moves beside those that have begun."""
    target_ids = balance.to or survey.target_ids
    if balance.by is None and isinstance(locator, StaticMap):
        tenants = [one for one in survey.homes_after if one.tenant_id not in survey.going_on]
        return plan_by_map(tenants, locator.map, target_ids, survey.left, keep_pins=balance.keep_pins)
    rooms = [
        one if one.shard_id in target_ids else msgspec.structs.replace(one, room=0)
        for one in survey.rooms(by_capacity=balance.by is None)
    ]
    return plan_balance(survey.homes_after, rooms, settled=survey.going_on)


def _count_pinned(plan: Sequence[PlannedTransfer], locator: Locator) -> int:
    """Return how many tenants the shard map pins to the shards that they are to leave."""
    pins = locator.map.tenants if isinstance(locator, StaticMap) else {}
    return sum(pins.get(one.tenant.tenant_id) == one.tenant.shard_id for one in plan)


async def drain_shard(settings: Settings, shard_id: str, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard; with *apply* carry them out. Print whether it can be removed."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        if shard_id not in {shard.shard_id for shard in known}:
            raise PermanentError(
                f"shard {shard_id}: expected one of {', '.join(sorted(one.shard_id for one in known))}"
            )
        survey = await survey_tenants(shards, None, without=shard_id)
        tenants = [one for one in survey.homes_after if one.shard_id == shard_id]
        rooms = {one.shard_id: one.room for one in survey.rooms(by_capacity=False)}
        plan, homeless = plan_drain(tenants, rooms)
        removal = None if apply else await find_removal(settings, shards, shard_id)
        shown = ShownPlan(survey, plan, "tenants", removal)
        has_refused = await print_plan(shards, shown, as_json=as_json, apply=apply)
        for tenant in homeless:
            print_note(f"{tenant.tenant_id}: expected a shard with room, got none; add a shard")
        if not apply:
            return 1 if homeless or has_refused else 0
        status = await _carry_out(settings, shards, survey, plan, terms, as_json=as_json)
        removal = await find_removal(settings, shards, shard_id)
        _print_verdict(removal, as_json=as_json)
        return 1 if removal.kept_by or homeless else status


async def _carry_out(
    settings: Settings,
    shards: Shards,
    survey: Survey,
    plan: Sequence[PlannedTransfer],
    terms: MoveTerms,
    *,
    as_json: bool,
) -> int:
    """Take back or end the moves that have begun, then carry out the plan. Return 1 if something fails."""
    runner = MoveRunner(settings, shards, terms, as_json=as_json)
    taken_back = survey.begun.taken_back
    kept = [one.tenant.tenant_id for one in taken_back if not await _take_back(shards, one, as_json=as_json)]
    statuses = [1] if kept else []
    # One after the other: a tenant may be in several.
    for transfers in (survey.begun.committed, survey.begun.opened, plan):
        requests = [one for one in requests_of(transfers) if one.tenant_id not in kept]
        if requests:
            statuses.append(await runner.run(requests))
    return max(statuses, default=0)


async def _take_back(shards: Shards, transfer: PlannedTransfer, *, as_json: bool) -> bool:
    """Undo a move that has not committed; print what became of it, and return whether it is undone."""
    tenant_id = transfer.tenant.tenant_id
    try:
        count = await undo_move(shards.pools, tenant_id, transfer.tenant.shard_id, transfer.target_id)
    except WorkerError as exc:
        print_result(MoveResult(tenant_id, MoveOutcome.FAILED, error=str(exc)), as_json=as_json)
        return False
    print_result(MoveResult(tenant_id, MoveOutcome.UNDONE, rows_deleted=count), as_json=as_json)
    return True


def _print_verdict(removal: Removal, *, as_json: bool) -> None:
    if as_json:
        print_line(msgspec.json.encode({"shard": removal.shard_id, **removal.members}).decode())
    else:
        print_removal(removal)
