"""What is remembered of where tenants live, for how long it is fresh, and which of it is to be asked anew. Does no I/O.

A route past its freshness is served on: it can only delay, as the shard itself has the last word. The first look at it
says that its tenant is in use, and puts it in line to be asked for. So those that nobody uses cost nobody a question.
"""

from __future__ import annotations

import math
from collections.abc import Collection, MutableMapping
from itertools import islice
from typing import Any, Final

import msgspec

ROUTES_MAX: Final = 100_000
ABSENCES_MAX: Final = 10_000
FRESH_S: Final = 60.0
JITTER: Final = 0.1  # of FRESH_S, to either side: what was found together is not asked for together


def stale_at(found_at: float, *, draw: float) -> float:
    """Return when a route that was found at *found_at* is to be asked for anew; *draw* (0 ≤ draw < 1) spreads them."""
    return found_at + FRESH_S * (1 - JITTER + 2 * JITTER * draw)


class _Route(msgspec.Struct, gc=False):
    """Where one tenant was found. *stale_at* is infinite while it is in line."""

    shard_id: str
    stale_at: float


class RouteCache:
    """Tenant → shard, at most *most* of them: those that were not in use for longest go first."""

    def __init__(self, *, most: int = ROUTES_MAX) -> None:
        self._most = most
        self._routes: dict[str, _Route] = {}  # the longest not asked for first
        self._invalidated: dict[str, str] = {}  # where those lived last that are not served any more
        self._due: dict[str, None] = {}
        self._samples: dict[str, str] = {}  # by shard: who was found there last
        self._now = -math.inf

    def __repr__(self) -> str:
        return f"RouteCache({len(self._routes)}, due={len(self._due)}, invalidated={len(self._invalidated)})"

    def __len__(self) -> int:
        """Return how many tenants are served."""
        return len(self._routes)

    @property
    def due_count(self) -> int:
        """How many are in line."""
        return len(self._due)

    def set_time(self, now: float) -> None:
        """Tell the time, which nobody asks for at each look."""
        self._now = now

    def get(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found."""
        route = self._routes.get(tenant_id)
        if route is None:
            return None
        if route.stale_at <= self._now:
            self._due[tenant_id] = None
            route.stale_at = math.inf
        return route.shard_id

    def put(self, tenant_id: str, shard_id: str, *, now: float, draw: float) -> None:
        """Remember where a tenant was found."""
        self._routes.pop(tenant_id, None)
        self._invalidated.pop(tenant_id, None)
        self._due.pop(tenant_id, None)
        _make_room(self._routes, self._most)
        self._routes[tenant_id] = _Route(shard_id, stale_at(now, draw=draw))
        self._samples[shard_id] = tenant_id

    def renew(self, tenant_id: str, shard_id: str, *, now: float, draw: float) -> None:
        """Make a route fresh, unless it was doubted or changed since it was asked for."""
        route = self._routes.get(tenant_id)
        if route is not None and route.shard_id == shard_id:
            self.put(tenant_id, shard_id, now=now, draw=draw)

    def invalidate(self, tenant_id: str) -> None:
        """Serve a route no more; where it led is the first place to look when nobody else can say."""
        route = self._routes.pop(tenant_id, None)
        self._due.pop(tenant_id, None)
        if route is not None:
            _make_room(self._invalidated, self._most)
            self._invalidated[tenant_id] = route.shard_id

    def last_shard_id(self, tenant_id: str) -> str | None:
        """Return where a tenant lived when it was last found, even if that is in doubt."""
        route = self._routes.get(tenant_id)
        return self._invalidated.get(tenant_id) if route is None else route.shard_id

    def items(self) -> list[tuple[str, str]]:
        """Return every tenant that is served, with its shard."""
        return [(tenant_id, route.shard_id) for tenant_id, route in self._routes.items()]

    def mark_due(self, tenant_id: str) -> None:
        """Put a tenant in line now: its route may have changed. It is served meanwhile."""
        route = self._routes.get(tenant_id)
        if route is not None:
            self._due[tenant_id] = None
            route.stale_at = math.inf

    def remove_shards(self, shard_ids: Collection[str]) -> None:
        """Forget who lived on shards that are there no more."""
        self._routes = {key: route for key, route in self._routes.items() if route.shard_id not in shard_ids}
        self._invalidated = {key: shard_id for key, shard_id in self._invalidated.items() if shard_id not in shard_ids}
        self._samples = {key: tenant_id for key, tenant_id in self._samples.items() if key not in shard_ids}

    def sample_tenant_id(self, shard_id: str) -> str | None:
        """Return a tenant that was found on a shard."""
        return self._samples.get(shard_id)

    def take_due(self) -> tuple[str, str] | None:
        """Take the tenant that has been in line for longest, and its shard."""
        while self._due:
            tenant_id = next(iter(self._due))
            del self._due[tenant_id]
            if (route := self._routes.get(tenant_id)) is not None:
                return tenant_id, route.shard_id
        return None

    def requeue(self, tenant_id: str) -> None:
        """Put in line again, at its end, who was taken and not answered for."""
        if tenant_id in self._routes:
            self._due[tenant_id] = None


class _CachedAbsence(msgspec.Struct, gc=False):
    """Why a tenant had no shard, when that was asked, and when all shards said so."""

    reason: str
    asked_at: float
    searched_at: float


class AbsenceCache:
    """Tenants that have no shard, at most *most* of them, each with the time at which that was asked."""

    def __init__(self, *, most: int = ABSENCES_MAX) -> None:
        self._most = most
        self._absences: dict[str, _CachedAbsence] = {}

    def __repr__(self) -> str:
        return f"AbsenceCache({len(self._absences)})"

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._absences)

    def put(self, tenant_id: str, reason: str, *, asked_at: float, searched_at: float = -math.inf) -> None:
        """Remember that a tenant had no shard."""
        self._absences.pop(tenant_id, None)
        _make_room(self._absences, self._most)
        self._absences[tenant_id] = _CachedAbsence(reason, asked_at, searched_at)

    def reason(self, tenant_id: str, *, since: float) -> str | None:
        """Return why a tenant had no shard, if that was asked at *since* or later."""
        absence = self._absences.get(tenant_id)
        return None if absence is None or absence.asked_at < since else absence.reason

    def searched_at(self, tenant_id: str) -> float:
        """Return when all shards last said that they do not have the tenant; long ago when that is not known."""
        absence = self._absences.get(tenant_id)
        return -math.inf if absence is None else absence.searched_at

    def remove(self, tenant_id: str) -> None:
        """Forget it: the tenant may have a shard now."""
        self._absences.pop(tenant_id, None)

    def clear(self) -> None:
        """Forget all of them: shards are named anew."""
        self._absences.clear()


def _make_room(entries: MutableMapping[str, Any], most: int) -> None:
    """Drop the first of *entries* when there are *most*: many at once, as each look for the first passes the gaps."""
    if len(entries) >= most:
        for key in list(islice(entries, max(1, most // 64))):
            del entries[key]
