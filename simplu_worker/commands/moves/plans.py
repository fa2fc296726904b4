"""Estimate moves before anything is written, and print the plan."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.moves.runner import FinishedMove, FoundMove, MoveRequest, find_move, with_tenant
from simplu_worker.commands.output import print_json, print_note, print_table, show_count
from simplu_worker.errors import WorkerError
from simplu_worker.transfers.moving.places import TenantPlaces, check_room, fetch_capacities, has_business
from simplu_worker.transfers.moving.readiness import MovePlan, plan_move
from simplu_worker.transfers.moving.types import PauseTooLongError

PARALLEL: Final = 8  # tenants that are measured at once: each takes a read of all its rows
COLUMNS: Final = (
    *("tenant", "from", "to", "resources", "MiB", "operations", "disk, about MiB", "about s", "pause, about ms"),
    "of it standbys",
)


class MovePlans(msgspec.Struct, frozen=True):
    """What requests come to, in their order; by tenant, why some are *refused*, and whose pause is *too_long*."""

    plans: list[MovePlan] = []
    finished: list[FinishedMove] = []
    refused: dict[str, str] = {}
    too_long: dict[str, str] = {}

    @property
    def problems(self) -> dict[str, str]:
        """Why tenants would not move."""
        return self.refused | self.too_long

    @property
    def members(self) -> dict[str, Any]:
        """The members of JSON."""
        return {"plan": self.plans, "finished": self.finished, "refused": self.problems}


async def check_moves(
    shards: Shards, requests: Sequence[MoveRequest], places: Mapping[str, TenantPlaces] | None = None
) -> tuple[list[FoundMove | FinishedMove], dict[str, str]]:
    """Return the moves that are possible, in order, and by tenant why others are refused.

    Without *places* all shards are asked for each tenant. Moves to one shard count one after the other, each business
    once.
    """
    slots = asyncio.Semaphore(PARALLEL)
    refused: dict[str, str] = {}

    async def find(request: MoveRequest) -> FoundMove | FinishedMove | None:
        async with slots:
            try:
                known = None if places is None else places.get(request.tenant_id)
                return await find_move(shards, request.tenant_id, request.shard_id, known)
            except WorkerError as exc:
                refused[request.tenant_id] = str(exc)
                return None

    answers = await asyncio.gather(*map(find, requests))
    capacities = await fetch_capacities(shards.locator, {one.shard_id for one in requests})
    coming: defaultdict[str, set[str]] = defaultdict(set)  # businesses, by shard
    possible: list[FoundMove | FinishedMove] = []
    for request, found in zip(requests, answers, strict=True):
        if found is None:
            continue
        capacity = capacities[request.shard_id]
        if capacity is not None and isinstance(found, FoundMove) and not found.has_left:
            business_id, there = request.business_id, coming[request.shard_id]
            try:
                is_there = await has_business(shards.pools.pool_of(request.shard_id), business_id)
                is_counted = is_there or business_id in there
                check_room(request.shard_id, capacity, coming_count=len(there), is_counted=is_counted)
            except WorkerError as exc:
                refused[request.tenant_id] = str(exc)
                continue
            if not is_there:
                there.add(business_id)
        possible.append(found)
    return possible, refused


async def plan_moves(
    shards: Shards,
    requests: Sequence[MoveRequest],
    *,
    max_pause_s: float | None = None,
    places: Mapping[str, TenantPlaces] | None = None,
) -> MovePlans:
    """Return what each move would take, and whose pause would be over *max_pause_s*; *places* as in `check_moves`."""
    slots = asyncio.Semaphore(PARALLEL)
    possible, refused = await check_moves(shards, requests, places)
    too_long: dict[str, str] = {}

    async def measure(found: FoundMove) -> MovePlan | None:
        move, longest_s = found.move, None if found.has_left else max_pause_s  # who has left waits already
        async with slots:
            try:
                plan = await plan_move(shards.pools, shards.commits, move, max_pause_s=longest_s)
            except PauseTooLongError as exc:
                too_long[move.tenant_id] = str(exc)
                return None
            except WorkerError as exc:
                refused[move.tenant_id] = str(exc)
                return None
        return msgspec.structs.replace(plan, goes_on=found.goes_on)

    plans = await asyncio.gather(*(measure(one) for one in possible if isinstance(one, FoundMove)))
    finished = [one for one in possible if isinstance(one, FinishedMove)]
    return MovePlans([one for one in plans if one is not None], finished, refused, too_long)


def print_plans(planned: MovePlans, *, as_json: bool) -> int:
    """Print a plan. Return 1 if a move is refused."""
    if as_json:
        print_json(planned.members)
        return 1 if planned.problems else 0
    if planned.plans:
        print_table(COLUMNS, map(plan_row, planned.plans))
    for one in planned.finished:
        print_note(one.describe())
    for plan in planned.plans:
        if plan.goes_on:
            print_note(f"{plan.tenant}: a command has begun this move, and not ended it: it goes on")
    for tenant_id, problem in planned.problems.items():
        print_note(with_tenant(tenant_id, problem))
    if planned.plans:
        print_note("nothing was moved; with --apply the tenants are")
    return 1 if planned.problems else 0


def plan_row(plan: MovePlan) -> tuple[object, ...]:
    """Return the cells of COLUMNS."""
    return (
        plan.tenant,
        plan.source_shard,
        plan.target_shard,
        show_count(plan.resources),
        show_count(plan.byte_count, decimals=1, unit=2**20),
        show_count(plan.operations),
        show_count(plan.disk_bytes, decimals=1, unit=2**20),
        show_count(plan.duration_s, decimals=1),
        f"{plan.pause_s * 1000:.0f}",
        f"{plan.standby_s * 1000:.0f}",
    )
