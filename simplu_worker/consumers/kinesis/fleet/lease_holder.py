"""Hold one lease: renew it, read its stream shard, write its checkpoint, and give it back.

Renewal and checkpoint are one write, every third of the lease duration. Who cannot renew for the whole duration stops
reading. Two readers for a while do no harm (architecture, idea 2): each applies in order, and the log drops what the
other applied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

import structlog
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import child_leases
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.stream.client import (
    AtSequenceNumber,
    AtTimestamp,
    ChildShard,
    Start,
    StreamShard,
    TrimHorizon,
)
from simplu_worker.consumers.kinesis.stream.positions import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Position
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.aligned_times import aligned_time
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event

RENEWALS_PER_DURATION: Final = 3
TRIES_PER_DURATION: Final = 30  # of a renewal that fails: half of them may, and the lease is still kept
RETRY_PAUSE_S: Final = 1.0

Confirm: TypeAlias = Callable[[], Awaitable[bool]]
EndCheck: TypeAlias = Callable[[tuple[ChildShard, ...]], Awaitable[bool]]

log = structlog.get_logger(__name__)


class _LeaseLostError(Exception):
    """The lease is another's now, or could not be renewed for its whole duration."""


class LeaseHolder:
    """One lease that was taken, until it is lost or given back."""

    def __init__(
        self,
        table: LeaseTable,
        lease: Lease,
        *,
        duration_s: float,
        unfinished_parents: Callable[[Lease], list[str]],
        pending_at_parents: Callable[[Lease], Awaitable[TenantSet | None]],
        make_reader: Callable[[Lease, TenantSet, EndCheck, Confirm], StreamShardReader],
        sync: Callable[[], Awaitable[list[StreamShard]]],
    ) -> None:
        """Make the holder of a lease just taken.

        *unfinished_parents* are those that it waits for, by the last scan; *pending_at_parents* are the tenants to whom
        parents that were read to their end still owe something, None while it has to wait for one of them. *sync*
        creates the leases that a listing shows to be missing, and returns the listing.
        """
        self._table = table
        self.lease = lease
        self._duration_s = duration_s
        self._unfinished_parents = unfinished_parents
        self._pending_at_parents = pending_at_parents
        self._make_reader = make_reader
        self._sync = sync
        self._renewed_at = loop_time()
        self._is_ended = False
        self._is_over = False
        self._is_known_closed = False
        self._has_news = asyncio.Event()  # for the lease row
        self._is_renewed = asyncio.Event()
        self.reader: StreamShardReader | None = None

    def __repr__(self) -> str:
        return f"LeaseHolder({self.lease.lease_key}, counter={self.lease.counter}, {self.reader!r})"

    @property
    def lease_key(self) -> str:
        """The key of the lease: the id of the stream shard."""
        return self.lease.lease_key

    @property
    def renewal_age_s(self) -> float:
        """The time since the last renewal."""
        return loop_time() - self._renewed_at

    def status(self) -> dict[str, Any]:
        """Return how far it is, for people."""
        renewed = {"owner": self.lease.owner, "renewalAgeSeconds": round(self.renewal_age_s, 1)}
        if self.reader is not None:
            return self.reader.status() | renewed
        waits_for = ", ".join(self._unfinished_parents(self.lease)) or "its first read"
        return {
            "streamShard": self.lease_key,
            "state": f"waits for {waits_for}",
            "checkpoint": self.lease.checkpoint.checkpoint,
        } | renewed

    async def run(self, stopping: asyncio.Event) -> None:
        """Hold the lease until *stopping*, the end of the stream shard, or its loss."""
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(self._keep(), name=f"keep:{self.lease_key}")
                await self._work(stopping)
                if self._is_ended:  # its children begin with what the shards have been told
                    await self._leave_word()
                keeping.cancel()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._give_back(), name=f"give-back:{self.lease_key}")
                if not self._is_ended:  # meanwhile: whoever takes the lease is to wait for nothing
                    await self._leave_word()
        except* _LeaseLostError:
            log.warning("lease.lost", stream_shard_id=self.lease_key)
        finally:
            self._is_over = True
            self._is_renewed.set()  # it never is again: nobody is to wait for that

    async def _work(self, stopping: asyncio.Event) -> None:
        while (owed := await self._begin()) is None:
            if await sleep_or_event(self._duration_s / 10, until=stopping):
                return
        if stopping.is_set():
            return
        self.reader = self._make_reader(self.lease, owed, self._is_end, self.confirm)
        await self.reader.run(stopping)
        self._is_ended = self.reader.is_finished

    async def _leave_word(self) -> None:
        if self.reader is not None:
            await self.reader.write_final_positions()

    async def _begin(self) -> TenantSet | None:
        """Return to whom the parents still owe something; None while that cannot be known or one is being read."""
        try:
            return await self._pending_at_parents(self.lease)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.begin_deferred", stream_shard_id=self.lease_key, error=str(exc))
            return None

    async def confirm(self) -> bool:
        """Renew now, and return when that is answered or takes too long: whether the lease is still held.

        The reader of one that was lost is cancelled before that; only others learn it here.
        """
        if not self._is_over:
            self._is_renewed.clear()
            self._has_news.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                    await self._is_renewed.wait()
        return not self._is_over

    async def free_parents(self) -> None:
        """Let the reader apply what was held for parents that owe it no more; they are asked."""
        if self.reader is not None and self.reader.is_waiting_for_parents:
            owed = await self._begin()
            if owed is not None:
                self.reader.release_from_parents(owed)

    async def _is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """Whether the stream shard is read to its end, and its children can be begun."""
        try:
            is_end = await self._end(child_shards)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.end_deferred", stream_shard_id=self.lease_key, error=str(exc))
            is_end = False
        if not is_end:
            await asyncio.sleep(RETRY_PAUSE_S)
        self._has_news.set()
        return is_end

    async def _end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """See that the children have leases and are named in this one; return whether it is the end.

        The child of a merge gets its lease after both parents have theirs: one whose own parents are not finished yet
        may have none, and what has none is taken for read.
        """
        children = child_leases(child_shards)
        if not children:
            return await self._is_bare_end()
        others = {parent for child in children for parent in child.parents} - {self.lease_key}
        if None in [await self._table.find(parent) for parent in sorted(others)]:
            await self._sync()
        for child in children:
            if await self._table.create(child):
                log.info("lease.created", stream_shard_id=child.lease_key, parent=self.lease_key)
        await self._table.write_metadata(replace(self.lease, children=frozenset(child.lease_key for child in children)))
        return True

    async def _is_bare_end(self) -> bool:
        """Whether it is an end that does not name its children: that of one closed, or past its retention.

        The children have leases then. Only by a read that began when that was known: behind one that was answered while
        it was open, and looked like the end, more may have come before it was closed.
        """
        if self._is_known_closed:
            return True
        listed = {shard.stream_shard_id: shard for shard in await self._sync()}
        self._is_known_closed = self.lease_key not in listed or not listed[self.lease_key].is_open
        return False

    async def _keep(self) -> None:
        """Renew until cancelled; raise `_LeaseLostError` when the lease is lost."""
        interval_s = self._duration_s / RENEWALS_PER_DURATION
        due_at = aligned_time(loop_time(), interval_s)
        while True:
            await sleep_or_event(due_at - loop_time(), until=self._has_news)
            self._has_news.clear()
            started_at = loop_time()
            try:
                # Also when it is overdue, after a suspension or slow answers: the write lands only if nobody took the
                # lease meanwhile.
                async with asyncio.timeout_at(started_at + interval_s):
                    renewed = await self._table.renew(
                        self.lease, self._progress(), pending_tenants=self._owed(), ahead=self._ahead()
                    )
            except (RetryableError, PermanentError, TimeoutError) as exc:
                log.warning("lease.unrenewed", stream_shard_id=self.lease_key, error=str(exc) or "no answer in time")
                if loop_time() - self._renewed_at > self._duration_s:
                    raise _LeaseLostError from None  # without answers for so long, others may have it
                due_at = loop_time() + self._duration_s / TRIES_PER_DURATION
                continue
            if renewed is None:
                raise _LeaseLostError
            self.lease, self._renewed_at = renewed, started_at
            self._is_renewed.set()
            due_at = aligned_time(loop_time(), interval_s)

    async def _give_back(self) -> None:
        """Write the last checkpoint and let others take the lease at once; without an answer it just expires."""
        checkpoint = SHARD_END if self._is_ended else self._progress()
        released = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                released = await self._release(checkpoint)
        if released:
            shown = (checkpoint or self.lease.checkpoint).checkpoint
            log.info("lease.released", stream_shard_id=self.lease_key, checkpoint=shown)

    async def _release(self, checkpoint: Position | None) -> bool:
        """Release the lease, however often it takes; `False` when it is lost."""
        while True:
            try:
                return await self._table.release(self.lease, checkpoint, ahead=self._ahead())
            except (RetryableError, PermanentError) as exc:
                log.warning("lease.unreleased", stream_shard_id=self.lease_key, error=str(exc))
            await asyncio.sleep(self._duration_s / TRIES_PER_DURATION)

    def _owed(self) -> frozenset[str] | None:
        """Return what to list as owed, so that the children can be begun; None when that is listed already.

        It only shrinks: a list in the row is complete, whoever wrote it, so children have begun all others. What is
        held here beyond it was settled before, and is dropped by the log.
        """
        owed = None if self.reader is None else self.reader.pending_tenants()
        if owed is None:
            return None
        if self.lease.pending_tenants is not None:
            owed = owed.intersection(TenantSet.decode(self.lease.pending_tenants))
        targets = owed.encode()
        return targets if targets != self.lease.pending_tenants else None

    def _ahead(self) -> ReadAhead | None:
        """Return how far the reader is ahead of its checkpoint; before there is one, what the row says stays."""
        return self.lease.ahead if self.reader is None else self.reader.ahead

    def _progress(self) -> Position | None:
        """Return the checkpoint to write; None when it has not moved."""
        checkpoint = None if self.reader is None else self.reader.checkpoint
        return checkpoint if checkpoint is not None and checkpoint > self.lease.checkpoint else None


def start_of(lease: Lease, now: datetime) -> Start:
    """Return where to read from, given what is done.

    LATEST without the instant it was pinned to is *now*: an iterator that expired before it saw a record would skip
    those that came since. A sequence number is read once more, as the KCL does: its record may be an aggregate of which
    a part is done.
    """
    if lease.checkpoint == TRIM_HORIZON:
        return TrimHorizon()
    if lease.checkpoint in {LATEST, AT_TIMESTAMP}:
        return AtTimestamp(lease.started_at or now)
    return AtSequenceNumber(lease.checkpoint.checkpoint)
