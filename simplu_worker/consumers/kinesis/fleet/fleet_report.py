"""The replicas of a fleet as their leases show them: leases, lag and rate of each. Pure.

A replica is known by the rows of its leases alone, so one without a lease is not seen by the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END


class OwnReader(msgspec.Struct, frozen=True):
    """The reader of a lease of this replica as it is now, which the row shows some seconds later."""

    lag_s: float | None
    held_count: int
    renewal_age_s: float


def fleet_report(
    observations: Mapping[str, Observation],
    states: Mapping[str, str],
    own: Mapping[str, OwnReader],
    *,
    me: str,
    version: str,
    now: float,
) -> dict[str, Any]:
    """Return the stream shards and the replicas of the fleet, this one (*me*) first.

    *states* are those of the leases for people, *own* the readers of this replica, both by lease key; *now* is
    monotonic.
    """
    rows = [
        _stream_shard(one.lease, states.get(key, "elsewhere"), own.get(key), seen_s=now - one.unchanged_since)
        for key, one in sorted(observations.items())
    ]
    versions = {one.lease.report.by: one.lease.report.version for one in observations.values() if one.lease.report}
    return {
        "replicas": _replicas(rows, versions | {me: version}, me),
        "streamShards": rows,
        "counts": {
            "replicas": len({me, *(row["owner"] for row in rows if row["owner"] is not None)}),
            "leases": sum(row["owner"] is not None for row in rows),
            "unowned": sum(row["owner"] is None and row["state"] != "ended" for row in rows),
            "ended": sum(row["state"] == "ended" for row in rows),
        },
    }


def lone_report(me: str, version: str) -> dict[str, Any]:
    """Return the report of a replica that reads no stream."""
    return fleet_report({}, {}, {}, me=me, version=version, now=0.0)


def _stream_shard(lease: Lease, state: str, own: OwnReader | None, *, seen_s: float) -> dict[str, Any]:
    report, is_ended = lease.report, lease.checkpoint == SHARD_END
    owner = None if is_ended else lease.actual_owner
    lag_s = None if report is None else report.lag_s
    held_count = None if report is None else report.held_count
    if own is not None:
        lag_s, held_count, seen_s = own.lag_s, own.held_count, own.renewal_age_s
    is_measured = owner is not None and lease.is_metered
    return {
        "streamShard": lease.lease_key,
        "owner": owner,
        "state": "ended" if is_ended else state,
        "lagSeconds": _rounded(lag_s),
        "recordsPerSecond": None if report is None else _rounded(report.records_per_s),
        "readKBps": _rounded(lease.throughput_kbps) if is_measured else None,
        "heldTargets": held_count,
        "readUpTo": None if lease.read_up_to is None else lease.read_up_to.isoformat(timespec="milliseconds"),
        "checkpoint": lease.checkpoint.checkpoint,
        "seenSecondsAgo": _rounded(max(0.0, seen_s)),
    }


def _replicas(rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str], me: str) -> list[dict[str, Any]]:
    by_owner: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list, {me: []})
    for row in rows:
        if row["owner"] is not None:
            by_owner[row["owner"]].append(row)
    return [
        {
            "replica": owner,
            "isThis": owner == me,
            "version": versions.get(owner) or None,
            "leases": len(leases),
            "lagSeconds": max(_known(leases, "lagSeconds"), default=None),
            "recordsPerSecond": _total(leases, "recordsPerSecond"),
            "readKBps": _total(leases, "readKBps"),
            "heldTargets": _total(leases, "heldTargets"),
            "seenSecondsAgo": 0.0 if owner == me else min(_known(leases, "seenSecondsAgo"), default=None),
        }
        for owner, leases in sorted(by_owner.items(), key=lambda pair: (pair[0] != me, pair[0]))
    ]


def _known(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if row[name] is not None]


def _total(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    known = _known(rows, name)
    return _rounded(sum(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
