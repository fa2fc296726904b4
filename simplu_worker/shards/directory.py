"""Which shard a tenant lives on: asked of Citrus or the static map, confirmed by the shard itself, and remembered.

What is remembered is never wrong in a way that matters: a shard whose `tenants` row does not say that the tenant lives
there takes none of its operations, whatever is remembered here (architecture, idea 4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import msgspec
import structlog

from simplu_worker.errors import RefusedError, TryAgainLaterError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.address import ShardAddress
from simplu_worker.shards.admission import TenantState
from simplu_worker.shards.citrus import Registration
from simplu_worker.shards.pools import Pools, ShardUnavailableError
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.schema import SchemaState, check_schema
from simplu_worker.shards.shard_map import ShardMap

MOVES_MAX = 8  # forward pointers followed for one tenant
ROUTES_MAX = 100_000
ASKED_AT_ONCE = 16

log = structlog.get_logger(__name__)


class Locator(Protocol):
    """Who names the shard of a tenant: Citrus or a static map. Both raise `TryAgainLaterError` for no answer."""

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that is named for the tenant; None is a definite "not registered"."""

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:
        """Register a tenant, or learn where it was registered before."""

    async def homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return where each tenant may live or have lived."""

    async def shards(self) -> list[ShardAddress]:
        """Return every shard that is known."""


class StaticMap:
    """A map from a file or of one shard, as a locator: every tenant has its place, registered or not."""

    def __init__(self, shard_map: ShardMap) -> None:
        self._map = shard_map

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard the tenant is pinned to or falls on."""
        return self._map.place(tenant_id).address

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:  # noqa: ARG002
        """Return the shard the map names; there is nobody to tell, so nobody knows whether the tenant is new."""
        return Registration(self._map.place(tenant_id_of(business_id, location_id)).address, is_new=False)

    async def homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the pins and the shards that each key had for every smaller number of shards."""
        return {tenant_id: [shard.address for shard in self._map.homes(tenant_id)] for tenant_id in tenant_ids}

    async def shards(self) -> list[ShardAddress]:
        """Return every shard of the map."""
        return [shard.address for shard in self._map.shards]


class Absence(StrEnum):
    """Why a tenant's operations cannot be sent anywhere now. Also the reason of the hold."""

    UNREGISTERED = "unregistered"  # a definite, fresh "not registered"
    NOT_HERE = "not_here"  # registered, and no shard has its row yet
    INACTIVE = "inactive"  # its shard is marked inactive, or its row says that it is on the move


class Home(msgspec.Struct, frozen=True):
    """The shard that says a tenant is its own, and the row in which it says so."""

    address: ShardAddress
    tenant: dict[str, Any]


