"""A reshard, and a Postgres shard that fails over: which reader applies the parent's lost operations again.

The first operations are the grandparent's, if there is one. Those before *end* are the parent's, the others the
child's. Each has its own row on the shard, and a stream shard is not read any more once SHARD_END is in its lease row.
A child whose row does not contain that the parent is finished reads the parent's records again when it adopts that row.
What a child learns from the parent's row, or its lease row, counts only if its own row is written in the same
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from model.failover_readers import PlainReaders
from model.failover_rows import NEW, NO_ROW, OUTDATED, TO_ADOPT, TO_COME, Row, names_of_rows
from model.reader_model import Scene
from model.search import Memory, StatePart, one_less
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Rules:
    """How parent and child go about it; each switch but the first five is a deviation from the agreed ways."""

    child_waits_for_shard_end: bool = False  # as right as the list
    child_ignores_list: bool = False  # likewise: it reads everything of the parent again
    adopts_again_when_freed: bool = False  # likewise: what is listed is left out, and not sent before it adopts again
    leaves_listed: bool = False  # likewise: the same where the parent's row, which names them, lacks nobody else's
    parents_own_listed: bool = False  # with `leaves_listed`, as right: always, and the others are read without them
    forgets_parents: bool = False
    forgets_grandparents: bool = False  # though the parent's row does not say that they are done with
    adopts_without_writing: bool = False
    skips_listed: bool = False  # in what is read again of the parent, for the parent will apply it
    leaves_anyway: bool = False  # with `leaves_listed`: also what it is just reading again itself
    frees_without_adopting: bool = False  # what was left out is sent as soon as the parent does not list it any more
    done_at_shard_end: bool = False  # says so in its row though it has not applied again what it should
    done_early: bool = False  # likewise, and before SHARD_END


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    failovers: int = 1
    parent_crashes: int = 0
    parent_takes: int = 0
    child_crashes: int = 1
    child_takes: int = 0


class Version(StatePart, frozen=True):
    applied: int  # bits
    grandparent: int  # what its row claims, or would without one
    parent: Row
    child: Row


class Worker(StatePart, frozen=True):
    """A reader and its knowledge of the shard: its token, of its own row."""

    reader: tuple[int, ...]
    token: int = NEW
    left_out: tuple[int, ...] = ()  # tenants of which the parent's was not read again


class Side(StatePart, frozen=True):
    """One of the two stream shards: its lease row's checkpoint and its readers."""

    checkpoint: int
    owner: Worker | None = None
    zombie: Worker | None = None


class State(StatePart, frozen=True):
    shard: Version
    replica: Version | None  # gets nothing any more; None: it has everything
    parent: Side
    child: Side
    listed: tuple[int, ...] | None  # tenants, in the parent's lease row
    is_ended: bool  # SHARD_END is in the parent's lease row
    left: tuple[int, ...]  # as in Budget
    promise: str  # broken on the way here


SideName = Literal["parent", "child"]
Work: TypeAlias = tuple[str, Worker, Row | None, int | None]  # what a reader does, the reader then, its row, its commit
SIDES: Final[tuple[tuple[SideName, int], ...]] = (("parent", 1), ("child", 3))  # with the place of its crashes in left


