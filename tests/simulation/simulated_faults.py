"""What goes wrong in a simulation, counted: how often each fault struck, and how often the worker could notice."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Fault(StrEnum):
    """The kinds of faults, each with what shows that it has changed the course of its history."""

    REQUEST_LOST = "request lost"  # its sender got an error
    ANSWER_LOST = "answer lost"  # likewise
    THROTTLED = "throttled"  # likewise
    LATE = "late by seconds"  # somebody still waited
    STALE_SCAN = "stale row"  # it differs from the present one
    FALSE_END = "false end"  # the reply had an iterator
    ITERATORS_EXPIRED = "iterators expired"  # one was used
    AWAY = "service away"  # a request met that
    SLOW = "shard slow"  # somebody still waited
    FAILOVER = "failover"  # it lost transactions
    KILLED = "replica killed"  # it had a reader
    SUSPENDED = "replica suspended"  # something came due meanwhile
    RETIRED = "replica retired"  # it had a reader
    STARTED = "replica started"  # there was room
    SPLIT = "split"  # Kinesis took it
    MERGED = "merge"  # likewise
    SCALED = "scaling"  # likewise
    REGISTERED_LATE = "tenant registered late"  # one was missing
    MOVED = "tenant moved"  # to another shard
    PAUSED = "tenant paused"  # the worker asked for its shard meanwhile
    FAILS_BY_ITSELF = "operation that fails by itself"  # a batch contained it
    FOREIGN = "foreign error of a door"  # its caller got it
    DEFECT = "defect in a step of the code"  # it was raised


class FaultCounts:
    """How often each fault was *fired*, and how often it was *felt*."""

    def __init__(self) -> None:
        self.fired: Counter[Fault] = Counter()
        self.felt: Counter[Fault] = Counter()

    def __repr__(self) -> str:
        return f"FaultCounts({self.fired}, {self.felt})"

    def note(self, fault: Fault, *, is_felt: bool) -> None:
        self.fired[fault] += 1
        self.felt[fault] += is_felt

    def add(self, other: FaultCounts) -> None:
        self.fired.update(other.fired)
        self.felt.update(other.felt)
