"""What this replica last saw of the stream."""

from __future__ import annotations

from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, StreamView
from simplu_worker.consumers.kinesis.stream.positions import LATEST


def test_view_has_the_leases_of_the_last_scan_and_since_when_they_are_unchanged() -> None:
    view, kept, moved, gone = StreamView(), Lease("a", LATEST), Lease("b", LATEST), Lease("c", LATEST)
    assert (view.observations, view.leases(), view.gone, view.retention) == ({}, {}, frozenset(), None)

    view.update([kept, moved, gone], now=1.0)
    later = replace(moved, counter=1)
    view.update([kept, later], now=2.0)

    assert view.observations == {"a": Observation(kept, 1.0), "b": Observation(later, 2.0)}
    assert view.leases() == {"a": kept, "b": later}
