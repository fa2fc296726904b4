"""One lease, two workers and a leader of the KCL 3.x: who may write to the row, while it is taken and handed over.

Worker a is ours, worker b ours or one of the KCL 3.x. A leader hands the lease over to either, and may die in the midst
of that. A worker writes by its copy of the row, as its last write, or its take, left it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart, one_less
from msgspec.structs import replace

NOBODY = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How our workers go about it; each switch is a deviation from the agreed way, the first two are as right."""

    hand_over_is_loss: bool = False  # the leader assigns the lease after a time
    counter_alone: bool = False  # a renewal expects the counter, and not the owner: the row that it returns names both
    owner_of_the_row: bool = False  # a worker takes the owner in its copy of the row for itself
    landed_by_counter: bool = False  # a row one higher is a worker's own write, whoever owns the lease
    frees_at_hand_over: bool = False  # a hand-over removes the next owner, too
    begins_by_counter: bool = (
        False  # what a leader assigned is taken by the counter that a scan found, and nothing else
    )
    keeps_checkpoint_owner: bool = False  # a take changes the owner alone
    leaves_hand_overs: bool = False  # a hand-over of a lease that its worker has lost is left to the leader
    asks_any_owner: bool = False  # that an owner gives the lease away is taken as a word of whoever owns it
    keeps_requests: bool = False  # a take leaves that in the row


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    takes: int = 1
    hand_overs: int = 1
    lost_answers: int = 1
    stops: int = 1
    leader_deaths: int = 0
    requests: int = 0


class Row(StatePart, frozen=True):
    counter: int = 0
    owner: str = NOBODY
    checkpoint_owner: str = NOBODY
    checkpoint: int = 0
    # Who gives the lease away, as it can do nothing: another worker takes it.
    release_of: str = NOBODY

    @property
    def actual_owner(self) -> str:
        return self.checkpoint_owner or self.owner


class Worker(StatePart, frozen=True):
    copy: Row | None = None  # of the row; None when it holds nothing
    read_to: int = 0
    is_stopping: bool = False
    scanned: Row | None = None  # what a scan found, if a worker begins by that alone


class State(StatePart, frozen=True):
    row: Row
    workers: tuple[Worker, Worker]
    left: tuple[int, ...]  # as in Budget
    promise: str = ""  # broken on the way here
    is_led: bool = True
    taken_by_request: int = 0


NAMES = "ab"


