"""The answers over HTTP as types, from which `/openapi.json` is made. Pure.

A member that may be unset is absent where it does not apply, or where the caller does not see it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from simplu_worker.status.words import ProblemCause, RequestStatus, Role, Severity, UnreadyReason

Json: TypeAlias = dict[str, Any]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Points: TypeAlias = list[float | None]


class Members(msgspec.Struct, rename="camel"):
    """The members of a JSON object."""

    def json(self) -> Json:
        """Return the members as JSON values, with times and JSON text as they are."""
        members: Json = msgspec.to_builtins(self, builtin_types=(datetime, msgspec.Raw))
        return members


class TenantHold(Members):
    """Why a tenant's operations are held."""

    reason: str
    since: datetime | UnsetType = UNSET
    advice: str | UnsetType = UNSET
    runbook: str | UnsetType = UNSET


class Error(Members):
    """An error for people."""

    error: str
    retry_after_seconds: Count | UnsetType = UNSET
    held: TenantHold | UnsetType | None = UNSET


class Health(Members):
    """The answer to a probe."""

    status: Literal["ok", "unavailable"]
    reason: str | UnsetType = UNSET


class FeedDestination(Members):
    """A destination of the feed, over all shards."""

    name: str
    lag_seconds: float
    shards: Count
    waiting_shards: Count
    stopped_shards: list[str]
    error: str | UnsetType | None = UNSET


class FeedState(Members):
    """The feed: how many shards this replica publishes, and the destinations."""

    published_shards: Count
    destinations: list[FeedDestination]


class Status(Members):
    """The state of this replica."""

    version: str
    uptime_s: float = msgspec.field(name="uptime_s")
    ready: bool | UnreadyReason
    sources: list[Json]
    queues: list[Json]
    stream_shards: list[Json]
    shards: list[Json]
    held: list[Json]
    replica: str | UnsetType = UNSET
    role: Role | UnsetType | None = UNSET
    unready_detail: str | UnsetType | None = UNSET
    held_advice: Json | UnsetType = UNSET
    prefetch: Json | UnsetType | None = UNSET
    moves: list[Json] | UnsetType = UNSET
    feed: FeedState | UnsetType | None = UNSET
    cache: Json | UnsetType | None = UNSET
    troubles: list[Json] | UnsetType = UNSET
    counts: Json | UnsetType = UNSET
    retention_seconds: float | UnsetType | None = UNSET
    certificate_end: datetime | UnsetType | None = UNSET
    citrus: str | UnsetType | None = UNSET
    recent_errors: list[Json] | UnsetType = UNSET
    counters: Json | UnsetType = UNSET


class TopLocation(Members):
    """The seconds of the last minute that a location took of a shard."""

    tenant: str
    seconds: float


class TopBusiness(Members):
    """A business that took most of a shard's time in the last minute."""

    shard_id: str
    business_id: str
    seconds: float
    share: float | UnsetType = UNSET
    locations: list[TopLocation] | UnsetType = UNSET


class HeldTarget(Members):
    """A held target, as a replica names it."""

    target: str
    reason: str
    stream_shard: str | UnsetType = UNSET
    age_seconds: float | UnsetType = UNSET


class Replica(Members):
    """A replica that shares the stream."""

    replica: str
    is_this: bool
    leases: Count
    held: list[HeldTarget]
    version: str | UnsetType | None = UNSET
    unable: str | UnsetType | None = UNSET
    lag_seconds: float | UnsetType | None = UNSET
    records_per_second: float | UnsetType | None = UNSET
    read_kbps: float | UnsetType | None = msgspec.field(name="readKBps", default=UNSET)
    held_targets: float | UnsetType | None = UNSET
    seen_seconds_ago: float | UnsetType | None = UNSET
    is_silent: bool | UnsetType = UNSET
    latency_p99_seconds: float | UnsetType | None = UNSET
    dead_letters: float | UnsetType | None = UNSET
    top_businesses: list[TopBusiness] | UnsetType = UNSET


class StreamShard(Members):
    """A stream shard, as its lease tells."""

    stream_shard: str
    owner: str | None
    state: str
    lag_seconds: float | UnsetType | None = UNSET
    records_per_second: float | UnsetType | None = UNSET
    read_kbps: float | UnsetType | None = msgspec.field(name="readKBps", default=UNSET)
    records_read: float | UnsetType | None = UNSET
    held_targets: float | UnsetType | None = UNSET
    read_up_to: str | UnsetType | None = UNSET
    checkpoint: str | UnsetType = UNSET
    seen_seconds_ago: float | UnsetType | None = UNSET
    is_silent: bool | UnsetType = UNSET


class Problem(Members):
    """What is wrong with the fleet, or was within a day."""

    cause: ProblemCause
    severity: Severity
    problem: str
    subject: str | None
    count: float
    since: str
    at: str
    is_over: bool
    advice: str
    runbook: str
    reason: str | UnsetType | None = UNSET


class Fleet(Members):
    """The replicas that share the stream."""

    at: str
    stream: str | None
    replicas: list[Replica]
    stream_shards: list[StreamShard]
    counts: Json
    replica: str | UnsetType = UNSET
    role: Role | UnsetType | None = UNSET
    top_businesses: list[TopBusiness] | UnsetType = UNSET
    held_advice: Json | UnsetType = UNSET
    problems: list[Problem] | UnsetType = UNSET


class StreamPoints(Members):
    """The last hour of a stream shard."""

    stream_shard: str
    lag_seconds: Points
    records_per_second: Points


