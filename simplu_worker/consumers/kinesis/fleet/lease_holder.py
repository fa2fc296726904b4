"""Hold one lease: renew it while its stream shard waits for its parents and is read, then release it.

Renewal and checkpoint are one write, every third of the lease duration. A replica that cannot renew for the whole
duration stops reading. After a leader of the KCL 3.x has assigned the lease to another worker, the reader drains.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import structlog

from simplu_worker import __version__
from simplu_worker.bulkheads import note_trouble, translate
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases import lease_rules
from simplu_worker.consumers.kinesis.leases.lease import (
    KILOBYTE,
    TIME_CONSTANT_S,
    Lease,
    LeaseReport,
    Meter,
    Progress,
    ReadAhead,
    ReplicaFigures,
    StreamView,
)
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderLease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, lineage_of
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Stream, StreamShard
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.timing.clock import UtcClock, loop_time
from simplu_worker.timing.waits import aligned_time, sleep_or_event, wait_any
from simplu_worker.vocabulary import TargetKind

RENEWALS_PER_DURATION: Final = 3
TRIES_PER_DURATION: Final = 30  # of a renewal that fails: half of them may, and the lease is still kept
PARENT_CHECKS_PER_DURATION: Final = 10
END_RETRY_PAUSE_S: Final = 1.0

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
        self._highest = lease.checkpoint  # that was sent
        self._duration_s = duration_s
        self._figures = figures
        self.is_reassigned = asyncio.Event()  # another worker waits for the lease: the reader is to drain
        self._retry = lease.retry  # the last one that is carried out; one that was there before is none for this owner
        self._renewed_at = loop_time()
        self._throughput = Meter(lease.throughput_kbps, time_constant_s=TIME_CONSTANT_S, now=loop_time())
        self._records = Meter(now=loop_time())
        self._is_over = False
        self.is_requested = asyncio.Event()  # there is progress to write
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
            await sleep_or_event(due_at - loop_time(), until=self.is_requested)
            self.is_requested.clear()
            started_at = loop_time()
            progress = self._progress(started_at)
            try:
                # Also when it is overdue, after a suspension or slow answers: the write fails if another replica took
                # the lease in between.
                with translate(TargetKind.LEASES, self._table.name, "renewal", WorkerError, TimeoutError):
                    async with asyncio.timeout_at(started_at + interval_s):
                        renewed = await self._table.renew(self.lease, self._me, progress)
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

    async def confirm(self) -> bool:
        """Renew at once; return whether the lease is held."""
        if not self._is_over:
            self._is_renewed.clear()
            self.is_requested.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                    await self._is_renewed.wait()
        return not self._is_over

    async def release(self, *, is_ended: bool = False, is_unchanged: bool = False) -> None:
        """Write the last progress and release the lease.

        The checkpoint is SHARD_END where *is_ended*; where *is_unchanged*, all stays as the last renewal wrote it.
        """
        checkpoint, ahead = None, self.lease.ahead
        if not is_unchanged:  # else the reader may have failed, and is not asked
            checkpoint, ahead = positions.SHARD_END if is_ended else self._checkpoint(), self._ahead()
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

    async def _release(self, checkpoint: positions.Position | None, ahead: ReadAhead | None) -> bool:
        while True:
            try:
                with translate(TargetKind.LEASES, self._table.name, "release", WorkerError):
                    return await self._table.release(self.lease, self._me, checkpoint, ahead)
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
        target = retry.partition(" ")[2] or None
        count = 0 if self.reader is None else self.reader.retry_holds(target)
        log.info("hold.retried", stream_shard_id=self.lease.lease_key, count=count)

    def _progress(self, now: float) -> Progress:
        ahead, figures, reader = self._ahead(), self._figures(), self.reader
        report = LeaseReport(self._me, __version__, figures)
        if reader is not None:
            self._throughput.note(reader.cursor.read_bytes / KILOBYTE, now=now)
            self._records.note(reader.cursor.read_records, now=now)
            report = LeaseReport(
                self._me,
                __version__,
                figures,
                lag_s=reader.view.lag_s,
                records_per_s=self._records.per_s,
                read_count=reader.cursor.read_records,
                held_count=len(reader.progress.holds()),
                held=reader.view.first_held(),
            )
        return Progress(
            self._checkpoint(),
            ahead,
            read_up_to=None if reader is None else reader.progress.read_up_to(ahead),
            pending_tenants=self._pending_tenants(),
            throughput_kbps=self._throughput.per_s,
            report=report,
            is_given_away=figures.unable is not None,
        )

    def _checkpoint(self) -> positions.Position | None:
        # Never below one that was sent: a renewal without an answer may have written it, before a backfill began.
        if self.reader is not None and (checkpoint := self.reader.progress.checkpoint) is not None:
            self._highest = max(self._highest, checkpoint)
        return self._highest if self._highest > self.lease.checkpoint else None

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


class LeaseTree:
    """The leases of the tree of stream shards: creates those that are missing, and finds those of ancestors.

    Raises RetryableError or PermanentError, as stream and table do.
    """

    def __init__(
        self, stream: Stream, table: LeaseTable, view: StreamView, position: str | datetime, *, utc: UtcClock
    ) -> None:
        """*position* is `KINESIS_INITIAL_POSITION`."""
        self._stream = stream
        self._table = table
        self._view = view
        self._position = position
        self._utc = utc
        self._ancestors: dict[str, Lease] = {}  # of leases that began to be read; not every scan shows them

    def lineage(self, lease: Lease) -> Lineage:
        """Return the stream shards that a lease continues."""
        return lineage_of(lease, ChainMap(self._view.leases, self._ancestors), self._view.gone)

    def unfinished_parents(self, lease: Lease) -> list[str]:
        """Return the parents that *lease* waits for, by the last scan."""
        return lease_rules.unfinished_parents(lease, self._view.leases, self._view.gone)

    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        """Return the tenants with operations pending at the parents; None while a parent is read.

        Parents that the last scan does not show at their end are read one by one. Raises RetryableError.
        """
        known = self._view.leases
        if self.unfinished_parents(lease):
            return None
        parents: dict[str, Lease] = {}
        for key in sorted(lease.parents - self._view.gone):
            if key in known and known[key].checkpoint == positions.SHARD_END:
                continue
            if (found := await self._table.find(key)) is not None:
                parents[key] = self._ancestors[key] = found
        if lease_rules.unfinished_parents(lease, parents, self._view.gone):
            return None
        await self._find_ancestors(lease)
        return TenantSet.decode(lease_rules.pending_at_parents(lease, parents, self._view.gone))

    def forget_unlisted(self, listed: Container[str]) -> None:
        """Forget the ancestors that the stream does not list any more."""
        self._ancestors = {key: lease for key, lease in self._ancestors.items() if key in listed}

    async def _find_ancestors(self, lease: Lease) -> None:
        known = self._ancestors | self._view.leases
        waiting = sorted(lease.parents)
        for key in waiting:  # grows while it is walked
            if key in self._view.gone:
                continue
            ancestor = known.get(key) or await self._table.find(key)
            if ancestor is not None:
                self._ancestors[key] = ancestor
                waiting += sorted(ancestor.parents.difference(waiting))

    async def sync_at_start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Create the leases missing at the start; return all."""
        initial = self._initial_position()
        if not leases:
            first = lease_rules.first_leases(await self._list_at(initial), initial)
            # The leases of a faster replica count: if the stream was resharded in between, those of this listing would
            # start the reading a second time.
            leases = await self._table.scan(is_consistent=True)
            if not leases:
                return await self._create(first)
        return [*leases, *await self._create(await self._find_missing(leases, await self._list_all()))]

    async def _find_missing(self, leases: Sequence[Lease], listing: Sequence[StreamShard]) -> list[Lease]:
        # Scans again, consistently: where a stream shard starts depends on whether its parent has a lease.
        if lease_rules.missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position()):
            leases = await self._table.scan(is_consistent=True)
        return lease_rules.missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position())

    async def _create(self, wanted: Sequence[Lease], parent: str | None = None) -> list[Lease]:
        created = [lease for lease in wanted if await self._table.create(lease)]
        for lease in created:
            start = lease.checkpoint.checkpoint
            log.info("lease.created", stream_shard_id=lease.lease_key, parent=parent, checkpoint=start)
        return created

    async def sync(self) -> list[Lease]:
        """List the stream and create the missing leases; return those."""
        leases, listing = await self._table.scan(), await self._list_all()
        return await self._create(await self._find_missing(leases, listing))

    async def create_children(self, lease_key: str, child_shards: Sequence[ChildShard]) -> None:
        """Create the leases of the children of a stream shard that has ended, and list them in its row.

        The leases of both parents of a merge exist before that of their child, which would take one without for read.
        """
        children = lease_rules.child_leases(child_shards)
        other_parents = {parent for child in children for parent in child.parents} - {lease_key}
        if None in [await self._table.find(parent) for parent in sorted(other_parents)]:
            await self.sync()
        await self._create(children, parent=lease_key)
        await self._table.write_children(lease_key, [child.lease_key for child in children])

    async def audit(self, leases: Iterable[Lease]) -> None:
        """Look for a hole in the *leases* of a scan, which may be a stale one; create those that are missing."""
        if lease_rules.first_hole_in_leases(leases) is not None and await self.sync():
            log.warning("leases.incomplete", stream=self._stream.name)

    def _initial_position(self) -> lease_rules.InitialPosition:
        if isinstance(self._position, datetime):
            return lease_rules.InitialPosition(positions.AT_TIMESTAMP, self._position)
        if self._position == "LATEST":
            return lease_rules.InitialPosition(positions.LATEST, self._utc())
        return lease_rules.InitialPosition(positions.TRIM_HORIZON)

    async def _list_at(self, initial: lease_rules.InitialPosition) -> list[StreamShard]:
        at: positions.TrimHorizon | positions.Latest | positions.AtTimestamp = positions.TrimHorizon()
        if initial.checkpoint == positions.LATEST:
            at = positions.Latest()
        elif initial.started_at is not None:
            at = positions.AtTimestamp(initial.started_at)
        stream_shards = await self._stream.list_stream_shards(at)
        hole = lease_rules.first_hole([shard.hash_range for shard in stream_shards])
        if hole is not None:
            raise RetryableError(
                f"stream {self._stream.name}: expected stream shards for all hash keys, got none from {hole.first} on"
            )
        return stream_shards

    async def _list_all(self) -> list[StreamShard]:
        stream_shards = await self._stream.list_stream_shards()
        if lease_rules.is_torn(stream_shards):
            raise RetryableError(f"stream {self._stream.name} was resharded between two pages of its listing")
        return stream_shards


