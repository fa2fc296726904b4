"""The holds of a reader: tenants with operations that were dropped from memory, to be read again from the stream. Pure.

Why no operation is lost or overtaken (architecture, idea 3): an operation of a held tenant leaves the reader only
through a catch-up. A hold starts before the first of its operations that is not known to be committed. A catch-up ends
its holds only when its next record is also the next one of the main reader.

A Postgres shard that may have lost commits is held as a whole (`Hold.covers_whole_shard`): all operations of all its
tenants, also of those that the reader has not met yet, reach it only through the catch-up of that hold.

A `TenantSet` may contain more tenants than were added, so a tenant may be in several holds. To start a hold at a lower
position is safe: records are only read again, and the log drops the operations that were applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import StrEnum
from typing import Final

from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords, includes, merge
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.stream.positions import Position, RecordPosition, is_after, lowest_position

TENANT_HOLDS_MAX: Final = 1000  # tenants with a hold of their own; the others share the overflow hold
LIVE_TENANTS_MAX: Final = 10_000  # tenants known to be in no hold
NO_SHARD: Final = ""  # in place of the id of a Postgres shard


class Target(StrEnum):
    """What cannot take operations now."""

    SHARD = "shard"  # a Postgres shard
    TENANT = "tenant"
    OVERFLOW = "bucket"  # the tenants beyond TENANT_HOLDS_MAX; the status shows it as `bucket`
    PARENTS = "parents"  # the tenants with operations of a parent (after a reshard) that are pending there
    PREDECESSOR = "predecessor"  # the tenants that the last owner of the lease held


class Reason(StrEnum):
    """Why a target is held, where the reason is not an `Absence` of its shard."""

    SHARD_UNAVAILABLE = "shard_unavailable"
    FAILING = "failing"
    RESHARD = "reshard"
    BACKFILL = "refill"  # a Postgres shard may have lost commits
    TAKEN_OVER = "taken_over"


class Hold:
    """One target and its tenants.

    *before* is the last position before the first operation that is not applied, None for the start of reading;
    *arrived_at* is about when that operation arrived. During a catch-up, the position of the catch-up counts instead.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        reason: str,
        *,
        before: RecordPosition | None,
        arrived_at: datetime,
        now: float,
        tenants: TenantSet | None = None,
    ) -> None:
        self.target = target
        self.name = name
        self.reason = reason
        self.before = before
        self.arrived_at = arrived_at
        self.since = now  # monotonic
        self.tenants = TenantSet() if tenants is None else tenants
        self.sample_tenant = name  # of a shard's hold: one of its tenants
        self.covers_whole_shard = False  # all tenants routed to the Postgres shard, not only those in `tenants`
        self.parent_records: tuple[ParentRecords, ...] = ()  # to be read again first
        self.catch_up: CatchUp | None = None
        self.is_ready = False  # for a catch-up
        self.attempt_count = 0  # probes since the target is held
        self.next_attempt_at = now  # monotonic

    def __repr__(self) -> str:
        state = "catching up" if self.catch_up else "ready" if self.is_ready else "held"
        return f"Hold({self.target} {self.name}, {self.reason}, {state}, before={self.before})"

    @property
    def reached(self) -> RecordPosition | None:
        """The position after which the operations of the hold are still to come, all of them through a catch-up."""
        return self.before if self.catch_up is None else self.catch_up.tracker.last_read

    def has_passed_parent_record(self, stream_shard_id: str, position: Position) -> bool:
        """Return whether the catch-up of the hold has passed a record of a parent."""
        reached = None if self.catch_up is None else self.catch_up.parents_reached.get(stream_shard_id)
        return reached is not None and reached >= position

    def lower(self, before: RecordPosition | None, arrived_at: datetime) -> None:
        """Make the hold start no later than after *before*; it leaves its catch-up, and is no longer ready for one."""
        reached = self.reached
        if self.catch_up is not None and reached is not None:
            self.arrived_at = max(self.arrived_at, reached.arrived_at)
        self.before = lowest_position([reached, before])
        self.arrived_at = min(self.arrived_at, arrived_at)
        self.is_ready = False
        if self.catch_up is not None:
            self.catch_up.holds.remove(self)
            self.catch_up = None


