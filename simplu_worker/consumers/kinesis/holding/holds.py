"""What a reader holds: tenants whose operations were dropped from memory, to be read again from the stream. Pure.

Why nothing is lost and nothing overtakes (architecture, idea 3): an operation of a held tenant leaves the reader only
through a catch-up; a hold starts before the first of its operations that is not known to be committed; and a catch-up
ends its holds only when the next record is the next one for both, itself and the main reader.

A Postgres shard that may have lost what was committed there is held as a whole (`Hold.is_whole`): everything of every
tenant that lives on it, whether the reader has met it or not, reaches it through that hold's catch-up alone.

A set of tenants may be larger than what it stands for (`TenantSet`), so a tenant may be in several holds. Starting
lower only reads again: what was applied is dropped by the log.
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

TENANT_HOLDS_MAX: Final = 1000  # tenants held each by itself; those beyond share the bucket
LIVE_TENANTS_MAX: Final = 10_000  # tenants known to be in no hold
NO_SHARD: Final = ""  # in place of a Postgres shard's id


class Target(StrEnum):
    """What cannot take operations now."""

    SHARD = "shard"  # a Postgres shard
    TENANT = "tenant"
    OVERFLOW = "bucket"  # the tenants beyond those that are held each by itself
    PARENTS = "parents"  # what the parents of a reshard still owe
    PREDECESSOR = "predecessor"  # what the last owner of the lease still held


class Reason(StrEnum):
    """Why a target is held, where that is not an `Absence` of its shard."""

    SHARD_UNAVAILABLE = "shard_unavailable"
    FAILING = "failing"
    RESHARD = "reshard"
    BACKFILL = "refill"  # a Postgres shard may have lost what was applied there
    TAKEN_OVER = "taken_over"


class Hold:
    """One target and its tenants.

    *before* is the last position before the first operation that is not applied, None for the start of reading;
    *arrived_at* is about when that operation arrived. While a catch-up is at work, its own position counts instead.
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
        self.sample_tenant = name  # one of its tenants, where it is a shard's
        self.covers_whole_shard = (
            False  # all tenants of a Postgres shard, by their routes, and not only those in `tenants`
        )
        self.parent_records: tuple[ParentRecords, ...] = ()  # what is to be read again before anything else
        self.catch_up: CatchUp | None = None
        self.is_ready = False  # to be caught up
        self.attempt_count = 0  # to find it ready
        self.next_attempt_at = now  # monotonic

    def __repr__(self) -> str:
        state = "catching up" if self.catch_up else "ready" if self.is_ready else "held"
        return f"Hold({self.target} {self.name}, {self.reason}, {state}, before={self.before})"

    @property
    def reached(self) -> RecordPosition | None:
        """The position behind which its operations are still to come: every one of them will be sent from there on."""
        return self.before if self.catch_up is None else self.catch_up.tracker.last_read

    def has_passed_parent_record(self, stream_shard_id: str, position: Position) -> bool:
        """Whether its catch-up has dealt with a record of a parent."""
        at = None if self.catch_up is None else self.catch_up.parents_reached.get(stream_shard_id)
        return at is not None and at >= position

    def lower(self, before: RecordPosition | None, arrived_at: datetime) -> None:
        """Start no later than behind *before*; no catch-up is at work any more, nor is it ready for one."""
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
    """How far one catch-up is: `owed.last` is the last record it dealt with, its tickets are what it sent."""

    def __init__(self, holds: Sequence[Hold]) -> None:
        self.holds = list(holds)
        self.start = lowest_position(hold.before for hold in holds)
        self.is_reading_parents = any(hold.parent_records for hold in holds)  # reads what comes before its own records
        self.all_parent_records = self.parent_records  # which those are, also when they are read
        self.parents_reached: dict[str, Position] = {}  # by parent: the last of its records that was dealt with
        self.incomplete_tenants = TenantSet()  # of whose operations it has sent not all that it read
        self.whole_shard_ids = {hold.name for hold in holds if hold.covers_whole_shard}  # Postgres shards
        self.unrouted: dict[str, set[int]] = {}  # by tenant: tickets of what it sent as nobody knew where that lives
        self.tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(self.start)
        for hold in holds:
            hold.catch_up = self

    def __repr__(self) -> str:
        return f"CatchUp({self.holds}, {self.tracker!r})"

    @property
    def parent_records(self) -> tuple[ParentRecords, ...]:
        """What is to be read again before its own records; all its holds have the same, or none."""
        return self.holds[0].parent_records if self.holds else ()

    def covers(self, tenant_id: str, before: RecordPosition | None, parents: tuple[ParentRecords, ...]) -> bool:
        """Whether it has sent or will send all of a tenant that is behind *before* and, before that, of *parents*."""
        if tenant_id in self.incomplete_tenants or not includes(self.all_parent_records, parents):
            return False
        return self.start is None or (before is not None and not is_after(self.start, before))


