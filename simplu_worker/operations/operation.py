"""The types that consumers and shards share: an operation, its keys and ids, its origin, and its outcome. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias, assert_never

import msgspec

from simplu_worker.operations.json_record import parse_record
from simplu_worker.vocabulary import DeadLetterReason, Failure, OperationKind, PartitionKeyRule, Source

ID_MAX: Final = 128  # characters of a business's or a location's id: docs/sending.md


# The place of a part in its record: a sub-sequence number, and of a part of an array or of lines also its index there.
PartNumber: TypeAlias = int | tuple[int, int]


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The origin of one record; the same for every reader of the record.

    *name* is the stream or the queue. Of a part of a record of several operations, *part_index* is its number from 0,
    and *parts_behind* how many follow. *arrived_at* is Kinesis's approximate arrival or SQS's sent timestamp.
    """

    source: Source
    name: str
    arrived_at: datetime
    stream_shard_id: str | None = None
    sequence_number: str | None = None
    sub_sequence_number: int = 0
    partition_key: str | None = None
    part_index: int | None = None
    parts_behind: int = 0
    message_id: str | None = None
    group_id: str | None = None

    @property
    def part_number(self) -> PartNumber:
        """The place in its record."""
        return self.sub_sequence_number if self.part_index is None else (self.sub_sequence_number, self.part_index)


Path: TypeAlias = tuple[str, ...]  # names of members that lead to a value


class Days(msgspec.Struct, frozen=True, gc=False):
    """The first and the last day, inclusive, of a list; `None` is no bound. *is_one*: by the filter `date`."""

    first: date | None = None
    last: date | None = None
    is_one: bool = False

    @property
    def is_open(self) -> bool:
        """Whether every day is among them."""
        return self.first is None and self.last is None


class Sort(msgspec.Struct, frozen=True, gc=False):
    """The order of a list: by the member at *path*, or by creation without one."""

    path: Path
    is_descending: bool = False


class ListIndex(msgspec.Struct, frozen=True, gc=False):
    """The bounds, inclusive, of the text at *path*, by which an index finds the resources of a list."""

    path: Path
    low: str | None
    high: str | None


class ListProblem(msgspec.Struct, frozen=True, gc=False):
    """Why a list cannot be meant: what *member* was expected to be."""

    member: str
    expected: str


class ListQuery(msgspec.Struct, frozen=True, gc=False):
    """The query of a `list`.

    Each of *members*, a JSON object, must equal the row's member of that name. *path* is a JSON path with the *values*
    of its variables. *after* is where the page begins (`list_query.py`), *list_id* what cursors of the list have in
    common. *names* are those of its filters, *asked* all of it by the rules of its type, as JSON.
    """

    members: str = "{}"
    days: Days = Days()
    path: str = ""
    values: str = "{}"
    indexes: tuple[ListIndex, ...] = ()
    names: tuple[str, ...] = ()
    sort: Sort | None = None
    after: str | None = None
    has_total: bool = False
    list_id: str = ""
    page: int = 1
    limit: int = 100
    asked: str = ""
    problem: ListProblem | None = None


class Operation(msgspec.Struct, frozen=True, gc=False):
    """A decoded, valid record: the kind of operation, the tenant and the resource.

    *resource_id* and *request_id* are the effective ones; only a `list` has no *resource_id*. *data* is the JSON text
    as received. *digest* distinguishes a redelivery from another operation with its request id. Of an order event, one
    that was sent before *window_start* is another event. *sent_type* is the record's name of the type, where it is
    stored under another. *exceeds_bounds*: its *data*, or its filters, may not be stored; a worker with other bounds
    may have applied it.
    """

    kind: OperationKind
    business_id: str
    location_id: str
    tenant_id: str
    resource_type: str
    resource_id: str | None
    request_id: str
    data: msgspec.Raw | None
    query: ListQuery | None
    requested_at: str
    digest: bytes
    origin: Origin
    size_bytes: int
    exceeds_bounds: bool = False
    window_start: str | None = None
    sent_type: str | None = None

    def is_named(self, request_id: str, names: tuple[str, str] | None) -> bool:
        """Return whether it has the request id and, unless None, these ids of business and location."""
        return self.request_id == request_id and names in (None, (self.business_id, self.location_id))

    @property
    def text(self) -> str | None:
        """A copy of *data* as text."""
        return None if self.data is None else bytes(self.data).decode()


class RejectedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that can never be an operation, for a reason in its own bytes.

    *error* does not quote the record. *part_count* is that of its aggregate.
    """

    reason: DeadLetterReason
    error: str
    origin: Origin
    business_id: str | None = None
    location_id: str | None = None
    request_id: str | None = None
    resource_id: str | None = None
    part_count: int | None = None

    @property
    def tenant_id(self) -> str:
        """The tenant in whose place its dead letter waits: its business, without a location."""
        return tenant_id_of(self.business_id or "", "")


class Disposition(StrEnum):
    """The next step of a reader with an operation that it sent to a shard."""

    APPLIED = "applied"  # committed with its effect, or committed as failed with an outcome
    DUPLICATE = "duplicate"  # the log had it already
    HOLD = "hold"  # the tenant is not on this shard now; look up its route again
    DEAD_LETTER = "dead_letter"  # to be stored as a dead letter, then skipped
    # The operation alone failed, for an unforeseen reason, on a healthy shard: to be retried later, then given up.
    FAILING = "failing"
    LOCKED = "locked"  # another transaction keeps rows of the tenant locked: to be retried until that ends


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one operation.

    *error* does not quote the record; *is_late*: an order event sent long after its row's; *over_limit_s*: for how
    long an operation waits that is beyond a limit (LOCKED).
    """

    disposition: Disposition
    failure: Failure | None = None
    reason: DeadLetterReason | None = None
    error: str | None = None
    is_late: bool = False
    over_limit_s: float | None = None


def is_storable(text: str) -> bool:
    """Return whether Postgres can store *text*, which comes from outside."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def is_id(text: str) -> bool:
    """Return whether *text* can be the id of a business or a location: of valid length, and storable."""
    return 1 <= len(text) <= ID_MAX and is_storable(text)


def tenant_id_of(business_id: str, location_id: str) -> str:
    """Return the id of a tenant, which is also its key for Citrus and the static map."""
    return f"{business_id}-{location_id}"


KEY_MAX: Final = 256  # characters: Kinesis API reference, PutRecord


def partition_key_by(rule: PartitionKeyRule, tenant_id: str, resource_type: str) -> str:
    """Return the key by *rule*, which may be longer than Kinesis allows."""
    match rule:
        case PartitionKeyRule.TENANT:
            return tenant_id
        case PartitionKeyRule.RESOURCE_TYPE | PartitionKeyRule.ANY:
            return f"{tenant_id}-{resource_type}"
        case _:
            assert_never(rule)


DERIVED_REQUEST_ID_PREFIX: Final = "simplu:"


class ReplayedFrom(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Member `simpluReplay`: the first position of a replayed record without a request id."""

    stream: str
    stream_shard: str | None
    sequence_number: str | None
    sub_sequence_number: int
    part_index: int | None = None

    @property
    def request_id(self) -> str:
        """The request id of the record: the same for every read of its position."""
        position = f"{self.stream}\0{self.stream_shard}\0{self.sequence_number}\0{self.sub_sequence_number}"
        if self.part_index is not None:
            position += f"\0{self.part_index}"
        return DERIVED_REQUEST_ID_PREFIX + hashlib.sha256(position.encode()).hexdigest()


_replayed_decoder = msgspec.json.Decoder(ReplayedFrom)


def _first_position(origin: Origin) -> ReplayedFrom:
    position = origin.stream_shard_id, origin.sequence_number, origin.sub_sequence_number, origin.part_index
    return ReplayedFrom(origin.name, *position)


def derived_request_id(origin: Origin) -> str:
    """Return the request id of a record that has none."""
    return _first_position(origin).request_id


def control_request_id(business_id: str, location_id: str) -> str:
    """Return the key of the last refused control message of a tenant.

    With both ids, as another may have the same joined one.
    """
    return f"{DERIVED_REQUEST_ID_PREFIX}control:{business_id}/{location_id}"


def with_request_id(record: bytes, origin: Origin) -> bytes:
    """Return *record*, valid and without `requestId`, with the id derived from its *origin*, and with that origin.

    The record's own bytes stay, as the digest covers them. Of a member that occurs twice the last one counts.
    """
    replayed = _first_position(origin)
    members = msgspec.json.encode({"requestId": replayed.request_id, "simpluReplay": replayed})
    return record.rstrip()[:-1] + b"," + members[1:]


def is_replayed(request_id: str, replay: msgspec.Raw) -> bool:
    """Return whether *request_id* is the one derived from the position in `simpluReplay`."""
    try:
        derived = parse_record(bytes(replay), _replayed_decoder).request_id
    except (msgspec.DecodeError, UnicodeError):
        return False
    return request_id == derived


UNKNOWN_TENANT_MARGIN: Final = timedelta(seconds=60)  # clock skew and a slow registration
ABSENCE_MAX_AGE_S: Final = 5.0  # of a "not registered" that only defers operations


def is_overdue(arrived_at: datetime, *, now: datetime, tenant_wait: timedelta) -> bool:
    """Return whether an operation becomes a dead letter if its tenant is unregistered at *now*."""
    return arrived_at + tenant_wait + UNKNOWN_TENANT_MARGIN <= now


def absence_max_age_s(arrivals: Iterable[datetime], *, now: datetime, tenant_wait: timedelta) -> float:
    """Return the allowed age of a "not registered" for operations of these *arrivals*."""
    gives_up = any(is_overdue(arrived_at, now=now, tenant_wait=tenant_wait) for arrived_at in arrivals)
    return 0.0 if gives_up else ABSENCE_MAX_AGE_S


def unknown_tenant_error(tenant_wait: timedelta) -> str:
    """Return the error of a dead letter for an unknown tenant."""
    waited_s = (tenant_wait + UNKNOWN_TENANT_MARGIN).total_seconds()
    return f"its tenant was not registered within {waited_s:g} s; register it and replay this dead letter"
