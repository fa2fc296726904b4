"""Designs that must not be: each leaves out one thing that the worker does, and a simulation has to notice.

With `@override`, mypy notices when a method of the worker gets another name: a design that overrides nothing is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace
from simulation.disasters import fail_over, kill, split
from simulation.kcl_leader import hand_leases_over
from simulation.simulated_shards import SHARD_IDS, PostgresShards
from simulation.simulated_world import FleetMaker, Weather, World, bound_sets
from typing_extensions import override

from simplu_worker.consumers.kinesis.dispatch.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation
from simplu_worker.consumers.kinesis.dispatch.shard_lane import ShardLane
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet, FleetServices, FleetSettings, _Chore
from simplu_worker.consumers.kinesis.fleet.lease_ancestry import LeaseAncestry
from simplu_worker.consumers.kinesis.fleet.lease_holder import Confirm, EndCheck, LeaseHolder
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.fleet.stream_shard_end import StreamShardEnd
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.holds import CatchUp, Hold, Holds, Target
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import child_leases, pending_at_parents
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUpReader, CatchUps
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, ignoring_pending, missing_parent_records
from simplu_worker.consumers.kinesis.recovery.shard_positions import Backfill, ShardPosition, ShardPositions
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Record, Reply, Stream
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, RecordPosition
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.shards.types import StoredPositions
from simplu_worker.timing.backoff import jittered
from simplu_worker.timing.clock import loop_time

OPEN_AFTER_S = 1.5  # a world is open then


class WrongDesign(msgspec.Struct, frozen=True):
    """How to put a simulation together wrongly. The simulation of *seed* shows it, when this was written."""

    make_fleet: FleetMaker = Fleet
    twist: Callable[[World], None] | None = None
    weather: Weather = Weather.FAIR
    seed: int = 0


class _EagerReader(StreamShardReader):
    @override
    @property
    def checkpoint(self) -> Position | None:
        return None if self.read_to is None else self.read_to.position


class _ForgetfulReader(StreamShardReader):
    @override
    @property
    def checkpoint(self) -> Position | None:
        checkpoint = self._tracker.checkpoint
        return None if checkpoint is None else checkpoint.position


class _CarelessReader(StreamShardReader):
    @override
    @property
    def is_finished(self) -> bool:
        return self.is_at_end


class _GullibleReader(StreamShardReader):
    @override
    def _open_parent(self, records: ParentRecords) -> tuple[StreamShardAccess, RecordDecoder]:
        access, decoder = super()._open_parent(records)
        access.stream = copy(access.stream)
        access.stream.__class__ = _StreamOfNamedEnds
        return access, decoder


class _StreamOfNamedEnds(Stream):
    @override
    async def get_records(self, iterator: str, *, limit: int) -> Reply:
        reply = await super().get_records(iterator, limit=limit)
        is_end = reply.next_iterator is None
        return replace(reply, child_shards=(ChildShard("a child", frozenset(), HashRange(0, 0)),)) if is_end else reply


class _SecretiveReader(StreamShardReader):
    @override
    def pending_tenants(self) -> TenantSet | None:
        pending = super().pending_tenants()
        if pending is None:
            return None
        return pending.difference(TenantSet(hold.name for hold in self.holds() if hold.target is Target.TENANT))


class _BoastfulReader(StreamShardReader):
    @override
    @property
    def ahead(self) -> ReadAhead | None:
        ahead = super().ahead
        return None if ahead is None or self.read_to is None else replace(ahead, read_to=self.read_to.position)


class _ProudReader(StreamShardReader):
    @override
    def read_up_to(self, ahead: ReadAhead | None) -> datetime | None:
        return None if self._cursor.millis_behind is None else self._fully_read_to()


class _HastyDispatcher(Dispatcher):
    @override
    async def settle(self, entries: Sequence[QueuedOperation], letters: Sequence[DeadLetter]) -> None:
        self._finish(entries)
        await super().settle((), letters)


class _LooseDispatcher(Dispatcher):
    @override
    def requeue_unrouted(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        self.lookup.add(tenant_id, entries[:1])
        self._lane_by_tenant[tenant_id].enqueue(entries[1:])


class _UngatedDispatcher(Dispatcher):
    @override
    def _enqueue_for_whole_shard(
        self, lane: ShardLane, hold: Hold, catch_up: CatchUp, entries: Sequence[QueuedOperation]
    ) -> None:
        lane.enqueue(entries)

    @override
    def _enqueue_for_lookup(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        self.lookup.add(tenant_id, entries)


class _NarrowHolds(Holds):
    @override
    def is_sent_by(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None = None) -> bool:
        return super().is_sent_by(tenant_id, catch_up, "none of them")


class _ForgetfulHolds(Holds):
    @override
    def is_rereading_parents_for(self, shard_id: str) -> bool:
        return False


class _PresentHolds(Holds):
    @override
    def parent_records_of(self, tracker: CheckpointTracker[RecordPosition]) -> tuple[ParentRecords, ...]:
        return next(
            (one.parent_records for one in self._catch_ups if one.tracker is tracker and one.is_reading_parents), ()
        )


class _StraightHolds(Holds):
    @override
    def is_misrouted(
        self, tracker: CheckpointTracker[RecordPosition], ticket: int, tenant_id: str, shard_id: str
    ) -> bool:
        return False


class _PoliteHolds(Holds):
    @override
    def is_parent_record_covered_elsewhere(
        self,
        tenant_id: str,
        stream_shard_id: str,
        position: Position,
        catch_up: CatchUp,
        shard_id: str | None = None,
    ) -> bool:
        named = self.named_hold_of(tenant_id)
        if named is not None and named.catch_up is catch_up:
            return False
        holds = self.all()
        own = max((holds.index(hold) for hold in catch_up.holds if not hold.covers_whole_shard), default=-1)
        later = [hold for hold in holds[own + 1 :] if not hold.covers_whole_shard and tenant_id in hold.tenants]
        return any(hold.parent_records and hold.catch_up is not catch_up for hold in later)


class _CourteousHolds(Holds):
    @override
    def _other_holds(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None) -> list[Hold]:
        return super()._other_holds(tenant_id, catch_up, None)


class _HastyCatchUp(CatchUpReader):
    @override
    async def _send_reply(self, records: list[Record], ending: asyncio.Event) -> None:
        tracker = self.catch_up.tracker
        start, ticket = tracker.last_read, tracker.start_at_last()
        await self._send_until_caught_up(self._decoder.decode(records, after=self._after), ending)
        await self._check_residents(start, ending)
        tracker.finish([ticket])


class _HastyCatchUps(CatchUps):
    @override
    async def _run_reader(self, reader: CatchUpReader, ending: asyncio.Event) -> None:
        reader.__class__ = _HastyCatchUp
        await super()._run_reader(reader, ending)


class _SettledPositions(ShardPositions):
    @override
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        return await super().reconcile_with(shard_position, lineage, replace(stored, last_move_age_s=None))


class _UnwaryPositions(ShardPositions):
    @override
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        return await super().reconcile_with(shard_position, lineage, replace(stored, move_token=None))


class _ForwardPositions(ShardPositions):
    @override
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        backfill = await super().reconcile_with(shard_position, lineage, stored)
        return None if backfill is None else replace(backfill, before=self._reader.progress().safe_checkpoint)


class _LowPositions(ShardPositions):
    @override
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        self._reader = replace(self._reader, read_to=lambda: self._reader.progress().safe_checkpoint)
        return await super().reconcile_with(shard_position, lineage, stored)


class _RashPositions(ShardPositions):
    @override
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        backfill = await super().reconcile_with(shard_position, lineage, stored)
        shard_position.claim.parents_done = True
        return backfill


class _SparingPositions(ShardPositions):
    @override
    def _missing_parent_records(
        self, lineage: Lineage, stored: StoredPositions, *, is_only_parents: bool
    ) -> tuple[ParentRecords, ...]:
        rest = ignoring_pending(stored, self._holds.are_waiting_for_parents)
        return missing_parent_records(lineage, rest, tenant_wait=self._tenant_wait)


class _NoPositionSync(PositionSync):
    @override
    async def run(self, stopping: asyncio.Event) -> None:
        """Leave idle shards alone."""


class _SafeShards(PostgresShards):
    @override
    def fail_over(self, shard_id: str, lost_count: int) -> None:
        """Go on with a replica that lacks nothing."""


class _SlackHolds(Holds):
    @override
    def hold_of(self, tenant_id: str) -> Hold | None:
        hold = super().hold_of(tenant_id)
        return None if hold is not None and hold.is_ready else hold


class _LateHolds(Holds):
    @override
    def hold_shard(
        self, shard_id: str, tenants: Iterable[str], before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        known = self._holds.get((Target.SHARD, shard_id))
        if known is not None:
            before = known.reached
        return super().hold_shard(shard_id, tenants, before, arrived_at, now=now)


class _LaggardCatchUps(CatchUps):
    @override
    def _start_ready(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        begun_before = len(self.running)
        super()._start_ready(tasks, ending)
        for one in self.running[begun_before:]:
            reader = one._main_position.__self__  # type: ignore[attr-defined]  # a bound method
            one._main_position = lambda tracker=reader._tracker: tracker.checkpoint  # type: ignore[misc]


class _OneParentEnd(StreamShardEnd):
    @override
    async def check(self, lease: Lease, child_shards: Sequence[ChildShard]) -> bool:
        for child in child_leases(child_shards):
            await self._table.create(child)
        return bool(child_shards) or await super().check(lease, child_shards)


class _CredulousCursor(Cursor):
    @override
    def _detect_end(self, reply: Reply) -> bool:
        return reply.next_iterator is None


class _CredulousFleet(Fleet):
    @override
    def _create_reader(self, lease: Lease, pending: TenantSet, is_end: EndCheck, confirm: Confirm) -> StreamShardReader:
        async def believe(child_shards: tuple[ChildShard, ...]) -> bool:
            return await is_end(child_shards) if child_shards else True

        reader = super()._create_reader(lease, pending, believe, confirm)
        reader._cursor.__class__ = _CredulousCursor
        return reader


class _HopefulAncestry(LeaseAncestry):
    @override
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        pending = await super().find_pending_at_parents(lease)
        return None if pending is None else TenantSet()


class _OrphanAncestry(LeaseAncestry):
    @override
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        return TenantSet()


class _TrustingAncestry(LeaseAncestry):
    @override
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        pending = pending_at_parents(lease, self._view.leases(), self._view.gone)
        return None if self.unfinished_parents(lease) else TenantSet.decode(pending)


class _ShortsightedAncestry(LeaseAncestry):
    @override
    async def _find_ancestors(self, lease: Lease) -> None:
        pass


class _FatherlessAncestry(LeaseAncestry):
    @override
    def lineage(self, lease: Lease) -> Lineage:
        return Lineage()


class _NamelessTable(LeaseTable):
    @override
    def _held_condition(self, lease: Lease) -> str:
        return "attribute_exists(leaseKey)"

    @override
    async def renew(self, lease: Lease, me: str, *arguments: Any, **more: Any) -> Lease | None:
        return await super().renew(lease, lease.owner or me, *arguments, **more)


def _without_names(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
    services.table.__class__ = _NamelessTable
    return Fleet(services, settings, **more)


def _with_ancestry(ancestry_class: type[LeaseAncestry]) -> FleetMaker:
    def make_fleet(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
        fleet = Fleet(services, settings, **more)
        fleet._ancestry.__class__ = ancestry_class
        return fleet

    return make_fleet


def _without_position_sync(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
    fleet = Fleet(services, settings, **more)
    fleet._position_sync.__class__ = _NoPositionSync
    return fleet


def _with_reader(
    reader_class: type[StreamShardReader] = StreamShardReader,
    dispatcher_class: type[Dispatcher] = Dispatcher,
    holds_class: type[Holds] = Holds,
    catch_ups_class: type[CatchUps] = CatchUps,
    positions_class: type[ShardPositions] | None = ShardPositions,
) -> FleetMaker:
    class WrongFleet(Fleet):
        @override
        def _create_reader(
            self, lease: Lease, pending: TenantSet, is_end: EndCheck, confirm: Confirm
        ) -> StreamShardReader:
            reader = super()._create_reader(lease, pending, is_end, confirm)
            reader.__class__ = reader_class
            reader._dispatcher.__class__ = dispatcher_class
            reader._dispatcher.holds.__class__ = holds_class
            reader._catch_ups.__class__ = catch_ups_class
            if positions_class is None:
                reader._dispatcher.shard_positions = None
            else:
                reader.shard_positions.__class__ = positions_class
            return reader

    return WrongFleet


class _UnrepeatedChore(_Chore):
    @override
    async def run_if_due(self, now: float) -> None:
        if now >= self._due_at:
            self._due_at = loop_time() + jittered(self._interval_s, ratio=0.1, draw=self._draw())
            await self._run()


def _with_unrepeated_chores(make_fleet: FleetMaker) -> FleetMaker:
    """Return fleets whose chores wait for their next time when the first run fails.

    Not wrong without a KCL leader: some rare designs show in such histories, and not in hundreds of the others.
    """

    def make(services: FleetServices, settings: FleetSettings, **others: Any) -> Fleet:
        fleet = make_fleet(services, settings, **others)
        for chore in fleet._chores:
            chore.__class__ = _UnrepeatedChore
        return fleet

    return make


def _with_end(end_class: type[StreamShardEnd]) -> FleetMaker:
    class WrongFleet(Fleet):
        @override
        def _create_holder(self, lease: Lease) -> LeaseHolder:
            holder = super()._create_holder(lease)
            holder._end.__class__ = end_class
            return holder

    return WrongFleet


def _take_whatever_the_counter(world: World) -> None:
    world.dynamodb.unconditional_updates = frozenset({"ADD ownerSwitchesSinceCheckpoint"})


def _log_nothing(world: World) -> None:
    world.shards.is_deduplicating = False


def _lose_nothing(world: World) -> None:
    world.shards.__class__ = _SafeShards


def _storm_early(world: World) -> None:
    """Let children read their parents again and again, long before all is repaired."""
    world.loop.call_later(0.2, setattr, world.kinesis, "false_ends", 0.1)
    for _ in range(8):
        event = world.draws.choice([fail_over, fail_over, split, kill])
        world.loop.call_later(world.draws.uniform(0.5, 0.7 * world.plan.trouble_s), event, world)


def _in_slots(world: World) -> None:
    """Let every set of two tenants or more be a bitmap; the end of the world sets this back."""
    bound_sets(1, world.plan.tenant_holds_max)


def _in_less_memory(world: World) -> None:
    """Let records that are read again come in replies of other sizes."""
    world.plan = replace(world.plan, prefetch_max_bytes=11 * 1024)


def _move_after_a_loss(world: World) -> None:
    """Put all tenants on one shard, which loses its commits, and then move some of them to the other."""
    first, second = SHARD_IDS
    tenants = list(world.shards.tenants.values())
    for tenant in tenants:
        tenant.shard_id = first

    def move() -> None:
        world.shards.fail_over(first, 1000)
        for tenant in tenants[::2]:
            world.shards.move(tenant, second)

    world.loop.call_later(world.draws.uniform(OPEN_AFTER_S, world.plan.trouble_s), move)


WRONG_DESIGNS = {
    "the checkpoint is the last record read": WrongDesign(_with_reader(_EagerReader)),
    "SHARD_END is written at the end of reading": WrongDesign(_with_reader(_CarelessReader), seed=4),
    "the checkpoint ignores holds": WrongDesign(_with_reader(_ForgetfulReader)),
    "read up to a time is what is not decided": WrongDesign(_with_reader(_ProudReader)),
    "a record is finished before its dead letter is stored": WrongDesign(
        _with_reader(dispatcher_class=_HastyDispatcher), seed=79
    ),
    "one operation waits and not those behind it": WrongDesign(
        _with_reader(dispatcher_class=_LooseDispatcher), seed=41
    ),
    "a hold is not sticky": WrongDesign(_with_reader(holds_class=_SlackHolds), seed=36),
    "a hold is not lowered": WrongDesign(_with_reader(holds_class=_LateHolds), seed=250),
    "a catch-up ends where all is applied, not dispatched": WrongDesign(
        _with_reader(catch_ups_class=_LaggardCatchUps), seed=221
    ),
    # The next owner, or the children, would notice by the rows, where a shard has all of them.
    "the next owner starts where the last one read, not where it had applied": WrongDesign(
        _with_reader(_BoastfulReader, positions_class=None), _lose_nothing, seed=107
    ),
    "the list of pending tenants leaves out the unregistered": WrongDesign(
        _with_reader(_SecretiveReader, positions_class=None), _lose_nothing, seed=116
    ),
    "children do not hold the tenants pending at their parents": WrongDesign(
        _with_ancestry(_HopefulAncestry), seed=133
    ),
    "every reply without an iterator is the end": WrongDesign(_CredulousFleet, seed=3),
    "every reply without an iterator is the end of a parent": WrongDesign(
        _with_reader(_GullibleReader), weather=Weather.STORM, seed=9996
    ),
    "the child of a merge has its lease from one parent": WrongDesign(_with_end(_OneParentEnd), seed=2835),
    "children do not wait for their parents": WrongDesign(_with_ancestry(_OrphanAncestry), seed=71),
    "a lease that a scan does not show does not exist": WrongDesign(_with_ancestry(_TrustingAncestry), seed=319),
    "an ancestor's lease that a scan does not show does not exist": WrongDesign(
        _with_ancestry(_ShortsightedAncestry), seed=1956
    ),
    "a take ignores the counter": WrongDesign(twist=_take_whatever_the_counter, seed=2),
    "a renewal expects the counter alone, and knows itself by the owner in the row": WrongDesign(
        _without_names, hand_leases_over, seed=45
    ),
    "the log does not drop operations that were applied": WrongDesign(twist=_log_nothing),
    "rows are neither read nor written": WrongDesign(_with_reader(positions_class=None), seed=4),
    "the rows of idle shards are not kept fresh": WrongDesign(_without_position_sync, seed=8),
    "a backfill reads only for tenants known by name": WrongDesign(_with_reader(holds_class=_NarrowHolds)),
    "a backfill starts at the reader's checkpoint": WrongDesign(
        _with_reader(positions_class=_ForwardPositions), seed=86
    ),
    "a row is compared with the reader's checkpoint": WrongDesign(
        _with_reader(positions_class=_LowPositions), seed=179
    ),
    "children do not read their parents' records again": WrongDesign(_with_ancestry(_FatherlessAncestry), seed=439),
    "the parents are noted as done when re-reading them starts": WrongDesign(
        _with_reader(positions_class=_RashPositions), seed=58
    ),
    "re-read records of the parents are left to parents where they are pending": WrongDesign(
        _with_reader(holds_class=_ForgetfulHolds), seed=3206
    ),
    "lost operations of a moved tenant are looked for on its old shard": WrongDesign(
        _with_reader(positions_class=_SettledPositions), twist=_move_after_a_loss, seed=477
    ),
    "a reader makes its row though a tenant was moved in since it found none": WrongDesign(
        _with_reader(positions_class=_UnwaryPositions), _in_less_memory, Weather.STORM, seed=5636
    ),
    "records of the parents are left to the newest hold": WrongDesign(
        _with_reader(holds_class=_PoliteHolds), _in_less_memory, Weather.STORM, seed=7095
    ),
    "two whole-shard catch-ups leave tenants in the slots of both to each other": WrongDesign(
        _with_reader(holds_class=_CourteousHolds), _in_slots, Weather.GREAT_STORM, seed=336
    ),
    "the parents' records of a catch-up are forgotten when its holds restart": WrongDesign(
        _with_unrepeated_chores(_with_reader(holds_class=_PresentHolds)), weather=Weather.GREAT_STORM, seed=478
    ),
    "a catch-up at the main reader leaves it the rest, and then asks for residents": WrongDesign(
        _with_reader(catch_ups_class=_HastyCatchUps),
        twist=_storm_early,
        seed=7151,
    ),
    "re-read operations of an unrouted tenant are sent to any shard": WrongDesign(
        _with_reader(holds_class=_StraightHolds), seed=4266
    ),
    "only some ancestors are read again": WrongDesign(_with_reader(positions_class=_SparingPositions), seed=434),
    "other operations overtake re-read ones": WrongDesign(_with_reader(dispatcher_class=_UngatedDispatcher), seed=1755),
}
