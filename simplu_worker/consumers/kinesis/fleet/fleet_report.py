"""What the rows of the leases tell: the fleet, how far a tenant is read, and where a reader starts. Pure.

A replica is known by its leases alone, as of their last renewal. Numbers that nobody has renewed lately are None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON, TenantSet
from simplu_worker.consumers.kinesis.leases.lease import (
    HELD_MAX,
    Lease,
    LeaseReport,
    Observation,
    ReplicaFigures,
)
from simplu_worker.consumers.kinesis.leases.lease_rules import first_hole
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.shards.types import ShardPositionRows, StreamPosition
from simplu_worker.vocabulary import OTHER_REPLICA, Absence, HoldReason, StreamShardState

SILENT_S: Final = 10.0  # since the last renewal of a lease, or the lease duration where that is longer


def fleet_report(
    observations: Mapping[str, Observation],
    states: Mapping[str, str],
    me: LeaseReport,
    *,
    silent_after_s: float = SILENT_S,
    now: float,
) -> dict[str, Any]:
    """Return the stream shards and the replicas of the fleet, this one (*me*) first."""
    leases = sorted(observations.items())
    rows = [
        _stream_shard(
            one.lease,
            states.get(key, StreamShardState.ELSEWHERE),
            seen_s=now - one.unchanged_since,
            silent_after_s=silent_after_s,
        )
        for key, one in leases
    ]
    latest_last = sorted(observations.values(), key=lambda one: one.unchanged_since)
    reports = {one.lease.report.by: one.lease.report for one in latest_last if one.lease.report is not None}
    held = [one for _, lease in leases for one in _held(lease, now=now)]
    return {
        "replicas": _replicas(rows, reports | {me.by: me}, held, me.by),
        "streamShards": rows,
        "counts": {
            "replicas": len({row["owner"] for row in rows} - {None} | {me.by}),
            "leases": sum(row["owner"] is not None for row in rows),
            "unowned": sum(row["owner"] is None and row["state"] != StreamShardState.ENDED for row in rows),
            "ended": sum(row["state"] == StreamShardState.ENDED for row in rows),
        },
    }


def _stream_shard(lease: Lease, state: str, *, seen_s: float, silent_after_s: float) -> dict[str, Any]:
    is_ended = lease.checkpoint == positions.SHARD_END
    owner = None if is_ended else lease.actual_owner
    is_silent = owner is not None and seen_s > silent_after_s
    report = LeaseReport("") if lease.report is None or is_silent else lease.report
    is_measured = owner is not None and lease.is_metered and not is_silent
    return {
        "streamShard": lease.lease_key,
        "owner": owner,
        "state": StreamShardState.ENDED if is_ended else state,
        "lagSeconds": _rounded(report.lag_s),
        "recordsPerSecond": _rounded(report.records_per_s),
        "recordsRead": report.read_count,
        "readKBps": _rounded(lease.throughput_kbps) if is_measured else None,
        "heldTargets": report.held_count,
        "readUpTo": None if lease.read_up_to is None else lease.read_up_to.isoformat(timespec="milliseconds"),
        "checkpoint": lease.checkpoint.checkpoint,
        "seenSecondsAgo": _rounded(max(0.0, seen_s)),
        "isSilent": is_silent,
    }


def _held(seen: Observation, *, now: float) -> Iterator[tuple[str, dict[str, Any]]]:
    lease = seen.lease
    if lease.actual_owner is None or lease.report is None or lease.checkpoint == positions.SHARD_END:
        return
    passed_s = max(0.0, now - seen.unchanged_since)
    for one in lease.report.held:
        members = {"target": one.target, "reason": one.reason, "ageSeconds": _rounded(one.age_s + passed_s)}
        yield lease.actual_owner, {"streamShard": lease.lease_key} | members


def _replicas(
    rows: Sequence[Mapping[str, Any]],
    reports: Mapping[str, LeaseReport],
    held: Iterable[tuple[str, dict[str, Any]]],
    me: str,
) -> list[dict[str, Any]]:
    by_owner: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list, {me: []})
    for row in rows:
        if row["owner"] is not None:
            by_owner[row["owner"]].append(row)
    held_by: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for owner, target in held:
        held_by[owner].append(target)
    replicas = []
    for owner, leases in sorted(by_owner.items(), key=lambda pair: (pair[0] != me, pair[0])):
        is_silent = owner != me and all(one["isSilent"] for one in leases)
        report = reports.get(owner, LeaseReport(owner))
        figures = ReplicaFigures() if is_silent else report.figures
        replicas.append(
            {
                "replica": owner,
                "isThis": owner == me,
                "version": report.version or None,
                "unable": report.figures.unable,
                "leases": len(leases),
                "lagSeconds": max(_known(leases, "lagSeconds"), default=None),
                "recordsPerSecond": _total(leases, "recordsPerSecond"),
                "readKBps": _total(leases, "readKBps"),
                "latencyP99Seconds": _rounded(figures.latency_p99_s),
                "deadLetters": figures.dead_letter_count,
                "heldTargets": _total(leases, "heldTargets"),
                "held": sorted(held_by[owner], key=lambda one: -one["ageSeconds"])[:HELD_MAX],
                "topBusinesses": [
                    {"shardId": one.shard_id, "businessId": one.business_id, "seconds": _rounded(one.took_s)}
                    for one in figures.top
                ],
                "seenSecondsAgo": 0.0 if owner == me else min(_known(leases, "seenSecondsAgo")),
                "isSilent": is_silent,
            }
        )
    return replicas


def _known(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if row[name] is not None]


def _total(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    known = _known(rows, name)
    return _rounded(sum(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class ReadStatus(msgspec.Struct, frozen=True, gc=False):
    """How far a stream is read for a tenant, or with None for all tenants together.

    *readings* are the leases that may still have operations of the tenant; None while rows are missing or the tenant is
    held.
    """

    tenant_id: str | None
    readings: tuple[Lease, ...] | None
    held_in: tuple[str, ...] = ()

    @property
    def stream_shard_ids(self) -> tuple[str, ...]:
        """The stream shards whose rows on Postgres shards `up_to` compares."""
        return tuple(sorted({key for lease in self.readings or () for key in (lease.lease_key, *lease.parents)}))

    def up_to(self, shards: Iterable[ShardPositionRows]) -> datetime | None:
        """Return the time before which everything that arrived is decided; None while that is unknown."""
        instants = [_decided_on(rows, lease, self.tenant_id) for rows in shards for lease in self.readings or ()]
        known = [instant for instant in instants if instant is not None]
        return min(known) if known and len(known) == len(instants) else None


def read_status(leases: Iterable[Lease], tenant_id: str | None) -> ReadStatus:
    """Return the status for a tenant, or for all.

    A stream shard that is read to its end constrains only the tenants that its row lists.
    """
    readings: list[Lease] = []
    held_in: list[str] = []
    for lease in leases:
        if lease.checkpoint == positions.SHARD_END:
            continue
        listed = lease.pending_tenants or (lease.ahead.held if lease.ahead is not None else None)
        if listed is not None and _may_contain(listed, tenant_id):
            held_in.append(lease.lease_key)
        elif lease.pending_tenants is None:
            readings.append(lease)
    ranges = [lease.hash_range for lease in readings if lease.hash_range is not None]
    is_known = not held_in and len(ranges) == len(readings) and first_hole(ranges) is None
    return ReadStatus(tenant_id, tuple(readings) if is_known else None, tuple(held_in))


def _decided_on(rows: ShardPositionRows, lease: Lease, tenant_id: str | None) -> datetime | None:
    row = rows.get(lease.lease_key)
    if row is None or not (row.parents_done or all(_has_ended(rows.get(key), tenant_id) for key in lease.parents)):
        return None
    is_ahead = row.read_to is not None and not _may_contain(row.held, tenant_id)
    reached = row.read_to if is_ahead and row.read_to is not None else row.pending_from
    noted = lease.checkpoint if lease.ahead is None else lease.ahead.read_to
    if lease.read_up_to is not None and (noted.is_sentinel or _position_of(reached) >= noted):
        return lease.read_up_to
    return row.read_up_to if is_ahead or row.read_to is None else None


def _has_ended(row: StreamPosition | None, tenant_id: str | None) -> bool:
    if row is None or row.pending_from == positions.SHARD_END.checkpoint:
        return row is not None
    return row.read_to == positions.SHARD_END.checkpoint and not _may_contain(row.held, tenant_id)


def _position_of(text: str) -> positions.Position:
    number, _, sub_number = text.partition("/")
    if not sub_number:
        return positions.Position.from_checkpoint(number)
    return positions.Position(int(number), int(sub_number))


def hold_reason(home: str | Absence | None, status: ReadStatus | None, *, is_paused: bool) -> str | None:
    """Return why a tenant is held, as far as it is known here; None if it is not."""
    if isinstance(home, Absence):
        return home
    if is_paused:
        return HoldReason.PAUSED
    return OTHER_REPLICA if status is not None and status.held_in else None


def _may_contain(listed: Collection[str], tenant_id: str | None) -> bool:
    if tenant_id is None:
        return True
    try:
        return tenant_id in TenantSet.decode(listed)
    except ValueError:
        return True


def pinned_start(lease: Lease, initial_position: str | datetime, *, now: datetime) -> datetime | None:
    """Return the instant from which a stream shard is read; None when the row contains one.

    A KCL is responsible for all records before *now* of a lease with a checkpoint; one that begins at an instant has
    been read by nobody.
    """
    if lease.started_at is not None:
        return None
    if lease.checkpoint == positions.TRIM_HORIZON or (
        lease.checkpoint == positions.AT_TIMESTAMP and initial_position == "TRIM_HORIZON"
    ):
        return HORIZON
    if lease.checkpoint in {positions.LATEST, positions.AT_TIMESTAMP} and isinstance(initial_position, datetime):
        return initial_position
    return now


def start_of(lease: Lease, now: datetime) -> positions.Start:
    """Return from where to read a stream shard.

    LATEST becomes *now*: an iterator of that type which expires before its first record would skip some. The record at
    the checkpoint is read again: it may have parts that are not done.
    """
    if lease.checkpoint == positions.TRIM_HORIZON:
        return positions.TrimHorizon()
    if lease.checkpoint in {positions.LATEST, positions.AT_TIMESTAMP}:
        return positions.AtTimestamp(lease.started_at or now)
    return positions.AtSequenceNumber(lease.checkpoint.checkpoint)
