"""Designs that must not be: each leaves out one thing that the worker does, and a simulation has to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from simulated_world import FleetMaker, World

from simplu_worker.consumers.kinesis.fleet import Fleet
from simplu_worker.consumers.kinesis.holder import LeaseHolder
from simplu_worker.consumers.kinesis.lanes import Entry
from simplu_worker.consumers.kinesis.leases import Lease
from simplu_worker.consumers.kinesis.positions import Position
from simplu_worker.consumers.kinesis.reader import StreamShardReader
from simplu_worker.consumers.kinesis.shard_tree import child_leases
from simplu_worker.consumers.letters import DeadLetter


class WrongDesign(msgspec.Struct, frozen=True):
    """How to put a simulation together wrongly."""

    make_fleet: FleetMaker = Fleet
    twist: Callable[[World], None] | None = None


class _EagerReader(StreamShardReader):
    @property
    def checkpoint(self) -> Position | None:
        mark = self._owed._last
        return None if mark is None else mark.position


class _CarelessReader(StreamShardReader):
    @property
    def is_finished(self) -> bool:
        return self.is_at_end


class _HastyReader(StreamShardReader):
    async def _settle(self, entries: Sequence[Entry], letters: Sequence[DeadLetter]) -> None:
        await super()._settle(entries, ())
        await self._store(letters)


class _LooseReader(StreamShardReader):
    def _put_back(self, tenant_id: str, entries: Sequence[Entry]) -> None:
        self._room.put(tenant_id, entries[:1])
        self._lane_of[tenant_id].put(entries[1:])


class _CredulousHolder(LeaseHolder):
    async def _is_bare_end(self, reader: StreamShardReader) -> bool:
        return True


class _OneParentHolder(LeaseHolder):
    async def _end(self, reader: StreamShardReader) -> bool:
        children = child_leases(reader.child_shards)
        for child in children:
            await self._table.create(child)
        return bool(children) or await super()._end(reader)


class _OrphanFleet(Fleet):
    def _unfinished_parents(self, lease: Lease) -> list[str]:
        return []


class _TrustingFleet(Fleet):
    async def _may_begin(self, lease: Lease) -> bool:
        return True


def _with_reader(reader_class: type[StreamShardReader]) -> FleetMaker:
    class WrongFleet(Fleet):
        def _reader(self, lease: Lease) -> StreamShardReader:
            reader = super()._reader(lease)
            reader.__class__ = reader_class
            return reader

    return WrongFleet


def _with_holder(holder_class: type[LeaseHolder]) -> FleetMaker:
    class WrongFleet(Fleet):
        def _holder(self, lease: Lease) -> LeaseHolder:
            holder = super()._holder(lease)
            holder.__class__ = holder_class
            return holder

    return WrongFleet


def _take_whatever_the_counter(world: World) -> None:
    world.dynamodb.unconditional_updates = frozenset({"ADD ownerSwitchesSinceCheckpoint"})


def _log_nothing(world: World) -> None:
    world.shards.is_deduplicating = False


WRONG_DESIGNS = {
    "the checkpoint is what was read": WrongDesign(_with_reader(_EagerReader)),
    "SHARD_END is written at the end of reading": WrongDesign(_with_reader(_CarelessReader)),
    "a record is passed over before its dead letter is stored": WrongDesign(_with_reader(_HastyReader)),
    "a hold holds one operation and not those behind it": WrongDesign(_with_reader(_LooseReader)),
    "every reply without an iterator is the end": WrongDesign(_with_holder(_CredulousHolder)),
    "the child of a merge has its lease from one parent": WrongDesign(_with_holder(_OneParentHolder)),
    "children do not wait for their parents": WrongDesign(_OrphanFleet),
    "what a scan does not show is not there": WrongDesign(_TrustingFleet),
    "a take does not look at the counter": WrongDesign(twist=_take_whatever_the_counter),
    "the log of operations does not tell what was applied": WrongDesign(twist=_log_nothing),
}
