"""Read a stream shard by push (enhanced fan-out), and by polling while there is no subscription.

Both read on from the same position, one at a time, so a record comes once and in its order whatever happens to the
subscriptions. What polling has to do beside that, it does: an end that is not accepted is read again by polling, and
an end that no event names is found by a poll after a minute without records.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess, memory_bytes_of
from simplu_worker.consumers.kinesis.fetch.pacing import Pacing
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.fetch.subscription_schedule import SILENT_AFTER_S, SubscriptionSchedule
from simplu_worker.consumers.kinesis.stream.client import Record, Reply
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, Start
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscription, Subscriptions, TakenOverError
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import StreamReader, SubscriptionEvent, SubscriptionLoss

RECORD_MIN_BYTES: Final = 200  # of a record in an event, its metadata included
DRAINED_AFTER_S: Final = 0.2  # without any byte: nothing waits in buffers of this machine
TRANSIT_MAX_S: Final = 3.0  # of an event, from Kinesis to this machine

log = structlog.get_logger(__name__)


class PushedCursor(Cursor):
    """The position of the main reader, which reads on from it by push where it can."""

    def __init__(
        self,
        access: StreamShardAccess,
        start: Start,
        pacing: Pacing,
        subscriptions: Subscriptions,
        *,
        retention: timedelta | None = None,
        expires_at: float | None = None,
    ) -> None:
        super().__init__(access, start, pacing, kind=StreamReader.MAIN, retention=retention, expires_at=expires_at)
        self._main_pacing = pacing
        self._subscriptions = subscriptions
        self._schedule = SubscriptionSchedule()
        self._subscription: Subscription | None = None
        self._had_event = False  # of the subscription
        self._drained_at = 0.0  # when all that was sent before had come, but for TRANSIT_MAX_S
        self._record_came_at = 0.0
        self._continuation: Start | None = None  # later than the last record, where events without records came
        self._last_number = -1  # of the last record read
        self.push_trouble: str | None = None

    @property
    def is_pushed(self) -> bool:
        """Whether a subscription is open."""
        return self._subscription is not None

    async def read(self, stopping: asyncio.Event) -> Reply | None:
        """Wait for the next event, or for a poll; None when that failed, *stopping* was set, or memory is short."""
        self.release_memory()
        if not self.is_closed:
            await self._subscribe_if_due()
        if self._subscription is None or loop_time() >= self._schedule.poll_at:
            return await self._poll(stopping)
        try:
            if (reply := await self._read_event(self._subscription, stopping)) is not None:
                return reply
        except TakenOverError as exc:
            self._note_loss(SubscriptionLoss.TAKEN_OVER, str(exc))
        except (RetryableError, PermanentError) as exc:
            self._note_loss(SubscriptionLoss.ENDED, str(exc))
        self.release_memory()
        return None

    async def _poll(self, stopping: asyncio.Event) -> Reply | None:
        reply = await super().read(stopping)
        self._schedule.note_polled(loop_time())
        if self.is_closed:
            self._leave()  # its events would go on where they name no end
        return reply

    def close(self) -> None:
        """End the subscription; idempotent."""
        self._leave()

    async def _subscribe_if_due(self) -> None:
        """Subscribe, or replace the subscription; the other one is in use until the new one is there."""
        called_at = loop_time()
        is_due = self._schedule.is_call_due if self._subscription is None else self._schedule.is_renewal_due
        if not is_due(called_at):
            return
        try:
            subscription = await self._subscriptions.open(self._access.stream_shard_id, self._next_start())
        except (RetryableError, PermanentError) as exc:
            self._note_failed_call(exc)
            return
        self._leave()
        self._subscription, self._had_event, self._drained_at = subscription, False, called_at
        self._main_pacing.is_pushed = True
        self._schedule.note_accepted(loop_time())
        instruments.KINESIS_SUBSCRIPTIONS.labels(SubscriptionEvent.ACCEPTED).inc()
        log.info("subscription.opened", stream_shard_id=self._access.stream_shard_id)

    def _next_start(self) -> Start:
        """Return where the next subscription starts: behind the last record, or further where none was found there."""
        return self._continuation or self._start

    async def _read_event(self, subscription: Subscription, stopping: asyncio.Event) -> Reply | None:
        """Return the next event; None when *stopping* is set, memory is short, or the renewal or a poll is due.

        The memory of an event is reserved before all of it is received. Bytes that came while nothing was read are not
        noticed, so the silence begins with the wait.
        """
        heard_at = loop_time()
        while True:
            self.release_memory()
            size_bytes = subscription.next_size()
            if size_bytes is not None and not self._reserve(size_bytes):
                return None
            if (reply := subscription.take()) is not None:
                return self._accept(reply)
            now = loop_time()
            if stopping.is_set() or self._schedule.is_renewal_due(now) or now >= self._schedule.poll_at:
                return None
            silent_at = self._silent_at(heard_at)
            if now >= silent_at:
                self._note_loss(SubscriptionLoss.SILENT, f"SubscribeToShard: no event for {SILENT_AFTER_S:.0f} s")
                return None
            within_s = min(silent_at, self._schedule.renewal_at, self._schedule.poll_at) - now
            if await subscription.receive(stopping, within_s=within_s):
                heard_at = loop_time()
                if size_bytes is None and heard_at - now >= DRAINED_AFTER_S:  # not in the middle of an event
                    self._drained_at = now

    def _silent_at(self, heard_at: float) -> float:
        """Return when the subscription counts as dead: Kinesis would have sent something by then."""
        return heard_at + SILENT_AFTER_S

    def _reserve(self, size_bytes: int) -> bool:
        """Reserve the memory of an event; return False while memory is short."""
        if self._access.memory.is_short:
            return False
        self._hold_memory(size_bytes + size_bytes // RECORD_MIN_BYTES * OPERATION_OVERHEAD_BYTES)
        return True

    def _accept(self, event: Reply) -> Reply:
        """Note an event, and return it without records that came before."""
        records = self._drop_repeats(event.records)
        reply = replace(event, records=records)
        self._hold_memory(memory_bytes_of(reply))
        now, arrived_before = loop_time(), self.last_arrival
        self._main_pacing.note_pushed(now, record_count=len(records), millis_behind=reply.millis_behind)
        self._note_progress(reply, now)
        self._note_time(arrived_before, now, has_records=bool(records))
        if records:
            self._schedule.note_polled(now)
        self._iterator = None  # it is before these records
        continuation = reply.next_iterator
        if continuation is not None and int(continuation) > self._last_number:
            self._continuation = AfterSequenceNumber(continuation)
        self._end_trouble()
        self.push_trouble = None
        self._had_event = True
        self._count(reply)
        if self.is_closed:
            self._leave()
        return reply

    def _drop_repeats(self, records: list[Record]) -> list[Record]:
        """Return the records without those that were read before."""
        if not records or int(records[0].sequence_number) > self._last_number:
            return records
        return [record for record in records if int(record.sequence_number) > self._last_number]

    def _note_time(self, arrived_before: datetime | None, now: float, *, has_records: bool) -> None:
        """Note of which time an event without records is: it may have waited for the reader, unless that waited for it.

        While that is unknown, the arrival of the last record stands for it.
        """
        self.asked_at = self._drained_at - TRANSIT_MAX_S
        if has_records:
            self._record_came_at = now
        elif self.asked_at <= self._record_came_at:
            self.last_arrival = arrived_before

    def _note_progress(self, reply: Reply, now: float) -> None:
        super()._note_progress(reply, now)
        self._continuation = None  # of the subscription; a poll may have read past it
        if reply.records:
            self._last_number = int(reply.records[-1].sequence_number)

    def _count(self, reply: Reply) -> None:
        instruments.KINESIS_READS.labels(StreamReader.PUSHED).inc()
        instruments.KINESIS_READ_RECORDS.labels(StreamReader.PUSHED).inc(len(reply.records))
        instruments.KINESIS_READ_BYTES.labels(StreamReader.PUSHED).inc(reply.size_bytes)

    def _note_failed_call(self, exc: RetryableError | PermanentError) -> None:
        is_refused = isinstance(exc, PermanentError)
        self.push_trouble = str(exc)
        self._schedule.note_failed(loop_time(), self._access.draw(), is_refused=is_refused)
        facts = {"stream_shard_id": self._access.stream_shard_id, "error": str(exc)}
        if is_refused:
            instruments.KINESIS_SUBSCRIPTIONS.labels(SubscriptionEvent.REFUSED).inc()
            log.error("subscription.refused", **facts)
        else:
            instruments.KINESIS_SUBSCRIPTIONS.labels(SubscriptionEvent.DEFERRED).inc()
            log.info("subscription.deferred", **facts)

    def _note_loss(self, loss: SubscriptionLoss, error: str) -> None:
        """Note that the subscription has ended: the reader polls until it has another one."""
        self._leave()
        self.push_trouble = error
        self._schedule.note_lost(loop_time(), loss, self._access.draw(), had_event=self._had_event)
        instruments.KINESIS_SUBSCRIPTIONS.labels(loss.value).inc()
        log.info("subscription.lost", stream_shard_id=self._access.stream_shard_id, how=loss.value, error=error)

    def _leave(self) -> None:
        """Close the subscription, if there is one."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        self._main_pacing.is_pushed = False
