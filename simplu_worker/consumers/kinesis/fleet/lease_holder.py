"""Hold one lease: renew it while its stream shard waits for its parents and is read, then release it.

Renewal and checkpoint are one write, every third of the lease duration. A replica that cannot renew for the whole
duration stops reading. After a leader of the KCL 3.x has assigned the lease to another worker, the reader drains.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import ChainMap
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import structlog

from simplu_worker import __version__
from simplu_worker.bulkheads import note_trouble, translate
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import (
    Lease,
    LeaseReport,
    ReadAhead,
    RecordRate,
    ReplicaFigures,
    StreamView,
    ThroughputMeter,
)
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseSyncer, LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import child_leases, pending_at_parents, unfinished_parents
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderLease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, lineage_of
from simplu_worker.consumers.kinesis.stream.client import ChildShard
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import aligned_time, sleep_or_event, wait_any
from simplu_worker.vocabulary import TargetKind

RENEWALS_PER_DURATION: Final = 3
TRIES_PER_DURATION: Final = 30  # of a renewal that fails: half of them may, and the lease is still kept

log = structlog.get_logger(__name__)


class LeaseLostError(Exception):
    """Another replica has the lease, or it could not be renewed in time."""


class LeaseRenewer:
    """Renews a lease until it is lost or released, with the progress of its *reader*."""

    def __init__(
        self,
        table: LeaseTable,
        lease: Lease,
        figures: Callable[[], ReplicaFigures],
        *,
        me: str,
        duration_s: float,
    ) -> None:
        """*me* is the owner under which this process took *lease*; *figures* are the replica's."""
        self._table = table
        self._me = me
        self.lease = lease  # as the last write left it
        self._duration_s = duration_s
        self._figures = figures
        self.is_reassigned = asyncio.Event()  # another worker waits for the lease: the reader is to drain
        self._retry = lease.retry  # the last one that is carried out; one that was there before is none for this owner
        self._renewed_at = loop_time()
        self._meter = ThroughputMeter(lease.throughput_kbps, now=loop_time())
        self._records = RecordRate(now=loop_time())
        self._is_over = False
        self._is_requested = asyncio.Event()
        self._is_renewed = asyncio.Event()
        self.reader: StreamShardReader | None = None

    @property
    def age_s(self) -> float:
        """The time since the last renewal."""
        return loop_time() - self._renewed_at

    async def run(self) -> NoReturn:
        """Renew until cancelled. Raises LeaseLostError."""
        self._note_reassignment()
        interval_s = self._duration_s / RENEWALS_PER_DURATION
        due_at = aligned_time(loop_time(), interval_s)
        while True:
            await sleep_or_event(due_at - loop_time(), until=self._is_requested)
            self._is_requested.clear()
            started_at, ahead = loop_time(), self._ahead()
            if self.reader is not None:
                self._meter.note(self.reader.cursor.read_bytes, now=started_at)
            progress: dict[str, Any] = {
                "pending_tenants": self._pending_tenants(),
                "ahead": ahead,
                "read_up_to": None if self.reader is None else self.reader.progress.read_up_to(ahead),
                "throughput_kbps": self._meter.kbps,
                "report": self._report(started_at),
                "is_given_away": self._figures().unable is not None,
            }
            try:
                # Also when it is overdue, after a suspension or slow answers: the write fails if another replica took
                # the lease in between.
                with translate(TargetKind.LEASES, self._table.name, "renewal", WorkerError, TimeoutError):
                    async with asyncio.timeout_at(started_at + interval_s):
                        renewed = await self._table.renew(self.lease, self._me, self._checkpoint(), **progress)
            except (RetryableError, PermanentError, TimeoutError) as exc:
                log.warning(
                    "lease.unrenewed", stream_shard_id=self.lease.lease_key, error=str(exc) or "no answer in time"
                )
                if self.age_s > self._duration_s:
                    raise LeaseLostError from None  # other replicas may take it by now
                due_at = loop_time() + self._duration_s / TRIES_PER_DURATION
                continue
            if renewed is None:
                raise LeaseLostError
            self.lease, self._renewed_at = renewed, started_at
            self._note_reassignment()
            self._carry_out_retry()
            self._is_renewed.set()
            due_at = aligned_time(loop_time(), interval_s)

    def request(self) -> None:
        """Have the lease renewed at once: there is progress to write."""
        self._is_requested.set()

    async def confirm(self) -> bool:
        """Renew at once; return whether the lease is held."""
        if not self._is_over:
            self._is_renewed.clear()
            self._is_requested.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                    await self._is_renewed.wait()
        return not self._is_over

    async def release(self, *, is_ended: bool) -> None:
        """Write the last checkpoint, SHARD_END where *is_ended*, and release the lease."""
        checkpoint = SHARD_END if is_ended else self._checkpoint()
        await self._release_within_interval(checkpoint, self._ahead())

    async def release_unchanged(self) -> None:
        """Release the lease with the progress of its last renewal."""
        await self._release_within_interval(None, self.lease.ahead)

    async def _release_within_interval(self, checkpoint: Position | None, ahead: ReadAhead | None) -> None:
        is_released = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                is_released = await self._release(checkpoint, ahead)
        if is_released:
            written = (checkpoint or self.lease.checkpoint).checkpoint
            log.info("lease.released", stream_shard_id=self.lease.lease_key, checkpoint=written)

    def close(self) -> None:
        """End the waits of `confirm`: the lease will not be renewed any more."""
        self._is_over = True
        self._is_renewed.set()

    async def _release(self, checkpoint: Position | None, ahead: ReadAhead | None) -> bool:
        while True:
            try:
                with translate(TargetKind.LEASES, self._table.name, "release", WorkerError):
                    return await self._table.release(self.lease, self._me, checkpoint, ahead=ahead)
            except (RetryableError, PermanentError) as exc:
                log.warning("lease.unreleased", stream_shard_id=self.lease.lease_key, error=str(exc))
            await asyncio.sleep(self._duration_s / TRIES_PER_DURATION)

    def _note_reassignment(self) -> None:
        if self.lease.checkpoint_owner is not None and not self.is_reassigned.is_set():
            log.info("lease.reassigned", stream_shard_id=self.lease.lease_key, next_owner=self.lease.owner)
            self.is_reassigned.set()

    def _carry_out_retry(self) -> None:
        retry = self.lease.retry
        if retry is None or retry == self._retry:
            return
        self._retry = retry
        count = 0 if self.reader is None else self.reader.retry_holds(retry.target)
        log.info("hold.retried", stream_shard_id=self.lease.lease_key, count=count)

    def _report(self, now: float) -> LeaseReport:
        figures = self._figures()
        if self.reader is None:
            return LeaseReport(self._me, __version__, unable=figures.unable)
        return LeaseReport(
            self._me,
            __version__,
            lag_s=self.reader.view.lag_s,
            records_per_s=self._records.note(self.reader.cursor.read_records, now=now),
            held_count=len(self.reader.holds()),
            held=self.reader.view.first_held(),
            latency_p99_s=figures.latency_p99_s,
            dead_letter_count=figures.dead_letter_count,
            top=figures.top,
            unable=figures.unable,
            read_count=self.reader.cursor.read_records,
        )

    def _checkpoint(self) -> Position | None:
        checkpoint = None if self.reader is None else self.reader.progress.checkpoint
        return checkpoint if checkpoint is not None and checkpoint > self.lease.checkpoint else None

    def _pending_tenants(self) -> frozenset[str] | None:
        # The list only shrinks: the children have begun by the list in the row, whichever replica wrote it.
        pending = None if self.reader is None else self.reader.progress.pending_tenants()
        if pending is None:
            return None
        if self.lease.pending_tenants is not None:
            pending = pending.intersection(TenantSet.decode(self.lease.pending_tenants))
        targets = pending.encode()
        return targets if targets != self.lease.pending_tenants else None

    def _ahead(self) -> ReadAhead | None:
        return self.lease.ahead if self.reader is None else self.reader.progress.ahead


