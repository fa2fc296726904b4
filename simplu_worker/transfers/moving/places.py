"""Where a tenant that is to move has rows, how many businesses the shards take, and whether two are ready for a move.

Nothing is written.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.postgres.pool import COUNT_S, Connection, Pools, ShardPool
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Capacity, Locator, StaticMap
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.settling import TransferRefusedError, read_tenant
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import run_at_once
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.types import GONE, LEAVING, ON_THE_WAY, Move
from simplu_worker.vocabulary import TenantState


class TenantPlaces(msgspec.Struct, frozen=True):
    """The states of one tenant by shard, and the shards that did not answer."""

    tenant_id: str
    states: Mapping[str, TenantState]
    moved_to: Mapping[str, str | None]
    silent: Collection[str] = ()

    def home(self) -> str | None:
        """Return the shard with the tenant's home; None if it has left one and not arrived.

        Raises `PermanentError` if there is no home to be found, or more than one.
        """
        homes = sorted(shard_id for shard_id, state in self.states.items() if state in LEAVING)
        if len(homes) > 1:
            raise PermanentError(
                f"{self.tenant_id}: it has a home on {' and on '.join(homes)}; see docs/runbook/tenant-split.md"
            )
        if homes:
            return homes[0]
        if (gone := self.destroyed_on()) is not None:
            copies = "; run: simplu-worker tenants rollback --apply, to delete its copy" if self.arriving_on() else ""
            raise PermanentError(f"{self.tenant_id}: the tenant is destroyed on {gone}{copies}")
        if self.silent:
            raise RetryableError(
                f"{self.tenant_id}: no answer of {', '.join(sorted(self.silent))}, which may have it; "
                "nothing was done; see whether they run, and run the same command again"
            )
        if not self._departures():
            raise PermanentError(f"{self.tenant_id}: no shard has this tenant; run: tenants provision")
        return None

    def source_for(self, target_id: str) -> str:
        """Return the shard from which the tenant moves to *target_id*: its home, or the one left for it."""
        home = self.home()
        if home is not None and (others := [one for one in self.arriving_on() if one != target_id]):
            raise PermanentError(
                f"{self.tenant_id}: an unfinished move has left a copy on "
                f"{' and '.join(others)}; the tenant stays on shard {home}; run: simplu-worker tenants rollback "
                f"--stay --apply, to delete the copy, or tenants move to {others[0]}, to end that move"
            )
        if home is not None and home != target_id:
            return home
        left = [shard_id for shard_id, to in self._departures().items() if to == target_id]
        if not left:
            where = f"its home is shard {target_id} already" if home else "it moves to another shard"
            raise PermanentError(f"{self.tenant_id}: it cannot move to shard {target_id}: {where}")
        return left[-1]

    def destroyed_on(self) -> str | None:
        """Return the shard on which the tenant was destroyed; None if it has a home, or has left one."""
        gone = sorted(shard_id for shard_id, state in self.states.items() if state in GONE)
        is_elsewhere = self._departures() or any(state in LEAVING for state in self.states.values())
        return gone[0] if gone and not is_elsewhere else None

    def arriving_on(self) -> list[str]:
        """Return the shards with a copy of the tenant that is not its home."""
        return sorted(shard_id for shard_id, state in self.states.items() if state in ON_THE_WAY)

    def _departures(self) -> dict[str, str | None]:
        return {one: self.moved_to[one] for one, state in self.states.items() if state is TenantState.MOVED}


async def find_places(locator: Locator, pools: Pools, tenant_id: str) -> TenantPlaces:
    """Ask every shard for the tenant. Raises the errors of `Locator.list_shards`."""
    survey = await fetch_from_all_shards(locator, pools, QUERIES["find_tenants"], [tenant_id])
    silent = survey.silent_shard_ids
    return places_of(survey.rows, silent).get(tenant_id, TenantPlaces(tenant_id, {}, {}, silent))


def places_of(rows: Iterable[tuple[str, Mapping[str, Any]]], silent: Collection[str] = ()) -> dict[str, TenantPlaces]:
    """Return the places of each tenant in *rows*, of any tenants with their shards."""
    states: defaultdict[str, dict[str, TenantState]] = defaultdict(dict)
    moved_to: defaultdict[str, dict[str, str | None]] = defaultdict(dict)
    for shard_id, row in rows:
        states[row["id"]][shard_id] = TenantState(row["state"])
        moved_to[row["id"]][shard_id] = row["moved_to"]
    return {one: TenantPlaces(one, of_one, moved_to[one], silent) for one, of_one in states.items()}


REQUESTS_AT_ONCE: Final = 16


async def fetch_capacities(locator: Locator, shard_ids: Collection[str]) -> dict[str, Capacity]:
    """Ask Citrus for the capacities of all shards at once; without an answer, and without Citrus, there is none."""
    found: dict[str, Capacity] = {}

    async def fetch(shard_id: str) -> None:
        with contextlib.suppress(RetryableError, PermanentError):
            if isinstance(locator, CitrusClient) and (capacity := await locator.fetch_capacity(shard_id)) is not None:
                found[shard_id] = capacity

    await run_at_once(fetch, sorted(shard_ids), most=REQUESTS_AT_ONCE)
    return found


async def has_business(pool: ShardPool, business_id: str) -> bool:
    """Return whether a shard is the home of a location of a business."""
    async with pool.connection() as connection:
        rows = await connection.fetch(QUERIES["find_locations"], business_id)
    return any(row["state"] in LEAVING for row in rows)


def room_of(capacity: Capacity) -> int | None:
    """Return how many businesses more a shard takes; None where Citrus has no limit. Pure."""
    if capacity.accepts_new is False:
        return 0
    if capacity.business_max is None or capacity.business_count is None:
        return None
    return max(1 if capacity.accepts_new else 0, capacity.business_max - capacity.business_count)


def check_room(shard_id: str, capacity: Capacity, *, is_counted: bool = False) -> None:
    """Raise `PermanentError` unless a shard takes another business, or *is_counted* there. Pure."""
    room = room_of(capacity)
    if not is_counted and room is not None and room <= 0:
        raise PermanentError(
            f"shard {shard_id} is full ({capacity.business_count} of {capacity.business_max}); raise maxBusinesses in "
            "Citrus, or choose another"
        )


async def count_rows(shard: ShardPool, tenant_id: str) -> dict[str, Any]:
    """Return what a shard has of a tenant (`describe_tenant_size`); nothing if that takes long."""
    sizes = await shard.count(QUERIES["describe_tenant_size"], tenant_id)
    return {} if sizes is None else dict(sizes[0])


async def sum_counts(shard: ShardPool, tenant_id: str) -> int:
    """Return how many resources and operations a shard has of a tenant. Raises `RetryableError`."""
    size = await count_rows(shard, tenant_id)
    if not size:
        raise RetryableError(
            f"{tenant_id}: its rows on shard {shard.address.shard_id} were not counted within {COUNT_S:.0f} s; run "
            "this again when the shard has less to do, or with --apply, which counts what it deletes"
        )
    return int(size["resources"] + size["operations"])


async def time_standbys(pools: Pools, commits: ReplicationWaiter, move: Move) -> float:
    """Wait, not for long, for the standbys of both shards, as the switch will; return how long that took."""
    began_at = loop_time()
    for shard_id in (move.target_id, move.source_id):
        async with pools.pool_of(shard_id).transaction() as connection:
            server = await note_server(connection)
        await commits.wait_for_transaction(shard_id, server)
    return loop_time() - began_at


class MovePlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a move would copy; *byte_count* is of documents. None if the rows take long to count."""

    tenant: str
    source_shard: str
    target_shard: str
    goes_on: bool = False
    resources: int | None = None
    byte_count: int | None = None
    operations: int | None = None
    versions: int | None = None


