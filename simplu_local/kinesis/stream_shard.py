"""One stream shard of the local Kinesis: its records in order, its parents and its children. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import msgspec

from simplu_local.kinesis.quotas import ITERATORS_PER_S, ReadQuota, TokenBucket, WriteQuota
from simplu_local.kinesis.reshard import HashRange
from simplu_local.kinesis.tokens import LAST_ORDINAL, ORDINAL_BIT, SECOND_BIT, SequenceNumber, encode_sequence_number

OVERHEAD_BYTES = 200  # of a stored record, for Python's objects around its text


class NewRecord(NamedTuple):
    """A record to put. *data* stays base64 text; *size_bytes* counts the decoded data and the key."""

    partition_key: str
    data: str
    size_bytes: int
    hash_key: int


class ReadResult(NamedTuple):
    """Records as JSON, in order. *next_position* follows the last; *was_full* when the size limit ended the read."""

    encoded: list[bytes]
    next_position: int
    size_bytes: int
    was_full: bool


class LocalStreamShard:
    """A range of hash keys and the records that were put into it.

    A record's position is its number in the stream shard, from 0; trimming does not change it.
    """

    def __init__(
        self, index: int, hash_range: HashRange, *, parents: tuple[LocalStreamShard, ...] = (), now_ms: int
    ) -> None:
        self.stream_shard_id = f"shardId-{index:012d}"
        self.hash_range = hash_range
        self.parent_ids = tuple(parent.stream_shard_id for parent in parents)
        self.child_shards: tuple[LocalStreamShard, ...] = ()
        self.opened_ms = now_ms
        self.closed_ms: int | None = None
        self.read_quota, self.write_quota, self.iterator_quota = ReadQuota(), WriteQuota(), TokenBucket(ITERATORS_PER_S)
        # Later than the parents' at any clock time, so that all sequence numbers here are greater than theirs.
        self.made_s: int = max(now_ms // 1000, *(parent.made_s + 1 for parent in parents), 0)
        self.index = index
        self.first_position = 0
        self.stored_bytes = 0
        self._encoded: list[bytes] = []
        self._arrived_ms: list[int] = []
        self._ends: list[int] = []  # by record: the sum of the sizes up to and with it, trimmed records included
        self._trimmed_bytes = 0
        self._start_sequence = encode_sequence_number(SequenceNumber(self.made_s, index, 0, 0))

    def __repr__(self) -> str:
        kept = f"{self.first_position}..{self.end_position}"
        return f"StreamShard({self.stream_shard_id}, {'open' if self.is_open else 'closed'}, records {kept})"

    @property
    def is_open(self) -> bool:
        """Whether the stream shard accepts records."""
        return self.closed_ms is None

    @property
    def end_position(self) -> int:
        """The position of the next record to come."""
        return self.first_position + len(self._encoded)

    @property
    def oldest_ms(self) -> int | None:
        """The arrival of the oldest stored record; none without records."""
        return self._arrived_ms[0] if self._arrived_ms else None

    @property
    def starting_sequence_number(self) -> str:
        """A number below those of all records."""
        return str(self._start_sequence)

    @property
    def ending_sequence_number(self) -> str | None:
        """A number above those of all records; none while open."""
        if self.closed_ms is None:
            return None
        return str(
            encode_sequence_number(SequenceNumber(self.made_s, self.index, LAST_ORDINAL, self.closed_ms // 1000))
        )

    def number_before(self, position: int, now_ms: int) -> str:
        """Return a number after which the record at *position* comes first: the ContinuationSequenceNumber of an event.

        Of an event without records it is above the number of the last record.
        """
        return str(self._start_sequence + (position << ORDINAL_BIT) + (now_ms // 1000 << SECOND_BIT))

    def put(self, record: NewRecord, now_ms: int) -> str:
        """Append *record* and return its sequence number."""
        ordinal = self.end_position + 1
        number = str(self._start_sequence + (ordinal << ORDINAL_BIT) + (now_ms // 1000 << SECOND_BIT))
        encoded = b'{"SequenceNumber":"%b","ApproximateArrivalTimestamp":%b,"PartitionKey":%b,"Data":"%b"}' % (
            number.encode(),
            f"{now_ms / 1000:.3f}".encode(),
            msgspec.json.encode(record.partition_key),
            record.data.encode(),
        )
        self._encoded.append(encoded)
        self._arrived_ms.append(now_ms)
        self._ends.append((self._ends[-1] if self._ends else self._trimmed_bytes) + record.size_bytes)
        self.stored_bytes += len(encoded) + OVERHEAD_BYTES
        return number

    def read(self, position: int, *, limit: int, max_bytes: int) -> ReadResult:
        """Return up to *limit* records from *position* on, at least one if any is stored (API_GetRecords).

        A position before the oldest stored record means that record.
        """
        start = max(position - self.first_position, 0)
        if start >= len(self._encoded):
            return ReadResult([], max(position, self.first_position), 0, was_full=False)
        before = self._ends[start - 1] if start else self._trimmed_bytes
        by_size = max(bisect_right(self._ends, before + max_bytes, lo=start), start + 1)
        end = min(start + limit, by_size, len(self._encoded))
        size_bytes = self._ends[end - 1] - before
        was_full = end == by_size and end < min(start + limit, len(self._encoded))
        return ReadResult(
            self._encoded[start:end], self.first_position + end, size_bytes, was_full or size_bytes >= max_bytes
        )

    def millis_behind(self, records: ReadResult, now_ms: int) -> int:
        """Return MillisBehindLatest of a reply that ends with *records* (API_GetRecords).

        0 exactly when no record is left to read; else the age of the last record of the reply, or of the next record
        when the reply has none.
        """
        if records.next_position >= self.end_position:
            return 0
        last = records.next_position - self.first_position - (1 if records.encoded else 0)
        return max(now_ms - self._arrived_ms[last], 1)

    def position_at_time(self, at_ms: int) -> int:
        """Return the position of the first stored record that arrived at *at_ms* or later (API_GetShardIterator)."""
        return self.first_position + bisect_left(self._arrived_ms, at_ms)

    def trim(self, count: int) -> int:
        """Drop the *count* oldest records; return the number of dropped records."""
        count = min(count, len(self._encoded))
        if count:
            self.stored_bytes -= sum(len(encoded) + OVERHEAD_BYTES for encoded in self._encoded[:count])
            self._trimmed_bytes = self._ends[count - 1]
            for column in (self._encoded, self._arrived_ms, self._ends):
                del column[:count]
            self.first_position += count
        return count

    def trim_before(self, at_ms: int) -> int:
        """Drop the records that arrived before *at_ms*; return the number of dropped records."""
        if not self._arrived_ms or self._arrived_ms[0] >= at_ms:
            return 0
        return self.trim(bisect_left(self._arrived_ms, at_ms))

    def close(self, children: tuple[LocalStreamShard, ...], now_ms: int) -> None:
        """Accept no more records; *children* accept them from now on."""
        self.closed_ms, self.child_shards = now_ms, children
