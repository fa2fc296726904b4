"""A day of a fleet that an autoscaler follows: load, backlog, lag, and the leases that move. Pure."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.autoscaling.rule import Autoscaler, Signals

TICK_S = 15.0  # of the autoscaler, of KEDA's polls, and of scrapes
DAY_S = 24 * 3600.0
SEEN_AFTER_TICKS = 2  # a scrape, and a poll
CPU_TICKS = 8  # rate(...[2m])
START_TICKS = 2  # until a new replica has leases
HANDOVER_S = 1.1  # until a stream shard is read on after its replica was stopped: benchmarks/failover.py
MESSAGE_CORE_S = 262e-6  # of an order event: docs/performance.md
OWN_CORES = 0.1  # scans of leases, reads and probes of a replica, whatever the load
ROOM_CORE_S = (1 - OWN_CORES) * TICK_S  # the work of a replica in a tick
STREAM_SHARDS = 16
HOT_SHARD = 0
FLOOD_COUNT, FLOOD_AT_S = 3_000_000, 21 * 3600.0  # order events of a producer that was down
FLAP_S = 1800.0  # a replica that comes within this time after one has gone
LATE_S = 60.0


class Arriving(NamedTuple):
    """The work that arrives, in cores: for each stream shard, and in the queues, which all replicas read."""

    stream_shards: Sequence[float]
    queues: float


Load = Callable[[float], Arriving]
"""Time of the day to the work that arrives."""


class DayResult(NamedTuple):
    """What a day was like. Lags are those of the stream shards that one reader can read, waits those of messages."""

    replica_hours: float
    most_replicas: int
    longest_lag_s: float
    longest_wait_s: float
    late_minutes: float
    changes: int
    flaps: int
    moves: int


def usual_day(seed: int = 1) -> Load:
    """Return the load of a day.

    Nights and days, two rushes, an import at 02:00, a hot stream shard at 15:00, and a flood of order events at 21:00.
    """
    draws = random.Random(seed)
    weights = [draws.lognormvariate(0, 0.5) for _ in range(STREAM_SHARDS)]
    shares = [weight / sum(weights) for weight in weights]
    noise = [draws.uniform(0.9, 1.1) for _ in range(int(DAY_S / 60) + 1)]

    def load(at_s: float) -> Arriving:
        hour = at_s / 3600
        total = 2.0 - 1.5 * math.cos((hour - 3) / 24 * 2 * math.pi)
        total += 3.0 * _rush(hour, 11.75, 1.0) + 4.0 * _rush(hour, 18.0, 1.5) + 6.0 * _rush(hour, 2.0, 0.5)
        total *= noise[int(at_s / 60)]
        hot = 1.5 * _rush(hour, 15.0, 0.5)
        messages = 200 + (FLOOD_COUNT / TICK_S if at_s == FLOOD_AT_S else 0)
        stream_shards = [total * share + (hot if shard == HOT_SHARD else 0.0) for shard, share in enumerate(shares)]
        return Arriving(stream_shards, messages * MESSAGE_CORE_S)

    return load


def _rush(hour: float, begin: float, length: float) -> float:
    """Return 1 within a rush, 0 without it, with five minutes between them."""
    ramp = 1 / 12
    return max(0.0, min(1.0, (hour - begin) / ramp, (begin + length - hour) / ramp))


class Fleet:
    """Stream shards with their backlogs, the replicas that own them, and the queues, which belong to all."""

    def __init__(self, replicas: int) -> None:
        self.moves = 0
        self._owners = [shard % replicas for shard in range(STREAM_SHARDS)]
        self._replicas = replicas
        self._backlog: list[deque[list[float]]] = [deque() for _ in range(STREAM_SHARDS)]  # [arrived at, cores * s]
        self._messages: deque[list[float]] = deque()  # as above
        self._rates = [0.0] * STREAM_SHARDS
        self._moved = [False] * STREAM_SHARDS

    def __repr__(self) -> str:
        return f"Fleet({self._replicas}, owners={self._owners})"

    def resize(self, replicas: int) -> None:
        """Give the leases of replicas that go to those that have the least; new ones get theirs by `balance`."""
        self._replicas = replicas
        for shard, owner in enumerate(self._owners):
            if owner >= replicas:
                self._move(shard, min(range(replicas), key=self._loads().__getitem__))

    def balance(self) -> None:
        """Move leases from the replica with the most load to the one with the least, while that helps."""
        for _ in range(self._replicas):
            loads = self._loads()
            mean = sum(loads) / len(loads)
            fullest, emptiest = (
                max(range(len(loads)), key=loads.__getitem__),
                min(range(len(loads)), key=loads.__getitem__),
            )
            room = loads[fullest] - loads[emptiest]
            movable = [
                shard for shard, owner in enumerate(self._owners) if owner == fullest and 0 < self._load(shard) < room
            ]
            if loads[fullest] <= 1.1 * mean or loads[emptiest] >= 0.9 * mean or not movable:
                return
            self._move(min(movable, key=lambda shard: abs(self._load(shard) - room / 2)), emptiest)

    def _load(self, shard: int) -> float:
        return self._rates[shard] + 0.001  # an idle stream shard counts a little

    def _loads(self) -> list[float]:
        loads = [0.0] * self._replicas
        for shard, owner in enumerate(self._owners):
            if owner < self._replicas:
                loads[owner] += self._load(shard)
        return loads

    def _move(self, shard: int, owner: int) -> None:
        self._owners[shard] = owner
        self._moved[shard] = True
        self.moves += 1

    def work(self, arriving: Arriving, now_s: float) -> Signals:
        """Work for a tick; return what is seen of the fleet then."""
        for shard, rate in enumerate(arriving.stream_shards):
            self._backlog[shard].append([now_s, rate * TICK_S])
        self._messages.append([now_s, arriving.queues * TICK_S])
        part = _work_in(self._messages) / self._replicas
        done = [
            self._serve([shard for shard, owner in enumerate(self._owners) if owner == replica], part)
            for replica in range(self._replicas)
        ]
        # A replica that has room receives what is left.
        done = [one + _take(self._messages, ROOM_CORE_S - one) for one in done]
        self._moved = [False] * STREAM_SHARDS
        lags_s = [self._age(parts, now_s) for parts in self._backlog]
        cores = sum(OWN_CORES + one / TICK_S for one in done)
        return Signals(lags_s, cores, _work_in(self._messages) / MESSAGE_CORE_S)

    def wait_s(self, now_s: float) -> float:
        """Return how long the oldest message has waited."""
        return self._age(self._messages, now_s)

    @staticmethod
    def _age(parts: deque[list[float]], now_s: float) -> float:
        return now_s - parts[0][0] if parts else 0.0

    def _serve(self, shards: Sequence[int], messages: float) -> float:
        """Let one replica work on *shards* and on so much of the queues' work; return the work done.

        Each gets as much as the others while it has work.
        """
        done = 0.0
        work: dict[int | None, float] = {shard: _work_in(self._backlog[shard]) for shard in shards}
        work[None] = messages
        for count, shard in enumerate(sorted(work, key=lambda one: work[one])):
            part = (ROOM_CORE_S - done) / (len(work) - count)
            if shard is None:
                done += _take(self._messages, min(part, messages))
                continue
            if self._moved[shard]:
                part = min(part, ROOM_CORE_S * (1 - HANDOVER_S / TICK_S))
            served = _take(self._backlog[shard], part)
            self._rates[shard] += (served / TICK_S - self._rates[shard]) / CPU_TICKS
            done += served
        return done


def _work_in(parts: deque[list[float]]) -> float:
    return sum(work for _, work in parts)


def _take(parts: deque[list[float]], room: float) -> float:
    """Take work from the oldest *parts*, *room* at most; return how much."""
    taken = 0.0
    while parts and room - taken > 1e-9:
        served = min(parts[0][1], room - taken)
        parts[0][1] -= served
        taken += served
        if parts[0][1] <= 1e-9:
            parts.popleft()
    return taken


def simulate_day(scaler: Autoscaler, load: Load) -> DayResult:
    """Return what a day with *load* is like when *scaler* sets the number of replicas."""
    fleet = Fleet(scaler.replicas)
    seen: deque[Signals] = deque(maxlen=SEEN_AFTER_TICKS)
    cores: deque[float] = deque(maxlen=CPU_TICKS)
    counts, lags, waits = [scaler.replicas], [], []
    for tick in range(int(DAY_S / TICK_S)):
        now_s = tick * TICK_S
        # Replicas that come have leases after START_TICKS; those that go stop at once.
        running = min(counts[-START_TICKS - 1 :])
        fleet.resize(running)
        fleet.balance()
        signals = fleet.work(load(now_s), now_s)
        cores.append(signals.cores)
        lags.append(max(lag for shard, lag in enumerate(signals.lags_s) if shard != HOT_SHARD))
        waits.append(fleet.wait_s(now_s))
        seen.append(signals._replace(cores=sum(cores) / len(cores)))
        counts.append(scaler.follow(seen[0], now_s))
    return DayResult(
        replica_hours=sum(counts[1:]) * TICK_S / 3600,
        most_replicas=max(counts),
        longest_lag_s=max(lags),
        longest_wait_s=max(waits),
        late_minutes=sum(lag > LATE_S for lag in lags) * TICK_S / 60,
        changes=sum(now != before for before, now in pairwise(counts)),
        flaps=flaps_of(counts),
        moves=fleet.moves,
    )


def flaps_of(counts: Sequence[int]) -> int:
    """Return how often replicas came within FLAP_S after others had gone, of the numbers of each tick."""
    flaps, gone_at = 0, -math.inf
    for tick, (before, now) in enumerate(pairwise(counts)):
        if now < before:
            gone_at = tick * TICK_S
        elif now > before and tick * TICK_S - gone_at < FLAP_S:
            flaps += 1
            gone_at = -math.inf
    return flaps
