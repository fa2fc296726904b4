"""The feed of a move's target while the retention deletes what was not read: each change comes, or a gap that has it.

Tenant a arrives in the log, and its events wait until the source is passed; those of b do not. The retention deletes
batches from the front, and notes the highest one. A publisher that comes to a place before that one tells of a gap: of
the whole shard, or of a alone where it catches up with it. Where a gap of the shard has the arrival, nothing waits for
the source any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart
from msgspec.structs import replace

NOBODY = -1
NOT_HELD = -1
ARRIVAL, A, B = "A", "a", "b"


@dataclass(frozen=True, slots=True)
class Rules:
    """How gaps are told; each switch is a deviation from the agreed way."""

    gap_of_shard_alone: bool = False  # what was deleted of a held tenant is not told
    catches_up_before_gap: bool = False  # it is told by what an earlier renewal knew, where the read finds nothing
    place_with_cursor: bool = False  # the row has no place for the held tenant: it begins at that of the others


AGREED = Rules()


class Publisher(StatePart, frozen=True):
    """Where it reads the log, and where that of tenant a, if that is held; what it knows of the retention."""

    head: int = NOBODY
    held: int = NOT_HELD
    forgotten: int = 0


class State(StatePart, frozen=True):
    """All of it. Batches have the numbers from 1; *told* has them as they came, and gaps as tenant and bounds."""

    written: int = 0
    forgotten: int = 0
    row: tuple[int, int] = (0, NOT_HELD)
    publisher: Publisher = Publisher()
    is_passed: bool = False
    told: tuple[int, ...] = ()
    gaps: tuple[tuple[str, int, int], ...] = ()
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
            head, held = state.row
            if self._rules.place_with_cursor and held != NOT_HELD:
                held = head
            yield "a publisher begins", replace(state, publisher=Publisher(head, held, state.forgotten))
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
            has_gap = any(
                behind < number <= through and of in {"", tenant.lower()} for of, behind, through in state.gaps
            )
            if number not in state.told and not has_gap:
                return f"missed: {tenant}{number} did not come, nor a gap"
        return ""

    def _publish(self, state: State, publisher: Publisher) -> Iterator[tuple[str, State]]:
        head, held = publisher.head, publisher.held
        if publisher.forgotten < state.forgotten:
            renewed = replace(publisher, forgotten=state.forgotten)
            yield "the row is renewed", replace(state, publisher=renewed)
        if head < state.forgotten:
            told = _with_gap(state, "", head, state.forgotten)
            yield "a gap of the shard is told", replace(told, publisher=replace(publisher, head=state.forgotten))
        elif head < state.written:
            yield f"{head + 1} is read", self._read(state, publisher, head + 1)
        if (head, held) != state.row:
            yield "the row is written", replace(state, row=(head, held))
        elif held != NOT_HELD and state.is_passed:
            yield from self._catch_up(state, publisher)

    def _read(self, state: State, publisher: Publisher, number: int) -> State:
        tenant = self._log[number - 1]
        following = replace(publisher, head=number)
        if tenant == ARRIVAL and publisher.held == NOT_HELD:
            return replace(state, publisher=replace(following, held=number - 1))
        after = replace(state, publisher=following)
        return after if tenant != B and publisher.held != NOT_HELD else self._send(after, number)

    def _catch_up(self, state: State, publisher: Publisher) -> Iterator[tuple[str, State]]:
        head, held = publisher.head, publisher.held
        own = [
            number
            for number in range(max(held, state.forgotten) + 1, head + 1)
            if self._log[number - 1] in {ARRIVAL, A}
        ]
        forgotten = state.forgotten
        if self._rules.catches_up_before_gap and not own:
            forgotten = publisher.forgotten
        if not self._rules.gap_of_shard_alone and held < min(forgotten, head):
            told = _with_gap(state, A, held, min(forgotten, head))
            yield "a gap of a is told", replace(told, publisher=replace(publisher, held=min(forgotten, head)))
        elif own:
            sent = self._send(state, own[0])
            yield f"{own[0]} is sent", replace(sent, publisher=replace(publisher, held=own[0]))
        else:
            yield "a is held no more", replace(state, publisher=replace(publisher, held=NOT_HELD))

    def _send(self, state: State, number: int) -> State:
        if number in state.told:
            return state
        promise = state.promise
        if (tenant := self._log[number - 1]) != B:
            arrival = self._log.index(ARRIVAL) + 1
            has_arrival = any(not of and behind < arrival <= through for of, behind, through in state.gaps)
            if not (state.is_passed or has_arrival):
                promise = f"order: {tenant}{number} came before the source was passed"
            if any(later > number and self._log[later - 1] != B for later in state.told):
                promise = f"order: {tenant}{number} came behind {state.told}"
        return replace(state, told=(*state.told, number), promise=promise)


def _with_gap(state: State, tenant: str, behind: int, through: int) -> State:
    gap = (tenant, behind, through)
    return state if gap in state.gaps else replace(state, gaps=tuple(sorted((*state.gaps, gap))))
