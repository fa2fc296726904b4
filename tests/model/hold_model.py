"""Hold, catch-up, merge and checkpoint of one stream shard, with crashes, a second reader and lost acknowledgements.

A reader whose lease was taken goes on as a zombie: it writes no checkpoint. One that crashed is one that does nothing
more, and another starts at the checkpoint. A commit whose acknowledgement is lost happens at any later time, or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.reader_model import AGREED, Reader, ReaderModel, Rules, Scene
from model.search import StatePart
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Budget:
    troubles: int = 1
    crashes: int = 1
    takes: int = 1
    lost_acks: int = 0


class State(StatePart, frozen=True):
    """All of it: the shards' log, the lease row, the readers, and the trouble still to come."""

    applied: int  # bits
    checkpoint: int
    owner: Reader
    zombie: Reader | None
    adrift: tuple[int, ...]  # commits that nobody waits for any more
    is_troubled: bool
    left: tuple[int, int, int, int]  # troubles, crashes, takes, lost acknowledgements
    promise: str  # broken on the way here


class HoldModel:
    def __init__(self, scene: Scene, budget: Budget, rules: Rules = AGREED) -> None:
        self._scene = scene
        self._budget = budget
        self._end = len(scene.tenants)
        self._readers = ReaderModel(scene, rules, end=self._end)

    def first(self) -> State:
        budget = self._budget
        left = (budget.troubles, budget.crashes, budget.takes, budget.lost_acks)
        return State(0, 0, self._readers.start(0), None, (), is_troubled=False, left=left, promise="")

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for label, reader, commits in self._readers.moves(state.owner, is_troubled=state.is_troubled):
            yield label, self._commit(replace(state, owner=reader), commits)
        if (pending := self._readers.pending(state.owner)) > state.checkpoint:
            yield f"checkpoint {pending}", replace(state, checkpoint=pending)
        if state.is_troubled:
            yield "trouble ends", replace(state, is_troubled=False)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.zombie is not None:
            for label, reader, commits in self._readers.moves(state.zombie, is_troubled=state.is_troubled):
                yield f"zombie: {label}", self._commit(replace(state, zombie=reader), commits)
        for operation in state.adrift:
            adrift = tuple(other for other in state.adrift if other != operation)
            yield f"late commit of {operation}", self._commit(replace(state, adrift=adrift), operation)
        troubles, crashes, takes, lost_acks = state.left
        if troubles and not state.is_troubled:
            left = (troubles - 1, crashes, takes, lost_acks)
            yield "trouble begins", replace(state, is_troubled=True, left=left)
        if crashes:
            left = (troubles, crashes - 1, takes, lost_acks)
            yield "crash", replace(state, owner=self._readers.start(state.checkpoint), left=left)
        if takes:
            left = (troubles, crashes, takes - 1, lost_acks)
            owner = self._readers.start(state.checkpoint)
            yield "lease taken", replace(state, owner=owner, zombie=state.owner, left=left)
        if lost_acks:
            left = (troubles, crashes, takes, lost_acks - 1)
            for operation in self._readers.in_flight(state.owner):
                label = f"acknowledgement of {operation} lost, tried again"
                yield label, replace(state, adrift=(*state.adrift, operation), left=left)

    def broken(self, state: State) -> str:
        return state.promise or self._scene.lost_before(state.checkpoint, state.applied)

    def unsettled(self, state: State) -> str:
        is_settled = state.checkpoint == self._end and state.applied == (1 << self._end) - 1
        return "" if is_settled else f"unsettled: {state}"

    def _commit(self, state: State, operation: int | None) -> State:
        if operation is None:
            return state
        has_log = not self._readers.rules.applies_without_log
        applied, promise = self._scene.take_effect(state.applied, operation, has_log=has_log)
        return replace(state, applied=applied, promise=promise)
