"""The rules of a horizontal autoscaler with the triggers of the chart. Pure.

The autoscaler is that of Kubernetes: for a metric of type AverageValue it asks for the sum over the target, the metric
that asks for the most wins, a difference of a tenth is none, and `behavior` limits how fast it follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


class Signals(NamedTuple):
    """What Prometheus has of the fleet: the lag of each stream shard, the cores in use by all, messages that wait."""

    lags_s: Sequence[float]
    cores: float
    message_count: float = 0.0


Trigger = Callable[[Signals], float]
"""The replicas that a metric asks for: its sum over its target."""


class Behavior(NamedTuple):
    """How fast the number of replicas follows: `behavior` of the autoscaler, with its bounds."""

    least: int
    most: int
    down_after_s: float
    up_percent: int = 100
    up_count: int = 4
    down_count: int = 1
    period_s: float = 60.0


class Change(NamedTuple):
    """The number of replicas from a time on."""

    at_s: float
    replicas: int


def late_stream_shards(late_after_s: float) -> Trigger:
    """Return the trigger that counts each stream shard as its lag over *late_after_s*, at most 1."""
    return lambda signals: sum(min(lag_s / late_after_s, 1) for lag_s in signals.lags_s)


def oldest_lag(target_s: float) -> Trigger:
    """Return the trigger that asks for the greatest lag over *target_s*."""
    return lambda signals: max(signals.lags_s, default=0) / target_s


def waiting_messages(messages_per_replica: float) -> Trigger:
    """Return the trigger that asks for the waiting messages of all queues over *messages_per_replica*."""
    return lambda signals: signals.message_count / messages_per_replica


def processor_time(cores_per_replica: float) -> Trigger:
    """Return the trigger that asks for the cores in use over *cores_per_replica*."""
    return lambda signals: signals.cores / cores_per_replica


def asked_replicas(signals: Signals, triggers: Mapping[str, Trigger], replicas: int) -> int:
    """Return the replicas that *triggers* ask for, the greatest number of all, where there are *replicas* now."""
    asked = 0
    for trigger in triggers.values():
        wanted = trigger(signals)
        is_near = replicas > 0 and abs(wanted / replicas - 1) <= TOLERANCE
        asked = max(asked, replicas if is_near else math.ceil(wanted))
    return asked


class Autoscaler:
    """The number of replicas, and what it was before, as far as *behavior* looks back."""

    def __init__(self, triggers: Mapping[str, Trigger], behavior: Behavior) -> None:
        self.replicas = behavior.least
        self._triggers = triggers
        self._behavior = behavior
        self._asked: list[Change] = []
        self._changes = [Change(-math.inf, behavior.least)]

    def __repr__(self) -> str:
        return f"Autoscaler({self.replicas}, asked={self._asked})"

    def follow(self, signals: Signals, now_s: float) -> int:
        """Return the number of replicas from *now_s* on."""
        behavior = self._behavior
        asked = asked_replicas(signals, self._triggers, self.replicas)
        self._asked = [one for one in self._asked if one.at_s > now_s - behavior.down_after_s]
        self._asked.append(Change(now_s, min(max(asked, behavior.least), behavior.most)))
        # The window holds replicas back from going, never from coming.
        wanted = self._asked[-1].replicas
        if wanted < self.replicas:
            wanted = min(self.replicas, max(one.replicas for one in self._asked))
        self._step(wanted, now_s)
        return self.replicas

    def _step(self, wanted: int, now_s: float) -> None:
        behavior = self._behavior
        # The number at the beginning of the period: rates are counted from there.
        recent = [one for one in self._changes if one.at_s > now_s - behavior.period_s]
        before = [one for one in self._changes if one.at_s <= now_s - behavior.period_s][-1]
        numbers = [before.replicas, *(one.replicas for one in recent)]
        lowest, highest = min(numbers), max(numbers)
        up_to = max(math.ceil(lowest * (1 + behavior.up_percent / 100)), lowest + behavior.up_count)
        down_to = highest - behavior.down_count
        replicas = min(wanted, up_to) if wanted > self.replicas else max(wanted, min(down_to, self.replicas))
        if replicas != self.replicas:
            self.replicas = replicas
            self._changes = [before, *recent, Change(now_s, replicas)]
