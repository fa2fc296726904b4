"""The feed of a move's target while the retention deletes what was not read: each change comes, or a gap with it.

Tenant a arrives in the log, and what is behind that waits until the source is passed. The retention deletes batches
from the front, and notes the highest one. A publisher that comes to a place before that one tells of a gap. Where a gap
has the arrival, nothing waits for the source any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart
from msgspec.structs import replace

NOBODY = -1
ARRIVAL, A, B = "A", "a", "b"


@dataclass(frozen=True, slots=True)
class Rules:
    """How gaps are told; each switch is a deviation from the agreed way."""

    no_gap: bool = False  # what was deleted is not told
    gap_before_read: bool = False  # it is told by what an earlier renewal knew, whatever the read finds
    cursor_behind_arrival: bool = False  # the row has the place behind the arrival while that waits


AGREED = Rules()


class Publisher(StatePart, frozen=True):
    """Where it reads the log, what it knows of the retention, and whether an arrival there waits."""

    head: int = NOBODY
    forgotten: int = 0
    is_waiting: bool = False


class State(StatePart, frozen=True):
    """All of it. Batches have the numbers from 1; *told* has them as they came, and gaps as bounds."""

    written: int = 0
    forgotten: int = 0
    row: int = 0
    publisher: Publisher = Publisher()
    is_passed: bool = False
    told: tuple[int, ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()
    deletions: int = 0
    kills: int = 0
    promise: str = ""


class FeedRetentionModel:
    """*log* has the tenant of each batch, `A` for the arrival of a."""

    def __init__(self, log: str = "bAaba", *, deletions: int = 2, kills: int = 1, rules: Rules = AGREED) -> None:
        self._log = log
        self._left = (deletions, kills)
        self._rules = rules

    def first(self) -> State:
        return State(deletions=self._left[0], kills=self._left[1])

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.written < len(self._log):
            yield f"{self._log[state.written]}{state.written + 1} is written", replace(state, written=state.written + 1)
        if not state.is_passed:
            yield "the source is passed", replace(state, is_passed=True)
        if state.publisher.head == NOBODY:
            yield "a publisher begins", replace(state, publisher=Publisher(state.row, state.forgotten))
            return
        yield from self._publish(state, state.publisher)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.deletions:
            for number in range(state.forgotten + 1, state.written + 1):
                yield (
                    f"{number} is deleted, and all before",
                    replace(state, forgotten=number, deletions=state.deletions - 1),
                )
        if state.kills and state.publisher.head != NOBODY:
            yield "the publisher is killed", replace(state, publisher=Publisher(), kills=state.kills - 1)

    def broken(self, state: State) -> str:
        return state.promise

    def unsettled(self, state: State) -> str:
        for number, tenant in enumerate(self._log, 1):
            if number not in state.told and not any(behind < number <= through for behind, through in state.gaps):
                return f"missed: {tenant}{number} did not come, nor a gap"
        return ""

    def _publish(self, state: State, publisher: Publisher) -> Iterator[tuple[str, State]]:
        head = publisher.head
        if publisher.forgotten < state.forgotten:
            renewed = replace(publisher, forgotten=state.forgotten)
            yield "the row is renewed", replace(state, publisher=renewed)
        if publisher.is_waiting and state.is_passed:
            yield from self._deliver(state, replace(publisher, is_waiting=False), head + 1)
        forgotten = publisher.forgotten if self._rules.gap_before_read else state.forgotten
        if head < forgotten and not self._rules.no_gap:
            gaps = tuple(sorted({*state.gaps, (head, forgotten)}))
            yield "a gap is told", replace(state, gaps=gaps, publisher=Publisher(forgotten, publisher.forgotten))
        elif not publisher.is_waiting and (number := max(head, state.forgotten) + 1) <= state.written:
            if self._log[number - 1] == ARRIVAL and not state.is_passed:
                yield "an arrival waits", replace(state, publisher=replace(publisher, head=number - 1, is_waiting=True))
            else:
                yield from self._deliver(state, publisher, number)
        place = head + 1 if publisher.is_waiting and self._rules.cursor_behind_arrival else head
        if place != state.row:
            yield "the row is written", replace(state, row=place)

    def _deliver(self, state: State, publisher: Publisher, number: int) -> Iterator[tuple[str, State]]:
        if number <= state.forgotten:
            return
        sent = replace(state, publisher=replace(publisher, head=number))
        yield f"{number} is sent", self._send(sent, number)

    def _send(self, state: State, number: int) -> State:
        if number in state.told:
            return state
        promise = state.promise
        if (tenant := self._log[number - 1]) != B:
            arrival = self._log.index(ARRIVAL) + 1
            if not (state.is_passed or any(behind < arrival <= through for behind, through in state.gaps)):
                promise = f"order: {tenant}{number} came before the source was passed"
            if any(later > number and self._log[later - 1] != B for later in state.told):
                promise = f"order: {tenant}{number} came behind {state.told}"
        return replace(state, told=(*state.told, number), promise=promise)
