"""The closed sets of words of the page and the HTTP interface; `vocabulary` has all others. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from simplu_worker.vocabulary import OperationStatus


class RequestStatus(StrEnum):
    """The status of a request id, as a producer asks for it."""

    SUCCEEDED = OperationStatus.SUCCEEDED
    FAILED = OperationStatus.FAILED
    REJECTED = "rejected"
    PENDING = "pending"
    HELD = "held"
    UNKNOWN = "unknown"


class ProblemCause(StrEnum):
    """What is wrong with a fleet, what is worst first."""

    NEAR_RETENTION = "near_retention"  # over half of the stream's retention has passed for what is not applied
    RECORDS_LOST = "records_lost"  # they may have left the stream unread
    CREDENTIALS_FAILING = "credentials_failing"  # of AWS: there are none, or they have expired
    NOT_READY = "not_ready"  # the replica that is asked does no work
    SHARD_LOST = "shard_lost"  # it takes no operations
    TENANT_SPLIT = "tenant_split"
    STREAM_SHARD_UNREAD = "stream_shard_unread"  # it has no owner
    REPLICA_SILENT = "replica_silent"  # its leases are not renewed, so what they say is old
    STREAM_FAILING = "stream_failing"  # Kinesis does not answer reads
    QUEUE_FAILING = "queue_failing"
    CONTROL_BLOCKED = "control_blocked"  # control messages wait for a person
    CITRUS_FAILING = "citrus_failing"
    REPLICA_UNABLE = "replica_unable"  # it takes no leases
    STREAM_LAG = "stream_lag"
    INTERNAL_ERROR = "internal_error"
    MOVE_FAILED = "move_failed"
    TARGET_HELD = "target_held"
    SHARD_DEGRADED = "shard_degraded"
    CACHE_FAILING = "cache_failing"
    CERTIFICATE_EXPIRES = "certificate_expires"  # that of the worker's own HTTPS
    FEED_STOPPED = "feed_stopped"
    FEED_BEHIND = "feed_behind"
    DEAD_LETTERS = "dead_letters"


class Severity(StrEnum):
    """How bad a problem is."""

    CRITICAL = "critical"  # work stands still, or what is shown is not known
    WARNING = "warning"


class Role(StrEnum):
    """The role of a caller.

    A producer asks what became of its tenants' operations, a viewer sees counts, states and names, an operator sees
    all, and acts.
    """

    PRODUCER = "producer"
    VIEWER = "viewer"
    OPERATOR = "operator"


class UnreadyReason(StrEnum):
    """Why no work can be done now."""

    STARTING = "starting"
    DRAINING = "draining"
    CREDENTIALS_UNAVAILABLE = "credentials_unavailable"  # those of AWS
    CREDENTIALS_EXPIRED = "credentials_expired"  # AWS says so of those that there are
    CITRUS_REFUSES_KEY = "citrus_refuses_key"
    STREAM_OPENING = "stream_opening"
    STREAM_UNAVAILABLE = "stream_unavailable"  # or the lease table
    STREAM_UNREADABLE = "stream_unreadable"  # Kinesis refuses reads
    KCL_ASSIGNS_LEASES = "kcl_assigns_leases"  # a KCL 3.x, to its own workers
    SOURCE_FAILING = "source_failing"  # all loops of one source end with errors that nobody foresaw
    QUEUES_UNREACHABLE = "queues_unreachable"


OK: Final = "ok"  # the state of a dependency without an error; else it is the error


class BadRequestError(ValueError):
    """A request is answered with the status 400 and this error for people, which quotes no value."""
