from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simplu_worker.shards.health.assessment import MoveEntry, longest_standing_s, move_views
from simplu_worker.vocabulary import MoveOutcome

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def entry(step: str, *, tenant: str = "smile-berlin", token: int = 1, age_s: float = 0.0, **members: Any) -> MoveEntry:
    return MoveEntry(
        tenant_id=tenant,
        target_shard_id="b",
        move_token=token,
        step=step,
        started_at=NOW - timedelta(hours=1),
        updated_at=NOW - timedelta(seconds=age_s),
        read_at=NOW,
        **members,
    )


@pytest.mark.parametrize(
    ("move", "outcome", "is_unfinished"),
    [
        (entry("open"), None, True),
        (entry("open", error="expected room"), "failed", True),
        (entry("committed"), None, True),
        (entry("committed", error="no answer"), "failed", True),
        (entry("done", verdict="equal"), "moved", False),
        (entry("done", verdict="differs"), "differs", False),
        (entry("undoing"), None, True),
        (entry("undone"), "undone", False),
        (entry("cleaning"), None, True),
        (entry("cleaned"), None, False),
    ],
)
def test_each_step_has_an_outcome_or_goes_on(move: MoveEntry, outcome: str | None, *, is_unfinished: bool) -> None:
    assert (move.outcome, move.is_unfinished) == (outcome, is_unfinished)
    assert outcome is None or outcome in list(MoveOutcome)


def test_the_move_that_stands_for_longest_counts() -> None:
    moves = {"a": [entry("open", age_s=3.0), entry("committed", age_s=90.0)], "b": [entry("open", age_s=-5.0)]}
    assert longest_standing_s(moves) == 90.0
    assert longest_standing_s({"b": moves["b"]}) == 0.0
    assert longest_standing_s({}) == 0.0


def test_view_has_what_is_known() -> None:
    known: dict[str, Any] = {"business_id": "smile", "location_id": "berlin", "error": "no room"}
    (view,) = move_views({"a": [entry("open", phase="copy", row_count=5000, byte_count=70_000, **known)]})
    assert view == {
        "tenant": "smile-berlin",
        "businessId": "smile",
        "locationId": "berlin",
        "sourceShard": "a",
        "targetShard": "b",
        "step": "open",
        "phase": "copy",
        "rows": 5000,
        "bytes": 70_000,
        "startedAt": NOW - timedelta(hours=1),
        "notedAt": NOW,
        "isRunning": False,
        "error": "no room",
    }


@pytest.mark.parametrize(
    ("move", "is_running"),
    [
        (entry("open", age_s=20.0), True),
        (entry("open", age_s=21.0), False),
        (entry("committed", age_s=900.0, seen_at=NOW - timedelta(seconds=2)), True),
        (entry("undoing", age_s=900.0, seen_at=NOW - timedelta(seconds=21)), False),
        (entry("open", age_s=1.0, seen_at=NOW - timedelta(seconds=99)), True),
        (entry("open", error="no room"), False),
        (entry("open", is_stopped=True), False),
        (entry("cleaning", age_s=900.0), None),
        (entry("done"), None),
    ],
)
def test_command_runs_while_it_notes_that(move: MoveEntry, *, is_running: bool | None) -> None:
    assert move.is_running is is_running
