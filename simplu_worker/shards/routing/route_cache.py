"""Cached routes and absences of tenants, and the address to use for each shard. Pure.

A route is used until a shard, or the list of shards, contradicts it: a wrong one only delays operations, as the shard
itself decides. A locator may name a wrong address: once a shard was found at one, another is used only after the shard
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
    """Tenant → shard, for at most *max_count* tenants; the oldest lookup is dropped first."""

    def __init__(self, *, max_count: int = ROUTES_MAX) -> None:
        self._max_count = max_count
        self._routes: dict[str, _Route] = {}  # the oldest lookup first

    def get(self, tenant_id: str) -> str | None:
        """Return the shard of a tenant."""
        route = self._routes.get(tenant_id)
        return route.shard_id if route is not None and route.is_valid else None

    def put(
        self, tenant_id: str, shard_id: str, *, business_id: str | None = None, paused_until: float = -math.inf
    ) -> None:
        """Store the shard on which a tenant was found, and what its row contains."""
        self._routes.pop(tenant_id, None)
        _make_room(self._routes, self._max_count)
        self._routes[tenant_id] = _Route(shard_id, paused_until, business_id)

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

    def invalidate(self, tenant_id: str) -> None:
        """Use a route no more, but keep its shard for `last_shard_id`."""
        if (route := self._routes.get(tenant_id)) is not None:
            route.is_valid = False

    def last_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which a tenant was last found, invalidated or not."""
        route = self._routes.get(tenant_id)
        return None if route is None else route.shard_id

    def remove_shards(self, shard_ids: Collection[str]) -> None:
        """Forget all routes to shards that are not to be used."""
        if shard_ids:
            self._routes = {key: route for key, route in self._routes.items() if route.shard_id not in shard_ids}


class AbsenceCache:
    """Tenants without a shard, at most *max_count*: why, and the time of the lookup."""

    def __init__(self, *, max_count: int = ABSENCES_MAX) -> None:
        self._max_count = max_count
        self._absences: dict[str, tuple[Absence, float]] = {}

    def put(self, tenant_id: str, absence: Absence, *, asked_at: float) -> None:
        """Store that a tenant had no shard."""
        self._absences.pop(tenant_id, None)
        _make_room(self._absences, self._max_count)
        self._absences[tenant_id] = absence, asked_at

    def get(self, tenant_id: str, *, since: float = -math.inf) -> Absence | None:
        """Return why a tenant had no shard, looked up at *since* or later."""
        absence, asked_at = self._absences.get(tenant_id, (None, math.inf))
        return absence if asked_at >= since else None

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


TRIAL_BACKOFF_BASE_S: Final = 1.0
TRIAL_BACKOFF_MAX_S: Final = 30.0
UNHEALTHY_BACKOFF_MAX_S: Final = 1.0  # while the shard does not answer at its present address


class _KnownShard(msgspec.Struct):
    """The address in use, another one that was *named*, and that of the *standby*, to be tried as a trial is due."""

    address: ShardAddress
    is_proven: bool = False
    named: ShardAddress | None = None
    standby: ShardAddress | None = None
    failure_count: int = 0  # trials of the candidate that failed
    failed_at: float = 0.0
    backoff_s: float = 0.0

    @property
    def candidate(self) -> ShardAddress | None:
        return self.named or self.standby

    def name(self, address: ShardAddress | None) -> None:
        """Try *address* next, without a back-off where it is another one than before."""
        if address is not None and (self.named is None or self.named.connection_string != address.connection_string):
            self.failure_count, self.failed_at, self.backoff_s = 0, 0.0, 0.0
        self.named = address


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
        return [shard_id for shard_id, shard in self._shards.items() if shard.candidate is not None]

    def update(self, address: ShardAddress, *, standby: ShardAddress | None = None) -> None:
        """Take over a map's addresses; a proven one is kept until the shard is found at the new one."""
        shard = self._shards.get(address.shard_id)
        if shard is None or not shard.is_proven:
            self._shards[address.shard_id] = _KnownShard(address, standby=standby)
        else:
            shard.name(None if shard.address.connection_string == address.connection_string else address)
            shard.standby = standby

    def remove(self, shard_id: str) -> None:
        """Forget a shard; the results of its trials are then ignored."""
        self._shards.pop(shard_id, None)

    def resolve(self, named: ShardAddress) -> ShardAddress:
        """Return the address to use for a shard: the named one, or the proven one."""
        if named.refusal is not None:
            return named
        shard = self._shards.setdefault(named.shard_id, _KnownShard(named))
        used = shard.address.connection_string
        if named.connection_string == used or not shard.is_proven:
            shard.named, shard.address = None, named
        else:
            shard.name(named)
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
        if shard is None or (shard.named is None and is_healthy):
            return None
        pause_s = shard.backoff_s if is_healthy else min(shard.backoff_s, UNHEALTHY_BACKOFF_MAX_S)
        return shard.candidate if now >= shard.failed_at + pause_s else None

    def is_standby(self, address: ShardAddress) -> bool:
        """Return whether a due address is that of the standby."""
        shard = self._shards.get(address.shard_id)
        return shard is not None and shard.named is None and shard.standby is not None

    def switch_to(self, address: ShardAddress) -> None:
        """Use an address from now on: the shard was found there."""
        shard = self._shards.get(address.shard_id)
        if shard is not None:
            standby = shard.address if self.is_standby(address) else shard.standby
            self._shards[address.shard_id] = _KnownShard(address, is_proven=True, standby=standby)

    def record_failure(self, address: ShardAddress, now: float, *, draw: float) -> None:
        """Record that the shard was not found at an address; *draw* spreads the trials."""
        shard = self._shards.get(address.shard_id)
        candidate = None if shard is None else shard.candidate
        if shard is None or candidate is None or candidate.connection_string != address.connection_string:
            return
        shard.failure_count += 1
        shard.failed_at = now
        shard.backoff_s = backoff_s(
            shard.failure_count, draw=draw, base_s=TRIAL_BACKOFF_BASE_S, max_s=TRIAL_BACKOFF_MAX_S
        )
