"""Create the leases of a stream: all of them in an empty table, later the missing ones.

The audit is that of the KCL's PeriodicShardSyncManager.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import (
    InitialPosition,
    first_hole,
    first_hole_in_leases,
    first_leases,
    is_torn,
    missing_leases,
)
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamShard
from simplu_worker.consumers.kinesis.stream.positions import (
    AT_TIMESTAMP,
    LATEST,
    TRIM_HORIZON,
    AtTimestamp,
    HashRange,
    Latest,
    TrimHorizon,
)
from simplu_worker.errors import RetryableError
from simplu_worker.timing.clock import UtcClock

AUDITS_UNTIL_SYNC: Final = 3  # a reshard passes through a hole; the same hole so often in a row lacks a lease (KCL)

log = structlog.get_logger(__name__)


class LeaseSyncer:
    """Creates leases from listings; raises RetryableError or PermanentError, as stream and table do."""

    def __init__(self, stream: Stream, table: LeaseTable, position: str | datetime, *, utc: UtcClock) -> None:
        """*position* is `KINESIS_INITIAL_POSITION`."""
        self._stream = stream
        self._table = table
        self._position = position
        self._utc = utc
        self._hole: HashRange | None = None
        self._seen_count = 0  # audits in a row that found this hole

    async def sync_at_start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Create the leases missing at the start; return all."""
        initial = self._initial_position()
        if not leases:
            first = first_leases(await self._list_at(initial), initial)
            # The leases of a faster replica count: if the stream was resharded in between, those of this listing would
            # start the reading a second time.
            leases = await self._table.scan(is_consistent=True)
            if not leases:
                return await self._create(first)
        return [*leases, *await self._create(await self._find_missing(leases, await self._list_all()))]

    async def _find_missing(self, leases: Sequence[Lease], listing: Sequence[StreamShard]) -> list[Lease]:
        # Scans again, consistently: where a stream shard starts depends on whether its parent has a lease.
        if missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position()):
            leases = await self._table.scan(is_consistent=True)
        return missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position())

    async def _create(self, wanted: Sequence[Lease]) -> list[Lease]:
        created = [lease for lease in wanted if await self._table.create(lease)]
        for lease in created:
            start = lease.checkpoint.checkpoint
            log.info("lease.created", stream_shard_id=lease.lease_key, parent=None, checkpoint=start)
        return created

    async def sync(self) -> list[StreamShard]:
        """List the stream and create the missing leases; return the listing."""
        leases = await self._table.scan()
        listing = await self._list_all()
        await self._create(await self._find_missing(leases, listing))
        return listing

    async def audit(self, leases: Iterable[Lease]) -> None:
        """Look for a hole in the *leases* of a scan; create the missing ones when it stays."""
        hole = first_hole_in_leases(leases)
        self._seen_count = self._seen_count + 1 if hole is not None and hole == self._hole else int(hole is not None)
        self._hole = hole
        if self._seen_count >= AUDITS_UNTIL_SYNC:
            self._hole, self._seen_count = None, 0
            log.warning("leases.incomplete", stream=self._stream.name)
            await self.sync()

    def _initial_position(self) -> InitialPosition:
        if isinstance(self._position, datetime):
            return InitialPosition(AT_TIMESTAMP, self._position)
        if self._position == "LATEST":
            return InitialPosition(LATEST, self._utc())
        return InitialPosition(TRIM_HORIZON)

    async def _list_at(self, initial: InitialPosition) -> list[StreamShard]:
        at: TrimHorizon | Latest | AtTimestamp = TrimHorizon()
        if initial.checkpoint == LATEST:
            at = Latest()
        elif initial.started_at is not None:
            at = AtTimestamp(initial.started_at)
        stream_shards = await self._stream.list_stream_shards(at)
        hole = first_hole([shard.hash_range for shard in stream_shards])
        if hole is not None:
            raise RetryableError(
                f"stream {self._stream.name}: expected stream shards for all hash keys, got none from {hole.first} on"
            )
        return stream_shards

    async def _list_all(self) -> list[StreamShard]:
        stream_shards = await self._stream.list_stream_shards()
        if is_torn(stream_shards):
            raise RetryableError(f"stream {self._stream.name} was resharded between two pages of its listing")
        return stream_shards
