"""The reader of one stream shard as the models see it: dispatch, lanes, holds, catch-ups, and the checkpoint.

An operation is the number of its place in the stream. The first operations of a lane, as many as may be in flight, are
in flight. A batch is one operation: a larger one is the same with an atomic group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.search import Memory, StatePart
from msgspec.structs import replace

FREE = 99  # in place of the start of a hold: the tenant is not held
CAUGHT = 98  # likewise: the tenant is held, and how far its catch-up is counts instead
CATCH_UPS_MAX = 2


class Scene(NamedTuple):
    tenants: tuple[int, ...]  # of each operation
    earlier: tuple[int, ...]  # bits of the operations of the same tenant before each
    shards: tuple[int, ...]  # of each tenant
    shard_count: int
    troubled: frozenset[int]  # tenants whose operations are refused while there is trouble
    is_shard_trouble: bool  # then a refusal holds the whole Postgres shard, else its tenant

    @classmethod
    def of(cls, operations: str, *, shards: str, trouble: str) -> Scene:
        """Make a scene: `abb` and `AB` are three operations of tenants on two shards, *trouble* a tenant or a shard."""
        tenants = tuple(map("abc".index, operations))
        shard_of = tuple(map("AB".index, shards))
        return cls(
            tenants=tenants,
            earlier=tuple(
                sum(1 << before for before in range(place) if tenants[before] == tenant)
                for place, tenant in enumerate(tenants)
            ),
            shards=shard_of,
            shard_count=len(set(shard_of)),
            troubled=frozenset(tenant for tenant, name in enumerate("ab") if trouble in (name, shards[tenant])),
            is_shard_trouble=trouble.isupper(),
        )

    def take_effect(self, applied: int, operation: int, *, has_log: bool = True) -> tuple[int, str]:
        """Return the bits of what is applied after one more commit, and the promise that this breaks.

        The log drops what is applied already.
        """
        if applied >> operation & 1:
            return applied, "" if has_log else f"twice: {operation} took effect again"
        if missing := self.earlier[operation] & ~applied:
            earliest = (missing & -missing).bit_length() - 1
            return applied, f"order: {operation} took effect before {earliest}, of the same tenant"
        return applied | 1 << operation, ""

    def lost_before(self, checkpoint: int, applied: int) -> str:
        missing = ((1 << checkpoint) - 1) & ~applied
        return f"lost: the checkpoint is {checkpoint} and passes over operations not applied" if missing else ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a reader goes about it; each switch is a deviation from the agreed way."""

    two_in_flight: bool = False  # for one target
    merges_at_applied: bool = False  # where the main reader has applied everything, not where it dispatches
    lifts_holds: bool = False  # when the target answers again
    separate_lanes: bool = False  # for catch-ups: right, as long as they are drained before the merge
    merges_undrained: bool = False
    checkpoint_ignores_holds: bool = False
    holds_from_catch_up: bool = False  # after a failure in catch-up: from where it is, not from what it sent
    applies_without_log: bool = False


AGREED = Rules()


class CatchUp(StatePart, frozen=True):
    position: int  # of what it reads next
    tenants: tuple[int, ...]


class Reader(StatePart, frozen=True):
    dispatch: int
    lanes: tuple[tuple[int, ...], ...]
    held: tuple[int, ...]  # by tenant: the first operation not applied, or FREE, or CAUGHT
    catch_ups: tuple[CatchUp, ...] = ()


class Move(NamedTuple):
    label: str
    reader: Reader
    commits: int | None = None


