"""Probe every shard in use, beside its pool and at a limited pace. A probe changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import asyncpg
import msgspec
from msgspec.structs import replace

from simplu_worker import instruments
from simplu_worker.bulkheads import contain, note_trouble
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import facts_of
from simplu_worker.shards.health.assessment import (
    Health,
    MoveEntry,
    ProbeSchedule,
    ShardObservation,
    ShardProbe,
    ShardSilence,
    assess,
)
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import WrongDatabaseError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import LIMITS, query_all_shards
from simplu_worker.shards.schema.schema_check import check_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import UtcClock, loop_time, shard_problem, utc_now
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.timing.waits import shared_pause_s
from simplu_worker.vocabulary import ConnectionState, ShardProblem, TargetKind

PROBE_S: Final = 2.4  # within `ShardTimeouts.probe_s`: a slow shard has answered, and is not lost


class _EndProbeError(WorkerError):
    """The end of a probe without changing the pool's health: the shard answered, but is not usable."""


async def probe_shard(pool: ShardPool, *, counts_tenants: bool = True, within_s: float = PROBE_S) -> ShardProbe:
    """Probe a shard beside its pool; facts not read within *within_s* are left out. Raises `ShardUnavailableError`."""
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    with contextlib.suppress(_EndProbeError):
        async with pool.fresh_connection() as connection:
            facts |= await _read_server(connection, pool.clock)
            try:
                async with asyncio.timeout(max(0.0, started + within_s - time.perf_counter())):
                    await _add_details(connection, pool.address, facts, counts_tenants=counts_tenants)
                facts["refusal"] = facts.get("refusal") or shard_problem(facts["skew_s"])
            except TimeoutError:
                facts["is_cut_short"] = True
            if facts.get("is_cut_short") or facts["is_read_only"] or not pool.is_healthy:
                raise _EndProbeError
    return ShardProbe(**facts)


async def _read_server(connection: Connection, clock: UtcClock) -> dict[str, Any]:
    asked_at, started = clock(), time.perf_counter()
    server = await connection.fetchrow(QUERIES["probe_server"])
    response_s = time.perf_counter() - started
    if server is None:
        raise ShardUnavailableError("expected one row about the server, got none")
    return {
        "server_version": server["version"].partition(" ")[0],
        "version_number": server["version_number"],
        "is_standby": server["is_standby"],
        "is_read_only": server["is_read_only"],
        "skew_s": (server["clock"] - asked_at).total_seconds() - response_s / 2,
        "response_s": response_s,
    }


async def _add_details(
    connection: Connection, address: ShardAddress, facts: dict[str, Any], *, counts_tenants: bool
) -> None:
    for row in await _read_rows(connection, "probe_standby" if facts["is_standby"] else "probe_primary"):
        facts["lag_s"], facts["standby_count"], *replication = row
        facts["replication"] = facts_of(replication) if replication else None
    try:
        schema = await check_schema(connection, address.shard_id)
    except ShardUnavailableError as exc:
        facts["refusal"] = address.without_name(str(exc))
    else:
        facts["schema_version"] = None if schema is None else schema.version
    for query in ("probe_connections", "probe_upgrade"):
        for row in await _read_rows(connection, query):
            facts |= dict(row)
    if facts.get("schema_version") is not None:
        facts["gaps"] = [row["stream_shard_id"] for row in await connection.fetch(QUERIES["list_gaps"])]
        facts["moves"] = [MoveEntry(**dict(row)) for row in await connection.fetch(QUERIES["list_moves"])]
        if counts_tenants:
            facts["tenant_count"] = await connection.fetchval(QUERIES["count_tenants"])


async def _read_rows(connection: Connection, query: str) -> list[asyncpg.Record]:
    try:
        return await connection.fetch(QUERIES[query])  # type: ignore[no-any-return]
    except asyncpg.PostgresError:
        if connection.is_closed():
            raise
        return []  # some hosted servers lack such a function, or permit it to no role: no fault of the shard


CHECK_INTERVAL_S: Final = 0.25  # until a new, failing or due shard is noticed
KNOWN_INTERVAL_S: Final = 5.0  # until a shard that is new to the locator is probed
COUNT_TENANTS_S: Final = 60.0  # it reads a whole table


