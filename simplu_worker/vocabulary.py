"""The closed sets of words that people see: in metrics, over HTTP, in commands, in logs and in tables. Pure.

Labels of metrics, choices of commands, the OpenAPI description, the filters of the status page and the lists in docs/
are made from these, and docs/metrics.md shows the comments. A new kind, state or reason is a line here, and its
behaviour.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Source(StrEnum):
    """The service that a record came from."""

    KINESIS = "kinesis"
    SQS = "sqs"


class OperationKind(StrEnum):
    """The kinds of operation on a resource (docs/sending.md)."""

    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"
    LIST = "list"
    READ = "read"


class PartitionKeyRule(StrEnum):
    """Which partition key an operation has to have (docs/sending.md)."""

    RESOURCE_TYPE = "resource-type"  # {businessId}-{locationId}-{resourceType}
    TENANT = "tenant"  # {businessId}-{locationId}
    ANY = "any"  # not checked


class Failure(StrEnum):
    """The error of an operation that is decided without effect (docs/outcomes.md)."""

    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    INVALID_QUERY = "invalid_query"  # a list that cannot be meant
    QUERY_TOO_LARGE = "query_too_large"  # a list that would look through too many resources
    RESULT_TOO_LARGE = "result_too_large"
    INVALID_DATA = "invalid_data"
    TENANT_DESTROYED = "tenant_destroyed"
    RETRIES_EXHAUSTED = "retries_exhausted"  # given up; the only failure that a replay of its dead letter replaces


class DeadLetterReason(StrEnum):
    """Why a record became a dead letter (docs/outcomes.md)."""

    INVALID_JSON = "invalid_json"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_TENANT = "unknown_tenant"
    REQUEST_ID_REUSED = "request_id_reused"
    RETRIES_EXHAUSTED = "retries_exhausted"
    TOO_LARGE = "too_large"
    INTERNAL_ERROR = "internal_error"  # the worker itself failed at the record alone


class OperationOutcome(StrEnum):
    """How an operation was decided: a success, a failure, or nothing new."""

    SUCCEEDED = "succeeded"
    ALREADY_EXISTS = Failure.ALREADY_EXISTS
    NOT_FOUND = Failure.NOT_FOUND
    RESULT_TOO_LARGE = Failure.RESULT_TOO_LARGE
    INVALID_DATA = Failure.INVALID_DATA
    TENANT_DESTROYED = Failure.TENANT_DESTROYED
    RETRIES_EXHAUSTED = Failure.RETRIES_EXHAUSTED
    DUPLICATE = "duplicate"  # applied before
    DEAD_LETTER = "dead_letter"  # because of its content


class OperationStatus(StrEnum):
    """The status of an operation in the log."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class TargetKind(StrEnum):
    """What a loop works for."""

    SHARD = "shard"  # a Postgres shard
    STREAM_SHARD = "stream_shard"
    LEASES = "leases"  # the lease table
    QUEUE = "queue"
    TENANT = "tenant"
    CACHE = "cache"
    REPLICA = "replica"  # the chores of the process itself
    FEED = "feed"  # a destination of the feed


class HeldTarget(StrEnum):
    """What cannot take operations now."""

    SHARD = "shard"  # a Postgres shard
    TENANT = "tenant"
    BUSINESS = "business"  # its tenants on a Postgres shard that send more than their share
    LETTERS = "dead letters"  # of a business, or of none: there are too many
    OVERFLOW = "overflow"  # the tenants beyond TENANT_HOLDS_MAX
    PARENTS = "parents"  # the tenants with operations of a parent (after a reshard) that are pending there
    PREDECESSOR = "predecessor"  # the tenants that the last owner of the lease held


class Absence(StrEnum):
    """Why a tenant's operations cannot be sent to a shard now."""

    UNREGISTERED = "unregistered"  # a definite, fresh "not registered"
    NOT_HERE = "not_here"  # registered, and no shard has its row yet
    INACTIVE = "inactive"  # its shard is marked inactive
    MOVING = "moving"  # its row is fenced or incoming; mostly for milliseconds, unless it is imported or restored


