"""The values from which the reader of a stream shard is made: services, settings, assignment and lease. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec

from simplu_worker.consumers.kinesis.fetch.read_schedule import ReadSchedule
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import ReadAhead
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Stream
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, Start
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.dead_letters.queue import DeadLetterStore
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.vocabulary import PartitionKeyRule


class ReaderServices(msgspec.Struct, frozen=True):
    """The services that a reader uses, opened; with *subscriptions* it reads by push.

    With a *schedule* it reads when other readers of the replica do.
    """

    stream: Stream
    gateway: ShardGateway
    dead_letters: DeadLetterStore
    subscriptions: Subscriptions | None = None
    schedule: ReadSchedule | None = None


class ReaderSettings(msgspec.Struct, frozen=True):
    """The settings of reading."""

    operation_max_bytes: int
    list_result_limit: int
    tenant_wait: timedelta
    partition_key: PartitionKeyRule = PartitionKeyRule.RESOURCE_TYPE
    ahead_from_s: float = 30.0  # the lease row gets a read-ahead when the held records are so much older than the read
    drain_s: float = 20.0  # less than SHUTDOWN_GRACE_SECONDS: the leases are released after it


class ReaderAssignment(msgspec.Struct, frozen=True):
    """The stream shard to read, and where its last reader and the readers of its parents stopped.

    *checkpoint* is the position of the record at *start*, if any: of an aggregate, some sub-records may be done. With
    *read_ahead* the main reader continues where its predecessor was, and the tenants that the predecessor held are read
    again from the checkpoint. No operation of the tenants in *pending_at_parents* is applied before the readers of the
    parents have finished with the tenant (`StreamShardReader.release_from_parents`). *retention* is that of the stream;
    all that arrived before *read_up_to* was read.
    """

    stream_shard_id: str
    start: Start
    checkpoint: Position | None = None
    hash_range: HashRange | None = None
    read_ahead: ReadAhead | None = None
    pending_at_parents: TenantSet | None = None
    retention: timedelta | None = None
    read_up_to: datetime | None = None


class LeaseContext(msgspec.Struct, frozen=True):
    """What a reader learns from the lease under which it reads.

    *confirm* returns whether the lease is still the replica's at this moment. *lineage* returns the parents of the
    stream shard and their parents. *started_at* is the time from which the stream shard is read, if not from its
    beginning. *is_end* decides, given the child shards of a reply without an iterator, whether the stream shard has
    ended; otherwise the reader goes on. Without *is_end* every such reply is the end.
    """

    confirm: Callable[[], Awaitable[bool]]
    lineage: Callable[[], Lineage]
    started_at: datetime | None
    is_end: Callable[[tuple[ChildShard, ...]], Awaitable[bool]] | None = None
