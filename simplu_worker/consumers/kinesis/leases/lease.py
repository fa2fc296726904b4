"""The contents of a row of the lease table, and which leases may be taken. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.leases.lease_report import (
    IDLE,
    REPORT,
    RETRY,
    HoldRetry,
    LeaseReport,
    decode_idle_report,
    decode_report,
    decode_retry,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, HashRange, Position

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
RELEASE = "simpluRelease"
RELEASED_BY = "simpluReleasedBy"
UNABLE = "simpluUnable"


KBPS_MAX = 1e6  # of a stream shard; far above the quota of Kinesis


class UnreadableLeaseError(ValueError):
    """A row that should be a lease and cannot be parsed."""


class ReadAhead(msgspec.Struct, frozen=True, gc=False):
    """How far a reader is ahead of its checkpoint, because some tenants are held.

    Up to *read_to* no operation is pending, except those of the tenants in *held* (as `TenantSet.encode` writes them).
    """

    read_to: Position
    held: frozenset[str]


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A row of the lease table as read (KCL `DynamoDBLeaseSerializer`).

    *checkpoint* is the last finished position, as with the KCL. *checkpoint_owner* is set while a KCL 3.x leader moves
    the lease gracefully: *owner* is then the next owner already, and *checkpoint_owner* reads until it hands over.

    *throughput_kbps* is what the KCL 3.x and this worker write; *metered_by* is the replica that measures it: while
    another program owns the lease, the value is stale.

    That name and the five from *started_at* on are the worker's own. *started_at* is the instant from which this
    application reads the stream shard, written when its lease is first taken; where it pins LATEST or AT_TIMESTAMP,
    every reader starts there until there is a checkpoint. *pending_tenants* are the tenants with pending operations (as
    `TenantSet.encode` writes them) of a stream shard that is read to its end; None before. *ahead* is None when the
    reader is not ahead of its checkpoint. Before *read_up_to* no record arrived that is pending, except those of the
    tenants in *ahead*; None unless the actual owner has written it. *report* is for people, and None in the same case.
    No reader decides by either. *last_read_up_to* is the same by whoever wrote it last: from it a successor tells that
    records have left the stream since. *retry* is the last request to the owner, or to one before it, to try its held
    targets.
    *release_of* is the owner whom a person has asked to release the lease; *released_by* the one whose lease was taken
    for that, and who does not take it from its next owner. *unable_of* is the owner that has found that it can do
    nothing (`ability`). *idle_report* is of a replica like that, which has no lease and uses this row to say so.
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
    release_of: str | None = None
    released_by: str | None = None
    unable_of: str | None = None
    idle_report: LeaseReport | None = None

    @property
    def actual_owner(self) -> str | None:
        """The worker that may read the stream shard and write the row (KCL `Lease.actualOwner`)."""
        return self.checkpoint_owner or self.owner

    @property
    def is_metered(self) -> bool:
        """Whether its owner measures the throughput."""
        return self.metered_by is not None and self.metered_by == self.actual_owner

    @property
    def is_to_be_released(self) -> bool:
        """Whether a person wants another worker to take it; its owner reads until then."""
        return self.release_of is not None and self.release_of == self.actual_owner

    @property
    def is_given_away(self) -> bool:
        """Whether its owner can do nothing for it, and reads until another worker has taken it."""
        return self.unable_of is not None and self.unable_of == self.actual_owner

    @property
    def is_offered(self) -> bool:
        """Whether another worker is to take it, though its owner renews it."""
        return self.is_to_be_released or self.is_given_away


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A lease as the last scan found it, and the monotonic time at which its counter was first seen."""

    lease: Lease
    unchanged_since: float


def worker_id(host: str, pid: int, token: str) -> str:
    """Return the id under which a process owns leases; a fresh random *token* keeps two processes from sharing one."""
    return f"{host}:{pid}:{token}"


