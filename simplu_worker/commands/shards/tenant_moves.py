"""The moves of many tenants that `shards drain` and `shards rebalance` plan and carry out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.moves import MoveRequest, MoveRunner, check_moves, with_tenant
from simplu_worker.commands.output import print_json_line, print_line, print_note, print_table, table_of
from simplu_worker.commands.shards.show import locate_all
from simplu_worker.config.settings import Settings
from simplu_worker.errors import RetryableError
from simplu_worker.shards.health.assessment import RUNNING_S
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES as SHARD_QUERIES
from simplu_worker.shards.routing.locator import Capacity, StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, ShardRows, fetch_from_all_shards
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving import balance
from simplu_worker.transfers.moving.places import TenantPlaces, fetch_capacities, places_of
from simplu_worker.vocabulary import TenantState

WEIGH_LIMITS: Final = QueryLimits(answer_s=30.0, all_s=300.0)
WEIGHED_ROWS: Final = 500_000  # of a shard; more are weighed by a part of its pages


class Weight(StrEnum):
    """The measure by which shards are to be about equally full."""

    ROWS = "rows"
    BYTES = "bytes"
    LOAD = "load"  # operations of the last hour


class Survey(msgspec.Struct, frozen=True):
    """The tenants of all shards, and the moves that have not ended; *targets* take tenants.

    *full* targets take no more by Citrus; *drained* shards take none.
    """

    targets: list[ShardAddress]
    full: frozenset[str]
    found: list[balance.FoundTenant]
    places: Mapping[str, TenantPlaces]
    types: Mapping[str, frozenset[str]]
    begun: balance.BegunMoves
    drained: frozenset[str] = frozenset()

    @property
    def target_ids(self) -> list[str]:
        """The shards that take tenants."""
        return [shard.shard_id for shard in self.targets]

    @property
    def homes(self) -> list[balance.WeighedTenant]:
        """The tenants where their homes are now."""
        return balance.homes_of(self.found)

    @property
    def homes_after(self) -> list[balance.WeighedTenant]:
        """The tenants' homes once the moves that have begun have ended."""
        return balance.homes_after(self.homes, self.begun.expected)

    @property
    def settled(self) -> frozenset[str]:
        """The tenants whose moves have begun."""
        return frozenset(one.tenant.tenant_id for one in self.begun.expected)

    @property
    def left(self) -> frozenset[tuple[str, str]]:
        """The tenants, each with a shard that it has left."""
        return frozenset((one.tenant_id, one.shard_id) for one, state in self.found if state is TenantState.MOVED)

    def rooms(self, *, by_capacity: bool) -> list[balance.ShardRoom]:
        """Return the room of each target, beside what is there or coming."""
        there: defaultdict[str, set[str]] = defaultdict(set)
        coming: defaultdict[str, set[str]] = defaultdict(set)
        for home in self.homes:
            there[home.shard_id].add(home.business_id)
        for one in self.begun.expected:
            coming[one.target_id].add(one.tenant.business_id)
        rooms = balance.rooms_of(self.targets, there, coming, by_capacity=by_capacity)
        return [msgspec.structs.replace(one, room=0) if one.shard_id in self.full else one for one in rooms]


async def survey_tenants(shards: Shards, by: Weight | None, *, without: str | None = None) -> Survey:
    """Return what all shards have, weighed *by*; *without* and drained shards take no tenants.

    Raises `RetryableError` if a shard does not answer.
    """
    asked = (await survey_shards(shards, QUERIES["is_drained"])).rows
    drained = frozenset(shard_id for shard_id, row in asked if row["is_drained"]) - {without}
    usable = await _list_usable_shards(shards)
    targets = [shard for shard in usable if shard.shard_id not in {without, *drained}]
    rows = (await survey_shards(shards, QUERIES["list_tenants"])).rows
    weights = None if by is None else await _weigh(shards, by)
    found = [
        (
            balance.WeighedTenant(
                row["business_id"],
                row["location_id"],
                shard_id,
                1 if weights is None else weights.get((shard_id, row["id"]), 0),
                row["business_type"],
            ),
            TenantState(row["state"]),
        )
        for shard_id, row in rows
    ]
    types: defaultdict[str, set[str]] = defaultdict(set)
    for shard_id, row in (await survey_shards(shards, QUERIES["list_type_names"])).rows:
        types[shard_id].add(row["name"])
    journal = (await survey_shards(shards, QUERIES["list_begun_moves"], RUNNING_S)).rows
    moves = [
        balance.BegunMove(row["tenant_id"], shard_id, row["target_shard_id"], row["step"], row["is_running"])
        for shard_id, row in journal
    ]
    capacities = await fetch_capacities(shards.locator, {shard.shard_id for shard in targets})
    known = {shard_id: one for shard_id, one in capacities.items() if isinstance(one, Capacity)}  # each move asks again
    full = frozenset(shard_id for shard_id, capacity in known.items() if capacity.accepts_new is False)
    targets = [_with_limit(shard, known.get(shard.shard_id)) for shard in targets]
    begun = balance.sort_begun_moves(found, moves, {shard.shard_id for shard in targets})
    known_types = {shard.shard_id: frozenset(types[shard.shard_id]) for shard in targets}
    return Survey(targets, full, found, places_of(rows), known_types, begun, drained)


