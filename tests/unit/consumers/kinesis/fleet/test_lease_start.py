from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.consumers.kinesis.fleet.fleet_report import pinned_start, start_of
from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.positions import (
    AT_TIMESTAMP,
    LATEST,
    TRIM_HORIZON,
    AtSequenceNumber,
    AtTimestamp,
    Position,
    Start,
    TrimHorizon,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EARLIER = datetime(2026, 2, 1, tzinfo=UTC)
READ = Position(17, 3)


@pytest.mark.parametrize(
    ("checkpoint", "initial_position", "expected"),
    [
        pytest.param(TRIM_HORIZON, "TRIM_HORIZON", HORIZON, id="all records"),
        pytest.param(TRIM_HORIZON, EARLIER, HORIZON, id="a child, whatever the initial position"),
        pytest.param(LATEST, "LATEST", NOW, id="latest: from the take on"),
        pytest.param(AT_TIMESTAMP, EARLIER, EARLIER, id="the configured instant"),
        pytest.param(AT_TIMESTAMP, "TRIM_HORIZON", HORIZON, id="a KCL's instant, which is not known"),
        pytest.param(AT_TIMESTAMP, "LATEST", NOW, id="a KCL's instant, where only new records are wanted"),
        pytest.param(LATEST, EARLIER, EARLIER, id="a KCL's LATEST, with a configured instant"),
        pytest.param(READ, EARLIER, NOW, id="a KCL has read a part"),
        pytest.param(LATEST, "TRIM_HORIZON", NOW, id="a KCL's LATEST, where all records are wanted"),
    ],
)
def test_take_pins_the_instant_from_which_a_lease_is_read(
    checkpoint: Position, initial_position: str | datetime, expected: datetime
) -> None:
    assert pinned_start(Lease("a", checkpoint), initial_position, now=NOW) == expected
    assert pinned_start(Lease("a", checkpoint, started_at=EARLIER), initial_position, now=NOW) is None


@pytest.mark.parametrize(
    ("lease", "expected"),
    [
        (Lease("a", TRIM_HORIZON, started_at=HORIZON), TrimHorizon()),
        (Lease("a", LATEST, started_at=EARLIER), AtTimestamp(EARLIER)),
        (Lease("a", AT_TIMESTAMP, started_at=EARLIER), AtTimestamp(EARLIER)),
        (Lease("a", LATEST), AtTimestamp(NOW)),
        (Lease("a", READ, started_at=EARLIER), AtSequenceNumber("17")),
    ],
)
def test_reader_starts_by_the_checkpoint(lease: Lease, expected: Start) -> None:
    assert start_of(lease, NOW) == expected
