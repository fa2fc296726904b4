"""Check that leases cover all hash keys, as the Kinesis Client Library's PeriodicShardSyncManager does."""

from __future__ import annotations

from typing import Final

import structlog

from simplu_worker.consumers.kinesis.leases.lease_sync import LeaseSyncer
from simplu_worker.consumers.kinesis.leases.shard_tree import first_hole_in_leases
from simplu_worker.consumers.kinesis.leases.stream_view import StreamView
from simplu_worker.consumers.kinesis.stream.positions import HashRange

AUDITS_UNTIL_SYNC: Final = 3  # a reshard passes through a hole; the same hole so often in a row lacks a lease (KCL)

log = structlog.get_logger(__name__)


class LeaseAudit:
    """Finds hash keys that no lease covers, and has their leases created."""

    def __init__(self, stream_name: str, view: StreamView, syncer: LeaseSyncer) -> None:
        self._stream_name = stream_name
        self._view = view
        self._syncer = syncer
        self._hole: HashRange | None = None
        self._seen_count = 0  # audits in a row that found this hole

    def __repr__(self) -> str:
        return f"LeaseAudit({self._stream_name}, hole={self._hole}, seen_count={self._seen_count})"

    async def run(self) -> None:
        """Look for a hole in the last scan; create the missing leases when it stays. Raises what the syncer raises."""
        hole = first_hole_in_leases(self._view.leases().values())
        self._seen_count = self._seen_count + 1 if hole is not None and hole == self._hole else int(hole is not None)
        self._hole = hole
        if self._seen_count >= AUDITS_UNTIL_SYNC:
            self._hole, self._seen_count = None, 0
            log.warning("leases.incomplete", stream=self._stream_name)
            await self._syncer.sync()
