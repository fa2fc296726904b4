"""The streams of the local Kinesis: their creation, reshards, writes, reads and trimming. Pure.

Callers pass the time as *now_ms*, which must not go backwards. A change that takes time in AWS (a stream's creation, a
reshard) gets the time at which it is due, and `apply_due` makes the due changes: no change happens without that call.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import msgspec

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_local.kinesis.consumers import ConsumerRegistry
from simplu_local.kinesis.errors import invalid_argument, resource_in_use, resource_not_found, throughput_exceeded
from simplu_local.kinesis.quotas import MAX_REPLY_BYTES
from simplu_local.kinesis.reshard import HashRange, Merge, ReshardStep, Split, equal_ranges, scaling_steps
from simplu_local.kinesis.stream_shard import LocalStreamShard, NewRecord, ReadResult

HOUR_MS = 3_600_000
DEFAULT_RETENTION_HOURS, MAX_RETENTION_HOURS = 24, 8760  # API_IncreaseStreamRetentionPeriod
DEFAULT_RECORD_KIB = 1024  # API_CreateStream, MaxRecordSizeInKiB
TRIMMED_AT_ONCE = 0.05  # of the allowed memory: trimming one record for each new one would be slow


class KinesisOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options, to be set at the start and while running."""

    read_throttling: bool = True
    write_throttling: bool = False
    scaling_limits: bool = True  # at most double, at least half: API_UpdateShardCount
    iterator_ttl_ms: int = 300_000  # API_GetShardIterator
    page_token_ttl_ms: int = 300_000  # API_ListShards, NextToken
    page_size: int = 1000  # API_ListShards, MaxResults; fewer make every reader request several pages
    create_delay_ms: int = 50
    update_delay_ms: int = 50
    delete_delay_ms: int = 50
    memory_max_bytes: int = 256 * 1024 * 1024  # of one stream
    end_with_last_records: bool = False  # the reply with the last records of a closed stream shard is also its end
    null_next_iterator: bool = False  # at the end NextShardIterator is null, not absent
    consumer_delay_ms: int = 50  # until a registered consumer is ACTIVE
    subscription_ms: int = 300_000  # API_SubscribeToShard
    heartbeat_ms: int = 5000  # between two events without records
    push_interval_ms: int = 10  # between two events with records, at least