class HoldReason(StrEnum):
    """Why a target is held."""

    UNREGISTERED = Absence.UNREGISTERED
    NOT_HERE = Absence.NOT_HERE
    INACTIVE = Absence.INACTIVE
    MOVING = Absence.MOVING
    SHARD_UNAVAILABLE = "shard_unavailable"
    HOME_UNKNOWN = "home_unknown"  # the shards that answer do not have the tenant, and a silent one may
    FAILING = "failing"
    LOCKED = "locked"  # another transaction keeps a row of the tenant locked
    PAUSED = "paused"  # a person has paused the tenant, or its business
    OVER_LIMIT = "over_limit"  # the tenant, or its business, sends more than a person allows
    RESHARD = "reshard"
    TAKEN_OVER = "taken_over"
    BACKFILL = "backfill"  # a Postgres shard may have lost commits
    GAP = "gap"  # a Postgres shard lacks records that the stream no longer has; it waits for a person
    INTERNAL_ERROR = "internal_error"  # the worker itself failed at the operations of a Postgres shard
    OVER_SHARE = "over_share"  # a Postgres shard takes less than a business, or all, send, and others wait


OTHER_REPLICA: Final = "other_replica"  # in place of a reason: the replica that holds the tenant knows why


class TenantState(StrEnum):
    """The states of a tenant on one shard (docs/reading.md)."""

    INCOMING = "incoming"
    READY = "ready"
    ACTIVE = "active"
    FENCED = "fenced"
    MOVED = "moved"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


class ShardState(StrEnum):
    """The health of a shard in one word."""

    UNKNOWN = "unknown"  # not probed yet
    HEALTHY = "healthy"
    DEGRADED = "degraded"  # it answers, and has a problem
    LOST = "lost"  # it does not answer, or no worker may use it


class ServerRole(StrEnum):
    """The role of a shard's server."""

    PRIMARY = "primary"
    STANDBY = "standby"
    READ_ONLY = "read-only"


class ShardProblem(StrEnum):
    """The kind of a shard's problem."""

    NO_ANSWER = "no_answer"
    REFUSED = "refused"  # another shard's database, missing rights, a wrong version
    READ_ONLY = "read_only"
    FAILING = "failing"  # it answers, and its last use failed, as with a full disk
    SLOW = "slow"  # the simplest answer takes over a second
    LAGGING = "lagging"  # a standby is behind
    CONNECTIONS = "connections"  # nearly all in use
    USAGE = "usage"  # nearly full of businesses
    INACTIVE = "inactive"  # marked by Citrus
    GAP = "gap"  # it takes no operations of the stream; queues go on
    CLOCK = "clock"  # over a minute off


class ShardErrorKind(StrEnum):
    """The kind of an error of a shard, as it is counted."""

    CONNECTION = "connection"
    UNAVAILABLE = "unavailable"  # the server cannot apply the batch now
    BROKEN = "broken"  # rights, schema, another shard's database
    BUSY = "busy"  # all connections stayed in use
    LOST_RACE = "lost_race"  # a deadlock or a lock: tried again at once
    STATEMENT = "statement"  # it failed on a working server
    DUPLICATE_KEY = "duplicate_key"  # a batch expected to be new was not, and is repeated


class CommitSafety(StrEnum):
    """How safe a message's commit is known to be when the message is deleted."""

    SYNCHRONOUS = "synchronous"  # confirmed by the standbys that the server names
    REPLICATED = "replicated"  # on the disks of all standbys that keep up
    LAGGING = "lagging"  # on the server's disk; there are standbys, and none keeps up
    UNKNOWN = "unknown"  # on the server's disk; there are standbys, and their positions are hidden
    LOCAL = "local"  # on the server's disk; it has no standby
    VOLATILE = "volatile"  # in the server's memory: it has no standby, and fsync is off