class ReshardFailoverModel:
    """Two stream shards, one after the other, of which everything has to be applied in the end."""

    def __init__(
        self,
        parent: str,
        child: str,
        budget: Budget,
        rules: Rules = AGREED,
        *,
        grandparent: str = "",
        checks_claims: bool = True,
    ) -> None:
        operations = grandparent + parent + child
        self._scene = Scene.of(operations, shards="AA", trouble="")
        self._rules = rules
        self._checks_claims = checks_claims
        self._budget = budget
        self._begin = len(grandparent)
        self._end = len(grandparent + parent)
        self._last = len(operations)
        self._all = range(2)
        self._readers = {"parent": PlainReaders(self._scene, end=self._end), "child": PlainReaders(self._scene)}
        self._works: Memory[tuple[object, ...], tuple[Work, ...]] = Memory()

    def first(self) -> State:
        budget = self._budget
        own = [replace(NO_ROW, pending_from=begin, read_to=begin) for begin in (self._begin, self._end)]
        return State(
            shard=Version((1 << self._begin) - 1, self._begin, *own),
            replica=Version(0, 0, *own) if self._begin else None,
            parent=Side(self._begin, Worker(self._readers["parent"].start(self._begin))),
            child=Side(self._end),
            listed=None,
            is_ended=False,
            left=(
                budget.failovers,
                budget.parent_crashes,
                budget.parent_takes,
                budget.child_crashes,
                budget.child_takes,
            ),
            promise="",
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for name, _ in SIDES:
            side = _side(state, name)
            yield from self._work(state, name, side.owner, is_zombie=False)
            if side.owner is not None and (pending := self._readers[name].pending(side.owner.reader)) > side.checkpoint:
                yield f"{name}: checkpoint {pending}", _with(state, name, replace(side, checkpoint=pending))
        yield from self._parent_row(state)
        if state.child.owner is None and self._may_start(state):
            yield "child starts", _with(state, "child", self._started(state, "child"))

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        for name, place in SIDES:
            side = _side(state, name)
            yield from self._work(state, name, side.zombie, is_zombie=True)
            if side.owner is None:
                continue
            started = self._started(state, name)
            if state.left[place]:
                yield f"{name}: crash", _renamed(_with(_spend(state, place), name, started))
            if state.left[place + 1]:
                taken = replace(started, zombie=side.owner)
                yield f"{name}: lease taken", _renamed(_with(_spend(state, place + 1), name, taken))
        if state.replica is not None and state.replica != state.shard:
            yield "failover", _renamed(replace(state, shard=state.replica, replica=None))
        elif state.left[0] and state.replica is None:
            yield "replica gets no more", replace(_spend(state, 0), replica=state.shard)

    def broken(self, state: State) -> str:
        if state.promise or not self._checks_claims:
            return state.promise
        for version in {state.shard, state.replica or state.shard}:
            parent, child = version.parent, version.child
            before_parent = self._begin if parent.is_after_parents else version.grandparent
            before_child = self._end if child.is_after_parents else 0
            claimed = (1 << max(before_parent, before_child)) - 1
            claimed |= (1 << parent.pending_from) - (1 << self._begin) | (1 << child.pending_from) - (1 << self._end)
            named = [one for one in range(self._begin, self._end) if one < parent.claimed(self._scene.tenants[one])]
            claimed |= sum(1 << one for one in named)
            if claimed & ~version.applied:
                return f"claims: not applied, {version}"
        return ""

    def unsettled(self, state: State) -> str:
        if missing := ((1 << self._last) - 1) & ~state.shard.applied:
            return f"lost: nobody will apply {(missing & -missing).bit_length() - 1}"
        is_settled = state.is_ended and state.child.checkpoint == self._last
        return "" if is_settled else f"unsettled: {state}"

    def _work(
        self, state: State, name: SideName, worker: Worker | None, *, is_zombie: bool
    ) -> Iterator[tuple[str, State]]:
        if worker is None:
            return
        shard = state.shard
        key = (worker, shard.grandparent, shard.parent, shard.child, state.listed, state.is_ended, name)
        works = self._works.get(key)
        if works is None:
            works = self._works[key] = tuple(self._works_of(state, name, worker))
        who = f"zombie of {name}" if is_zombie else name
        for label, after, written, operation in works:
            if written is None:
                following = _renamed(_settled(state, name, after, is_zombie=is_zombie))
            else:
                following = self._wrote(state, name, after, written, operation, is_zombie=is_zombie)
            yield f"{who}: {label}", following

    def _works_of(self, state: State, name: SideName, worker: Worker) -> Iterator[Work]:
        if self._rules.frees_without_adopting:
            worker = replace(worker, left_out=())
        row = state.shard.parent if name == "parent" else state.shard.child
        listed = () if name == "parent" else self._pending_at_parent(state)
        if worker.token <= TO_ADOPT or {*worker.left_out} - {*listed}:
            left_out = self._left_out(state, worker) if name == "child" else ()
            reader = self._rewound(state, name, worker, left_out)
            rewound = replace(worker, reader=reader, token=row.token, left_out=left_out)
            label = f"adopts {row.pending_from}"
            has_none = row.is_after_parents or (name == "parent" and not self._begin)
            if has_none or self._rules.adopts_without_writing:
                yield label, rewound, None, None
            else:
                written = replace(row, token=TO_COME)
                label = f"{label}, its parent's is at {self._before(state, name)}, and writes"
                yield label, rewound, written, None
        if worker.token <= TO_ADOPT:
            return
        readers, reader = self._readers[name], worker.reader
        barred = {*listed, *worker.left_out}
        free = self._end if name == "child" and self._rules.leaves_listed else 0  # what it reads again of the parent
        ready = [one for one in readers.ready(reader) if one < free or self._scene.tenants[one] not in barred]
        for operation in (*ready, None):
            label = "touch" if operation is None else f"commit {operation}"
            if row.token != worker.token:
                found = replace(worker, token=TO_ADOPT)
                yield f"{label}: another token", found, None, None
                continue
            after = reader if operation is None else readers.settled(reader, operation)
            yield label, replace(worker, reader=after), self._claim(state, name, worker), operation

    def _claim(self, state: State, name: SideName, worker: Worker) -> Row:
        pending = self._readers[name].pending(worker.reader)
        if name == "parent":
            own = max(pending, self._begin)
            is_done = state.shard.parent.is_after_parents or 0 < self._begin <= pending
            held = () if state.listed is None else tuple(one for one in self._all if worker.reader[one] < self._end)
            if self._rules.leaves_listed and held:
                return Row(TO_COME, own, self._end, held, is_after_parents=is_done)
            return Row(TO_COME, own, own, is_after_parents=is_done)
        is_backfilled = (pending >= self._end and not worker.left_out) or self._rules.done_at_shard_end
        is_done = (state.is_ended and is_backfilled) or self._rules.done_early or state.shard.child.is_after_parents
        own = max(pending, self._end)
        return Row(TO_COME, own, own, is_after_parents=is_done)

    def _wrote(
        self, state: State, name: SideName, worker: Worker, row: Row, operation: int | None, *, is_zombie: bool
    ) -> State:
        applied, promise = state.shard.applied, ""
        if operation is not None:
            applied, promise = self._scene.take_effect(applied, operation)
        shard = replace(state.shard, applied=applied)
        shard = replace(shard, parent=row) if name == "parent" else replace(shard, child=row)
        known = replace(worker, token=row.token)
        settled = _settled(state, name, known, is_zombie=is_zombie)
        return _renamed(replace(settled, shard=shard, promise=promise))

    def _left_out(self, state: State, worker: Worker) -> tuple[int, ...]:
        listed, parent, rules = self._pending_at_parent(state), state.shard.parent, self._rules
        if state.shard.child.is_after_parents or not (rules.adopts_again_when_freed or rules.leaves_listed):
            return ()
        if rules.adopts_again_when_freed or rules.parents_own_listed:
            return listed
        lacking = {tenant for tenant in self._all if parent.claimed(tenant) < self._end}
        is_reading_again = min(worker.reader) < self._end
        return listed if lacking <= {*listed} and (rules.leaves_anyway or not is_reading_again) else ()

    def _lacks_for_others(self, state: State, listed: tuple[int, ...]) -> bool:
        parent = state.shard.parent
        is_whole = parent.is_after_parents or not self._begin
        return not is_whole or any(parent.claimed(one) < self._end for one in self._all if one not in listed)

    def _rewound(self, state: State, name: SideName, worker: Worker, left_out: tuple[int, ...]) -> tuple[int, ...]:
        shard = state.shard
        own = shard.parent if name == "parent" else shard.child
        starts = dict.fromkeys(self._all, own.pending_from)
        if not (own.is_after_parents or self._rules.forgets_parents):
            skips = self._rules.skips_listed and name == "child"
            skipped = self._pending_at_parent(state) if skips else left_out
            is_for_others = self._rules.parents_own_listed and self._lacks_for_others(state, left_out)
            if left_out and self._rules.leaves_listed and not is_for_others:
                skipped = tuple(self._all)
            before = self._before(state, name)
            if before < (self._begin if name == "parent" else self._end):
                starts.update((tenant, before) for tenant in self._all if tenant not in skipped)
        return self._readers[name].rewound(worker.reader, starts)

    def _before(self, state: State, name: SideName) -> int:
        shard = state.shard
        if name == "parent":
            return shard.grandparent
        is_whole = shard.parent.is_after_parents or shard.grandparent == self._begin
        return shard.parent.pending_from if is_whole or self._rules.forgets_grandparents else shard.grandparent

    def _parent_row(self, state: State) -> Iterator[tuple[str, State]]:
        owner = state.parent.owner
        if owner is None:
            return
        listed = tuple(
            tenant
            for tenant in self._all
            if owner.reader[tenant] < self._end and (state.listed is None or tenant in state.listed)
        )
        if listed != state.listed:
            names = "".join("ab"[tenant] for tenant in listed) or "nothing"
            yield f"parent: lists {names}", replace(state, listed=listed)
        if self._readers["parent"].pending(owner.reader) == self._end and owner.token > TO_ADOPT:
            yield "parent: SHARD_END", replace(state, is_ended=True, parent=Side(self._end, None, state.parent.zombie))

    def _may_start(self, state: State) -> bool:
        if state.is_ended or self._rules.child_waits_for_shard_end:
            return state.is_ended
        return state.listed is not None or self._rules.child_ignores_list

    def _pending_at_parent(self, state: State) -> tuple[int, ...]:
        is_free = state.is_ended or state.listed is None or self._rules.child_ignores_list
        return () if is_free or state.listed is None else state.listed

    def _started(self, state: State, name: SideName) -> Side:
        side = _side(state, name)
        return replace(side, owner=Worker(self._readers[name].start(side.checkpoint)))


def _renamed(state: State) -> State:
    shard, replica = state.shard, state.replica
    versions = (shard,) if replica is None else (shard, replica)
    names = {
        "parent": names_of_rows(*[version.parent.token for version in versions]),
        "child": names_of_rows(*[version.child.token for version in versions]),
    }

    def version(one: Version) -> Version:
        parent, child = names["parent"][one.parent.token], names["child"][one.child.token]
        if (parent, child) == (one.parent.token, one.child.token):
            return one
        return replace(one, parent=replace(one.parent, token=parent), child=replace(one.child, token=child))

    def worker(one: Worker | None, name: SideName) -> Worker | None:
        if one is None or one.token <= TO_ADOPT:
            return one
        token = names[name].get(one.token, OUTDATED)
        return one if token == one.token else replace(one, token=token)

    def side(one: Side, name: SideName) -> Side:
        owner, zombie = worker(one.owner, name), worker(one.zombie, name)
        return one if owner is one.owner and zombie is one.zombie else replace(one, owner=owner, zombie=zombie)

    return replace(
        state,
        shard=version(shard),
        replica=None if replica is None else version(replica),
        parent=side(state.parent, "parent"),
        child=side(state.child, "child"),
    )


def _side(state: State, name: SideName) -> Side:
    return state.parent if name == "parent" else state.child


def _with(state: State, name: SideName, side: Side) -> State:
    return replace(state, parent=side) if name == "parent" else replace(state, child=side)


def _settled(state: State, name: SideName, worker: Worker, *, is_zombie: bool) -> State:
    side = _side(state, name)
    return _with(state, name, replace(side, zombie=worker) if is_zombie else replace(side, owner=worker))


def _spend(state: State, place: int) -> State:
    return replace(state, left=one_less(state.left, place))
