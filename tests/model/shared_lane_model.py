"""Whether a stream and a queue may share the lane of a Postgres shard, when each has trouble of its own.

A replica has operations of one stream shard, and one chain of messages, for the same Postgres shard. Trouble of one
source (a row with another token, the lock of its row, a standby that is behind, messages put back) need not end here,
so what waits for the trouble of the other source waits for ever. Trouble of the shard itself stops both, and is not
here.

The result: one lane, first in, first out, with one batch in flight, is not free. It is free if it passes over the
entries of a source in trouble, takes out those of that source alone, and has a transaction in flight for each source.
Then it is a lane for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

STREAM, QUEUE = 0, 1
NAMES = ("stream", "queue")


@dataclass(frozen=True, slots=True)
class Rules:
    one_lane: bool = False  # the first entry that cannot be sent stops those behind it
    empties_lane: bool = False  # a row that is behind, or messages put back, take out what is in the lane
    one_in_flight: bool = False  # at a time, though entries of a source in trouble are passed over
    one_transaction: bool = False  # the entries that can be sent go together


AGREED = Rules()


class Row(IntEnum):
    CURRENT = 0
    UNKNOWN = 1  # it has another token
    BEHIND = 2  # the same, and its position is before what was applied


class Trouble(IntEnum):
    TOKEN = 0
    LOSS = 1
    LEASE = 2
    LOCK = 3
    STANDBY = 4
    PUT_BACK = 5


class State(StatePart, frozen=True):
    """All of it. An entry of the lane is (source, number); a lane for each source is the same, without waiting."""

    next: tuple[int, int]  # what each source reads or receives next
    lane: tuple[tuple[int, int], ...]
    flight: tuple[tuple[int, int], ...]
    done: tuple[int, int]  # how many of each source are applied
    safe: int  # of the queue
    row: Row
    is_lease_confirmable: bool
    is_locked: bool  # the stream's row, by another reader's transaction
    is_behind: bool  # the standby
    left: tuple[int, ...]  # by Trouble
    promise: str = ""


class SharedLaneModel:
    """One shard of one replica, and *counts* of operations of the stream and of messages of the queue."""

    def __init__(
        self, troubles: tuple[Trouble, ...], rules: Rules = AGREED, *, counts: tuple[int, int] = (2, 2)
    ) -> None:
        self._counts = counts
        self._left = tuple(troubles.count(one) for one in Trouble)
        self._rules = rules

    def first(self) -> State:
        return State(
            next=(0, 0),
            lane=(),
            flight=(),
            done=(0, 0),
            safe=0,
            row=Row.CURRENT,
            is_lease_confirmable=True,
            is_locked=False,
            is_behind=False,
            left=self._left,
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for source, name in enumerate(NAMES):
            if (number := state.next[source]) < self._counts[source]:
                following = put_at(state.next, source, number + 1)
                yield f"{name} {number}", replace(state, next=following, lane=(*state.lane, (source, number)))
        if not state.is_behind and state.safe < state.done[QUEUE]:
            yield "the standby has everything", replace(state, safe=state.done[QUEUE])
        if state.row is not Row.CURRENT and state.is_lease_confirmable and self._may_read_row(state):
            yield self._read_row(state)
        for batch in self._batches(state):
            lane = tuple(one for one in state.lane if one not in batch)
            yield f"send {self._named(batch)}", replace(state, lane=lane, flight=(*state.flight, *batch))
        for source in (STREAM, QUEUE):
            if answered := self._answered(state, source):
                yield f"{self._named(answered)} answered", self._answer(state, answered)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        left = state.left
        if left[Trouble.TOKEN] and state.row is Row.CURRENT:
            yield "another token", replace(_spend(state, Trouble.TOKEN), row=Row.UNKNOWN)
        if left[Trouble.LOSS] and state.row is Row.CURRENT and state.done[STREAM] and not state.flight:
            done = put_at(state.done, STREAM, state.done[STREAM] - 1)
            yield "the shard loses one of the stream's", replace(_spend(state, Trouble.LOSS), row=Row.BEHIND, done=done)
        if left[Trouble.LEASE] and state.is_lease_confirmable:
            yield "the lease table is away", replace(_spend(state, Trouble.LEASE), is_lease_confirmable=False)
        if left[Trouble.LOCK] and not state.is_locked:
            yield "the stream's row is locked", replace(_spend(state, Trouble.LOCK), is_locked=True)
        if left[Trouble.STANDBY] and not state.is_behind:
            yield "the standby is behind", replace(_spend(state, Trouble.STANDBY), is_behind=True)
        if left[Trouble.PUT_BACK] and any(source == QUEUE for source, _ in state.lane):
            yield "messages are put back", self._take_out(_spend(state, Trouble.PUT_BACK), QUEUE)
        if not state.is_lease_confirmable:
            yield "the lease table is back", replace(state, is_lease_confirmable=True)
        if state.is_locked:
            yield "the stream's row is free", replace(state, is_locked=False)
        if state.is_behind:
            yield "the standby catches up", replace(state, is_behind=False)

    def broken(self, state: State) -> str:
        return state.promise

    def unsettled(self, state: State) -> str:
        is_stream_free = state.row is Row.CURRENT and not state.is_locked
        if is_stream_free and state.done[STREAM] < self._counts[STREAM]:
            return f"stream waits: for the queue's trouble, {state}"
        if not state.is_behind and state.safe < self._counts[QUEUE]:
            return f"queue waits: for the stream's trouble, {state}"
        return ""

    def _batches(self, state: State) -> Iterator[tuple[tuple[int, int], ...]]:
        rules = self._rules
        if state.flight and (rules.one_lane or rules.one_in_flight or rules.one_transaction):
            return
        if rules.one_lane:
            if state.lane and self._is_ready(state, state.lane[0]):
                yield state.lane[:1]
            return
        heads = [next((one for one in state.lane if one[0] == source), None) for source in (STREAM, QUEUE)]
        in_flight = {source for source, _ in state.flight}
        ready = tuple(one for one in heads if one and one[0] not in in_flight and self._is_ready(state, one))
        if rules.one_transaction and ready:
            yield ready
        elif not rules.one_transaction:
            yield from ((one,) for one in ready)

    def _is_ready(self, state: State, entry: tuple[int, int]) -> bool:
        return state.row is Row.CURRENT if entry[0] == STREAM else state.safe == state.done[QUEUE]

    def _answered(self, state: State, source: int) -> tuple[tuple[int, int], ...]:
        own = tuple(one for one in state.flight if self._rules.one_transaction or one[0] == source)
        is_waiting = state.is_locked and any(one[0] == STREAM for one in own)
        return () if is_waiting else own

    def _answer(self, state: State, answered: tuple[tuple[int, int], ...]) -> State:
        flight = tuple(one for one in state.flight if one not in answered)
        for source, number in answered:
            if source == STREAM and state.row is not Row.CURRENT:
                state = replace(state, lane=((source, number), *state.lane))
            else:
                promise = state.promise
                if number > state.done[source]:
                    promise = f"order: {number} of the {NAMES[source]} took effect before {state.done[source]}"
                state = replace(
                    state, done=put_at(state.done, source, max(number + 1, state.done[source])), promise=promise
                )
        return replace(state, flight=flight)

    def _may_read_row(self, state: State) -> bool:
        if self._rules.one_lane:
            return not state.flight
        return all(source != STREAM for source, _ in state.flight)

    def _read_row(self, state: State) -> tuple[str, State]:
        if state.row is Row.UNKNOWN:
            return "read the row", replace(state, row=Row.CURRENT)
        return "read the row: behind", self._take_out(replace(state, row=Row.CURRENT), STREAM)

    def _take_out(self, state: State, source: int) -> State:
        other, promise = 1 - source, state.promise
        taken = [one for one in state.lane if one[0] == source or self._rules.empties_lane]
        if any(one[0] == other for one in taken):
            promise = f"taken out: what is the {NAMES[other]}'s, for the trouble of the {NAMES[source]}"
        following = list(state.next)
        for one, number in taken:
            following[one] = min(following[one], number)
        following[source] = min(following[source], state.done[source]) if source == STREAM else following[source]
        lane = tuple(one for one in state.lane if one not in taken)
        return replace(state, lane=lane, next=tuple(following), promise=promise)

    def _named(self, entries: tuple[tuple[int, int], ...]) -> str:
        return ", ".join(f"{NAMES[source]} {number}" for source, number in entries)


def _spend(state: State, kind: Trouble) -> State:
    return replace(state, left=one_less(state.left, kind))
