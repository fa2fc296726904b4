"""Does a catch-up ever end while the main reader goes on? Why the pipelines of a reader share the lanes of its shards.

A catch-up may end where it meets the main reader. With lanes of its own it has to wait there until its lanes are empty
as well: the operations that the main reader sends next would else overtake them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

BEHIND_MAX = 2
IN_FLIGHT_MAX = 2
KINDS = {"main dispatches", "catch-up reads", "batch is committed"}


class Progress(NamedTuple):
    behind: int  # replies of the stream that the main reader has dispatched and the catch-up has not
    in_flight: int  # batches of the catch-up


CanMerge = Callable[[Progress], bool]


def shared_lanes(progress: Progress) -> bool:
    """Return whether a catch-up may end that has no lanes of its own: its operations stay before the next ones."""
    return not progress.behind


def own_lanes(progress: Progress) -> bool:
    return not progress.behind and not progress.in_flight


def fair_cycle(can_merge: CanMerge) -> frozenset[Progress]:
    """Return states among which a catch-up may go round for ever though every kind of step comes again and again.

    It also reaches the main reader again and again, and may end in none of the states. Empty: there is no such cycle.
    """
    every = (Progress(*counts) for counts in product(range(BEHIND_MAX + 1), range(IN_FLIGHT_MAX + 1)))
    open_ended = [one for one in every if not can_merge(one)]
    reachable = {start: _reachable(start, can_merge) for start in open_ended}
    for start in open_ended:
        round_trip = frozenset(one for one in reachable[start] if start in reachable[one])
        kinds = {kind for one in round_trip for kind, following in _steps(one) if following in round_trip}
        if kinds == KINDS and any(not one.behind for one in round_trip):
            return round_trip
    return frozenset()


def _steps(progress: Progress) -> Iterator[tuple[str, Progress]]:
    behind, in_flight = progress
    if behind < BEHIND_MAX:
        yield "main dispatches", Progress(behind + 1, in_flight)
    if behind and in_flight < IN_FLIGHT_MAX:
        yield "catch-up reads", Progress(behind - 1, in_flight + 1)
    if in_flight:
        yield "batch is committed", Progress(behind, in_flight - 1)


def _reachable(start: Progress, can_merge: CanMerge) -> set[Progress]:
    found, waiting = set[Progress](), [start]
    while waiting:
        for _, following in _steps(waiting.pop()):
            if following not in found and not can_merge(following):
                found.add(following)
                waiting.append(following)
    return found
