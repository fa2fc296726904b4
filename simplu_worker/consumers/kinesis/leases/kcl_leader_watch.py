"""Watch for a leader of the Kinesis Client Library 3.x, which assigns the leases of the table itself."""

from __future__ import annotations

from typing import Final

import structlog

from simplu_worker.consumers.kinesis.leases.lease_table import KclLeader, LeaseTable
from simplu_worker.errors import PermanentError

LEADING_VERSIONS: Final = frozenset({"CLIENT_VERSION_3X", "CLIENT_VERSION_3X_WITH_ROLLBACK"})
CHECK_INTERVAL_S: Final = 35.0  # a live leader writes a new version every 30 s

log = structlog.get_logger(__name__)


class KclLeaderWatch:
    """Knows whether a live leader assigns the leases. It would take back every lease that this replica takes."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._leader: KclLeader | None = None
        self.is_leading = False

    def __repr__(self) -> str:
        return f"KclLeaderWatch({self._table.name}, {self._leader}, is_leading={self.is_leading})"

    @property
    def trouble(self) -> str | None:
        """Why this replica takes no leases; None when it may."""
        if not self.is_leading or self._leader is None:
            return None
        return (
            f"table {self._table.name}: the Kinesis Client Library 3.x at {self._leader.owner} assigns its leases; "
            "stop that application, or set KINESIS_APPLICATION_NAME to another name"
        )

    async def check(self) -> None:
        """Read the coordinator table. A table that may not be read counts as none."""
        try:
            leader = await self._table.find_kcl_leader()
        except PermanentError as exc:
            log.warning("kcl_leader.unread", error=str(exc))
            leader = None
        is_leader = leader is not None and leader.client_version in LEADING_VERSIONS and leader.record_version != ""
        # A live leader has another version at the next check; the first check cannot distinguish it from a dead one.
        self.is_leading = is_leader and leader != self._leader
        self._leader = leader
