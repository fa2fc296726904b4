"""The home of one tenant under a static map: the map changes, the tenant moves, shards are silent, and it is made.

One tenant may be provisioned at any time and as often as messages come. A shard keeps a row of each tenant that lived
there. The map is that of the key "2 shards: the first, 3 shards: the second". Two replicas with different maps at once
are not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

HASHED = {2: 0, 3: 1}  # by the number of shards
SHARDS = range(3)
NO_ROW, HOME, LEFT = "no row", "home", "left"
GROWS, PINS, MOVES, OUTAGES = range(4)
NO_PIN = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """How homes are looked for, and what a person does with the map; each switch is a deviation from the agreed way."""

    ignores_silent: bool = False  # a shard that may have the tenant and does not answer is no reason to wait
    asks_place_alone: bool = False  # as if each map were marked
    marks_anyway: bool = False  # the mark stays though the tenant has no row where the map places it
    forgets_left: bool = False  # a shard keeps no row of a tenant that has left


AGREED = Rules()


class State(StatePart, frozen=True):
    count: int
    pin: int
    is_marked: bool  # `allInPlace`
    rows: tuple[str, ...]
    silent: tuple[bool, ...]
    left: tuple[int, ...]  # times that the map may grow, the pin change, the tenant move, a shard fall silent

    @property
    def place(self) -> int:
        return HASHED[self.count] if self.pin == NO_PIN else self.pin

    @property
    def exists(self) -> bool:
        return HOME in self.rows


class HomeModel:
    """One tenant, and a map that is marked from the beginning, or is not."""

    def __init__(self, *, is_marked: bool, lost: int | None = None, rules: Rules = AGREED) -> None:
        self._is_marked = is_marked
        self._lost = lost
        self._rules = rules

    def first(self) -> State:
        silent = tuple(number == self._lost for number in SHARDS)
        return State(2, NO_PIN, self._is_marked, (NO_ROW,) * 3, silent, (1, 2, 1, 2))

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for number in SHARDS:
            if state.silent[number] and number != self._lost:
                yield f"{number} answers", replace(state, silent=put_at(state.silent, number, False))
        asked = {state.place} if self._rules.asks_place_alone else possible_homes(state)
        if state.silent[state.place] or state.rows[state.place] != NO_ROW:
            return
        answered = [number for number in SHARDS if not state.silent[number] and number < state.count]
        if any(state.rows[number] != NO_ROW for number in answered):
            return  # its home is known, or what it has left names it
        if self._rules.ignores_silent or not any(state.silent[number] for number in asked):
            yield f"made on {state.place}", replace(state, rows=put_at(state.rows, state.place, HOME))

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._map_changes(state)
        if state.left[MOVES] and state.exists and not any(state.silent):
            home = state.rows.index(HOME)
            gone = NO_ROW if self._rules.forgets_left else LEFT
            for number in range(state.count):
                if number != home:
                    rows = put_at(put_at(state.rows, home, gone), number, HOME)
                    yield f"moved to {number}", replace(state, rows=rows, left=one_less(state.left, MOVES))
        if state.left[OUTAGES]:
            for number in SHARDS:
                if not state.silent[number]:
                    silent = put_at(state.silent, number, True)
                    yield f"{number} is silent", replace(state, silent=silent, left=one_less(state.left, OUTAGES))

    def _map_changes(self, state: State) -> Iterator[tuple[str, State]]:
        if state.count == 2 and state.left[GROWS]:
            yield from self._change_map("a shard is added", replace(state, count=3, left=one_less(state.left, GROWS)))
        if state.left[PINS]:
            changed = replace(state, left=one_less(state.left, PINS))
            for pin in (NO_PIN, *range(state.count)):
                if pin != state.pin:
                    yield from self._change_map(f"pin: {pin}", replace(changed, pin=pin))

    def broken(self, state: State) -> str:
        return "homes: two shards have it" if state.rows.count(HOME) > 1 else ""

    def unsettled(self, state: State) -> str:
        return "" if state.exists or state.place == self._lost else f"unsettled: not made, {state}"

    def _change_map(self, label: str, state: State) -> Iterator[tuple[str, State]]:
        is_in_place = not state.exists or state.rows[state.place] != NO_ROW
        if not is_in_place and not self._rules.marks_anyway:
            state = replace(state, is_marked=False)
            if not any(state.rows[number] != NO_ROW for number in possible_homes(state)):
                return
        yield label, state


def possible_homes(state: State) -> set[int]:
    """Return the shards that may have the tenant where the map places it and has no row of it."""
    if state.is_marked:
        return {state.place}
    return {state.place, *(HASHED[count] for count in HASHED if count <= state.count)}
