"""Whether a tenant can be restored from a backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.commands.tenants.rules import (
    JudgedPosition,
    PositionState,
    refusal_of_database,
    refusal_of_positions,
    refusal_of_repetition,
    refusal_of_rows,
)
from simplu_worker.transfers.restoring import Journal, RestoreMode, RestoreStep

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROW: dict[str, Any] = {
    "business_id": "a",
    "location_id": "x",
    "business_type": "gym",
    "state": "active",
    "created_at": NOW,
}


def judged(age: timedelta | None, state: PositionState = PositionState.READABLE) -> JudgedPosition:
    return JudgedPosition("shardId-0", "1/0", state, None if age is None else NOW - age)


@pytest.mark.parametrize(
    ("backup", "refusal"),
    [
        (ROW, ""),
        (ROW | {"state": "fenced"}, "that is fenced there"),
        (None, "it was made later"),
        (ROW | {"business_id": "b"}, "another business"),
        (ROW | {"state": "incoming"}, "that is incoming there"),
        (ROW | {"state": "moved"}, "that is moved there"),
        (ROW | {"state": "destroying"}, "that is destroying there"),
        (ROW | {"business_type": "hotel"}, "expected the business type gym"),
    ],
)
@pytest.mark.parametrize("mode", RestoreMode)
def test_rows_of_a_backup_are_refused_if_not_of_this_tenant(
    backup: dict[str, Any] | None, refusal: str, mode: RestoreMode
) -> None:
    found = refusal_of_rows(backup, ROW, mode)
    assert refusal in (found or "")
    assert (found is None) == (refusal == "")


def test_tenant_made_again_is_restored_as_of_the_backup_only() -> None:
    backup = ROW | {"created_at": NOW - DAY}
    assert refusal_of_rows(backup, ROW, RestoreMode.AS_OF_BACKUP) is None
    assert "destroyed and made again" in (refusal_of_rows(backup, ROW, RestoreMode.CATCH_UP) or "")


@pytest.mark.parametrize(
    ("position", "kept", "refusal"),
    [
        (judged(timedelta(hours=22)), 15 * DAY, None),
        (judged(None), 15 * DAY, None),
        (judged(40 * DAY, PositionState.LEVEL), 15 * DAY, None),
        (judged(timedelta(hours=23, minutes=1)), 15 * DAY, "for another 1 h at least, with its retention of 24 h"),
        (judged(timedelta(hours=1), PositionState.LOST), 15 * DAY, "for another 1 h at least"),
        (judged(timedelta(hours=22)), DAY, "from the last 21.6 h, which the logs of all tenants reach back to"),
    ],
)
def test_positions_beyond_the_stream_or_the_logs_are_refused(
    position: JudgedPosition, kept: timedelta, refusal: str | None
) -> None:
    found = refusal_of_positions([judged(timedelta()), position], now=NOW, retention=DAY, log_kept=kept)
    assert (refusal or "") in (found or "")
    assert (found is None) == (refusal is None)


def test_backup_is_a_database_of_its_own() -> None:
    live = {"is_standby": False, "started_at": NOW, "database": "shard"}
    assert "the database of the shard itself" in (refusal_of_database(live, live) or "")
    assert "got a standby" in (refusal_of_database(live | {"is_standby": True, "started_at": NOW - DAY}, live) or "")
    assert refusal_of_database(live | {"database": "restored"}, live) is None
    assert refusal_of_database(live | {"started_at": NOW - DAY}, live) is None


@pytest.mark.parametrize(
    ("step", "mode", "hours", "export", "is_refused"),
    [
        (RestoreStep.DONE, RestoreMode.AS_OF_BACKUP, 0.1, "/first", True),
        (RestoreStep.DONE, RestoreMode.AS_OF_BACKUP, 23.9, None, True),
        (RestoreStep.DONE, RestoreMode.AS_OF_BACKUP, 24.1, None, False),
        (RestoreStep.DONE, RestoreMode.AS_OF_BACKUP, 0.1, "/second", False),
        (RestoreStep.DONE, RestoreMode.CATCH_UP, 0.1, None, False),
        (RestoreStep.COPIED, RestoreMode.AS_OF_BACKUP, 0.1, None, False),
    ],
)
def test_restore_is_repeated_only_with_another_file(
    step: RestoreStep, mode: RestoreMode, hours: float, export: str | None, *, is_refused: bool
) -> None:
    journal = Journal("run", 1, RestoreMode.AS_OF_BACKUP, step, 4, {"export": "/first"}, NOW, hours * 3600)
    found = refusal_of_repetition(journal, mode, None if export is None else Path(export))
    assert (found is not None) == is_refused
    assert refusal_of_repetition(None, mode, None) is None


@given(st.lists(st.integers(0, 60)), st.integers(2, 60), st.integers(1, 60))
def test_what_is_not_refused_is_within_both_retentions(ages: list[int], retention_h: int, kept_h: int) -> None:
    positions = [judged(timedelta(hours=age)) for age in ages]
    retention, kept = timedelta(hours=retention_h), timedelta(hours=kept_h)
    found = refusal_of_positions(positions, now=NOW, retention=retention, log_kept=kept)
    assert (found is None) == all(
        age < retention_h and age < kept_h and age <= min(retention_h - 1, kept_h * 0.9) for age in ages
    )