class MovePhase(StrEnum):
    """The phase of a mover, in order."""

    PREPARE = "prepare"
    COPY = "copy"
    CATCH_UP = "catch up"
    VERIFY = "verify"
    REHEARSE = "rehearse"
    FENCE = "fence"
    LAST_DELTA = "last delta"
    COMMIT = "commit"
    ACTIVATE = "activate"
    CERTIFY = "certify"
    PUBLISH = "publish"  # by the command


class TransferKind(StrEnum):
    """A kind of row in the journal of transfers; the first two are of a move, on its source and its target."""

    DEPARTURE = "departure"
    ARRIVAL = "arrival"
    IMPORT = "import"
    RESTORE = "restore"
    ADOPTION = "adopt"


class TransferStep(StrEnum):
    """The step of a transfer in the journal of a shard."""

    OPEN = "open"  # rows are copied, or before a restore exported; nothing is overwritten
    FOLLOWING = "following"  # an import has copied all, and keeps that up to date
    REPLACING = "replacing"  # only a restore ends the fence
    COPIED = "copied"  # by a restore
    READY = "ready"  # an arrival has all rows
    COMMITTED = "committed"  # a departure: the home is the target
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    CLEANING = "cleaning"
    CLEANED = "cleaned"


class MoveOutcome(StrEnum):
    """How a move ended."""

    MOVED = "moved"
    DIFFERS = "differs"  # the shards have not the same rows
    UNDONE = "undone"  # rolled back
    FAILED = "failed"  # the command gave up; run again, it counts again


class Inability(StrEnum):
    """Why a replica can do nothing for the stream: it takes no leases, and its peers take those that it has."""

    CITRUS_REFUSES_KEY = "citrus_refuses_key"
    CITRUS_UNREACHABLE = "citrus_unreachable"
    SHARDS_UNREACHABLE = "shards_unreachable"  # none of the Postgres shards takes operations
    STREAM_UNAVAILABLE = "stream_unavailable"  # no read of it is answered


class SourceState(StrEnum):
    """What a source of records does now."""

    RUNNING = "running"
    WAITING = "waiting"
    OPENING = "opening"
    POLLING = "polling"
    READING = "reading"


class StreamShardState(StrEnum):
    """What becomes of a stream shard at this replica."""

    READING = "reading"
    WAITS_FOR_MEMORY = "waits for memory"
    ENDED = "ended"
    RELEASED = "released"
    ELSEWHERE = "elsewhere"
    UNOWNED = "unowned"


class HoldState(StrEnum):
    """How far the operations of a held target are."""

    HELD = "held"
    READY = "ready"
    CATCHING_UP = "catching up"


class MessageOutcome(StrEnum):
    """How a message of a queue was decided."""

    DELETED = "deleted"  # done
    RETRIED = "retried"  # received again later
    DEAD_LETTER = "dead_letter"
    GIVEN_BACK = "given_back"  # not begun, beyond its tenant's share, or behind a retried message of its group
    LEASE_LOST = "lease_lost"  # hidden from other receivers no longer
    STALE_RECEIPT = "stale_receipt"  # done, and still in the queue: the receipt handle was refused
    NOT_DELETED = "not_deleted"  # done, and still in the queue: the deletion failed


class LeaseState(StrEnum):
    """A lease of the stream, as a replica sees it."""

    OWNED = "owned"  # by this replica
    OTHER = "other"  # by another one
    UNOWNED = "unowned"  # read by nobody, whatever its row says
    ENDED = "ended"  # a parent read to its end


class LeaseTake(StrEnum):
    """How a lease was taken."""

    FREE = "free"  # it had no owner
    EXPIRED = "expired"  # its owner went away
    STOLEN = "stolen"  # for balance
    ASSIGNED = "assigned"  # by the leader of a KCL 3.x
    RELEASED = "released"  # its owner can do nothing


class StreamReader(StrEnum):
    """What reads a stream shard."""

    MAIN = "main"
    CATCH_UP = "catch_up"  # reads held operations again
    PUSHED = "pushed"  # to main readers, by subscriptions


