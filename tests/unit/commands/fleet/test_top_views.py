"""What a terminal shows of a status: the worst first, as much as there is room for."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from simplu_worker.commands.fleet.top_screen import (
    FRAME_LINES,
    ROWS_AT_LEAST,
    ScreenCell,
    ScreenTable,
    draw,
    duration_text,
    fit_tables,
    state_cell,
    status_line,
    tables_of,
)

STATUS: dict[str, Any] = {
    "replica": "host:1:ab",
    "version": "0.1.0",
    "uptime_s": 75.0,
    "ready": True,
    "streamShards": [
        {
            "streamShard": "s0",
            "state": "reading",
            "lagSeconds": 0.25,
            "held": {"moving": 1},
            "catchUps": [{"targets": ["shard c"], "records": 1200, "behindMainSeconds": 30.0}],
        },
        {"streamShard": "s1", "state": "reading", "lagSeconds": 90.0, "held": {}},
    ],
    "shards": [
        {
            "shardId": "a",
            "state": "healthy",
            "responseMs": 0.4,
            "usage": 0.5,
            "connectionsUsed": 2,
            "connectionsMax": 97,
            "schemaVersion": 3,
        },
        {"shardId": "b", "state": "lost", "odd": ["ConnectionRefusedError"], "schemaVersion": 2},
        {"shardId": "c", "state": "healthy", "schemaVersion": 3, "upgrading": True},
    ],
    "held": [
        {"target": "tenant t", "reason": "moving", "state": "held", "ageSeconds": 1.0},
        {"target": "shard b", "reason": "shard_unavailable", "state": "held", "ageSeconds": 61.0},
        {"target": "shard b", "reason": "shard_unavailable", "state": "ready", "ageSeconds": 60.0},  # of s1
    ],
    "heldAdvice": {"moving": {"advice": "Wait for the move."}},
    "moves": [{"tenant": "t", "sourceShard": "a", "targetShard": "b", "step": "open", "phase": "copy", "rows": 1200}],
    "recentErrors": [
        {"at": "2026-11-23T10:20:30Z", "level": "warning", "event": "shard.lost", "error": "x", "count": 2}
    ],
}
FLEET: dict[str, Any] = {
    "replicas": [
        {"replica": "host:1:ab", "isThis": True, "leases": 1, "lagSeconds": 0.25, "recordsPerSecond": 10.0}
        | {"latencyP99Seconds": 0.5, "deadLetters": 2, "held": [{"target": "shard b", "reason": "gap"}]},
        {"replica": "host:2:cd", "isThis": False, "latencyP99Seconds": 2.5, "deadLetters": 1, "heldTargets": 4}
        | {"held": [{"target": "shard z", "reason": "gap", "ageSeconds": 99.0}]},
        {"replica": "kcl", "isThis": False},
    ],
    "heldAdvice": {"gap": {"advice": "Raise the retention."}},
    "streamShards": [
        {"streamShard": "s0", "state": "reading", "lagSeconds": 0.25, "recordsPerSecond": 10.0, "owner": "host:1:ab"},
        {"streamShard": "s1", "state": "elsewhere", "lagSeconds": 90.0, "recordsPerSecond": 5.5, "owner": "host:2:cd"},
    ],
}
QUEUES = [
    {"name": "orders", "state": "polling", "consumed": True, "visible": 3},
    {"name": "dead", "consumed": False, "visible": 1},
]


def rows_of(title: str) -> list[list[str]]:
    """Return the texts of a table."""
    table = next(one for one in tables_of(STATUS, FLEET, QUEUES) if one.title == title)
    return [[cell.text for cell in row] for row in table.rows]


def test_tables_are_those_with_rows_and_the_worst_is_first() -> None:
    titles = [table.title for table in tables_of(STATUS, FLEET, QUEUES)]
    expected = ["Held", "In progress", "Shards", "Replicas", "Stream shards", "Queues", "Recent errors and warnings"]
    assert titles == expected
    assert [(row[0], row[3]) for row in rows_of("Held")] == [
        ("shard z", "1 min 39 s"),
        ("shard b", "1 min 1 s"),
        ("tenant t", "1.0 s"),
    ]
    assert [row[4] for row in rows_of("Held")] == ["Raise the retention.", "–", "Wait for the move."]
    assert [row[0] for row in rows_of("Shards")] == ["b", "a", "c"]
    assert rows_of("Shards")[1][3:7] == ["0.4 ms", "–", "50%", "2 of 97"]
    assert [row[0] for row in rows_of("Stream shards")] == ["s1", "s0"]
    assert rows_of("Stream shards")[0] == ["s1", "elsewhere", "1 min 30 s", "5.5", "–", "host:2:cd"]
    assert rows_of("Stream shards")[1] == ["s0", "reading", "250 ms", "10.0", "moving 1", "host:1:ab"]
    assert rows_of("Recent errors and warnings") == [["10:20:30", "warning", "shard.lost", "–", "x", "2"]]


def test_moves_catch_ups_and_upgrades_are_in_progress() -> None:
    assert rows_of("In progress") == [
        ["move", "tenant t", "copy", "a to b, 1,200 rows"],
        ["catch-up", "shard c", "30.0 s behind", "s0, 1,200 records"],
        ["upgrade", "shard b", "due", "schema 2, others have 3"],
        ["upgrade", "shard c", "under way", "–"],
    ]


def test_replicas_have_latency_and_dead_letters() -> None:
    assert [row[5:8] for row in rows_of("Replicas")] == [
        ["under 500 ms", "2", "–"],
        ["under 2.5 s", "1", "4"],
        ["–", "–", "–"],
    ]


def test_tables_are_none_when_nothing_is_known() -> None:
    assert tables_of({}, {}, []) == []


def test_dead_letters_that_wait_are_marked() -> None:
    table = next(one for one in tables_of(STATUS, FLEET, QUEUES) if one.title == "Queues")
    assert [(row[1].text, row[2]) for row in table.rows] == [
        ("polling", ScreenCell("3")),
        ("dead letters", ScreenCell("1", "warn")),
    ]


def test_first_line_names_readiness_lag_holds_and_shards() -> None:
    cells = status_line(STATUS, FLEET)
    assert ScreenCell("ready", "good") in cells
    assert ScreenCell("lag 1 min 30 s", "bad") in cells
    assert ScreenCell("16 records/s") in cells
    assert ScreenCell("held 6", "warn") in cells
    assert ScreenCell("shards 2 of 3", "warn") in cells
    assert ScreenCell("p99 under 2.5 s") in cells
    assert ScreenCell("dead letters 3/h", "warn") in cells
    assert ScreenCell("not ready: draining", "bad") in status_line({"ready": "draining"}, {})
    refused = {"ready": "citrus_refuses_key", "unreadyDetail": "Citrus answers 401"}
    assert ScreenCell("not ready: Citrus answers 401", "bad") in status_line(refused, {})


@pytest.mark.parametrize(
    ("state", "tone"),
    [("healthy", "good"), ("lost", "bad"), ("elsewhere", ""), ("waits for memory", "warn"), (None, "")],
)
def test_state_has_a_tone(state: str | None, tone: str) -> None:
    assert state_cell(state).tone == tone


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.25, "250 ms"),
        (1.0, "1.0 s"),
        (60.0, "1 min 0 s"),
        (3600.0, "1 h 0 min"),
        (172_800.0, "2 d 0 h"),
    ],
)
def test_duration_is_for_people(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def table_of(count: int) -> ScreenTable:
    """Return a table with so many rows."""
    return ScreenTable("t", ("c",), [(ScreenCell(str(number)),) for number in range(count)])


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(-5, 120))
def test_tables_fit_the_terminal(counts: list[int], lines: int) -> None:
    fitted = fit_tables([table_of(count) for count in counts], lines)
    used = sum(len(table.rows) + FRAME_LINES for table in fitted)
    assert used <= max(lines, 0)
    assert all(table.rows for table in fitted)
    assert [len(table.rows) + table.hidden_count for table in fitted] == counts[: len(fitted)]
    if any(table.hidden_count for table in fitted):
        assert len(fitted) < len(counts) or used == lines


def test_each_table_has_a_few_rows_before_the_first_has_all() -> None:
    fitted = fit_tables([table_of(50), table_of(50)], 2 * FRAME_LINES + 2 * ROWS_AT_LEAST + 4)
    assert [len(table.rows) for table in fitted] == [ROWS_AT_LEAST + 4, ROWS_AT_LEAST]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 8)])
def test_screen_fits_the_terminal(width: int, height: int) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, height=height, color_system=None)
    console.print(draw(console, STATUS, FLEET, QUEUES, "a notice"))
    lines = output.getvalue().rstrip("\n").split("\n")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "a notice" in output.getvalue()


def test_screen_without_a_terminal_has_all_rows_and_no_colour() -> None:
    output = io.StringIO()
    console = Console(file=output, width=200)
    errors = [{"at": "", "event": f"event {number}", "error": "\x1b[31mred"} for number in range(40)]
    console.print(draw(console, STATUS | {"recentErrors": errors}, FLEET, QUEUES))
    assert "event 39" in output.getvalue()
    assert "\x1b" not in output.getvalue()