class LeaseHolder:
    """One lease that was taken, until it is lost or released."""

    def __init__(
        self,
        renewer: LeaseRenewer,
        tree: LeaseTree,
        create_reader: Callable[[Lease, TenantSet, ReaderLease], StreamShardReader],
        *,
        duration_s: float,
    ) -> None:
        self.renewer = renewer
        self.lease_key = renewer.lease.lease_key  # the id of the stream shard
        self._tree = tree
        self._create_reader = create_reader
        self._duration_s = duration_s
        self._is_ended = False
        self._is_failed = asyncio.Event()
        self._defect: Exception | None = None
        self.has_failed = False  # by an error that nobody foresaw

    def status(self) -> dict[str, Any]:
        """Return state and progress, for people."""
        lease = self.renewer.lease
        renewed = {"owner": lease.actual_owner, "renewalAgeSeconds": round(self.renewer.age_s, 1)}
        if self.renewer.reader is not None:
            return self.renewer.reader.status() | renewed
        waits_for = ", ".join(self._tree.unfinished_parents(lease)) or "its first read"
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
            await self.renewer.release(is_unchanged=True)
        finally:
            self.renewer.close()

    async def _hold(self, stopping: asyncio.Event) -> None:
        ending = asyncio.Event()
        if stopping.is_set():
            ending.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self.renewer.run(), name=f"renew:{self.lease_key}")
                watching = tasks.create_task(self._end_on(stopping, ending), name=f"end:{self.lease_key}")
                await self._read(ending)
                if self._is_ended:  # its children begin by the positions on the shards
                    await self._write_final_positions()
                renewing.cancel()
                watching.cancel()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.renewer.release(is_ended=self._is_ended), name=f"release:{self.lease_key}")
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
        if self.renewer.reader is not None and self.renewer.reader.progress.ownership.parents_hold is not None:
            pending = await self._find_pending_at_parents()
            if pending is not None:
                self.renewer.reader.release_from_parents(pending)

    async def _end_on(self, stopping: asyncio.Event, ending: asyncio.Event) -> None:
        await wait_any(stopping, self.renewer.is_reassigned, self._is_failed)
        if self._defect is not None:
            raise self._defect
        ending.set()

    async def _read(self, ending: asyncio.Event) -> None:
        while (pending := await self._find_pending_at_parents()) is None:
            if await sleep_or_event(self._duration_s / PARENT_CHECKS_PER_DURATION, until=ending):
                return
        if ending.is_set():
            return
        reader = self._create_reader(self.renewer.lease, pending, self)
        self.renewer.reader = reader
        await reader.run(ending)
        self._is_ended = reader.progress.is_finished

    async def _write_final_positions(self) -> None:
        if self.renewer.reader is not None:
            await self.renewer.reader.shard_positions.write_final_positions()

    async def _find_pending_at_parents(self) -> TenantSet | None:
        try:
            return await self._tree.find_pending_at_parents(self.renewer.lease)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.begin_deferred", stream_shard_id=self.lease_key, error=str(exc))
            return None

    @property
    def started_at(self) -> datetime | None:
        """See `ReaderLease`."""
        return self.renewer.lease.started_at

    def lineage(self) -> Lineage:
        """See `ReaderLease`."""
        return self._tree.lineage(self.renewer.lease)

    async def confirm(self) -> bool:
        """See `LeaseRenewer.confirm`."""
        return await self.renewer.confirm()

    async def is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """See `ReaderLease`."""
        try:
            await self._tree.create_children(self.lease_key, child_shards)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.end_deferred", stream_shard_id=self.lease_key, error=str(exc))
            await asyncio.sleep(END_RETRY_PAUSE_S)
            return False
        self.renewer.is_requested.set()
        return True