def observe(previous: Mapping[str, Observation], leases: Iterable[Lease], *, now: float) -> dict[str, Observation]:
    """Return the observations by lease key, after a scan that found *leases*.

    A lease not seen before counts as renewed now: a new process waits a full lease duration before it takes the lease
    of an owner that it never saw alive. Leases no longer in the table are dropped.
    """
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

    Free leases have no owner, or one from which they are to be taken, or the owner *me* and are not held by this
    process: the answer to a take was lost, and no process reads them. Others may be taken once unchanged for longer
    than *lease_duration_s*; one that is being handed over belongs to its last owner. Finished leases and those in
    *held* (lease keys) are never taken.
    """
    candidates = [
        observation
        for lease_key, observation in observations.items()
        if lease_key not in held and observation.lease.checkpoint != SHARD_END
    ]
    free = [one.lease for one in candidates if one.lease.actual_owner in (None, me) or one.lease.is_offered]
    free_keys = {lease.lease_key for lease in free}
    expired = [
        one
        for one in candidates
        if one.lease.lease_key not in free_keys and now - one.unchanged_since > lease_duration_s
    ]
    expired.sort(key=lambda one: one.unchanged_since)
    return free + [one.lease for one in expired]


def assigned_leases(leases: Iterable[Lease], *, me: str) -> list[Lease]:
    """Return the unfinished *leases* that a KCL 3.x leader has assigned to *me*, and that no other worker reads."""
    return [
        lease
        for lease in leases
        if lease.owner == me and lease.checkpoint_owner is None and lease.checkpoint != SHARD_END
    ]


def unfinished_hand_overs(leases: Iterable[Lease], *, me: str) -> list[Lease]:
    """Return the *leases* that *me* is to hand over."""
    return [lease for lease in leases if lease.checkpoint_owner == me]


def is_own_landed_write(lease: Lease, row: Lease, *, me: str) -> bool:
    """Return whether *row*, found where *lease* was expected, was written by an earlier try of *me* with that lease.

    The answer to that write was lost, but it landed, so its repetition fails. Only the actual owner moves the counter
    without changing the actual owner, so a counter one higher is the worker's own write.
    """
    return row.actual_owner == me and row.counter == lease.counter + 1


def has_hand_over_begun(lease: Lease, row: Lease, *, me: str) -> bool:
    """Return whether *row* shows that *me* has *lease* still, but is to hand it over, or need not any more.

    A KCL 3.x leader writes the next owner, and *me* as checkpoint owner, without moving the counter.
    """
    return row.actual_owner == me and row.checkpoint_owner != lease.checkpoint_owner


def is_lease(row: LeaseRow) -> bool:
    """Return whether a row of the lease table is a lease: since KCL 3.5 leader, workers and migrations have rows."""
    return "entityType" not in row or row["entityType"].get("S") == ENTITY_TYPE


def lease_of(row: LeaseRow) -> Lease | None:
    """Parse a row of the lease table; None for rows that are not leases.

    Raises UnreadableLeaseError when an attribute is missing or of another type or form than the KCL's.
    """
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
            report=_report(row),
            retry=_retry(row),
            release_of=_optional(row, RELEASE, "S"),
            released_by=_optional(row, RELEASED_BY, "S"),
            unable_of=_optional(row, UNABLE, "S"),
            idle_report=_idle_report(row),
        )
    except UnreadableLeaseError:
        raise
    except ValueError as exc:  # not a number, or not a position
        raise UnreadableLeaseError(str(exc)) from exc


def row_of(lease: Lease) -> dict[str, dict[str, Any]]:
    """Return the row that creates *lease*. Empty members are left out: DynamoDB has no empty sets, the KCL no nulls."""
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
    """Name the attribute *name* in the error for its value."""
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
        try:
            instant.astimezone(UTC)  # as AWS takes it
        except OverflowError as exc:
            raise ValueError(f"expected an instant of the years 1 to 9999, got {text[:40]!r}") from exc
    return instant


def _ahead(row: LeaseRow) -> ReadAhead | None:
    held = frozenset(_optional(row, HELD, "SS") or ())
    sequence_number, _, sub_sequence_number = (_optional(row, READ_TO, "S") or "").partition("/")
    if not (held and sequence_number):
        return None
    with _named(READ_TO):
        return ReadAhead(Position.from_sequence_number(sequence_number, int(sub_sequence_number)), held)


def read_up_to_text(instant: datetime, owner: str) -> str:
    """Return an instant for a row, with its writer: a worker that does not know the attribute would leave it stale."""
    return f"{instant.isoformat()} {owner}"


def _read_up_to(row: LeaseRow) -> tuple[datetime | None, str]:
    """Return an instant and its writer; None where none can be read: the lease can be used without it."""
    try:
        instant, _, writer = (_optional(row, READ_UP_TO, "S") or "").partition(" ")
        read_up_to = datetime.fromisoformat(instant)
    except ValueError:
        return None, ""
    return None if read_up_to.tzinfo is None else read_up_to, writer


def _report(row: LeaseRow) -> LeaseReport | None:
    try:
        text = _optional(row, REPORT, "S") or ""
    except UnreadableLeaseError:  # it is for people: the lease can be used without it
        return None
    return decode_report(text, _optional(row, "checkpointOwner", "S") or _optional(row, "leaseOwner", "S") or None)


def _idle_report(row: LeaseRow) -> LeaseReport | None:
    try:
        return decode_idle_report(_optional(row, IDLE, "S") or "")
    except UnreadableLeaseError:  # it is for people
        return None


def _retry(row: LeaseRow) -> HoldRetry | None:
    try:
        return decode_retry(_optional(row, RETRY, "S") or "")
    except UnreadableLeaseError:  # the lease can be used without it
        return None


def _throughput(row: LeaseRow) -> float | None:
    """Return the throughput; None when it is no number that can be: the lease can be used without it."""
    try:
        kbps = float(_optional(row, THROUGHPUT, "N") or "nan")
    except (ValueError, UnreadableLeaseError):
        return None
    return kbps if 0 <= kbps < KBPS_MAX else None


def _hash_range(row: LeaseRow) -> HashRange | None:
    first, last = _optional(row, "startingHashKey", "S"), _optional(row, "endingHashKey", "S")
    if not (first and last):
        return None
    return HashRange(_integer("startingHashKey", first), _integer("endingHashKey", last))