class LeaseModel:
    """All that two workers and a leader may do to one row until *end* is read and the lease is where it belongs."""

    def __init__(self, budget: Budget, rules: Rules = AGREED, *, end: int = 1) -> None:
        self._rules = rules
        self._budget = budget
        self._end = end

    def first(self) -> State:
        budget, row = self._budget, Row(1, "a")
        left = (
            budget.takes,
            budget.hand_overs,
            budget.lost_answers,
            budget.stops,
            budget.leader_deaths,
            budget.requests,
        )
        return State(row, (Worker(row), Worker()), left)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for place, name in enumerate(NAMES):
            worker = state.workers[place]
            if worker.copy is None:
                yield from self._begin(state, place)
                continue
            is_draining = worker.is_stopping or self._is_reassigned(worker)
            if worker.read_to < self._end and not is_draining:
                read = replace(worker, read_to=worker.read_to + 1)
                yield f"{name} reads", _with_worker(state, place, read)
            if worker.read_to > worker.copy.checkpoint or worker.copy != state.row:
                yield from self._renew(state, place)
            if is_draining:
                yield from self._release(state, place)
        if state.row.checkpoint_owner and state.is_led:
            assigned = replace(state.row, counter=state.row.counter + 1, checkpoint_owner=NOBODY)
            yield f"leader assigns to {state.row.owner}", replace(state, row=assigned)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        takes, hand_overs, _, stops, leader_deaths, requests = state.left
        for place, name in enumerate(NAMES):
            worker = state.workers[place]
            if takes and worker.copy is None and state.row.actual_owner not in (NOBODY, name):
                yield f"{name} takes", _less(self._taken(state, place), 0)
            if stops and worker.copy is not None and not worker.is_stopping:
                yield f"{name} is stopped", _less(_with_worker(state, place, replace(worker, is_stopping=True)), 3)
        row = state.row
        if hand_overs and state.is_led and row.owner != NOBODY and not row.checkpoint_owner:
            begun = replace(row, owner="b" if row.owner == "a" else "a", checkpoint_owner=row.owner)
            yield f"leader begins to hand over to {begun.owner}", _less(replace(state, row=begun), 1)
        if requests and row.actual_owner != NOBODY:
            asked = replace(row, release_of=row.actual_owner)
            yield f"{row.actual_owner} can do nothing", _less(replace(state, row=asked), 5)
        if leader_deaths and state.is_led:
            yield "leader dies", _less(replace(state, is_led=False), 4)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: only the actual owner writes, and nobody writes over its checkpoint."""
        return state.promise

    def unsettled(self, state: State) -> str:
        """Return what is left over: a worker that still takes itself for the owner, or a lease that nobody reads."""
        holders = [name for name, worker in zip(NAMES, state.workers, strict=True) if worker.copy is not None]
        if len(holders) > 1:
            return f"owners: both workers hold the lease for good, the row names {state.row.owner}"
        is_settled = holders == [state.row.actual_owner] and state.row.checkpoint == self._end
        return "" if is_settled else f"unsettled: {state}"

    def _is_reassigned(self, worker: Worker) -> bool:
        return worker.copy is not None and worker.copy.checkpoint_owner != NOBODY

    def _begin(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        name, row = NAMES[place], state.row
        is_assigned = row.owner == name and row.checkpoint_owner == NOBODY
        if row.actual_owner == NOBODY:
            yield f"{name} takes the free lease", self._taken(state, place)
        elif row.actual_owner != name and self._is_to_be_released(row):
            yield f"{name} takes what {row.actual_owner} gives away", self._taken_by_request(state, place)
        elif row.checkpoint_owner == name and not self._rules.leaves_hand_overs:
            yield f"{name} ends the hand-over", replace(state, row=_moved(row, row.owner))
        elif is_assigned and name == "b":
            yield "b begins", _with_worker(state, place, Worker(row, row.checkpoint))
        elif is_assigned and not self._rules.begins_by_counter:
            yield "a takes what it was assigned", self._taken(state, place)
        elif is_assigned and state.workers[place].scanned != row:
            yield "a scans", _with_worker(state, place, Worker(scanned=row))
        scanned = state.workers[place].scanned
        if scanned is not None and scanned.counter == row.counter:
            promise = "" if is_assigned else f"owner: {name} takes the lease from the next owner, {row.owner}"
            yield "a takes what it was assigned", replace(self._taken(state, place), promise=promise)

    def _is_to_be_released(self, row: Row) -> bool:
        return row.release_of != NOBODY and (self._rules.asks_any_owner or row.release_of == row.actual_owner)

    def _taken_by_request(self, state: State, place: int) -> State:
        taken = self._taken(state, place)
        count = state.taken_by_request + 1
        is_asked = count <= self._budget.requests - state.left[5] and state.row.release_of == state.row.actual_owner
        promise = "" if is_asked else f"request: {NAMES[place]} takes the lease, which its owner was not to release"
        return replace(taken, taken_by_request=count, promise=taken.promise or promise)

    def _taken(self, state: State, place: int) -> State:
        name, keeps = NAMES[place], self._rules.keeps_checkpoint_owner
        row = _moved(state.row, name, checkpoint_owner=state.row.checkpoint_owner if keeps else NOBODY)
        if self._rules.keeps_requests:
            row = replace(row, release_of=state.row.release_of)
        promise = (
            "" if row.actual_owner == name else f"taker: {name} has taken the lease, which is {row.actual_owner}'s"
        )
        return _with_worker(replace(state, row=row, promise=promise), place, Worker(row, row.checkpoint))

    def _renew(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        worker, row = state.workers[place], state.row
        copy = worker.copy
        if copy is None:
            return
        name = copy.owner if self._rules.owner_of_the_row else NAMES[place]
        is_expected = row.counter == copy.counter and (self._rules.counter_alone or self._is_held(copy, row, name))
        if is_expected:
            written = replace(row, counter=row.counter + 1, checkpoint=max(row.checkpoint, worker.read_to))
            after = replace(state, row=written, promise=self._wrong_writer(state, place))
            label = f"{NAMES[place]} renews at {written.checkpoint}"
            yield label, _with_worker(after, place, replace(worker, copy=written))
            if state.left[2]:
                yield f"{label}, no answer", _less(after, 2)
        else:
            yield self._refused(state, place, name)

    def _refused(self, state: State, place: int, name: str) -> tuple[str, State]:
        worker, row = state.workers[place], state.row
        copy = worker.copy
        label = NAMES[place]
        if copy is not None and (row.actual_owner == name or self._rules.landed_by_counter):
            has_begun = row.counter == copy.counter and row.checkpoint_owner != copy.checkpoint_owner
            if has_begun and self._rules.hand_over_is_loss:
                return f"{label} gives up", _with_worker(state, place, Worker())
            if has_begun:
                return f"{label} is to hand over", _with_worker(state, place, replace(worker, copy=row))
            if row.counter == copy.counter + 1:
                return f"{label} knows its write", _with_worker(state, place, replace(worker, copy=row))
        return f"{label} has lost it", _with_worker(state, place, Worker())

    def _release(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        worker, row = state.workers[place], state.row
        copy = worker.copy
        if copy is None:
            return
        name = copy.owner if self._rules.owner_of_the_row else NAMES[place]
        gone = _with_worker(state, place, Worker())
        if not self._is_held(copy, row, name):
            if row.actual_owner == name and row.checkpoint_owner != copy.checkpoint_owner:
                yield f"{NAMES[place]} is to hand over", _with_worker(state, place, replace(worker, copy=row))
            else:
                yield f"{NAMES[place]} releases nothing", gone
            return
        is_hand_over = copy.checkpoint_owner != NOBODY
        keeps_owner = is_hand_over and not self._rules.frees_at_hand_over
        checkpoint = max(row.checkpoint, worker.read_to)
        freed = Row(row.counter + 1, row.owner if keeps_owner else NOBODY, NOBODY, checkpoint, row.release_of)
        promise = self._wrong_writer(state, place)
        if is_hand_over and not keeps_owner:
            promise = promise or f"owner: {NAMES[place]} takes the lease from the next owner, {row.owner}"
        yield f"{NAMES[place]} releases at {checkpoint}", replace(gone, row=freed, promise=promise)

    def _is_held(self, copy: Row, row: Row, name: str) -> bool:
        if copy.checkpoint_owner == NOBODY:
            return row.owner == name and row.checkpoint_owner == NOBODY
        return row.checkpoint_owner == name

    def _wrong_writer(self, state: State, place: int) -> str:
        owner = state.row.actual_owner
        return "" if owner == NAMES[place] else f"writer: {NAMES[place]} writes to the lease of {owner or 'nobody'}"


def _moved(row: Row, owner: str, *, checkpoint_owner: str = NOBODY) -> Row:
    return Row(row.counter + 1, owner, checkpoint_owner, row.checkpoint)


def _with_worker(state: State, place: int, worker: Worker) -> State:
    workers = (worker, state.workers[1]) if place == 0 else (state.workers[0], worker)
    return replace(state, workers=workers)


def _less(state: State, place: int) -> State:
    return replace(state, left=one_less(state.left, place))
