"""The shard of each tenant: named by Citrus or the static map, confirmed by the shard itself, and cached.

A stale route does no harm: a shard without an `active` row of a tenant takes none of its operations (architecture, idea
4). So a route is used until a shard contradicts it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

import structlog

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.route_cache import RouteCache
from simplu_worker.shards.routing.tenant_homes import ARRIVING_STATES, TenantHome, TenantHomes
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.vocabulary import Absence, TenantState

log = structlog.get_logger(__name__)


class Settler(Protocol):
    """Ends what a mover that was killed has left (`shards/settling.py`). Raises `RetryableError`."""

    async def end_overdue_fence(self, shard_id: str, tenant_id: str) -> bool:
        """Make a fenced tenant active again after its deadline; return whether it was."""

    async def activate_left(self, source_id: str, target_id: str, tenant_id: str) -> bool:
        """Make a tenant active that a mover left ready on *target_id*; return whether it was."""


DESTROYED_STATES: Final = frozenset({TenantState.DESTROYING, TenantState.DESTROYED})
# Of tenants in these states the shard itself decides the outcome of operations.
SERVED_STATES: Final = DESTROYED_STATES | {TenantState.ACTIVE}
FENCED_STATES: Final = frozenset({TenantState.FENCED})
HOME_STATES: Final = SERVED_STATES | FENCED_STATES  # as `lives_here` in sql/queries/tenants.sql
MOVED_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED, *ARRIVING_STATES})

Answer = TypeVar("Answer")
FoundHome: TypeAlias = TenantHome | WorkerError | None


class Directory:
    """Tenant → shard, with a cache of confirmed routes."""

    def __init__(
        self, locator: Locator, pools: Pools, *, settler: Settler | None = None, clock: Callable[[], float] = loop_time
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._settler = settler
        self._clock = clock
        self.homes = TenantHomes(locator, pools)
        self.routes = RouteCache()
        self._lookups: Coalescer[str, bool, ShardAddress | Absence] = Coalescer(self._look_up)
        self._searches: Coalescer[None, tuple[str, ShardAddress], FoundHome] = Coalescer(self._search)

    def cached_address(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard on which the tenant was last found, without I/O."""
        shard_id = self.routes.get(tenant_id)
        pool = None if shard_id is None else self._pools.by_shard_id().get(shard_id)
        return None if pool is None else pool.address

    def paused_s(self, tenant_id: str) -> float:
        """Return for how many seconds a tenant is still paused, as its row was last read; 0 if it is not."""
        return self.routes.paused_s(tenant_id, self._clock())

    def forget(self, tenant_id: str) -> None:
        """Look the tenant up again at the next call."""
        self.routes.forget(tenant_id)

    async def find(
        self, tenant_id: str, *, absence_max_age_s: float = 0.0, is_cached_enough: bool = True
    ) -> ShardAddress | Absence:
        """Return the shard that confirms the tenant as its own, or why there is none.

        Concurrent callers for one tenant share a lookup that began after them, so that no "not registered" is older
        than the call or *absence_max_age_s*. Raises `RetryableError` if Citrus or a shard that may have the tenant does
        not answer, and `PermanentError` if the named address may not be used.
        """
        since = self._clock() - absence_max_age_s
        if absence_max_age_s and self.routes.absence(tenant_id, since=since) is Absence.UNREGISTERED:
            return Absence.UNREGISTERED
        (found,) = await self._lookups.submit(tenant_id, [is_cached_enough])
        return found

    async def ask_home(
        self, tenant_id: str, ask: Callable[[ShardAddress], Awaitable[Answer | None]], *, absence_max_age_s: float = 0.0
    ) -> Answer | Absence:
        """Return the answer of the shard on which a tenant lives, or why there is none now.

        Where *ask* returns None, the route was old: the home is looked up anew, once. Raises as `find` and *ask* do.
        """
        for _ in range(2):
            found = await self.find(tenant_id, absence_max_age_s=absence_max_age_s)
            if isinstance(found, Absence):
                return found
            if (answer := await ask(found)) is not None:
                return answer
            self.forget(tenant_id)
        return Absence.MOVING

    async def _look_up(self, tenant_id: str, is_cached_enough: Sequence[bool]) -> list[ShardAddress | Absence]:
        found: ShardAddress | Absence | None = None
        if all(is_cached_enough) and not self.paused_s(tenant_id):
            found = self.cached_address(tenant_id)
        if found is None:
            asked_at = self._clock()
            found = await self._look_up_route(tenant_id)
            if isinstance(found, Absence):
                self.routes.put_absence(tenant_id, found, asked_at=asked_at)
        return [found] * len(is_cached_enough)

    async def _look_up_route(self, tenant_id: str) -> ShardAddress | Absence:
        home: TenantHome | None
        if (home := await self._find_moving_home(tenant_id)) is not None:
            return await self._route_to(tenant_id, home)
        try:
            named = await self._locator.locate(tenant_id)
        except RetryableError:
            # The row on the last shard shows without Citrus that the tenant is still there, or where it moved to.
            if (home := await self._find_last_home(tenant_id)) is None:
                raise
            return await self._route_to(tenant_id, home)
        if named is None:
            if (home := await self._find_last_home(tenant_id)) is None:
                return Absence.UNREGISTERED
        elif not named.is_active:
            return Absence.INACTIVE
        elif (home := await self._find_home_from(tenant_id, named)) is None:
            return Absence.NOT_HERE
        if named is None or home.address.shard_id != named.shard_id:
            _log_conflict(named, home.address.shard_id)
        return await self._route_to(tenant_id, home)

    async def _route_to(self, tenant_id: str, home: TenantHome) -> ShardAddress | Absence:
        state, shard_id = home.tenant["state"], home.address.shard_id
        is_settled = state in SERVED_STATES
        if self._settler is not None and state == TenantState.FENCED:
            is_settled = await self._settler.end_overdue_fence(shard_id, tenant_id)
        elif self._settler is not None and state == TenantState.READY and home.left is not None:
            is_settled = await self._settler.activate_left(home.left.shard_id, shard_id, tenant_id)
        if not is_settled:
            return Absence.MOVING
        self.routes.put(
            tenant_id,
            shard_id,
            business_id=home.tenant["business_id"],
            # A pause binds no destroyed tenant, whose operations end at once; it binds again if the tenant is restored.
            paused_until=self._clock() + (0.0 if state in DESTROYED_STATES else home.tenant["paused_s"] or 0.0),
        )
        return home.address

    async def _find_moving_home(self, tenant_id: str) -> TenantHome | None:
        """Return the home of a tenant that its last shard has fenced, or that has moved from there; else None."""
        shard_id = self.routes.last_shard_id(tenant_id)
        is_waiting = self.routes.absence(tenant_id) in {None, Absence.MOVING}
        pool = self._pools.by_shard_id().get(shard_id or "")
        if pool is None or not pool.is_healthy or not is_waiting:
            return None
        with contextlib.suppress(RetryableError):
            home = await self._find_last_home(tenant_id)
            if home is not None and home.tenant["state"] in (FENCED_STATES if home.left is None else MOVED_STATES):
                return home
        return None

    async def _find_last_home(self, tenant_id: str) -> TenantHome | None:
        shard_id = self.routes.last_shard_id(tenant_id)
        if shard_id is None or shard_id not in self._pools.by_shard_id():
            return None
        address = self._pools.pool_of(shard_id).address
        row = await self.homes.fetch_row(address, tenant_id)
        return None if row is None else await self.homes.follow_moves(TenantHome(address, row), tenant_id)

    async def _find_home_from(self, tenant_id: str, named: ShardAddress) -> TenantHome | None:
        row = await self.homes.fetch_row(named, tenant_id)
        if row is not None and row["state"] not in ARRIVING_STATES:
            return await self.homes.follow_moves(TenantHome(named, row), tenant_id)
        (home,) = await self._searches.submit(None, [(tenant_id, named)])
        return _home_or_raise(home)

    async def _search(self, _: None, named: Sequence[tuple[str, ShardAddress]]) -> list[FoundHome]:
        homes = await self.homes.find_homes(dict(named))
        return [homes[tenant_id] for tenant_id, _ in named]

    async def find_home(self, tenant_id: str, named: ShardAddress) -> TenantHome | None:
        """Return the home of one tenant, as `TenantHomes.find_homes` does, or raise its error."""
        return _home_or_raise((await self.homes.find_homes({tenant_id: named}))[tenant_id])


def _home_or_raise(home: TenantHome | WorkerError | None) -> TenantHome | None:
    if isinstance(home, WorkerError):
        raise home
    return home


def _log_conflict(named: ShardAddress | None, shard_id: str) -> None:
    log.warning("route.conflict", named_shard_id=None if named is None else named.shard_id, shard_id=shard_id)
