"""Hold one lease: renew it while its stream shard waits for its parents and is read, then release it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias

import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.consumers.kinesis.fleet.lease_ancestry import LeaseAncestry
from simplu_worker.consumers.kinesis.fleet.lease_renewer import LeaseLostError, LeaseRenewer
from simplu_worker.consumers.kinesis.fleet.stream_shard_end import StreamShardEnd
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.stream.client import ChildShard
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.waits import sleep_or_event, wait_any
from simplu_worker.vocabulary import TargetKind

PARENT_CHECKS_PER_DURATION: Final = 10
END_RETRY_PAUSE_S: Final = 1.0

Confirm: TypeAlias = Callable[[], Awaitable[bool]]
EndCheck: TypeAlias = Callable[[tuple[ChildShard, ...]], Awaitable[bool]]
CreateReader: TypeAlias = Callable[[Lease, TenantSet, EndCheck, Confirm], StreamShardReader]

log = structlog.get_logger(__name__)


class RenewalsCancelledError(Exception):
    """The renewals of a lease were cancelled, and not by its holder."""


class LeaseHolder:
    """One lease that was taken, until it is lost or released."""

    def __init__(
        self,
        renewer: LeaseRenewer,
        end: StreamShardEnd,
        ancestry: LeaseAncestry,
        create_reader: CreateReader,
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

    def __repr__(self) -> str:
        return f"LeaseHolder({self._renewer!r}, {self.reader!r})"

    @property
    def lease_key(self) -> str:
        """The key of the lease: the id of the stream shard."""
        return self._renewer.lease.lease_key

    @property
    def reader(self) -> StreamShardReader | None:
        """The reader of the stream shard; None while the lease waits for its parents."""
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
        """Hold the lease until *stopping*, the end of the stream shard, or the loss or reassignment of the lease.

        After what nobody foresaw the lease is given up without a checkpoint: the next reader begins at the stored one.
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
                renewing.add_done_callback(self._note_end_of_renewals)
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

    def check(self) -> None:
        """Renew the lease at once; when another worker has taken it, reading ends."""
        self._renewer.request()

    def fail(self, exc: Exception) -> None:
        """End the reader for *exc*, which was raised where other tasks use it, as if the reader had raised it."""
        self._defect = exc
        self._is_failed.set()

    def _note_end_of_renewals(self, renewing: asyncio.Task[NoReturn]) -> None:
        """End the reader where something below the renewals has cancelled them: a task group takes that for an end.

        Where this holder ends them it does not wait for a failure any more.
        """
        if renewing.cancelled():
            self.fail(RenewalsCancelledError("expected renewals while the lease is held, got their cancellation"))

    async def release_from_parents(self) -> None:
        """Let the reader apply the operations that waited for the parents, as far as the parents have finished."""
        if self.reader is not None and self.reader.is_waiting_for_parents:
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
        reader = self._create_reader(self._renewer.lease, pending, self._check_end, self._renewer.confirm)
        self._renewer.reader = reader
        await reader.run(ending)
        self._is_ended = reader.is_finished

    async def _write_final_positions(self) -> None:
        if self.reader is not None:
            await self.reader.write_final_positions()

    async def _find_pending_at_parents(self) -> TenantSet | None:
        """Return the tenants with operations pending at the parents; None while that is unknown or a parent is read."""
        try:
            return await self._ancestry.find_pending_at_parents(self._renewer.lease)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.begin_deferred", stream_shard_id=self.lease_key, error=str(exc))
            return None

    async def _check_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """Return whether the stream shard is read to its end, and its children can begin."""
        try:
            is_end = await self._end.check(self._renewer.lease, child_shards)
        except (RetryableError, PermanentError) as exc:
            log.warning("stream_shard.end_deferred", stream_shard_id=self.lease_key, error=str(exc))
            is_end = False
        if not is_end:
            await asyncio.sleep(END_RETRY_PAUSE_S)
        self._renewer.request()
        return is_end
