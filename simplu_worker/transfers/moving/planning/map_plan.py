"""Which tenants to move so that each is where the shard map places it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from simplu_worker.shards.routing.shard_map import ShardMap
from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, WeighedTenant


def plan_by_map(
    tenants: Iterable[WeighedTenant],
    shard_map: ShardMap,
    targets: Collection[str],
    left: Collection[tuple[str, str]],
    *,
    keep_pins: bool = False,
) -> list[PlannedTransfer]:
    """Return the moves to the shards that the map names for the tenants; only to *targets*.

    Unless *keep_pins*, a tenant that was pinned to its home because shards were added moves to the one of these that
    the map places it on without the pin. *left* are tenants with shards that they have moved away from.
    """
    follower = _PinFollower(shard_map, left)
    plan = []
    for tenant in sorted(tenants):
        named = shard_map.shard_of(tenant.tenant_id).shard_id
        if named == tenant.shard_id and not keep_pins:
            named = follower.added_shard_of(tenant)
        if named != tenant.shard_id and named in targets:
            plan.append(PlannedTransfer(tenant, named))
    return plan


class _PinFollower:
    """Knows which pins are there only because the list of shards has grown."""

    def __init__(self, shard_map: ShardMap, left: Collection[tuple[str, str]]) -> None:
        self._unpinned = shard_map.without_pins()
        self._places = {shard.shard_id: place for place, shard in enumerate(shard_map.shards)}
        self._left = left

    def added_shard_of(self, tenant: WeighedTenant) -> str:
        """Return the shard, added since, on which the map places a tenant without its pin; its home if there is none.

        A pin to a shard on which no shorter list placed the tenant was meant, and so was one of a tenant that was moved
        away from where the map places it.
        """
        tenant_id, home = tenant.tenant_id, tenant.shard_id
        hashed = self._unpinned.shard_of(tenant_id).shard_id
        if self._places[hashed] <= self._places[home] or (tenant_id, hashed) in self._left:
            return home
        earlier = {shard.shard_id for shard in self._unpinned.possible_homes(tenant_id)}
        return hashed if home in earlier else home
