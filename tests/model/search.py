"""Search all that can happen in a small model: breadth first, so that no trace to a broken promise is shorter."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

State = TypeVar("State", bound=Hashable)
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
STATES_MAX = 2_000_000  # about 2 GB: a model this large is a mistake


class StatePart(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A state of a model, or a part of one. Copying and hashing these takes most of a search: hence in C, and once."""


class Memory(dict[Key, Value]):
    """What follows from parts of a model's states: many states differ in other parts alone. Empty after each search."""

    def __init__(self) -> None:
        super().__init__()
        _memories[id(self)] = self


_memories: WeakValueDictionary[int, Memory[Any, Any]] = WeakValueDictionary()


class Model(Protocol[State]):
    """What can happen, one step at a time, and what must never be."""

    def first(self) -> State: ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """Return what happens by itself sooner or later, each with its label: work, and repairs of what broke."""
        ...

    def faults(self, state: State) -> Iterable[tuple[str, State]]:
        """Return what may happen and need not, each with its label: trouble, and readers without a lease."""
        ...

    def broken(self, state: State) -> str: ...

    def unsettled(self, state: State) -> str:
        """Return what is not settled in a state that no step leads out of; empty when everything is."""
        ...


class Violation(Exception):  # noqa: N818 - it is what a search is for
    """A state that must not be, and a shortest way to it."""

    def __init__(self, promise: str, trace: Sequence[str]) -> None:
        self.promise = promise
        self.trace = tuple(trace)
        super().__init__("\n".join([promise, *(f"{number:3}. {label}" for number, label in enumerate(trace, 1))]))


def put_at(items: tuple[Item, ...], place: int, item: Item) -> tuple[Item, ...]:
    return (*items[:place], item, *items[place + 1 :])


def one_less(left: tuple[int, ...], place: int) -> tuple[int, ...]:
    return put_at(left, place, left[place] - 1)


def search(model: Model[State], *, forbids_cycles: bool = False) -> int:
    """Visit every state that can be reached, and return how many there are. Raises Violation at the first bad one.

    With *forbids_cycles* a cycle of steps is bad too: a model that goes round without a fault gets nowhere. The steps
    of the cycle are at the end of its trace.
    """
    try:
        return _search(model, forbids_cycles=forbids_cycles)
    finally:
        for memory in list(_memories.values()):
            memory.clear()


def _search(model: Model[State], *, forbids_cycles: bool) -> int:
    states, came_from, steps = _visit(model, notes_steps=forbids_cycles)
    if cycle := _cycle_of(steps):
        trace = _trace(model, states, came_from, cycle[0])
        labels = _labels_between(model, [states[one] for one in (*cycle, cycle[0])])
        raise Violation(f"cycle: {len(cycle)} steps without a fault", [*trace, *labels])
    return len(states)


def _visit(model: Model[State], *, notes_steps: bool) -> tuple[list[State], list[int], list[set[int]]]:
    first = model.first()
    numbers = {first: 0}
    states = [first]
    came_from = [0]
    steps: list[set[int]] = []
    count = 1
    for number, state in enumerate(states):  # which grow
        onwards = set()
        for _, one in model.steps(state):
            found = numbers.setdefault(one, count)
            onwards.add(found)
            if found == count:
                states.append(one)
                came_from.append(number)
                count += 1
        for _, one in model.faults(state):
            if numbers.setdefault(one, count) == count:
                states.append(one)
                came_from.append(number)
                count += 1
        onwards.discard(number)
        if promise := model.broken(state) or ("" if onwards else model.unsettled(state)):
            raise Violation(promise, _trace(model, states, came_from, number))
        if notes_steps:
            steps.append(onwards)
        if count > STATES_MAX:
            raise RuntimeError(f"over {STATES_MAX} states: make the model smaller")
    return states, came_from, steps


def _trace(model: Model[State], states: Sequence[State], came_from: Sequence[int], number: int) -> list[str]:
    path = [number]
    while path[-1]:
        path.append(came_from[path[-1]])
    return _labels_between(model, [states[one] for one in reversed(path)])


def _labels_between(model: Model[State], states: Sequence[State]) -> list[str]:
    return [
        next(label for label, one in chain(model.steps(at), model.faults(at)) if one == to)
        for at, to in pairwise(states)
    ]


def _cycle_of(steps: Sequence[AbstractSet[int]]) -> list[int]:
    incoming = [0] * len(steps)
    for following in steps:
        for number in following:
            incoming[number] += 1
    # A state without a step to it is on no cycle, nor is one with steps only from such states.
    waiting = [number for number, count in enumerate(incoming) if not count]
    while waiting:
        for number in steps[waiting.pop()]:
            incoming[number] -= 1
            if not incoming[number]:
                waiting.append(number)
    rest = {number for number, count in enumerate(incoming) if count}
    for start in sorted(rest):
        came_from = {start: start}
        for at in (path := [start]):  # which grows
            if start in steps[at]:
                cycle = [at]
                while cycle[-1] != start:
                    cycle.append(came_from[cycle[-1]])
                return cycle[::-1]
            path += [one for one in steps[at] if one not in came_from]
            came_from.update((one, at) for one in steps[at] if one not in came_from)
    return []
