"""Probe every shard in use, beside its pool, independently of the others and at a limited pace."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from msgspec.structs import replace

from simplu_worker.bulkheads import contain, note_trouble
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.health.assessment import ShardProbe, ShardSilence
from simplu_worker.shards.health.probe import probe_shard
from simplu_worker.shards.health.probe_schedule import FAILING_PACE, HEALTHY_PACE, Pace, ProbeSchedule
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.health.unlisted_shards import UnlistedShards
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import WrongDatabaseError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.aligned_times import shared_pause_s
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import ConnectionState, TargetKind

CHECK_INTERVAL_S: Final = 0.5  # until a new or failing shard is noticed
KNOWN_INTERVAL_S: Final = 5.0  # until a shard that is new to the locator is probed
COUNT_TENANTS_S: Final = 60.0  # it reads a whole table

Draw = Callable[[], float]


class Prober:
    """The prober of all shards with a pool, and of those in *known*, which writes its observations into *registry*.

    The pool also learns whether its shard answers, and *commits* which standbys keep up. *known* lists the shards that
    may not have been used yet. Those that it has left out for long are dropped by *unlisted*; without it, none is.
    """

    def __init__(
        self,
        pools: Pools,
        registry: HealthRegistry,
        commits: ReplicationWaiter,
        *,
        known: Callable[[], Iterable[ShardAddress]] = tuple,
        unlisted: UnlistedShards | None = None,
        healthy_pace: Pace = HEALTHY_PACE,
        failing_pace: Pace = FAILING_PACE,
        clock: Callable[[], float] = loop_time,
        draw: Draw = random.random,
    ) -> None:
        self._pools = pools
        self._registry = registry
        self._commits = commits
        self._known = known
        self._unlisted = unlisted
        self._dropped: list[ShardPool] = []  # to be drained
        self._known_at = float("-inf")
        self._refused: set[str] = set()
        self._schedule = ProbeSchedule(healthy_pace=healthy_pace, failing_pace=failing_pace)
        self._clock = clock
        self._draw = draw
        self._counted_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Prober({self._schedule!r})"

    async def run(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._notice_changes()
                while self._dropped:
                    pool = self._dropped.pop()
                    probes.create_task(self._drain(pool), name=f"drain:{pool.address.shard_id}")
                for shard_id in self._schedule.take_due(self._clock()):
                    probes.create_task(self._probe(shard_id), name=f"probe:{shard_id}")
                now = self._clock()
                await asyncio.sleep(self._schedule.wait_s(now, at_most=shared_pause_s(now, CHECK_INTERVAL_S)))

    def _notice_changes(self) -> None:
        """Follow the pools: new ones, removed ones, and those with a failed last use."""
        now = self._clock()
        if now >= self._known_at + KNOWN_INTERVAL_S:
            self._known_at = now
            self._notice_known()
        pools = self._pools.by_shard_id()
        for shard_id in pools.keys() - self._schedule.shard_ids:
            self._schedule.add(shard_id, now=now, draw=self._draw())
            self._registry.begin(shard_id)
            self._show_connections(shard_id)
        for shard_id in self._schedule.shard_ids - pools.keys():
            self._schedule.remove(shard_id)
            self._counted_at.pop(shard_id, None)
            self._registry.end(shard_id)
        for shard_id, pool in pools.items():
            if not pool.is_healthy:
                self._schedule.bring_forward(shard_id, now=now)

    def _notice_known(self) -> None:
        """Have a pool for each known shard, and note those at an address that may not be used, which get no pool."""
        pools = self._pools.by_shard_id()
        known = {shard.shard_id: shard for shard in self._known()}
        refused = {shard_id for shard_id, shard in known.items() if shard.refusal is not None} - pools.keys()
        for shard_id in self._refused - refused - pools.keys():
            self._registry.end(shard_id)
        for shard_id in sorted(refused):
            self._registry.begin(shard_id)
            self._registry.note_probe(shard_id, ShardSilence(known[shard_id].refusal or "", is_refusal=True))
        self._refused = refused
        for shard_id in known.keys() - refused - pools.keys():
            with contextlib.suppress(ShardUnavailableError):  # retired since
                self._pools.ensure_pool(known[shard_id])
        if self._unlisted is not None:
            self._dropped += self._unlisted.drop(known.keys(), now=self._known_at)

    def _show_connections(self, shard_id: str) -> None:
        """Count the connections of a pool when metrics are read, and at no other time."""

        def count(state: str) -> int:
            pool = self._pools.by_shard_id().get(shard_id)
            counts = {"open": 0, "idle": 0, "waiting": 0} if pool is None else pool.counts()
            return counts["open"] - counts["idle"] if state == "used" else counts[state]

        for state in ConnectionState:
            instruments.SHARD_CONNECTIONS.labels(shard_id, state).set_function(partial(count, state))

    async def _drain(self, pool: ShardPool) -> None:
        with contain(TargetKind.SHARD, pool.address.shard_id, "drain"):
            await pool.drain()

    async def _probe(self, shard_id: str) -> None:
        fails = True
        with contain(TargetKind.SHARD, shard_id, "probe"):
            fails = await self._fails(shard_id)
        self._schedule.reschedule(shard_id, fails=fails, now=self._clock(), draw=self._draw())

    async def _fails(self, shard_id: str) -> bool:
        """Probe a shard, and note the result; return whether it is to be probed again soon."""
        pool = self._pools.by_shard_id().get(shard_id)
        fails = False
        if pool is not None:
            counts_tenants = self._clock() - self._counted_at.get(shard_id, float("-inf")) > COUNT_TENANTS_S
            result = await inspect_shard(pool, counts_tenants=counts_tenants)
            if isinstance(result, ShardProbe):
                if result.tenant_count is not None:
                    self._counted_at[shard_id] = self._clock()
                if result.replication is not None:
                    self._commits.note(shard_id, result.replication)
            self._registry.note_probe(shard_id, result)
            fails = isinstance(result, ShardSilence) or not pool.is_healthy
        return fails


async def inspect_shard(pool: ShardPool, *, counts_tenants: bool = True) -> ShardProbe | ShardSilence:
    """Probe one shard, and update its pool: the shard is lost, recovered, or may not be used."""
    try:
        probe = await probe_shard(pool, counts_tenants=counts_tenants)
    except WorkerError as exc:
        return ShardSilence(pool.address.without_name(str(exc)), is_refusal=isinstance(exc, WrongDatabaseError))
    except Exception as exc:  # noqa: BLE001  # of this shard; the others are probed on
        return ShardSilence(str(note_trouble(TargetKind.SHARD, pool.address.shard_id, "probe", exc)))
    if probe.refusal is not None or not probe.is_cut_short:
        pool.refusal = probe.refusal
    if probe.is_read_only == pool.is_healthy:
        with contextlib.suppress(RetryableError):
            await pool.probe()
    # With a full disk, for example, the probe succeeds, and only a commit shows that the problem is over.
    return probe if probe.is_read_only or pool.is_healthy else replace(probe, trouble=pool.last_error)