async def running_tenants(shards: Shards, within_s: float) -> set[str]:
    """Return the tenants whose moves were noted as running *within_s*."""
    journal = (await survey_shards(shards, QUERIES["list_begun_moves"], within_s)).rows
    return {row["tenant_id"] for _, row in journal if row["is_running"]}


async def _weigh(shards: Shards, by: Weight) -> dict[tuple[str, str], int]:
    arguments = () if by is Weight.LOAD else (WEIGHED_ROWS,)
    weighed = await survey_shards(shards, QUERIES[f"weigh_{by}"], *arguments, limits=WEIGH_LIMITS)
    return {(shard_id, row["id"]): row["weight"] for shard_id, row in weighed.rows}


def _with_limit(shard: ShardAddress, capacity: Capacity | None) -> ShardAddress:
    if capacity is None:
        return shard
    business_count = shard.business_count if capacity.business_count is None else capacity.business_count
    business_max = shard.business_max if capacity.business_max is None else capacity.business_max
    return msgspec.structs.replace(shard, business_count=business_count, business_max=business_max)


async def survey_shards(shards: Shards, query: str, *arguments: object, limits: QueryLimits = LIMITS) -> ShardRows:
    """Return the rows of a query on all shards. Raises `RetryableError` if one does not answer."""
    rows = await fetch_from_all_shards(shards.locator, shards.pools, query, *arguments, limits=limits)
    if rows.silent_shard_ids:
        raise RetryableError(
            f"expected an answer of every shard, got none of {', '.join(rows.silent_shard_ids)}; "
            "see whether they run, and run the same command again"
        )
    return rows


async def _list_usable_shards(shards: Shards) -> list[ShardAddress]:
    locator = shards.locator
    retired = locator.map.retired_ids if isinstance(locator, StaticMap) else frozenset[str]()
    known = await locator.list_shards()
    return [one for one in known if one.refusal is None and one.is_active and one.shard_id not in retired]


async def find_removal(settings: Settings, shards: Shards, shard_id: str) -> balance.Removal:
    """Return whether a shard can be removed, by the rows of all shards, then by the locator."""
    if isinstance(shards.locator, StaticMap) and settings.shard_map_file is not None:  # with the new pins
        shards.locator.replace(read_shard_map(settings.shard_map_file, settings.database_allowed_hosts))
    rows = balance.TenantRows((await survey_shards(shards, SHARD_QUERIES["list_tenants"])).rows)
    staying = rows.on(shard_id)
    found, errors = await locate_all(shards.locator, () if staying else rows.elsewhere(shard_id))
    named = {tenant_id: None if one is None else one.shard_id for tenant_id, one in found.items()}
    error = next(iter(errors.values()), None)
    return balance.describe_removal(shard_id, staying, rows.led_through(shard_id, named), sorted(errors), error)


def print_removal(removal: balance.Removal) -> None:
    """Print whether a shard can be removed, and why not."""
    for reason in removal.kept_by:
        print_note(f"shard {removal.shard_id}: {reason}")
    if not removal.kept_by:
        print_note(
            f"shard {removal.shard_id}: no tenant is there or is looked for there; "
            "it can be retired in the map or Citrus"
        )


COLUMNS: Final = {"tenant": "tenant", "sourceShard": "from", "targetShard": "to", "weight": "weight"}


class ShownPlan(msgspec.Struct, frozen=True):
    """The moves of *plan*, after those that have begun; *refused* says why tenants would not move.

    If the plan *is_blocked*, nothing is carried out.
    """

    survey: Survey
    plan: Sequence[balance.PlannedTransfer]
    refused: Mapping[str, str]
    by: str
    removal: balance.Removal | None = None
    is_blocked: bool = False

    @property
    def transfers(self) -> list[balance.PlannedTransfer]:
        """All moves, those that have begun first."""
        return [*self.survey.begun.going_on, *self.plan]

    @property
    def homes_after(self) -> list[balance.WeighedTenant]:
        """The tenants where their homes are after all moves."""
        moved = {} if self.is_blocked else {(one.tenant.tenant_id, one.tenant.shard_id): one for one in self.plan}
        return [
            one
            if planned is None or one.tenant_id in self.refused
            else msgspec.structs.replace(one, shard_id=planned.target_id)
            for one in self.survey.homes_after
            for planned in (moved.get((one.tenant_id, one.shard_id)),)
        ]


