"""The caches of routes and of absences, and the queue of routes that are due for a refresh. Pure.

A stale route is still used: a wrong one only delays operations, as the shard itself decides. The first use of a stale
route marks the route as due for a refresh, so that unused routes cost no requests.
"""

from __future__ import annotations

import math
from collections.abc import Collection, MutableMapping
from itertools import islice
from typing import Any, Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of

ROUTES_MAX: Final = 100_000
ABSENCES_MAX: Final = 10_000
FRESH_S: Final = 60.0
JITTER: Final = 0.1  # of FRESH_S, to either side, so that routes found together are not refreshed together


def stale_at(found_at: float, *, draw: float) -> float:
    """Return when a route that was found at *found_at* becomes stale; *draw* (0 ≤ draw < 1) spreads the times."""
    return found_at + FRESH_S * (1 - JITTER + 2 * JITTER * draw)


class _Route(msgspec.Struct, gc=False):
    """The shard of one tenant. *stale_at* is infinite while the route is due for a refresh."""

    shard_id: str
    stale_at: float


class RouteCache:
    """Tenant → shard, for at most *max_count* tenants; the route with the oldest lookup is dropped first."""

    def __init__(self, *, max_count: int = ROUTES_MAX) -> None:
        self._max_count = max_count
        self._routes: dict[str, _Route] = {}  # the oldest lookup first
        self._invalidated: dict[str, str] = {}  # the last shard of each tenant with an invalidated route
        self._due: dict[str, None] = {}
        self._samples: dict[str, str] = {}  # the last tenant found on each shard
        self._now = -math.inf

    def __repr__(self) -> str:
        return f"RouteCache({len(self._routes)}, due={len(self._due)}, invalidated={len(self._invalidated)})"

    def __len__(self) -> int:
        """Return the number of routes."""
        return len(self._routes)

    @property
    def due_count(self) -> int:
        """The number of routes that are due for a refresh."""
        return len(self._due)

    def set_time(self, now: float) -> None:
        """Set the time by which `get` judges staleness; a clock read at each use would cost too much."""
        self._now = now

    def get(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found; marks a stale route as due for a refresh."""
        route = self._routes.get(tenant_id)
        if route is None:
            return None
        if route.stale_at <= self._now:
            self._due[tenant_id] = None
            route.stale_at = math.inf
        return route.shard_id

    def put(self, tenant_id: str, shard_id: str, *, now: float, draw: float) -> None:
        """Store the shard on which a tenant was found."""
        self._routes.pop(tenant_id, None)
        self._invalidated.pop(tenant_id, None)
        self._due.pop(tenant_id, None)
        _make_room(self._routes, self._max_count)
        self._routes[tenant_id] = _Route(shard_id, stale_at(now, draw=draw))
        self._samples[shard_id] = tenant_id

    def renew(self, tenant_id: str, shard_id: str, *, now: float, draw: float) -> None:
        """Make a route fresh, unless it was invalidated or changed since its refresh began."""
        route = self._routes.get(tenant_id)
        if route is not None and route.shard_id == shard_id:
            self.put(tenant_id, shard_id, now=now, draw=draw)

    def invalidate(self, tenant_id: str) -> None:
        """Drop a route, but keep its shard for `last_shard_id`: the one to ask while the locator does not answer."""
        route = self._routes.pop(tenant_id, None)
        self._due.pop(tenant_id, None)
        if route is not None:
            _make_room(self._invalidated, self._max_count)
            self._invalidated[tenant_id] = route.shard_id

    def last_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found, even if that route was invalidated."""
        route = self._routes.get(tenant_id)
        return self._invalidated.get(tenant_id) if route is None else route.shard_id

    def items(self) -> list[tuple[str, str]]:
        """Return every tenant with a route, and its shard."""
        return [(tenant_id, route.shard_id) for tenant_id, route in self._routes.items()]

    def mark_due(self, tenant_id: str) -> None:
        """Mark a tenant's route as due for a refresh now: it may have changed. The route is used until then."""
        route = self._routes.get(tenant_id)
        if route is not None:
            self._due[tenant_id] = None
            route.stale_at = math.inf

    def remove_shards(self, shard_ids: Collection[str]) -> None:
        """Forget all routes to shards that are gone."""
        self._routes = {key: route for key, route in self._routes.items() if route.shard_id not in shard_ids}
        self._invalidated = {key: shard_id for key, shard_id in self._invalidated.items() if shard_id not in shard_ids}
        self._samples = {key: tenant_id for key, tenant_id in self._samples.items() if key not in shard_ids}

    def sample_tenant_id(self, shard_id: str) -> str | None:
        """Return one tenant that was found on a shard."""
        return self._samples.get(shard_id)

    def take_due(self) -> tuple[str, str] | None:
        """Remove from the queue the route that has been due for longest; return its tenant and shard."""
        while self._due:
            tenant_id = next(iter(self._due))
            del self._due[tenant_id]
            if (route := self._routes.get(tenant_id)) is not None:
                return tenant_id, route.shard_id
        return None

    def requeue(self, tenant_id: str) -> None:
        """Append a tenant to the queue again, after a refresh that got no answer."""
        if tenant_id in self._routes:
            self._due[tenant_id] = None


class _CachedAbsence(msgspec.Struct, gc=False):
    """Why a tenant had no shard, when that was looked up, and when all shards last answered that they have no row."""

    reason: str
    asked_at: float
    searched_at: float


class AbsenceCache:
    """Tenants without a shard, at most *max_count*, each with the time of its lookup."""

    def __init__(self, *, max_count: int = ABSENCES_MAX) -> None:
        self._max_count = max_count
        self._absences: dict[str, _CachedAbsence] = {}

    def __repr__(self) -> str:
        return f"AbsenceCache({len(self._absences)})"

    def __len__(self) -> int:
        """Return the number of absences."""
        return len(self._absences)

    def put(self, tenant_id: str, reason: str, *, asked_at: float, searched_at: float = -math.inf) -> None:
        """Store that a tenant had no shard."""
        self._absences.pop(tenant_id, None)
        _make_room(self._absences, self._max_count)
        self._absences[tenant_id] = _CachedAbsence(reason, asked_at, searched_at)

    def reason(self, tenant_id: str, *, since: float) -> str | None:
        """Return why a tenant had no shard, if that was looked up at *since* or later."""
        absence = self._absences.get(tenant_id)
        return None if absence is None or absence.asked_at < since else absence.reason

    def searched_at(self, tenant_id: str) -> float:
        """Return when all shards last answered that they have no row of the tenant; minus infinity if unknown."""
        absence = self._absences.get(tenant_id)
        return -math.inf if absence is None else absence.searched_at

    def remove(self, tenant_id: str) -> None:
        """Forget an absence: the tenant may have a shard now."""
        self._absences.pop(tenant_id, None)

    def clear(self) -> None:
        """Forget all absences: a new map may name shards for these tenants."""
        self._absences.clear()


class BusinessIds:
    """Where the business id ends in tenants' ids, for at most *max_count* of those that may be of several pairs."""

    def __init__(self, *, max_count: int = ROUTES_MAX) -> None:
        self._max_count = max_count
        self._ends: dict[str, int] = {}

    def put(self, tenant_id: str, business_id: str) -> None:
        """Store which business the tenant is of."""
        if tenant_id.count("-") > 1:
            _make_room(self._ends, self._max_count)
            self._ends[tenant_id] = len(business_id)

    def is_tenant(self, business_id: str, location_id: str) -> bool | None:
        """Return whether the tenant with the id of these two ids is theirs; None if that is not known."""
        tenant_id = tenant_id_of(business_id, location_id)
        end = len(business_id) if tenant_id.count("-") == 1 else self._ends.get(tenant_id)
        return None if end is None else end == len(business_id)


def _make_room(entries: MutableMapping[str, Any], max_count: int) -> None:
    """Drop the first of *entries* if there are *max_count*: many at once, as an iteration first skips deleted slots."""
    if len(entries) >= max_count:
        for key in list(islice(entries, max(1, max_count // 64))):
            del entries[key]