class LeaseAncestry:
    """The parents of leases, and the ancestors of those that this replica began to read."""

    def __init__(self, table: LeaseTable, view: StreamView) -> None:
        self._table = table
        self._view = view
        self._ancestors: dict[str, Lease] = {}  # kept, because not every scan shows them

    def lineage(self, lease: Lease) -> Lineage:
        """Return the stream shards that a lease continues."""
        return lineage_of(lease, ChainMap(self._view.leases(), self._ancestors), self._view.gone)

    def unfinished_parents(self, lease: Lease) -> list[str]:
        """Return the parents that *lease* waits for, by the last scan."""
        return unfinished_parents(lease, self._view.leases(), self._view.gone)

    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        """Return the tenants with operations pending at the parents; None while a parent is read.

        Parents that the last scan does not show at their end are read one by one. Raises RetryableError.
        """
        known = self._view.leases()
        if self.unfinished_parents(lease):
            return None
        parents: dict[str, Lease] = {}
        for key in sorted(lease.parents - self._view.gone):
            if key in known and known[key].checkpoint == SHARD_END:
                continue
            if (found := await self._find(key)) is not None:
                parents[key] = self._ancestors[key] = found
        if unfinished_parents(lease, parents, self._view.gone):
            return None
        await self._find_ancestors(lease)
        return TenantSet.decode(pending_at_parents(lease, parents, self._view.gone))

    def forget_unlisted(self, listed: Container[str]) -> None:
        """Forget the ancestors that the stream does not list any more."""
        self._ancestors = {key: lease for key, lease in self._ancestors.items() if key in listed}

    async def _find_ancestors(self, lease: Lease) -> None:
        known = self._ancestors | self._view.leases()
        waiting = sorted(lease.parents)
        for key in waiting:  # grows while it is walked
            if key in self._view.gone:
                continue
            ancestor = known.get(key) or await self._find(key)
            if ancestor is not None:
                self._ancestors[key] = ancestor
                waiting += sorted(ancestor.parents.difference(waiting))

    async def _find(self, lease_key: str) -> Lease | None:
        found = await self._table.find(lease_key)
        if found is None and self._table.is_unreadable(lease_key):
            raise RetryableError(f"the lease of its ancestor {lease_key} cannot be read")
        return found


