"""Ask all shards for their tenants and for the moves that have begun, to plan moves."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, ShardRows, fetch_from_all_shards
from simplu_worker.transfers.moving.planning.balance import ShardRoom, WeighedTenant, rooms_of
from simplu_worker.transfers.moving.planning.begun import (
    BegunMove,
    BegunMoves,
    FoundTenant,
    homes_after,
    homes_of,
    sort_begun_moves,
)
from simplu_worker.transfers.sql_files import QUERIES
from simplu_worker.vocabulary import TenantState

WEIGH_LIMITS: Final = QueryLimits(answer_s=30.0, all_s=300.0)  # some read all rows of a shard


class Weight(StrEnum):
    """The measure by which shards are to be about equally full."""

    ROWS = "rows"
    BYTES = "bytes"
    LOAD = "load"  # operations of the last hour


class Survey(msgspec.Struct, frozen=True):
    """The tenants of all shards, and the moves that have begun and not ended; *targets* take tenants.

    *full* are the targets that take no more by the answer of Citrus.
    """

    targets: list[ShardAddress]
    full: frozenset[str]
    found: list[FoundTenant]
    begun: BegunMoves

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
        return homes_after(self.homes, self.begun.going_on)

    @property
    def going_on(self) -> frozenset[str]:
        """The tenants with moves that have begun, and are to end first."""
        return frozenset(one.tenant.tenant_id for one in self.begun.going_on)

    @property
    def left(self) -> frozenset[tuple[str, str]]:
        """The tenants, each with a shard that it has moved away from."""
        return frozenset((one.tenant_id, one.shard_id) for one, state in self.found if state is TenantState.MOVED)

    def rooms(self, *, by_capacity: bool) -> list[ShardRoom]:
        """Return the room of each target, beside the tenants that are there or are coming."""
        homes = {(one.tenant_id, one.shard_id) for one in self.homes}
        coming = Counter(
            one.target_id for one in self.begun.going_on if (one.tenant.tenant_id, one.target_id) not in homes
        )
        counts = Counter(shard_id for _, shard_id in homes)
        rooms = rooms_of(self.targets, counts, coming, by_capacity=by_capacity)
        return [msgspec.structs.replace(one, room=0) if one.shard_id in self.full else one for one in rooms]


async def survey_tenants(shards: Shards, by: Weight | None, *, without: str | None = None) -> Survey:
    """Return what all shards have, weighed *by*; the shard *without* takes no tenants.

    Raises `RetryableError` if a shard does not answer.
    """
    targets = [shard for shard in await _list_usable_shards(shards) if shard.shard_id != without]
    query = QUERIES["weigh_tenants" if by is None else f"weigh_{by}"]
    rows = (await survey_shards(shards, query, limits=WEIGH_LIMITS)).rows
    found = [
        (
            WeighedTenant(row["business_id"], row["location_id"], shard_id, row["weight"]),
            TenantState(row["state"]),
        )
        for shard_id, row in rows
    ]
    moves = [
        BegunMove(row["tenant_id"], shard_id, row["target_shard_id"], row["step"])
        for shard_id, row in (await survey_shards(shards, QUERIES["list_begun_moves"])).rows
    ]
    full = await _find_full(shards, targets)
    return Survey(targets, full, found, sort_begun_moves(found, moves, {shard.shard_id for shard in targets}))


async def survey_shards(shards: Shards, query: str, *, limits: QueryLimits = LIMITS) -> ShardRows:
    """Return the rows of a query on all shards. Raises `RetryableError` if one does not answer."""
    rows = await fetch_from_all_shards(shards.locator, shards.pools, query, limits=limits)
    if rows.silent_shard_ids:
        raise RetryableError(f"expected an answer of every shard, got none of {', '.join(rows.silent_shard_ids)}")
    return rows


async def _list_usable_shards(shards: Shards) -> list[ShardAddress]:
    """Return the shards that tenants may move to."""
    locator = shards.locator
    retired = set[str]()
    if isinstance(locator, StaticMap):
        retired = {shard.shard_id for shard in locator.map.shards if shard.retired}
    known = await locator.list_shards()
    return [one for one in known if one.refusal is None and one.is_active and one.shard_id not in retired]


async def _find_full(shards: Shards, targets: Sequence[ShardAddress]) -> frozenset[str]:
    """Return the shards that take no more tenants by the answer of Citrus (`canAcceptNewBusiness`)."""
    locator = shards.locator
    if not isinstance(locator, CitrusClient):
        return frozenset()
    full = set()
    with contextlib.suppress(RetryableError):  # each move asks again
        for shard in targets:
            capacity = await locator.fetch_capacity(shard.shard_id)
            if capacity is None:
                break
            if capacity.accepts_new is False:
                full.add(shard.shard_id)
    return frozenset(full)
