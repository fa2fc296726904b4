"""Dead letters of a tenant that is not registered: arrival, wait, margin, registration with a begin and a commit.

Time is whole and short: the wait stands for `TENANT_WAIT_SECONDS`, the margin for 60 s, the limit for the 30 s that a
registering transaction may take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart
from msgspec.structs import replace

WAIT = 1
MARGIN = 2
REGISTRATION_MAX = 1
LAST_ARRIVAL = 2
NEVER = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """How a reader decides; each switch is a deviation from the agreed way."""

    letters_by_clock: bool = False  # past the wait a dead letter, and once the tenant is known applied whatever its age
    forgets_margin: bool = False
    registers_slowly: bool = False  # the registering transaction takes its time and does not abort
    believes_old_answers: bool = False
    finishes_first: bool = False  # the checkpoint passes a dead letter that is not stored yet


AGREED = Rules()


class Reader(StatePart, frozen=True):
    position: int  # of the first operation that it has not settled
    asked_at: int = NEVER  # when it asked last and heard: not registered
    owed: int = 0  # bits: dead letters that are decided, and not stored yet


class State(StatePart, frozen=True):
    now: int
    arrivals: tuple[int, ...]  # of what was put so far
    begun_at: int  # of the registering transaction that is open
    created_at: int  # of the tenant's row
    applied: int  # bits
    letters: int  # bits
    checkpoint: int
    owner: Reader
    zombie: Reader | None
    left: tuple[int, int]  # crashes, takes
    promise: str  # broken on the way here


class LettersModel:
    """One stream shard with the operations of one tenant, and the shard that will have its row, or will not."""

    def __init__(
        self, operation_count: int, *, crashes: int = 1, takes: int = 1, skew: int = 0, rules: Rules = AGREED
    ) -> None:
        self._count = operation_count
        self._left = (crashes, takes)
        self._skew = skew  # of the readers' clocks against the shard's and the stream's
        self._rules = rules
        self._deadline = WAIT + (0 if rules.letters_by_clock or rules.forgets_margin else MARGIN)
        self._last = LAST_ARRIVAL + WAIT + MARGIN + 1

    def first(self) -> State:
        return State(0, (), NEVER, NEVER, 0, 0, 0, Reader(0), None, self._left, promise="")

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for label, reader, following in self._moves(state, state.owner):
            yield label, replace(following, owner=reader)
        owner = state.owner
        is_owing = owner.owed and not self._rules.finishes_first
        settled = (owner.owed & -owner.owed).bit_length() - 1 if is_owing else owner.position
        if settled > state.checkpoint:
            yield f"checkpoint {settled}", replace(state, checkpoint=settled)
        if state.now < self._last:
            yield f"it is {state.now + 1}", replace(state, now=state.now + 1)
        if len(state.arrivals) < self._count and state.now <= LAST_ARRIVAL:
            # The stamp may go backwards: Kinesis calls it approximate.
            for stamp in {state.now, max(0, state.now - 1)}:
                yield f"{len(state.arrivals)} arrives at {stamp}", replace(state, arrivals=(*state.arrivals, stamp))

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.zombie is not None:
            for label, reader, following in self._moves(state, state.zombie):
                yield f"zombie: {label}", replace(following, zombie=reader)
        if state.begun_at != NEVER:
            if self._rules.registers_slowly or state.now - state.begun_at <= REGISTRATION_MAX:
                committed = replace(state, created_at=state.begun_at, begun_at=NEVER)
                yield f"registration commits with created_at {state.begun_at}", committed
            yield "registration aborts", replace(state, begun_at=NEVER)
        elif state.created_at == NEVER:
            yield f"registration begins at {state.now}", replace(state, begun_at=state.now)
        crashes, takes = state.left
        fresh = Reader(state.checkpoint)
        if crashes:
            yield "crash", replace(state, owner=fresh, left=(crashes - 1, takes))
        if takes:
            yield "lease taken", replace(state, owner=fresh, zombie=state.owner, left=(crashes, takes - 1))

    def broken(self, state: State) -> str:
        if state.promise:
            return state.promise
        if state.applied & state.letters:
            return "both: a dead letter and applied"
        is_lost = ((1 << state.checkpoint) - 1) & ~(state.applied | state.letters)
        return f"lost: the checkpoint is {state.checkpoint}" if is_lost else ""

    def unsettled(self, state: State) -> str:
        count = len(state.arrivals)
        is_settled = state.checkpoint == count and state.applied | state.letters == (1 << count) - 1
        return "" if is_settled else f"unsettled: {state}"

    def _moves(self, state: State, reader: Reader) -> Iterator[tuple[str, Reader, State]]:
        if first := reader.owed & -reader.owed:
            stored = replace(state, letters=state.letters | first)
            label = f"the dead letter of {first.bit_length() - 1} is stored"
            yield label, replace(reader, owed=reader.owed ^ first), stored
        operation = reader.position
        if operation == len(state.arrivals):
            return
        clock = state.now + self._skew
        past = replace(reader, position=operation + 1)
        owing = replace(past, owed=past.owed | 1 << operation)
        if state.created_at == NEVER:
            if reader.asked_at != clock:
                yield f"asks at {clock}: not registered", replace(reader, asked_at=clock), state
        elif self._is_of_before(state.arrivals[operation], state.created_at):
            yield f"{operation} came too long before created_at: dead letter", owing, state
        else:
            yield f"apply {operation}", past, _apply(state, operation)
        # Between an answer and what is done about it anything may happen.
        due = state.arrivals[operation] + self._deadline
        heard_at = clock if self._rules.believes_old_answers and reader.asked_at != NEVER else reader.asked_at
        if heard_at >= due:
            yield f"{operation} was not registered at {reader.asked_at}: dead letter", owing, state

    def _is_of_before(self, arrival: int, created_at: int) -> bool:
        return not self._rules.letters_by_clock and arrival + WAIT <= created_at


def _apply(state: State, operation: int) -> State:
    if state.applied >> operation & 1:
        return state
    promise = f"order: {operation} took effect after a later one" if state.applied >> operation else ""
    return replace(state, applied=state.applied | 1 << operation, promise=promise)
