"""Estimate moves before anything is written, and print the plan."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.moves.runner import MoveRequest, with_tenant
from simplu_worker.commands.output.display import print_json, print_note, print_table
from simplu_worker.errors import WorkerError
from simplu_worker.transfers.moving.planning.places import find_places
from simplu_worker.transfers.moving.planning.readiness import MovePlan, check_shards, plan_move
from simplu_worker.transfers.moving.types import Move

PARALLEL: Final = 8  # tenants that are measured at once: each takes a read of all its rows
COLUMNS: Final = (
    *("tenant", "from", "to", "resources", "MiB", "operations", "disk, about MiB", "about s", "pause, about ms"),
    "of it standbys",
)


async def plan_moves(
    shards: Shards, requests: Sequence[MoveRequest], *, max_pause_s: float | None = None
) -> tuple[list[MovePlan], dict[str, str]]:
    """Return what each move would take, and by tenant why one is refused: also for a pause over *max_pause_s*."""
    slots = asyncio.Semaphore(PARALLEL)
    problems: dict[str, str] = {}

    async def plan(request: MoveRequest) -> MovePlan | None:
        async with slots:
            try:
                places = await find_places(shards.locator, shards.pools, request.tenant_id)
                source_id = places.source_for(request.shard_id)
                await check_shards(shards.locator, shards.pools, request.tenant_id, source_id, request.shard_id)
                move = Move(request.tenant_id, source_id, request.shard_id)
                return await plan_move(shards.pools, shards.commits, move, max_pause_s=max_pause_s)
            except WorkerError as exc:
                problems[request.tenant_id] = str(exc)
                return None

    plans = await asyncio.gather(*map(plan, requests))
    return [one for one in plans if one is not None], problems


def print_plans(plans: Sequence[MovePlan], problems: Mapping[str, str], *, as_json: bool) -> int:
    """Print a plan. Return 1 if a move is refused."""
    if as_json:
        print_json({"plan": plans, "refused": problems})
        return 1 if problems else 0
    print_table(COLUMNS, map(_plan_row, plans))
    for tenant_id, problem in problems.items():
        print_note(with_tenant(tenant_id, problem))
    print_note("nothing was moved; without --dry-run the tenants are")
    return 1 if problems else 0


def _plan_row(plan: MovePlan) -> tuple[object, ...]:
    return (
        plan.tenant,
        plan.source_shard,
        plan.target_shard,
        plan.resources,
        f"{plan.byte_count / 2**20:.1f}",
        plan.operations,
        f"{plan.disk_bytes / 2**20:.1f}",
        f"{plan.duration_s:.1f}",
        f"{plan.pause_s * 1000:.0f}",
        f"{plan.standby_s * 1000:.0f}",
    )
