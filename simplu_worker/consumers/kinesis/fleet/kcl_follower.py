"""Report this replica's metrics to a leader of the Kinesis Client Library 3.x, which assigns leases by them."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.fleet.cpu_share import CpuShare
from simplu_worker.consumers.kinesis.leases.kcl_leader import KclState
from simplu_worker.consumers.kinesis.leases.kcl_leader_watch import KclLeaderWatch
from simplu_worker.consumers.kinesis.leases.lease_table import KEY
from simplu_worker.consumers.kinesis.leases.table_requests import TableMissingError, TableRequests
from simplu_worker.consumers.kinesis.leases.worker_metrics import (
    VALUES_MAX,
    has_moved_metrics,
    is_reporting_wanted,
    metrics_row,
)
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.clock import UtcClock

REPORT_INTERVAL_S: Final = 10.0  # the KCL reports every 30 s by default, and calls a worker dead after two intervals
METRICS_KEY: Final = "wid"  # of the table that only has worker metrics

log = structlog.get_logger(__name__)


class KclFollower:
    """Keeps the row of this replica; the leader gives leases to workers with a fresh row, and to no others."""

    def __init__(
        self, requests: TableRequests, watch: KclLeaderWatch, *, me: str, utc: UtcClock, cpu: CpuShare | None = None
    ) -> None:
        self._requests = requests
        self._watch = watch
        self._me = me
        self._utc = utc
        self._cpu = CpuShare() if cpu is None else cpu
        self._percents: deque[float] = deque(maxlen=VALUES_MAX)
        self._written: tuple[str, str] | None = None  # the table with the row, and its key
        self.trouble: str | None = None

    def __repr__(self) -> str:
        return f"KclFollower({self._me}, {self._written}, {self.trouble})"

    async def report(self) -> None:
        """Write the metrics where the KCL reads them; nothing while it does not. A failure is `trouble`."""
        self._percents.append(self._cpu.read_percent())
        state = self._watch.state
        if state is None or not is_reporting_wanted(state):
            self.trouble = None
            return
        try:
            await self._write(state)
        except (RetryableError, PermanentError) as exc:
            self.trouble = f"the metrics for the Kinesis Client Library 3.x could not be written: {exc}"
            log.warning("kcl_follower.unreported", error=str(exc))
        else:
            self.trouble = None

    async def leave(self) -> None:
        """Delete the row, so that the leader gives this replica nothing more; a failure lets the row expire."""
        if self._written is None:
            return
        table, key_name = self._written
        with contextlib.suppress(RetryableError, PermanentError):
            await self._requests.call(table, "delete_item", Key={key_name: {"S": self._me}})
        self._written = None

    async def _write(self, state: KclState) -> None:
        """Write the row; an application that began with the KCL 3.5 has no table of metrics.

        A KCL before 3.5 has one, or is about to create it, and does not expect such rows among the leases.
        """
        lease_table, metrics_table = self._watch.lease_table, self._watch.metrics_table
        if not has_moved_metrics(state):
            try:
                return await self._put(metrics_table, METRICS_KEY)
            except TableMissingError:
                if lease_table not in state.version_tables:
                    raise
        return await self._put(lease_table, KEY)

    async def _put(self, table: str, key_name: str) -> None:
        row = metrics_row(key_name, self._me, list(self._percents), at_s=int(self._utc().timestamp()))
        await self._requests.call(table, "put_item", Item=row)
        self._written = table, key_name
