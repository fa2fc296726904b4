"""A reshard: a parent and its child, the operations pending at the parent's end, and when each reader may start.

The operations before *end* are the parent's, the others the child's. The parent's lease row has its checkpoint, the
list of the pending tenants (`simpluPendingTenants`; absent until the parent is read to its end) and SHARD_END.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.reader_model import AGREED as AGREED_READER
from model.reader_model import FREE, Reader, ReaderModel, Scene
from model.search import StatePart, one_less
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Rules:
    """How parent and child go about it; each switch but the first is a deviation from the agreed ways."""

    child_waits_for_shard_end: bool = False  # the simple way, as right as the list
    child_starts_at_end_of_reading: bool = False  # holding nothing
    shard_end_ignores_holds: bool = False
    list_omits_unregistered: bool = False
    list_omits_lanes: bool = False
    list_before_end: bool = False


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    troubles: int = 1
    parent_crashes: int = 0
    parent_takes: int = 1
    child_crashes: int = 1
    child_takes: int = 0


class Side(StatePart, frozen=True):
    """One of the two stream shards: its lease row's checkpoint and its readers."""

    checkpoint: int
    owner: Reader | None = None
    zombie: Reader | None = None


class State(StatePart, frozen=True):
    applied: int  # bits
    parent: Side
    child: Side
    listed: tuple[int, ...] | None  # tenants, in the parent's lease row
    is_ended: bool  # SHARD_END is in the parent's lease row
    is_troubled: bool
    left: tuple[int, ...]  # as in Budget
    promise: str  # broken on the way here


SideName = Literal["parent", "child"]


class ReshardModel:
    """Two stream shards, one after the other, of which everything has to be applied."""

    def __init__(self, scene: Scene, budget: Budget, rules: Rules = AGREED, *, end: int) -> None:
        self._scene = scene
        self._rules = rules
        self._end = end
        self._last = len(scene.tenants)
        self._budget = budget
        self._readers = {
            "parent": ReaderModel(scene, AGREED_READER, end=end),
            "child": ReaderModel(scene, AGREED_READER, end=self._last),
        }

    def first(self) -> State:
        budget = self._budget
        left = (
            budget.troubles,
            budget.parent_crashes,
            budget.parent_takes,
            budget.child_crashes,
            budget.child_takes,
        )
        parent = Side(0, self._readers["parent"].start(0))
        return State(0, parent, Side(self._end), listed=None, is_ended=False, is_troubled=False, left=left, promise="")

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._side_steps(state, "parent")
        yield from self._side_steps(state, "child")
        yield from self._parent_row(state)
        if state.child.owner is None and self._may_start(state):
            yield "child starts", replace(state, child=self._restarted(state, "child"))
        if state.is_troubled:
            yield "trouble ends", replace(state, is_troubled=False)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._moves(state, "parent", is_zombie=True)
        yield from self._moves(state, "child", is_zombie=True)
        if state.left[0] and not state.is_troubled:
            yield "trouble begins", replace(state, is_troubled=True, left=one_less(state.left, 0))
        if not state.is_ended:
            yield from self._replacements(state, "parent", 1)
        if state.child.owner is not None:
            yield from self._replacements(state, "child", 3)

    def broken(self, state: State) -> str:
        if state.promise:
            return state.promise
        if state.is_ended and (promise := self._scene.lost_before(self._end, state.applied)):
            return f"{promise} (SHARD_END)"
        if promise := self._scene.lost_before(state.parent.checkpoint, state.applied):
            return promise
        of_parent = (1 << self._end) - 1
        return self._scene.lost_before(state.child.checkpoint, state.applied | of_parent)

    def unsettled(self, state: State) -> str:
        is_settled = state.is_ended and state.child.checkpoint == self._last
        return "" if is_settled else f"unsettled: {state}"

    def _moves(self, state: State, name: SideName, *, is_zombie: bool) -> Iterator[tuple[str, State]]:
        side = _side(state, name)
        reader = side.zombie if is_zombie else side.owner
        if reader is None:
            return
        barred = () if name == "parent" else self._pending_at_parent(state)
        prefix = f"zombie of {name}" if is_zombie else name
        for label, after, commits in self._readers[name].moves(reader, is_troubled=state.is_troubled, barred=barred):
            moved = replace(side, zombie=after) if is_zombie else replace(side, owner=after)
            following = _with(state, name, moved)
            if commits is not None:
                applied, promise = self._scene.take_effect(state.applied, commits)
                following = replace(following, applied=applied, promise=promise)
            yield f"{prefix}: {label}", following

    def _side_steps(self, state: State, name: SideName) -> Iterator[tuple[str, State]]:
        side = _side(state, name)
        if side.owner is None:
            return
        yield from self._moves(state, name, is_zombie=False)
        if (pending := self._readers[name].pending(side.owner)) > side.checkpoint:
            yield f"{name}: checkpoint {pending}", _with(state, name, replace(side, checkpoint=pending))

    def _parent_row(self, state: State) -> Iterator[tuple[str, State]]:
        owner = state.parent.owner
        if owner is None or state.is_ended:
            return
        is_read = owner.dispatch == self._end
        if is_read or self._rules.list_before_end:
            pending = tuple(tenant for tenant in range(len(self._scene.shards)) if self._is_listed(owner, tenant))
            if state.listed is not None:  # it only shrinks: what is not in it was applied, by whomever
                pending = tuple(tenant for tenant in pending if tenant in state.listed)
            names = "".join("ab"[tenant] for tenant in pending) or "nothing"
            yield f"parent: lists {names}", replace(state, listed=pending)
        if is_read and (self._rules.shard_end_ignores_holds or self._readers["parent"].pending(owner) == self._end):
            ended = Side(self._end, None, state.parent.zombie)
            yield "parent: SHARD_END", replace(state, is_ended=True, parent=ended)

    def _is_listed(self, owner: Reader, tenant: int) -> bool:
        is_named = self._scene.is_shard_trouble or not self._rules.list_omits_unregistered
        if owner.held[tenant] != FREE:
            return is_named
        return not self._rules.list_omits_lanes and self._readers["parent"].owes(owner, tenant)

    def _may_start(self, state: State) -> bool:
        if self._rules.child_starts_at_end_of_reading:
            owner = state.parent.owner
            return state.is_ended or (owner is not None and owner.dispatch == self._end)
        is_listed = state.listed is not None and not self._rules.child_waits_for_shard_end
        return state.is_ended or is_listed

    def _pending_at_parent(self, state: State) -> tuple[int, ...]:
        return () if state.is_ended or state.listed is None else state.listed

    def _replacements(self, state: State, name: SideName, place: int) -> Iterator[tuple[str, State]]:
        fresh = self._restarted(state, name)
        if state.left[place]:
            yield f"{name}: crash", replace(_with(state, name, fresh), left=one_less(state.left, place))
        if state.left[place + 1]:
            taken = replace(fresh, zombie=_side(state, name).owner)
            yield f"{name}: lease taken", replace(_with(state, name, taken), left=one_less(state.left, place + 1))

    def _restarted(self, state: State, name: SideName) -> Side:
        side = _side(state, name)
        held = self._pending_at_parent(state) if name == "child" else ()
        return replace(side, owner=self._readers[name].start(side.checkpoint, held=held))


def _side(state: State, name: SideName) -> Side:
    return state.parent if name == "parent" else state.child


def _with(state: State, name: SideName, side: Side) -> State:
    return replace(state, parent=side) if name == "parent" else replace(state, child=side)
