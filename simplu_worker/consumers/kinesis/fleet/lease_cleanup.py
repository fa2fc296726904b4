"""Compare the leases with the listing of the stream.

As the Kinesis Client Library's LeaseCleanupManager: a stream shard that a listing lacks is past its retention, or so
new that the listing does not show it yet. Only its own answer tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.fleet.lease_ancestry import LeaseAncestry
from simplu_worker.consumers.kinesis.fleet.lease_coordinator import LeaseCoordinator
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import removable_leases
from simplu_worker.consumers.kinesis.leases.stream_view import StreamView
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.metrics.instruments import KINESIS_EXPIRED

REMOVED_MAX: Final = 100  # of one run: no lease is taken meanwhile, and other replicas remove others

log = structlog.get_logger(__name__)


class LeaseCleanup:
    """Finds the stream shards past their retention: ends their readers, removes finished leases and their positions."""

    def __init__(
        self,
        stream: Stream,
        table: LeaseTable,
        view: StreamView,
        ancestry: LeaseAncestry,
        coordinator: LeaseCoordinator,
        position_sync: PositionSync,
        *,
        draw: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._table = table
        self._view = view
        self._ancestry = ancestry
        self._coordinator = coordinator
        self._position_sync = position_sync
        self._draw = draw

    def __repr__(self) -> str:
        return f"LeaseCleanup({self._stream.name})"

    async def run(self) -> None:
        """List the stream, update the view, and delete leases that are not needed; add hash ranges to rows of KCL 1.x.

        Raises RetryableError or PermanentError.
        """
        leases = self._view.leases()
        self._view.retention = (await self._stream.describe()).retention
        for reader in self._coordinator.readers():
            reader.retention = self._view.retention
        listed = {shard.stream_shard_id: shard for shard in await self._stream.list_stream_shards()}
        self._view.gone = frozenset(leases.keys() - listed.keys())
        self._ancestry.forget_unlisted(listed)
        self._abandon_readers(leases)
        await self._remove_leases(leases)
        for lease_key, lease in leases.items():
            if lease.hash_range is None and lease_key in listed:
                await self._table.write_hash_range(lease_key, listed[lease_key].hash_range)

    def _abandon_readers(self, leases: dict[str, Lease]) -> None:
        """End the readers of stream shards that are gone before their end, as they say themselves: records are lost."""
        for lease_key in self._view.gone & set(self._coordinator.held):
            reader = self._coordinator.reader(lease_key)
            if reader is not None and reader.is_refused_as_gone and not reader.is_at_end:
                checkpoint = leases[lease_key].checkpoint.checkpoint
                KINESIS_EXPIRED.inc()
                log.error("stream_shard.gone", stream_shard_id=lease_key, checkpoint=checkpoint)
                reader.abandon()

    async def _remove_leases(self, leases: dict[str, Lease]) -> None:
        removable = removable_leases(leases, self._view.gone)
        if len(removable) > REMOVED_MAX:
            first = int(self._draw() * len(removable))
            removable = (removable[first:] + removable[:first])[:REMOVED_MAX]
        for lease in removable:
            if await self._table.delete(lease):
                log.info("lease.removed", stream_shard_id=lease.lease_key)
                self._position_sync.remove_rows(lease.lease_key)
