from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simplu_worker.shards.settling import Transfer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SEEN = {"seenAt": (NOW - timedelta(seconds=3)).isoformat()}


@pytest.mark.parametrize(
    ("step", "detail", "silent_s"),
    [
        *((step, {}, 60.0) for step in ("open", "committed", "undoing", "replacing", "copied")),
        *((step, {}, None) for step in ("done", "undone", "cleaning", "cleaned", "ready", "following")),
        ("open", SEEN, 3.0),
        ("open", {"seenAt": (NOW - timedelta(hours=1)).isoformat()}, 60.0),
        ("open", SEEN | {"error": "no answer"}, None),
        ("open", SEEN | {"stopped": True}, None),
    ],
)
def test_command_is_silent_since_its_last_note(step: str, detail: dict[str, Any], silent_s: float | None) -> None:
    assert Transfer("b", "1", step, 0, detail, NOW - timedelta(minutes=1), NOW).silent_s == silent_s
