"""`shards rebalance` and `shards drain`: plan moves of tenants, and carry them out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.output import print_json_line, print_note
from simplu_worker.commands.running import known_shard
from simplu_worker.commands.shards import tenant_moves
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.balance import PlannedTransfer, plan_balance, plan_by_map, plan_drain


class Balance(msgspec.Struct, frozen=True):
    """How to balance: *by* a measure, or else by the map or the capacities; only *to* these shards, if any."""

    by: tenant_moves.Weight | None = None
    to: tuple[str, ...] = ()


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
        refused = {} if apply else await tenant_moves.find_refused(shards, survey, plan)
        tenant_moves.print_plan(
            tenant_moves.ShownPlan(survey, plan, refused, balance.by or "tenants"), as_json=as_json, apply=apply
        )
        if not apply:
            return 1 if refused else 0
        return await tenant_moves.carry_out(settings, shards, survey, plan, terms, as_json=as_json)


def _plan_rebalance(survey: tenant_moves.Survey, locator: Locator, balance: Balance) -> Sequence[PlannedTransfer]:
    target_ids = balance.to or survey.target_ids
    if balance.by is None and isinstance(locator, StaticMap):
        tenants = [one for one in survey.homes_after if one.tenant_id not in survey.settled]
        return plan_by_map(tenants, locator.map, target_ids, survey.left)
    rooms = [
        one if one.shard_id in target_ids else msgspec.structs.replace(one, room=0, businesses=frozenset())
        for one in survey.rooms(by_capacity=balance.by is None)
    ]
    return plan_balance(
        survey.homes_after, rooms, settled=survey.settled, types=survey.types, by_business=balance.by is None
    )


class Drain(msgspec.Struct, frozen=True):
    """A shard to empty; *partial*: even if some tenants have no place."""

    shard_id: str
    partial: bool = False


async def drain_shard(settings: Settings, drain: Drain, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard; with *apply* carry them out.

    Nothing moves unless all have a place. From then on the shard takes no tenants. Return 1 if it has to be kept.
    """
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), drain.shard_id)
        survey = await tenant_moves.survey_tenants(shards, None, without=drain.shard_id)
        running = {one.tenant.tenant_id for one in survey.begun.running}
        tenants = [one for one in survey.homes_after if one.shard_id == drain.shard_id and one.tenant_id not in running]
        plan, homeless = plan_drain(tenants, survey.rooms(by_capacity=False), survey.types)
        judged = [one for one in plan if one.tenant.tenant_id not in survey.settled]
        refused = {one.tenant_id: "expected a shard with room and its type, got none; add one" for one in homeless}
        refused |= await tenant_moves.find_refused(shards, survey, judged)
        removal = None if apply else await tenant_moves.find_removal(settings, shards, drain.shard_id)
        is_blocked = bool(refused) and not drain.partial
        tenant_moves.print_plan(
            tenant_moves.ShownPlan(survey, plan, refused, "tenants", removal, is_blocked), as_json=as_json, apply=apply
        )
        if not apply or is_blocked:
            return 1 if refused else 0
        possible = [one for one in plan if one.tenant.tenant_id not in refused]
        async with shards.pools.ensure_pool(address).transaction() as connection:
            await connection.execute(QUERIES["note_drain"], True)
        status = await tenant_moves.carry_out(settings, shards, survey, possible, terms, as_json=as_json)
        removal = await tenant_moves.find_removal(settings, shards, drain.shard_id)
        if as_json:
            print_json_line({"shard": removal.shard_id, **removal.members})
        else:
            tenant_moves.print_removal(removal)
        is_whole = not (status or refused or removal.kept_by)
        if not is_whole:
            print_note("this was not all: run the command again to go on, or with --undo to have it take tenants again")
        return 0 if is_whole else 1


async def undo_drain(settings: Settings, shard_id: str, *, apply: bool, as_json: bool) -> int:
    """With *apply* let a drained shard take tenants again; those that have left it stay where they are."""
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        if apply:
            async with shards.pools.ensure_pool(address).transaction() as connection:
                await connection.execute(QUERIES["note_drain"], False)
    if as_json:
        print_json_line({"shard": shard_id, "takesTenants": apply})
    elif apply:
        print_note(f"shard {shard_id} takes tenants again; shards rebalance moves some there")
    else:
        print_note(f"nothing was changed; with --apply shard {shard_id} takes tenants again")
    return 0
