"""Drop the pools of shards that Citrus does not list any more and that take no operations: their servers are gone.

It is safe, as nothing is concluded about their tenants: a caller that still names such a shard gets the error of a
shard that does not answer, and the shard has a pool again as soon as Citrus names it, in its list or for a tenant.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import structlog

from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.directory import Directory

DROPPED_AFTER_S: Final = 180.0  # three of Citrus's lists: one that lacks a shard may be a mistake

log = structlog.get_logger(__name__)


class UnlistedShards:
    """The shards of *pools* that take no operations and are not listed, and since when."""

    def __init__(self, pools: Pools, directory: Directory) -> None:
        self._pools = pools
        self._directory = directory
        self._since: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"UnlistedShards({self._since!r})"

    def drop(self, listed: Collection[str], *, now: float) -> list[ShardPool]:
        """Drop the pools of shards that have long been gone and have no route; return them, to be drained.

        An empty list says nothing: that Citrus has none, or gave a wrong answer.
        """
        gone = {
            shard_id
            for shard_id, pool in self._pools.by_shard_id().items()
            if listed and shard_id not in listed and not pool.is_healthy
        }
        self._since = {shard_id: self._since.get(shard_id, now) for shard_id in gone}
        dropped = [
            shard_id
            for shard_id, since in self._since.items()
            if now - since >= DROPPED_AFTER_S and self._is_forgotten(shard_id, now)
        ]
        if dropped:
            log.info("shards.dropped", shard_ids=dropped)
        pools = self._pools.retire(dropped)
        self._pools.restore(dropped)  # unlike a retired shard of the map, which has confirmed that it has no tenants
        return pools

    def _is_forgotten(self, shard_id: str, now: float) -> bool:
        """Have a shard forgotten; while a route leads there, wait as long again, as its tenant is looked up now."""
        is_forgotten = self._directory.forget_shard(shard_id)
        if not is_forgotten:
            self._since[shard_id] = now
        return is_forgotten
