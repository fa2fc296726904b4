"""Caches of routes and absences, and the book of the shards' addresses. Pure.

A stale route is used: a wrong one only delays operations, as the shard itself decides. Its first use marks it as due
for a refresh. A locator may name a wrong address: once a shard was found at one, another is used only after the shard
was found there too. The address of a standby is used once it takes writes while the shard does not answer at its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, MutableMapping
from itertools import islice
from typing import Any, Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.timing.waits import backoff_s

ROUTES_MAX: Final = 100_000
ABSENCES_MAX: Final = 10_000
FRESH_S: Final = 60.0
JITTER: Final = 0.1  # of FRESH_S, to either side, so that routes found together are not refreshed together


def stale_at(found_at: float, *, draw: float) -> float:
    """Return when a route becomes stale; *draw* (0 to 1) spreads the times."""
    return found_at + FRESH_S * (1 - JITTER + 2 * JITTER * draw)


class _Route(msgspec.Struct, gc=False):
    """Where a tenant was found last, and what its row contained; an invalidated one is not used."""

    shard_id: str
    stale_at: float
    is_valid: bool
    paused_until: float
    business_id: str | None


class RouteCache:
    """Tenant → shard, for at most *max_count* tenants; the oldest lookup is dropped first."""

    def __init__(self, *, max_count: int = ROUTES_MAX) -> None:
        self._max_count = max_count
        self._routes: dict[str, _Route] = {}  # the oldest lookup first
        self._due: dict[str, None] = {}
        self._samples: dict[str, str] = {}  # the last tenant found on each shard
        self._now = -math.inf

    def __repr__(self) -> str:
        return f"RouteCache({len(self)}, due={len(self._due)}, invalidated={len(self._routes) - len(self)})"

    def __len__(self) -> int:
        """Return the number of routes in use."""
        return sum(route.is_valid for route in self._routes.values())

    @property
    def due_count(self) -> int:
        """The number of routes that are due for a refresh."""
        return len(self._due)

    def set_time(self, now: float) -> None:
        """Set the time by which `get` judges staleness."""
        self._now = now

    def get(self, tenant_id: str) -> str | None:
        """Return the shard of a tenant; a stale route becomes due for a refresh."""
        route = self._valid(tenant_id)
        if route is None:
            return None
        if route.stale_at <= self._now:
            self.mark_due(tenant_id)
        return route.shard_id

    def put(
        self,
        tenant_id: str,
        shard_id: str,
        *,
        now: float,
        draw: float,
        business_id: str | None = None,
        paused_s: float | None = None,
    ) -> None:
        """Store the shard on which a tenant was found, and what its row contains."""
        paused_until = -math.inf if paused_s is None else now + paused_s
        self._store(tenant_id, _Route(shard_id, stale_at(now, draw=draw), True, paused_until, business_id))

    def renew(self, tenant_id: str, shard_id: str, *, now: float, draw: float) -> None:
        """Make a route fresh, unless it was invalidated or changed since its refresh began."""
        route = self._valid(tenant_id)
        if route is not None and route.shard_id == shard_id:
            route.stale_at = stale_at(now, draw=draw)
            self._store(tenant_id, route)

    def paused_s(self, tenant_id: str, now: float) -> float:
        """Return for how many seconds a tenant is still paused, as its row was last read; 0 if it is not."""
        route = self._valid(tenant_id)
        return 0.0 if route is None else max(0.0, route.paused_until - now)

    def is_tenant(self, business_id: str, location_id: str) -> bool | None:
        """Return whether the tenant's id is of these two ids; None if unknown."""
        tenant_id = tenant_id_of(business_id, location_id)
        if tenant_id.count("-") == 1:
            return True
        route = self._routes.get(tenant_id)
        return None if route is None or route.business_id is None else route.business_id == business_id

    def invalidate(self, tenant_id: str) -> None:
        """Use a route no more, but keep its shard for `last_shard_id`."""
        self._due.pop(tenant_id, None)
        if (route := self._routes.get(tenant_id)) is not None:
            route.is_valid = False

    def last_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found, invalidated or not."""
        route = self._routes.get(tenant_id)
        return None if route is None else route.shard_id

    def items(self) -> list[tuple[str, str]]:
        """Return every tenant with a route, and its shard."""
        return [(tenant_id, route.shard_id) for tenant_id, route in self._routes.items() if route.is_valid]

    def mark_due(self, tenant_id: str) -> None:
        """Mark a tenant's route, used until then, as due for a refresh."""
        if (route := self._valid(tenant_id)) is not None:
            self._due[tenant_id] = None
            route.stale_at = math.inf

    def remove_shards(self, shard_ids: Collection[str]) -> None:
        """Forget all routes to shards that are gone."""
        self._routes = {key: route for key, route in self._routes.items() if route.shard_id not in shard_ids}
        self._samples = {key: tenant_id for key, tenant_id in self._samples.items() if key not in shard_ids}

    def sample_tenant_id(self, shard_id: str) -> str | None:
        """Return one tenant that was found on a shard."""
        return self._samples.get(shard_id)

    def take_due(self) -> tuple[str, str] | None:
        """Take the route that has been due for longest; return its tenant and shard."""
        while self._due:
            tenant_id = next(iter(self._due))
            del self._due[tenant_id]
            if (route := self._valid(tenant_id)) is not None:
                return tenant_id, route.shard_id
        return None

    def _valid(self, tenant_id: str) -> _Route | None:
        route = self._routes.get(tenant_id)
        return route if route is not None and route.is_valid else None

    def _store(self, tenant_id: str, route: _Route) -> None:
        self._routes.pop(tenant_id, None)
        self._due.pop(tenant_id, None)
        _make_room(self._routes, self._max_count)
        self._routes[tenant_id] = route
        self._samples[route.shard_id] = tenant_id


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

    def __len__(self) -> int:
        """Return the number of absences."""
        return len(self._absences)

    def put(self, tenant_id: str, reason: str, *, asked_at: float, searched_at: float = -math.inf) -> None:
        """Store that a tenant had no shard."""
        self._absences.pop(tenant_id, None)
        _make_room(self._absences, self._max_count)
        self._absences[tenant_id] = _CachedAbsence(reason, asked_at, searched_at)

    def reason(self, tenant_id: str, *, since: float) -> str | None:
        """Return why a tenant had no shard, looked up at *since* or later."""
        absence = self._absences.get(tenant_id)
        return None if absence is None or absence.asked_at < since else absence.reason

    def searched_at(self, tenant_id: str) -> float:
        """Return when all shards last answered that they have no row of the tenant."""
        absence = self._absences.get(tenant_id)
        return -math.inf if absence is None else absence.searched_at

    def remove(self, tenant_id: str) -> None:
        """Forget an absence: the tenant may have a shard now."""
        self._absences.pop(tenant_id, None)

    def clear(self) -> None:
        """Forget all absences: a new map may name shards for these tenants."""
        self._absences.clear()