class ReaderModel:
    def __init__(self, scene: Scene, rules: Rules, *, end: int) -> None:
        self.scene = scene
        self.rules = rules
        self.end = end
        self._lane_count = scene.shard_count * (2 if rules.separate_lanes else 1)
        self._in_flight_max = 2 if rules.two_in_flight else 1
        # A reader is in many states of a model.
        self._moves: Memory[tuple[Reader, bool, tuple[int, ...]], tuple[Move, ...]] = Memory()
        self._pending: Memory[Reader, int] = Memory()

    def start(self, checkpoint: int, *, held: Collection[int] = ()) -> Reader:
        holds = tuple(checkpoint if tenant in held else FREE for tenant in range(len(self.scene.shards)))
        return Reader(checkpoint, ((),) * self._lane_count, holds)

    def moves(self, reader: Reader, *, is_troubled: bool, barred: tuple[int, ...] = ()) -> Sequence[Move]:
        key = (reader, is_troubled, barred)
        moves = self._moves.get(key)
        if moves is None:
            moves = self._moves[key] = tuple(self._moves_of(reader, barred, is_troubled=is_troubled))
        return moves

    def _moves_of(self, reader: Reader, barred: Collection[int], *, is_troubled: bool) -> Iterator[Move]:
        if reader.dispatch < self.end:
            yield self._dispatch(reader)
        for number, lane in enumerate(reader.lanes):
            for operation in lane[: self._in_flight_max]:
                if is_troubled and self.scene.tenants[operation] in self.scene.troubled:
                    yield self._fail(reader, operation, number)
                else:
                    yield Move(f"commit {operation}", _without(reader, operation, number), operation)
        if any(before != FREE for before in reader.held):
            yield from self._lift(reader, barred, is_troubled=is_troubled)
            for catch_up in reader.catch_ups:
                yield from self._catch_up(reader, catch_up)

    def pending(self, reader: Reader) -> int:
        pending = self._pending.get(reader)
        if pending is None:
            pending = self._pending[reader] = self._pending_of(reader)
        return pending

    def _pending_of(self, reader: Reader) -> int:
        pending = min((reader.dispatch, *(operation for lane in reader.lanes for operation in lane)))
        if self.rules.checkpoint_ignores_holds:
            return pending
        return min((pending, *reader.held, *(catch_up.position for catch_up in reader.catch_ups)))

    def owes(self, reader: Reader, tenant: int) -> bool:
        if reader.held[tenant] != FREE:
            return True
        return any(self.scene.tenants[operation] == tenant for lane in reader.lanes for operation in lane)

    def in_flight(self, reader: Reader) -> Iterator[int]:
        for lane in reader.lanes:
            yield from lane[: self._in_flight_max]

    def _dispatch(self, reader: Reader) -> Move:
        operation = reader.dispatch
        tenant = self.scene.tenants[operation]
        if reader.held[tenant] != FREE:
            return Move(f"drop {operation}, held", replace(reader, dispatch=operation + 1))
        lanes = _put(reader.lanes, self.scene.shards[tenant], operation)
        return Move(f"dispatch {operation}", replace(reader, dispatch=operation + 1, lanes=lanes))

    def _fail(self, reader: Reader, operation: int, number: int) -> Move:
        scene = self.scene
        refused = {scene.tenants[operation]}
        if scene.is_shard_trouble:
            shard = number % scene.shard_count
            refused = {tenant for tenant, its_shard in enumerate(scene.shards) if its_shard == shard}
        before = min(one for lane in reader.lanes for one in lane if scene.tenants[one] in refused)
        held = list(reader.held)
        for tenant in refused:
            reached = [one.position for one in reader.catch_ups if tenant in one.tenants]
            forgotten = reached and self.rules.holds_from_catch_up
            held[tenant] = reached[0] if forgotten else min((held[tenant], before, *reached))
        left = ((one.position, tuple(t for t in one.tenants if t not in refused)) for one in reader.catch_ups)
        following = replace(
            reader,
            lanes=tuple(tuple(one for one in lane if scene.tenants[one] not in refused) for lane in reader.lanes),
            held=tuple(held),
            catch_ups=tuple(CatchUp(position, tenants) for position, tenants in left if tenants),
        )
        return Move(f"{operation} fails, hold {_names(refused)} from {before}", following)

    def _lift(self, reader: Reader, barred: Collection[int], *, is_troubled: bool) -> Iterator[Move]:
        ready = [
            tenant
            for tenant, before in enumerate(reader.held)
            if before < CAUGHT and tenant not in barred and not (is_troubled and tenant in self.scene.troubled)
        ]
        for tenants in {(*ready,), *((tenant,) for tenant in ready)} - {()}:
            start = min(reader.held[tenant] for tenant in tenants)
            if self.rules.lifts_holds:
                label = f"lift the hold of {_names(tenants)} from {start}"
                yield Move(label, replace(reader, held=_set(reader.held, tenants, FREE)))
            elif len(reader.catch_ups) < CATCH_UPS_MAX:
                catch_ups = tuple(sorted((*reader.catch_ups, CatchUp(start, tenants))))
                held = _set(reader.held, tenants, CAUGHT)
                yield Move(f"catch up {_names(tenants)} from {start}", replace(reader, held=held, catch_ups=catch_ups))

    def _catch_up(self, reader: Reader, catch_up: CatchUp) -> Iterator[Move]:
        operation = catch_up.position
        others = tuple(one for one in reader.catch_ups if one is not catch_up)
        if operation < reader.dispatch:
            verb, lanes, tenant = "passes", reader.lanes, self.scene.tenants[operation]
            if tenant in catch_up.tenants:
                first = self.scene.shard_count if self.rules.separate_lanes else 0
                verb, lanes = "sends", _put(lanes, first + self.scene.shards[tenant], operation)
            catch_ups = tuple(sorted((*others, replace(catch_up, position=operation + 1))))
            yield Move(f"catch-up {verb} {operation}", replace(reader, lanes=lanes, catch_ups=catch_ups))
        if self._meets(reader, catch_up):
            held = _set(reader.held, catch_up.tenants, FREE)
            label = f"catch-up of {_names(catch_up.tenants)} meets the main reader at {operation}"
            yield Move(label, replace(reader, held=held, catch_ups=others))

    def _meets(self, reader: Reader, catch_up: CatchUp) -> bool:
        main_lanes, other_lanes = reader.lanes[: self.scene.shard_count], reader.lanes[self.scene.shard_count :]
        if self.rules.merges_at_applied:
            applied = min((reader.dispatch, *(operation for lane in main_lanes for operation in lane)))
            return catch_up.position >= applied
        is_drained = self.rules.merges_undrained or not any(
            self.scene.tenants[operation] in catch_up.tenants for lane in other_lanes for operation in lane
        )
        return is_drained and catch_up.position == reader.dispatch


def _without(reader: Reader, operation: int, number: int) -> Reader:
    lane = list(reader.lanes[number])
    lane.remove(operation)
    return replace(reader, lanes=(*reader.lanes[:number], tuple(lane), *reader.lanes[number + 1 :]))


def _put(lanes: tuple[tuple[int, ...], ...], number: int, operation: int) -> tuple[tuple[int, ...], ...]:
    return (*lanes[:number], (*lanes[number], operation), *lanes[number + 1 :])


def _set(held: tuple[int, ...], tenants: Collection[int], before: int) -> tuple[int, ...]:
    return tuple(before if tenant in tenants else old for tenant, old in enumerate(held))


def _names(tenants: Collection[int]) -> str:
    return "".join("ab"[tenant] for tenant in sorted(tenants))
