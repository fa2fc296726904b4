"""Read one stream shard: every record becomes an operation on its way to a shard, or a dead letter.

The reader applies a prefix (architecture, idea 2): operations of one tenant reach its shard in stream order, whatever
happens to those of others. It stops reading only when what it has in hand takes too much memory.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.clock import UtcClock, loop_time, utc_now
from simplu_worker.consumers.dead_letters import LetterStore
from simplu_worker.consumers.kinesis.aggregation import SubRecord, deaggregate
from simplu_worker.consumers.kinesis.lanes import Entry, Lane
from simplu_worker.consumers.kinesis.pacing import Pacing, ReadBudget
from simplu_worker.consumers.kinesis.positions import Position
from simplu_worker.consumers.kinesis.shard_tree import ChildShard
from simplu_worker.consumers.kinesis.stream import (
    AfterSequenceNumber,
    AtSequenceNumber,
    ExpiredIteratorError,
    Record,
    Reply,
    Start,
    Stream,
)
from simplu_worker.consumers.kinesis.waiting import WaitingRoom
from simplu_worker.consumers.letters import DeadLetter, letter_of
from simplu_worker.consumers.owed import Owed
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics import instruments
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin, Source
from simplu_worker.shards.router import Router

GET_RECORDS_LIMIT: Final = 10_000
PENDING_MAX_BYTES: Final = 16 * 1024 * 1024
TENANTS_REMEMBERED: Final = 10_000
EXPIRY_MARGIN: Final = timedelta(minutes=1)
DECODED_AT_ONCE: Final = 250  # about two milliseconds, then the event loop gets its turn

log = structlog.get_logger(__name__)


class ReadingRules(msgspec.Struct, frozen=True):
    """What the settings say about reading."""

    operation_max_bytes: int
    list_result_limit: int
    tenant_wait: timedelta
    drain_s: float = 20.0  # short of SHUTDOWN_GRACE_SECONDS: leases are given back after it


class Mark(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a record while it is owed."""

    sequence_number: str
    sub_sequence_number: int
    arrived_at: datetime

    @property
    def position(self) -> Position:
        """The record's position, to be compared and written."""
        return Position.of(self.sequence_number, self.sub_sequence_number)


