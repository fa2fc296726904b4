"""What a stream shard still owes: the checkpoint never passes a record that is not done."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simplu_worker.consumers.owed import Owed


class OwedMachine(RuleBasedStateMachine):
    """Takes records and finishes any of them in any order, beside a plain list of what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.owed: Owed[str] = Owed()
        self.is_done: list[bool] = []

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        """Read a few records."""
        for _ in range(count):
            ticket = self.owed.take(f"position {len(self.is_done)}")
            assert ticket == len(self.is_done)
            self.is_done.append(False)

    @precondition(lambda self: not all(self.is_done))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Finish some of those that are not."""
        left = [ticket for ticket, is_done in enumerate(self.is_done) if not is_done]
        tickets = data.draw(st.lists(st.sampled_from(left), unique=True))
        self.owed.done(iter(tickets))
        for ticket in tickets:
            self.is_done[ticket] = True

    @invariant()
    def checkpoint_is_before_the_first_owed(self) -> None:
        """Exactly there: not past it, and not behind it either."""
        first_owed = self.is_done.index(False) if False in self.is_done else len(self.is_done)
        assert self.owed.checkpoint == (f"position {first_owed - 1}" if first_owed else None)
        assert self.owed.first == (f"position {first_owed}" if first_owed < len(self.is_done) else None)
        assert len(self.owed) == self.is_done.count(False)


TestOwed = OwedMachine.TestCase
TestOwed.settings = settings(max_examples=30, stateful_step_count=30)


@given(st.permutations(range(12)))
def test_checkpoint_is_the_last_position_when_all_are_done(order: list[int]) -> None:
    """Whatever came last; and nothing is kept of what is done."""
    owed: Owed[int] = Owed()
    tickets = [owed.take(position) for position in range(12)]

    for number in order:
        owed.done([tickets[number]])

    assert (owed.checkpoint, owed.first, len(owed)) == (11, None, 0)
    assert repr(owed) == "Owed(checkpoint=11, owed=0, read=12)"


def test_nothing_is_owed_at_first() -> None:
    """And there is no checkpoint to write."""
    owed: Owed[int] = Owed()

    assert (owed.checkpoint, owed.first, len(owed)) == (None, None, 0)