class CatchUp:
    """The progress of one catch-up: the last record it passed (`tracker.last_read`) and its pending operations."""

    def __init__(self, holds: Sequence[Hold]) -> None:
        self.holds = list(holds)
        self.start = lowest_position(hold.before for hold in holds)
        self.is_reading_parents = any(hold.parent_records for hold in holds)  # before its own records
        self.all_parent_records = self.parent_records  # also after they are read
        self.parents_reached: dict[str, Position] = {}  # by parent: the last of its records that was passed
        self.incomplete_tenants = TenantSet()  # tenants with operations that it skipped, or sent and then dropped
        self.whole_shard_ids = {hold.name for hold in holds if hold.covers_whole_shard}  # Postgres shards
        self.unrouted: dict[str, set[int]] = {}  # by tenant: tickets of the operations sent while its shard was unknown
        self.tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(self.start)
        for hold in holds:
            hold.catch_up = self

    def __repr__(self) -> str:
        return f"CatchUp({self.holds}, {self.tracker!r})"

    @property
    def parent_records(self) -> tuple[ParentRecords, ...]:
        """The records to be read again before its own: the same for all its holds, or empty."""
        return self.holds[0].parent_records if self.holds else ()

    def covers(self, tenant_id: str, before: RecordPosition | None, parent_records: tuple[ParentRecords, ...]) -> bool:
        """Return whether it sends, or has sent, a tenant's operations after *before* and, first, *parent_records*."""
        if tenant_id in self.incomplete_tenants or not includes(self.all_parent_records, parent_records):
            return False
        return self.start is None or (before is not None and not is_after(self.start, before))