class _Asking:
    """The callers that want one tenant's shard now: one of them asks, the others share the answer."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.callers = 0
        self.begun = 0  # how often somebody began to ask
        self.answer: ShardAddress | Absence | WorkerError | None = None  # of the last who began, and was not cancelled


class Directory:
    """Tenant → shard, with a cache of what was confirmed."""

    def __init__(self, locator: Locator, pools: Pools) -> None:
        self._locator = locator
        self._pools = pools
        self._routes: dict[str, ShardAddress] = {}
        self._asking: dict[str, _Asking] = {}
        self._trials: set[str] = set()  # shards that did not answer and are being asked

    def __repr__(self) -> str:
        return f"Directory(routes={len(self._routes)}, asking={len(self._asking)})"

    def remembered(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that the tenant was last found on, without asking anybody."""
        return self._routes.get(tenant_id)

    def forget(self, tenant_id: str) -> None:
        """Ask anew the next time; called when a shard says that the tenant is not there."""
        self._routes.pop(tenant_id, None)

    async def find(self, tenant_id: str) -> ShardAddress | Absence:
        """Return the shard that confirms the tenant as its own, or why there is none.

        Of many callers for one tenant at once one asks, and its answer is everybody's. But no "not registered" is
        older than the call: an answer that was on its way before is not shared. Raises `TryAgainLaterError` when
        somebody who must be asked does not answer, `RefusedError` when the address named may not be used.
        """
        asking = self._asking.setdefault(tenant_id, _Asking())
        asking.callers += 1
        begun_before = asking.begun
        try:
            async with asking.turn:
                if (known := self._routes.get(tenant_id)) is not None:
                    return known
                answer = asking.answer if asking.begun > begun_before else None
                if answer is None:
                    asking.begun += 1
                    asking.answer = None
                    answer = asking.answer = await self._answer(tenant_id)
        finally:
            asking.callers -= 1
            if not asking.callers:
                del self._asking[tenant_id]
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    async def _answer(self, tenant_id: str) -> ShardAddress | Absence | WorkerError:
        try:
            return await self._find(tenant_id)
        except (TryAgainLaterError, RefusedError) as exc:
            return exc

    async def _find(self, tenant_id: str) -> ShardAddress | Absence:
        named = await self._locator.locate(tenant_id)
        if named is None:
            return Absence.UNREGISTERED
        if not named.is_active:
            return Absence.INACTIVE
        home = await self.home(tenant_id, named)
        if home is None:
            return Absence.NOT_HERE
        if home.address.shard_id != named.shard_id:
            log.warning("route.conflict", named_shard_id=named.shard_id, shard_id=home.address.shard_id)
        if home.tenant["state"] not in {TenantState.ACTIVE, TenantState.DESTROYING, TenantState.DESTROYED}:
            return Absence.INACTIVE
        while len(self._routes) >= ROUTES_MAX:
            del self._routes[next(iter(self._routes))]
        self._routes[tenant_id] = home.address
        return home.address

    async def home(self, tenant_id: str, named: ShardAddress) -> Home | None:
        """Return the shard that has the tenant's row: *named*, an earlier home, or the one it moved to from there.

        None means that every shard where it may live or have lived was asked and has no row, or only a destroyed one
        that is not on *named*. Raises `TryAgainLaterError` while one of them does not answer.
        """
        home = (await self.homes({tenant_id: named}))[tenant_id]
        if isinstance(home, WorkerError):
            raise home
        return home

    async def homes(
        self, named: Mapping[str, ShardAddress], *, new: Collection[str] = ()
    ) -> dict[str, Home | WorkerError | None]:
        """Return for each tenant of *named* what `home` would return or raise; each shard is asked once for all.

        For those of *new*, earlier homes that do not answer are passed over.
        """
        answers = await self._ask({tenant_id: [address] for tenant_id, address in named.items()})
        missing = [tenant_id for tenant_id in named if not answers[tenant_id]]
        try:
            earlier = await self._locator.homes(missing) if missing else {}
        except (TryAgainLaterError, RefusedError) as exc:
            return {
                tenant_id: exc if tenant_id in missing else await self._settled(tenant_id, answers[tenant_id])
                for tenant_id in named
            }
        others = {
            tenant_id: [shard for shard in shards if shard.shard_id != named[tenant_id].shard_id]
            for tenant_id, shards in earlier.items()
        }
        for tenant_id, found in (await self._ask(others)).items():
            answers[tenant_id] = [answer for answer in found if _counts(answer, is_new=tenant_id in new)]
        return {tenant_id: await self._settled(tenant_id, answers[tenant_id]) for tenant_id in named}

    async def _ask(self, places: Mapping[str, Sequence[ShardAddress]]) -> dict[str, list[Home | TryAgainLaterError]]:
        """Ask for each tenant the shards where it may be, all at once; homes come first, "no row" is left out."""
        found: dict[str, list[Home | TryAgainLaterError]] = {tenant_id: [] for tenant_id in places}
        asked: dict[str, tuple[ShardAddress, list[str]]] = {}
        for tenant_id, shards in places.items():
            for shard in shards:
                asked.setdefault(shard.shard_id, (shard, []))[1].append(tenant_id)
        at_once = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            try:
                async with at_once:
                    rows = await self.tenant_rows(shard, tenant_ids)
            except TryAgainLaterError as exc:
                for tenant_id in tenant_ids:
                    found[tenant_id].append(exc)
            else:
                for tenant_id, row in rows.items():
                    found[tenant_id].insert(0, Home(shard, row))

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in asked.values():
                tasks.create_task(ask(shard, tenant_ids), name=f"home:{shard.shard_id}")
        return found

    async def tenant_rows(self, address: ShardAddress, tenant_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the tenants' rows on one shard, whatever their state, by id; without those it does not have."""
        async with self._pools.pool(address).connection() as connection:
            if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                return {}
            rows = await connection.fetch(QUERIES["find_tenants"], tenant_ids)
        return {row["id"]: dict(row) for row in rows}

    async def _settled(self, tenant_id: str, found: Sequence[Home | TryAgainLaterError]) -> Home | WorkerError | None:
        match found:
            case [Home() as home, *_]:
                try:
                    return await self._followed(home, tenant_id)
                except (TryAgainLaterError, RefusedError) as exc:
                    return exc
            case [TryAgainLaterError() as trouble, *_]:
                return trouble
            case _:
                return None

    async def _followed(self, home: Home, tenant_id: str) -> Home:
        hops = 0
        while home.tenant["state"] == TenantState.MOVED and hops < MOVES_MAX:
            hops += 1
            target = next(
                (shard for shard in await self._locator.shards() if shard.shard_id == home.tenant["moved_to"]), None
            )
            row = (await self.tenant_rows(target, [tenant_id])).get(tenant_id) if target else None
            if target is None or row is None:
                raise ShardUnavailableError(
                    f"a tenant moved from shard {home.address.shard_id} to {home.tenant['moved_to']}, "
                    "which has no row of it"
                )
            home = Home(target, row)
        return home


def _counts(answer: Home | TryAgainLaterError, *, is_new: bool) -> bool:
    """Tell whether an answer about an earlier home says anything: a destroyed row does not."""
    return answer.tenant["state"] != TenantState.DESTROYED if isinstance(answer, Home) else not is_new