class LocalStream:
    """A stream and its stream shards, except those past their retention."""

    def __init__(self, name: str, shard_count: int, *, now_ms: int, options: KinesisOptions) -> None:
        self.name = name
        self.arn = f"arn:aws:kinesis:{REGION}:{ACCOUNT_ID}:stream/{name}"
        self.consumers = ConsumerRegistry(self.arn)
        self.created_ms = now_ms
        self.retention_hours = DEFAULT_RETENTION_HOURS
        self.max_record_bytes = DEFAULT_RECORD_KIB * 1024
        self.forced_status: str | None = None
        self.gone_at_ms: int | None = None
        self.stream_shards: dict[str, LocalStreamShard] = {}
        self.trimmed_for_memory = 0
        self._options = options
        self._active_at_ms = now_ms + options.create_delay_ms
        self._now_ms = now_ms
        self._next_index = 0
        self._steps: deque[tuple[int, ReshardStep]] = deque()
        self._open = [self._add_stream_shard(hash_range, (), now_ms) for hash_range in equal_ranges(shard_count)]

    def __repr__(self) -> str:
        return f"Stream({self.name}, {self.status}, {len(self._open)} of {len(self.stream_shards)} open)"

    @property
    def status(self) -> str:
        """CREATING, ACTIVE, UPDATING or DELETING, as of the last `apply_due`."""
        if self.forced_status is not None:
            return self.forced_status
        if self.gone_at_ms is not None:
            return "DELETING"
        if self._now_ms < self._active_at_ms:
            return "CREATING"
        return "UPDATING" if self._steps else "ACTIVE"

    @property
    def open_stream_shards(self) -> Sequence[LocalStreamShard]:
        """The open stream shards, sorted by hash range: together they cover every hash key once."""
        return self._open

    @property
    def trim_horizon_ms(self) -> int:
        """The time before which no record is stored."""
        return max(self.created_ms, self._now_ms - self.retention_hours * HOUR_MS)

    def apply_due(self, now_ms: int) -> None:
        """Make the changes that are due: reshards, and the end of retention."""
        self._now_ms = max(now_ms, self._now_ms)
        while self._steps and self._steps[0][0] <= self._now_ms:
            due_ms, step = self._steps.popleft()
            self._reshard(step, due_ms)
        self._expire()

    def require_active(self) -> None:
        """Raise unless the stream may be changed: only an ACTIVE one may (API_SplitShard, API_UpdateShardCount)."""
        if self.status != "ACTIVE":
            raise resource_in_use(f"stream {self.name} is not ACTIVE, it is {self.status}")

    def find(self, stream_shard_id: str) -> LocalStreamShard:
        """Return a stream shard. Raises ResourceNotFoundException, also for one past its retention."""
        if stream_shard := self.stream_shards.get(stream_shard_id):
            return stream_shard
        raise resource_not_found(f"could not find shard {stream_shard_id} in stream {self.name}")

    def put(self, record: NewRecord) -> tuple[LocalStreamShard, str]:
        """Append *record* to the stream shard of its hash key; return that and the sequence number (API_PutRecord).

        Raises ProvisionedThroughputExceededException when writes are throttled.
        """
        at = bisect_right(self._open, record.hash_key, key=lambda stream_shard: stream_shard.hash_range.start) - 1
        stream_shard = self._open[at]
        if self._options.write_throttling and not stream_shard.write_quota.acquire(record.size_bytes, self._now_ms):
            raise throughput_exceeded(f"rate exceeded for shard {stream_shard.stream_shard_id} in stream {self.name}")
        return stream_shard, stream_shard.put(record, self._now_ms)

    def read(self, stream_shard: LocalStreamShard, position: int, *, limit: int) -> ReadResult:
        """Read a stream shard within its quota (API_GetRecords). Raises ProvisionedThroughputExceededException."""
        throttling = self._options.read_throttling
        if throttling and not stream_shard.read_quota.acquire(self._now_ms):
            raise throughput_exceeded(f"rate exceeded for shard {stream_shard.stream_shard_id} in stream {self.name}")
        records = stream_shard.read(position, limit=limit, max_bytes=MAX_REPLY_BYTES)
        if throttling:
            stream_shard.read_quota.count_read(records.size_bytes, self._now_ms, was_full=records.was_full)
        return records

    def split(self, stream_shard_id: str, hash_key: int) -> None:
        """Begin to split an open stream shard at *hash_key* (API_SplitShard)."""
        stream_shard = self._find_reshardable(stream_shard_id)
        # As in AWS, neither child may cover only one hash key.
        if not stream_shard.hash_range.start + 1 < hash_key < stream_shard.hash_range.end:
            raise invalid_argument(
                f"NewStartingHashKey {hash_key} does not divide the hash range of shard {stream_shard_id}"
            )
        self._schedule([Split(hash_key)])

    def merge(self, stream_shard_id: str, adjacent_id: str) -> None:
        """Begin to merge two open adjacent stream shards, given in either order (API_MergeShards)."""
        first, second = self._find_reshardable(stream_shard_id), self._find_reshardable(adjacent_id)
        lower, upper = sorted((first, second), key=lambda stream_shard: stream_shard.hash_range)
        if lower.hash_range.end + 1 != upper.hash_range.start:
            raise invalid_argument(f"shards {stream_shard_id} and {adjacent_id} are not adjacent")
        self._schedule([Merge(upper.hash_range.start, upper_first=first is upper)])

    def scale(self, target_count: int) -> None:
        """Begin to change the number of open stream shards (API_UpdateShardCount, UNIFORM_SCALING)."""
        self.require_active()
        count = len(self._open)
        if self._options.scaling_limits and not count <= target_count * 2 <= count * 4:
            raise invalid_argument(
                f"UpdateShardCount goes to half or double at most: {count} are open, {target_count} wanted"
            )
        self._schedule(scaling_steps([stream_shard.hash_range for stream_shard in self._open], target_count))

    def limit_memory(self) -> int:
        """Trim the oldest records when the stream takes too much memory; return their number."""
        most = self._options.memory_max_bytes
        stored = sum(stream_shard.stored_bytes for stream_shard in self.stream_shards.values())
        if stored <= most:
            return 0
        trimmed = 0
        while stored > most * (1 - TRIMMED_AT_ONCE):
            _, oldest = min((one.oldest_ms, one.index, one) for one in self.stream_shards.values() if one.oldest_ms)[1:]
            before = oldest.stored_bytes
            trimmed += oldest.trim(max(1, (oldest.end_position - oldest.first_position) // 100))
            stored -= before - oldest.stored_bytes
        self.trimmed_for_memory += trimmed
        return trimmed

    def _find_reshardable(self, stream_shard_id: str) -> LocalStreamShard:
        stream_shard = self.find(stream_shard_id)
        self.require_active()
        if not stream_shard.is_open:
            raise resource_in_use(f"shard {stream_shard_id} in stream {self.name} has already been merged or split")
        return stream_shard

    def _schedule(self, steps: Sequence[ReshardStep]) -> None:
        """Spread *steps* over the delay, so that records may be put between them."""
        for number, step in enumerate(steps, start=1):
            self._steps.append((self._now_ms + self._options.update_delay_ms * number // len(steps), step))
        self.apply_due(self._now_ms)

    def _reshard(self, step: ReshardStep, now_ms: int) -> None:
        at = bisect_right(self._open, step.hash_key, key=lambda stream_shard: stream_shard.hash_range.start) - 1
        match step:
            case Split(hash_key):
                parents: tuple[LocalStreamShard, ...] = (self._open[at],)
                whole = parents[0].hash_range
                ranges = [HashRange(whole.start, hash_key - 1), HashRange(hash_key, whole.end)]
                self._open[at : at + 1] = self._replace(parents, ranges, now_ms)
            case Merge(_, upper_first):
                lower, upper = self._open[at - 1], self._open[at]
                parents = (upper, lower) if upper_first else (lower, upper)
                ranges = [HashRange(lower.hash_range.start, upper.hash_range.end)]
                self._open[at - 1 : at + 1] = self._replace(parents, ranges, now_ms)

    def _replace(
        self, parents: tuple[LocalStreamShard, ...], ranges: Sequence[HashRange], now_ms: int
    ) -> list[LocalStreamShard]:
        children = [self._add_stream_shard(hash_range, parents, now_ms) for hash_range in ranges]
        for parent in parents:
            parent.close(tuple(children), now_ms)
        return children

    def _add_stream_shard(
        self, hash_range: HashRange, parents: tuple[LocalStreamShard, ...], now_ms: int
    ) -> LocalStreamShard:
        stream_shard = LocalStreamShard(self._next_index, hash_range, parents=parents, now_ms=now_ms)
        self._next_index += 1
        self.stream_shards[stream_shard.stream_shard_id] = stream_shard
        return stream_shard

    def _expire(self) -> None:
        """Drop records older than the retention, and stream shards that were closed before it ("after a reshard")."""
        horizon_ms = self._now_ms - self.retention_hours * HOUR_MS
        if horizon_ms <= self.created_ms:
            return
        for stream_shard in list(self.stream_shards.values()):
            stream_shard.trim_before(horizon_ms)
            if stream_shard.closed_ms is not None and stream_shard.closed_ms < horizon_ms:
                del self.stream_shards[stream_shard.stream_shard_id]


class KinesisAccount:
    """The streams of the account, by name."""

    def __init__(self, options: KinesisOptions | None = None) -> None:
        self.options = options or KinesisOptions()
        self.streams: dict[str, LocalStream] = {}
        self.generation = 0  # of iterators: those of an earlier generation have expired

    def __repr__(self) -> str:
        return f"Account({list(self.streams.values())})"

    def apply_due(self, now_ms: int) -> None:
        """Make the changes that are due, in every stream."""
        for stream in list(self.streams.values()):
            stream.apply_due(now_ms)
            if stream.gone_at_ms is not None and stream.gone_at_ms <= now_ms:
                del self.streams[stream.name]

    def create(self, name: str, shard_count: int, now_ms: int) -> LocalStream:
        """Begin to create a stream (API_CreateStream)."""
        if name in self.streams:
            raise resource_in_use(f"stream {name} already exists")
        stream = self.streams[name] = LocalStream(name, shard_count, now_ms=now_ms, options=self.options)
        return stream

    def find(self, name: str) -> LocalStream:
        """Return a stream. Raises ResourceNotFoundException."""
        if stream := self.streams.get(name):
            return stream
        raise resource_not_found(f"stream {name} under account {ACCOUNT_ID} not found")

    def delete(self, name: str, now_ms: int) -> None:
        """Begin to delete a stream (API_DeleteStream); it can be read and written until it is gone."""
        stream = self.find(name)
        stream.require_active()
        stream.gone_at_ms = now_ms + self.options.delete_delay_ms
        self.apply_due(now_ms)

    def expire_iterators(self) -> None:
        """Let every issued iterator expire."""
        self.generation += 1


def set_retention(stream: LocalStream, hours: int, *, longer: bool) -> None:
    """Change a stream's retention (API_IncreaseStreamRetentionPeriod, API_DecreaseStreamRetentionPeriod)."""
    stream.require_active()
    if not DEFAULT_RETENTION_HOURS <= hours <= MAX_RETENTION_HOURS:
        raise invalid_argument(
            f"expected a retention of {DEFAULT_RETENTION_HOURS} to {MAX_RETENTION_HOURS} hours, got {hours}"
        )
    if (hours < stream.retention_hours) if longer else (hours > stream.retention_hours):
        change = "more" if longer else "less"
        raise invalid_argument(f"expected a retention of {change} than {stream.retention_hours} hours, got {hours}")
    stream.retention_hours = hours
