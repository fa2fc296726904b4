"""Hold one lease: renew it, read its stream shard, write its checkpoint, and give it back.

Renewal and checkpoint are one write, every third of the lease duration. Who cannot renew for the whole duration stops
reading. Two readers for a while do no harm (architecture, idea 2): each applies in order, and the log drops what the
other applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

import structlog
from msgspec.structs import replace

from simplu_worker.clock import loop_time
from simplu_worker.consumers.kinesis.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases import Lease
from simplu_worker.consumers.kinesis.positions import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Position
from simplu_worker.consumers.kinesis.reader import StreamShardReader
from simplu_worker.consumers.kinesis.shard_tree import child_leases
from simplu_worker.consumers.kinesis.stream import AfterSequenceNumber, AtTimestamp, Start, TrimHorizon
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import RefusedError, TryAgainLaterError

RENEWALS_PER_DURATION: Final = 3
RETRY_PAUSE_S: Final = 1.0

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
        make_reader: Callable[[Lease], StreamShardReader],
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        """*sync* creates missing leases from a listing, for an end that does not name its children."""
        self._table = table
        self.lease = lease
        self._duration_s = duration_s
        self._unfinished_parents = unfinished_parents
        self._make_reader = make_reader
        self._sync = sync
        self._renewed_at = loop_time()
        self.reader: StreamShardReader | None = None

    def __repr__(self) -> str:
        return f"LeaseHolder({self.lease.lease_key}, counter={self.lease.counter}, {self.reader!r})"

    @property
    def lease_key(self) -> str:
        """The key of the lease: the id of the stream shard."""
        return self.lease.lease_key

    def status(self) -> dict[str, Any]:
        """Return how far it is, for people."""
        renewed = {"owner": self.lease.owner, "renewedSecondsAgo": round(loop_time() - self._renewed_at, 1)}
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
                keeping.cancel()
            await self._give_back()
        except* _LeaseLostError:
            log.warning("lease.lost", stream_shard_id=self.lease_key)

    async def _work(self, stopping: asyncio.Event) -> None:
        while self._unfinished_parents(self.lease) and not stopping.is_set():
            await pause(self._duration_s / 10, until=stopping)
        if stopping.is_set():
            return
        self.reader = self._make_reader(self.lease)
        await self.reader.run(stopping)
        while self.reader.is_finished and not await self._end(self.reader):
            if await pause(RETRY_PAUSE_S, until=stopping):
                self.reader = None  # children unknown to the table: not the end yet
                return

    async def _end(self, reader: StreamShardReader) -> bool:
        """See that the children have leases and are named in this one; whether it was possible."""
        children = child_leases(reader.child_shards)
        try:
            for child in children:
                if await self._table.create(child):
                    log.info("lease.created", stream_shard_id=child.lease_key, parent=self.lease_key)
            if children:
                await self._table.note_facts(
                    replace(self.lease, children=frozenset(child.lease_key for child in children))
                )
            else:
                await self._sync()
        except (TryAgainLaterError, RefusedError) as exc:
            log.warning("stream_shard.end_deferred", stream_shard_id=self.lease_key, error=str(exc))
            return False
        return True

    async def _keep(self) -> None:
        """Renew until cancelled; raise `_LeaseLostError` when the lease is lost."""
        pause_s = self._duration_s / RENEWALS_PER_DURATION
        while True:
            await asyncio.sleep(pause_s)
            started_at = loop_time()
            if started_at - self._renewed_at > self._duration_s:
                raise _LeaseLostError  # suspended, or without answers: others may have it
            try:
                renewed = await self._table.renew(self.lease, self._progress())
            except (TryAgainLaterError, RefusedError) as exc:
                log.warning("lease.unrenewed", stream_shard_id=self.lease_key, error=str(exc))
                pause_s = min(RETRY_PAUSE_S, self._duration_s / RENEWALS_PER_DURATION)
                continue
            if renewed is None:
                raise _LeaseLostError
            self.lease, self._renewed_at = renewed, started_at
            pause_s = self._duration_s / RENEWALS_PER_DURATION

    async def _give_back(self) -> None:
        """Write the last checkpoint and let others take the lease at once; without an answer it just expires."""
        is_finished = self.reader is not None and self.reader.is_finished
        checkpoint = SHARD_END if is_finished else self._progress()
        try:
            released = await self._table.release(self.lease, checkpoint)
        except (TryAgainLaterError, RefusedError) as exc:
            log.warning("lease.unreleased", stream_shard_id=self.lease_key, error=str(exc))
            return
        if released:
            shown = (checkpoint or self.lease.checkpoint).checkpoint
            log.info("lease.released", stream_shard_id=self.lease_key, checkpoint=shown)

    def _progress(self) -> Position | None:
        """Return the checkpoint to write; None when it has not moved."""
        checkpoint = None if self.reader is None else self.reader.checkpoint
        return checkpoint if checkpoint is not None and checkpoint > self.lease.checkpoint else None


def start_of(lease: Lease, now: datetime) -> Start:
    """Return where to read from, given what is done.

    LATEST without the instant it was pinned to is *now*: an iterator that expired before it saw a record would skip
    those that came since.
    """
    if lease.checkpoint == TRIM_HORIZON:
        return TrimHorizon()
    if lease.checkpoint in {LATEST, AT_TIMESTAMP}:
        return AtTimestamp(lease.started_at or now)
    return AfterSequenceNumber(lease.checkpoint.checkpoint)
