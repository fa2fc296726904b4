"""The leases that a lease continues: whether its parents are done, and which tenants have operations pending there."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container

from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import pending_at_parents, unfinished_parents
from simplu_worker.consumers.kinesis.leases.stream_view import StreamView
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, lineage_of
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.errors import RetryableError


class LeaseAncestry:
    """The parents of leases, and the ancestors of all leases that this replica began to read."""

    def __init__(self, table: LeaseTable, view: StreamView) -> None:
        self._table = table
        self._view = view
        self._ancestors: dict[str, Lease] = {}  # kept, because not every scan shows them

    def __repr__(self) -> str:
        return f"LeaseAncestry({sorted(self._ancestors)})"

    def lineage(self, lease: Lease) -> Lineage:
        """Return the stream shards that a lease continues."""
        return lineage_of(lease, ChainMap(self._view.leases(), self._ancestors), self._view.gone)

    def unfinished_parents(self, lease: Lease) -> list[str]:
        """Return the parents that *lease* waits for, by the last scan."""
        return unfinished_parents(lease, self._view.leases(), self._view.gone)

    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        """Return the tenants with operations pending at the parents of a lease; None while a parent is being read.

        Parents that the last scan does not show at their end are read one by one. A scan is eventually consistent: it
        may show a new lease and not that of its parent, although the parent's was created first.

        Raises RetryableError when a row cannot be read.
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
        try:
            return TenantSet.decode(pending_at_parents(lease, parents, self._view.gone))
        except ValueError as exc:
            raise RetryableError(f"the list of tenants pending at its parents cannot be read: {exc}") from exc

    def forget_unlisted(self, listed: Container[str]) -> None:
        """Forget the ancestors that the stream does not list any more."""
        self._ancestors = {key: lease for key, lease in self._ancestors.items() if key in listed}

    async def _find_ancestors(self, lease: Lease) -> None:
        """Find and keep the leases of all stream shards that *lease* continues."""
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
        """Read a lease; None when there is none. Raises RetryableError when its row is unreadable."""
        found = await self._table.find(lease_key)
        if found is None and self._table.is_unreadable(lease_key):
            raise RetryableError(f"the lease of its ancestor {lease_key} cannot be read")
        return found
