from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simplu_worker.telemetry.log_folding import EVENTS_MAX, SUBJECTS_MAX, TEXT_MAX, RecentEvents

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def event(name: str, at: datetime = NOW, level: str = "warning", **facts: Any) -> dict[str, Any]:
    stamp = at.isoformat().replace("+00:00", "Z")
    return {"timestamp": stamp, "level": level, "logger": "simplu_worker.test", "event": name, **facts}


def test_dead_letters_do_not_drive_out_the_loss_of_a_shard() -> None:
    recent = RecentEvents()
    recent.note(event("shard.lost", shard_id="shard-1", problems=["refused"]))
    for number in range(1000):
        at = NOW + timedelta(seconds=number)
        recent.note(event("dead_letter.stored", at, business_id=f"b{number}", error="no JSON"))
    stored, lost = recent.view(NOW + timedelta(minutes=20))
    assert (lost["event"], lost["about"], lost["error"], lost["count"]) == ("shard.lost", "shard-1", "refused", 1)
    assert (stored["count"], stored["since"], stored["at"]) == (
        1000,
        NOW.isoformat(),
        (NOW + timedelta(seconds=999)).isoformat(),
    )
    assert stored["about"] == "; ".join(f"b{number}" for number in range(999, 999 - SUBJECTS_MAX, -1))


def test_event_has_its_worst_level_and_its_last_error() -> None:
    recent = RecentEvents()
    recent.note(event("control.failed", level="error", queue="q", error="first"))
    recent.note(event("control.failed", queue="q", error="second"))
    recent.note(event("worker.ready", level="info"))
    (one,) = recent.view(NOW)
    assert (one["level"], one["error"], one["about"], one["count"]) == ("error", "second", "q", 2)


@pytest.mark.parametrize(("silent", "count"), [(timedelta(minutes=60), 2), (timedelta(hours=2), 1)])
def test_event_begins_anew_after_an_hour_of_silence(silent: timedelta, count: int) -> None:
    recent = RecentEvents()
    recent.note(event("shard.lost", shard_id="a"))
    recent.note(event("shard.lost", NOW + silent, shard_id="a"))
    (one,) = recent.view(NOW + silent)
    assert (one["count"], one["since"] == NOW.isoformat()) == (count, count == 2)


def test_texts_of_a_library_share_one_row() -> None:
    recent = RecentEvents()
    for number in range(EVENTS_MAX + 5):
        recent.note(event(f"Task {number} was destroyed") | {"logger": f"asyncio.{number}"})
    recent.note(event("x.y", error="e" * 9999))
    ours, library = recent.view(NOW)
    assert (library["event"], library["count"]) == (f"Task {EVENTS_MAX + 4} was destroyed", EVENTS_MAX + 5)
    assert len(ours["error"]) == TEXT_MAX + 1


def test_rows_are_bounded() -> None:
    recent = RecentEvents()
    for number in range(EVENTS_MAX + 1):
        recent.note(event("a" * (number % 25 + 1) + "." + "b" * (number // 25 + 1)))
    assert len(recent.view(NOW)) == EVENTS_MAX


def test_row_is_shown_for_a_day() -> None:
    recent = RecentEvents()
    recent.note(event("shard.lost"))
    assert [len(recent.view(NOW + after)) for after in (timedelta(days=1), timedelta(days=1, seconds=1))] == [1, 0]


def test_loggers_of_libraries_are_told_apart() -> None:
    recent = RecentEvents()
    recent.note({name: value for name, value in event("no logger").items() if name != "logger"})
    for logger in ("asyncio", "aiohttp.client", ""):
        recent.note(event("A text", NOW) | {"logger": logger})
    assert [one["count"] for one in recent.view(NOW)] == [2, 1, 1]
    assert [one["event"] for one in recent.view(NOW)] == ["A text"] * 3
