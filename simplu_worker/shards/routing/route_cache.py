"""Cached routes and absences of tenants. Pure.

A route is used until a shard, or the list of shards, contradicts it: a wrong one only delays operations, as the shard
itself decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, MutableMapping
from itertools import islice
from typing import Any, Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.vocabulary import Absence

ROUTES_MAX: Final = 100_000
ABSENCES_MAX: Final = 10_000


class _Route(msgspec.Struct, gc=False):
    """Where a tenant was found last, and what its row contained; an invalidated one is not used."""

    shard_id: str
    paused_until: float
    business_id: str | None
    is_valid: bool = True


class RouteCache:
    """Tenant → the shard on which it was found, or why it has none.

    Each for so many tenants at most: unregistered ones displace no route. The oldest lookup is dropped first.
    """

    def __init__(self, *, routes_max: int = ROUTES_MAX, absences_max: int = ABSENCES_MAX) -> None:
        self._routes_max = routes_max
        self._absences_max = absences_max
        self._routes: dict[str, _Route] = {}  # the oldest lookup first
        self._absences: dict[str, tuple[Absence, float]] = {}  # the same, with the time of the lookup

    def get(self, tenant_id: str) -> str | None:
        """Return the shard of a tenant."""
        route = self._routes.get(tenant_id)
        return route.shard_id if route is not None and route.is_valid else None

    def put(
        self, tenant_id: str, shard_id: str, *, business_id: str | None = None, paused_until: float = -math.inf
    ) -> None:
        """Store the shard on which a tenant was found, and what its row contains."""
        self._absences.pop(tenant_id, None)
        self._routes.pop(tenant_id, None)
        _make_room(self._routes, self._routes_max)
        self._routes[tenant_id] = _Route(shard_id, paused_until, business_id)

    def put_absence(self, tenant_id: str, absence: Absence, *, asked_at: float) -> None:
        """Store that a tenant had no shard."""
        self.forget(tenant_id)
        _make_room(self._absences, self._absences_max)
        self._absences[tenant_id] = absence, asked_at

    def forget(self, tenant_id: str) -> None:
        """Use the answer no more, but keep the shard for `last_shard_id`."""
        self._absences.pop(tenant_id, None)
        if (route := self._routes.get(tenant_id)) is not None:
            route.is_valid = False

    def absence(self, tenant_id: str, *, since: float = -math.inf) -> Absence | None:
        """Return why a tenant had no shard, looked up at *since* or later."""
        absence, asked_at = self._absences.get(tenant_id, (None, math.inf))
        return absence if asked_at >= since else None

    def paused_s(self, tenant_id: str, now: float) -> float:
        """Return for how many seconds a tenant is still paused, as its row was last read; 0 if it is not."""
        route = self._routes.get(tenant_id)
        return 0.0 if route is None or not route.is_valid else max(0.0, route.paused_until - now)

    def is_tenant(self, business_id: str, location_id: str) -> bool | None:
        """Return whether the tenant's id is of these two ids; None if unknown."""
        tenant_id = tenant_id_of(business_id, location_id)
        if tenant_id.count("-") == 1:
            return True
        route = self._routes.get(tenant_id)
        return None if route is None or route.business_id is None else route.business_id == business_id

    def last_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found, though it may not be there any more."""
        route = self._routes.get(tenant_id)
        return None if route is None else route.shard_id

    def remove_shards(self, shard_ids: Collection[str]) -> None:
        """Forget all routes to shards that are not to be used."""
        if shard_ids:
            self._routes = {key: route for key, route in self._routes.items() if route.shard_id not in shard_ids}

    def apply_map_change(self, removed: Collection[str]) -> None:
        """Forget routes to the shards *removed* from the map, and all absences: it may name shards for them."""
        self.remove_shards(removed)
        self._absences.clear()


def _make_room(entries: MutableMapping[str, Any], max_count: int) -> None:
    if len(entries) >= max_count:
        for key in list(islice(entries, max(1, max_count // 64))):
            del entries[key]
