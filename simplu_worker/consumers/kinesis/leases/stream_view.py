"""What this replica last saw of the stream: the leases of the last scan, the facts of the last listing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, observe


class StreamView:
    """The last scan of the lease table and the last listing of the stream, for all that act on them."""

    def __init__(self) -> None:
        self.observations: dict[str, Observation] = {}  # by lease key
        self._leases: dict[str, Lease] = {}
        self._scanned_at = 0.0
        self.gone: frozenset[str] = frozenset()  # leased stream shards past their retention
        self.retention: timedelta | None = None  # of the stream; None before the first listing

    def __repr__(self) -> str:
        return f"<StreamView {len(self.observations)} leases, gone={sorted(self.gone)}, retention={self.retention}>"

    def update(self, leases: Iterable[Lease], *, now: float) -> None:
        """Take over the *leases* of a scan; *now* is monotonic."""
        self.observations = observe(self.observations, leases, now=now)
        self._leases = {key: one.lease for key, one in self.observations.items()}
        self._scanned_at = now

    def unchanged_for_s(self, lease_key: str) -> float:
        """Return for how long nobody had renewed a lease, at the last scan, in seconds."""
        return self._scanned_at - self.observations[lease_key].unchanged_since

    def leases(self) -> dict[str, Lease]:
        """Return the leases of the last scan by lease key, to be read only."""
        return self._leases
