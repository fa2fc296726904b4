"""Designs that must not be: each leaves out one thing that the worker does, and a simulation has to notice.

A design that overrides nothing is right: `test_wrong_designs.py` notices when a method of the worker gets another name.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace
from simulation.altered import Altered
from simulation.disasters import split
from simulation.kcl_leader import hand_leases_over
from simulation.reshards import replace_replica
from simulation.simulated_shards import SHARD_IDS, PostgresShards, SimulatedGateway
from simulation.simulated_world import FleetMaker, Weather, World
from simulation.wrong_holding import (
    AmnesicOwnership,
    ConfidentOwnership,
    DoneOwnership,
    EarlyProgress,
    FreeingTable,
    HalfTakingTable,
    JoiningOwnership,
    KeepingDispatcher,
    LanelessProgress,
    LateOwnership,
    LetterLastDispatcher,
    ModestOwnership,
    NarrowDispatcher,
    PoliteOwnership,
    PresumptuousTable,
    PromptLookup,
    StartingOwnership,
)
from simulation.wrong_positions import (
    AcquaintedPositions,
    AnyTokenPositions,
    BlindShards,
    ClaimingPositions,
    CountingShards,
    FailurelessPositions,
    FindingPositions,
    GlancingGateway,
    GrandparentlessTree,
    HoardingGateway,
    KeepingShards,
    MixedPositions,
    NeverPositions,
    NoPositions,
    PipeliningPositions,
    RoutedPositions,
    RowlessPositions,
    SelfTrustingPositions,
    StubbornPositions,
    TornShards,
    UncarryingShards,
    WelcomingPositions,
)

from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet, FleetServices, FleetSettings
from simplu_worker.consumers.kinesis.fleet.fleet_report import ReadStatus
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseHolder, LeaseRenewer, LeaseTree
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, Hold, Meeting, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet, Unread
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_rules import child_leases, pending_at_parents
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUpReader, CatchUps, _tenants_of
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher, StreamLane
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.reader.tenant_shares import TenantShares
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderLease, ReaderProgress
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Gap, Lineage, ReplayStart
from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPosition, ShardPositions
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Reply, Stream
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, RecordPosition
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.results import BatchDecided, LookupResult, Paused
from simplu_worker.operations.operation import UNKNOWN_TENANT_MARGIN, Operation, Outcome
from simplu_worker.operations.tries import GiveUp
from simplu_worker.shards.types import PositionClaim, PositionMerge, ShardPositionRows, StoredPositions, StreamPosition
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import HeldTarget, HoldReason

OPEN_AFTER_S = 1.5  # a world is open then


class WrongDesign(msgspec.Struct, frozen=True):
    """How to put a simulation together wrongly. The simulation of *seed* shows it, when this was written."""

    make_fleet: FleetMaker = Fleet
    twist: Callable[[World], None] | None = None
    weather: Weather = Weather.FAIR
    seed: int = 0


class _EagerProgress(ReaderProgress):
    @property
    def checkpoint(self) -> Position | None:
        return None if self.read_to is None else self.read_to.position


class _ForgetfulProgress(ReaderProgress):
    @property
    def checkpoint(self) -> Position | None:
        checkpoint = self.tracker.checkpoint
        return None if checkpoint is None else checkpoint.position


class _RoundingProgress(ReaderProgress):
    @property
    def checkpoint(self) -> Position | None:
        position = self.ownership.floor(self.tracker.checkpoint)
        return None if position is None else replace(position, parts_behind=0).position


class _CarelessProgress(ReaderProgress):
    @property
    def is_finished(self) -> bool:
        return self.is_at_end


class _GullibleAccess(StreamShardAccess):
    def open_parent(self, stream_shard_id: str, hash_range: HashRange | None) -> StreamShardAccess:
        access = super().open_parent(stream_shard_id, hash_range)
        access.stream = copy(access.stream)
        access.stream.__class__ = _StreamOfNamedEnds
        return access


class _StreamOfNamedEnds(Stream):
    async def get_records(self, iterator: str, *, limit: int) -> Reply:
        reply = await super().get_records(iterator, limit=limit)
        is_end = reply.next_iterator is None
        return replace(reply, child_shards=(ChildShard("a child", HashRange(0, 0)),)) if is_end else reply


class _SecretiveProgress(ReaderProgress):
    def pending_tenants(self) -> TenantSet | None:
        pending = super().pending_tenants()
        if pending is None:
            return None
        return pending.difference(TenantSet(hold.name for hold in self.holds() if hold.target is HeldTarget.TENANT))


class _BoastfulProgress(ReaderProgress):
    @property
    def ahead(self) -> ReadAhead | None:
        ahead = super().ahead
        return None if ahead is None or self.read_to is None else replace(ahead, read_to=self.read_to.position)


class _ProudProgress(ReaderProgress):
    def read_up_to(self, ahead: ReadAhead | None) -> datetime | None:
        return None if self.cursor.millis_behind is None else self._fully_read_to()


class _HastyDispatcher(Dispatcher):
    def _owe_letters(self, given_up: Sequence[tuple[QueuedOperation, GiveUp]]) -> None:
        self._finish([entry for entry, _ in given_up])
        for entry, why in given_up:
            self.letters.add([entry.dead_letter(why, failed_at=self._utc())], lambda: None)


class _LooseDispatcher(Dispatcher):
    async def settle(self, lane: StreamLane, batch: BatchDecided[QueuedOperation]) -> None:
        left = [entry for tenant in batch.not_here for entry in lane.take_tenant(tenant)]
        for entries in batch.not_here.values():
            left[:0] = entries[1:]
            del entries[1:]
        await super().settle(lane, batch)
        lane.enqueue(left)


class _SkippingDispatcher(Dispatcher):
    def hold_shard(
        self, shard_id: str, entries: Sequence[QueuedOperation], reason: HoldReason = HoldReason.SHARD_UNAVAILABLE
    ) -> None:
        if reason is HoldReason.INTERNAL_ERROR:
            self._finish(entries)
        else:
            super().hold_shard(shard_id, entries, reason)


class _OldestHeldDispatcher(Dispatcher):
    def hold_newest(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        own = [entry for entry in lane.queued if entry.operation.tenant_id == newest[0].operation.tenant_id]
        super().hold_newest(lane, own[: len(newest)])


class _HeldAtMainDispatcher(Dispatcher):
    def hold_newest(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        tenant_id, arrived_at = newest[0].operation.tenant_id, newest[0].operation.origin.arrived_at
        self._drop(newest)
        reason = HoldReason.OVER_SHARE
        self.make_ready(self.ownership.hold_tenant(tenant_id, reason, [], arrived_at, now=loop_time()))


class _InFlightDroppedDispatcher(Dispatcher):
    def hold_newest(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        super().hold_newest(lane, newest)
        self._drop([one for one in lane.entries() if one.operation.tenant_id == newest[0].operation.tenant_id])


class _ShareOfNothingDispatcher(Dispatcher):
    def make_ready(self, hold: Hold) -> None:
        if not hold.is_paced:
            super().make_ready(hold)


class _ByLocationDispatcher(Dispatcher):
    def send(self, entries: Sequence[QueuedOperation]) -> None:
        own = [replace(one.operation, business_id=one.operation.tenant_id) for one in entries]
        super().send([replace(one, operation=operation) for one, operation in zip(entries, own, strict=True)])


class _RoomyDispatcher(Dispatcher):
    def _has_room(self, *_: object) -> bool:
        return True


class _WaitingShares(TenantShares):
    def _find_latest(self) -> StreamLane | None:
        return None


class _PatientDispatcher(Dispatcher):
    async def on_home(self, answer: LookupResult[QueuedOperation]) -> None:
        if not isinstance(answer, Paused):
            await super().on_home(answer)


class _TwiceReadingCatchUp(CatchUpReader):
    def _may_send(self, tenant_id: str, in_memory: dict[str, list[QueuedOperation]]) -> bool:
        owner = self._dispatcher.ownership.owner_of(tenant_id)
        return (owner is not None and owner.is_paced) or super()._may_send(tenant_id, in_memory)


class _TrustingRenewer(LeaseRenewer):
    async def release(self, *, is_ended: bool = False, is_unchanged: bool = False) -> None:
        await super().release(is_ended=is_ended)


class _TrustingFleet(Fleet):
    def create_holder(self, lease: Lease) -> LeaseHolder:
        holder = super().create_holder(lease)
        holder.renewer.__class__ = _TrustingRenewer
        return holder


class _UngatedDispatcher(Dispatcher):
    def _admit_beside_backfill(
        self, lane: StreamLane, hold: Hold, entries: Sequence[QueuedOperation]
    ) -> Sequence[QueuedOperation]:
        return entries


class _ParentlessOwnership(Ownership):
    def split(self, tenant_id: str, hold: Hold, in_memory: Iterable[Unread], arrived_at: datetime) -> None:
        super().split(tenant_id, hold, [Unread(unread.after) for unread in in_memory], arrived_at)


class _GreedyOwnership(Ownership):
    def meet_resident(self, tenant_id: str, backfill: Hold, in_memory: Iterable[Unread]) -> Meeting:
        meeting = super().meet_resident(tenant_id, backfill, in_memory)
        if meeting is Meeting.LEFT and self.owner_of(tenant_id) is not backfill:
            self._assign(tenant_id, backfill)
            return Meeting.TAKEN
        return meeting


class _SteadyOwnership(Ownership):
    def open_shard_hold(self, shard_id: str, arrived_at: datetime, *, lacks: Unread | None = None, now: float) -> Hold:
        hold = self.shard_hold(shard_id)
        if lacks is not None and hold is not None and hold.is_backfill:
            return hold
        return super().open_shard_hold(shard_id, arrived_at, lacks=lacks, now=now)


class _NarrowCatchUp(CatchUpReader):
    def _backfills(self) -> list[Hold]:
        return []


class _RoutedCatchUp(CatchUpReader):
    async def _ask_for_residents(self, decoded: Iterable[DecodedRecord], ending: asyncio.Event) -> bool:
        for hold in self._backfills():
            answers = self._residents.setdefault(hold.name, {})
            for one in _tenants_of(decoded):
                answers[one] = self._gateway.cached_shard_id(one) == hold.name
        return True


class _HastyCatchUp(CatchUpReader):
    async def _ask_for_residents(self, decoded: Iterable[DecodedRecord], ending: asyncio.Event) -> bool:
        unknown = [self._residents.setdefault(hold.name, {}) for hold in self._backfills()]
        for answers in unknown:
            answers.update(dict.fromkeys(_tenants_of(decoded) - answers.keys(), False))
        self._send_decoded(deque(decoded))
        for answers in unknown:
            answers.clear()
        return await super()._ask_for_residents(decoded, ending)


class _SettledPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        return await super().reconcile_with(shard_position, lineage, replace(stored, last_move_age_s=None))


class _UnwaryPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        return await super().reconcile_with(shard_position, lineage, replace(stored, move_token=None))


class _CreditingPositions(ShardPositions):
    async def _has_all_from(self, merge: PositionMerge) -> bool:
        return True


class _SourcelessPositions(ShardPositions):
    async def _has_all_from(self, merge: PositionMerge) -> bool:
        return merge.carried_token in self.position_on(merge.source_shard_id).claim.written


class _TokenlessPositions(ShardPositions):
    async def _has_all_from(self, merge: PositionMerge) -> bool:
        claim = self.position_on(merge.source_shard_id).claim
        stored = await self._gateway.positions.read_positions(
            merge.source_shard_id, claim.stream, [claim.stream_shard_id]
        )
        row = None if stored is None else stored.rows.get(claim.stream_shard_id)
        return row is not None and row.fencing_token in claim.fencing_tokens


class _EndlessPositions(ShardPositions):
    def prepare_claim(self, shard_position: ShardPosition) -> PositionClaim:
        shard_position.era = self._era  # no row was adopted
        return super().prepare_claim(shard_position)


class _ForwardPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        unread = await super().reconcile_with(shard_position, lineage, stored)
        return None if unread is None else replace(unread, after=_safe_checkpoint(self))


class _LowPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        self._progress = Altered.of(self._progress, read_to=lambda _: _safe_checkpoint(self))
        return await super().reconcile_with(shard_position, lineage, stored)


class _RashPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        unread = await super().reconcile_with(shard_position, lineage, stored)
        shard_position.claim.position = replace(shard_position.claim.position, parents_done=True)
        return unread


class _ContentPositions(ShardPositions):
    def invalidate_parent_rows(self) -> list[ShardPosition]:
        return []


class _BlindPositions(ShardPositions):
    async def _find_gap(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions, behind: ReplayStart
    ) -> Gap | None:
        return None


class _ForgetfulPositions(ShardPositions):
    async def _mark_gap(self, shard_id: str, gap: Gap) -> None:
        return


class _AgelessPositions(ShardPositions):
    async def _find_gap(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions, behind: ReplayStart
    ) -> Gap | None:
        self._progress = Altered.of(self._progress, retention=lambda _: None)
        return await super()._find_gap(shard_position, lineage, stored, behind)


class _AloofPositions(ShardPositions):
    async def _has_own_left(
        self, row: StreamPosition, behind: ReplayStart, is_old: Callable[[StreamPosition], bool], *, was_read: bool
    ) -> bool:
        return await super()._has_own_left(row, behind, is_old, was_read=True)


def _safe_checkpoint(positions: ShardPositions) -> RecordPosition | None:
    ownership = positions._ownership
    return ownership.floor(ownership._main.checkpoint)


class _NoPositionSync(PositionSync):
    async def run(self, stopping: asyncio.Event) -> None: ...


class _SafeShards(PostgresShards):
    def fail_over(self, shard_id: str, lost_count: int) -> None: ...


class _SlackOwnership(Ownership):
    def owner_of(self, tenant_id: str) -> Hold | None:
        hold = super().owner_of(tenant_id)
        return hold if hold is None or hold.is_waiting else None


class _TardyOwnership(Ownership):
    def split(self, tenant_id: str, hold: Hold, in_memory: Iterable[Unread], arrived_at: datetime) -> None:
        if hold.tenants:
            self._assign(tenant_id, hold)
        else:
            super().split(tenant_id, hold, in_memory, arrived_at)


class _LaggardCatchUps(CatchUps):
    def _start_ready(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        begun_before = len(self.running)
        super()._start_ready(tasks, ending)
        for one in self.running[begun_before:]:
            one._progress = Altered.of(one._progress, read_to=lambda progress: progress.tracker.checkpoint)


class _OneParentTree(LeaseTree):
    async def create_children(self, lease_key: str, child_shards: Sequence[ChildShard]) -> None:
        for child in child_leases(child_shards):
            await self._table.create(child)


class _CredulousCursor(Cursor):
    def _detect_end(self, reply: Reply) -> bool:
        return reply.next_iterator is None


class _CredulousHolder(LeaseHolder):
    async def is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        return await super().is_end(child_shards) if child_shards else True


class _CredulousFleet(Fleet):
    def create_holder(self, lease: Lease) -> LeaseHolder:
        holder = super().create_holder(lease)
        holder.__class__ = _CredulousHolder
        return holder

    def create_reader(self, lease: Lease, pending: TenantSet, held: ReaderLease) -> StreamShardReader:
        reader = super().create_reader(lease, pending, held)
        reader.cursor.__class__ = _CredulousCursor
        return reader


class _HopefulTree(LeaseTree):
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        pending = await super().find_pending_at_parents(lease)
        return None if pending is None else TenantSet()


class _OrphanTree(LeaseTree):
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        return TenantSet()


class _TrustingTree(LeaseTree):
    async def find_pending_at_parents(self, lease: Lease) -> TenantSet | None:
        pending = pending_at_parents(lease, self._view.leases, self._view.gone)
        return None if self.unfinished_parents(lease) else TenantSet.decode(pending)


class _FatherlessTree(LeaseTree):
    def lineage(self, lease: Lease) -> Lineage:
        return Lineage()


class _NamelessTable(LeaseTable):
    def _held_condition(self, lease: Lease) -> str:
        return "attribute_exists(leaseKey)"

    async def renew(self, lease: Lease, me: str, *arguments: Any, **more: Any) -> Lease | None:
        return await super().renew(lease, lease.owner or me, *arguments, **more)


def _with_table(table_class: type[LeaseTable]) -> FleetMaker:
    def make_fleet(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
        services.table.__class__ = table_class
        return Fleet(services, settings, **more)

    return make_fleet


def _with_gateway(gateway_class: type[SimulatedGateway]) -> FleetMaker:
    def make_fleet(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
        services.gateway.__class__ = gateway_class
        return Fleet(services, settings, **more)

    return make_fleet


def _with_tree(tree_class: type[LeaseTree]) -> FleetMaker:
    def make_fleet(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
        fleet = Fleet(services, settings, **more)
        fleet._tree.__class__ = tree_class
        return fleet

    return make_fleet


def _without_position_sync(services: FleetServices, settings: FleetSettings, **more: Any) -> Fleet:
    fleet = Fleet(services, settings, **more)
    fleet._position_sync.__class__ = _NoPositionSync
    return fleet


def _with_reader(
    progress_class: type[ReaderProgress] = ReaderProgress,
    dispatcher_class: type[Dispatcher] = Dispatcher,
    ownership_class: type[Ownership] = Ownership,
    catch_ups_class: type[CatchUps] = CatchUps,
    catch_up_class: type[CatchUpReader] = CatchUpReader,
    positions_class: type[ShardPositions] = ShardPositions,
    lookup_class: type[HomeLookup[QueuedOperation]] = HomeLookup,
    access_class: type[StreamShardAccess] = StreamShardAccess,
    shares_class: type[TenantShares] = TenantShares,
) -> FleetMaker:
    class WrongFleet(Fleet):
        def create_reader(self, lease: Lease, pending: TenantSet, held: ReaderLease) -> StreamShardReader:
            reader = super().create_reader(lease, pending, held)
            reader.progress.__class__ = progress_class
            reader._access.__class__ = access_class
            reader._dispatcher.__class__ = dispatcher_class
            reader._dispatcher.ownership.__class__ = ownership_class
            reader._dispatcher.pipeline.lookup.__class__ = lookup_class
            reader._catch_ups.__class__ = catch_ups_class
            reader._catch_ups._create_reader = partial(  # type: ignore[method-assign]
                _create_as, catch_up_class, reader._catch_ups._create_reader
            )
            reader.shard_positions.__class__ = positions_class
            reader._shares.__class__ = shares_class
            return reader

    return WrongFleet


def _without_rows(
    progress_class: type[ReaderProgress] = ReaderProgress, positions_class: type[NoPositions] = NoPositions
) -> FleetMaker:
    return _with_reader(progress_class, positions_class=positions_class)


def _create_as(
    catch_up_class: type[CatchUpReader], create: Callable[[CatchUp], CatchUpReader], catch_up: CatchUp
) -> CatchUpReader:
    reader = create(catch_up)
    reader.__class__ = catch_up_class
    return reader


def _take_whatever_the_counter(world: World) -> None:
    world.dynamodb.unconditional_updates = frozenset({"ADD ownerSwitchesSinceCheckpoint"})


def _log_nothing(world: World) -> None:
    world.shards.is_deduplicating = False


def _lose_nothing(world: World) -> None:
    world.shards.__class__ = _SafeShards


def _admit_late(world: World) -> None:
    world.shards._tenant_wait = timedelta(days=1)


def _set_clocks_apart(world: World) -> None:
    if world.plan.initial_position != "LATEST":  # by which records are skipped that came before a clock
        world.plan = replace(world.plan, skew_max_s=2 * UNKNOWN_TENANT_MARGIN.total_seconds())


def _kill_after_giving_up(world: World) -> None:
    world.plan = replace(world.plan, has_poison=True)
    give_up = world.shards.give_up

    def fatal(shard_id: str, operation: Operation, claim: PositionClaim | None = None) -> Outcome:
        outcome = give_up(shard_id, operation, claim)
        after_s = world.draws.uniform(0.0, 0.05)
        world.loop.call_later(after_s, replace_replica, world, context=contextvars.Context())
        return outcome

    world.shards.give_up = fatal  # type: ignore[method-assign]


def _with_shards(shards_class: type[PostgresShards]) -> Callable[[World], None]:
    def twist(world: World) -> None:
        world.shards.__class__ = shards_class

    return twist


def _lose_all_behind_splits(world: World) -> None:
    draws, splits_at = world.draws, world.draws.uniform(0.3, 0.7) * world.plan.trouble_s

    def lose() -> None:
        for shard_id in SHARD_IDS:
            world.shards.fail_over(shard_id, 1000)
        world.kinesis.false_ends = 0.4

    world.loop.call_later(splits_at - 0.1, lambda: setattr(world.network.trouble, "stale", 0.9))
    for split_at in (splits_at, splits_at + draws.uniform(0.1, 1.0)):
        world.loop.call_later(split_at, split, world)
    world.loop.call_later(splits_at + draws.uniform(1.0, 3.0), lose)


def _move_after_a_loss(world: World) -> None:
    first, second = SHARD_IDS
    tenants = list(world.shards.tenants.values())
    for tenant in tenants:
        tenant.shard_id = first

    def move() -> None:
        world.shards.fail_over(first, 1000)
        for tenant in tenants[::2]:
            world.shards.fence(tenant)
            world.shards.move(tenant, second)

    world.loop.call_later(world.draws.uniform(OPEN_AFTER_S, world.plan.trouble_s), move)


def _ask_leases_alone(world: World) -> None:
    def read_up_to(status: ReadStatus, _: ShardPositionRows) -> datetime | None:
        instants = [lease.read_up_to for lease in status.readings or ()]
        known = [instant for instant in instants if instant is not None]
        return min(known) if known and len(known) == len(instants) else None

    world.read_up_to = read_up_to


WRONG_DESIGNS = {
    "the checkpoint is the last record read": WrongDesign(_with_reader(_EagerProgress)),
    "a checkpoint within a record of several operations is that of the record": WrongDesign(
        _with_reader(_RoundingProgress), weather=Weather.MOVES, seed=0
    ),
    "SHARD_END is written at the end of reading": WrongDesign(_with_reader(_CarelessProgress), seed=1),
    "the checkpoint ignores holds": WrongDesign(_with_reader(_ForgetfulProgress)),
    "read up to a time is what is not decided": WrongDesign(_with_reader(_ProudProgress), seed=7),
    "a shard that lost operations has what the lease table says": WrongDesign(twist=_ask_leases_alone, seed=51),
    "a record is finished before its dead letter is stored": WrongDesign(
        _with_reader(dispatcher_class=_HastyDispatcher), seed=26
    ),
    "one operation waits and not those behind it": WrongDesign(
        _with_reader(dispatcher_class=_LooseDispatcher), seed=78
    ),
    "a hold is not sticky": WrongDesign(_with_reader(ownership_class=_SlackOwnership), seed=1),
    "a hold is not lowered": WrongDesign(_with_reader(ownership_class=_TardyOwnership), seed=5),
    "a catch-up ends where all is applied, not dispatched": WrongDesign(
        _with_reader(catch_ups_class=_LaggardCatchUps), weather=Weather.MOVES, seed=0
    ),
    # The next owner, or the children, would notice by the rows, where a shard has all of them.
    "the next owner starts where the last one read, not where it had applied": WrongDesign(
        _without_rows(_BoastfulProgress), _lose_nothing, seed=81
    ),
    "the list of pending tenants leaves out the unregistered": WrongDesign(
        _without_rows(_SecretiveProgress), _lose_nothing, seed=598
    ),
    "children do not hold the tenants pending at their parents": WrongDesign(_with_tree(_HopefulTree), seed=111),
    "every reply without an iterator is the end": WrongDesign(_CredulousFleet, seed=34),
    "every reply without an iterator is the end of a parent": WrongDesign(
        _with_reader(access_class=_GullibleAccess), _lose_all_behind_splits, seed=4
    ),
    "the child of a merge has its lease from one parent": WrongDesign(
        _with_tree(_OneParentTree), weather=Weather.RESHARDS, seed=647
    ),
    "children do not wait for their parents": WrongDesign(_with_tree(_OrphanTree), seed=14),
    "a lease that a scan does not show does not exist": WrongDesign(_with_tree(_TrustingTree), seed=175),
    "a take ignores the counter": WrongDesign(twist=_take_whatever_the_counter, seed=3),
    "a renewal expects the counter alone, and knows itself by the owner in the row": WrongDesign(
        _with_table(_NamelessTable), hand_leases_over, seed=25
    ),
    "the log does not drop operations that were applied": WrongDesign(twist=_log_nothing),
    "rows are neither read nor written": WrongDesign(_without_rows(), weather=Weather.FEEDS, seed=0),
    "the rows of idle shards are not kept fresh": WrongDesign(_without_position_sync, seed=51),
    "a backfill reads only for tenants known by name": WrongDesign(
        _with_reader(catch_up_class=_NarrowCatchUp), seed=51
    ),
    "a backfill goes by remembered routes": WrongDesign(_with_reader(catch_up_class=_RoutedCatchUp), seed=417),
    "a backfill goes on while it asks": WrongDesign(_with_reader(catch_up_class=_HastyCatchUp), seed=51),
    "a backfill takes tenants from an owner that is behind it": WrongDesign(
        _with_reader(ownership_class=_GreedyOwnership), seed=5
    ),
    "a backfill that loses again goes on where it is": WrongDesign(
        _with_reader(ownership_class=_SteadyOwnership), weather=Weather.FEEDS, seed=0
    ),
    "rows are not read again when tenants are released from the parents": WrongDesign(
        _with_reader(positions_class=_ContentPositions), _lose_all_behind_splits, seed=188
    ),
    "dropped operations of parents are read again as own ones": WrongDesign(
        _with_reader(ownership_class=_ParentlessOwnership), _lose_all_behind_splits, seed=56
    ),
    "a backfill starts at the reader's checkpoint": WrongDesign(
        _with_reader(positions_class=_ForwardPositions), seed=51
    ),
    "a row is compared with the reader's checkpoint": WrongDesign(_with_reader(positions_class=_LowPositions), seed=77),
    "children do not read their parents' records again": WrongDesign(_with_tree(_FatherlessTree), seed=172),
    "the parents are noted as done when re-reading them starts": WrongDesign(
        _with_reader(positions_class=_RashPositions), weather=Weather.RESHARDS, seed=11
    ),
    "lost operations of a moved tenant are looked for on its old shard": WrongDesign(
        _with_reader(positions_class=_SettledPositions), twist=_move_after_a_loss, seed=113
    ),
    "a reader makes its row though a tenant was moved in since it found none": WrongDesign(
        _with_reader(positions_class=_UnwaryPositions), _move_after_a_loss, weather=Weather.RESHARDS, seed=61
    ),
    "a reader follows a move though the source has lost operations": WrongDesign(
        _with_reader(positions_class=_CreditingPositions), weather=Weather.MOVES, seed=3
    ),
    "a reader follows a move without a look at the source": WrongDesign(
        _with_reader(positions_class=_SourcelessPositions), weather=Weather.MOVES, seed=684
    ),
    "a reader follows a move from any token of the source": WrongDesign(
        _with_reader(positions_class=_TokenlessPositions), weather=Weather.FEEDS, seed=29
    ),
    "a reader follows a move from a token that is older than a loss": WrongDesign(
        _with_reader(positions_class=_EndlessPositions), weather=Weather.FEEDS, seed=29
    ),
    "a lane skips its operations after an error that nobody foresaw": WrongDesign(
        _with_reader(dispatcher_class=_SkippingDispatcher), weather=Weather.DEFECTS, seed=80
    ),
    "the oldest operations of a tenant over its share leave memory": WrongDesign(
        _with_reader(dispatcher_class=_OldestHeldDispatcher), seed=153
    ),
    "a hold for a share begins at the main reader": WrongDesign(
        _with_reader(dispatcher_class=_HeldAtMainDispatcher), seed=5
    ),
    "a hold for a share forgets what is in flight": WrongDesign(
        _with_reader(dispatcher_class=_InFlightDroppedDispatcher), seed=5
    ),
    "a tenant over its share is never read again": WrongDesign(
        _with_reader(dispatcher_class=_ShareOfNothingDispatcher), seed=5
    ),
    "other operations overtake re-read ones": WrongDesign(
        _with_reader(dispatcher_class=_UngatedDispatcher), weather=Weather.MOVES, seed=0
    ),
}

# By `test_fair_shares.py`: nothing is lost, but others wait.
WRONG_ABOUT_SHARES = {
    "the share is by location": WrongDesign(_with_reader(dispatcher_class=_ByLocationDispatcher)),
    "a reader waits for a lane of a shard that is behind": WrongDesign(_with_reader(shares_class=_WaitingShares)),
    "a reader waits for dead letters": WrongDesign(_with_reader(dispatcher_class=_RoomyDispatcher)),
}

# Of these `noticed.json` has the seeds (`noticing.py`), and `.ci/nightly` runs them.
MORE_WRONG_DESIGNS = {
    # Seed 820 showed it until the checkpoint tracker kept sets of tickets; none up to 1,200 does now.
    "a reader that failed by a defect writes its checkpoint": WrongDesign(_TrustingFleet, weather=Weather.DEFECTS),
    # Lanes and dead letters
    "two batches of a lane are in flight": WrongDesign(
        _without_rows(positions_class=PipeliningPositions), _lose_nothing
    ),
    "an operation that is given up leaves no row": WrongDesign(_with_reader(positions_class=FailurelessPositions)),
    "the row of an operation that is given up comes before its dead letter": WrongDesign(
        _with_reader(dispatcher_class=LetterLastDispatcher), _kill_after_giving_up
    ),
    "an operation that may be a dead letter is applied once its tenant is registered": WrongDesign(twist=_admit_late),
    "a dead letter of an unknown tenant has no margin": WrongDesign(_with_reader(lookup_class=PromptLookup)),
    "clocks are further apart than the margin of a dead letter": WrongDesign(twist=_set_clocks_apart),
    # Holds and catch-ups
    "a hold forgets what its catch-up has sent": WrongDesign(_with_reader(ownership_class=AmnesicOwnership)),
    "a hold begins at the main reader": WrongDesign(_with_reader(ownership_class=StartingOwnership)),
    "a hold joins a catch-up that has passed it": WrongDesign(_with_reader(ownership_class=JoiningOwnership)),
    "a backfill takes no tenant from another hold": WrongDesign(
        _with_reader(ownership_class=ModestOwnership), weather=Weather.MOVES
    ),
    "a backfill takes tenants of which it has passed operations": WrongDesign(
        _with_reader(ownership_class=LateOwnership), weather=Weather.MOVES
    ),
    "a tenant of which neither hold comes to all is left as it is": WrongDesign(
        _with_reader(ownership_class=PoliteOwnership), weather=Weather.MOVES
    ),
    "a tenant of which neither hold comes to all is read again from its own operations on": WrongDesign(
        _with_reader(dispatcher_class=NarrowDispatcher), weather=Weather.MOVES
    ),
    "operations of a tenant stay in their lane when a catch-up comes to them": WrongDesign(
        _with_reader(dispatcher_class=KeepingDispatcher), weather=Weather.MOVES
    ),
    "two catch-ups read for a tenant over its share": WrongDesign(
        _with_reader(catch_up_class=_TwiceReadingCatchUp), weather=Weather.RESHARDS
    ),
    # Reshards
    "the list of pending tenants leaves out those in lanes": WrongDesign(
        _with_reader(LanelessProgress), weather=Weather.RESHARDS
    ),
    "the list of pending tenants is made before the end of reading": WrongDesign(
        _with_reader(EarlyProgress), weather=Weather.RESHARDS
    ),
    "children leave to their parents what is listed there": WrongDesign(
        _with_reader(ownership_class=ConfidentOwnership), weather=Weather.RESHARDS
    ),
    "the parents are noted as done at their end": WrongDesign(
        _with_reader(ownership_class=DoneOwnership), weather=Weather.RESHARDS
    ),
    "children do not read their grandparents' records again": WrongDesign(
        _with_tree(GrandparentlessTree), weather=Weather.RESHARDS
    ),
    "children read the rows of their parents and do not write their own": WrongDesign(
        _with_gateway(GlancingGateway), weather=Weather.RESHARDS
    ),
    # Leases
    "a worker takes the owner in its copy of a lease for itself": WrongDesign(
        _with_table(PresumptuousTable), hand_leases_over
    ),
    "a hand-over frees the lease": WrongDesign(_with_table(FreeingTable), hand_leases_over),
    "a take leaves the checkpoint owner": WrongDesign(_with_table(HalfTakingTable), hand_leases_over),
    # Positions
    "what a shard has lost is not read again": WrongDesign(
        _with_reader(positions_class=NeverPositions), weather=Weather.MOVES
    ),
    "a reader trusts the row that it finds first": WrongDesign(
        _with_reader(positions_class=WelcomingPositions), weather=Weather.STORM
    ),
    "a shard without a row lacks nothing": WrongDesign(
        _with_reader(positions_class=RowlessPositions), weather=Weather.RESHARDS
    ),
    "a row leaves out tenants without a shard": WrongDesign(
        _with_reader(positions_class=RoutedPositions), weather=Weather.MOVES
    ),
    "a row has what is read": WrongDesign(_with_reader(positions_class=ClaimingPositions), weather=Weather.MOVES),
    "a row keeps its content when another row is adopted": WrongDesign(
        _with_reader(positions_class=StubbornPositions), weather=Weather.MOVES
    ),
    "the held tenants of a row are those of a second ago": WrongDesign(
        _with_reader(positions_class=MixedPositions), weather=Weather.MOVES
    ),
    "a row names only the held tenants that the reader has seen": WrongDesign(
        _with_reader(positions_class=AcquaintedPositions), weather=Weather.RESHARDS
    ),
    "a batch is applied whatever token its row has": WrongDesign(
        twist=_with_shards(BlindShards), weather=Weather.MOVES
    ),
    "the token of a row is a counter": WrongDesign(twist=_with_shards(CountingShards), weather=Weather.MOVES),
    "tokens of unknown outcomes are kept for ever": WrongDesign(_with_gateway(HoardingGateway), weather=Weather.MOVES),
    "a row is written in a transaction before that of its batch": WrongDesign(
        twist=_with_shards(TornShards), weather=Weather.MOVES
    ),
    # Moves
    "positions stay behind when a tenant moves": WrongDesign(
        twist=_with_shards(UncarryingShards), weather=Weather.MOVES
    ),
    "a row stays when a tenant comes from a shard without one": WrongDesign(
        twist=_with_shards(KeepingShards), weather=Weather.MOVES
    ),
    "a reader follows a move from any row of the target": WrongDesign(
        _with_reader(positions_class=AnyTokenPositions), weather=Weather.MOVES
    ),
    "a reader follows a move from a token that it has found": WrongDesign(
        _with_reader(positions_class=FindingPositions), weather=Weather.MOVES
    ),
}

# A simulation has records that expire only where it is about that (`test_gaps.py`).
WRONG_ABOUT_GAPS = {
    "a shard goes on over a gap": _with_reader(positions_class=_BlindPositions),
    "a gap is known to the reader alone that found it": _with_reader(positions_class=_ForgetfulPositions),
    "a row that has left the stream is a gap, however new it is": _with_reader(positions_class=_AgelessPositions),
    "a fleet that was stopped has gaps": _with_reader(positions_class=_AloofPositions),
    "what a reader has read itself proves that its fleet was not stopped": _with_reader(
        positions_class=SelfTrustingPositions
    ),
}
ENDLESS_PAUSES = _with_reader(dispatcher_class=_PatientDispatcher)
