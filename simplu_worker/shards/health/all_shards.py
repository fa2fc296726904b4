"""The present health of every known shard, including those that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from simplu_worker.shards.health.assessment import Health, ShardObservation, ShardProbe, ShardSilence, assess, usage_of
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, query_all_shards
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.vocabulary import ShardProblem

FRESH_S: Final = 2.0  # how long a result is shared: each probe opens a connection


class InspectedShard(msgspec.Struct, frozen=True):
    """One known shard, and its health."""

    address: ShardAddress
    health: Health

    @property
    def is_silent(self) -> bool:
        """Whether the shard did not answer."""
        return ShardProblem.NO_ANSWER in self.health.problems


async def inspect_all_shards(locator: Locator, pools: Pools, *, limits: QueryLimits = LIMITS) -> list[InspectedShard]:
    """Probe every known shard; return them in order of their ids.

    Raises as *locator* does when it cannot list the shards.
    """

    async def ask(shard: ShardAddress) -> ShardProbe | ShardSilence:
        if shard.refusal is not None:
            return ShardSilence(shard.refusal)
        return await inspect_shard(pools.ensure_pool(shard))

    known = sorted(await locator.list_shards(), key=lambda shard: shard.shard_id)
    probes = await query_all_shards(known, ask, limits=limits)
    return [InspectedShard(shard, _assess(shard, probes, limits)) for shard in known]


def _assess(shard: ShardAddress, probes: Mapping[str, ShardProbe | ShardSilence], limits: QueryLimits) -> Health:
    observation = ShardObservation(usage=usage_of(shard), checked_at=utc_now())
    match probes.get(shard.shard_id):
        case ShardProbe() as probe:
            return assess(msgspec.structs.replace(observation, probe=probe, answered_at=observation.checked_at))
        case ShardSilence(error):
            return assess(msgspec.structs.replace(observation, error=error))
        case _:
            error = f"no answer within {limits.all_s:g} s, with all shards asked"
            return assess(msgspec.structs.replace(observation, error=error))


class ShardInspector:
    """A single-flight inspection of all shards: concurrent callers share a result, also for a moment afterwards."""

    def __init__(self, locator: Locator, pools: Pools, *, clock: Callable[[], float] = loop_time) -> None:
        self._locator = locator
        self._pools = pools
        self._clock = clock
        self._turn = asyncio.Lock()
        self._inspected_at = float("-inf")
        self._inspected: list[InspectedShard] = []

    async def __call__(self) -> list[InspectedShard]:
        """Return every known shard and its health. Raises as `inspect_all_shards` does."""
        async with self._turn:
            if self._clock() - self._inspected_at > FRESH_S:
                self._inspected = await inspect_all_shards(self._locator, self._pools)
                self._inspected_at = self._clock()
            return self._inspected
