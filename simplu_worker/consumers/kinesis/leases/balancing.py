"""Which leases a replica takes, so that all are held and the shares are even. Pure.

As the Kinesis Client Library's DynamoDBLeaseTaker: first the leases that no replica holds, up to an even share; if
there are none, one lease of an owner that has too much. Where all owners measure, a share is one of the load
(`load_balancing`); else it is one of the leases, and the counts differ by at most one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from simplu_worker.consumers.kinesis.leases.ability import Reach
from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, takeable_leases
from simplu_worker.consumers.kinesis.leases.load_balancing import (
    loads_of,
    measured_loads,
    plan_move,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END

ROUNDING: Final = 1e-6  # of sums of loads
UNTAKEN_DURATIONS: Final = 2  # without a reader, so that no replica that can work takes it
VERY_OLD_DURATIONS: Final = 3  # lease durations without renewal: then taken beyond the even share, too (KCL)


def plan_takes(
    observations: Mapping[str, Observation],
    *,
    held: Collection[str],
    now: float,
    lease_duration_s: float,
    me: str,
    draw: float,
    reach: Reach = Reach.ALL,
) -> list[Lease]:
    """Return the leases to try to take now; *held* are the keys of the leases of this replica, 0 ≤ *draw* < 1.

    Finished leases count for no replica. Different draws make replicas that start together try different leases first.
    """
    unfinished = {key: one for key, one in observations.items() if one.lease.checkpoint != SHARD_END}
    free = takeable_leases(unfinished, held=held, now=now, lease_duration_s=lease_duration_s, me=me)
    unchanged_s = {key: now - one.unchanged_since for key, one in unfinished.items()}
    if reach is Reach.LEFT:
        return [lease for lease in free if unchanged_s[lease.lease_key] > UNTAKEN_DURATIONS * lease_duration_s]
    if reach is Reach.FREE:
        free = [one for one in free if not one.is_given_away or unchanged_s[one.lease_key] > lease_duration_s]
    measured = measured_loads(unfinished)
    if free:
        by_lease = dict.fromkeys(unfinished, 1.0) if measured is None else measured
        urgent = {
            lease.lease_key
            for lease in free
            if lease.is_offered
            or (lease.actual_owner is not None and unchanged_s[lease.lease_key] > VERY_OLD_DURATIONS * lease_duration_s)
        }
        free_keys = {lease.lease_key for lease in free}
        others = {one.lease.actual_owner for key, one in unfinished.items() if key not in free_keys and key not in held}
        share = sum(by_lease.values()) / (len(others - {None}) + 1)
        mine = sum(by_lease[key] for key in held if key in unfinished)
        return _plan_free(_rotated(free, draw), by_lease, room=share - mine, urgent=urgent)
    if reach is Reach.FREE:
        return []
    if measured is None:
        return _plan_steal(unfinished, held=held, me=me, draw=draw)
    move = plan_move(loads_of(unfinished, measured), unfinished, held=held, me=me, draw=draw)
    return [] if move is None else [move]


def next_expiry(
    observations: Mapping[str, Observation], *, held: Collection[str], lease_duration_s: float
) -> float | None:
    """Return when the first lease of another owner expires unless it is renewed; None when others hold no lease."""
    return min(
        (
            one.unchanged_since + lease_duration_s
            for key, one in observations.items()
            if key not in held and one.lease.actual_owner is not None and one.lease.checkpoint != SHARD_END
        ),
        default=None,
    )


def _plan_free(
    free: Iterable[Lease], by_lease: Mapping[str, float], *, room: float, urgent: Collection[str]
) -> list[Lease]:
    """Return the *free* leases to take: the urgent ones, and others until the share is full, so that all are taken."""
    wanted: list[Lease] = []
    for lease in free:
        if room > ROUNDING or lease.lease_key in urgent:
            wanted.append(lease)
        room -= by_lease[lease.lease_key]
    return wanted


def _plan_steal(unfinished: Mapping[str, Observation], *, held: Collection[str], me: str, draw: float) -> list[Lease]:
    """Return one lease of the fullest owner when it has at least two more than this replica."""
    counts = Counter(
        one.lease.actual_owner for key, one in unfinished.items() if key not in held and one.lease.actual_owner
    )
    mine = sum(1 for key in held if key in unfinished)
    if not counts:
        return []
    fullest, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
    if count < mine + 2:
        return []
    victims = [
        one.lease
        for key, one in sorted(unfinished.items())
        if one.lease.actual_owner == fullest and key not in held and one.lease.released_by != me
    ]
    return [victims[int(draw * len(victims))]] if victims else []


def _rotated(leases: list[Lease], draw: float) -> list[Lease]:
    start = int(draw * len(leases))
    return leases[start:] + leases[:start]
