"""What this replica last saw of the stream: the leases of the last scan, the facts of the last listing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, observe
from simplu_worker.consumers.kinesis.leases.lease_report import LeaseReport

IDLE_INTERVAL_S: Final = 10.0  # of the reports of a replica that can do nothing and has no lease
IDLE_SHOWN_S: Final = 3 * IDLE_INTERVAL_S


class StreamView:
    """The last scan of the lease table and the last listing of the stream, for all that act on them."""

    def __init__(self) -> None:
        self.observations: dict[str, Observation] = {}  # by lease key
        self._leases: dict[str, Lease] = {}
        self._idle: dict[str, tuple[LeaseReport, float]] = {}  # with the time at which it was first seen, by replica
        self._scanned_at = 0.0
        self.gone: frozenset[str] = frozenset()  # leased stream shards past their retention
        self.retention: timedelta | None = None  # of the stream; None before the first listing

    def __repr__(self) -> str:
        return f"<StreamView {len(self.observations)} leases, gone={sorted(self.gone)}, retention={self.retention}>"

    def update(self, leases: Iterable[Lease], *, now: float) -> None:
        """Take over the *leases* of a scan; *now* is monotonic."""
        before = self._leases
        self.observations = observe(self.observations, leases, now=now)
        self._leases = {key: one.lease for key, one in self.observations.items()}
        self._scanned_at = now
        for key, lease in self._leases.items():
            report = lease.idle_report
            if report is not None and key in before and before[key].idle_report != report:
                self._idle[report.by] = report, now
        self._idle = {name: seen for name, seen in self._idle.items() if now - seen[1] <= IDLE_SHOWN_S}

    def idle_reports(self) -> Iterable[tuple[LeaseReport, float]]:
        """Return the last reports of replicas without a lease that still run, and when each was first seen."""
        return self._idle.values()

    def unchanged_for_s(self, lease_key: str) -> float:
        """Return for how long nobody had renewed a lease, at the last scan, in seconds."""
        return self._scanned_at - self.observations[lease_key].unchanged_since

    def leases(self) -> dict[str, Lease]:
        """Return the leases of the last scan by lease key, to be read only."""
        return self._leases