class Holds:
    """All holds of one reader."""

    def __init__(self) -> None:
        self._holds: dict[tuple[Target, str], Hold] = {}
        self._by_name: dict[str, Hold] = {}  # by tenant: the hold that has it by name
        self._bitmap_holds: list[Hold] = []  # those whose tenants are no longer known by name
        self._live_tenants: set[str] = (
            set()
        )  # tenants of whom the main reader dropped nothing since it began to send them
        self._catch_ups: list[CatchUp] = []  # those at work, and those that ended while something they sent is owed
        self._tenant_count = 0  # of holds whose target is a tenant
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
        """Return a hold that the tenant is in: nothing of it may leave the main reader.

        One that is known to be live only shares a slot with somebody who is held.
        """
        found = self._by_name.get(tenant_id)
        if found is None and self._bitmap_holds and tenant_id not in self._live_tenants:
            return next((hold for hold in self._bitmap_holds if tenant_id in hold.tenants), None)
        return found

    def mark_live(self, tenant_ids: AbstractSet[str]) -> None:
        """Note that the main reader sends operations of tenants that are in no hold."""
        if len(self._live_tenants) >= LIVE_TENANTS_MAX:
            self._live_tenants.clear()
        self._live_tenants |= tenant_ids

    def blocking_shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard that is not being caught up: nothing new may be sent there."""
        hold = self.shard_hold(shard_id)
        return None if hold is None or hold.catch_up is not None else hold

    def shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard, whether it is being caught up or not."""
        return self._holds.get((Target.SHARD, shard_id)) if self._holds else None

    def is_sent_by(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None = None) -> bool:
        """Whether *catch_up* is to send what it reads of a tenant, unless another hold will.

        *shard_id* is where the tenant lives; None where that is not known.
        """
        found = self._by_name.get(tenant_id)
        if found is not None and found.catch_up is catch_up:
            return True
        if any(hold.covers_whole_shard and shard_id in (None, hold.name) for hold in catch_up.holds):
            return True
        return any(hold.catch_up is catch_up and tenant_id in hold.tenants for hold in self._bitmap_holds)

    def is_misrouted(self, owed: CheckpointTracker[RecordPosition], ticket: int, tenant_id: str, shard_id: str) -> bool:
        """Whether what a catch-up, known by *owed*, has sent of a tenant is none of its business after all.

        It sends for whole Postgres shards, nobody knew where the tenant lives, and now that is found on another one.
        """
        catch_up = self._catch_up_of(owed)
        if catch_up is None or ticket not in catch_up.unrouted.get(tenant_id, ()):
            return False
        return shard_id not in catch_up.whole_shard_ids

    def clear_unrouted(self, tenant_id: str) -> None:
        """Note that nothing of a tenant is in hand of which nobody knows where it is to go."""
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
        """Whether *catch_up* may leave a tenant's operation, of a parent, to another hold, which will come to it.

        One that has passed it has sent it, as with own records, or has left it in turn to one that had not come to it.
        *shard_id* is where the tenant lives; None where that is not known.
        """
        return any(
            includes(hold.parent_records, catch_up.all_parent_records)
            and not hold.has_passed_parent_record(stream_shard_id, position)
            for hold in self._other_holds(tenant_id, catch_up, shard_id)
            if hold.parent_records
        )

    def is_record_covered_elsewhere(
        self, tenant_id: str, mark: RecordPosition, catch_up: CatchUp, shard_id: str | None = None
    ) -> bool:
        """Whether *catch_up* may leave a tenant's operation to another hold, which will come to it.

        One that has passed it already has sent it; once more does no harm then, for everything before it was sent too.
        *shard_id* is where the tenant lives; None where that is not known.
        """
        return any(is_after(mark, hold.reached) for hold in self._other_holds(tenant_id, catch_up, shard_id))

    def _other_holds(self, tenant_id: str, catch_up: CatchUp, shard_id: str | None) -> list[Hold]:
        """Return the holds that have a tenant, perhaps in their slots only, and to which *catch_up* may leave it.

        Not one of another whole shard, where *catch_up* reads for all of the tenant's own, and comes to everything that
        the other will send: that is dropped into this one's lane. Two such would else leave their tenants to each
        other, and each find in its lane what it left, and begin again, for ever.
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
        """Add a tenant to a hold, by which from now on it is held: the one it was in by name, if any, has it no more.

        For a tenant of whose operations none behind the start of *hold* is owed but through it, or through the hold
        that it was in. Where that had not come as far, *hold* begins there.
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

    def require_parent_records(self, hold: Hold, parents: tuple[ParentRecords, ...], tenant_ids: Iterable[str]) -> None:
        """Have *parents* read again for *hold* first, which has *tenant_ids*.

        Where such a tenant is in the slots of another hold too, *hold* begins where that does: it is left what comes
        behind the parents' records then, and nothing of the tenant goes ahead of those.
        """
        hold.parent_records = merge(hold.parent_records, parents)
        if not parents or not self._bitmap_holds:
            return
        own = set(tenant_ids)
        for other in self._bitmap_holds:
            if other is not hold and any(tenant_id in other.tenants for tenant_id in own):
                _lower_to(hold, other)

    def hold_shard(
        self, shard_id: str, tenants: Iterable[str], before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        """Hold a Postgres shard with the tenants of the operations that it did not take, the first behind *before*."""
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
        parents: tuple[ParentRecords, ...],
        now: float,
    ) -> Hold:
        """Hold all tenants of a Postgres shard; it is caught up at once, for the shard answers."""
        hold = self._add_or_lower(Target.SHARD, shard_id, Reason.BACKFILL, before, arrived_at, now=now)
        hold.reason = Reason.BACKFILL
        hold.covers_whole_shard = hold.is_ready = True
        hold.parent_records = parents
        return hold

    def whole_shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard that is held as a whole, whether it is being caught up or not."""
        hold = self.shard_hold(shard_id)
        return hold if hold is not None and hold.covers_whole_shard else None

    def whole_shard_hold_of(self, owed: CheckpointTracker[RecordPosition]) -> Hold | None:
        """Return a hold of a whole Postgres shard for which a catch-up, known by *owed*, is at work."""
        catch_up = self._catch_up_of(owed)
        return None if catch_up is None else next((hold for hold in catch_up.holds if hold.covers_whole_shard), None)

    @property
    def has_whole_shard_hold(self) -> bool:
        """Whether some Postgres shard is held as a whole."""
        return any(hold.covers_whole_shard for hold in self._holds.values())

    @property
    def has_parent_records(self) -> bool:
        """Whether something is held for which records of the parents are to be read again first."""
        return any(hold.parent_records for hold in self._holds.values())

    def is_rereading_parents_for(self, shard_id: str) -> bool:
        """Whether records of the parents are being read again for a Postgres shard, or for some who may live there."""
        return any(
            hold.parent_records and (not hold.covers_whole_shard or hold.name == shard_id)
            for hold in self._holds.values()
        )

    def are_waiting_for_parents(self, tenant_ids: AbstractSet[str]) -> bool:
        """Whether all of *tenant_ids* are held until the parents owe them nothing more."""
        hold = self._holds.get((Target.PARENTS, ""))
        return hold is not None and not hold.is_ready and all(tenant_id in hold.tenants for tenant_id in tenant_ids)

    def named_hold_of(self, tenant_id: str) -> Hold | None:
        """Return the hold that has a tenant by name."""
        return self._by_name.get(tenant_id)

    def parent_records_of(self, owed: CheckpointTracker[RecordPosition]) -> tuple[ParentRecords, ...]:
        """Return what comes before everything else for those to whom a catch-up, known by *owed*, sends it just now."""
        catch_up = self._catch_up_of(owed)
        if catch_up is None or not catch_up.is_reading_parents:
            return ()
        return catch_up.all_parent_records  # not those of its holds, which may have been begun again without it

    def mark_incomplete(self, owed: CheckpointTracker[RecordPosition], tenant_id: str) -> None:
        """Note that an operation which a catch-up, known by *owed*, has sent is to come through a hold instead."""
        catch_up = self._catch_up_of(owed)
        if catch_up is not None:
            catch_up.incomplete_tenants.add(tenant_id)

    def hold_tenant(
        self, tenant_id: str, reason: str, before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        """Hold a tenant; in the bucket, when too many are held already."""
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
        """Hold, from the checkpoint on, what the last owner of the lease still held; it is caught up at once."""
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
        """Hold, from the first record on, what the parents of the stream shard still owe.

        To be called behind `hold_predecessors`, for who is in both is the parents'.
        """
        hold = Hold(Target.PARENTS, "", Reason.RESHARD, before=before, arrived_at=arrived_at, now=now, tenants=tenants)
        self._register(hold)
        return hold

    def release_from_parents(self, owed: TenantSet, *, now: float) -> bool:
        """Make ready what the parents owe no more, now that they owe only *owed*; return whether there is any."""
        hold = self._holds.get((Target.PARENTS, ""))
        if hold is None or hold.is_ready:
            return False
        freed, kept = hold.tenants.difference(owed), hold.tenants.intersection(owed)
        if not freed:
            return False
        self._unregister(hold)
        self._released_count += 1
        for name, tenants in ((str(self._released_count), freed), ("", kept)):
            # What the parents owed may have been read again meanwhile: who waits for its shard with that is held so.
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
        """Begin a catch-up of *holds*."""
        catch_up = CatchUp(holds)
        self._catch_ups.append(catch_up)
        return catch_up

    def attach(self, catch_up: CatchUp, hold: Hold) -> bool:
        """Let a catch-up at work take a hold along, when it has not come to where that begins.

        Not one whose holds have all been lowered: it ends.
        """
        at = catch_up.tracker.last_read
        if not catch_up.holds or catch_up.is_reading_parents or hold.parent_records:
            return False
        if hold.before is None or (at is not None and is_after(at, hold.before)):
            return False
        catch_up.holds.append(hold)
        catch_up.whole_shard_ids |= {hold.name} if hold.covers_whole_shard else set()
        hold.catch_up = catch_up
        return True

    def finish(self, catch_up: CatchUp) -> None:
        """End the holds of a catch-up whose next position is the main reader's: their tenants are live again."""
        for hold in list(catch_up.holds):
            self.remove(hold)

    def safe_checkpoint(self, main: RecordPosition | None) -> RecordPosition | None:
        """Return the position before which nothing is owed, where the main reader owes nothing up to *main*."""
        self._forget_finished_catch_ups()
        return lowest_position(
            [
                main,
                *(hold.before for hold in self._holds.values() if hold.catch_up is None),
                *(catch_up.tracker.checkpoint for catch_up in self._catch_ups),
            ]
        )

    def is_settled(self) -> bool:
        """Whether nothing is held, and nothing that catch-ups sent is owed."""
        self._forget_finished_catch_ups()
        return not self._holds and not self._catch_ups

    def held_tenants(self) -> TenantSet:
        """Return everyone who is held."""
        found = TenantSet(self._by_name)
        for hold in self._bitmap_holds:
            found.update(hold.tenants)
        return found

    def _forget_finished_catch_ups(self) -> None:
        self._catch_ups = [one for one in self._catch_ups if one.holds or len(one.tracker)]

    def _catch_up_of(self, owed: CheckpointTracker[RecordPosition]) -> CatchUp | None:
        """Return the catch-up that owes *owed*; None where that is the main reader, or it has settled."""
        return next((catch_up for catch_up in self._catch_ups if catch_up.tracker is owed), None)

    def _overflow_name(self) -> str:
        """Return the name of the bucket that is not being caught up; a new one when all are."""
        name = str(self._overflow_count)
        bucket = self._holds.get((Target.OVERFLOW, name))
        if bucket is not None and bucket.catch_up is not None:
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
    """Have *hold* begin where *other* has come to, if that is before; it is caught up as soon as it was to be."""
    if hold.reached is not None and is_after(hold.reached, other.reached):
        is_ready = hold.is_ready or hold.catch_up is not None
        hold.lower(other.reached, other.arrived_at)
        hold.is_ready = is_ready
