"""Print a plan of moves between shards: each move, and how full the shards are before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from simplu_worker.commands.moves.plans import MovePlans
from simplu_worker.commands.moves.runner import MoveRequest, with_tenant
from simplu_worker.commands.output.display import print_json_line, print_line, print_note, print_table, show_count
from simplu_worker.commands.shards.removal import print_removal
from simplu_worker.commands.shards.survey import Survey
from simplu_worker.shards.health.moves import RUNNING_S
from simplu_worker.shards.tenants.tenant_rows import describe_drained
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, WeighedTenant
from simplu_worker.transfers.moving.planning.readiness import MovePlan
from simplu_worker.transfers.moving.planning.removal import Removal


class ShownPlan(msgspec.Struct, frozen=True):
    """The moves of *plan*, after those that have begun; *by* is the measure, *removal* is about a shard to empty.

    *planned* is what the moves of *plan* would take, where they were measured, and why some would be refused. If that
    *is_blocked*, none is carried out.
    """

    survey: Survey
    plan: Sequence[PlannedTransfer]
    planned: MovePlans
    by: str
    removal: Removal | None = None
    is_blocked: bool = False

    @property
    def transfers(self) -> list[PlannedTransfer]:
        """All moves, those that have begun first."""
        return [*self.survey.begun.going_on, *self.plan]

    @property
    def homes_after(self) -> list[WeighedTenant]:
        """The tenants where their homes are after all moves."""
        moved = {} if self.is_blocked else {(one.tenant.tenant_id, one.tenant.shard_id): one for one in self.plan}
        return [
            one
            if planned is None or one.tenant_id in self.planned.problems
            else msgspec.structs.replace(one, shard_id=planned.target_id)
            for one in self.survey.homes_after
            for planned in (moved.get((one.tenant_id, one.shard_id)),)
        ]


def print_plan(shown: ShownPlan, *, as_json: bool, apply: bool) -> None:
    """Print the moves, and the weights before and after; as far as they were measured also what each move takes."""
    if as_json:
        print_json_line(_plan_members(shown))
        return
    sizes = _sizes(shown)
    columns = ("resources", "MiB", "about s") if sizes else ()
    rows = ((*_members(one).values(), *_size_cells(sizes, one)) for one in shown.transfers)
    print_table(("tenant", "from", "to", shown.by, *columns), rows)
    _print_usage(shown)
    for tenant_id, problem in shown.planned.problems.items():
        print_note(with_tenant(tenant_id, problem))
    begun = shown.survey.begun
    for one in begun.taken_back:
        print_note(f"{one.tenant.tenant_id}: its move to shard {one.target_id}, which has begun, is taken back")
    for one in begun.running:
        print_note(
            f"{one.tenant.tenant_id}: another command moves it to shard {one.target_id}, and is left alone; "
            f"if it was killed just now, --apply waits {RUNNING_S:.0f} s for it and goes on"
        )
    for shard_id in sorted(shown.survey.drained):
        print_note(describe_drained(shard_id))
    if begun.going_on:
        print_note(f"{len(begun.going_on)} of these moves have begun and go on first")
    refused = shown.planned.problems.keys()
    moved = set() if shown.is_blocked else {one.tenant.tenant_id for one in shown.transfers} - refused
    print_line(f"{len(moved)} of {len(shown.survey.homes_after)} tenants move")
    if shown.is_blocked:
        count = len(shown.planned.refused)
        print_note(f"nothing is moved: {count} tenants have no place; with --partial --apply the others move")
    elif (shown.transfers or begun.taken_back) and not apply:
        print_note("nothing was moved; with --apply the tenants are")
    if shown.removal is not None:
        print_removal(shown.removal)


def _print_usage(shown: ShownPlan) -> None:
    """Print how full the shards are; where Citrus has limits also how many businesses they have."""
    limits = {one.shard_id: one.business_max for one in shown.survey.targets if one.business_max is not None}
    counts = [count(homes) for count in (_loads, _businesses) for homes in (shown.survey.homes, shown.homes_after)]
    names = sorted({*counts[0], *counts[1], *shown.survey.target_ids})
    columns = ("shard", f"{shown.by} before", "after", "businesses before", "after", "businesses at most")
    width = None if limits else 3
    print_table(columns[:width], ((name, *(one[name] for one in counts), limits.get(name))[:width] for name in names))


def _sizes(shown: ShownPlan) -> dict[str, MovePlan]:
    return {one.tenant: one for one in shown.planned.plans}


def _plan_members(shown: ShownPlan) -> dict[str, Any]:
    begun, sizes = shown.survey.begun, _sizes(shown)
    before = _loads(shown.survey.homes)
    return {
        "by": shown.by,
        "plan": [
            *(_members(one) | {"begun": True} for one in begun.going_on),
            *(_members(one) | _size_members(sizes.get(one.tenant.tenant_id)) for one in shown.plan),
        ],
        "takenBack": list(map(_members, begun.taken_back)),
        "running": list(map(_members, begun.running)),
        "drained": sorted(shown.survey.drained),
        "refused": shown.planned.problems,
        "before": before,
        "after": dict.fromkeys(before, 0) | _loads(shown.homes_after),
        **({} if shown.removal is None else shown.removal.members),
    }


def requests_of(plan: Sequence[PlannedTransfer]) -> list[MoveRequest]:
    """Return the moves, one of each tenant: the answers of two shards about one that moves are not of one moment."""
    requests = [MoveRequest(*one.tenant.names, one.target_id) for one in plan]
    return list({one.tenant_id: one for one in requests}.values())


def _size_members(size: MovePlan | None) -> dict[str, Any]:
    if size is None:
        return {}
    return {"resources": size.resources, "byteCount": size.byte_count, "durationS": size.duration_s}


def _size_cells(sizes: Mapping[str, MovePlan], one: PlannedTransfer) -> tuple[object, ...]:
    if not sizes:
        return ()
    size = sizes.get(one.tenant.tenant_id)
    if size is None:
        return ("", "", "")
    return (
        show_count(size.resources),
        show_count(size.byte_count, decimals=1, unit=2**20),
        show_count(size.duration_s, decimals=1),
    )


def _loads(tenants: Iterable[WeighedTenant]) -> Counter[str]:
    loads: Counter[str] = Counter()
    for one in tenants:
        loads[one.shard_id] += one.weight
    return loads


def _businesses(tenants: Iterable[WeighedTenant]) -> Counter[str]:
    return Counter(shard_id for shard_id, _ in {(one.shard_id, one.business_id) for one in tenants})


def _members(one: PlannedTransfer) -> dict[str, Any]:
    return {
        "tenant": one.tenant.tenant_id,
        "sourceShard": one.tenant.shard_id,
        "targetShard": one.target_id,
        "weight": one.tenant.weight,
    }