class StreamShardEnd:
    """Prepares the end of a stream shard: the leases of its children."""

    def __init__(self, table: LeaseTable, syncer: LeaseSyncer, *, me: str) -> None:
        """*me* is the owner under which this process took the lease."""
        self._table = table
        self._me = me
        self._syncer = syncer

    async def note(self, lease: Lease, child_shards: Sequence[ChildShard]) -> None:
        """Create the leases of the children and list them in *lease*.

        The leases of both parents of a merge exist before that of their child, which would take one without for read.
        """
        children = child_leases(child_shards)
        other_parents = {parent for child in children for parent in child.parents} - {lease.lease_key}
        if None in [await self._table.find(parent) for parent in sorted(other_parents)]:
            await self._syncer.sync()
        for child in children:
            if await self._table.create(child):
                log.info(
                    "lease.created",
                    stream_shard_id=child.lease_key,
                    parent=lease.lease_key,
                    checkpoint=child.checkpoint.checkpoint,
                )
        await self._table.write_children(lease, self._me, [child.lease_key for child in children])


PARENT_CHECKS_PER_DURATION: Final = 10
END_RETRY_PAUSE_S: Final = 1.0


class LeaseHolder:
    """One lease that was taken, until it is lost or released."""

    def __init__(
        self,
        renewer: LeaseRenewer,
        end: StreamShardEnd,
        ancestry: LeaseAncestry,
        create_reader: Callable[[Lease, TenantSet, ReaderLease], StreamShardReader],
        *,
        duration_s: float,
    ) -> None:
        self._renewer = renewer
        self._end = end
        self._ancestry = ancestry
        self._create_reader = create_reader
        self._duration_s = duration_s
        self._is_ended = False
        self._is_failed = asyncio.Event()
        self._defect: Exception | None = None
        self.has_failed = False  # by an error that nobody foresaw

    @property
    def lease_key(self) -> str:
        """The key of the lease: the id of the stream shard."""
        return self._renewer.lease.lease_key

    @property
    def reader(self) -> StreamShardReader | None:
        """The reader; None while the lease waits for its parents."""
        return self._renewer.reader

    @property
    def renewal_age_s(self) -> float:
        """The time since the last renewal."""
        return self._renewer.age_s

    def status(self) -> dict[str, Any]:
        """Return state and progress, for people."""
        lease = self._renewer.lease
        renewed = {"owner": lease.actual_owner, "renewalAgeSeconds": round(self.renewal_age_s, 1)}
        if self.reader is not None:
            return self.reader.status() | renewed
        waits_for = ", ".join(self._ancestry.unfinished_parents(lease)) or "its first read"
        return {
            "streamShard": self.lease_key,
            "state": f"waits for {waits_for}",
            "checkpoint": lease.checkpoint.checkpoint,
        } | renewed

    async def run(self, stopping: asyncio.Event) -> None:
        """Hold the lease until *stopping*, the end, its loss or reassignment.

        After what nobody foresaw it is given up without a checkpoint.
        """
        try:
            await self._hold(stopping)
        except Exception as exc:  # noqa: BLE001  # the trouble of this stream shard alone
            self.has_failed = True
            note_trouble(TargetKind.STREAM_SHARD, self.lease_key, "reader", exc)
            await self._renewer.release_unchanged()
        finally:
            self._renewer.close()

    async def _hold(self, stopping: asyncio.Event) -> None:
        ending = asyncio.Event()
        if stopping.is_set():
            ending.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renewer.run(), name=f"renew:{self.lease_key}")
                watching = tasks.create_task(self._end_on(stopping, ending), name=f"end:{self.lease_key}")
                await self._read(ending)
                if self._is_ended:  # its children begin by the positions on the shards
                    await self._write_final_positions()
                renewing.cancel()
                watching.cancel()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._renewer.release(is_ended=self._is_ended), name=f"release:{self.lease_key}")
                if not self._is_ended:  # beside the release: the next owner must not wait for these writes
                    await self._write_final_positions()
        except* LeaseLostError:
            log.info("lease.lost", stream_shard_id=self.lease_key)

    def fail(self, exc: Exception) -> None:
        """End the reader for *exc*, which was raised where other tasks use it."""
        self._defect = exc
        self._is_failed.set()

    async def release_from_parents(self) -> None:
        """Let the reader apply what waited for parents that have finished."""
        if self.reader is not None and self.reader.progress.ownership.parents_hold is not None:
            pending = await self._find_pending_at_parents()
            if pending is not None:
                self.reader.release_from_parents(pending)

    async def _end_on(self, stopping: asyncio.Event, ending: asyncio.Event) -> None:
        await wait_any(stopping, self._renewer.is_reassigned, self._is_failed)
        if self._defect is not None:
            raise self._defect
        ending.set()

    async def _read(self, ending: asyncio.Event) -> None:
        while (pending := await self._find_pending_at_parents()) is None:
            if await sleep_or_event(self._duration_s / PARENT_CHECKS_PER_DURATION, until=ending):
                return
        if ending.is_set():
            return
        reader = self._create_reader(self._renewer.lease, pending, self)
        self._renewer.reader = reader
        await reader.run(ending)
        self._is_ended = reader.progress.is_finished

    async def _write_final_positions(self) -> None:
        if self.reader is not None:
            await self.reader.write_final_positions()

    async def _find_pending_at_parents(self) -> TenantSet | None:
        try:
            return await self._ancestry.find_pending_at_parents(self._renewer.lease)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.begin_deferred", stream_shard_id=self.lease_key, error=str(exc))
            return None

    @property
    def started_at(self) -> datetime | None:
        """See `ReaderLease`."""
        return self._renewer.lease.started_at

    def lineage(self) -> Lineage:
        """See `ReaderLease`."""
        return self._ancestry.lineage(self._renewer.lease)

    async def confirm(self) -> bool:
        """See `LeaseRenewer.confirm`."""
        return await self._renewer.confirm()

    async def is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """See `ReaderLease`."""
        try:
            await self._end.note(self._renewer.lease, child_shards)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.end_deferred", stream_shard_id=self.lease_key, error=str(exc))
            await asyncio.sleep(END_RETRY_PAUSE_S)
            return False
        self._renewer.request()
        return True
