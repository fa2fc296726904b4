"""`shards drain`: plan the moves of all tenants away from a shard, carry them out, and take them back with `--undo`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves.plans import MovePlans, check_moves, plan_moves
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_json_line, print_note
from simplu_worker.commands.requirements import known_shard, require_settings
from simplu_worker.commands.shards.carrying_out import carry_out
from simplu_worker.commands.shards.removal import find_removal, print_removal
from simplu_worker.commands.shards.survey import Survey, outwait_killed_movers, survey_shards, survey_tenants
from simplu_worker.commands.shards.transfers import ShownPlan, print_plan, requests_of
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, plan_drain
from simplu_worker.transfers.moving.planning.removal import Removal
from simplu_worker.transfers.moving.planning.undrained import plan_undrain
from simplu_worker.transfers.sql_files import QUERIES


class Drain(msgspec.Struct, frozen=True):
    """A shard to empty, or with *undo* to fill again; *partial*: even if some tenants have no place."""

    shard_id: str
    undo: bool = False
    partial: bool = False


async def drain_shard(settings: Settings, drain: Drain, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard, or of those that a drain has moved away; with *apply* carry them out.

    Nothing is moved unless all tenants have a place. From then on the shard takes no tenants, until `undo`. Without
    that print whether the shard can be removed. Return 1 if a tenant has no place, if a move fails, or if the shard has
    to be kept after all moves.
    """
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), drain.shard_id)
        if apply:
            await outwait_killed_movers(shards)
        survey, plan, homeless = await (_plan_undo if drain.undo else _plan)(shards, drain.shard_id)
        judged = [one for one in plan if one.tenant.tenant_id not in survey.settled]
        planned = await _judge(shards, survey, judged, terms, apply=apply)
        planned = msgspec.structs.replace(planned, refused=homeless | planned.refused)
        removal = None if apply or drain.undo else await find_removal(settings, shards, drain.shard_id)
        is_blocked = bool(planned.refused) and not drain.partial
        print_plan(ShownPlan(survey, plan, planned, "tenants", removal, is_blocked), as_json=as_json, apply=apply)
        if not apply or is_blocked:
            return 1 if planned.problems else 0
        possible = [one for one in plan if one.tenant.tenant_id not in planned.refused]
        is_drain = not drain.undo
        async with shards.pools.ensure_pool(address).transaction() as connection:
            await connection.execute(QUERIES["note_drain"], is_drain)
        status = await carry_out(settings, shards, survey, possible, terms, as_json=as_json, is_drain=is_drain)
        is_whole = not (status or planned.refused)
        if not drain.undo:
            removal = await find_removal(settings, shards, drain.shard_id)
            _print_verdict(removal, as_json=as_json)
            is_whole &= not removal.kept_by
        if not is_whole:
            way_back = "" if drain.undo else ", or with --undo to take back what has moved"
            print_note(f"this was not all: run the command again to go on{way_back}")
        return 0 if is_whole else 1


async def _plan(shards: Shards, shard_id: str) -> tuple[Survey, list[PlannedTransfer], dict[str, str]]:
    """Return the moves of all tenants of a shard, and why tenants have no place, by their ids."""
    survey = await survey_tenants(shards, None, without=shard_id)
    running = {one.tenant.tenant_id for one in survey.begun.running}
    tenants = [one for one in survey.homes_after if one.shard_id == shard_id and one.tenant_id not in running]
    plan, homeless = plan_drain(tenants, survey.rooms(by_capacity=False), survey.types)
    return survey, plan, {one.tenant_id: "expected a shard with room, got none; add a shard" for one in homeless}


async def _plan_undo(shards: Shards, shard_id: str) -> tuple[Survey, list[PlannedTransfer], dict[str, str]]:
    """Return the moves back to a shard of the tenants that a drain has moved away, as `_plan` does.

    Raises `PermanentError` if it takes no tenants.
    """
    survey = await survey_tenants(shards, None, refilled=shard_id)
    if shard_id not in survey.target_ids:
        raise PermanentError(
            f"shard {shard_id}: expected one that takes tenants, got one that is retired or inactive; "
            "take that back in the map or Citrus first"
        )
    journal = await survey_shards(shards, QUERIES["list_drained"])
    drained = {row["tenant_id"]: row["target_shard_id"] for one, row in journal.rows if one == shard_id}
    stopped = {tenant_id for tenant_id, source_id in survey.drains if source_id == shard_id}
    undrained = plan_undrain(survey.homes, survey.begun, shard_id, drained, stopped)
    for one in undrained.moved_on:
        print_note(f"{one.tenant_id}: it has moved on to shard {one.shard_id} since, and stays there")
    return msgspec.structs.replace(survey, begun=undrained.begun), undrained.plan, {}


async def _judge(
    shards: Shards, survey: Survey, plan: Sequence[PlannedTransfer], terms: MoveTerms, *, apply: bool
) -> MovePlans:
    """Return why moves would be refused, and without *apply* also what they would take."""
    if not apply:
        return await plan_moves(shards, requests_of(plan), max_pause_s=terms.max_pause, places=survey.places)
    _, refused = await check_moves(shards, requests_of(plan), survey.places)
    return MovePlans(refused=refused)


def _print_verdict(removal: Removal, *, as_json: bool) -> None:
    if as_json:
        print_json_line({"shard": removal.shard_id, **removal.members})
    else:
        print_removal(removal)
