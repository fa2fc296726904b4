"""Which shard a tenant lives on: asked of Citrus or the static map, confirmed by the shard itself, and remembered.

What is remembered is never wrong in a way that matters: a shard whose `tenants` row does not say that the tenant lives
there takes none of its operations, whatever is remembered here (architecture, idea 4). So a route is served for as long
as nobody says otherwise, however long Citrus is away; `RouteRefresh` asks anew for those in use.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from typing import Final

import structlog

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.admission import TenantState
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.address_change import AddressChanger
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.route_cache import AbsenceCache, RouteCache
from simplu_worker.shards.routing.tenant_homes import TenantHome, TenantHomes
from simplu_worker.shards.types import Absence
from simplu_worker.timing.clock import loop_time

# The shard itself gives the outcome of their operations.
SERVED_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.DESTROYING, TenantState.DESTROYED})
SEARCH_FRESH_S: Final = 5.0  # how long "none of the others has it" is believed

log = structlog.get_logger(__name__)


class _SharedLookup:
    """The callers that want one tenant's shard now: one of them asks, the others share the answer."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.callers = 0
        self.lookup_count = 0  # how often somebody began to ask
        self.answer: ShardAddress | Absence | WorkerError | None = None  # of the last who began, and was not cancelled


class _Sweep:
    """Tenants that the shards named for them do not have, to be asked for on every other in one go."""

    def __init__(self) -> None:
        self.named: dict[str, ShardAddress] = {}
        self.homes: dict[str, TenantHome | WorkerError | None] | None = None


