"""The words that consumers and shards share: an operation, where it came from, and what became of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

ID_MAX: Final = 128  # characters of a business's or a location's id: contract §3


class OperationKind(StrEnum):
    """What to do to a resource (contract §3)."""

    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"
    LIST = "list"
    READ = "read"

    @property
    def writes(self) -> bool:
        """Whether the operation changes rows of `resources`."""
        return self not in READING_KINDS


READING_KINDS = frozenset({OperationKind.LIST, OperationKind.READ})


class DeadLetterReason(StrEnum):
    """Why a record became a dead letter (contract §6)."""

    INVALID_JSON = "invalid_json"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_TENANT = "unknown_tenant"
    REQUEST_ID_REUSED = "request_id_reused"
    RETRIES_EXHAUSTED = "retries_exhausted"
    TOO_LARGE = "too_large"


class Failure(StrEnum):
    """The error of an operation that was decided and could not take effect (contract §3)."""

    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    RESULT_TOO_LARGE = "result_too_large"
    INVALID_DATA = "invalid_data"
    TENANT_DESTROYED = "tenant_destroyed"
    RETRIES_EXHAUSTED = "retries_exhausted"  # given up; the one failure that a replay of its dead letter replaces


class Source(StrEnum):
    """Where a record came from."""

    KINESIS = "kinesis"
    SQS = "sqs"


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where one record came from; the same for every reader of it.

    For Kinesis *name* is the stream and *stream_shard_id*, *sequence_number* are set; for SQS *name* is the queue.
    *arrived_at* is Kinesis's approximate arrival or SQS's sent timestamp.
    """

    source: Source
    name: str
    arrived_at: datetime
    stream_shard_id: str | None = None
    sequence_number: str | None = None
    sub_sequence_number: int = 0
    partition_key: str | None = None
    message_id: str | None = None
    group_id: str | None = None


class DayRange(msgspec.Struct, frozen=True, gc=False):
    """The instants between which a row's `date` must lie, both inclusive; `None` is no bound."""

    first: datetime | None = None
    last: datetime | None = None


class ListQuery(msgspec.Struct, frozen=True, gc=False):
    """What a `list` asks for. *members* is a JSON object: each member must equal the row's member of that name."""

    members: str = "{}"
    days: DayRange = DayRange()
    page: int = 1
    limit: int = 100


class Operation(msgspec.Struct, frozen=True, gc=False):
    """A decoded, valid record: what to do to which resource of which tenant.

    *resource_id* and *request_id* are the effective ones (generated or derived where the record had none); only a
    `list` has no *resource_id*. *data* is the JSON text as it came; *requested_at* ISO 8601 in UTC. *digest* tells an
    identical redelivery from another operation under the same request id. *size_bytes* is the record's size as read.
    """

    kind: OperationKind
    business_id: str
    location_id: str
    tenant_id: str
    resource_type: str
    resource_id: str | None
    request_id: str
    data: str | None
    query: ListQuery | None
    requested_at: str
    digest: bytes
    origin: Origin
    size_bytes: int


class RejectedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that can never be an operation, for a reason in its own bytes.

    *error* says what was expected and what came, without the record's data. The ids are what could be read of it.
    """

    reason: DeadLetterReason
    error: str
    origin: Origin
    business_id: str | None = None
    location_id: str | None = None
    request_id: str | None = None
    resource_id: str | None = None


class Disposition(StrEnum):
    """What a reader does next with an operation that it handed to a shard."""

    APPLIED = "applied"  # committed with its effect, or committed as failed with an outcome
    DUPLICATE = "duplicate"  # the log had it already
    HOLD = "hold"  # the tenant does not live on this shard now; ask for its route again
    DEAD_LETTER = "dead_letter"  # to be stored as a dead letter, then passed over
    # It failed by itself, for a reason nobody foresaw, while its shard works: to be tried again later, then given up.
    UNEXPECTED = "unexpected"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one operation.

    *failure* only with APPLIED, *reason* only with DEAD_LETTER. *error*, with DEAD_LETTER and UNEXPECTED, says why
    without the record's data.
    """

    disposition: Disposition
    failure: Failure | None = None
    reason: DeadLetterReason | None = None
    error: str | None = None


def is_storable(text: str) -> bool:
    """Tell whether Postgres could hold *text* at all: what comes from outside may be anything."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def is_id(text: str) -> bool:
    """Tell whether *text* can be the id of a business or a location: within the contract, and storable."""
    return 1 <= len(text) <= ID_MAX and is_storable(text)


def tenant_id_of(business_id: str, location_id: str) -> str:
    """Return the id of a tenant: also the key by which Citrus and the static map know it."""
    return f"{business_id}-{location_id}"