def print_plan(shown: ShownPlan, *, as_json: bool, apply: bool) -> None:
    """Print the moves, and the weights before and after."""
    members = _plan_members(shown)
    if as_json:
        print_json_line(members)
        return
    print_table(*table_of(COLUMNS, members["plan"]))
    before, after = members["before"], members["after"]
    rows = ((name, before[name], after[name]) for name in sorted({*before, *after, *shown.survey.target_ids}))
    print_table(("shard", f"{shown.by} before", "after"), rows)
    for tenant_id, problem in shown.refused.items():
        print_note(with_tenant(tenant_id, problem))
    for one in shown.survey.begun.running:
        print_note(
            f"{one.tenant.tenant_id}: another command moves it to shard {one.target_id}, and is left alone; "
            f"if it was killed just now, {RUNNING_S:.0f} s later this command goes on with it"
        )
    for shard_id in sorted(shown.survey.drained):
        print_note(describe_drained(shard_id))
    if going_on := shown.survey.begun.going_on:
        print_note(f"{len(going_on)} of these moves have begun and go on first")
    moved = set() if shown.is_blocked else {one.tenant.tenant_id for one in shown.transfers} - shown.refused.keys()
    print_line(f"{len(moved)} of {len(shown.survey.homes_after)} tenants move")
    if shown.is_blocked:
        print_note(
            f"nothing is moved: {len(shown.refused)} tenants have no place; with --partial --apply the others move"
        )
    elif shown.transfers and not apply:
        print_note("nothing was moved; with --apply the tenants are")
    if shown.removal is not None:
        print_removal(shown.removal)


def _plan_members(shown: ShownPlan) -> dict[str, Any]:
    begun = shown.survey.begun
    before, after = _loads(shown.survey.homes), _loads(shown.homes_after)
    return {
        "by": shown.by,
        "plan": [
            *(_members(one) | {"begun": True} for one in begun.going_on),
            *map(_members, shown.plan),
        ],
        "running": list(map(_members, begun.running)),
        "drained": sorted(shown.survey.drained),
        "refused": shown.refused,
        "before": before,
        "after": Counter(dict.fromkeys(before, 0) | after),
        **({} if shown.removal is None else shown.removal.members),
    }


async def find_refused(shards: Shards, survey: Survey, plan: Sequence[balance.PlannedTransfer]) -> dict[str, str]:
    """Return why tenants of *plan* cannot move, by their ids."""
    _, refused = await check_moves(shards, requests_of(plan), survey.places)
    return refused


def requests_of(plan: Sequence[balance.PlannedTransfer]) -> list[MoveRequest]:
    """Return the moves, one of each tenant: two shards may both name one that moves."""
    requests = [MoveRequest(*one.tenant.names, one.target_id) for one in plan]
    return list({one.tenant_id: one for one in requests}.values())


def _loads(tenants: Iterable[balance.WeighedTenant]) -> Counter[str]:
    loads: Counter[str] = Counter()
    for one in tenants:
        loads[one.shard_id] += one.weight
    return loads


def _members(one: balance.PlannedTransfer) -> dict[str, Any]:
    return {
        "tenant": one.tenant.tenant_id,
        "sourceShard": one.tenant.shard_id,
        "targetShard": one.target_id,
        "weight": one.tenant.weight,
    }


async def carry_out(
    settings: Settings,
    shards: Shards,
    survey: Survey,
    plan: Sequence[balance.PlannedTransfer],
    terms: MoveTerms,
    *,
    as_json: bool,
) -> int:
    """End the moves that have begun, then carry out *plan*; a tenant may be in both.

    Return 1 if something fails, or if other commands still move tenants.
    """
    runner = MoveRunner(settings, shards, terms, as_json=as_json)
    in_turn = (requests_of(survey.begun.going_on), requests_of(plan))
    statuses = [await runner.run(requests) for requests in in_turn if requests]
    before = {one.tenant.tenant_id for one in survey.begun.running}
    if before and (left := before & await running_tenants(shards, RUNNING_S)):
        print_note(f"{len(left)} tenants, such as {min(left)}, are moved by other commands: run this again afterwards")
        statuses.append(1)
    return max(statuses, default=0)
