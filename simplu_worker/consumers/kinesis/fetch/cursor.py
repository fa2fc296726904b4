"""Read a stream shard from one position on: iterators, pacing, memory, and failed reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.fetch.pacing import CatchUpPacing, Pacing, ReadBudget
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import (
    OPERATION_OVERHEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    MemoryQuota,
)
from simplu_worker.consumers.kinesis.stream.client import (
    ChildShard,
    ExpiredIteratorError,
    Reply,
    Stream,
    StreamGoneError,
)
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, AtSequenceNumber, Start
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.telemetry.tracing.spans import receive_span
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import Source, StreamReader, StreamRetry

READ_MAX_BYTES: Final = 512 * 1024  # five a second are more than the quota; larger replies only take more memory
EXPIRY_MARGIN: Final = timedelta(minutes=1)
BARE_ENDS_ACCEPTED: Final = 3

log = structlog.get_logger(__name__)


class StreamShardAccess:
    """Shared by all cursors of one stream shard: the stream, the read budget, and the lock that keeps reads apart."""

    def __init__(self, stream: Stream, stream_shard_id: str, memory: MemoryQuota, draw: Callable[[], float]) -> None:
        self.stream = stream
        self.stream_shard_id = stream_shard_id
        self.memory = memory
        self.draw = draw
        self.budget = ReadBudget()
        self.lock = asyncio.Lock()
        self.is_gone = False  # the stream shard is past its retention: no records are left


class Cursor:
    """One position in a stream shard, from which it reads on."""

    def __init__(
        self,
        access: StreamShardAccess,
        start: Start,
        pacing: Pacing | CatchUpPacing,
        *,
        kind: StreamReader,
        retention: timedelta | None = None,
        expires_at: float | None = None,
    ) -> None:
        """*kind* is a label of the metrics. With the stream's *retention*, records that expired unread are reported.

        From *expires_at* on the stream may have dropped records that came after all that was read; None if unknown.
        """
        self._access = access
        self._start = start
        self._pacing = pacing
        self._is_main = kind is StreamReader.MAIN
        self._read_count = instruments.KINESIS_READS.labels(kind)
        self._record_count = instruments.KINESIS_READ_RECORDS.labels(kind)
        self._byte_count = instruments.KINESIS_READ_BYTES.labels(kind)
        self._retention = retention
        self._expires_at = expires_at
        self._iterator: str | None = None
        self._held_bytes = 0
        self._bare_ends = 0  # in a row, without a record between them
        self.read_bytes = 0
        self.read_records = 0
        self.millis_behind: int | None = None
        self.replied_at = loop_time()  # or it began then
        self.last_arrival: datetime | None = None  # of the records of the last reply; None if it had none
        self.asked_at = 0.0  # for the last reply, which shows the stream shard as it was at this time or later
        self.is_at_end = False  # by the last reply; a further read may prove it wrong
        self.is_closed = False  # the last reply has no iterator for another one; not every such end is accepted
        self.child_shards: tuple[ChildShard, ...] = ()
        self.trouble: str | None = None
        self.refusal: str | None = None  # the trouble, where only an operator can end it
        self.is_gone = False  # the stream shard does not exist any more

    @property
    def is_pushed(self) -> bool:
        """Whether records come by push now, not by polling."""
        return False

    async def read(self, stopping: asyncio.Event) -> Reply | None:
        """Wait for the pacing, then read once; None when the read failed, *stopping* was set, or memory is short.

        The memory of the reply is reserved until `release_memory`, or until the next read.
        """
        self.release_memory()
        while True:
            if await sleep_or_event(self._pacing.delay_s(loop_time()), until=stopping):
                return None
            async with self._access.lock:
                if self._pacing.delay_s(loop_time()) > 0:
                    continue  # another cursor was faster
                room_bytes = self._access.memory.room_bytes
                return await self._read_within(room_bytes) if room_bytes else None

    def release_memory(self) -> None:
        """Release the memory of the last reply: its operations are in lanes, which reserve their own."""
        self._hold_memory(0)

    def _hold_memory(self, size_bytes: int) -> None:
        """Hold *size_bytes*, and no longer those of before."""
        self._access.memory.correct(self._held_bytes, size_bytes)
        self._held_bytes = size_bytes

    async def _read_within(self, room_bytes: int) -> Reply | None:
        """Read a reply that fits into memory, by the expected size of records."""
        limit = self._pacing.limit(min(room_bytes // 2, READ_MAX_BYTES))
        limit = max(1, min(limit, room_bytes // (2 * OPERATION_OVERHEAD_BYTES)))
        started_at = loop_time()
        self._pacing.note_start(started_at)
        self._hold_memory(self._access.budget.expected_bytes(limit) + limit * OPERATION_OVERHEAD_BYTES)
        reply = await self._read(limit)
        if reply is not None:
            self.asked_at = started_at
        self._hold_memory(0 if reply is None else memory_bytes_of(reply))
        return reply

    async def _read(self, limit: int) -> Reply | None:
        try:
            if self._iterator is None:
                self._iterator = await self._access.stream.get_iterator(self._access.stream_shard_id, self._start)
            with receive_span(Source.KINESIS, self._access.stream.name, self._access.stream_shard_id) as span:
                reply = await self._access.stream.get_records(self._iterator, limit=limit)
                span.note_records(len(reply.records))
        except ExpiredIteratorError:
            self._iterator = None
            return None
        except (RetryableError, PermanentError) as exc:
            self._note_failure(exc)
            return None
        self._end_trouble()
        self._note_reply(reply)
        return reply

    def close(self) -> None:
        """Close a connection that stays open between two reads; idempotent. A cursor that polls has none."""

    def _note_reply(self, reply: Reply) -> None:
        now = loop_time()
        self._pacing.note_reply(
            now, record_count=len(reply.records), size_bytes=reply.size_bytes, millis_behind=reply.millis_behind
        )
        self._iterator = reply.next_iterator
        self._note_progress(reply, now)
        self._read_count.inc()
        self._record_count.inc(len(reply.records))
        self._byte_count.inc(reply.size_bytes)

    def _note_progress(self, reply: Reply, now: float) -> None:
        """Note the records, the end and the lag of a reply."""
        self._report_expired_records(reply)
        self.millis_behind, self.replied_at = reply.millis_behind, now
        self.child_shards = reply.child_shards
        self.last_arrival = reply.records[-1].arrived_at if reply.records else None
        self.is_closed, self.is_at_end = reply.next_iterator is None, self._detect_end(reply)
        if reply.records:
            self._start = AfterSequenceNumber(reply.records[-1].sequence_number)
        self.read_bytes += reply.size_bytes
        self.read_records += len(reply.records)
        if self._is_main:
            instruments.KINESIS_STREAM_SHARD_BYTES.labels(self._access.stream_shard_id).inc(reply.size_bytes)
            instruments.KINESIS_STREAM_SHARD_RECORDS.labels(self._access.stream_shard_id).inc(len(reply.records))

    def _detect_end(self, reply: Reply) -> bool:
        """Return whether a reply is the last one of a closed stream shard, which names the children.

        The KCL rejects an end without children (a bare end) as invalid and reads again. Some emulators never name the
        children, so several bare ends in a row are accepted.
        """
        if reply.next_iterator is not None or reply.child_shards:
            self._bare_ends = 0
            return reply.next_iterator is None
        self._bare_ends = 1 if reply.records else self._bare_ends + 1
        return self._bare_ends >= BARE_ENDS_ACCEPTED

    def _end_trouble(self) -> None:
        self.trouble, self.refusal, self.is_gone = None, None, False

    def _note_failure(self, exc: Exception) -> None:
        self.trouble = str(exc)
        self.refusal = self.trouble if isinstance(exc, PermanentError) else None
        self.is_gone = isinstance(exc, StreamGoneError)
        self._pacing.note_failure(loop_time(), self._access.draw())
        instruments.RETRIES.labels(Source.KINESIS, StreamRetry.READ_FAILED).inc()
        if self.refusal is None:
            log.warning("stream_shard.unread", stream_shard_id=self._access.stream_shard_id, error=str(exc))
        else:
            log.error("stream_shard.refused", stream_shard_id=self._access.stream_shard_id, error=str(exc))

    def _report_expired_records(self, reply: Reply) -> None:
        """Report, once, when records right after the start may have expired unread.

        Kinesis continues with the oldest that it has. So the first reply is as far behind the tip as the stream keeps
        records; or the record at the start is not there any more, and what came after it was last read so long ago.
        """
        retention = self._retention
        if retention is None or reply.millis_behind is None or not isinstance(self._start, AtSequenceNumber):
            self._retention = None
            return
        is_old = timedelta(milliseconds=reply.millis_behind) >= retention - EXPIRY_MARGIN
        is_late = self._expires_at is not None and loop_time() >= self._expires_at - EXPIRY_MARGIN.total_seconds()
        if reply.records:
            is_late = is_late and reply.records[0].sequence_number != self._start.sequence_number
        elif is_late and reply.millis_behind and not is_old:
            return  # the next one tells
        self._retention = None
        if is_old or is_late:
            instruments.KINESIS_EXPIRED.inc()
            log.error(
                "stream_shard.records_expired",
                stream_shard_id=self._access.stream_shard_id,
                checkpoint=self._start.sequence_number,
                retention_hours=retention.total_seconds() / 3600,
            )


def memory_bytes_of(reply: Reply) -> int:
    """Return the memory that a reply takes until it is decoded."""
    return reply.size_bytes + RECORD_OVERHEAD_BYTES * len(reply.records)