def _make_room(entries: MutableMapping[str, Any], max_count: int) -> None:
    if len(entries) >= max_count:
        for key in list(islice(entries, max(1, max_count // 64))):
            del entries[key]


RETURN_DELAY_S: Final = 60.0  # before a healthy shard is followed back to its previous address
TRIAL_BACKOFF_BASE_S: Final = 1.0
TRIAL_BACKOFF_MAX_S: Final = 30.0
UNHEALTHY_BACKOFF_MAX_S: Final = 1.0  # while the shard does not answer at its present address


class _Candidate(msgspec.Struct):
    address: ShardAddress
    is_named: bool = True  # by the last answer of the locator; otherwise not tried, but the back-off goes on
    is_standby: bool = False
    failure_count: int = 0
    failed_at: float = 0.0
    backoff_s: float = 0.0


class _KnownShard(msgspec.Struct):
    address: ShardAddress
    is_proven: bool = False
    candidate: _Candidate | None = None
    standby: ShardAddress | None = None  # the next candidate, once the present one is in use
    previous: str | None = None  # the connection string before this one
    switched_at: float = 0.0


class AddressBook:
    """The address to use for each shard, and the candidates to try."""

    def __init__(self) -> None:
        self._shards: dict[str, _KnownShard] = {}

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address to use for a shard that was named before."""
        shard = self._shards.get(shard_id)
        return None if shard is None else shard.address

    def contested_shard_ids(self) -> list[str]:
        """Return the shards that have a candidate beside the address in use."""
        return [
            shard_id
            for shard_id, shard in self._shards.items()
            if shard.candidate is not None and shard.candidate.is_named
        ]

    def add(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Add a shard of the static map, with the address of its standby."""
        candidate = None if standby is None else _Candidate(standby, is_standby=True)
        self._shards[address.shard_id] = _KnownShard(address, candidate=candidate)

    def update(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Take over a new map's addresses; a proven one is kept until the shard is found at the new one."""
        shard = self._shards.get(address.shard_id)
        if shard is None or not shard.is_proven:
            self.add(address, standby=standby)
        elif shard.address.connection_string == address.connection_string:
            shard.candidate = None if standby is None else _Candidate(standby, is_standby=True)
            shard.standby = None
        else:
            shard.candidate = _Candidate(address)
            shard.standby = standby

    def remove(self, shard_id: str) -> None:
        """Forget a shard; the results of its trials are then ignored."""
        self._shards.pop(shard_id, None)

    def resolve(self, named: ShardAddress) -> ShardAddress:
        """Return the address to use for a shard: the named one, or the proven one."""
        if named.refusal is not None:
            return named
        shard = self._shards.get(named.shard_id)
        if shard is None:
            self._shards[named.shard_id] = _KnownShard(named)
            return named
        used = shard.address.connection_string
        if named.connection_string == used or not shard.is_proven:
            if shard.candidate is not None:
                shard.candidate.is_named = False
            shard.address = named
            return named
        if shard.candidate is None or shard.candidate.address.connection_string != named.connection_string:
            shard.candidate = _Candidate(named)
        shard.candidate.is_named = True
        shard.candidate.address = named
        shard.address = msgspec.structs.replace(named, connection_string=used)
        return shard.address

    def mark_proven(self, address: ShardAddress) -> None:
        """Record that the shard was found at the address."""
        shard = self._shards.get(address.shard_id)
        if shard is not None and shard.address.connection_string == address.connection_string:
            shard.is_proven = True

    def due_candidate(self, shard_id: str, now: float, *, is_healthy: bool) -> ShardAddress | None:
        """Return the address to try for a shard now; *is_healthy* at its present one."""
        shard = self._shards.get(shard_id)
        if shard is None or shard.candidate is None:
            return None
        candidate = shard.candidate
        if not candidate.is_named or (candidate.is_standby and is_healthy):
            return None
        pause_s = candidate.backoff_s if is_healthy else min(candidate.backoff_s, UNHEALTHY_BACKOFF_MAX_S)
        if now < candidate.failed_at + pause_s:
            return None
        is_return = shard.previous == candidate.address.connection_string
        if is_healthy and is_return and now < shard.switched_at + RETURN_DELAY_S:
            return None
        return candidate.address

    def is_standby(self, address: ShardAddress) -> bool:
        """Return whether a due address is that of the standby."""
        shard = self._shards.get(address.shard_id)
        return shard is not None and shard.candidate is not None and shard.candidate.is_standby

    def switch_to(self, address: ShardAddress, now: float) -> None:
        """Use an address from now on: the shard was found there."""
        shard = self._shards.get(address.shard_id)
        if shard is None:
            return
        standby = shard.address if self.is_standby(address) else shard.standby
        self._shards[address.shard_id] = _KnownShard(
            address,
            is_proven=True,
            candidate=None if standby is None else _Candidate(standby, is_standby=True),
            previous=shard.address.connection_string,
            switched_at=now,
        )

    def record_failure(self, address: ShardAddress, now: float, *, draw: float) -> None:
        """Record that the shard was not found at an address; *draw* spreads the trials."""
        shard = self._shards.get(address.shard_id)
        candidate = None if shard is None else shard.candidate
        if candidate is None or candidate.address.connection_string != address.connection_string:
            return
        candidate.failure_count += 1
        candidate.failed_at = now
        candidate.backoff_s = backoff_s(
            candidate.failure_count, draw=draw, base_s=TRIAL_BACKOFF_BASE_S, max_s=TRIAL_BACKOFF_MAX_S
        )
