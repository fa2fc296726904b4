"""`shards rebalance` and `shards drain`: plan moves of tenants between shards, and carry them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves.plans import plan_moves
from simplu_worker.commands.moves.runner import MoveRequest, MoveRunner, with_tenant
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_line, print_note, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.moving.planning.balance import (
    PlannedTransfer,
    WeighedTenant,
    leads_through,
    plan_balance,
    plan_by_name,
    plan_drain,
)
from simplu_worker.shards.moving.planning.readiness import MovePlan
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, ShardRows, fetch_from_all_shards

NO_LIMIT = 10**9  # tenants of a shard
WEIGH_LIMITS = QueryLimits(answer_s=30.0, all_s=300.0)  # some read all rows of a shard
HOME_STATES = frozenset({"active", "fenced"})


class Weight(StrEnum):
    """The measure by which shards are to be about equally full."""

    ROWS = "rows"
    BYTES = "bytes"
    LOAD = "load"  # operations of the last hour


QUERIES_BY_WEIGHT = {Weight.ROWS: "weigh_rows", Weight.BYTES: "weigh_bytes", Weight.LOAD: "weigh_load"}


async def rebalance_shards(
    settings: Settings, by: Weight | None, terms: MoveTerms, *, apply: bool, as_json: bool
) -> int:
    """Plan moves that make the shards about equally full, or follow the map; with *apply* carry them out."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        targets = await _usable_shards(shards)
        query = "weigh_tenants" if by is None else QUERIES_BY_WEIGHT[by]
        tenants = _placed(await _survey(shards, query, limits=WEIGH_LIMITS))
        locator = shards.locator
        if by is None and isinstance(locator, StaticMap):
            homes = {one.tenant_id: locator.map.shard_of(one.tenant_id).shard_id for one in tenants}
            plan = plan_by_name(tenants, homes, [shard.shard_id for shard in targets])
        else:
            plan = plan_balance(tenants, [shard.shard_id for shard in targets])
        await _print_plan(shards, tenants, plan, by or "tenants", as_json=as_json, apply=apply)
        if not apply or not plan:
            return 0
        return await _carry_out(settings, shards, plan, terms, as_json=as_json)