class Directory:
    """Tenant → shard, with a cache of what was confirmed."""

    def __init__(
        self,
        locator: Locator,
        pools: Pools,
        *,
        clock: Callable[[], float] = loop_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._clock = clock
        self._draw = draw
        self._homes = TenantHomes(locator, pools)
        self.routes = RouteCache()
        self.address_changer = AddressChanger(locator.address_book, pools, clock=clock, draw=draw)
        self._absences = AbsenceCache()
        self._lookups: dict[str, _SharedLookup] = {}
        self._sweep = _Sweep()
        self._sweeping = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Directory(routes={len(self.routes)}, lookups={len(self._lookups)})"

    def cached_address(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that the tenant was last found on, without asking anybody."""
        shard_id = self.routes.get(tenant_id)
        pool = None if shard_id is None else self._pools.by_shard_id().get(shard_id)
        return None if pool is None else pool.address

    def forget(self, tenant_id: str) -> None:
        """Ask anew the next time; called when a shard says that the tenant is not there, and when it has just come."""
        self.routes.invalidate(tenant_id)
        self._absences.remove(tenant_id)

    def apply_map_change(self, left: Collection[str]) -> None:
        """Note that shards are named anew: nobody lives on those that *left*, and who had none may have one now."""
        self.routes.remove_shards(left)
        self._absences.clear()

    async def find(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> ShardAddress | Absence:
        """Return the shard that confirms the tenant as its own, or why there is none.

        Of many callers for one tenant at once one asks, and its answer is everybody's. But no "not registered" is
        older than the call: an answer that was on its way before is not shared; unless one will do that was asked for
        up to *absence_max_age_s* before. Other absences pass soon, and are asked for each time. Raises
        `RetryableError` when somebody who must be asked does not answer, `PermanentError` when the address named may
        not be used.
        """
        since = self._clock() - absence_max_age_s
        if absence_max_age_s and self._absences.reason(tenant_id, since=since) == Absence.UNREGISTERED:
            return Absence.UNREGISTERED
        asking = self._lookups.setdefault(tenant_id, _SharedLookup())
        asking.callers += 1
        begun_before = asking.lookup_count
        try:
            async with asking.lock:
                if (known := self.cached_address(tenant_id)) is not None:
                    return known
                answer = asking.answer if asking.lookup_count > begun_before else None
                if answer is None:
                    asking.lookup_count += 1
                    asking.answer = None
                    answer = asking.answer = await self._look_up(tenant_id)
        finally:
            asking.callers -= 1
            if not asking.callers:
                del self._lookups[tenant_id]
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    async def refresh(self, tenant_id: str, shard_id: str) -> None:
        """Ask anew for a tenant of *shard_id* that is served meanwhile, and stop that if its shard is another one now.

        Raises as `find`.
        """
        named = await self._locator.locate(tenant_id)
        is_same = named is not None and named.shard_id == shard_id
        if (named is not None and not named.is_active) or not (is_same or await self._is_still_on(shard_id, tenant_id)):
            self.forget(tenant_id)
            return
        if not is_same:
            _log_conflict(named, shard_id)
        self.routes.renew(tenant_id, shard_id, now=self._clock(), draw=self._draw())

    async def _is_still_on(self, shard_id: str, tenant_id: str) -> bool:
        """Whether a shard says that a tenant is its own, whoever names another. While it says nothing, it has."""
        try:
            row = (await self._homes.fetch_rows(self._pools.pool_of(shard_id).address, [tenant_id])).get(tenant_id)
        except RetryableError:
            return True
        return row is not None and row["state"] in SERVED_STATES

    async def _look_up(self, tenant_id: str) -> ShardAddress | Absence | WorkerError:
        asked_at = self._clock()
        try:
            found = await self._look_up_route(tenant_id, asked_at)
        except (RetryableError, PermanentError) as exc:
            return exc
        if isinstance(found, ShardAddress):
            self._absences.remove(tenant_id)
            self.routes.put(tenant_id, found.shard_id, now=self._clock(), draw=self._draw())
        else:
            self._absences.put(tenant_id, found, asked_at=asked_at, searched_at=self._absences.searched_at(tenant_id))
        return found

    async def _look_up_route(self, tenant_id: str, asked_at: float) -> ShardAddress | Absence:
        home: TenantHome | None
        try:
            named = await self._locator.locate(tenant_id)
        except RetryableError:
            # The shard where it was last can say by itself that it still is, or where it went.
            if (home := await self._find_last_home(tenant_id)) is None:
                raise
            return _route_of(home)
        if named is None:
            if (home := await self._find_last_home(tenant_id)) is None:
                return Absence.UNREGISTERED
        elif not named.is_active:
            return Absence.INACTIVE
        else:
            if not self.address_changer.is_healthy(named.shard_id):
                await self.address_changer.try_candidate(named.shard_id)
                named = self._locator.address_book.known_address(named.shard_id) or named
            if (home := await self._find_home_unless_searched(tenant_id, named, asked_at)) is None:
                return Absence.NOT_HERE
        if named is None or home.address.shard_id != named.shard_id:
            _log_conflict(named, home.address.shard_id)
        return _route_of(home)

    async def _find_last_home(self, tenant_id: str) -> TenantHome | None:
        """Return the shard that has the row of a tenant which was found before, without asking who names shards."""
        shard_id = self.routes.last_shard_id(tenant_id)
        if shard_id is None or shard_id not in self._pools.by_shard_id():
            return None
        address = self._pools.pool_of(shard_id).address
        row = (await self._homes.fetch_rows(address, [tenant_id])).get(tenant_id)
        return None if row is None else await self._homes.follow_moves(TenantHome(address, row), tenant_id)

    async def _find_home_unless_searched(
        self, tenant_id: str, named: ShardAddress, asked_at: float
    ) -> TenantHome | None:
        """Return what `home` does; but that no other shard has the tenant is believed for seconds."""
        row = (await self._homes.fetch_rows(named, [tenant_id])).get(tenant_id)
        if row is not None:
            return await self._homes.follow_moves(TenantHome(named, row), tenant_id)
        if self._absences.searched_at(tenant_id) > asked_at - SEARCH_FRESH_S:
            return None
        swept_at = self._clock()
        home = await self._search_all_shards(tenant_id, named)
        if home is None:
            self._absences.put(tenant_id, Absence.NOT_HERE, asked_at=asked_at, searched_at=swept_at)
        return home

    async def _search_all_shards(self, tenant_id: str, named: ShardAddress) -> TenantHome | None:
        """Ask every shard for a tenant: one question to each for all that come while others are being asked for."""
        sweep = self._sweep
        sweep.named[tenant_id] = named
        async with self._sweeping:
            if sweep.homes is None:  # not by whoever had the turn before
                if self._sweep is sweep:
                    self._sweep = _Sweep()
                sweep.homes = await self.find_homes(sweep.named)
        home = sweep.homes[tenant_id]
        if isinstance(home, WorkerError):
            raise home
        return home

    async def find_home(self, tenant_id: str, named: ShardAddress) -> TenantHome | None:
        """Return the shard that has the tenant's row, as `homes` does. Raises `RetryableError` for no answer."""
        home = (await self.find_homes({tenant_id: named}))[tenant_id]
        if isinstance(home, WorkerError):
            raise home
        return home

    async def find_homes(self, named: Mapping[str, ShardAddress]) -> dict[str, TenantHome | WorkerError | None]:
        """Return what `TenantHomes.find_homes` does."""
        return await self._homes.find_homes(named)


def _route_of(home: TenantHome) -> ShardAddress | Absence:
    return home.address if home.tenant["state"] in SERVED_STATES else Absence.INACTIVE


def _log_conflict(named: ShardAddress | None, shard_id: str) -> None:
    log.warning("route.conflict", named_shard_id=None if named is None else named.shard_id, shard_id=shard_id)
