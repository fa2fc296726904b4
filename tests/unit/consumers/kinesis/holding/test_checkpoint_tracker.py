from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker


class PendingMachine(RuleBasedStateMachine):
    """Takes records and finishes any of them in any order, beside a plain list of the finished ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker: CheckpointTracker[str] = CheckpointTracker()
        self.is_done: list[bool] = []
        self.records: dict[int, int] = {}  # by ticket

    @initialize(has_beginning=st.booleans())
    def begin(self, has_beginning: bool) -> None:  # noqa: FBT001 - as hypothesis gives it
        if has_beginning:
            self.tracker = CheckpointTracker("position 0")
            self.is_done = [True]

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        for _ in range(count):
            record = len(self.is_done)
            ticket = self.tracker.start(f"position {record}")
            assert ticket == len(self.records)
            assert self.tracker.position_before(ticket) == (f"position {record - 1}" if record else None)
            self.records[ticket] = record
            self.is_done.append(False)

    @rule(count=st.integers(0, 5))
    def take_all(self, count: int) -> None:
        records = range(len(self.is_done), len(self.is_done) + count)
        tickets = self.tracker.start_all([f"position {record}" for record in records])
        assert tickets == range(len(self.records), len(self.records) + count)
        befores = [self.tracker.position_before(ticket) for ticket in tickets]
        assert befores == [f"position {record - 1}" if record else None for record in records]
        self.records |= dict(zip(tickets, records, strict=True))
        self.is_done += [False] * count

    @rule(count=st.integers(1, 3))
    def pass_over(self, count: int) -> None:
        for _ in range(count):
            self.tracker.skip(f"position {len(self.is_done)}")
            self.is_done.append(True)

    @precondition(lambda self: not all(self.is_done))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        left = [ticket for ticket, record in self.records.items() if not self.is_done[record]]
        tickets = data.draw(st.lists(st.sampled_from(left), unique=True))
        self.tracker.finish(iter(tickets))
        for ticket in tickets:
            self.is_done[self.records[ticket]] = True

    @invariant()
    def checkpoint_is_before_the_first_pending(self) -> None:
        first_pending = self.is_done.index(False) if False in self.is_done else len(self.is_done)
        assert self.tracker.checkpoint == (f"position {first_pending - 1}" if first_pending else None)
        assert self.tracker.first_pending == (
            f"position {first_pending}" if first_pending < len(self.is_done) else None
        )
        assert len(self.tracker) == self.is_done.count(False)
        assert self.tracker.last_read == (f"position {len(self.is_done) - 1}" if self.is_done else None)


TestPending = PendingMachine.TestCase
TestPending.settings = settings(max_examples=30, stateful_step_count=30)


@pytest.mark.parametrize(
    ("finished", "again"),
    [
        pytest.param([3], 3, id="others of its reply are pending"),
        pytest.param([0, 1], 1, id="nothing of its reply is pending, and nothing before"),
        pytest.param([2, 3, 4], 3, id="nothing of its reply is pending"),
        pytest.param([*range(7)], 0, id="nothing is pending"),
        pytest.param([], 7, id="not yet read"),
    ],
)
def test_record_is_finished_once(finished: list[int], again: int) -> None:
    tracker: CheckpointTracker[int] = CheckpointTracker()
    for positions in ([0, 1], [2, 3, 4], [5, 6]):
        tracker.start_all(positions)
    tracker.finish(finished)
    left = [ticket for ticket in range(7) if ticket not in {*finished, again}]

    with pytest.raises(KeyError, match=str(again)):
        tracker.finish([again])
    tracker.finish(left)
    assert (tracker.checkpoint, len(tracker)) == (6, 0)


def test_position_before_a_pending_record_is_that_of_the_record_before_it() -> None:
    tracker: CheckpointTracker[str] = CheckpointTracker("start")
    tracker.start_all(["a", "b"])
    tracker.skip("c")
    tracker.start_all(["d", "e"])
    assert [tracker.position_before(ticket) for ticket in range(4)] == ["start", "a", "c", "d"]
    tracker.finish([1])
    tracker.finish([0])
    for absent in (0, 1, 4):
        with pytest.raises(KeyError, match=str(absent)):
            tracker.position_before(absent)
    tracker.finish([2])
    assert (tracker.first_pending_ticket, tracker.position_before(3)) == (3, "d")


def test_pending_records_of_parents_go_back_with_the_start_of_the_cursor() -> None:
    tracker: CheckpointTracker[str] = CheckpointTracker("start")
    tickets = [tracker.start_at_last() for _ in range(2)]
    tracker.rewind("before")
    assert (tracker.checkpoint, tracker.first_pending, tracker.last_read) == ("before", "before", "before")
    assert [tracker.position_before(ticket) for ticket in tickets] == ["before", "before"]
    tracker.finish(tickets)
    assert tracker.checkpoint == "before"
