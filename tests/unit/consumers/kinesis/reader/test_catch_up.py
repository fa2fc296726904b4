from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, Hold, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.reader import catch_up
from simplu_worker.consumers.kinesis.reader.catch_up import (
    CATCH_UPS_MAX,
    PROBE_BASE_S,
    PROBE_MAX_S,
    RELAPSE_S,
    CatchUpReader,
    CatchUps,
    next_to_catch_up,
)
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.vocabulary import HeldTarget, HoldReason, HoldState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def mark(number: int) -> RecordPosition:
    return RecordPosition.before_record(str(number), NOW)


class Way:
    """A gateway that knows whether the shard is up, and an access that draws the longest pauses."""

    def __init__(self) -> None:
        self.up = False

    def is_up(self, shard_id: str) -> bool:
        return self.up

    def draw(self) -> float:
        return 1.0


class Waiting:
    """A hold of a shard, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.way = Way()
        monkeypatch.setattr(catch_up, "loop_time", lambda: self.now)
        self.catch_ups = CatchUps(cast("Any", self.way), cast("Any", None), cast("Any", self.way), cast("Any", None))
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
        self.catch_ups._probe_history["shard-1"].ready_at = self.now


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(monkeypatch)


def test_shard_is_asked_again_within_the_longest_pause(waiting: Waiting) -> None:
    assert waiting.is_due()
    for _ in range(50):
        waiting.asked()
        assert not waiting.is_due()
        waiting.now += PROBE_MAX_S
        assert waiting.is_due()


def test_shard_is_asked_at_once_when_anybody_finds_it_back(waiting: Waiting) -> None:
    waiting.asked()
    assert not waiting.is_due()
    waiting.way.up = True
    assert waiting.is_due()
    waiting.asked()
    assert not waiting.is_due()


def test_shard_is_asked_ever_later_when_it_answers_and_takes_nothing(waiting: Waiting) -> None:
    pauses = []
    for _ in range(4):
        while not waiting.is_due():
            waiting.now += 0.01
        waiting.made_ready()
        waiting.way.up = False
        waiting.now += RELAPSE_S / 2
        waiting.hold_again()
        held_at = waiting.now
        waiting.is_due()
        waiting.way.up = True
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


class Paced:
    """Two catch-ups at most of tenants over their share, beside those of other targets."""

    def __init__(self) -> None:
        main: CheckpointTracker[RecordPosition] = CheckpointTracker(RecordPosition.before_record("9", NOW))
        self.ownership = Ownership(main)
        dispatcher = SimpleNamespace(ownership=self.ownership, has_ready=asyncio.Event())
        access = SimpleNamespace(stream_shard_id="shardId-1")
        self.catch_ups = CatchUps(cast("Any", None), cast("Any", dispatcher), cast("Any", access), cast("Any", None))
        self.catch_ups._create_reader = cast("Any", Endless)  # type: ignore[method-assign]

    def hold(self, tenant_id: str, number: int, reason: HoldReason = HoldReason.OVER_SHARE) -> Hold:
        unread = Unread(RecordPosition.before_record(str(number), NOW + number * timedelta(seconds=100)))
        hold = self.ownership.hold_tenant(tenant_id, reason, [unread], NOW + number * timedelta(seconds=100), now=0.0)
        hold.enter(HoldState.READY)
        return hold


class Endless:
    """A catch-up that reads until it is cancelled; the later it begins, the less it is behind."""

    def __init__(self, one: CatchUp) -> None:
        self.catch_up = one
        self.is_oldest = self.is_paced = False

    @property
    def lag_s(self) -> float:
        reached = self.catch_up.unread.after
        assert reached is not None
        return (NOW + timedelta(days=1) - reached.arrived_at).total_seconds()

    async def run(self, ending: asyncio.Event) -> None:
        await ending.wait()


async def test_tenants_over_their_share_are_caught_up_apart_and_each_alone_while_they_are_few() -> None:
    paced = Paced()
    loud = [paced.hold(f"t{number}-l", number) for number in (1, 2, 3)]
    held = [paced.hold(f"s{number}-l", number, HoldReason.FAILING) for number in (4, 5, 6, 7)]
    async with asyncio.TaskGroup() as tasks:
        ending = asyncio.Event()
        paced.catch_ups._start_ready(tasks, ending)
        states = [(hold.state, hold.catch_up) for hold in loud]
        running = [(one.is_paced, [hold.name for hold in one.catch_up.holds]) for one in paced.catch_ups.running]
        passed = paced.hold("t0-l", 0)
        paced.catch_ups._start_ready(tasks, ending)
        is_passed_alone = passed.catch_up is not None and passed.catch_up.holds == [passed]
        ending.set()

    assert is_passed_alone

    assert all(state is HoldState.CATCHING_UP for state, _ in states)
    assert states[0] != states[1] == states[2]
    assert [names for is_paced, names in running if is_paced] == [["t1-l"], ["t2-l", "t3-l"]]
    assert sum(not is_paced for is_paced, _ in running) == len(held) == CATCH_UPS_MAX


async def test_hold_joins_a_catch_up_that_is_near() -> None:
    nothing = cast("Any", None)
    long = Hold(HeldTarget.SHARD, "a", HoldReason.SHARD_UNAVAILABLE, unread=Unread(mark(1)), arrived_at=NOW, now=0.0)
    long.enter(HoldState.READY)
    reader = CatchUpReader(CatchUp([long]), nothing, nothing, nothing, nothing)

    def hold_after(seconds: float) -> Hold:
        arrived_at = NOW + timedelta(seconds=seconds)
        return Hold(HeldTarget.TENANT, "t", HoldReason.NOT_HERE, unread=Unread(mark(2)), arrived_at=arrived_at, now=0.0)

    assert [reader.is_near(hold_after(seconds)) for seconds in (0, 60, 61, 3600)] == [True, True, False, False]
