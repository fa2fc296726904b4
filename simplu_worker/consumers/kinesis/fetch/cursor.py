"""Read a stream shard from one position on: by polling, or by push (enhanced fan-out) while there is a subscription.

Both go on from the same position, one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Final

import structlog
from msgspec.structs import replace

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.pacing import (
    OPERATION_OVERHEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SILENT_AFTER_S,
    MemoryQuota,
    Pacing,
    ReadSchedule,
    SubscriptionSchedule,
)
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.stream import client, positions
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscription, Subscriptions
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.telemetry.spans import receive_span
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import Retry, Source, StreamReader

READ_MAX_BYTES: Final = 512 * 1024  # five a second are more than the quota; larger replies only take more memory
EXPIRY_MARGIN: Final = timedelta(minutes=1)

log = structlog.get_logger(__name__)


class StreamShardAccess:
    """What all cursors of one stream shard share."""

    def __init__(
        self,
        stream: client.Stream,
        decoder: RecordDecoder,
        memory: MemoryQuota,
        draw: Callable[[], float],
        schedule: ReadSchedule | None = None,
    ) -> None:
        self.stream = stream
        self.stream_shard_id = decoder.stream_shard_id
        self.decoder = decoder
        self.memory = memory
        self.draw = draw
        self.pacing = Pacing(schedule)
        self.lock = asyncio.Lock()
        self.catch_up_turn = asyncio.Lock()  # the one that has waited longest gets it
        self.stopping = asyncio.Event()
        self.is_gone = False  # the stream shard is past its retention: no records are left

    def open_parent(self, stream_shard_id: str, hash_range: positions.HashRange | None) -> StreamShardAccess:
        """Return the access to a parent of the stream shard."""
        decoder = self.decoder.of_parent(stream_shard_id, hash_range)
        return StreamShardAccess(self.stream, decoder, self.memory, self.draw)

    async def find_first(self, stream_shard_id: str, start: positions.Start) -> positions.RecordPosition | None:
        """Return the position before the first record from *start* on; None without one. Raises RetryableError."""
        # Takes nothing from the memory quota: operations that wait for the answer may fill it.
        try:
            iterator: str | None = await self.stream.get_iterator(stream_shard_id, start)
            with self.pacing.open_catch_up(loop_time()):
                while iterator is not None and not self.is_gone:
                    async with self.reading(self.stopping, is_main=False) as may_read:
                        if not may_read:
                            raise RetryableError("the reader stops")
                        self.pacing.note_start(loop_time(), is_main=False)
                        reply = await self.stream.get_records(iterator, limit=1)
                    if reply.records:
                        first = reply.records[0]
                        return positions.RecordPosition.before_record(first.sequence_number, first.arrived_at)
                    iterator = reply.next_iterator if reply.millis_behind else None
        except (PermanentError, client.ExpiredIteratorError) as exc:
            raise RetryableError(str(exc)) from exc
        return None

    @asynccontextmanager
    async def reading(self, stopping: asyncio.Event, *, is_main: bool) -> AsyncIterator[bool]:
        """Wait until one read may start inside the block; yield False on *stopping*."""
        while not await sleep_or_event(self.pacing.delay_s(loop_time(), is_main=is_main), until=stopping):
            async with self.lock:
                if self.pacing.delay_s(loop_time(), is_main=is_main) <= 0:  # else another reader was faster
                    yield True
                    return
        yield False


class Cursor:
    """One position in a stream shard, from which it reads on."""

    def __init__(
        self,
        access: StreamShardAccess,
        start: positions.Start,
        *,
        kind: StreamReader,
        retention: timedelta | None = None,
        expires_at: float | None = None,
    ) -> None:
        """With the stream's *retention*, records that expired unread are reported.

        From *expires_at* on the stream may have dropped records that came after all that was read.
        """
        self._access = access
        self._start = start
        self._pacing = access.pacing
        self._kind = kind
        self._is_main = kind is StreamReader.MAIN
        self._retention = retention
        self._expires_at = expires_at
        self._iterator: str | None = None
        self._held_bytes = 0
        self.most_bytes = READ_MAX_BYTES  # of a reply
        self.read_bytes = 0
        self.read_records = 0
        self.millis_behind: int | None = None
        self.replied_at = loop_time()  # or it began then
        self.last_arrival: datetime | None = None  # of the records of the last reply; None if it had none
        self.asked_at = 0.0  # for the last reply, which shows the stream shard as it was at this time or later
        self.is_at_end = False  # by the last reply
        self.is_closed = False  # the last reply has no iterator for another one
        self.child_shards: tuple[client.ChildShard, ...] = ()
        self.trouble: str | None = None
        self.refusal: str | None = None  # the trouble, where only an operator can end it
        self.is_gone = False  # the stream shard does not exist any more

    @property
    def is_pushed(self) -> bool:
        """Whether records come by push now, not by polling."""
        return self._pacing.is_pushed

    async def read(self, stopping: asyncio.Event) -> client.Reply | None:
        """Wait for the pacing, then read once; None on failure, *stopping*, or short memory.

        The memory of the reply stays reserved until `release_memory` or the next read.
        """
        self.release_memory()
        turn = nullcontext() if self._is_main else self._access.catch_up_turn
        async with turn, self._access.reading(stopping, is_main=self._is_main) as may_read:
            room_bytes = self._access.memory.room_bytes if may_read else 0
            return await self._read_within(room_bytes) if room_bytes else None

    def release_memory(self) -> None:
        """Release the memory of the last reply, whose operations are in lanes."""
        self._hold_memory(0)

    def _hold_memory(self, size_bytes: int) -> None:
        self._access.memory.reserve(size_bytes)
        self._access.memory.release(self._held_bytes)
        self._held_bytes = size_bytes

    async def _read_within(self, room_bytes: int) -> client.Reply | None:
        limit = self._pacing.limit(min(room_bytes // 2, self.most_bytes), is_main=self._is_main)
        limit = max(1, min(limit, room_bytes // (2 * OPERATION_OVERHEAD_BYTES)))
        started_at = loop_time()
        self._pacing.note_start(started_at, is_main=self._is_main)
        self._hold_memory(self._pacing.expected_bytes(limit) + limit * OPERATION_OVERHEAD_BYTES)
        reply = await self._read(limit)
        if reply is not None:
            self.asked_at = started_at
        self._hold_memory(0 if reply is None else memory_bytes_of(reply))
        return reply

    async def _read(self, limit: int) -> client.Reply | None:
        try:
            if self._iterator is None:
                self._iterator = await self._access.stream.get_iterator(self._access.stream_shard_id, self._start)
            with receive_span(Source.KINESIS, self._access.stream.name, self._access.stream_shard_id) as span:
                reply = await self._access.stream.get_records(self._iterator, limit=limit)
                span.note_records(len(reply.records))
        except client.ExpiredIteratorError:
            self._iterator = None
            return None
        except (RetryableError, PermanentError) as exc:
            self._note_failure(exc)
            return None
        now, count, behind = loop_time(), len(reply.records), reply.millis_behind
        self._pacing.note_reply(
            now, is_main=self._is_main, record_count=count, size_bytes=reply.size_bytes, millis_behind=behind
        )
        self._iterator = reply.next_iterator
        self._note_progress(reply, now, self._kind)
        return reply

    def close(self) -> None:
        """Close a connection that stays open between two reads; idempotent."""

    def _note_progress(self, reply: client.Reply, now: float, kind: StreamReader) -> None:
        self.trouble, self.refusal, self.is_gone = None, None, False
        self._report_expired_records(reply)
        self.millis_behind, self.replied_at = reply.millis_behind, now
        self.child_shards = reply.child_shards or ()
        self.last_arrival = reply.records[-1].arrived_at if reply.records else None
        self.is_closed, self.is_at_end = reply.next_iterator is None, self._detect_end(reply)
        if reply.records:
            self._start = positions.AfterSequenceNumber(reply.records[-1].sequence_number)
        self.read_bytes += reply.size_bytes
        self.read_records += len(reply.records)
        instruments.KINESIS_READ_RECORDS.labels(kind).inc(len(reply.records))
        if self._is_main:
            instruments.KINESIS_STREAM_SHARD_BYTES.labels(self._access.stream_shard_id).inc(reply.size_bytes)
            instruments.KINESIS_STREAM_SHARD_RECORDS.labels(self._access.stream_shard_id).inc(len(reply.records))

    def _detect_end(self, reply: client.Reply) -> bool:
        return reply.next_iterator is None and bool(reply.child_shards)  # else it is read again, as by the KCL

    def _note_failure(self, exc: Exception) -> None:
        self.trouble = str(exc)
        self.refusal = self.trouble if isinstance(exc, PermanentError) else None
        self.is_gone = isinstance(exc, client.StreamGoneError)
        self._pacing.note_failure(loop_time(), self._access.draw())
        instruments.RETRIES.labels(Source.KINESIS, Retry.READ_FAILED).inc()
        if self.refusal is None:
            log.warning("stream_shard.unread", stream_shard_id=self._access.stream_shard_id, error=str(exc))
        else:
            log.error("stream_shard.refused", stream_shard_id=self._access.stream_shard_id, error=str(exc))

    def _report_expired_records(self, reply: client.Reply) -> None:
        # Once: the first reply is a retention behind the tip, or the record at the start is gone.
        retention = self._retention
        if retention is None or reply.millis_behind is None or not isinstance(self._start, positions.AtSequenceNumber):
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


def memory_bytes_of(reply: client.Reply) -> int:
    """Return the memory that a reply takes until it is decoded."""
    return reply.size_bytes + RECORD_OVERHEAD_BYTES * len(reply.records)


RECORD_MIN_BYTES: Final = 200  # of a record in an event, its metadata included
DRAINED_AFTER_S: Final = 0.2  # without any byte: nothing waits in buffers of this machine
TRANSIT_MAX_S: Final = 3.0  # of an event, from Kinesis to this machine


class PushedCursor(Cursor):
    """The position of the main reader, read on by push where possible."""

    def __init__(
        self,
        access: StreamShardAccess,
        start: positions.Start,
        subscriptions: Subscriptions,
        *,
        retention: timedelta | None = None,
        expires_at: float | None = None,
    ) -> None:
        super().__init__(access, start, kind=StreamReader.MAIN, retention=retention, expires_at=expires_at)
        self._subscriptions = subscriptions
        self._schedule = SubscriptionSchedule()
        self._subscription: Subscription | None = None
        self._drained_at = 0.0  # when all that was sent before had come, but for TRANSIT_MAX_S
        self._record_came_at = 0.0
        # Later than the last record, where events without records came.
        self._continuation: positions.Start | None = None
        self._last_number = -1  # of the last record read

    async def read(self, stopping: asyncio.Event) -> client.Reply | None:
        """Wait for the next event or poll; None on failure, *stopping*, or short memory."""
        self.release_memory()
        if not self.is_closed:
            await self._subscribe_if_due()
        if self._subscription is None:
            return await self._poll(stopping)
        try:
            if (reply := await self._read_event(self._subscription, stopping)) is not None:
                return reply
        except (RetryableError, PermanentError) as exc:
            self._note_loss(str(exc))
        self.release_memory()
        return None

    async def _poll(self, stopping: asyncio.Event) -> client.Reply | None:
        return await super().read(stopping)

    def close(self) -> None:
        """End the subscription; idempotent."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        self._pacing.is_pushed = False

    async def _subscribe_if_due(self) -> None:
        called_at = loop_time()
        if called_at < self._schedule.call_at(is_subscribed=self.is_pushed):
            return
        try:
            subscription = await self._subscriptions.open(self._access.stream_shard_id, self._next_start())
        except (RetryableError, PermanentError) as exc:
            self._note_failed_call(exc)
            return
        self.close()
        self._subscription, self._drained_at = subscription, called_at
        self._pacing.is_pushed = True
        self._schedule.note_accepted(loop_time())
        log.info("subscription.opened", stream_shard_id=self._access.stream_shard_id)

    def _next_start(self) -> positions.Start:
        return self._continuation or self._start

    async def _read_event(self, subscription: Subscription, stopping: asyncio.Event) -> client.Reply | None:
        # The memory of an event is reserved before all of it is received.
        heard_at = loop_time()
        while True:
            self.release_memory()
            size_bytes = subscription.next_size()
            if size_bytes is not None:
                if self._access.memory.is_short:
                    return None
                self._hold_memory(size_bytes + size_bytes // RECORD_MIN_BYTES * OPERATION_OVERHEAD_BYTES)
            if (reply := subscription.take()) is not None:
                return self._accept(reply)
            now = loop_time()
            renewal_at = self._schedule.call_at(is_subscribed=True)
            if stopping.is_set() or now >= renewal_at:
                return None
            silent_at = self._silent_at(heard_at)
            if now >= silent_at:
                self._note_loss(f"SubscribeToShard: no event for {SILENT_AFTER_S:.0f} s")
                return None
            if await subscription.receive(stopping, within_s=min(silent_at, renewal_at) - now):
                heard_at = loop_time()
                if size_bytes is None and heard_at - now >= DRAINED_AFTER_S:  # not in the middle of an event
                    self._drained_at = now

    def _silent_at(self, heard_at: float) -> float:
        return heard_at + SILENT_AFTER_S

    def _accept(self, event: client.Reply) -> client.Reply:
        records = self._drop_repeats(event.records)
        reply = event if records is event.records else replace(event, records=records)
        self._hold_memory(memory_bytes_of(reply))
        now, arrived_before = loop_time(), self.last_arrival
        self._pacing.note_seen(now, record_count=len(records), millis_behind=reply.millis_behind)
        self._note_progress(reply, now, StreamReader.PUSHED)
        self._note_time(arrived_before, now, has_records=bool(records))
        self._iterator = None  # it is before these records
        continuation = reply.next_iterator
        if continuation is not None and int(continuation) > self._last_number:
            self._continuation = positions.AfterSequenceNumber(continuation)
        if self.is_closed:
            self.close()
        return reply

    def _drop_repeats(self, records: list[client.Record]) -> list[client.Record]:
        if not records or int(records[0].sequence_number) > self._last_number:
            return records
        return [record for record in records if int(record.sequence_number) > self._last_number]

    def _note_time(self, arrived_before: datetime | None, now: float, *, has_records: bool) -> None:
        self.asked_at = self._drained_at - TRANSIT_MAX_S
        if has_records:
            self._record_came_at = now
        elif self.asked_at <= self._record_came_at:
            self.last_arrival = arrived_before

    def _note_progress(self, reply: client.Reply, now: float, kind: StreamReader) -> None:
        super()._note_progress(reply, now, kind)
        self._continuation = None  # of the subscription; a poll may have read past it
        if reply.records:
            self._last_number = int(reply.records[-1].sequence_number)

    def _note_failed_call(self, exc: RetryableError | PermanentError) -> None:
        is_refused = isinstance(exc, PermanentError)
        self._schedule.note_failed(loop_time(), self._access.draw(), is_refused=is_refused)
        facts = {"stream_shard_id": self._access.stream_shard_id, "error": str(exc)}
        if is_refused:
            log.error("subscription.refused", **facts)
        else:
            log.info("subscription.deferred", **facts)

    def _note_loss(self, error: str) -> None:
        self.close()
        self._schedule.note_lost(loop_time(), self._access.draw())
        log.info("subscription.lost", stream_shard_id=self._access.stream_shard_id, error=error)