class StreamShardReader:
    """Reads one stream shard from its checkpoint on, to its end or until told to stop."""

    def __init__(
        self,
        stream: Stream,
        stream_shard_id: str,
        start: Start,
        *,
        done: Position | None = None,
        router: Router,
        dead_letters: LetterStore,
        rules: ReadingRules,
        retention: timedelta | None = None,
        pending_max_bytes: int = PENDING_MAX_BYTES,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*done* is the checkpoint, where *start* is its record: of an aggregate a part may be done with."""
        self.stream_shard_id = stream_shard_id
        self._stream = stream
        self._done_before = done  # until a record behind it is met
        self._start = start
        self._router = router
        self._dead_letters = dead_letters
        self._rules = rules
        self._retention = retention  # of the stream; until the first reply has shown that it was not overrun
        self._pending_max_bytes = pending_max_bytes
        self._draw = draw
        self._utc = utc
        self._owed: Owed[Mark] = Owed()
        self._pacing = Pacing(ReadBudget())
        self._lanes: dict[str, Lane] = {}
        self._lane_of: dict[str, Lane] = {}  # by tenant: where its entries are, or went last
        self._room = WaitingRoom(
            router,
            tenant_wait=rules.tenant_wait,
            let_go=self._let_go,
            settle=self._settle,
            draw=draw,
            utc=utc,
        )
        self._pending_bytes = 0
        self._has_settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ending = asyncio.Event()  # for lanes and waiting room: nothing is read any more
        self._tasks = asyncio.TaskGroup()
        self._millis_behind: int | None = None
        self._replied_at = 0.0
        self.is_at_end = False
        self.child_shards: tuple[ChildShard, ...] = ()  # of the reply at the end
        self.trouble: str | None = None
        self.refusal: str | None = None  # the trouble, where only a person can end it

    def __repr__(self) -> str:
        return (
            f"StreamShardReader({self.stream_shard_id}, {self._owed!r}, pending_bytes={self._pending_bytes}, "
            f"lanes={list(self._lanes.values())}, waiting={len(self._room.tenants())})"
        )

    @property
    def checkpoint(self) -> Position | None:
        """The position up to which nothing is owed to anyone; None when nothing was finished yet."""
        mark = self._owed.checkpoint
        return None if mark is None else mark.position

    @property
    def is_finished(self) -> bool:
        """Whether the stream shard was read to its end and nothing of it is owed."""
        return self.is_at_end and not len(self._owed)

    @property
    def is_through(self) -> bool:
        """Whether it is at the tip or the end, and all that it read is done with or waits for its tenant's shard."""
        at_tip = self.is_at_end or self._millis_behind == 0
        return at_tip and len(self._owed) == self.waiting_count and self._room.is_asked_through

    @property
    def waiting_count(self) -> int:
        """How many operations wait because their tenant has no shard now."""
        return sum(len(tenant.entries) for tenant in self._room.tenants().values())

    @property
    def lag_s(self) -> float | None:
        """The age of the first record owed, or how far the last reply was behind the tip; None before it.

        While nothing can be read it grows: what came since is not known.
        """
        first = self._owed.first
        if first is not None:
            return max(0.0, (self._utc() - first.arrived_at).total_seconds())
        if self._millis_behind is None:
            return None
        unread_for_s = loop_time() - self._replied_at if self.trouble else 0.0
        return self._millis_behind / 1000 + unread_for_s

    def has_in_hand(self, request_id: str, tenant_id: str | None) -> bool:
        """Whether an operation was read and not yet applied. Looks at all that is in hand: for people only."""
        in_hand = [entry for lane in self._lanes.values() for entry in lane.entries()]
        in_hand += [entry for tenant in self._room.tenants().values() for entry in tenant.entries]
        return any(
            entry.operation.request_id == request_id and tenant_id in (None, entry.operation.tenant_id)
            for entry in in_hand
        )

    def held(self) -> list[dict[str, Any]]:
        """Return what waits, for the status: a target, why, how many operations, and for how long."""
        now = loop_time()
        waiting = [
            {
                "target": f"tenant {tenant_id}",
                "reason": tenant.reason or "unregistered",
                "operations": len(tenant.entries),
                "ageSeconds": round(now - tenant.waiting_since, 1),
            }
            for tenant_id, tenant in self._room.tenants().items()
            if tenant.failure_count
        ]
        failing = [
            {"target": f"shard {lane.shard_id}", "reason": "shard_unavailable", "operations": len(lane)}
            for lane in self._lanes.values()
            if lane.failure_count
        ]
        return waiting + failing

    def status(self) -> dict[str, Any]:
        """Return how far it is, for people."""
        checkpoint = self.checkpoint
        return {
            "streamShard": self.stream_shard_id,
            "state": "held back" if self._pending_bytes >= self._pending_max_bytes else "reading",
            "lagSeconds": self.lag_s,
            "checkpoint": None if checkpoint is None else checkpoint.checkpoint,
            "pendingBytes": self._pending_bytes,
            "waiting": dict(Counter(held["reason"] for held in self.held())),
            "trouble": self.trouble,
        }

    def abandon(self) -> None:
        """Take the stream shard for read to its end: it is past its retention, there is nothing left to read."""
        self.is_at_end = True

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until *stopping* or the end; return when no batch is in flight any more. What is left stays owed.

        A batch whose shard does not answer is given up *drain_s* after the stop; the log knows whether it was applied.
        """
        self._stopping = stopping
        try:
            async with asyncio.timeout(None) as deadline:
                await self._run(deadline)
        except TimeoutError:
            log.warning("stream_shard.undrained", stream_shard_id=self.stream_shard_id, after_s=self._rules.drain_s)

    async def _run(self, deadline: asyncio.Timeout) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._room.run(self._ending), name=f"waiting:{self.stream_shard_id}")
                await self._read()
                while not self.is_finished and not self._stopping.is_set():
                    await self._next_settled()
                self._ending.set()
                deadline.reschedule(loop_time() + self._rules.drain_s)
        except* TryAgainLaterError as group:
            # Only a stop ends it this way: dead letters that could not be stored. Their records stay owed.
            log.warning("stream_shard.left", stream_shard_id=self.stream_shard_id, error=str(group.exceptions[0]))

    async def _read(self) -> None:
        iterator: str | None = None
        while not self._stopping.is_set() and not self.is_at_end:
            if self._pending_bytes >= self._pending_max_bytes:
                await self._next_settled()
                continue
            if await pause(self._pacing.delay_s(loop_time()), until=self._stopping):
                return
            self._pacing.started(loop_time())
            try:
                iterator = iterator or await self._stream.iterator(self.stream_shard_id, self._start)
                reply = await self._stream.get_records(iterator, limit=GET_RECORDS_LIMIT)
            except ExpiredIteratorError:
                iterator = None
                continue
            except (TryAgainLaterError, RefusedError) as exc:
                self._note_trouble(exc)
                continue
            self.trouble = self.refusal = None
            iterator = reply.next_iterator
            await self._take(reply)
            if iterator is None:
                self.child_shards = reply.child_shards
                self.is_at_end = True

    def _note_trouble(self, exc: Exception) -> None:
        self.trouble = str(exc)
        self.refusal = self.trouble if isinstance(exc, RefusedError) else None
        self._pacing.failed(loop_time(), self._draw())
        instruments.RETRIES.labels("kinesis", "read_failed").inc()
        if self.refusal is None:
            log.warning("stream_shard.unread", stream_shard_id=self.stream_shard_id, error=str(exc))
        else:
            log.error("stream_shard.refused", stream_shard_id=self.stream_shard_id, error=str(exc))

    async def _take(self, reply: Reply) -> None:
        """Send the operations of a reply on their way; return when its dead letters are stored."""
        self._millis_behind = reply.millis_behind
        self._replied_at = loop_time()
        self._look_for_expiry(reply)
        self._pacing.replied(
            loop_time(),
            record_count=len(reply.records),
            size_bytes=reply.size_bytes,
            millis_behind=reply.millis_behind,
        )
        letters: list[DeadLetter] = []
        buried: list[int] = []
        for count, (record, part) in enumerate(_parts(reply.records), start=1):
            mark = Mark(record.sequence_number, part.sub_sequence_number, record.arrived_at)
            if self._is_done_before(mark):
                continue
            ticket = self._owed.take(mark)
            letter = self._send(ticket, part.data, self._origin_of(record, part))
            if letter is not None:
                letters.append(letter)
                buried.append(ticket)
            if count % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if reply.records:
            self._start = AfterSequenceNumber(reply.records[-1].sequence_number)
        if letters:
            await self._store(letters)
            self._owed.done(buried)
        instruments.KINESIS_LAG.labels(self.stream_shard_id).set(self.lag_s or 0.0)

    def _look_for_expiry(self, reply: Reply) -> None:
        """Say so, once, when the first reply is as far behind the tip as records are kept.

        Then records right after the checkpoint may be gone unread. Kinesis goes on with the oldest ones it has.
        """
        retention, self._retention = self._retention, None
        if retention is None or reply.millis_behind is None or not isinstance(self._start, AtSequenceNumber):
            return
        if timedelta(milliseconds=reply.millis_behind) >= retention - EXPIRY_MARGIN:
            instruments.KINESIS_EXPIRED.inc()
            log.error(
                "stream_shard.records_expired",
                stream_shard_id=self.stream_shard_id,
                checkpoint=self._start.sequence_number,
                retention_hours=retention.total_seconds() / 3600,
            )

    def _is_done_before(self, mark: Mark) -> bool:
        """Whether the checkpoint that reading started from covers the record; none behind it does."""
        if self._done_before is None:
            return False
        if mark.position <= self._done_before:
            return True
        self._done_before = None
        return False

    def _send(self, ticket: int, record: bytes, origin: Origin) -> DeadLetter | None:
        """Send the operation in *record* to its lane or to the waiting room; return a letter when it holds none."""
        decoded = decode_operation(
            record,
            origin,
            max_bytes=self._rules.operation_max_bytes,
            list_limit=self._rules.list_result_limit,
        )
        if not isinstance(decoded, Operation):
            return letter_of(decoded, record, failed_at=self._utc())
        entry = Entry(ticket, decoded, record)
        self._pending_bytes += entry.cost_bytes
        tenant_id = decoded.tenant_id
        if tenant_id in self._room:
            self._room.put(tenant_id, [entry])
            return None
        lane = self._lane_of.get(tenant_id)
        if lane is not None:
            lane.put([entry])
        elif (shard_id := self._router.remembered(tenant_id)) is not None:
            self._let_go(tenant_id, shard_id, [entry])
        else:
            self._room.put(tenant_id, [entry])
        return None

    def _origin_of(self, record: Record, part: SubRecord) -> Origin:
        return Origin(
            source=Source.KINESIS,
            name=self._stream.name,
            arrived_at=record.arrived_at,
            stream_shard_id=self.stream_shard_id,
            sequence_number=record.sequence_number,
            sub_sequence_number=part.sub_sequence_number,
            partition_key=part.partition_key,
        )

    def _let_go(self, tenant_id: str, shard_id: str, entries: Sequence[Entry]) -> None:
        """Put all that is in hand of a tenant into the lane of its shard; later operations follow there."""
        lane = self._lanes.get(shard_id)
        if lane is None:
            lane = Lane(
                shard_id, self._router, settle=self._settle, put_back=self._put_back, draw=self._draw, utc=self._utc
            )
            self._lanes[shard_id] = lane
            self._tasks.create_task(lane.run(self._ending), name=f"lane:{self.stream_shard_id}:{shard_id}")
        if len(self._lane_of) >= TENANTS_REMEMBERED:  # those with nothing in hand can be looked up again
            self._lane_of = {tenant: one for tenant, one in self._lane_of.items() if len(one)}
        self._lane_of[tenant_id] = lane
        lane.put(entries)

    def _put_back(self, tenant_id: str, entries: Sequence[Entry]) -> None:
        """Take back all entries of a tenant from its lane: its shard says that it does not live there now."""
        del self._lane_of[tenant_id]
        self._room.put(tenant_id, entries)

    async def _settle(self, entries: Sequence[Entry], letters: Sequence[DeadLetter]) -> None:
        """Pass over *entries*, once their dead letters, if any, are stored."""
        if letters:
            await self._store(letters)
        self._owed.done(entry.ticket for entry in entries)
        self._pending_bytes -= sum(entry.cost_bytes for entry in entries)
        self._has_settled.set()

    async def _store(self, letters: Sequence[DeadLetter]) -> None:
        await self._dead_letters.store(letters, stopping=self._stopping)

    async def _next_settled(self) -> None:
        """Wait until something is settled, or long enough to look whether to stop."""
        self._has_settled.clear()
        await pause(0.25, until=self._has_settled)


def _parts(records: Sequence[Record]) -> Iterator[tuple[Record, SubRecord]]:
    """Yield what the records carry: themselves, or what the Kinesis Producer Library packed into them.

    All of an aggregate is taken, also what a reshard has put into the hash range of another stream shard: the KCL drops
    such an aggregate as a whole and counts on the producer to send it again, which not every one does. What is sent
    again is dropped by the log.
    """
    for record in records:
        parts = deaggregate(record.data)
        if parts is None:
            yield record, SubRecord(record.partition_key, None, record.data, 0)
        else:
            for part in parts:
                yield record, part
