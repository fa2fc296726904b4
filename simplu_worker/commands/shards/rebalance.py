"""`shards rebalance` and `shards drain`: plan moves of tenants, and carry them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.moves import MoveRequest, MoveRunner, find_refused, with_tenant
from simplu_worker.commands.output import Answer, print_json_line, print_line, print_note, print_table, table_of
from simplu_worker.commands.running import known_shard
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES as SHARD_QUERIES
from simplu_worker.shards.routing.locator import Capacity, Locator, StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, ShardRows, fetch_from_all_shards, locate_all
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving import balance
from simplu_worker.transfers.moving.places import TenantPlaces, fetch_capacities, places_of
from simplu_worker.vocabulary import TenantState

WEIGH_LIMITS: Final = QueryLimits(answer_s=30.0, all_s=300.0)
WEIGHED_ROWS: Final = 500_000  # of a shard; more are weighed by a part of its pages
NO_PLACE: Final = "expected a shard with room and its type, got none; add one"
COLUMNS: Final = {"tenant": "tenant", "sourceShard": "from", "targetShard": "to", "weight": "weight"}


class Weight(StrEnum):
    """The measure by which shards are to be about equally full."""

    ROWS = "rows"
    BYTES = "bytes"
    LOAD = "load"  # operations of the last hour


class Balance(msgspec.Struct, frozen=True):
    """How to balance: *by* a measure, or else by the map or the capacities; only *to* these shards, if any."""

    by: Weight | None = None
    to: tuple[str, ...] = ()


class Survey(msgspec.Struct, frozen=True):
    """The tenants of all shards, and the moves that have begun, which go on first; *targets* take tenants.

    *full* targets take no more by Citrus; *drained* shards take none. Those that are *stuck* cannot go on.
    """

    targets: list[ShardAddress]
    full: frozenset[str]
    found: list[balance.FoundTenant]
    places: Mapping[str, TenantPlaces]
    types: Mapping[str, frozenset[str]]
    begun: list[balance.PlannedTransfer]
    stuck: list[balance.PlannedTransfer]
    drained: frozenset[str]

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
        return balance.homes_after(self.homes, self.begun)

    @property
    def settled(self) -> frozenset[str]:
        """The tenants whose moves have begun."""
        return frozenset(one.tenant.tenant_id for one in (*self.begun, *self.stuck))

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
        for one in self.begun:
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
    journal = (await survey_shards(shards, QUERIES["list_begun_moves"])).rows
    moves = [
        balance.BegunMove(row["tenant_id"], shard_id, row["target_shard_id"], row["step"]) for shard_id, row in journal
    ]
    known = await fetch_capacities(shards.locator, {shard.shard_id for shard in targets})  # each move asks again
    full = frozenset(shard_id for shard_id, capacity in known.items() if capacity.accepts_new is False)
    targets = [_with_limit(shard, known.get(shard.shard_id)) for shard in targets]
    begun, stuck = balance.sort_begun_moves(found, moves, {shard.shard_id for shard in targets})
    known_types = {shard.shard_id: frozenset(types[shard.shard_id]) for shard in targets}
    return Survey(targets, full, found, places_of(rows), known_types, begun, stuck, drained)


async def _weigh(shards: Shards, by: Weight) -> dict[tuple[str, str], int]:
    query, *arguments = ("weigh_load",) if by is Weight.LOAD else ("weigh_resources", WEIGHED_ROWS)
    weighed = await survey_shards(shards, QUERIES[str(query)], *arguments, limits=WEIGH_LIMITS)
    return {(shard_id, row["id"]): row[by] for shard_id, row in weighed.rows}


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


async def find_removal(settings: Settings, shards: Shards, shard_id: str) -> list[str]:
    """Return why a shard cannot be removed, by the rows of all shards, then by the locator."""
    if isinstance(shards.locator, StaticMap) and settings.shard_map_file is not None:  # with the new pins
        shards.locator.replace(read_shard_map(settings.shard_map_file, settings.database_allowed_hosts))
    rows = balance.TenantRows((await survey_shards(shards, SHARD_QUERIES["list_tenants"])).rows)
    staying = rows.on(shard_id)
    found, errors = await locate_all(shards.locator, () if staying else rows.elsewhere(shard_id))
    named = {tenant_id: None if one is None else one.shard_id for tenant_id, one in found.items()}
    error = next(iter(errors.values()), None)
    return balance.describe_removal(staying, rows.led_through(shard_id, named), sorted(errors), error)


def print_removal(shard_id: str, kept_by: Sequence[str]) -> None:
    """Print whether a shard can be removed, and why not."""
    removable = "no tenant is there or is looked for there; it can be retired in the map or Citrus"
    for reason in kept_by or [removable]:
        print_note(f"shard {shard_id}: {reason}")


def _removal_members(kept_by: Sequence[str]) -> dict[str, Any]:
    return {"removable": not kept_by, "keptBy": kept_by}


class ShownPlan(msgspec.Struct, frozen=True):
    """The moves of *plan*, after those that have begun; *refused* says why tenants would not move."""

    survey: Survey
    plan: Sequence[balance.PlannedTransfer]
    refused: Mapping[str, str]
    by: str
    drained_id: str | None = None
    kept_by: Sequence[str] | None = None

    @property
    def homes_after(self) -> list[balance.WeighedTenant]:
        """The tenants where their homes are after all moves."""
        moved = {(one.tenant.tenant_id, one.tenant.shard_id): one for one in self.plan}
        return [
            one
            if planned is None or one.tenant_id in self.refused
            else msgspec.structs.replace(one, shard_id=planned.target_id)
            for one in self.survey.homes_after
            for planned in (moved.get((one.tenant_id, one.shard_id)),)
        ]

    @property
    def members(self) -> dict[str, Any]:
        """The members of JSON."""
        before, after = _loads(self.survey.homes), _loads(self.homes_after)
        return {
            "by": self.by,
            "plan": [*(_members(one) | {"goesOn": True} for one in self.survey.begun), *map(_members, self.plan)],
            "drained": sorted(self.survey.drained),
            "refused": self.refused,
            "before": before,
            "after": Counter(dict.fromkeys(before, 0) | after),
            **({} if self.kept_by is None else _removal_members(self.kept_by)),
        }


def print_plan(shown: ShownPlan, *, as_json: bool, apply: bool) -> None:
    """Print the moves, and the weights before and after."""
    members, begun = shown.members, shown.survey.begun
    if as_json:
        print_json_line(members)
        return
    print_table(*table_of(COLUMNS, members["plan"]))
    before, after = members["before"], members["after"]
    rows = ((name, before[name], after[name]) for name in sorted({*before, *after, *shown.survey.target_ids}))
    print_table(("shard", f"{shown.by} before", "after"), rows)
    for tenant_id, problem in shown.refused.items():
        print_note(with_tenant(tenant_id, problem))
    for shard_id in sorted(shown.survey.drained):
        print_note(describe_drained(shard_id))
    if begun:
        print_note(f"{len(begun)} of these moves have started, and continue first")
    moved = {one.tenant.tenant_id for one in (*begun, *shown.plan)} - shown.refused.keys()
    print_line(f"{len(moved)} of {len(shown.survey.homes_after)} tenants move")
    if moved and not apply:
        print_note("nothing was moved; with --apply the tenants are")
    if shown.drained_id is not None and shown.kept_by is not None:
        print_removal(shown.drained_id, shown.kept_by)


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


def _describe_stuck(stuck: Iterable[balance.PlannedTransfer]) -> dict[str, str]:
    return {
        one.tenant.tenant_id: f"its move to shard {one.target_id} has started and cannot continue; once no command "
        "works on it, run: simplu-worker tenants rollback --stay --apply"
        for one in stuck
    }


def _requests_of(plan: Sequence[balance.PlannedTransfer]) -> list[MoveRequest]:
    """Return the moves, one of each tenant: two shards may both name one that moves."""
    requests = [MoveRequest(*one.tenant.names, one.target_id) for one in plan]
    return list({one.tenant_id: one for one in requests}.values())


async def _carry_out(settings: Settings, shards: Shards, shown: ShownPlan, terms: MoveTerms, *, as_json: bool) -> int:
    """End the moves that have begun, then carry out the plan; a tenant may be in both. Return 1 if a tenant is left."""
    runner = MoveRunner(settings, shards, terms, as_json=as_json, parallel=terms.parallel)
    possible = [one for one in shown.plan if one.tenant.tenant_id not in shown.refused]
    in_turn = _requests_of(shown.survey.begun), _requests_of(possible)
    statuses = [await runner.run(requests) for requests in in_turn if requests]
    return max([1 if shown.refused else 0, *statuses])


async def rebalance_shards(settings: Settings, chosen: Balance, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan moves that make the shards about equally full, or follow the map; with *apply* carry them out.

    Moves that have begun come first. Return 1 if a move fails or is refused.
    """
    async with open_shards(settings) as shards:
        survey = await survey_tenants(shards, chosen.by)
        if unknown := sorted({*chosen.to} - {*survey.target_ids}):
            expected = ", ".join(sorted(survey.target_ids))
            problems = "".join(f"; {describe_drained(one)}" for one in unknown if one in survey.drained)
            got = ", ".join(unknown)
            raise PermanentError(f"--to: expected shards that take tenants, of {expected}, got {got}{problems}")
        plan = _plan_rebalance(survey, shards.locator, chosen)
        refused = _describe_stuck(survey.stuck)
        if not apply:
            refused |= await find_refused(shards, _requests_of(plan), survey.places)
        shown = ShownPlan(survey, plan, refused, chosen.by or "tenants")
        print_plan(shown, as_json=as_json, apply=apply)
        if not apply:
            return 1 if refused else 0
        return await _carry_out(settings, shards, shown, terms, as_json=as_json)


