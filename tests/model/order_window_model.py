"""Messages of one `deduplicationId`: how long it is one event (ORDER_DEDUPLICATION_SECONDS), by the times of sending.

Time is whole and short. The log has one row for the id: when the message was sent whose event was applied last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart
from msgspec.structs import replace

WINDOW = 2
LAST_SENDING = 4
LAST = LAST_SENDING + WINDOW + 1
NONE = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """How a message is decided; each switch is a deviation from the agreed way."""

    by_the_clock: bool = False  # the age of the row, when the message is decided
    replay_has_own_time: bool = False  # in place of the time of the message whose dead letter it is
    any_other_time: bool = False  # a message sent long *before* the row's is another event too
    keeps_row: bool = False  # another event leaves the row of the first
    row_after_effect: bool = False  # in a transaction of its own


AGREED = Rules()


class Message(StatePart, frozen=True):
    """One message that was sent. *time* decides, *original* is the number of the message that it repeats or is."""

    time: int
    original: int
    is_there: bool = True  # in its queue
    is_decided: bool = False
    is_letter: bool = False


class State(StatePart, frozen=True):
    """All of it. *applied* are the numbers of originals, in the order of their effects."""

    now: int
    messages: tuple[Message, ...]
    row: int
    row_written_at: int
    applied: tuple[int, ...]
    left: tuple[int, int, int]  # messages to send, lost deletes, dead letters
    promise: str = ""  # broken on the way here


class OrderWindowModel:
    """A queue with messages of one id, and the row of that id on the shard of their tenant."""

    def __init__(
        self, count: int, *, lost_deletes: int = 1, letters: int = 1, is_fifo: bool = False, rules: Rules = AGREED
    ) -> None:
        self._left = (count, lost_deletes, letters)
        self._is_fifo = is_fifo
        self._rules = rules

    def first(self) -> State:
        return State(0, (), NONE, NONE, (), self._left)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        count, lost_deletes, letters = state.left
        if state.now < LAST:
            yield f"it is {state.now + 1}", replace(state, now=state.now + 1)
        if count and state.now <= LAST_SENDING:
            sent = Message(state.now, len(state.messages))
            left = (count - 1, lost_deletes, letters)
            yield f"{sent.original} is sent at {state.now}", replace(state, messages=(*state.messages, sent), left=left)
        for number, message in self._receivable(state):
            yield f"decide {number}", _with(self._decide(state, message), number, is_there=False, is_decided=True)
        for number, message in enumerate(state.messages):
            if message.is_letter:
                time = state.now if self._rules.replay_has_own_time else message.time
                again = Message(time, message.original)
                following = _with(state, number, is_letter=False)
                yield f"replay {number}", replace(following, messages=(*following.messages, again))

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        count, lost_deletes, letters = state.left
        for number, message in self._receivable(state):
            if lost_deletes:
                left = replace(state, left=(count, lost_deletes - 1, letters))
                decided = self._decide(left, message)
                yield f"decide {number}, its delete is lost", _with(decided, number, is_decided=True)
                if self._rules.row_after_effect and decided.applied != state.applied:
                    torn = replace(decided, row=state.row, row_written_at=state.row_written_at)
                    yield f"apply {number}, crash before its row", _with(torn, number)
            if letters:
                moved = replace(state, left=(count, lost_deletes, letters - 1))
                yield f"{number} becomes a dead letter", _with(moved, number, is_there=False, is_letter=True)

    def broken(self, state: State) -> str:
        return state.promise

    def unsettled(self, state: State) -> str:
        decided = {message.original for message in state.messages if message.is_decided}
        missing = {message.original for message in state.messages} - decided
        return f"undecided: {sorted(missing)}" if missing else ""

    def _receivable(self, state: State) -> Iterator[tuple[int, Message]]:
        there = [(number, message) for number, message in enumerate(state.messages) if message.is_there]
        yield from there[:1] if self._is_fifo else there

    def _decide(self, state: State, message: Message) -> State:
        if state.row != NONE and not self._is_another_event(state, message):
            return replace(state, promise=self._promise_of_drop(state, message))
        times = [state.messages[original].time for original in state.applied]
        promise = ""
        if message.original in state.applied:
            promise = f"twice: {message.original} was applied before"
        elif any(abs(state.messages[message.original].time - time) <= WINDOW for time in times):
            promise = f"repeated: {message.original} is within the window of an event that was applied"
        keeps = self._rules.keeps_row and state.row != NONE
        return replace(
            state,
            applied=(*state.applied, message.original),
            row=state.row if keeps else message.time,
            row_written_at=state.row_written_at if keeps else state.now,
            promise=promise,
        )

    def _is_another_event(self, state: State, message: Message) -> bool:
        if self._rules.by_the_clock:
            return state.now - state.row_written_at > WINDOW
        distance = message.time - state.row
        return (abs(distance) if self._rules.any_other_time else distance) > WINDOW

    def _promise_of_drop(self, state: State, message: Message) -> str:
        if message.original in state.applied:
            return ""
        sent_at = state.messages[message.original].time
        if any(sent_at - state.messages[original].time <= WINDOW for original in state.applied):
            return ""
        return f"lost: {message.original} was sent long after every event that was applied"


def _with(state: State, number: int, **changes: bool) -> State:
    messages = list(state.messages)
    messages[number] = replace(messages[number], **changes)
    return replace(state, messages=tuple(messages))
