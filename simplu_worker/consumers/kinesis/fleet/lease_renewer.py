"""Renew one lease and write the progress of its reader into the row.

Renewal and checkpoint are one write, every third of the lease duration. A replica that cannot renew for the whole
duration stops reading. After a leader of the KCL 3.x assigned the lease to another worker, the reader drains, and the
lease is renewed with its progress until the release.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, NoReturn

import structlog

from simplu_worker import __version__
from simplu_worker.bulkheads import translate
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_report import LeaseReport, RecordRate, ReplicaFigures
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.throughput import ThroughputMeter
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.timing.aligned_times import aligned_time
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import TargetKind

RENEWALS_PER_DURATION: Final = 3
TRIES_PER_DURATION: Final = 30  # of a renewal that fails: half of them may, and the lease is still kept

log = structlog.get_logger(__name__)


class LeaseLostError(Exception):
    """Another replica has the lease, or it could not be renewed for its whole duration."""


class LeaseRenewer:
    """Renews a lease until it is lost or released. *reader*, once there is one, gives the progress to write."""

    def __init__(
        self,
        table: LeaseTable,
        lease: Lease,
        *,
        me: str,
        duration_s: float,
        figures: Callable[[], ReplicaFigures] = ReplicaFigures,
    ) -> None:
        """*me* is the owner under which this process took *lease*. Another owner in a row is never this process.

        *figures* are those of this replica, for the others.
        """
        self._table = table
        self._me = me
        self.lease = lease  # as the last write left it
        self._duration_s = duration_s
        self._figures = figures
        self.is_reassigned = asyncio.Event()  # another worker waits for the lease: the reader is to drain
        self._has_unreadable_list = False
        self._retry = lease.retry  # the last one that is carried out; one that was there before is none for this owner
        self._renewed_at = loop_time()
        self._meter = ThroughputMeter(lease.throughput_kbps, now=loop_time())
        self._records = RecordRate(now=loop_time())
        self._is_over = False
        self._is_requested = asyncio.Event()
        self._is_renewed = asyncio.Event()
        self.reader: StreamShardReader | None = None

    def __repr__(self) -> str:
        return f"LeaseRenewer({self.lease.lease_key}, counter={self.lease.counter}, age_s={self.age_s:.1f})"

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
                self._meter.note(self.reader.read_bytes, now=started_at)
            progress: dict[str, Any] = {
                "pending_tenants": self._pending_tenants(),
                "ahead": ahead,
                "read_up_to": None if self.reader is None else self.reader.read_up_to(ahead),
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
        """Renew at once and wait for the answer, at most for the renewal interval; return whether the lease is held.

        When the lease is lost, its reader is cancelled before this returns; only other callers see False.
        """
        if not self._is_over:
            self._is_renewed.clear()
            self._is_requested.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._duration_s / RENEWALS_PER_DURATION):
                    await self._is_renewed.wait()
        return not self._is_over

    async def release(self, *, is_ended: bool) -> None:
        """Write the last checkpoint, SHARD_END where *is_ended*, and release the lease so that others take it at once.

        Gives up after the renewal interval; the lease expires then.
        """
        checkpoint = SHARD_END if is_ended else self._checkpoint()
        await self._release_within_interval(checkpoint, self._ahead())

    async def release_unchanged(self) -> None:
        """Release the lease with the progress of its last renewal: what its reader did since does not count."""
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
        """Release the lease, with as many tries as it takes; return False when it is lost."""
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
        """Try the held targets if a person has asked another replica for that since the last renewal."""
        retry = self.lease.retry
        if retry is None or retry == self._retry:
            return
        self._retry = retry
        count = 0 if self.reader is None else self.reader.retry_holds(retry.target)
        log.info("hold.retried", stream_shard_id=self.lease.lease_key, count=count)

    def _report(self, now: float) -> LeaseReport:
        """Return the state of the reader for the other replicas."""
        figures = self._figures()
        if self.reader is None:
            return LeaseReport(self._me, __version__, unable=figures.unable)
        return LeaseReport(
            self._me,
            __version__,
            lag_s=self.reader.view.lag_s,
            records_per_s=self._records.note(self.reader.read_records, now=now),
            held_count=len(self.reader.holds()),
            held=self.reader.view.first_held(),
            latency_p99_s=figures.latency_p99_s,
            dead_letter_count=figures.dead_letter_count,
            top=figures.top,
            is_clock_apart=figures.is_clock_apart,
            unable=figures.unable,
            read_count=self.reader.read_records,
        )

    def _checkpoint(self) -> Position | None:
        """Return the checkpoint to write; None when it has not moved."""
        checkpoint = None if self.reader is None else self.reader.checkpoint
        return checkpoint if checkpoint is not None and checkpoint > self.lease.checkpoint else None

    def _pending_tenants(self) -> frozenset[str] | None:
        """Return the pending tenants to list, so that the children can begin; None when the row lists them already.

        The list only shrinks. The children have begun by the list in the row, whichever replica wrote it: tenants that
        this reader holds beyond it were finished before, and the log of operations drops theirs. So a list that cannot
        be read stays as it is, and the children wait for SHARD_END, as they do without a list.
        """
        pending = None if self.reader is None else self.reader.pending_tenants()
        if pending is None:
            return None
        if self.lease.pending_tenants is not None:
            try:
                pending = pending.intersection(TenantSet.decode(self.lease.pending_tenants))
            except ValueError as exc:
                self._note_unreadable_list(str(exc))
                return None
        targets = pending.encode()
        return targets if targets != self.lease.pending_tenants else None

    def _note_unreadable_list(self, error: str) -> None:
        if not self._has_unreadable_list:
            log.warning("lease.list_unreadable", stream_shard_id=self.lease.lease_key, error=error)
        self._has_unreadable_list = True

    def _ahead(self) -> ReadAhead | None:
        """Return how far the reader is ahead of its checkpoint; before the first read, the contents of the row stay."""
        return self.lease.ahead if self.reader is None else self.reader.ahead
