"""When an operation is given up because its tenant is not registered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.operations.operation import (
    ABSENCE_MAX_AGE_S,
    UNKNOWN_TENANT_MARGIN,
    absence_max_age_s,
    is_overdue,
    unknown_tenant_error,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WAIT = timedelta(minutes=15)
LATEST = NOW - WAIT - UNKNOWN_TENANT_MARGIN
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(("arrived_at", "expected"), [(LATEST, True), (LATEST - TICK, True), (LATEST + TICK, False)])
def test_operation_is_overdue_a_minute_after_the_wait(arrived_at: datetime, *, expected: bool) -> None:
    assert is_overdue(arrived_at, now=NOW, tenant_wait=WAIT) is expected


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [([], ABSENCE_MAX_AGE_S), ([NOW, LATEST + TICK], ABSENCE_MAX_AGE_S), ([NOW, LATEST], 0.0)],
)
def test_absence_is_looked_up_again_before_giving_up(arrivals: list[datetime], expected: float) -> None:
    assert absence_max_age_s(arrivals, now=NOW, tenant_wait=WAIT) == expected


def test_error_says_how_long_was_waited() -> None:
    assert unknown_tenant_error(WAIT) == (
        "its tenant was not registered within 960 s; register it and replay this dead letter"
    )