class CitrusEndpoint(StrEnum):
    """The requests to the shard manager."""

    GET_SHARD = "get_shard"
    REGISTER = "register"
    MOVE = "move"
    SHARDS_HEALTH = "shards_health"
    CAPACITY = "capacity"


class CitrusOutcome(StrEnum):
    """How a request to the shard manager ended."""

    OK = "ok"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"  # registered before
    REFUSED = "refused"  # the request
    DENIED = "denied"  # the key
    ERROR = "error"
    TIMEOUT = "timeout"


class ConnectionState(StrEnum):
    """A connection to a shard, or who waits for one."""

    IDLE = "idle"
    USED = "used"
    WAITING = "waiting"  # a caller without one


class ProvisioningOutcome(StrEnum):
    """How the provisioning of a tenant ended."""

    SUCCEEDED = "succeeded"
    EXISTED = "existed"
    FAILED = "failed"  # tried again


class ReloadOutcome(StrEnum):
    """How the reload of `SHARD_MAP_FILE` or `FEED_FILE` ended."""

    APPLIED = "applied"
    REFUSED = "refused"  # the previous one stays in effect


class CacheOutcome(StrEnum):
    """What became of the invalidation of a resource."""

    DONE = "done"
    RETRIED = "retried"
    DROPPED = "dropped"  # no room; the next epoch covers it


class Retry(StrEnum):
    """Why a read, a batch, an operation or a message was tried again."""

    READ_FAILED = "read_failed"  # of the stream or a queue
    SHARD_UNAVAILABLE = HoldReason.SHARD_UNAVAILABLE  # or Citrus
    FAILING = HoldReason.FAILING
    LOCKED = HoldReason.LOCKED
    OVER_LIMIT = HoldReason.OVER_LIMIT
    BLOCKED = "blocked"  # a control message, until a person acts


class FeedKind(StrEnum):
    """What an event of the feed tells; the type of its CloudEvent is `simplu.` and this."""

    RESOURCE_CREATED = "resource.created"
    RESOURCE_UPDATED = "resource.updated"
    RESOURCE_PATCHED = "resource.patched"
    RESOURCE_DELETED = "resource.deleted"
    RESOURCE_CHANGED = "resource.changed"  # by a control message or a rename
    TENANT_CREATED = "tenant.created"
    TENANT_MOVED = "tenant.moved"
    TENANT_DESTROYED = "tenant.destroyed"
    TENANT_REPLACED = "tenant.replaced"  # many of its resources at once, by a restore or an import
    RESET = "reset"  # the shard may have lost commits: what is behind a place comes again
    GAP = "gap"  # events that the log no longer has


class FeedData(StrEnum):
    """What an event of the feed has of its resource."""

    NONE = "none"
    CURRENT = "current"  # the row, as read when the event is published


class FeedBeginning(StrEnum):
    """Where the feed of a new destination begins, beside a time."""

    NOW = "now"
    OLDEST = "oldest"


class OnRefusal(StrEnum):
    """What the feed does behind an event that a destination refuses for good."""

    CONTINUE = "continue"
    STOP = "stop"


class Validation(StrEnum):
    """Whether documents of a resource type are judged by its schema: never, to be counted, or to be refused."""

    OFF = "off"
    WARN = "warn"
    ENFORCE = "enforce"


class ColumnType(StrEnum):
    """The type of a view's column; a member of another type is null there."""

    TEXT = "text"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"


class DestinationKind(StrEnum):
    """Where the feed sends events."""

    KINESIS = "kinesis"
    SQS = "sqs"  # a FIFO queue
    WEBHOOK = "webhook"
    NOTIFICATION = "notification"  # as the TypeScript worker sent it


class FeedDelivery(StrEnum):
    """What a destination of the feed answered to an event."""

    DELIVERED = "delivered"
    RETRIED = "retried"
    REFUSED = "refused"


class FeedStop(StrEnum):
    """Why a shard sends a destination nothing any more, until a person lets it go on."""

    REFUSED = "refused"  # an event, and the destination's setting is to stop then
    DISABLED = "disabled"  # the destination wants no more (HTTP 410)
