"""Which leases a replica takes, so that all are held and the counts differ by at most one. Pure.

As the Kinesis Client Library's DynamoDBLeaseTaker: first the leases that no replica holds, up to an even share; if
there are none, one lease from the fullest owner. Each replica decides alone, from one scan; of two that decide for the
same lease, the conditional write lets one win.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, takeable_leases
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END

VERY_OLD_DURATIONS: Final = 3  # lease durations without renewal: then taken beyond the even share, too (KCL)


def plan_takes(
    observations: Mapping[str, Observation],
    *,
    held: Collection[str],
    now: float,
    lease_duration_s: float,
    me: str,
    draw: float,
) -> list[Lease]:
    """Return the leases to try to take now; *held* are the keys of the leases of this replica, 0 ≤ *draw* < 1.

    Finished leases count for no replica. Different draws make replicas that start together try different leases first.
    """
    unfinished = {key: one for key, one in observations.items() if one.lease.checkpoint != SHARD_END}
    free = takeable_leases(unfinished, held=held, now=now, lease_duration_s=lease_duration_s, me=me)
    free_keys = {lease.lease_key for lease in free}
    counts = Counter(
        one.lease.actual_owner
        for key, one in unfinished.items()
        if key not in free_keys and key not in held and one.lease.actual_owner
    )
    mine = sum(1 for key in held if key in unfinished)
    if free:
        share = -(-len(unfinished) // (len(counts) + 1))  # rounded up: the shares of all cover all
        very_old = {
            lease.lease_key
            for lease in free
            if lease.actual_owner is not None
            and now - unfinished[lease.lease_key].unchanged_since > VERY_OLD_DURATIONS * lease_duration_s
        }
        rotated = _rotated(free, draw)
        count = max(share - mine, 0)
        return rotated[:count] + [lease for lease in rotated[count:] if lease.lease_key in very_old]
    return _plan_steal(unfinished, counts, held=held, mine=mine, draw=draw)


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


def _plan_steal(
    unfinished: Mapping[str, Observation],
    counts: Counter[str],
    *,
    held: Collection[str],
    mine: int,
    draw: float,
) -> list[Lease]:
    """Return one lease of the fullest owner when it has at least two more than this replica."""
    if not counts:
        return []
    fullest, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
    if count < mine + 2:
        return []
    victims = [
        one.lease for key, one in sorted(unfinished.items()) if one.lease.actual_owner == fullest and key not in held
    ]
    return [victims[int(draw * len(victims))]]


def _rotated(leases: list[Lease], draw: float) -> list[Lease]:
    start = int(draw * len(leases))
    return leases[start:] + leases[:start]
