"""The end of a stream shard: make sure of it, and create the leases of the children."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_sync import LeaseSyncer
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import child_leases
from simplu_worker.consumers.kinesis.stream.client import ChildShard

log = structlog.get_logger(__name__)


class StreamShardEnd:
    """Decides whether a reply without an iterator is the end of one stream shard."""

    def __init__(self, table: LeaseTable, syncer: LeaseSyncer, *, me: str) -> None:
        """*me* is the owner under which this process took the lease."""
        self._table = table
        self._me = me
        self._syncer = syncer
        self._is_known_closed = False

    def __repr__(self) -> str:
        return f"StreamShardEnd(is_known_closed={self._is_known_closed})"

    async def check(self, lease: Lease, child_shards: Sequence[ChildShard]) -> bool:
        """Create the leases of the children and list them in *lease*; return whether the stream shard has ended.

        The leases of both parents of a merge exist before that of their child: the child would take a parent without
        a lease for one that is read. Raises RetryableError or PermanentError when a lease cannot be read or written.
        """
        children = child_leases(child_shards)
        if not children:
            return await self._check_bare_end(lease)
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
        return True

    async def _check_bare_end(self, lease: Lease) -> bool:
        """Return whether an end without children is the end of a closed stream shard, or of one past its retention.

        The listing that shows so also creates the leases of the children. The first such end is not accepted: a reply
        to a stream shard that was still open may look like the end, and records may have followed before it was closed.
        Only a read that began after the listing proves the end.
        """
        if self._is_known_closed:
            return True
        listed = {shard.stream_shard_id: shard for shard in await self._syncer.sync()}
        self._is_known_closed = lease.lease_key not in listed or not listed[lease.lease_key].is_open
        return False