async def drain_shard(settings: Settings, shard_id: str, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard; with *apply* carry them out, and print whether it can be removed."""
    require_settings(settings, routes=True)
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
        if shard_id not in {shard.shard_id for shard in known}:
            raise PermanentError(
                f"shard {shard_id}: expected one of {', '.join(sorted(one.shard_id for one in known))}"
            )
        all_tenants = _placed(await _survey(shards, "weigh_tenants"))
        tenants = [one for one in all_tenants if one.shard_id == shard_id]
        counts = Counter(one.shard_id for one in all_tenants)
        others = [shard for shard in await _usable_shards(shards) if shard.shard_id != shard_id]
        plan, homeless = plan_drain(tenants, {shard.shard_id: _room_of(shard, counts) for shard in others})
        await _print_plan(shards, all_tenants, plan, "tenants", as_json=as_json, apply=apply)
        for tenant in homeless:
            print_note(f"{tenant.tenant_id}: expected a shard with room, got none; add a shard")
        if not apply:
            return 1 if homeless else 0
        status = await _carry_out(settings, shards, plan, terms, as_json=as_json) if plan else 0
        return 1 if await _report_removal(settings, shards, shard_id) or homeless else status


async def _report_removal(settings: Settings, shards: Shards, shard_id: str) -> bool:
    """Print whether the shard can be removed; return whether something keeps it."""
    if isinstance(shards.locator, StaticMap) and settings.shard_map_file is not None:  # with the new pins
        shards.locator.replace(read_shard_map(settings.shard_map_file, settings.database_allowed_hosts))
    rows = (await _survey(shards, "list_tenants")).rows
    left = [row for where, row in rows if where == shard_id]
    homes = [row["id"] for row in left if row["state"] not in {"moved", "destroyed"}]
    left_for: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by tenant: the next shard by each that it has left
    for where, row in rows:
        if row["state"] == "moved":
            left_for[row["id"]][where] = row["moved_to"]
    routed = [
        row["id"]
        for row in left
        if row["state"] == "moved"
        and leads_through(await _find_named(shards, row["id"]), shard_id, left_for[row["id"]])
    ]
    if homes:
        print_note(f"shard {shard_id}: {len(homes)} tenants are still there, such as {homes[0]}: keep it")
    if routed:
        print_note(
            f"shard {shard_id}: {len(routed)} tenants have left it, and are still looked for there, "
            f"such as {routed[0]}: keep it until Citrus or the map names their new shards"
        )
    if not homes and not routed:
        print_note(
            f"shard {shard_id}: no tenant is there or is looked for there; it can be retired in the map or Citrus"
        )
    return bool(homes or routed)


async def _find_named(shards: Shards, tenant_id: str) -> str | None:
    named = await shards.locator.locate(tenant_id)
    return None if named is None else named.shard_id


async def _usable_shards(shards: Shards) -> list[ShardAddress]:
    """Return the shards that tenants may move to."""
    locator = shards.locator
    retired = set[str]()
    if isinstance(locator, StaticMap):
        retired = {shard.shard_id for shard in locator.map.shards if shard.retired}
    known = await locator.list_shards()
    return [one for one in known if one.refusal is None and one.is_active and one.shard_id not in retired]


async def _survey(shards: Shards, query: str, *, limits: QueryLimits = LIMITS) -> ShardRows:
    """Return the rows of a query on all shards. Raises `RetryableError` if one does not answer."""
    survey = await fetch_from_all_shards(shards.locator, shards.pools, query, limits=limits)
    if survey.silent_shard_ids:
        raise RetryableError(f"expected an answer of every shard, got none of {', '.join(survey.silent_shard_ids)}")
    return survey


def _placed(survey: ShardRows) -> list[WeighedTenant]:
    return [
        WeighedTenant(row["business_id"], row["location_id"], shard_id, row["weight"])
        for shard_id, row in survey.rows
        if row["state"] in HOME_STATES
    ]


def _room_of(shard: ShardAddress, counts: Counter[str]) -> int:
    most = NO_LIMIT if shard.tenant_max is None else shard.tenant_max
    return most - max(counts[shard.shard_id], shard.tenant_count or 0)


async def _print_plan(
    shards: Shards,
    tenants: Sequence[WeighedTenant],
    plan: Sequence[PlannedTransfer],
    by: str,
    *,
    as_json: bool,
    apply: bool,
) -> None:
    """Print the moves, and the weights before and after; without *apply* also what each move would take."""
    before = _loads(tenants)
    after = Counter(before)
    for one in plan:
        after[one.tenant.shard_id] -= one.tenant.weight
        after[one.target_id] += one.tenant.weight
    moves, problems = await plan_moves(shards, _requests(() if apply else plan))
    sizes = {one.tenant: one for one in moves}
    if as_json:
        listed = [_members(one) | _size_members(sizes.get(one.tenant.tenant_id)) for one in plan]
        members = {"by": by, "plan": listed, "refused": problems, "before": before, "after": after}
        print_line(msgspec.json.encode(members).decode())
        return
    columns = ("resources", "MiB", "about s") if sizes else ()
    rows = ((*_members(one).values(), *_size_cells(sizes, one)) for one in plan)
    print_table(("tenant", "from", "to", str(by), *columns), rows)
    print_table(
        ("shard", f"{by} before", "after"), ((name, before[name], after[name]) for name in sorted({*before, *after}))
    )
    for tenant_id, problem in problems.items():
        print_note(with_tenant(tenant_id, problem))
    print_line(f"{len(plan)} of {len(tenants)} tenants move")
    if plan and not apply:
        print_note("nothing was moved; with --apply the tenants are")


def _size_members(size: MovePlan | None) -> dict[str, Any]:
    if size is None:
        return {}
    return {"resources": size.resources, "byteCount": size.byte_count, "durationS": size.duration_s}


def _size_cells(sizes: Mapping[str, MovePlan], one: PlannedTransfer) -> tuple[object, ...]:
    if not sizes:
        return ()
    size = sizes.get(one.tenant.tenant_id)
    return (
        ("", "", "") if size is None else (size.resources, f"{size.byte_count / 2**20:.1f}", f"{size.duration_s:.1f}")
    )


def _loads(tenants: Iterable[WeighedTenant]) -> Counter[str]:
    loads: Counter[str] = Counter()
    for one in tenants:
        loads[one.shard_id] += one.weight
    return loads


def _members(one: PlannedTransfer) -> dict[str, Any]:
    return {
        "tenant": one.tenant.tenant_id,
        "sourceShard": one.tenant.shard_id,
        "targetShard": one.target_id,
        "weight": one.tenant.weight,
    }


async def _carry_out(
    settings: Settings, shards: Shards, plan: Sequence[PlannedTransfer], terms: MoveTerms, *, as_json: bool
) -> int:
    runner = MoveRunner(settings, shards, terms, as_json=as_json)
    return await runner.run(_requests(plan))


def _requests(plan: Sequence[PlannedTransfer]) -> list[MoveRequest]:
    """Return the moves, one of each tenant: the answers of two shards about one that moves are not of one moment."""
    requests = [MoveRequest(*one.tenant.names, one.target_id) for one in plan]
    return list({one.tenant_id: one for one in requests}.values())
