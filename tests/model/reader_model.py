"""The reader of one stream shard as the models see it: dispatch, lanes, holds, catch-ups, and the checkpoint.

An operation is the number of its place in the stream. The first operations of a lane, as many as may be in flight, are
in flight. A batch is one operation: a larger one is the same with an atomic group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from model.search import StatePart
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

    def take_effect(self, applied: int, operation: int) -> tuple[int, str]:
        """Return the bits of what is applied after one more commit, and the promise that this breaks.

        The log drops what is applied already.
        """
        if applied >> operation & 1:
            return applied, ""
        if missing := self.earlier[operation] & ~applied:
            earliest = (missing & -missing).bit_length() - 1
            return applied, f"order: {operation} took effect before {earliest}, of the same tenant"
        return applied | 1 << operation, ""

    def lost_before(self, checkpoint: int, applied: int) -> str:
        missing = ((1 << checkpoint) - 1) & ~applied
        return f"lost: the checkpoint is {checkpoint} and passes over operations not applied" if missing else ""


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
    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def start(self, checkpoint: int) -> Reader:
        return Reader(checkpoint, ((),) * self.scene.shard_count, (FREE,) * len(self.scene.shards))

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
            refused = {tenant for tenant, its_shard in enumerate(scene.shards) if its_shard == number}
        before = min(one for lane in reader.lanes for one in lane if scene.tenants[one] in refused)
        held = list(reader.held)
        for tenant in refused:
            reached = [one.position for one in reader.catch_ups if tenant in one.tenants]
            held[tenant] = min((held[tenant], before, *reached))
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
            if len(reader.catch_ups) < CATCH_UPS_MAX:
                catch_ups = tuple(sorted((*reader.catch_ups, CatchUp(start, tenants))))
                held = _set(reader.held, tenants, CAUGHT)
                yield Move(f"catch up {_names(tenants)} from {start}", replace(reader, held=held, catch_ups=catch_ups))

    def _catch_up(self, reader: Reader, catch_up: CatchUp) -> Iterator[Move]:
        operation = catch_up.position
        others = tuple(one for one in reader.catch_ups if one is not catch_up)
        if operation < reader.dispatch:
            verb, lanes, tenant = "passes", reader.lanes, self.scene.tenants[operation]
            if tenant in catch_up.tenants:
                verb, lanes = "sends", _put(lanes, self.scene.shards[tenant], operation)
            catch_ups = tuple(sorted((*others, replace(catch_up, position=operation + 1))))
            yield Move(f"catch-up {verb} {operation}", replace(reader, lanes=lanes, catch_ups=catch_ups))
        if operation == reader.dispatch:
            held = _set(reader.held, catch_up.tenants, FREE)
            label = f"catch-up of {_names(catch_up.tenants)} meets the main reader at {operation}"
            yield Move(label, replace(reader, held=held, catch_ups=others))


def _put(lanes: tuple[tuple[int, ...], ...], number: int, operation: int) -> tuple[tuple[int, ...], ...]:
    return (*lanes[:number], (*lanes[number], operation), *lanes[number + 1 :])


def _set(held: tuple[int, ...], tenants: Collection[int], before: int) -> tuple[int, ...]:
    return tuple(before if tenant in tenants else old for tenant, old in enumerate(held))


def _names(tenants: Collection[int]) -> str:
    return "".join("ab"[tenant] for tenant in sorted(tenants))
