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
    next_to_catch_up,
)
from simplu_worker.vocabulary import HeldTarget, HoldReason


class Waiting:
    """A hold of a shard, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(catch_up, "loop_time", lambda: self.now)
        none = cast("Any", None)
        self.catch_ups = CatchUps(none, none, none, cast("Any", SimpleNamespace(draw=lambda: 1.0)), none)
        self.hold_again()

    def hold_again(self) -> None:
        arrived_at = datetime(2026, 1, 1, tzinfo=UTC)
        self.hold = Hold(
            HeldTarget.SHARD,
            "shard-1",
            HoldReason.SHARD_UNAVAILABLE,
            unread=Unread(None),
            arrived_at=arrived_at,
            now=self.now,
        )

    def asked(self) -> None:
        self.hold.attempt_count += 1
        self.hold.next_attempt_at = self.now + self.catch_ups._delay_s(self.hold)

    def is_due(self) -> bool:
        return self.catch_ups._is_probe_due(self.hold)

    def made_ready(self) -> None:
        self.asked()
        self.catch_ups._ready_at["shard-1"] = self.now


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(monkeypatch)


def test_shard_is_asked_ever_later_when_it_answers_and_takes_nothing(waiting: Waiting) -> None:
    pauses = []
    for _ in range(4):
        while not waiting.is_due():
            waiting.now += 0.01
        waiting.made_ready()
        waiting.now += RELAPSE_S / 2
        waiting.hold_again()
        held_at = waiting.now
        while not waiting.is_due():
            waiting.now += 0.01
        pauses.append(round(waiting.now - held_at, 1))
    assert pauses == pytest.approx([PROBE_BASE_S, 2 * PROBE_BASE_S, PROBE_MAX_S, PROBE_MAX_S], abs=0.1)


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
