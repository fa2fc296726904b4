"""The contents of a row of the lease table. Pure.

Replicas know of each other through the lease table alone, and the KCL before 3.5 takes every row there for a lease. So
a report for people, and a person's request to an owner, are attributes of a row. No replica decides by a report. An
owner carries out a request that appears while it owns the lease, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position

HELD_MAX: Final = 3  # targets in a report
TOP_MAX: Final = 3  # businesses in a report
DECIMALS: Final = 3


class HeldTarget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A held target as `/status` names it, its `HoldReason`, and the age of its first operation."""

    target: str
    reason: str
    age_s: float


class TopBusiness(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A business and the seconds of the last minute that it took of a Postgres shard."""

    business_id: str
    shard_id: str
    took_s: float


class ReplicaFigures(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a replica tells of itself.

    The p99 latency of the last interval, the dead letters of the last hour, and the businesses that took most of the
    last minute. *unable* is an `Inability`: why it can do nothing.
    """

    latency_p99_s: float | None = None
    dead_letter_count: int | None = None
    top: tuple[TopBusiness, ...] = ()
    unable: str | None = None


class LeaseReport(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The state of a replica and of one of its readers, as the owner *by* wrote it with the last renewal."""

    by: str
    version: str = ""
    figures: ReplicaFigures = ReplicaFigures()
    lag_s: float | None = None
    records_per_s: float | None = None
    read_count: int | None = None
    held_count: int | None = None
    held: tuple[HeldTarget, ...] = ()


def encode_report(report: LeaseReport) -> str:
    """Return the text of a report, its numbers rounded."""
    plain = json.loads(msgspec.json.encode(report), parse_float=lambda digits: round(float(digits), DECIMALS))
    return msgspec.json.encode(plain).decode()


def decode_report(text: str | None, owner: str | None) -> LeaseReport | None:
    """Return the report of *owner* in *text*; None for that of another, or an unreadable one."""
    try:
        report = msgspec.json.decode(text or "", type=LeaseReport)
    except msgspec.DecodeError:
        return None
    return report if report.by == owner else None


def first_held(targets: Iterable[HeldTarget]) -> tuple[HeldTarget, ...]:
    """Return those of *targets* that a report names, the oldest first."""
    return tuple(sorted(targets, key=lambda target: -target.age_s)[:HELD_MAX])


LeaseRow: TypeAlias = Mapping[str, Mapping[str, Any]]  # an item as DynamoDB sends it: {"leaseCounter": {"N": "7"}}

ENTITY_TYPE: Final = "LEASE"
REPORT: Final = "simpluReport"
RETRY: Final = "simpluRetry"
STARTED_AT: Final = "simpluStartedAt"
PENDING_TENANTS: Final = "simpluPendingTenants"
READ_TO: Final = "simpluReadTo"
HELD: Final = "simpluHeld"
READ_UP_TO: Final = "simpluReadUpTo"
THROUGHPUT: Final = "throughputKBps"  # the KCL 3.x writes and reads it, too
METERED_BY: Final = "simpluMeteredBy"
SWITCHES: Final = "ownerSwitchesSinceCheckpoint"
UNABLE: Final = "simpluUnable"
PENDING_CHECKPOINT: Final = ("pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState")


class ReadAhead(msgspec.Struct, frozen=True, gc=False):
    """How far a reader is ahead: up to *read_to* only operations of *held* tenants are pending."""

    read_to: Position
    held: frozenset[str]


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A row of the lease table as read (KCL `DynamoDBLeaseSerializer`); tenants are as `TenantSet.encode` writes them.

    During a hand-over by a KCL 3.x leader, *owner* is the next owner already, and *checkpoint_owner* reads until it
    hands over. *metered_by* is the replica that measures the throughput.

    *started_at* is the instant from which the stream shard is read, until there is a checkpoint. *pending_tenants* are
    those of a stream shard that is read to its end. Before *read_up_to* no record arrived that is pending, but for the
    tenants in *ahead*; None unless the actual owner has written it. *last_read_up_to* is that of whoever wrote it last.
    *retry* is a person's request. *unable_of* is the owner that can do nothing.
    """

    lease_key: str
    checkpoint: Position
    counter: int = 0
    owner: str | None = None
    parents: frozenset[str] = frozenset()
    hash_range: HashRange | None = None
    checkpoint_owner: str | None = None
    started_at: datetime | None = None
    pending_tenants: frozenset[str] | None = None
    ahead: ReadAhead | None = None
    read_up_to: datetime | None = None
    last_read_up_to: datetime | None = None
    throughput_kbps: float | None = None
    metered_by: str | None = None
    report: LeaseReport | None = None
    retry: str | None = None
    unable_of: str | None = None

    @property
    def actual_owner(self) -> str | None:
        """The worker that reads the stream shard and writes the row (KCL `Lease.actualOwner`)."""
        return self.checkpoint_owner or self.owner

    @property
    def is_metered(self) -> bool:
        """Whether its owner measures the throughput."""
        return self.metered_by is not None and self.metered_by == self.actual_owner

    @property
    def is_given_away(self) -> bool:
        """Whether another worker is to take it: its owner, who renews it, can do nothing for it."""
        return self.unable_of is not None and self.unable_of == self.actual_owner


class Progress(msgspec.Struct, frozen=True, gc=False):
    """What a renewal writes beside the counter.

    None leaves what the row has, but removes *ahead* and *read_up_to*; so does False the mark of an unable owner.
    """

    checkpoint: Position | None = None
    ahead: ReadAhead | None = None
    read_up_to: datetime | None = None
    pending_tenants: frozenset[str] | None = None
    throughput_kbps: float | None = None
    report: LeaseReport | None = None
    is_given_away: bool = False

    def attributes(self, me: str) -> dict[str, Any]:
        """Return the attributes that *me* writes, None for those that it removes."""
        written = {
            METERED_BY: {"S": me},
            THROUGHPUT: None if self.throughput_kbps is None else {"N": f"{self.throughput_kbps:.3f}"},
            REPORT: self.report and {"S": encode_report(self.report)},
            PENDING_TENANTS: self.pending_tenants and {"SS": sorted(self.pending_tenants)},
        }
        return {name: value for name, value in written.items() if value} | {
            READ_UP_TO: self.read_up_to and {"S": f"{self.read_up_to.isoformat()} {me}"},
            UNABLE: {"S": me} if self.is_given_away else None,
            **position_attributes(self.checkpoint, self.ahead),
        }

    def after(self, row: Lease) -> Progress | None:
        """Return what is left to write over *row*, which an earlier try has written; None if that is nothing."""
        is_higher = self.checkpoint is not None and row.checkpoint < self.checkpoint
        has_tenants = self.pending_tenants in (None, row.pending_tenants)
        if not is_higher and has_tenants and row.ahead == self.ahead:
            return None
        return self if is_higher else msgspec.structs.replace(self, checkpoint=None)


def is_own_landed_write(lease: Lease, row: Lease, *, me: str) -> bool:
    """Return whether *row*, found in place of *lease*, was written by an earlier try of *me*.

    Only the actual owner moves the counter without changing the actual owner.
    """
    return row.actual_owner == me and row.counter == lease.counter + 1


def has_hand_over_begun(lease: Lease, row: Lease, *, me: str) -> bool:
    """Return whether *me* has *lease* still, but is to hand it over, or need not any more.

    A KCL 3.x leader writes the owners without moving the counter.
    """
    return row.actual_owner == me and row.checkpoint_owner != lease.checkpoint_owner


def is_lease(row: LeaseRow) -> bool:
    """Return whether a row is a lease: since KCL 3.5 leader, workers and migrations have rows."""
    return "entityType" not in row or row["entityType"].get("S") == ENTITY_TYPE


def lease_of(row: LeaseRow) -> Lease | None:
    """Parse a row of the lease table; None for rows that are not leases. Raises ValueError that names an attribute."""
    if not is_lease(row):
        return None
    owner, checkpoint_owner = _read(row, "leaseOwner") or None, _read(row, "checkpointOwner") or None
    last_read_up_to, read_by = _read(row, READ_UP_TO, convert=_split_read_up_to) or (None, None)
    sub_sequence_number = _read(row, "checkpointSubSequenceNumber", "N", int) or 0
    checkpoint_of = partial(Position.from_checkpoint, sub_sequence_number=sub_sequence_number)
    first, last = _read(row, "startingHashKey", convert=int), _read(row, "endingHashKey", convert=int)
    read_to, held = _read(row, READ_TO, convert=_parse_read_to), _read(row, HELD, "SS", frozenset)
    return Lease(
        lease_key=_required(row, "leaseKey"),
        checkpoint=_required(row, "checkpoint", convert=checkpoint_of),
        counter=_required(row, "leaseCounter", "N", int),
        owner=owner,
        parents=_read(row, "parentShardId", "SS", frozenset) or frozenset(),
        hash_range=None if None in (first, last) else HashRange(first, last),
        checkpoint_owner=checkpoint_owner,
        started_at=_read(row, STARTED_AT, convert=_parse_instant),
        pending_tenants=_read(row, PENDING_TENANTS, "SS", frozenset),
        ahead=None if None in (read_to, held) else ReadAhead(read_to, held),
        read_up_to=last_read_up_to if read_by == (checkpoint_owner or owner) else None,
        last_read_up_to=last_read_up_to,
        throughput_kbps=_read(row, THROUGHPUT, "N", float),
        metered_by=_read(row, METERED_BY),
        report=decode_report(_read(row, REPORT), checkpoint_owner or owner),
        retry=_read(row, RETRY),
        unable_of=_read(row, UNABLE),
    )


def row_of(lease: Lease) -> dict[str, dict[str, Any]]:
    """Return the row that creates *lease*, without empty members."""
    row = {
        "leaseKey": {"S": lease.lease_key},
        "leaseCounter": {"N": str(lease.counter)},
        "entityType": {"S": ENTITY_TYPE},
        "leaseOwner": lease.owner and {"S": lease.owner},
        "parentShardId": lease.parents and {"SS": sorted(lease.parents)},
        "startingHashKey": lease.hash_range and {"S": str(lease.hash_range.first)},
        "endingHashKey": lease.hash_range and {"S": str(lease.hash_range.last)},
        STARTED_AT: lease.started_at and {"S": lease.started_at.isoformat()},
        PENDING_TENANTS: lease.pending_tenants and {"SS": sorted(lease.pending_tenants)},
    } | position_attributes(lease.checkpoint, lease.ahead)
    return {name: value for name, value in row.items() if isinstance(value, dict)}


def position_attributes(checkpoint: Position | None, ahead: ReadAhead | None) -> dict[str, Any]:
    """Return the attributes for a checkpoint, if there is one, and for *ahead*; None for those to be removed."""
    attributes: dict[str, Any] = {READ_TO: None, HELD: None}
    if ahead is not None:
        read_to = f"{ahead.read_to.checkpoint}/{ahead.read_to.sub_sequence_number}"
        attributes = {READ_TO: {"S": read_to}, HELD: {"SS": sorted(ahead.held)}}
    if checkpoint is not None:  # a real one supersedes the KCL's two-phase ("pending") one
        attributes |= {
            "checkpoint": {"S": checkpoint.checkpoint},
            "checkpointSubSequenceNumber": {"N": str(checkpoint.sub_sequence_number)},
            SWITCHES: {"N": "0"},
            **dict.fromkeys(PENDING_CHECKPOINT),
        }
    return attributes


def _read(row: LeaseRow, name: str, kind: str = "S", convert: Callable[[Any], Any] | None = None) -> Any:
    value = row.get(name)
    if value is None or "NULL" in value:
        return None
    try:
        return value[kind] if convert is None else convert(value[kind])
    except (KeyError, ValueError) as exc:  # of another type, not a number, not a position
        raise ValueError(f"{name}: {exc}") from exc


def _required(row: LeaseRow, name: str, kind: str = "S", convert: Callable[[Any], Any] | None = None) -> Any:
    value = _read(row, name, kind, convert)
    if value is None:
        raise ValueError(f"{name}: expected a value, got none")
    return value


def _parse_instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"expected an instant with an offset, got {text[:40]!r}")
    return instant


def _split_read_up_to(text: str) -> tuple[datetime, str]:
    instant, writer = text.split(" ")
    return _parse_instant(instant), writer


def _parse_read_to(text: str) -> Position:
    sequence_number, sub_sequence_number = text.split("/")
    return Position.from_sequence_number(sequence_number, int(sub_sequence_number))


# Slower than the KCL's mean of the last two renewals: a burst of some seconds must not move leases.
TIME_CONSTANT_S: Final = 120.0
KILOBYTE: Final = 1024.0  # of the KCL's `throughputKBps`


class Meter:
    """What is counted a second: since the last note, or as a moving mean from an estimate on."""

    def __init__(self, estimate: float | None = None, *, time_constant_s: float = 0.0, now: float) -> None:
        self.per_s = estimate
        self._time_constant_s = time_constant_s
        self._noted_at = now
        self._noted_count = 0.0

    def note(self, count: float, *, now: float) -> None:
        """Take over the count since the meter was made, until *now* (monotonic)."""
        passed_s = now - self._noted_at
        if passed_s <= 0:
            return
        is_first = self.per_s is None or not self._time_constant_s
        share = 1.0 if is_first else 1 - math.exp(-passed_s / self._time_constant_s)
        self.per_s = (self.per_s or 0.0) * (1 - share) + (count - self._noted_count) / passed_s * share
        self._noted_at, self._noted_count = now, count


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A lease as last scanned, and when its counter was first seen."""

    lease: Lease
    unchanged_since: float


def observe(previous: Mapping[str, Observation], leases: Iterable[Lease], *, now: float) -> dict[str, Observation]:
    """Return the observations by lease key, after a scan that found *leases*."""
    observations: dict[str, Observation] = {}
    for lease in leases:
        known = previous.get(lease.lease_key)
        unmoved = known is not None and known.lease.counter == lease.counter
        observations[lease.lease_key] = Observation(lease, known.unchanged_since if known and unmoved else now)
    return observations


class StreamView:
    """The last scan of the lease table and the last listing of the stream."""

    def __init__(self) -> None:
        self.observations: dict[str, Observation] = {}  # by lease key
        self.leases: dict[str, Lease] = {}
        self.scanned_at = 0.0  # monotonic
        self.gone: frozenset[str] = frozenset()  # leased stream shards past their retention
        self.retention: timedelta | None = None  # of the stream; None before the first listing

    def update(self, leases: Iterable[Lease], *, now: float) -> None:
        """Take over the *leases* of a scan."""
        self.observations, self.scanned_at = observe(self.observations, leases, now=now), now
        self.leases = {key: one.lease for key, one in self.observations.items()}