class Prober:
    """The prober of all shards with a pool, and of those in *known*, which writes into *registry*."""

    def __init__(
        self,
        pools: Pools,
        registry: HealthRegistry,
        commits: ReplicationWaiter,
        *,
        known: Callable[[], Iterable[ShardAddress]] = tuple,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._pools = pools
        self._registry = registry
        self._commits = commits
        self._known = known
        self._known_at = float("-inf")
        self._refused_ids: set[str] = set()
        self._schedule = ProbeSchedule()
        self._clock = clock
        self._counted_at: dict[str, float] = {}

    async def run(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._notice_changes()
                for shard_id in self._schedule.take_due(self._clock()):
                    probes.create_task(self._probe(shard_id), name=f"probe:{shard_id}")
                await asyncio.sleep(shared_pause_s(self._clock(), CHECK_INTERVAL_S))

    def _notice_changes(self) -> None:
        now = self._clock()
        if now >= self._known_at + KNOWN_INTERVAL_S:
            self._known_at = now
            self._notice_known()
        pools = self._pools.by_shard_id()
        for shard_id in pools.keys() - self._schedule.shard_ids:
            self._schedule.add(shard_id, now=now, draw=random.random())
            self._registry.begin(shard_id)
            self._show_connections(shard_id)
        for shard_id in self._schedule.shard_ids - pools.keys():
            self._schedule.remove(shard_id)
            self._counted_at.pop(shard_id, None)
        for shard_id in self._registry.by_shard_id.keys() - pools.keys() - self._refused_ids:
            self._registry.end(shard_id)
        for shard_id, pool in pools.items():
            if not pool.is_healthy:
                self._schedule.bring_forward(shard_id, now=now)

    def _notice_known(self) -> None:
        known = {shard.shard_id: shard for shard in self._known()}
        for shard in known.values():
            self._registry.begin(shard.shard_id)
            with contextlib.suppress(ShardUnavailableError):  # refused, or retired since
                self._pools.ensure_pool(shard)
        self._refused_ids = {shard_id for shard_id, shard in known.items() if shard.refusal is not None}
        for shard_id in self._refused_ids - self._pools.by_shard_id().keys():
            self._registry.note_probe(shard_id, ShardSilence(known[shard_id].refusal or "", is_refusal=True))
        self._registry.note_listed(known)

    def _show_connections(self, shard_id: str) -> None:

        def count(state: str) -> int:
            pool = self._pools.by_shard_id().get(shard_id)
            counts = {} if pool is None else pool.counts()
            return counts.get("open", 0) - counts.get("idle", 0) if state == "used" else counts.get(state, 0)

        for state in ConnectionState:
            instruments.SHARD_CONNECTIONS.labels(shard_id, state).set_function(partial(count, state))

    async def _probe(self, shard_id: str) -> None:
        fails = True
        with contain(TargetKind.SHARD, shard_id, "probe"):
            fails = await self._fails(shard_id)
        self._schedule.reschedule(shard_id, fails=fails, now=self._clock(), draw=random.random())

    async def _fails(self, shard_id: str) -> bool:
        pool = self._pools.by_shard_id().get(shard_id)
        if pool is None:
            return False
        counts_tenants = self._clock() - self._counted_at.get(shard_id, float("-inf")) > COUNT_TENANTS_S
        result = await inspect_shard(pool, counts_tenants=counts_tenants)
        if isinstance(result, ShardProbe) and result.tenant_count is not None:
            self._counted_at[shard_id] = self._clock()
        if isinstance(result, ShardProbe) and result.replication is not None:
            self._commits.note(shard_id, result.replication)
        self._registry.note_probe(shard_id, result)
        return isinstance(result, ShardSilence) or not pool.is_healthy


async def inspect_shard(pool: ShardPool, *, counts_tenants: bool = True) -> ShardProbe | ShardSilence:
    """Probe one shard, and update its pool."""
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


FRESH_S: Final = 2.0  # how long a result is shared: each probe opens a connection


class InspectedShard(msgspec.Struct, frozen=True):
    """One known shard, and its health."""

    address: ShardAddress
    health: Health

    @property
    def is_silent(self) -> bool:
        """Whether the shard did not answer."""
        return ShardProblem.NO_ANSWER in self.health.problems


async def inspect_all_shards(locator: Locator, pools: Pools) -> list[InspectedShard]:
    """Probe every known shard; return them in order of their ids. Raises as `Locator.list_shards`."""

    async def ask(shard: ShardAddress) -> ShardProbe | ShardSilence:
        if shard.refusal is not None:
            return ShardSilence(shard.refusal)
        return await inspect_shard(pools.ensure_pool(shard))

    known = sorted(await locator.list_shards(), key=lambda shard: shard.shard_id)
    probes = await query_all_shards(known, ask)
    return [InspectedShard(shard, _assess(shard, probes.get(shard.shard_id))) for shard in known]


def _assess(shard: ShardAddress, probe: ShardProbe | ShardSilence | None) -> Health:
    checked_at = utc_now()
    observation = ShardObservation(listed=shard, checked_at=checked_at)
    if isinstance(probe, ShardProbe):
        return assess(replace(observation, probe=probe, answered_at=checked_at))
    silence = f"no answer within {LIMITS.all_s:g} s, with all shards asked" if probe is None else probe.error
    return assess(replace(observation, error=silence))


def shared_inspection(locator: Locator, pools: Pools) -> SharedAnswer[list[InspectedShard]]:
    """Return what inspects all shards: concurrent callers share a result, also for a moment afterwards."""
    return SharedAnswer(partial(inspect_all_shards, locator, pools), fresh_s=FRESH_S)
