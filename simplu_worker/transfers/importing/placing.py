"""Find the shard of each tenant of an import, and make the tenants there, so that their operations are held.

A tenant is made on the shard that the locator names, and only where every known shard has answered that it has no row
of its id: before, and again afterwards, as the locator may have changed its answer in between.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import group_by_shard, query_all_shards
from simplu_worker.transfers.importing.rules import LEFT_STATES, HomeFacts, NamedTenant, PlaceStep, place_of
from simplu_worker.transfers.importing.target import find_shard_problem, make_incoming, read_homes

LOOKUPS_AT_ONCE: Final = 16
QUERY_MAX_TENANTS: Final = 1000
MADE_AT_ONCE: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable


class PlacedImport(msgspec.Struct, frozen=True):
    """A tenant with its step and its shard; *problem* is the reason of a refusal.

    *is_final*: another run would find the same, until a person changes something. *shard_id* is None while the locator
    has not registered the tenant. *certificate* is that of a tenant that was imported before.
    """

    tenant: NamedTenant
    step: PlaceStep
    shard_id: str | None = None
    problem: str | None = None
    is_final: bool = True
    certificate: str | None = None


class _Homes(msgspec.Struct, frozen=True):
    """The rows of all shards by tenant, and the shards without an answer."""

    by_tenant: dict[str, list[HomeFacts]]
    silent: list[str]


class Placer:
    """Places the tenants of the source with the name *source*."""

    def __init__(self, locator: Locator, pools: Pools, *, source: str) -> None:
        self._locator = locator
        self._pools = pools
        self._source = source

    async def plan(self, tenants: Sequence[NamedTenant]) -> list[PlacedImport]:
        """Return the step and the shard of each tenant, in order; nothing is changed."""
        named = await self._name_shards(tenants, is_registering=False)
        homes = await self._read_homes(tenants)
        return [self._place(one, named.get(one.tenant_id), homes) for one in tenants]

    async def place(self, tenants: Sequence[NamedTenant], *, token: str) -> list[PlacedImport]:
        """Register the tenants, and make them as `incoming`; return each with its shard, in order. Idempotent."""
        homes = await self._read_homes(tenants)
        unmade = [one for one in tenants if self._place(one, None, homes).step is PlaceStep.MAKE]
        named = await self._name_shards(unmade, is_registering=True)
        placed = [self._place(one, named.get(one.tenant_id), homes) for one in tenants]
        errors = await self._make([one for one in placed if one.step is PlaceStep.MAKE], named, token=token)
        after = await self._read_homes([one.tenant for one in placed if one.step is PlaceStep.MAKE])
        return [
            self._made(one, errors.get(one.tenant.tenant_id), after) if one.step is PlaceStep.MAKE else one
            for one in placed
        ]

    async def find_rivals(self, placed: PlacedImport) -> str | None:
        """Return why a tenant may not be activated: another shard has it too, or does not answer; None otherwise."""
        homes = await self._read_homes([placed.tenant])
        found = homes.by_tenant.get(placed.tenant.tenant_id, ())
        others = [home for home in found if home.state not in LEFT_STATES and home.shard_id != placed.shard_id]
        if others:
            return f"shard {others[0].shard_id} has it too, {others[0].state}"
        return _silence(homes)

    def _place(self, tenant: NamedTenant, named: ShardAddress | WorkerError | None, homes: _Homes) -> PlacedImport:
        if tenant.problem is not None:
            return PlacedImport(tenant, PlaceStep.REFUSE, problem=tenant.problem)
        step, home, problem = place_of(tenant, homes.by_tenant.get(tenant.tenant_id, ()), source=self._source)
        if home is not None:
            certificate = home.detail if step is PlaceStep.DONE else None
            return PlacedImport(tenant, step, home.shard_id, problem, certificate=certificate)
        if (silence := _silence(homes)) is not None:
            return PlacedImport(tenant, PlaceStep.REFUSE, problem=silence, is_final=False)
        if isinstance(named, WorkerError):
            is_final = isinstance(named, PermanentError)
            return PlacedImport(tenant, PlaceStep.REFUSE, problem=str(named), is_final=is_final)
        return PlacedImport(tenant, step, None if named is None else named.shard_id)

    async def _name_shards(
        self, tenants: Sequence[NamedTenant], *, is_registering: bool
    ) -> dict[str, ShardAddress | WorkerError | None]:
        """Return the shard that the locator names for each tenant, or its error."""
        named: dict[str, ShardAddress | WorkerError | None] = {}
        slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)

        async def name(tenant: NamedTenant) -> None:
            async with slots:
                try:
                    named[tenant.tenant_id] = await self._name_shard(tenant, is_registering=is_registering)
                except WorkerError as exc:
                    named[tenant.tenant_id] = exc

        async with asyncio.TaskGroup() as tasks:
            for tenant in tenants:
                if tenant.problem is None:
                    tasks.create_task(name(tenant), name=f"locate:{tenant.tenant_id}")
        return named

    async def _name_shard(self, tenant: NamedTenant, *, is_registering: bool) -> ShardAddress | None:
        if not is_registering:
            return await self._locator.locate(tenant.tenant_id)
        address = (
            await self._locator.register(tenant.business_id or "", tenant.location_id or "", tenant.business_type or "")
        ).address
        if not address.is_active:
            raise RetryableError(f"shard {address.shard_id} is not active")
        return address

    async def _read_homes(self, tenants: Iterable[NamedTenant]) -> _Homes:
        """Return the rows of tenants on every known shard. Raises the errors of `Locator.list_shards`."""
        ids = [one.tenant_id for one in tenants if one.problem is None]
        by_tenant: defaultdict[str, list[HomeFacts]] = defaultdict(list)
        silent: set[str] = set()
        known = await self._locator.list_shards() if ids else []
        for start in range(0, len(ids), QUERY_MAX_TENANTS):
            part = ids[start : start + QUERY_MAX_TENANTS]

            async def fetch(shard: ShardAddress, part: Sequence[str] = part) -> list[HomeFacts]:
                return await read_homes(self._pools.ensure_pool(shard), part)

            answers = await query_all_shards(known, fetch)
            silent |= {shard.shard_id for shard in known} - answers.keys()
            for home in (home for homes in answers.values() for home in homes):
                by_tenant[home.tenant_id].append(home)
        return _Homes(by_tenant, sorted(silent))

    async def _make(
        self, placed: Sequence[PlacedImport], named: dict[str, ShardAddress | WorkerError | None], *, token: str
    ) -> dict[str, WorkerError]:
        """Make the rows of tenants; return the errors by tenant."""
        errors: dict[str, WorkerError] = {}

        async def make(shard: ShardAddress, tenants: Sequence[NamedTenant]) -> None:
            try:
                pool = self._pools.ensure_pool(shard)
                problem = await find_shard_problem(pool, (one.business_type or "" for one in tenants))
                if problem is not None:
                    raise PermanentError(problem)
                for start in range(0, len(tenants), MADE_AT_ONCE):
                    await make_incoming(pool, tenants[start : start + MADE_AT_ONCE], source=self._source, token=token)
            except WorkerError as exc:
                errors.update({one.tenant_id: exc for one in tenants})

        pairs = [
            (shard, one.tenant) for one in placed if isinstance(shard := named.get(one.tenant.tenant_id), ShardAddress)
        ]
        async with asyncio.TaskGroup() as tasks:
            for shard, tenants in group_by_shard(pairs):
                tasks.create_task(make(shard, tenants), name=f"make-incoming:{shard.shard_id}")
        return errors

    def _made(self, placed: PlacedImport, error: WorkerError | None, homes: _Homes) -> PlacedImport:
        """Return a tenant as its shard has it after it was made; refused if a shard does not."""
        if error is not None:
            is_final = isinstance(error, PermanentError)
            return msgspec.structs.replace(placed, step=PlaceStep.REFUSE, problem=str(error), is_final=is_final)
        found = self._place(placed.tenant, None, homes)
        if found.step is PlaceStep.MAKE:
            problem = f"shard {placed.shard_id}: expected the row that was made, got none; run this again"
            return msgspec.structs.replace(placed, step=PlaceStep.REFUSE, problem=problem, is_final=False)
        return found


def _silence(homes: _Homes) -> str | None:
    return f"no answer from shards that may have it: {', '.join(homes.silent)}" if homes.silent else None
