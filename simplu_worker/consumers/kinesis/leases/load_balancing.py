"""Which lease a replica takes from another one, so that the loads become about equal. Pure.

The load of a lease is its throughput, and a fixed part for the reads and renewals of an idle stream shard. Each replica
takes at most one lease. Replicas that see the same scan take from different owners: the lightest from the heaviest, the
next lightest from the next, so that together they do not take too much.

Why the leases come to rest: a move must lower the greater of the two loads by GAIN, so it lowers the sum of the squares
of all loads, and no sequence of moves comes back to its beginning. Loads vary, though: so they are means of minutes, an
estimate goes with its lease, and nothing is moved while all loads are within HEAVY and LIGHT of the mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation

# An idle stream shard takes 0.11 % of a core, as 20 records/s of 400 bytes do (docs/performance.md).
FIXED_KBPS: Final = 8.0
HEAVY: Final = 1.1  # of the mean: above it an owner gives leases
LIGHT: Final = 0.9  # of the mean: below it a replica takes leases, also from owners that are not heavy
GAIN: Final = 0.05  # of the mean, by which a move lowers the greater of the two loads at least


class Loads(msgspec.Struct, frozen=True):
    """The loads of the unfinished leases, and of the replicas that own some of them, in KB/s."""

    by_lease: Mapping[str, float]
    by_owner: Mapping[str, float]
    leases: Mapping[str, Sequence[str]]  # keys by owner


def measured_loads(unfinished: Mapping[str, Observation]) -> Mapping[str, float] | None:
    """Return the load of each lease; None where an owner does not measure, as a KCL does not.

    Then the numbers of leases are all that counts: two rules in one fleet would move leases back and forth. A lease
    without a measurement has the mean load of the others.
    """
    leases = [one.lease for one in unfinished.values()]
    if any(not lease.is_metered for lease in leases if lease.actual_owner is not None):
        return None
    known = [lease.throughput_kbps for lease in leases if lease.throughput_kbps is not None]
    mean = sum(known) / len(known) if known else 0.0
    return {
        lease.lease_key: FIXED_KBPS + (mean if lease.throughput_kbps is None else lease.throughput_kbps)
        for lease in leases
    }


def loads_of(unfinished: Mapping[str, Observation], by_lease: Mapping[str, float]) -> Loads:
    """Return the loads by owner, of leases with the loads *by_lease*."""
    leases: defaultdict[str, list[str]] = defaultdict(list)
    for key, one in unfinished.items():
        if one.lease.actual_owner is not None:
            leases[one.lease.actual_owner].append(key)
    return Loads(by_lease, {owner: sum(map(by_lease.__getitem__, keys)) for owner, keys in leases.items()}, leases)


def plan_move(
    loads: Loads,
    unfinished: Mapping[str, Observation],
    *,
    held: Collection[str],
    me: str,
    draw: float,
) -> Lease | None:
    """Return the lease to take now from another owner; None when none should move to this replica.

    *held* are the keys of the leases of this replica, 0 ≤ *draw* < 1.
    """
    by_owner = {owner: load for owner, load in loads.by_owner.items() if owner != me}
    mine = sum(loads.by_lease[key] for key in held if key in loads.by_lease)
    mean = (sum(by_owner.values()) + mine) / (len(by_owner) + 1)
    if mine >= mean:
        return None
    giver = _giver(by_owner, mine, mean=mean, is_new=not held, me=me, draw=draw)
    if giver is None:
        return None
    gap = by_owner[giver] - mine
    movable = [
        (load * (gap - load), key)
        for key in loads.leases[giver]
        if (load := loads.by_lease[key]) <= gap - GAIN * mean
        and key not in held
        and unfinished[key].lease.released_by != me
    ]
    return unfinished[max(movable)[1]].lease if movable else None


def _giver(
    by_owner: Mapping[str, float], mine: float, *, mean: float, is_new: bool, me: str, draw: float
) -> str | None:
    """Return the owner from which this replica takes: to each light replica another one.

    A replica without a lease is not seen by the others, which rank without it: it draws.
    """
    givers = sorted(
        (owner for owner, load in by_owner.items() if load > mean * (1.0 if mine < LIGHT * mean else HEAVY)),
        key=lambda owner: (-by_owner[owner], owner),
    )
    lighter = sum(1 for owner, load in by_owner.items() if (load, owner) < (mine, me))
    place = int(draw * len(givers)) if is_new else lighter
    return givers[place] if place < len(givers) else None