class FleetPoints(Members):
    """The fleet over an hour, or a day."""

    interval_seconds: float
    at: list[Count]
    records_per_second: Points | UnsetType = UNSET
    lag_seconds: Points | UnsetType = UNSET
    latency_p99_seconds: Points | UnsetType = UNSET
    held_targets: Points | UnsetType = UNSET
    dead_letters: Points | UnsetType = UNSET
    replicas: Points | UnsetType = UNSET


class FleetHistory(Members):
    """The stream shards over an hour, and the fleet over an hour and a day."""

    interval_seconds: float
    at: str | None
    stream_shards: list[StreamPoints]
    hour: FleetPoints
    day: FleetPoints


class Retry(Members):
    """How many holds this replica tries, and the replicas that were asked to."""

    retried: Count
    asked: list[str]
    not_asked: list[str]


class Controls(Members):
    """What people have set for a tenant, or on one shard for a business."""

    shard_id: str
    paused_until: datetime | None
    weight: float
    operations_per_second: float | None = None
    bytes_per_second: float | None = None


class BusinessControls(Members):
    """What people have set for a business on each shard."""

    shards: list[Json]
    shards_without_answer: list[str]


class BusinessShare(Members):
    """Weight and limits of a tenant's business on its shard."""

    weight: float
    operations_per_second: float | None
    bytes_per_second: float | None


class Letters(Members):
    """Dead letters."""

    letters: list[Json]
    is_cut: bool
    hidden: Count
    behind: Count
    until: str
    notes: list[str]
    not_letters: list[Json] | UnsetType = UNSET
    matched: Count | UnsetType = UNSET


class ActedOnLetters(Members):
    """A replay of dead letters, or their deletion; or the plan of it."""

    applied: bool
    left: Count
    until: str
    notes: list[str]
    letters: list[Json] | UnsetType = UNSET
    sent: Count | UnsetType = UNSET
    would_send: Count | UnsetType = UNSET
    discarded: Count | UnsetType = UNSET
    would_discard: Count | UnsetType = UNSET


class Edit(Members):
    """A corrected record, sent or not."""

    applied: bool
    sent: Count
    operation: str
    business_id: str
    location_id: str
    resource_type: str
    request_id: str
    old_request_id: str
    partition_key: str
    arrived_at: str
    notes: list[str]
    resource_id: str | UnsetType | None = UNSET


class Shards(Members):
    """Every known shard now."""

    shards: list[Json]
    shards_without_answer: list[str] | UnsetType = UNSET


class Operation(Members):
    """What became of an operation."""

    request_id: str
    status: RequestStatus
    operation: str | UnsetType = UNSET
    resource_type: str | UnsetType = UNSET
    resource_id: str | UnsetType = UNSET
    error: str | UnsetType | None = UNSET
    result: Any | UnsetType = UNSET
    received_at: datetime | UnsetType | None = UNSET
    completed_at: datetime | UnsetType | None = UNSET
    shard_id: str | UnsetType = UNSET
    dead_letter_queue: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    sequence_number: str | UnsetType | None = UNSET
    message_id: str | UnsetType | None = UNSET
    rejected_at: datetime | UnsetType | None = UNSET
    reason: str | UnsetType = UNSET
    since: datetime | UnsetType | None = UNSET
    read_up_to: datetime | UnsetType | None = UNSET
    lag_seconds: float | UnsetType | None = UNSET
    answer_until: datetime | UnsetType | None = UNSET
    shards_without_answer: list[str] | UnsetType = UNSET


class Operations(Members):
    """A page of a tenant's operations."""

    operations: list[Operation]
    next: str | UnsetType | None = UNSET
    searched_to: datetime | UnsetType | None = UNSET
    shard_id: str | UnsetType = UNSET


class Refusal(Members):
    """The last refused control message of a tenant."""

    reason: str
    at: datetime
    error: str | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    message_id: str | UnsetType | None = UNSET
    dead_letter_queue: str | UnsetType = UNSET


class NoTenant(Members, kw_only=True):
    """A tenant that no shard has."""

    state: str
    business_id: str | UnsetType = UNSET
    location_id: str | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    held: TenantHold | UnsetType | None = UNSET
    refused: Refusal | UnsetType | None = UNSET


class Tenant(NoTenant, kw_only=True):
    """A tenant's row."""

    business_id: str
    location_id: str
    shard_id: str
    business_type: str | UnsetType = UNSET
    moved_to: str | UnsetType | None = UNSET
    created_at: datetime | UnsetType | None = UNSET
    paused_until: datetime | UnsetType | None = UNSET
    weight: float | UnsetType = UNSET
    operations_per_second: float | UnsetType | None = UNSET
    bytes_per_second: float | UnsetType | None = UNSET
    business: BusinessShare | UnsetType | None = UNSET
    resources: Count | UnsetType | None = UNSET
    operations: Count | UnsetType | None = UNSET


class Resource(Members):
    """A resource as its row is now."""

    business_id: str
    location_id: str
    resource_type: str
    resource_id: str
    shard_id: str
    exists: bool
    size_bytes: Count | UnsetType | None = UNSET
    date: datetime | UnsetType | None = UNSET
    last_updated: datetime | UnsetType | None = UNSET
    data: Json | msgspec.Raw | UnsetType | None = UNSET


class Queues(Members):
    """The queues as SQS reports them, and their handlers."""

    queues: list[Json]
    handlers: list[Json] | UnsetType = UNSET


class Purge(Members):
    """A queue that is being emptied."""

    queue: str
    empty_within_seconds: Count


class Handler(Members):
    """The state of the worker and of its sources."""

    running: bool
    state: str
    sources: list[Json]
    reason: str | UnsetType | None = UNSET
    detail: str | UnsetType | None = UNSET
    replica: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    uptime_seconds: float | UnsetType = UNSET


class CacheKeys(Members):
    """Keys of the cache."""

    keys: list[str]
    count: Count
    has_more: bool