async def check_shards(locator: Locator, pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    """Raise `PermanentError` if a tenant cannot move between the shards, `RetryableError` if one is silent."""
    known = {shard.shard_id: shard for shard in await locator.list_shards()}
    for shard_id in (source_id, target_id):
        if shard_id not in known:
            names = ", ".join(sorted(known))
            raise PermanentError(f"shard {shard_id} is unknown; choose one of {names}")
        await require_schema(pools.ensure_pool(known[shard_id]))
    target = known[target_id]
    if not target.is_active:
        raise PermanentError(f"shard {target_id} is marked inactive; choose another, or have it activated")
    if isinstance(locator, StaticMap) and target_id in locator.map.retired_ids:
        raise PermanentError(f"shard {target_id} is retired in the map, and takes no tenants; take that back first")
    await check_copy(pools.pool_of(target_id))
    await _check_type(pools, tenant_id, source_id, target_id)


async def _check_type(pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    async with pools.pool_of(source_id).connection() as connection:
        tenant = await read_tenant(connection, tenant_id)
    if tenant is None:
        return  # the move finds out why
    async with pools.pool_of(target_id).connection() as connection:
        missing = await connection.fetch(QUERIES["find_missing_types"], [tenant.business_type])
    if missing:
        raise PermanentError(
            f"shard {target_id} lacks the tenant's business type {tenant.business_type}; write it there with "
            "`simplu-worker types apply`, then move the tenant"
        )
    async with pools.pool_of(target_id).connection() as connection:
        await check_histories(pools.pool_of(source_id), connection, tenant_id, tenant.business_type)


async def check_histories(source: ShardPool, target: Connection, tenant_id: str, business_type: str) -> frozenset[str]:
    """Return the resource types with a history of a tenant's type.

    Raises `TransferRefusedError` unless both shards keep the same ones: versions would be missing.
    """
    kept = await target.fetch(QUERIES["list_histories"], business_type)
    async with source.connection() as connection:
        of_source = await connection.fetch(QUERIES["list_histories"], business_type)
    if list(map(dict, kept)) != list(map(dict, of_source)):
        raise TransferRefusedError(
            f"{tenant_id}: its shard {source.address.shard_id} and the other one keep different histories for the type "
            f"{business_type}; the tenant stays where it is; run: simplu-worker types apply, then move it"
        )
    return frozenset(row["resource_type"] for row in kept)


async def check_copy(pool: ShardPool) -> None:
    """Raise `PermanentError` if the role may not write the tables of a shard by COPY."""
    async with pool.connection() as connection:
        if not await connection.fetchval(QUERIES["may_copy_into"]):
            raise PermanentError(
                f"shard {pool.address.shard_id}: COPY needs the role that owns the tables, or one with BYPASSRLS; run "
                "the command with the connection strings of that role"
            )


async def require_schema(pool: ShardPool) -> None:
    """Raise `PermanentError` if a shard is empty, `RetryableError` if it does not answer."""
    shard_id = pool.address.shard_id
    await pool.probe()
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            raise PermanentError(
                f"shard {shard_id} is an empty database; run: simplu-worker shards upgrade {shard_id} --apply"
            )


async def plan_move(pools: Pools, move: Move, *, goes_on: bool = False) -> MovePlan:
    """Return what *move* would copy. Raises `RetryableError` without an answer."""
    size = await count_rows(pools.pool_of(move.source_id), move.tenant_id)
    size.pop("last_applied_at", None)
    return MovePlan(move.tenant_id, move.source_id, move.target_id, goes_on, **size)
