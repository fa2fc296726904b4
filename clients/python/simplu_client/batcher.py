"""Which operations go into the next PutRecords, so that those of a partition key are accepted in their order. Pure.

Kinesis may accept a later record of a request and reject an earlier one. So a request has at most one record of a key,
with as many of the key's operations as it takes, and a key with a record in a request is in no other. Operations that
were not accepted stay the first of their key; more of the key may go along when they are sent again.

What was not accepted waits for a back-off: of its stream shard, or of its key where no answer has named the shard yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, TypeAlias, TypeVar

MAX_OPERATIONS = 1000  # of a record: docs/sending.md
MAX_SHARED_BYTES = 256 * 1024  # of a record with several: a quarter of what a stream shard takes in a second
MAX_RECORDS = 500  # of a request: API_PutRecords
MAX_REQUEST_BYTES = 5 * 1024 * 1024  # data and keys of a request: the lower of the quotas that API_PutRecords has had
KEYS_MIN = 10  # that fill the queue: one key has at most such a part of it
KNOWN_KEYS_MAX = 50_000  # keys whose stream shard is remembered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the queue, and of the tries of an operation: for how long, and how far apart."""

    max_count: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    give_up_s: float = 120.0
    base_s: float = 0.1
    max_s: float = 5.0


@dataclass(slots=True)
class Pending(Generic[T]):
    """An operation that is queued or in a request. *tried_at* is the time of its first try."""

    item: T
    key: str
    size_bytes: int
    tried_at: float | None = None
    may_be_sent: bool = False


Record: TypeAlias = list[Pending[T]]
"""The operations of one key that are put as one record, in their order."""


class Answer(NamedTuple):
    """What became of a record in a request: the stream shard that has it, or none.

    Of one without, *is_unknown* says that Kinesis may have it nevertheless, as after a reply that was cut.
    """

    stream_shard_id: str | None
    is_unknown: bool = False


class Settled(NamedTuple, Generic[T]):
    """The operations of a request that are accepted, and those given up: with all that is queued behind them."""

    accepted: list[Pending[T]]
    given_up: list[Pending[T]]


class _Pause(NamedTuple):
    span_s: float
    until: float


@dataclass(slots=True)
class _KeyQueue(Generic[T]):
    operations: deque[Pending[T]] = field(default_factory=deque)
    size_bytes: int = 0
    put_count: int = 0


