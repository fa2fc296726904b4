"""Which replica takes which lease when, in a large fleet: the worker's own rules in virtual time."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import ceil, floor
from random import Random
from typing import NamedTuple

import msgspec

from simplu_worker.consumers.kinesis.fleet.fleet import CONCURRENT_TAKES, SCAN_CAPACITY_PER_S, SCANS_PER_DURATION
from simplu_worker.consumers.kinesis.fleet.lease_holder import RENEWALS_PER_DURATION
from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, observe
from simplu_worker.consumers.kinesis.leases.lease_rules import HEAVY, LIGHT, plan_takes
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position

SEED = 3
TAKE_S = 0.005  # a conditional write


class FleetSize(NamedTuple):
    """The size of a fleet and of the things that it serves."""

    stream_shards: int
    shards: int
    tenants: int
    replicas: int
    lease_duration_s: float


class TableCost(NamedTuple):
    """The lease table as DynamoDB counts it, and the cost of a scan for a replica."""

    row_bytes: float
    read_units: float  # of one scan
    scan_s: float  # processor time of one scan: parse the reply and its rows, plan the takes

    def pause_s(self, lease_duration_s: float) -> float:
        """Return the time between two scans of a replica, as in the fleet."""
        return max(lease_duration_s / SCANS_PER_DURATION, self.read_units / SCAN_CAPACITY_PER_S)


@dataclass
class EventResult:
    """The result of one simulated event, in seconds from it."""

    name: str
    all_held_s: float | None = None
    even_s: float | None = None
    takes: int = 0


@dataclass
class Replica:
    """The leases and observations of one replica."""

    name: str
    held: set[str] = field(default_factory=set)
    observations: dict[str, Observation] = field(default_factory=dict)
    is_alive: bool = True


class LeaseWorld:
    """A lease table and the replicas that share it, in virtual time. Requests take no time."""

    def __init__(self, fleet: FleetSize, table: TableCost, *, seed: int = SEED) -> None:
        self._fleet = fleet
        self._pause_s = table.pause_s(fleet.lease_duration_s)
        self._random = Random(seed)
        self.leases = {lease.lease_key: lease for lease in leases_of(fleet.stream_shards)}
        self.replicas: list[Replica] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.now = 0.0
        self.result = EventResult("")

    def add(self, count: int, *, within_s: float) -> None:
        """Start replicas within some seconds."""
        for _ in range(count):
            replica = Replica(f"replica-{len(self.replicas)}")
            self.replicas.append(replica)
            self._schedule(self._random.random() * within_s, partial(self._scan, replica))

    def kill(self, count: int) -> None:
        """End replicas without releasing their leases."""
        for replica in [one for one in self.replicas if one.is_alive][:count]:
            replica.is_alive = False

    def stop(self, count: int) -> None:
        """End replicas in order: they release their leases at once."""
        for replica in [one for one in self.replicas if one.is_alive][:count]:
            replica.is_alive = False
            for key in replica.held:
                lease = self.leases[key]
                self.leases[key] = msgspec.structs.replace(lease, owner=None, counter=lease.counter + 1)
            replica.held.clear()

    def measure(self, name: str, *, max_s: float) -> EventResult:
        """Run until live replicas hold all leases, evenly; return how long that took."""
        self.result = result = EventResult(name)
        begun = self.now
        while self._events and result.even_s is None and self.now - begun < max_s:
            self.now, _, event = heapq.heappop(self._events)
            takes = result.takes
            event()
            if result.takes > takes or not takes:
                self._note(result, self.now - begun)
        return result

    def _note(self, result: EventResult, after_s: float) -> None:
        """Note when all leases were held, and evenly."""
        alive = {replica.name for replica in self.replicas if replica.is_alive}
        owners = Counter(lease.owner for lease in self.leases.values() if lease.owner in alive)
        if owners.total() < len(self.leases):
            return
        if result.all_held_s is None:
            result.all_held_s = after_s
        mean = len(self.leases) / len(alive)
        counts = owners.values()
        if len(owners) == len(alive) and floor(LIGHT * mean) <= min(counts) and max(counts) <= ceil(HEAVY * mean):
            result.even_s = after_s

    def _schedule(self, after_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + after_s, self._count, event))

    def _scan(self, replica: Replica) -> None:
        if not replica.is_alive:
            return
        replica.observations = observe(replica.observations, self.leases.values(), now=self.now)
        wanted = plan_takes(
            replica.observations,
            held=replica.held,
            now=self.now,
            lease_duration_s=self._fleet.lease_duration_s,
            me=replica.name,
            draw=self._random.random(),
        )
        # Takes go one after the other; in between, other replicas scan, too.
        for place, lease in enumerate(wanted):
            self._schedule(TAKE_S * (1 + place // CONCURRENT_TAKES), partial(self._take, replica, lease))
        self._schedule(self._pause_s, partial(self._scan, replica))

    def _take(self, replica: Replica, lease: Lease) -> None:
        if not replica.is_alive or self.leases[lease.lease_key].counter != lease.counter:  # another one was faster
            return
        for other in self.replicas:
            other.held.discard(lease.lease_key)  # at its next renewal, at the latest
        taken = msgspec.structs.replace(lease, owner=replica.name, counter=lease.counter + 1)
        self.leases[lease.lease_key] = taken
        replica.held.add(lease.lease_key)
        self.result.takes += 1
        interval_s = self._fleet.lease_duration_s / RENEWALS_PER_DURATION
        self._schedule(interval_s, partial(self._renew, replica, lease.lease_key, interval_s))

    def _renew(self, replica: Replica, key: str, interval_s: float) -> None:
        lease = self.leases[key]
        if not replica.is_alive or lease.owner != replica.name or key not in replica.held:
            return
        self.leases[key] = msgspec.structs.replace(lease, counter=lease.counter + 1)
        self._schedule(interval_s, partial(self._renew, replica, key, interval_s))


def leases_of(stream_shards: int) -> list[Lease]:
    """Return the rows of a stream as they are in use: with checkpoints and hash ranges."""
    size = 2**128 // stream_shards
    return [
        Lease(
            f"shardId-{number:012d}",
            Position(49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898 + number),
            hash_range=HashRange(number * size, (number + 1) * size - 1),
            started_at=datetime.now(UTC),
        )
        for number in range(stream_shards)
    ]


def simulate(fleet: FleetSize, table: TableCost) -> list[EventResult]:
    """Return the results of losses, stops and starts of replicas."""
    world = LeaseWorld(fleet, table)
    world.add(fleet.replicas, within_s=1.0)
    max_s = 30 * fleet.lease_duration_s
    found = [world.measure(f"all {fleet.replicas} start within a second", max_s=max_s)]
    tenth = max(1, fleet.replicas // 10)
    changes: list[tuple[str, Callable[[], None]]] = [
        ("one is killed", partial(world.kill, 1)),
        (f"{tenth} are killed at once", partial(world.kill, tenth)),
        (f"{tenth} are stopped in order", partial(world.stop, tenth)),
        (f"{2 * tenth + 1} are started", partial(world.add, 2 * tenth + 1, within_s=1.0)),
    ]
    for name, change in changes:
        change()
        found.append(world.measure(name, max_s=max_s))
    return found
