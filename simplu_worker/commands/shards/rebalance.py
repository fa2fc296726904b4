"""`shards rebalance`: plan moves of tenants so that shards are about equally full, and carry them out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves.plans import MovePlans, plan_moves
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.shards.carrying_out import carry_out
from simplu_worker.commands.shards.survey import Survey, Weight, outwait_killed_movers, survey_tenants
from simplu_worker.commands.shards.transfers import ShownPlan, print_plan, requests_of
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.tenants.tenant_rows import describe_drained
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, plan_balance
from simplu_worker.transfers.moving.planning.map_plan import plan_by_map


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

    Moves that have begun and not ended come first, but for those of commands that run. Return 1 if a move fails or
    would be refused, or if another command still moves a tenant in the end.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        if apply:
            await outwait_killed_movers(shards)
        survey = await survey_tenants(shards, balance.by)
        if unknown := sorted({*balance.to} - {*survey.target_ids}):
            expected = ", ".join(sorted(survey.target_ids))
            problems = "".join(f"; {describe_drained(one)}" for one in unknown if one in survey.drained)
            got = ", ".join(unknown)
            raise PermanentError(f"--to: expected shards that take tenants, of {expected}, got {got}{problems}")
        plan = _plan_rebalance(survey, shards.locator, balance)
        planned = MovePlans()
        if not apply:
            requests = requests_of(plan)
            planned = await plan_moves(shards, requests, max_pause_s=terms.max_pause, places=survey.places)
        print_plan(ShownPlan(survey, plan, planned, balance.by or "tenants"), as_json=as_json, apply=apply)
        if balance.by is None and (pinned := _count_pinned(plan, shards.locator)):
            print_note(f"{pinned} of these tenants are pinned to the shards where they are; with --keep-pins they stay")
        if not apply:
            return 1 if planned.problems else 0
        return await carry_out(settings, shards, survey, plan, terms, as_json=as_json)


def _plan_rebalance(survey: Survey, locator: Locator, balance: Balance) -> Sequence[PlannedTransfer]:
    """Return the moves beside those that have begun."""
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
    """Return how many tenants the shard map pins to the shards that they are to leave."""
    pins = locator.map.tenants if isinstance(locator, StaticMap) else {}
    return sum(pins.get(one.tenant.tenant_id) == one.tenant.shard_id for one in plan)
