"""Which records go into the next PutRecords, so that those of a partition key are accepted in their order. Pure.

Kinesis may accept a later record of a request and reject an earlier one. So a request has at most one record of a key,
and a key with a record in a request is in no other. A record that was not accepted stays the first of its key.

What was not accepted waits for a back-off: of its stream shard, or of its key where no answer has named the shard yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

MAX_RECORDS = 500  # of a request: API_PutRecords
MAX_REQUEST_BYTES = 5 * 1024 * 1024  # data and keys of a request: the lower of the quotas that API_PutRecords has had
KNOWN_KEYS_MAX = 50_000  # keys whose stream shard is remembered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the queue, and of the tries of a record: for how long, and how far apart."""

    max_count: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    give_up_s: float = 120.0
    base_s: float = 0.1
    max_s: float = 5.0


@dataclass(slots=True)
class Pending(Generic[T]):
    """A record that is queued or in a request. *tried_at* is the time of its first try."""

    item: T
    key: str
    size_bytes: int
    tried_at: float | None = None
    may_be_sent: bool = False


class Answer(NamedTuple):
    """What became of a record in a request: the stream shard that has it, or none.

    Of one without, *is_unknown* says that Kinesis may have it nevertheless, as after a reply that was cut.
    """

    stream_shard_id: str | None
    is_unknown: bool = False


class Settled(NamedTuple, Generic[T]):
    """The records of a request that are accepted, and those that are given up: with all that is queued behind them."""

    accepted: list[Pending[T]]
    given_up: list[Pending[T]]


class _Pause(NamedTuple):
    span_s: float
    until: float


class Batcher(Generic[T]):
    """The queue of records, by partition key; callers pass the time and the random draws."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.count = 0
        self.size_bytes = 0
        self._queues: dict[str, deque[Pending[T]]] = {}
        self._ready: dict[str, None] = {}  # keys with no record in a request; who has waited longest is first
        self._shards: dict[str, str] = {}  # the stream shard of a key, as last answered
        self._pauses: dict[str, _Pause] = {}  # by lane

    def __repr__(self) -> str:
        return f"Batcher({self.count} records, {len(self._ready)} of {len(self._queues)} keys ready, {self._pauses})"

    def has_room(self, size_bytes: int) -> bool:
        """Return whether a record of *size_bytes* may be added now. An empty queue takes a record of any size."""
        limits = self.limits
        return self.count < limits.max_count and (not self.count or self.size_bytes + size_bytes <= limits.max_bytes)

    def add(self, item: T, key: str, size_bytes: int) -> None:
        """Queue a record behind those of its key."""
        if key not in self._queues:
            self._queues[key] = deque()
            self._ready[key] = None
        self._queues[key].append(Pending(item, key, size_bytes))
        self.count += 1
        self.size_bytes += size_bytes

    def next_batch(self, now: float) -> list[Pending[T]]:
        """Take the records of the next request; none when none may be sent now. `settle` has to follow."""
        batch: list[Pending[T]] = []
        left_bytes = MAX_REQUEST_BYTES
        for key in self._ready:
            if self._paused_until(key) > now:
                continue
            record = self._queues[key][0]
            left_bytes -= record.size_bytes
            if len(batch) == MAX_RECORDS or left_bytes < 0:
                break
            batch.append(record)
        for record in batch:
            del self._ready[record.key]
            record.tried_at = now if record.tried_at is None else record.tried_at
        return batch

    def settle(self, batch: Sequence[Pending[T]], answers: Sequence[Answer], *, now: float, draw: float) -> Settled[T]:
        """Take note of the answers to a request; *draw* (0 ≤ draw < 1) spreads the next tries of several producers."""
        settled: Settled[T] = Settled([], [])
        accepting: set[str] = set()
        failing: set[str] = set()
        for record, answer in zip(batch, answers, strict=True):
            key = record.key
            if key not in self._queues or self._queues[key][0] is not record:
                continue  # drained meanwhile
            if answer.stream_shard_id is not None:
                self._remember_shard(key, answer.stream_shard_id)
                accepting.add(answer.stream_shard_id)
                settled.accepted.append(self._remove_first(key))
            else:
                record.may_be_sent = record.may_be_sent or answer.is_unknown
                if now - (record.tried_at or 0.0) >= self.limits.give_up_s:
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
        """Remove and return all records; those in a request may be sent."""
        for key in self._queues.keys() - self._ready.keys():
            self._queues[key][0].may_be_sent = True
        return [self._remove_first(key) for key in list(self._queues) for _ in range(len(self._queues[key]))]

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
        record = self._queues[key].popleft()
        if not self._queues[key]:
            del self._queues[key]
            self._ready.pop(key, None)
            self._pauses.pop(f"key {key}", None)
        self.count -= 1
        self.size_bytes -= record.size_bytes
        return record
