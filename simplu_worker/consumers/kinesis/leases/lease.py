"""The contents of a row of the lease table, and which leases may be taken. Pure.

Replicas know of each other through the lease table alone, and the KCL before 3.5 takes every row there for a lease. So
a report for people, and a person's request to an owner, are attributes of a row. No replica decides by a report. An
owner carries out a request that appears while it owns the lease, once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, HashRange, Position

REPORT: Final = "simpluReport"
RETRY: Final = "simpluRetry"
TEXT_MAX_LENGTH: Final = 1000
HELD_MAX: Final = 3  # targets in a report
TOP_MAX: Final = 3  # tenants in a report
DECIMALS: Final = 3

Amount: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_T = TypeVar("_T")


class HeldTarget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A held target as `/status` names it, its `HoldReason`, and the age of its first operation."""

    target: str
    reason: str
    age_s: Amount


class TopTenant(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A tenant and the seconds of the last minute that it took of a Postgres shard."""

    tenant_id: str
    shard_id: str
    took_s: Amount


class ReplicaFigures(msgspec.Struct, frozen=True, gc=False):
    """What a replica tells of itself.

    The p99 latency of the last interval, the dead letters of the last hour, and the tenants that took most of the last
    minute. *unable* is an `Inability`: why it can do nothing.
    """

    latency_p99_s: float | None = None
    dead_letter_count: int | None = None
    top: tuple[TopTenant, ...] = ()
    unable: str | None = None


class LeaseReport(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The state of a reader, as the owner *by* wrote it with the last renewal."""

    by: str
    version: str = ""
    lag_s: Amount | None = None
    records_per_s: Amount | None = None
    held_count: Count | None = None
    held: tuple[HeldTarget, ...] = ()
    latency_p99_s: Amount | None = None
    dead_letter_count: Count | None = None
    top: tuple[TopTenant, ...] = ()
    unable: str | None = None
    read_count: Count | None = None

    @property
    def figures(self) -> ReplicaFigures:
        """The figures of the replica."""
        return ReplicaFigures(self.latency_p99_s, self.dead_letter_count, self.top, self.unable)


class HoldRetry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A request to try the held targets now: all, or *target*."""

    request_id: str
    target: str | None = None


class RecordRate:
    """The records a second between two renewals."""

    def __init__(self, *, now: float) -> None:
        self._noted_at = now
        self._noted_count = 0

    def note(self, count: int, *, now: float) -> float | None:
        """Return the rate, after *count* records since the reader began, until *now* (monotonic)."""
        passed_s, new = now - self._noted_at, count - self._noted_count
        if passed_s <= 0:
            return None
        self._noted_at, self._noted_count = now, count
        return new / passed_s


def encode_report(report: LeaseReport) -> str:
    """Return the text of a report."""
    rounded = msgspec.structs.replace(
        report,
        lag_s=_rounded_if_known(report.lag_s),
        records_per_s=_rounded_if_known(report.records_per_s),
        latency_p99_s=_rounded_if_known(report.latency_p99_s),
        held=tuple(msgspec.structs.replace(one, age_s=_rounded(one.age_s)) for one in report.held),
        top=tuple(msgspec.structs.replace(one, took_s=_rounded(one.took_s)) for one in report.top),
    )
    return msgspec.json.encode(rounded).decode()


def first_held(targets: Iterable[HeldTarget]) -> tuple[HeldTarget, ...]:
    """Return those of *targets* that a report names, the oldest first."""
    return tuple(sorted(targets, key=lambda target: -target.age_s)[:HELD_MAX])


def decode_report(text: str, owner: str | None) -> LeaseReport | None:
    """Return the report of *owner* in *text*; None for that of another, or an unreadable one."""
    report = _decoded(text, LeaseReport)
    return report if report is not None and report.by == owner else None


def encode_retry(retry: HoldRetry) -> str:
    """Return the text of a request. Raises ValueError for one of more than TEXT_MAX_LENGTH."""
    text = msgspec.json.encode(retry).decode()
    if len(text) > TEXT_MAX_LENGTH:
        raise ValueError("target: expected the name of a held target, as /status has it, got a longer text")
    return text


def decode_retry(text: str) -> HoldRetry | None:
    """Return the request in *text*; None if it cannot be read."""
    return _decoded(text, HoldRetry)


def _decoded(text: str, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        return None


def _rounded_if_known(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    return round(max(value, 0.0), DECIMALS)


LeaseRow: TypeAlias = Mapping[str, Mapping[str, Any]]  # an item as DynamoDB sends it: {"leaseCounter": {"N": "7"}}

ENTITY_TYPE = "LEASE"
STARTED_AT = "simpluStartedAt"
PENDING_TENANTS = "simpluPendingTenants"
READ_TO = "simpluReadTo"
HELD = "simpluHeld"
READ_UP_TO = "simpluReadUpTo"
THROUGHPUT = "throughputKBps"  # the KCL 3.x writes and reads it, too
METERED_BY = "simpluMeteredBy"
SWITCHES = "ownerSwitchesSinceCheckpoint"
UNABLE = "simpluUnable"


class UnreadableLeaseError(ValueError):
    """A row that should be a lease and cannot be parsed."""


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
    *unable_of* is the owner that can do nothing.
    """

    lease_key: str
    checkpoint: Position
    counter: int = 0
    owner: str | None = None
    owner_switches: int = 0
    parents: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()
    hash_range: HashRange | None = None
    pending_checkpoint: Position | None = None
    checkpoint_owner: str | None = None
    started_at: datetime | None = None
    pending_tenants: frozenset[str] | None = None
    ahead: ReadAhead | None = None
    read_up_to: datetime | None = None
    last_read_up_to: datetime | None = None
    throughput_kbps: float | None = None
    metered_by: str | None = None
    report: LeaseReport | None = None
    retry: HoldRetry | None = None
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


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A lease as last scanned, and when its counter was first seen."""

    lease: Lease
    unchanged_since: float


def worker_id(host: str, pid: int, token: str) -> str:
    """Return the id under which a process owns leases."""
    return f"{host}:{pid}:{token}"


def observe(previous: Mapping[str, Observation], leases: Iterable[Lease], *, now: float) -> dict[str, Observation]:
    """Return the observations by lease key, after a scan that found *leases*."""
    observations: dict[str, Observation] = {}
    for lease in leases:
        known = previous.get(lease.lease_key)
        unmoved = known is not None and known.lease.counter == lease.counter
        observations[lease.lease_key] = Observation(lease, known.unchanged_since if known and unmoved else now)
    return observations


def takeable_leases(
    observations: Mapping[str, Observation],
    *,
    held: Collection[str],
    now: float,
    lease_duration_s: float,
    me: str,
) -> list[Lease]:
    """Return the leases that may be taken now: free ones first, then those unchanged for longest.

    Free are those without an owner, those given away, and those of *me* that this process does not hold: the answer to
    a take was lost.
    """
    candidates = [
        observation
        for lease_key, observation in observations.items()
        if lease_key not in held and observation.lease.checkpoint != SHARD_END
    ]
    free = [one.lease for one in candidates if one.lease.actual_owner in (None, me) or one.lease.is_given_away]
    free_keys = {lease.lease_key for lease in free}
    expired = [
        one
        for one in candidates
        if one.lease.lease_key not in free_keys and now - one.unchanged_since > lease_duration_s
    ]
    expired.sort(key=lambda one: one.unchanged_since)
    return free + [one.lease for one in expired]


def assigned_leases(leases: Iterable[Lease], *, me: str) -> list[Lease]:
    """Return the unfinished *leases* that a KCL 3.x leader has assigned to *me*, and nobody reads."""
    return [
        lease
        for lease in leases
        if lease.owner == me and lease.checkpoint_owner is None and lease.checkpoint != SHARD_END
    ]


def unfinished_hand_overs(leases: Iterable[Lease], *, me: str) -> list[Lease]:
    """Return the *leases* that *me* is to hand over."""
    return [lease for lease in leases if lease.checkpoint_owner == me]


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
    """Parse a row of the lease table; None for rows that are not leases. Raises UnreadableLeaseError."""
    if not is_lease(row):
        return None
    try:
        read_up_to, read_by = _read_up_to(row)
        reader = _optional(row, "checkpointOwner", "S") or _optional(row, "leaseOwner", "S")
        return Lease(
            lease_key=_required(row, "leaseKey", "S"),
            checkpoint=_position(row, "checkpoint"),
            counter=_integer("leaseCounter", _required(row, "leaseCounter", "N")),
            owner=_optional(row, "leaseOwner", "S") or None,
            owner_switches=_integer(SWITCHES, _optional(row, SWITCHES, "N") or "0"),
            parents=frozenset(_optional(row, "parentShardId", "SS") or ()),
            children=frozenset(_optional(row, "childShardIds", "SS") or ()),
            hash_range=_hash_range(row),
            pending_checkpoint=_position(row, "pendingCheckpoint") if "pendingCheckpoint" in row else None,
            checkpoint_owner=_optional(row, "checkpointOwner", "S") or None,
            started_at=_instant(row, STARTED_AT),
            pending_tenants=frozenset(_optional(row, PENDING_TENANTS, "SS") or ()) or None,
            ahead=_ahead(row),
            read_up_to=read_up_to if read_by and read_by == reader else None,
            last_read_up_to=read_up_to,
            throughput_kbps=_throughput(row),
            metered_by=_optional(row, METERED_BY, "S"),
            report=decode_report(_text(row, REPORT), reader or None),
            retry=decode_retry(_text(row, RETRY)),
            unable_of=_optional(row, UNABLE, "S"),
        )
    except UnreadableLeaseError:
        raise
    except ValueError as exc:  # not a number, or not a position
        raise UnreadableLeaseError(str(exc)) from exc


def row_of(lease: Lease) -> dict[str, dict[str, Any]]:
    """Return the row that creates *lease*, without empty members."""
    row: dict[str, dict[str, Any]] = {
        "leaseKey": {"S": lease.lease_key},
        "leaseCounter": {"N": str(lease.counter)},
        SWITCHES: {"N": str(lease.owner_switches)},
        "checkpoint": {"S": lease.checkpoint.checkpoint},
        "checkpointSubSequenceNumber": {"N": str(lease.checkpoint.sub_sequence_number)},
        "entityType": {"S": ENTITY_TYPE},
    }
    if lease.owner:
        row["leaseOwner"] = {"S": lease.owner}
    if lease.parents:
        row["parentShardId"] = {"SS": sorted(lease.parents)}
    if lease.children:
        row["childShardIds"] = {"SS": sorted(lease.children)}
    if lease.hash_range:
        row["startingHashKey"] = {"S": str(lease.hash_range.first)}
        row["endingHashKey"] = {"S": str(lease.hash_range.last)}
    if lease.started_at:
        row[STARTED_AT] = {"S": lease.started_at.isoformat()}
    if lease.pending_tenants:
        row[PENDING_TENANTS] = {"SS": sorted(lease.pending_tenants)}
    if lease.ahead:
        row |= attributes_of(lease.ahead)
    return row


def attributes_of(ahead: ReadAhead) -> dict[str, dict[str, Any]]:
    """Return the attributes of a lease row for *ahead*."""
    read_to = f"{ahead.read_to.checkpoint}/{ahead.read_to.sub_sequence_number}"
    return {READ_TO: {"S": read_to}, HELD: {"SS": sorted(ahead.held)}}


def _optional(row: LeaseRow, name: str, kind: str) -> Any:
    value = row.get(name)
    if value is None or "NULL" in value:
        return None
    if kind not in value:
        raise UnreadableLeaseError(f"{name}: expected type {kind}, got {'/'.join(value)}")
    return value[kind]


def _required(row: LeaseRow, name: str, kind: str) -> Any:
    value = _optional(row, name, kind)
    if value is None:
        raise UnreadableLeaseError(f"{name}: expected a value of type {kind}, got none")
    return value


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as exc:
        raise UnreadableLeaseError(f"{name}: {exc}") from exc


def _integer(name: str, digits: str) -> int:
    with _named(name):
        return int(digits)


def _position(row: LeaseRow, name: str) -> Position:
    sub_name = f"{name}SubSequenceNumber"
    sub_sequence_number = _integer(sub_name, _optional(row, sub_name, "N") or "0")
    checkpoint = _required(row, name, "S")
    with _named(name):
        return Position.from_checkpoint(checkpoint, sub_sequence_number)


def _instant(row: LeaseRow, name: str) -> datetime | None:
    text = _optional(row, name, "S")
    if text is None:
        return None
    with _named(name):
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise ValueError(f"expected an instant with an offset, got {text[:40]!r}")
    return instant


def _ahead(row: LeaseRow) -> ReadAhead | None:
    held = frozenset(_optional(row, HELD, "SS") or ())
    sequence_number, _, sub_sequence_number = (_optional(row, READ_TO, "S") or "").partition("/")
    if not (held and sequence_number):
        return None
    with _named(READ_TO):
        return ReadAhead(Position.from_sequence_number(sequence_number, int(sub_sequence_number)), held)


def read_up_to_text(instant: datetime, owner: str) -> str:
    """Return an instant for a row, with its writer."""
    return f"{instant.isoformat()} {owner}"


def _read_up_to(row: LeaseRow) -> tuple[datetime | None, str]:
    try:
        instant, _, writer = _text(row, READ_UP_TO).partition(" ")
        read_up_to = datetime.fromisoformat(instant)
    except ValueError:
        return None, ""
    return None if read_up_to.tzinfo is None else read_up_to, writer


def _text(row: LeaseRow, name: str) -> str:
    return row.get(name, {}).get("S") or ""  # the lease can be used without it


def _throughput(row: LeaseRow) -> float | None:
    kbps = row.get(THROUGHPUT, {}).get("N")
    return None if kbps is None else float(kbps)


def _hash_range(row: LeaseRow) -> HashRange | None:
    first, last = _optional(row, "startingHashKey", "S"), _optional(row, "endingHashKey", "S")
    if not (first and last):
        return None
    return HashRange(_integer("startingHashKey", first), _integer("endingHashKey", last))


# Slower than the KCL's mean of the last two renewals: a burst of some seconds must not move leases.
TIME_CONSTANT_S: Final = 120.0
KILOBYTE: Final = 1024.0  # of the KCL's `throughputKBps`


class ThroughputMeter:
    """A moving mean of the bytes read, from the estimate of the last owner on."""

    def __init__(self, estimate_kbps: float | None, *, now: float) -> None:
        self.kbps = estimate_kbps
        self._noted_at = now
        self._noted_bytes = 0

    def note(self, read_bytes: int, *, now: float) -> None:
        """Take over the bytes read since the meter was made, until *now* (monotonic)."""
        passed_s = now - self._noted_at
        if passed_s <= 0:
            return
        rate = (read_bytes - self._noted_bytes) / KILOBYTE / passed_s
        share = 1.0 if self.kbps is None else 1 - math.exp(-passed_s / TIME_CONSTANT_S)
        self.kbps = (self.kbps or 0.0) * (1 - share) + rate * share
        self._noted_at, self._noted_bytes = now, read_bytes


class StreamView:
    """The last scan of the lease table and the last listing of the stream."""

    def __init__(self) -> None:
        self.observations: dict[str, Observation] = {}  # by lease key
        self._leases: dict[str, Lease] = {}
        self._scanned_at = 0.0
        self.gone: frozenset[str] = frozenset()  # leased stream shards past their retention
        self.retention: timedelta | None = None  # of the stream; None before the first listing

    def update(self, leases: Iterable[Lease], *, now: float) -> None:
        """Take over the *leases* of a scan; *now* is monotonic."""
        self.observations = observe(self.observations, leases, now=now)
        self._leases = {key: one.lease for key, one in self.observations.items()}
        self._scanned_at = now

    def unchanged_for_s(self, lease_key: str) -> float:
        """Return for how long nobody had renewed a lease, at the last scan."""
        return self._scanned_at - self.observations[lease_key].unchanged_since

    def leases(self) -> dict[str, Lease]:
        """Return the leases of the last scan by key, to be read only."""
        return self._leases