class Holds:
    """All holds of one reader."""

    def __init__(self) -> None:
        self._holds: dict[tuple[Target, str], Hold] = {}
        self._by_name: dict[str, Hold] = {}  # by tenant: the hold that contains its name
        self._bitmap_holds: list[Hold] = []  # holds with a bitmap of their tenants in place of the names
        self._live_tenants: set[str] = set()  # the main reader has dropped no operation since it began to send theirs
        self._catch_ups: list[CatchUp] = []  # that run, or have ended with pending operations
        self._tenant_count = 0  # holds with the target TENANT
        self._overflow_count = 0
        self._released_count = 0

    def __repr__(self) -> str:
        return f"Holds({list(self._holds.values())})"

    def __len__(self) -> int:
        return len(self._holds)

    def all(self) -> list[Hold]:
        """Return all holds, the oldest first."""
        return list(self._holds.values())

    def hold_of(self, tenant_id: str) -> Hold | None:
        """Return a hold that contains the tenant: the main reader must not send its operations.

        A tenant known to be live is not held: it only shares a slot of a bitmap with a held tenant.
        """
        found = self._by_name.get(tenant_id)
        if found is None and self._bitmap_holds and tenant_id not in self._live_tenants:
            return next((hold for hold in self._bitmap_holds if tenant_id in hold.tenants), None)
        return found

    def needs_lookup(self, tenant_id: str) -> bool:
        """Return whether a tenant is held because it has no shard, and is not being caught up."""
        hold = self.hold_of(tenant_id)
        return hold is not None and hold.target is Target.TENANT and hold.catch_up is None and not hold.is_ready

    def mark_live(self, tenant_ids: AbstractSet[str]) -> None:
        """Record that the main reader sends operations of tenants that are in no hold."""
        if len(self._live_tenants) >= LIVE_TENANTS_MAX:
            self._live_tenants.clear()
        self._live_tenants |= tenant_ids

    def blocking_shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard that is not being caught up: no operation may be sent there."""
        hold = self.shard_hold(shard_id)
        return None if hold is None or hold.catch_up is not None else hold

    def shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard, whether it is being caught up or not."""
        return self._holds.get((Target.SHARD, shard_id)) if self._holds else None

    def is_sent_by(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None = None) -> bool:
        """Return whether *catch_up* sends the operations it reads of a tenant, unless another hold will.

        *shard_id* is the shard of the tenant, None if unknown.
        """
        found = self._by_name.get(tenant_id)
        if found is not None and found.catch_up is catch_up:
            return True
        if any(hold.covers_whole_shard and shard_id in (None, hold.name) for hold in catch_up.holds):
            return True
        return any(hold.catch_up is catch_up and tenant_id in hold.tenants for hold in self._bitmap_holds)

    def is_misrouted(
        self, tracker: CheckpointTracker[RecordPosition], ticket: int, tenant_id: str, shard_id: str
    ) -> bool:
        """Return whether an operation was sent by a catch-up of other Postgres shards than the tenant's.

        A catch-up of whole shards also sends the operations of tenants without a known shard. *shard_id* is the shard
        that was found since. *tracker* identifies the catch-up.
        """
        catch_up = self._catch_up_of(tracker)
        if catch_up is None or ticket not in catch_up.unrouted.get(tenant_id, ()):
            return False
        return shard_id not in catch_up.whole_shard_ids

    def clear_unrouted(self, tenant_id: str) -> None:
        """Record that no operation of the tenant that was sent without a known shard is in memory any more."""
        for catch_up in self._catch_ups:
            catch_up.unrouted.pop(tenant_id, None)

    def is_parent_record_covered_elsewhere(
        self,
        tenant_id: str,
        stream_shard_id: str,
        position: Position,
        catch_up: CatchUp,
        shard_id: str | None = None,
    ) -> bool:
        """Return whether *catch_up* may leave an operation of a parent to another hold, which has yet to reach it.

        A hold that has passed the record has sent the operation, as with own records, or has left it to a third hold
        that had yet to reach it. *shard_id* is the shard of the tenant, None if unknown.
        """
        return any(
            includes(hold.parent_records, catch_up.all_parent_records)
            and not hold.has_passed_parent_record(stream_shard_id, position)
            for hold in self._other_holds(tenant_id, catch_up, shard_id)
            if hold.parent_records
        )

    def is_record_covered_elsewhere(
        self, tenant_id: str, position: RecordPosition, catch_up: CatchUp, shard_id: str | None = None
    ) -> bool:
        """Return whether *catch_up* may leave a tenant's operation to another hold, which has yet to reach it.

        A hold that has passed the record has sent the operation. To send it again is safe then, as all earlier ones
        were sent. *shard_id* is the shard of the tenant, None if unknown.
        """
        return any(is_after(position, hold.reached) for hold in self._other_holds(tenant_id, catch_up, shard_id))

    def _other_holds(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None) -> list[Hold]:
        """Return the holds that contain a tenant, by name or by slot, and to which *catch_up* may leave its operations.

        This excludes another whole-shard hold where *catch_up* covers the whole shard of the tenant and all that the
        other will send: the lane of the tenant's shard drops operations of the other. Otherwise two whole-shard
        catch-ups would each skip the tenant in favour of the other, find the skipped operations in their lanes, and
        restart forever.
        """
        found = [self._by_name.get(tenant_id), *(hold for hold in self._bitmap_holds if tenant_id in hold.tenants)]
        others = [hold for hold in found if hold is not None and hold.catch_up is not catch_up]
        if not others or not any(hold.covers_whole_shard and hold.name == shard_id for hold in catch_up.holds):
            return others
        return [
            one
            for one in others
            if not (one.covers_whole_shard and catch_up.covers(tenant_id, one.reached, one.parent_records))
        ]

    def add_tenant(self, hold: Hold, tenant_id: str) -> None:
        """Add a tenant to a hold, and remove it from the hold that contains its name so far.

        All pending operations of the tenant after the start of *hold* must come through *hold* or through that other
        hold. *hold* is lowered to the other one where that has not come as far.
        """
        self._live_tenants.discard(tenant_id)
        self.clear_unrouted(tenant_id)
        other = self._by_name.get(tenant_id)
        if other is hold:
            return
        if other is not None:
            _lower_to(hold, other)
            other.tenants.discard(tenant_id)
            if not other.tenants and not other.covers_whole_shard:
                self.remove(other)
        names = list(hold.tenants.names)
        hold.tenants.add(tenant_id)
        if hold.tenants.has_names:
            self._by_name[tenant_id] = hold
            return
        self._by_name.pop(tenant_id, None)
        if hold not in self._bitmap_holds:
            self._register_bitmap(hold, names)

    def require_parent_records(
        self, hold: Hold, parent_records: tuple[ParentRecords, ...], tenant_ids: Iterable[str]
    ) -> None:
        """Have *parent_records* read again for *hold*, which contains *tenant_ids*, before its own records.

        Where the bitmap of another hold also contains such a tenant, *hold* is lowered to it. The other hold then
        leaves the later records to *hold*, and no operation of the tenant overtakes the records of the parents.
        """
        hold.parent_records = merge(hold.parent_records, parent_records)
        if not parent_records or not self._bitmap_holds:
            return
        own = set(tenant_ids)
        for other in self._bitmap_holds:
            if other is not hold and any(tenant_id in other.tenants for tenant_id in own):
                _lower_to(hold, other)

    def hold_shard(
        self, shard_id: str, tenants: Iterable[str], before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        """Hold a Postgres shard with the tenants of the operations it did not take, the first one after *before*."""
        hold = self._add_or_lower(Target.SHARD, shard_id, Reason.SHARD_UNAVAILABLE, before, arrived_at, now=now)
        for tenant_id in tenants:
            self.add_tenant(hold, tenant_id)
            hold.sample_tenant = tenant_id
        return hold

    def hold_whole_shard(
        self,
        shard_id: str,
        before: RecordPosition | None,
        arrived_at: datetime,
        *,
        parent_records: tuple[ParentRecords, ...],
        now: float,
    ) -> Hold:
        """Hold all tenants of a Postgres shard. The hold is ready at once, because the shard answers."""
        hold = self._add_or_lower(Target.SHARD, shard_id, Reason.BACKFILL, before, arrived_at, now=now)
        hold.reason = Reason.BACKFILL
        hold.covers_whole_shard = hold.is_ready = True
        hold.parent_records = parent_records
        return hold

    def whole_shard_hold(self, shard_id: str) -> Hold | None:
        """Return the whole-shard hold of a Postgres shard, whether it is being caught up or not."""
        hold = self.shard_hold(shard_id)
        return hold if hold is not None and hold.covers_whole_shard else None

    def whole_shard_hold_of(self, tracker: CheckpointTracker[RecordPosition]) -> Hold | None:
        """Return a whole-shard hold of the running catch-up that *tracker* identifies."""
        catch_up = self._catch_up_of(tracker)
        return None if catch_up is None else next((hold for hold in catch_up.holds if hold.covers_whole_shard), None)

    @property
    def has_whole_shard_hold(self) -> bool:
        """Whether a Postgres shard is held as a whole."""
        return any(hold.covers_whole_shard for hold in self._holds.values())

    @property
    def has_parent_records(self) -> bool:
        """Whether a hold needs records of the parents to be read again first."""
        return any(hold.parent_records for hold in self._holds.values())

    def is_rereading_parents_for(self, shard_id: str) -> bool:
        """Return whether records of parents are to be read again for tenants that live, or may live, on a shard."""
        return any(
            hold.parent_records and (not hold.covers_whole_shard or hold.name == shard_id)
            for hold in self._holds.values()
        )

    def are_waiting_for_parents(self, tenant_ids: AbstractSet[str]) -> bool:
        """Return whether all of *tenant_ids* are held until none of their operations is pending at the parents."""
        hold = self._holds.get((Target.PARENTS, ""))
        return hold is not None and not hold.is_ready and all(tenant_id in hold.tenants for tenant_id in tenant_ids)

    def named_hold_of(self, tenant_id: str) -> Hold | None:
        """Return the hold that contains the name of a tenant."""
        return self._by_name.get(tenant_id)

    def parent_records_of(self, tracker: CheckpointTracker[RecordPosition]) -> tuple[ParentRecords, ...]:
        """Return the records of parents that the catch-up identified by *tracker* is sending now; empty if none."""
        catch_up = self._catch_up_of(tracker)
        if catch_up is None or not catch_up.is_reading_parents:
            return ()
        return catch_up.all_parent_records  # not those of its holds, which may have been restarted without it

    def mark_incomplete(self, tracker: CheckpointTracker[RecordPosition], tenant_id: str) -> None:
        """Record that an operation sent by the catch-up of *tracker* was dropped, and will come through a hold."""
        catch_up = self._catch_up_of(tracker)
        if catch_up is not None:
            catch_up.incomplete_tenants.add(tenant_id)

    def hold_tenant(
        self, tenant_id: str, reason: str, before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        """Hold a tenant: by a hold of its own, or in the overflow hold where TENANT_HOLDS_MAX tenants have theirs."""
        if (Target.TENANT, tenant_id) in self._holds or self._tenant_count < TENANT_HOLDS_MAX:
            hold = self._add_or_lower(Target.TENANT, tenant_id, reason, before, arrived_at, now=now)
            hold.reason = reason
        else:
            hold = self._add_or_lower(Target.OVERFLOW, self._overflow_name(), reason, before, arrived_at, now=now)
        self.add_tenant(hold, tenant_id)
        return hold

    def hold_predecessors(
        self, tenants: TenantSet, before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> None:
        """Hold, from the checkpoint, the tenants that the last owner of the lease held. The hold is ready at once."""
        hold = Hold(
            Target.PREDECESSOR,
            "",
            Reason.TAKEN_OVER,
            before=before,
            arrived_at=arrived_at,
            now=now,
            tenants=tenants,
        )
        hold.is_ready = True
        self._register(hold)

    def hold_parents(
        self, tenants: TenantSet, before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        """Hold, from the first record, the tenants with pending operations at the parents of the stream shard.

        Must be called after `hold_predecessors`: a tenant in both belongs to the parents.
        """
        hold = Hold(Target.PARENTS, "", Reason.RESHARD, before=before, arrived_at=arrived_at, now=now, tenants=tenants)
        self._register(hold)
        return hold

    def release_from_parents(self, pending: TenantSet, *, now: float) -> bool:
        """Make ready the tenants with no operation *pending* at the parents any more; return whether there are any."""
        hold = self._holds.get((Target.PARENTS, ""))
        if hold is None or hold.is_ready:
            return False
        released, kept = hold.tenants.difference(pending), hold.tenants.intersection(pending)
        if not released:
            return False
        self._unregister(hold)
        self._released_count += 1
        for name, tenants in ((str(self._released_count), released), ("", kept)):
            # The parents' records may have been read again since; a tenant of a shard that then failed has another
            # hold.
            for tenant_id in [one for one in tenants.names if one in self._by_name]:
                tenants.discard(tenant_id)
            if tenants:
                part = Hold(
                    Target.PARENTS,
                    name,
                    Reason.RESHARD,
                    before=hold.before,
                    arrived_at=hold.arrived_at,
                    now=now if name else hold.since,
                    tenants=tenants,
                )
                part.is_ready = bool(name)
                self._register(part)
        return True

    def remove(self, hold: Hold) -> None:
        """End a hold."""
        self._unregister(hold)
        if hold.catch_up is not None:
            hold.catch_up.holds.remove(hold)
            hold.catch_up = None

    def start_catch_up(self, holds: Sequence[Hold]) -> CatchUp:
        """Start a catch-up of *holds*."""
        catch_up = CatchUp(holds)
        self._catch_ups.append(catch_up)
        return catch_up

    def attach(self, catch_up: CatchUp, hold: Hold) -> bool:
        """Add a hold to a running catch-up that has not reached its start yet; return whether that was possible.

        A catch-up without holds (all were lowered) is about to end, and takes none.
        """
        reached = catch_up.tracker.last_read
        if not catch_up.holds or catch_up.is_reading_parents or hold.parent_records:
            return False
        if hold.before is None or (reached is not None and is_after(reached, hold.before)):
            return False
        catch_up.holds.append(hold)
        catch_up.whole_shard_ids |= {hold.name} if hold.covers_whole_shard else set()
        hold.catch_up = catch_up
        return True

    def finish(self, catch_up: CatchUp) -> None:
        """End the holds of a catch-up that has reached the main reader: the next record is the next one for both."""
        for hold in list(catch_up.holds):
            self.remove(hold)

    def safe_checkpoint(self, main: RecordPosition | None) -> RecordPosition | None:
        """Return the position up to which no operation is pending, given the position *main* of the main reader."""
        self._forget_finished_catch_ups()
        return lowest_position(
            [
                main,
                *(hold.before for hold in self._holds.values() if hold.catch_up is None),
                *(catch_up.tracker.checkpoint for catch_up in self._catch_ups),
            ]
        )

    def is_settled(self) -> bool:
        """Return whether there is no hold, and no catch-up with a pending operation."""
        self._forget_finished_catch_ups()
        return not self._holds and not self._catch_ups

    def held_tenants(self) -> TenantSet:
        """Return all held tenants."""
        found = TenantSet(self._by_name)
        for hold in self._bitmap_holds:
            found.update(hold.tenants)
        return found

    def _forget_finished_catch_ups(self) -> None:
        self._catch_ups = [one for one in self._catch_ups if one.holds or len(one.tracker)]

    def _catch_up_of(self, tracker: CheckpointTracker[RecordPosition]) -> CatchUp | None:
        """Return the catch-up of a tracker; None for the main reader's tracker, or after the catch-up has finished."""
        return next((catch_up for catch_up in self._catch_ups if catch_up.tracker is tracker), None)

    def _overflow_name(self) -> str:
        """Return the name of the overflow hold that is not being caught up; a new name where each is."""
        name = str(self._overflow_count)
        overflow = self._holds.get((Target.OVERFLOW, name))
        if overflow is not None and overflow.catch_up is not None:
            self._overflow_count += 1
        return str(self._overflow_count)

    def _add_or_lower(
        self, target: Target, name: str, reason: str, before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        hold = self._holds.get((target, name))
        if hold is None:
            hold = Hold(target, name, reason, before=before, arrived_at=arrived_at, now=now)
            self._register(hold)
        else:
            hold.lower(before, arrived_at)
        return hold

    def _register(self, hold: Hold) -> None:
        self._holds[hold.target, hold.name] = hold
        self._tenant_count += hold.target is Target.TENANT
        if hold.tenants.has_names:
            for tenant_id in hold.tenants.names:
                self._by_name[tenant_id] = hold
        else:
            self._register_bitmap(hold, ())

    def _unregister(self, hold: Hold) -> None:
        del self._holds[hold.target, hold.name]
        self._tenant_count -= hold.target is Target.TENANT
        if hold in self._bitmap_holds:
            self._bitmap_holds.remove(hold)
        for tenant_id in hold.tenants.names:
            if self._by_name.get(tenant_id) is hold:
                del self._by_name[tenant_id]

    def _register_bitmap(self, hold: Hold, names: Iterable[str]) -> None:
        self._bitmap_holds.append(hold)
        for tenant_id in names:
            if self._by_name.get(tenant_id) is hold:
                del self._by_name[tenant_id]


def _lower_to(hold: Hold, other: Hold) -> None:
    """Make *hold* start where *other* has come to, if that is earlier. It stays ready for its catch-up."""
    if hold.reached is not None and is_after(hold.reached, other.reached):
        is_ready = hold.is_ready or hold.catch_up is not None
        hold.lower(other.reached, other.arrived_at)
        hold.is_ready = is_ready
