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
OWN_CORES = 0.1  # scans of leases, reads and probes of a replica, whatever the load
STREAM_SHARDS = 16
HOT_SHARD = 0
FLAP_S = 1800.0  # a replica that comes within this time after one has gone
LATE_S = 60.0

Load = Callable[[float], Sequence[float]]
"""Time of the day to the work that arrives for each stream shard, in cores."""


class DayResult(NamedTuple):
    """What a day was like. Lags are those of the stream shards that one reader can read."""

    replica_hours: float
    most_replicas: int
    longest_lag_s: float
    late_minutes: float
    changes: int
    flaps: int
    moves: int


def usual_day(seed: int = 1) -> Load:
    """Return the load of a day: nights and days, two rushes, an import at 02:00, and a hot stream shard at 15:00."""
    draws = random.Random(seed)
    weights = [draws.lognormvariate(0, 0.5) for _ in range(STREAM_SHARDS)]
    shares = [weight / sum(weights) for weight in weights]
    noise = [draws.uniform(0.9, 1.1) for _ in range(int(DAY_S / 60) + 1)]

    def load(at_s: float) -> Sequence[float]:
        hour = at_s / 3600
        total = 2.0 - 1.5 * math.cos((hour - 3) / 24 * 2 * math.pi)
        total += 3.0 * _rush(hour, 11.75, 1.0) + 4.0 * _rush(hour, 18.0, 1.5) + 6.0 * _rush(hour, 2.0, 0.5)
        total *= noise[int(at_s / 60)]
        hot = 1.5 * _rush(hour, 15.0, 0.5)
        return [total * share + (hot if shard == HOT_SHARD else 0.0) for shard, share in enumerate(shares)]

    return load


def _rush(hour: float, begin: float, length: float) -> float:
    """Return 1 within a rush, 0 without it, with five minutes between them."""
    ramp = 1 / 12
    return max(0.0, min(1.0, (hour - begin) / ramp, (begin + length - hour) / ramp))


class Fleet:
    """Stream shards with their backlogs, and the replicas that own them."""

    def __init__(self, replicas: int) -> None:
        self.moves = 0
        self._owners = [shard % replicas for shard in range(STREAM_SHARDS)]
        self._replicas = replicas
        self._backlog: list[deque[list[float]]] = [deque() for _ in range(STREAM_SHARDS)]  # [arrived at, cores * s]
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

    def work(self, arriving: Sequence[float], now_s: float) -> tuple[list[float], float]:
        """Work for a tick; return the lag of each stream shard, in seconds, and the cores in use."""
        for shard, rate in enumerate(arriving):
            self._backlog[shard].append([now_s, rate * TICK_S])
        used = 0.0
        for replica in range(self._replicas):
            used += OWN_CORES + self._serve([s for s, owner in enumerate(self._owners) if owner == replica]) / TICK_S
        self._moved = [False] * STREAM_SHARDS
        end_s = now_s + TICK_S
        return [end_s - TICK_S - parts[0][0] if parts else 0.0 for parts in self._backlog], used

    def _serve(self, shards: Sequence[int]) -> float:
        """Let one replica work on *shards*, each as much as the others while it has work; return the work done."""
        room = (1 - OWN_CORES) * TICK_S
        done = 0.0
        waiting = sorted(shards, key=lambda shard: sum(work for _, work in self._backlog[shard]))
        for count, shard in enumerate(waiting):
            part = (room - done) / (len(waiting) - count)
            if self._moved[shard]:
                part = min(part, room * (1 - HANDOVER_S / TICK_S))
            served = _take(self._backlog[shard], part)
            self._rates[shard] += (served / TICK_S - self._rates[shard]) / CPU_TICKS
            done += served
        return done


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
    counts, lags = [scaler.replicas], []
    for tick in range(int(DAY_S / TICK_S)):
        now_s = tick * TICK_S
        # Replicas that come have leases after START_TICKS; those that go stop at once.
        running = min(counts[-START_TICKS - 1 :])
        fleet.resize(running)
        fleet.balance()
        lags_s, used = fleet.work(load(now_s), now_s)
        cores.append(used)
        lags.append(max(lag for shard, lag in enumerate(lags_s) if shard != HOT_SHARD))
        seen.append(Signals(lags_s, sum(cores) / len(cores)))
        counts.append(scaler.follow(seen[0], now_s))
    return DayResult(
        replica_hours=sum(counts[1:]) * TICK_S / 3600,
        most_replicas=max(counts),
        longest_lag_s=max(lags),
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
