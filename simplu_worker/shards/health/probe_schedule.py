"""When to probe which shard: healthy ones every ten seconds, failing ones every second. Pure.

Both have a limit of probes per second; with more shards than that allows, each is probed less often.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Final

import msgspec

from simplu_worker.timing.backoff import jittered

INTERVAL_S: Final = 10.0
FAILING_INTERVAL_S: Final = 1.0  # so that a recovered shard is noticed within 2 s
JITTER: Final = 0.25  # of the interval, to either side: replicas do not probe in step
IN_FLIGHT: Final = 0  # never a number in the heap


class Pace(msgspec.Struct, frozen=True):
    """How often a shard is probed: every *interval_s*, but never more than *probes_per_second* shards."""

    interval_s: float
    probes_per_second: float

    def between_s(self, count: int) -> float:
        """Return the time between two probes of each of *count* shards."""
        return max(self.interval_s, count / self.probes_per_second)


# Of each replica: one server may have hundreds of the shards.
HEALTHY_PACE: Final = Pace(INTERVAL_S, probes_per_second=5.0)
FAILING_PACE: Final = Pace(FAILING_INTERVAL_S, probes_per_second=20.0)


class ProbeSchedule:
    """The schedule of probes. A shard returned by `take_due` is not due again before `reschedule`.

    *draw* in what follows is a random number from 0 to 1.
    """

    def __init__(self, *, healthy_pace: Pace = HEALTHY_PACE, failing_pace: Pace = FAILING_PACE) -> None:
        self._healthy_pace = healthy_pace
        self._failing_pace = failing_pace
        self._due: list[tuple[float, int, str]] = []  # a heap; an entry with an old number is superseded
        self._number: dict[str, int] = {}
        self._numbers = 0
        self._failing_ids: set[str] = set()

    def __repr__(self) -> str:
        return f"ProbeSchedule(shards={len(self._number)}, failing={len(self._failing_ids)}, due={self._due[:1]})"

    @property
    def shard_ids(self) -> Collection[str]:
        """The shards that are probed."""
        return self._number.keys()

    def add(self, shard_id: str, *, now: float, draw: float) -> None:
        """Add a shard; its first probe is within a second, or within one round of many shards."""
        self._put(shard_id, now + draw * max(1.0, (len(self._number) + 1) / self._healthy_pace.probes_per_second))

    def remove(self, shard_id: str) -> None:
        """Remove a shard."""
        self._number.pop(shard_id, None)
        self._failing_ids.discard(shard_id)

    def take_due(self, now: float) -> list[str]:
        """Return the shards to probe now, longest due first."""
        due: list[str] = []
        while self._due and self._due[0][0] <= now:
            _, number, shard_id = heapq.heappop(self._due)
            if self._number.get(shard_id) == number:
                self._number[shard_id] = IN_FLIGHT
                due.append(shard_id)
        return due

    def reschedule(self, shard_id: str, *, fails: bool, now: float, draw: float) -> None:
        """Schedule the next probe of a shard, unless the shard was removed during the last one."""
        if shard_id not in self._number:
            return
        (self._failing_ids.add if fails else self._failing_ids.discard)(shard_id)
        failing_count = len(self._failing_ids)
        between_s = (
            self._failing_pace.between_s(failing_count)
            if fails
            else self._healthy_pace.between_s(len(self._number) - failing_count)
        )
        self._put(shard_id, now + jittered(between_s, ratio=JITTER, draw=draw))

    def bring_forward(self, shard_id: str, *, now: float) -> None:
        """Make a shard due at once: its last probe succeeded, and a use has failed since."""
        if self._number.get(shard_id, IN_FLIGHT) != IN_FLIGHT and shard_id not in self._failing_ids:
            self._failing_ids.add(shard_id)
            self._put(shard_id, now)

    def wait_s(self, now: float, *, at_most: float) -> float:
        """Return the time until the next shard is due, in seconds."""
        return min(at_most, max(0.0, self._due[0][0] - now)) if self._due else at_most

    def _put(self, shard_id: str, at: float) -> None:
        self._numbers += 1
        self._number[shard_id] = self._numbers
        heapq.heappush(self._due, (at, self._numbers, shard_id))