def _plan_rebalance(survey: Survey, locator: Locator, chosen: Balance) -> list[balance.PlannedTransfer]:
    target_ids = chosen.to or survey.target_ids
    if chosen.by is None and isinstance(locator, StaticMap):
        tenants = [one for one in survey.homes_after if one.tenant_id not in survey.settled]
        return balance.plan_by_map(tenants, locator.map, target_ids, survey.left)
    rooms = [
        one if one.shard_id in target_ids else msgspec.structs.replace(one, room=0, businesses=frozenset())
        for one in survey.rooms(by_capacity=chosen.by is None)
    ]
    by_business = chosen.by is None
    return balance.plan_balance(
        survey.homes_after, rooms, settled=survey.settled, types=survey.types, by_business=by_business
    )


async def drain_shard(settings: Settings, shard_id: str, terms: MoveTerms, *, apply: bool, as_json: bool) -> int:
    """Plan the moves of all tenants of a shard; with *apply* carry them out.

    Nothing moves unless all have a place. From then on the shard takes no tenants. Return 1 if it has to be kept.
    """
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        survey = await survey_tenants(shards, None, without=shard_id)
        tenants = [one for one in survey.homes_after if one.shard_id == shard_id]
        plan, homeless = balance.plan_drain(tenants, survey.rooms(by_capacity=False), survey.types)
        judged = [one for one in plan if one.tenant.tenant_id not in survey.settled]
        refused = {one.tenant_id: NO_PLACE for one in homeless}
        refused |= _describe_stuck(one for one in survey.stuck if shard_id in {one.tenant.shard_id, one.target_id})
        refused |= await find_refused(shards, _requests_of(judged), survey.places)
        kept_by = None if apply else await find_removal(settings, shards, shard_id)
        shown = ShownPlan(survey, plan, refused, "tenants", shard_id, kept_by)
        print_plan(shown, as_json=as_json, apply=apply)
        if refused:
            print_note("a shard is drained as a whole: nothing moves before all of its tenants can")
        if not apply or refused:
            return 1 if refused else 0
        async with shards.pools.ensure_pool(address).transaction() as connection:
            await connection.execute(QUERIES["note_drain"], True)
        status = await _carry_out(settings, shards, shown, terms, as_json=as_json)
        kept_by = await find_removal(settings, shards, shard_id)
        if as_json:
            print_json_line({"shard": shard_id, **_removal_members(kept_by)})
        else:
            print_removal(shard_id, kept_by)
        is_whole = not (status or kept_by)
        if not is_whole:
            print_note(
                "this was not all: run the command again to continue, or with --undo to have it take tenants again"
            )
        return 0 if is_whole else 1


async def undo_drain(settings: Settings, shard_id: str, *, apply: bool) -> Answer:
    """With *apply* let a drained shard take tenants again; those that have left it stay where they are."""
    async with open_shards(settings) as shards:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        if apply:
            async with shards.pools.ensure_pool(address).transaction() as connection:
                await connection.execute(QUERIES["note_drain"], False)
    if apply:
        note = f"shard {shard_id} takes tenants again; shards rebalance moves some there"
    else:
        note = f"nothing was changed; with --apply shard {shard_id} takes tenants again"
    return Answer({"shard": shard_id, "takesTenants": apply}, [note])
