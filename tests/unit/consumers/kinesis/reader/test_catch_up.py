from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from simplu_worker.consumers.kinesis.holding.ownership import Hold
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.reader import catch_up
from simplu_worker.consumers.kinesis.reader.catch_up import (
    PROBE_BASE_S,
    PROBE_MAX_S,
    RELAPSE_S,
    CatchUps,
    next_reply_bytes,
    next_to_catch_up,
)
from simplu_worker.vocabulary import HeldTarget, HoldReason


def test_shard_is_asked_ever_later_when_it_answers_and_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now, none, pauses = 100.0, cast("Any", None), []
    monkeypatch.setattr(catch_up, "loop_time", lambda: now)
    catch_ups = CatchUps(none, none, none, cast("Any", SimpleNamespace(draw=lambda: 1.0)), none)
    for _ in range(5):
        held_at = now
        hold = Hold(
            HeldTarget.SHARD,
            "shard-1",
            HoldReason.SHARD_UNAVAILABLE,
            unread=Unread(None),
            arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
            now=now,
        )
        while not catch_ups._is_probe_due(hold):
            now += 0.01
        pauses.append(round(now - held_at, 1))
        catch_ups._ready_at["shard-1"] = now
        now += RELAPSE_S / 2
    assert pauses == pytest.approx([0.0, PROBE_BASE_S, 2 * PROBE_BASE_S, PROBE_MAX_S, PROBE_MAX_S], abs=0.1)


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        ("", [], ""),
        ("a", [], "a"),
        ("abc", [], "cba"),
        ("abcdef", [], "feda"),
        ("abcdef", [True], "fed"),
        ("abcdef", [False, False, False], "a"),
        ("abcdef", [True, False, False], "f"),
        ("a", [True], "a"),
        ("abc", [True, False, False, False], ""),
    ],
)
def test_oldest_hold_has_one_place_and_the_shortest_the_others(
    waiting: str, running: list[bool], expected: str
) -> None:
    assert next_to_catch_up(list(waiting), running) == list(expected)


@pytest.mark.parametrize(
    ("before", "took_s", "expected"),
    [
        (65536, 9.0, 65536),
        (200_000, 3.1, 100_000),
        (200_000, 2.9, 200_000),
        (65536, 1.4, 131_072),
        (500_000, 0, 524_288),
    ],
)
def test_reply_that_a_lane_takes_slowly_is_followed_by_a_smaller_one(before: int, took_s: float, expected: int) -> None:
    assert next_reply_bytes(before, took_s) == expected