class Batcher(Generic[T]):
    """The queue of operations, by partition key; callers pass the time and the random draws."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.count = 0
        self.size_bytes = 0
        self._queues: dict[str, _KeyQueue[T]] = {}
        self._ready: dict[str, None] = {}  # keys with no record in a request; who has waited longest is first
        self._shards: dict[str, str] = {}  # the stream shard of a key, as last answered
        self._pauses: dict[str, _Pause] = {}  # by lane

    def __repr__(self) -> str:
        return f"Batcher({self.count} operations, {len(self._ready)} of {len(self._queues)} keys ready, {self._pauses})"

    def has_room(self, key: str, size_bytes: int) -> bool:
        """Return whether an operation of *size_bytes* may be added now; the first of a key may have any size."""
        limits, queue = self.limits, self._queues.get(key)
        if self.count >= limits.max_count or (self.count and self.size_bytes + size_bytes > limits.max_bytes):
            return False
        return queue is None or (
            len(queue.operations) < limits.max_count // KEYS_MIN
            and queue.size_bytes + size_bytes <= limits.max_bytes // KEYS_MIN
        )

    def add(self, item: T, key: str, size_bytes: int) -> None:
        """Queue an operation behind those of its key."""
        if key not in self._queues:
            self._queues[key] = _KeyQueue()
            self._ready[key] = None
        queue = self._queues[key]
        queue.operations.append(Pending(item, key, size_bytes))
        queue.size_bytes += size_bytes
        self.count += 1
        self.size_bytes += size_bytes

    def next_batch(self, now: float) -> list[Record[T]]:
        """Take the records of the next request; none when none may be sent now. `settle` has to follow."""
        batch: list[Record[T]] = []
        left_bytes = MAX_REQUEST_BYTES
        for key in self._ready:
            if self._paused_until(key) > now:
                continue
            record, size_bytes = self._next_record(key)
            left_bytes -= size_bytes
            if len(batch) == MAX_RECORDS or left_bytes < 0:
                break
            batch.append(record)
        for record in batch:
            key = record[0].key
            del self._ready[key]
            self._queues[key].put_count = len(record)
            for one in record:
                one.tried_at = now if one.tried_at is None else one.tried_at
        return batch

    def _next_record(self, key: str) -> tuple[Record[T], int]:
        """Return the first operations of a key that go into one record, and its size: at most that."""
        operations = self._queues[key].operations
        record, size_bytes = [operations[0]], operations[0].size_bytes
        for one in islice(operations, 1, MAX_OPERATIONS):
            if size_bytes + one.size_bytes > MAX_SHARED_BYTES:
                break
            record.append(one)
            size_bytes += one.size_bytes
        return record, size_bytes

    def settle(self, batch: Sequence[Record[T]], answers: Sequence[Answer], *, now: float, draw: float) -> Settled[T]:
        """Take note of the answers to a request; *draw* (0 ≤ draw < 1) spreads the next tries of several producers."""
        settled: Settled[T] = Settled([], [])
        accepting: set[str] = set()
        failing: set[str] = set()
        for record, answer in zip(batch, answers, strict=True):
            key = record[0].key
            queue = self._queues.get(key)
            if queue is None or queue.operations[0] is not record[0]:
                continue  # drained meanwhile
            queue.put_count = 0
            if answer.stream_shard_id is not None:
                self._remember_shard(key, answer.stream_shard_id)
                accepting.add(answer.stream_shard_id)
                settled.accepted.extend(self._remove_first(key) for _ in record)
            else:
                for one in record:
                    one.may_be_sent = one.may_be_sent or answer.is_unknown
                if now - (record[0].tried_at or 0.0) >= self.limits.give_up_s:
                    while key in self._queues:
                        settled.given_up.append(self._remove_first(key))
                else:
                    failing.add(self._lane(key))
            if key in self._queues:
                self._ready[key] = None
        for lane in accepting - failing:
            self._pauses.pop(lane, None)
        for lane in failing:
            last = self._pauses.get(lane)
            span_s = self.limits.base_s if last is None else min(self.limits.max_s, 2 * last.span_s)
            self._pauses[lane] = _Pause(span_s, now + span_s * (0.5 + draw / 2))
        return settled

    def next_at(self) -> float | None:
        """Return the time from which `next_batch` has a record; none as long as nothing is added or settled."""
        return min(map(self._paused_until, self._ready), default=None)

    def drain(self) -> list[Pending[T]]:
        """Remove and return all operations; those in a request may be sent."""
        for queue in self._queues.values():
            for one in islice(queue.operations, queue.put_count):
                one.may_be_sent = True
        return [self._remove_first(key) for key in list(self._queues) for _ in range(len(self._queues[key].operations))]

    def _lane(self, key: str) -> str:
        return self._shards.get(key) or f"key {key}"

    def _paused_until(self, key: str) -> float:
        pause = self._pauses.get(self._lane(key))
        return float("-inf") if pause is None else pause.until

    def _remember_shard(self, key: str, stream_shard_id: str) -> None:
        self._pauses.pop(f"key {key}", None)
        if key not in self._shards and len(self._shards) >= KNOWN_KEYS_MAX:
            del self._shards[next(iter(self._shards))]
        self._shards[key] = stream_shard_id

    def _remove_first(self, key: str) -> Pending[T]:
        queue = self._queues[key]
        operation = queue.operations.popleft()
        queue.size_bytes -= operation.size_bytes
        if not queue.operations:
            del self._queues[key]
            self._ready.pop(key, None)
            self._pauses.pop(f"key {key}", None)
        self.count -= 1
        self.size_bytes -= operation.size_bytes
        return operation
