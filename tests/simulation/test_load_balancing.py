"""A large fleet that balances the load of its stream shards, in virtual time: how even it gets, and how much it moves.

The rules are the worker's own; scans and takes happen in rounds, in which all replicas decide from the same scan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from simplu_worker.consumers.kinesis.leases.lease import TIME_CONSTANT_S, Lease, Meter, Observation, observe
from simplu_worker.consumers.kinesis.leases.lease_rules import FIXED_KBPS, loads_of, plan_move
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON

STREAM_SHARDS = 1000
REPLICAS = 50
ROUND_S = 4.0
BURST_S = 2.0  # the throughput over such a time is exponentially distributed
HOUR_S = 3600.0
SPREAD_MAX = 1.2


class Fleet:
    """Replicas, their leases, and the throughput of each stream shard; *skew* draws its mean in KB/s."""

    def __init__(self, skew: Callable[[Random], float], *, seed: int = 1) -> None:
        self._draws = Random(seed)
        self.now = 0.0
        self.means = [skew(self._draws) for _ in range(STREAM_SHARDS)]
        self._phases = [self._draws.uniform(0, 2 * math.pi) for _ in range(STREAM_SHARDS)]
        self._meters = [Meter(time_constant_s=TIME_CONSTANT_S, now=0.0) for _ in range(STREAM_SHARDS)]
        self._kilobytes = [0.0] * STREAM_SHARDS
        self.owners = [f"replica-{number % REPLICAS:02}" for number in range(STREAM_SHARDS)]
        self.replicas = sorted(set(self.owners))
        self._observations: dict[str, Observation] = {}
        self._counter = 0
        self.moves: list[tuple[float, int, str, str]] = []
        self._measure()

    def rate(self, number: int) -> float:
        """Return the throughput of a stream shard over some minutes: it swings by a third within the hour."""
        return self.means[number] * (1 + 0.33 * math.sin(self._phases[number] + 2 * math.pi * self.now / HOUR_S))

    def _measure(self) -> None:
        self.now += ROUND_S
        for number, meter in enumerate(self._meters):
            burst = self._draws.gammavariate(ROUND_S / BURST_S, BURST_S / ROUND_S)
            self._kilobytes[number] += self.rate(number) * burst * ROUND_S
            meter.note(self._kilobytes[number], now=self.now)

    def run(self, for_s: float) -> None:
        until = self.now + for_s
        while self.now < until:
            self._measure()
            self._counter += 1
            leases = [
                Lease(
                    str(number),
                    TRIM_HORIZON,
                    counter=self._counter,
                    owner=owner,
                    throughput_kbps=self._meters[number].per_s,
                    metered_by=owner,
                )
                for number, owner in enumerate(self.owners)
            ]
            self._observations = observe(self._observations, leases, now=self.now)
            self._move()

    def _move(self) -> None:
        loads = loads_of(self._observations)
        held: dict[str, list[str]] = {}
        for key, one in self._observations.items():
            held.setdefault(one.lease.owner or "", []).append(key)
        taken: set[str] = set()
        for me in self._draws.sample(self.replicas, len(self.replicas)):
            move = plan_move(loads, self._observations, held=held.get(me, ()), me=me, draw=self._draws.random())
            if move is not None and move.lease_key not in taken:  # else another one was faster
                taken.add(move.lease_key)
                number = int(move.lease_key)
                self.moves.append((self.now, number, self.owners[number], me))
                self.owners[number] = me

    def add(self, count: int) -> None:
        self.replicas += [f"replica-{len(self.replicas) + number:02}" for number in range(count)]

    def spread(self) -> float:
        """Return the greatest load over the mean, of replicas with more than one lease: one alone cannot be divided."""
        loads, counts = dict.fromkeys(self.replicas, 0.0), Counter(self.owners)
        for number, owner in enumerate(self.owners):
            loads[owner] += FIXED_KBPS + self.rate(number)
        most = max(load for owner, load in loads.items() if counts[owner] > 1)
        return most / (sum(loads.values()) / len(loads))

    def moves_since(self, instant: float) -> int:
        return sum(1 for move in self.moves if move[0] >= instant)


SKEWS: dict[str, tuple[Callable[[Random], float], float]] = {  # KB/s of a stream shard; the spread that they permit
    "lognormal": (lambda draws: min(draws.lognormvariate(3, 1.2), 1000), SPREAD_MAX),
    "a tenth is busy": (lambda draws: 500.0 if draws.random() < 0.1 else 5.0, 1.25),  # one is 0.4 of a share
}
SETTLES_S = 600.0
LOOKS = 6
MOVES_AN_HOUR_MAX = 1500
MOVES_OF_ONE_MAX = 8  # in an hour


@pytest.mark.slow(4)
@pytest.mark.parametrize("skew", SKEWS)
def test_load_of_a_large_fleet_becomes_even_and_stays_so_with_few_moves(
    skew: str, record_property: Callable[[str, object], None]
) -> None:
    draw_mean, permitted = SKEWS[skew]
    fleet = Fleet(draw_mean)
    at_first = fleet.spread()
    fleet.run(SETTLES_S)
    settled_at, spreads = fleet.now, []
    for _ in range(LOOKS):
        fleet.run(HOUR_S / LOOKS)
        spreads.append(fleet.spread())
    moves = fleet.moves_since(settled_at)
    of_one = Counter(move[1] for move in fleet.moves if move[0] >= settled_at)
    record_property(
        "note", f"load, {skew}: spread {at_first:.2f} at first, then at most {max(spreads):.2f}, {moves} moves an hour"
    )

    assert max(spreads) <= permitted
    assert moves <= MOVES_AN_HOUR_MAX
    assert max(of_one.values(), default=0) <= MOVES_OF_ONE_MAX


def test_idle_fleet_moves_nothing() -> None:
    fleet = Fleet(lambda _: 0.0)
    fleet.run(60)

    assert fleet.moves == []


@pytest.mark.slow(1)
def test_stream_shard_that_becomes_busy_is_left_alone_and_its_neighbours_move() -> None:
    fleet = Fleet(lambda _: 50.0)
    fleet.run(30)
    fleet.means[7] = 1000.0
    begun_at = fleet.now
    fleet.run(SETTLES_S)
    hot = [move for move in fleet.moves if move[1] == 7]

    assert fleet.spread() <= SPREAD_MAX
    assert hot == []
    assert 5 <= fleet.moves_since(begun_at) <= 60
