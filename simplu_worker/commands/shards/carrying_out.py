"""Carry out a plan of moves between shards, after the moves that have begun."""

from __future__ import annotations

from collections.abc import Sequence

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.moves.runner import MoveResult, MoveRunner, print_result
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.shards.survey import Survey, running_tenants
from simplu_worker.commands.shards.transfers import requests_of
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.health.moves import RUNNING_S
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer
from simplu_worker.transfers.moving.undoing import undo_move
from simplu_worker.vocabulary import MoveOutcome


async def carry_out(
    settings: Settings,
    shards: Shards,
    survey: Survey,
    plan: Sequence[PlannedTransfer],
    terms: MoveTerms,
    *,
    as_json: bool,
    is_drain: bool = False,
) -> int:
    """Take back or end the moves that have begun, then carry out *plan*.

    Return 1 if something fails, or if other commands still move tenants that they did before.

    With *is_drain* the journals have those of *plan* as moves of a drain; the others stay what they were.
    """
    taken_back = survey.begun.taken_back
    kept = [one.tenant.tenant_id for one in taken_back if not await _take_back(shards, one, as_json=as_json)]
    statuses = [1] if kept else []
    # One after the other: a tenant may be in several.
    for transfers in (survey.begun.committed, survey.begun.opened, plan):
        requests = [one for one in requests_of(transfers) if one.tenant_id not in kept]
        if requests:
            by_drain = is_drain and transfers is plan
            statuses.append(await MoveRunner(settings, shards, terms, as_json=as_json, is_drain=by_drain).run(requests))
    before = {one.tenant.tenant_id for one in survey.begun.running}
    if before and (left := before & await running_tenants(shards, RUNNING_S)):
        print_note(f"{len(left)} tenants, such as {min(left)}, are moved by other commands: run this again afterwards")
        statuses.append(1)
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
