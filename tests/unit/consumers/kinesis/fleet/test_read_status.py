"""How far a stream is read for a tenant, by the rows of the lease table."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.consumers.kinesis.fleet.read_status import ReadStatus, read_status
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.shard_tree import HASH_KEY_LAST
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, HashRange, Position

EARLY, LATE = datetime(2026, 1, 1, 8, tzinfo=UTC), datetime(2026, 1, 1, 9, tzinfo=UTC)
HELD = TenantSet(["held-main"]).encode()
LOW, HIGH = HashRange(0, 9), HashRange(10, HASH_KEY_LAST)
ROWS = {
    "early": Lease("early", Position(1), hash_range=LOW, read_up_to=EARLY),
    "late": Lease("late", Position(1), hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=LATE),
    "low": Lease("low", Position(1), hash_range=LOW, read_up_to=LATE),
    "high": Lease("high", Position(1), hash_range=HIGH, read_up_to=LATE),
    "kcl": Lease("kcl", Position(1), read_up_to=LATE),
    "new": Lease("new", Position(1), hash_range=LOW),
    "done": Lease("done", SHARD_END),
    "holding": Lease("holding", Position(1), hash_range=LOW, ahead=ReadAhead(Position(9), HELD), read_up_to=LATE),
    "ended": Lease("ended", Position(1), hash_range=LOW, pending_tenants=HELD, read_up_to=EARLY),
    "unreadable": Lease(
        "unreadable", Position(1), hash_range=LOW, ahead=ReadAhead(Position(9), frozenset({"slots:?"})), read_up_to=LATE
    ),
}


@pytest.mark.parametrize(
    ("rows", "tenant_id", "expected"),
    [
        ("", "other-main", ReadStatus(None)),
        ("done", "other-main", ReadStatus(None)),
        ("late early", "other-main", ReadStatus(EARLY)),
        ("low high", "other-main", ReadStatus(LATE)),
        ("low", "other-main", ReadStatus(None)),
        ("low ended", "other-main", ReadStatus(None)),
        ("low done", "other-main", ReadStatus(None)),
        ("late kcl", "other-main", ReadStatus(None)),
        ("late early", None, ReadStatus(EARLY)),
        ("late new", "other-main", ReadStatus(None)),
        ("late done", "other-main", ReadStatus(LATE)),
        ("late holding", "other-main", ReadStatus(LATE)),
        ("late holding", "held-main", ReadStatus(None, ("holding",))),
        ("late holding", None, ReadStatus(None, ("holding",))),
        ("late ended", "other-main", ReadStatus(LATE)),
        ("late ended", "held-main", ReadStatus(None, ("ended",))),
        ("late unreadable", "other-main", ReadStatus(None, ("unreadable",))),
    ],
)
def test_stream_is_read_as_far_as_its_last_stream_shard(rows: str, tenant_id: str | None, expected: ReadStatus) -> None:
    """Unknown by a row without a time or a range, or no row; one read to its end constrains its pending tenants."""
    assert read_status([ROWS[name] for name in rows.split()], tenant_id) == expected
