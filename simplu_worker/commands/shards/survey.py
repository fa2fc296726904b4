"""Ask all shards for their tenants and for the moves that have begun, to plan moves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.output.display import print_note
from simplu_worker.errors import RetryableError
from simplu_worker.shards.health.moves import RUNNING_S
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import Capacity, StaticMap
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, ShardRows, fetch_from_all_shards
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers.moving.planning.balance import ShardRoom, WeighedTenant, rooms_of
from simplu_worker.transfers.moving.planning.begun import (
    BegunMove,
    BegunMoves,
    FoundTenant,
    homes_after,
    homes_of,
    sort_begun_moves,
)
from simplu_worker.transfers.moving.planning.capacities import fetch_capacities
from simplu_worker.transfers.moving.planning.places import TenantPlaces, places_of
from simplu_worker.transfers.moving.running_note import NOTE_INTERVAL_S
from simplu_worker.transfers.sql_files import QUERIES
from simplu_worker.vocabulary import TenantState

POLL_S: Final = 0.5  # of the journals, while a command may have been killed
WEIGH_LIMITS: Final = QueryLimits(answer_s=30.0, all_s=300.0)
WEIGHED_ROWS: Final = 500_000  # of a shard; more are weighed by a part of its pages


class Weight(StrEnum):
    """The measure by which shards are to be about equally full."""

    ROWS = "rows"
    BYTES = "bytes"
    LOAD = "load"  # operations of the last hour


class Survey(msgspec.Struct, frozen=True):
    """The tenants of all shards, and the moves that have begun and not ended; *targets* take tenants.

    *places* has the same by tenant, *types* the business types of each target. *full* are the targets that take no more
    by the answer of Citrus, *drained* the shards that were drained and take none. *drains* are the tenants of moves by
    drains that have not ended, each with the shard that it leaves.
    """

    targets: list[ShardAddress]
    full: frozenset[str]
    found: list[FoundTenant]
    places: Mapping[str, TenantPlaces]
    types: Mapping[str, frozenset[str]]
    begun: BegunMoves
    drains: frozenset[tuple[str, str]]
    drained: frozenset[str] = frozenset()

    @property
    def target_ids(self) -> list[str]:
        """The shards that take tenants."""
        return [shard.shard_id for shard in self.targets]

    @property
    def homes(self) -> list[WeighedTenant]:
        """The tenants where their homes are now."""
        return homes_of(self.found)

    @property
    def homes_after(self) -> list[WeighedTenant]:
        """The tenants where their homes are once the moves that have begun have ended."""
        return homes_after(self.homes, self.begun.expected)

    @property
    def settled(self) -> frozenset[str]:
        """The tenants with moves that have begun, and are to end first, here or in other commands."""
        return frozenset(one.tenant.tenant_id for one in self.begun.expected)

    @property
    def left(self) -> frozenset[tuple[str, str]]:
        """The tenants, each with a shard that it has moved away from."""
        return frozenset((one.tenant_id, one.shard_id) for one, state in self.found if state is TenantState.MOVED)

    def rooms(self, *, by_capacity: bool) -> list[ShardRoom]:
        """Return the room of each target, beside the businesses that are there or are coming."""
        there: defaultdict[str, set[str]] = defaultdict(set)
        coming: defaultdict[str, set[str]] = defaultdict(set)
        for home in self.homes:
            there[home.shard_id].add(home.business_id)
        for one in self.begun.expected:
            coming[one.target_id].add(one.tenant.business_id)
        rooms = rooms_of(self.targets, there, coming, by_capacity=by_capacity)
        return [msgspec.structs.replace(one, room=0) if one.shard_id in self.full else one for one in rooms]


async def survey_tenants(
    shards: Shards, by: Weight | None, *, without: str | None = None, refilled: str | None = None
) -> Survey:
    """Return what all shards have, weighed *by*; the shard *without*, and drained ones but *refilled*, take no tenants.

    Raises `RetryableError` if a shard does not answer.
    """
    asked = (await survey_shards(shards, QUERIES["is_drained"])).rows
    drained = frozenset(shard_id for shard_id, row in asked if row["is_drained"]) - {refilled, without}
    usable = await _list_usable_shards(shards)
    targets = [shard for shard in usable if shard.shard_id not in {without, *drained}]
    rows = (await survey_shards(shards, QUERIES["list_tenants"])).rows
    weights = None if by is None else await _weigh(shards, by)
    found = [
        (
            WeighedTenant(
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
        BegunMove(row["tenant_id"], shard_id, row["target_shard_id"], row["step"], row["is_running"])
        for shard_id, row in journal
    ]
    drains = frozenset((row["tenant_id"], shard_id) for shard_id, row in journal if row["is_drain"])
    capacities = await fetch_capacities(shards.locator, {shard.shard_id for shard in targets})
    known = {shard_id: one for shard_id, one in capacities.items() if isinstance(one, Capacity)}  # each move asks again
    full = frozenset(shard_id for shard_id, capacity in known.items() if capacity.accepts_new is False)
    targets = [_with_limit(shard, known.get(shard.shard_id)) for shard in targets]
    begun = sort_begun_moves(found, moves, {shard.shard_id for shard in targets})
    known_types = {shard.shard_id: frozenset(types[shard.shard_id]) for shard in targets}
    return Survey(targets, full, found, places_of(rows), known_types, begun, drains, drained)


async def outwait_killed_movers(shards: Shards) -> None:
    """Wait until no move counts as running whose command was killed, `RUNNING_S` at most; then it can go on here.

    Commands that run note that meanwhile, and are not waited for.
    """
    began_at, is_told = loop_time(), False
    while silent := await running_tenants(shards, RUNNING_S) - await running_tenants(shards, loop_time() - began_at):
        if not is_told and loop_time() - began_at > 2 * NOTE_INTERVAL_S:
            is_told = True
            print_note(
                f"the commands that move {len(silent)} tenants, such as {min(silent)}, seem to be killed; in "
                f"{RUNNING_S:.0f} s at most their moves go on here"
            )
        await asyncio.sleep(POLL_S)


async def running_tenants(shards: Shards, within_s: float) -> set[str]:
    """Return the tenants whose moves have not ended, and were noted as running *within_s*."""
    journal = (await survey_shards(shards, QUERIES["list_begun_moves"], within_s)).rows
    return {row["tenant_id"] for _, row in journal if row["is_running"]}


async def _weigh(shards: Shards, by: Weight) -> dict[tuple[str, str], int]:
    """Return the weights of tenants, by shard and tenant."""
    arguments = () if by is Weight.LOAD else (WEIGHED_ROWS,)
    weighed = await survey_shards(shards, QUERIES[f"weigh_{by}"], *arguments, limits=WEIGH_LIMITS)
    return {(shard_id, row["id"]): row["weight"] for shard_id, row in weighed.rows}


def _with_limit(shard: ShardAddress, capacity: Capacity | None) -> ShardAddress:
    """Return a shard with the count and the limit that Citrus gives for it, which its list of shards may lack."""
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
    """Return the shards that tenants may move to."""
    locator = shards.locator
    retired = locator.map.retired_ids if isinstance(locator, StaticMap) else frozenset[str]()
    known = await locator.list_shards()
    return [one for one in known if one.refusal is None and one.is_active and one.shard_id not in retired]
