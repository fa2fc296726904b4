"""Search all that can happen in a small model: breadth first, so that no trace to a broken promise is shorter."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

State = TypeVar("State", bound=Hashable)
STATES_MAX = 2_000_000  # about 2 GB: a model this large is a mistake


class StatePart(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A state of a model, or a part of one. Copying and hashing these takes most of a search: hence in C, and once."""


class Model(Protocol[State]):
    """What can happen, one step at a time, and what must never be."""

    def first(self) -> State:
        """Return the state that everything starts from."""
        ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """Return what happens by itself sooner or later, each with its label: work, and repairs of what broke."""
        ...

    def faults(self, state: State) -> Iterable[tuple[str, State]]:
        """Return what may happen and need not, each with its label: trouble, and readers without a lease."""
        ...

    def broken(self, state: State) -> str:
        """Return the promise that *state* breaks; empty when it breaks none."""
        ...

    def unsettled(self, state: State) -> str:
        """Return what is not settled in a state that no step leads out of; empty when everything is."""
        ...


class Violation(Exception):  # noqa: N818 - it is what a search is for
    """A state that must not be, and a shortest way to it."""

    def __init__(self, promise: str, trace: Sequence[str]) -> None:
        self.promise = promise
        self.trace = tuple(trace)
        super().__init__("\n".join([promise, *(f"{number:3}. {label}" for number, label in enumerate(trace, 1))]))


def search(model: Model[State]) -> int:
    """Visit every state that can be reached, and return how many there are. Raises Violation at the first bad one."""
    first = model.first()
    came_from: dict[State, tuple[str, State] | None] = {first: None}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if promise := model.broken(state):
            raise Violation(promise, _trace(came_from, state))
        is_quiescent = True
        for label, following in model.steps(state):
            is_quiescent = is_quiescent and following == state
            if following not in came_from:
                came_from[following] = (label, state)
                waiting.append(following)
        for label, following in model.faults(state):
            if following not in came_from:
                came_from[following] = (label, state)
                waiting.append(following)
        if is_quiescent and (promise := model.unsettled(state)):
            raise Violation(promise, _trace(came_from, state))
        if len(came_from) > STATES_MAX:
            raise RuntimeError(f"over {STATES_MAX} states: make the model smaller")
    return len(came_from)


def _trace(came_from: dict[State, tuple[str, State] | None], state: State) -> list[str]:
    """Return the labels of the steps that led to *state*, the first one first."""
    labels = []
    step = came_from[state]
    while step is not None:
        label, state = step
        labels.append(label)
        step = came_from[state]
    return labels[::-1]
