"""The checkpoint, holds, what is still to be read for them, and which cursor sends the operations of a tenant. Pure.

Records are numbered in the order of reading (their tickets) and finish in any order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import Enum, auto
from typing import Final, Generic, TypeVar

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet, Unread, union
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position, RecordPosition, lowest_position
from simplu_worker.vocabulary import HeldTarget, HoldReason, HoldState

P = TypeVar("P")


class _Run(Generic[P]):
    """Records that were read together, some of them pending."""

    __slots__ = ("before", "pending", "positions", "tickets")

    def __init__(self, tickets: range, before: P | None, positions: Sequence[P | None]) -> None:
        self.tickets = tickets
        self.before = before
        self.positions = positions
        self.pending = set(tickets)

    @property
    def first_pending(self) -> int:
        return min(self.pending)

    def position_before(self, ticket: int) -> P | None:
        index = ticket - self.tickets.start
        return self.positions[index - 1] if index else self.before


class CheckpointTracker(Generic[P]):
    """The pending records of one stream shard, by ticket; *P* is the type of a position."""

    def __init__(self, last: P | None = None) -> None:
        """*last* is the position before the first record, None if there is none."""
        self._runs: list[_Run[P]] = []
        self._first_tickets: list[int] = []  # of the runs, for bisection
        self._last_read = last
        self._next_ticket = 0

    def __len__(self) -> int:
        """Return the number of pending records."""
        return sum(len(run.pending) for run in self._runs)

    @property
    def checkpoint(self) -> P | None:
        """The last position up to which no record is pending; None before there is one."""
        return self._runs[0].position_before(self._runs[0].first_pending) if self._runs else self._last_read

    @property
    def first_pending(self) -> P | None:
        """The position of the first pending record; None without one."""
        if not self._runs:
            return None
        return self._runs[0].positions[self._runs[0].first_pending - self._runs[0].tickets.start]

    @property
    def first_pending_ticket(self) -> int | None:
        """The ticket of the first pending record; None without one."""
        return self._runs[0].first_pending if self._runs else None

    @property
    def next_ticket(self) -> int:
        """The ticket of the next record."""
        return self._next_ticket

    @property
    def last_read(self) -> P | None:
        """The position of the last record that was started or skipped."""
        return self._last_read

    def position_before(self, ticket: int) -> P | None:
        """Return the last position before a pending record. Raises KeyError where its run has none pending."""
        return self._runs[self._run_index(ticket)].position_before(ticket)

    def skip(self, position: P) -> None:
        """Record that the record at *position* was read and is not pending here."""
        self._last_read = position

    def rewind(self, position: P | None) -> None:
        """Have all pending records, which were started at the last position, at *position*."""
        self._last_read = position
        for run in self._runs:
            run.before, run.positions = position, [position] * len(run.positions)

    def start(self, position: P) -> int:
        """Add a pending record at *position*; return its ticket."""
        return self.start_all([position]).start

    def start_all(self, positions: Sequence[P]) -> range:
        """Add pending records at *positions*, in this order; return their tickets."""
        if not positions:
            return range(self._next_ticket, self._next_ticket)
        tickets = self._add_run(positions)
        self._last_read = positions[-1]
        return tickets

    def start_at_last(self) -> int:
        """Add a pending record at the last position; return its ticket."""
        return self._add_run([self._last_read]).start

    def finish(self, tickets: Iterable[int]) -> None:
        """Finish the records of *tickets*. Raises KeyError if one is finished."""
        left = set(tickets)
        while left:
            ticket = next(iter(left))
            run_index = self._run_index(ticket)
            run = self._runs[run_index]
            own = run.pending & left
            if not own:
                raise KeyError(ticket)
            if own == run.pending:
                del self._runs[run_index], self._first_tickets[run_index]
            else:
                run.pending -= own
            left -= own

    def _add_run(self, positions: Sequence[P | None]) -> range:
        tickets = range(self._next_ticket, self._next_ticket + len(positions))
        self._runs.append(_Run(tickets, self._last_read, positions))
        self._first_tickets.append(tickets.start)
        self._next_ticket = tickets.stop
        return tickets

    def _run_index(self, ticket: int) -> int:
        run_index = bisect_right(self._first_tickets, ticket) - 1
        if run_index < 0 or ticket not in self._runs[run_index].tickets:
            raise KeyError(ticket)
        return run_index


MAY_FOLLOW: Final = {
    HoldState.HELD: {HoldState.HELD, HoldState.READY},
    HoldState.READY: {HoldState.HELD, HoldState.READY, HoldState.CATCHING_UP},
    HoldState.CATCHING_UP: {HoldState.HELD},
}


class Hold:
    """One target and its tenants, whose unread operations come through the catch-up of the hold."""

    def __init__(
        self,
        target: HeldTarget,
        name: str,
        reason: HoldReason,
        *,
        unread: Unread,
        arrived_at: datetime,
        now: float,
        tenants: TenantSet | None = None,
    ) -> None:
        self.target = target
        self.name = name
        self.reason = reason
        self.arrived_at = arrived_at
        self.since = now  # monotonic
        self.tenants = TenantSet() if tenants is None else tenants
        self.sample_tenant = name  # of a shard's hold: one of its tenants
        self.is_backfill = False  # its catch-up also takes the tenants that the Postgres shard names
        self.state = HoldState.HELD
        self.catch_up: CatchUp | None = None  # of a hold that is catching up
        self.attempt_count = 0  # probes since the target is held
        self.passed_count = 0  # operations that the main reader has read and left to the hold, for people
        self.next_attempt_at = now  # monotonic
        self._unread = unread

    @property
    def title(self) -> str:
        """The target as people see it."""
        return f"{self.target} {self.name}".strip()

    @property
    def unread(self) -> Unread:
        """The records still to be read for its tenants."""
        return self._unread if self.catch_up is None else self.catch_up.unread

    @property
    def reached(self) -> RecordPosition | None:
        """The own position after which its operations come; None is the beginning."""
        return self.unread.after

    @property
    def is_waiting(self) -> bool:
        """Whether its target takes no operations yet."""
        return self.state is HoldState.HELD

    @property
    def is_paced(self) -> bool:
        """Whether its tenants send more than their share, so that its catch-up waits for the lane."""
        return self.reason == HoldReason.OVER_SHARE

    @property
    def is_waiting_for_parents(self) -> bool:
        """Whether its tenants have operations pending at the parents of the stream shard."""
        return self.target is HeldTarget.PARENTS and self.is_waiting

    @property
    def first_arrival(self) -> datetime:
        """About when the first operation arrived that is still to be read."""
        reached = None if self.catch_up is None else self.reached
        return self.arrived_at if reached is None else max(self.arrived_at, reached.arrived_at)

    def enter(self, state: HoldState, catch_up: CatchUp | None = None) -> None:
        """Change the state. Raises ValueError where *state* may not follow."""
        if state not in MAY_FOLLOW[self.state] or (catch_up is None) is (state is HoldState.CATCHING_UP):
            raise ValueError(f"{self.title} {self.state}: expected a state that may follow, got {state}, {catch_up}")
        if self.catch_up is not None:
            self.catch_up.holds.remove(self)
        if catch_up is not None:
            catch_up.holds.append(self)
        self.state, self.catch_up = state, catch_up

    def lower(self, unread: Unread, arrived_at: datetime) -> None:
        """Have *unread* read too: the hold waits for its target again."""
        self.arrived_at = min(self.first_arrival, arrived_at)
        self._unread = union([self.unread, unread])
        self.enter(HoldState.HELD)


class CatchUp:
    """A cursor that reads again for some holds."""

    def __init__(self, holds: Sequence[Hold]) -> None:
        unread = union([hold.unread for hold in holds])
        self.holds: list[Hold] = []
        self.parents = unread.parents  # that are still to be read, the first one in part; no own record before them
        self.tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(unread.after)
        self._own_from = 0  # the ticket of the first own record
        for hold in holds:
            hold.enter(HoldState.CATCHING_UP, self)

    @property
    def unread(self) -> Unread:
        """The records it has still to read."""
        return Unread(self.tracker.last_read, self.parents)

    @property
    def is_backfill(self) -> bool:
        """Whether it reads for a Postgres shard that may have lost commits."""
        return any(hold.is_backfill for hold in self.holds)

    @property
    def has_pending_parents(self) -> bool:
        """Whether operations of parents are not read, or not settled."""
        first = self.tracker.first_pending_ticket
        return bool(self.parents) or (first is not None and first < self._own_from)

    def comes_to(self, unread: Unread) -> bool:
        """Return whether it comes to *unread*; at the parents, it may start lower with its own."""
        if self.parents and self.unread.includes_parents_of(unread):
            self.tracker.rewind(union([self.unread, Unread(unread.after)]).after)
        return self.unread.includes(unread)

    def take_along(self, hold: Hold) -> bool:
        """Take a hold along; return whether it still comes to all of it.

        Without holds it is about to end, and takes none; nor does it at the parents.
        """
        if not self.holds or self.parents or not self.unread.includes(hold.unread):
            return False
        hold.enter(HoldState.CATCHING_UP, self)
        return True

    def pass_parent_record(self, position: Position) -> None:
        """Go on after a record of the first of the parents."""
        start = AtSequenceNumber(str(position.number))
        first = msgspec.structs.replace(self.parents[0], start=start, after=position)
        self.parents = (first, *self.parents[1:])

    def pass_parent(self) -> None:
        """Go on after the first of the parents."""
        self.parents = self.parents[1:]
        self._own_from = self.tracker.next_ticket


TENANT_HOLDS_MAX: Final = 1000  # tenants with a hold of their own; the others share the overflow hold
HELD_NAMES_MAX: Final = 100_000  # about 25 MB; with more held tenants nothing is read but by catch-ups
OVERFLOW_INTERVAL_S: Final = 30.0  # before the overflow hold is caught up


class Meeting(Enum):
    """What becomes of a tenant when a backfill meets it on its Postgres shard."""

    TAKEN = auto()  # by the backfill
    LEFT = auto()  # to its owner, which still comes to all of it
    APART = auto()  # neither comes to all of it: the tenant needs a hold of its own


class TenantOwners:
    """Which hold owns a tenant: its name goes before its slot, and no two holds have a slot."""

    def __init__(self) -> None:
        self._by_name: dict[str, Hold] = {}
        self._inherited: list[Hold] = []  # with slots, from a lease row

    @property
    def is_full(self) -> bool:
        """Whether so many tenants are held that nothing more should be read."""
        return len(self._by_name) >= HELD_NAMES_MAX

    def hold_of(self, tenant_id: str) -> Hold | None:
        """Return the hold that owns a tenant; None for the main reader."""
        found = self._by_name.get(tenant_id)
        if found is None and self._inherited:
            return next((hold for hold in self._inherited if tenant_id in hold.tenants), None)
        return found

    def tenants(self) -> TenantSet:
        """Return all held tenants."""
        found = TenantSet(self._by_name)
        for hold in self._inherited:
            found.update(hold.tenants)
        return found

    def without_names(self, tenants: TenantSet) -> TenantSet:
        """Return those of *tenants* that no hold owns by name."""
        return tenants.difference(TenantSet(tenants.names & self._by_name.keys()))

    def add(self, hold: Hold) -> None:
        """Give a new hold its tenants."""
        if hold.tenants.has_names:
            self._by_name |= dict.fromkeys(hold.tenants.names, hold)
        else:
            self._inherited.append(hold)

    def give(self, tenant_id: str, hold: Hold) -> Hold | None:
        """Give a tenant to *hold*; return the hold that had it by name."""
        owner = self._by_name.get(tenant_id)
        if owner is not None:
            owner.tenants.discard(tenant_id)
        hold.tenants.add(tenant_id)
        self._by_name[tenant_id] = hold
        return owner

    def remove(self, hold: Hold) -> None:
        """Take all tenants from a hold that ends."""
        if hold in self._inherited:
            self._inherited.remove(hold)
        for tenant_id in hold.tenants.names:
            del self._by_name[tenant_id]


class Ownership:
    """All holds of one reader, and which of them owns a tenant."""

    def __init__(self, main: CheckpointTracker[RecordPosition]) -> None:
        """Create it without holds; *main* is the tracker of the main reader."""
        self._main = main
        self._holds: dict[tuple[HeldTarget, str], Hold] = {}
        self.owners = TenantOwners()
        self._catch_ups: list[CatchUp] = []  # that run, or have ended with pending operations
        self._tenant_count = 0  # holds with the target TENANT
        self._overflow_count = 0
        self._released_count = 0

    def __len__(self) -> int:
        """Return the number of holds."""
        return len(self._holds)

    def holds(self) -> list[Hold]:
        """Return all holds, the oldest first."""
        return list(self._holds.values())

    def owner_of(self, tenant_id: str) -> Hold | None:
        """Return the hold that owns a tenant; None for the main reader."""
        return self.owners.hold_of(tenant_id)

    def has_own_hold(self, tenant_id: str) -> bool:
        """Return whether a tenant has a hold of its own."""
        return (HeldTarget.TENANT, tenant_id) in self._holds

    def is_apart(self, tenant_id: str) -> bool:
        """Return whether a tenant has a hold of its own, or one for a share."""
        owner = self.owner_of(tenant_id)
        return owner is not None and (owner.target is HeldTarget.TENANT or owner.is_paced)

    def needs_lookup(self, tenant_id: str) -> bool:
        """Return whether a tenant is held because it has no shard."""
        owner = self.owner_of(tenant_id)
        return owner is not None and owner.target is HeldTarget.TENANT and owner.is_waiting

    def shard_hold(self, shard_id: str) -> Hold | None:
        """Return the hold of a Postgres shard, caught up or not."""
        return self._holds.get((HeldTarget.SHARD, shard_id)) if self._holds else None

    @property
    def has_pending_parents(self) -> bool:
        """Whether records of parents are to be read again or are not settled."""
        return any(hold.unread.parents for hold in self._holds.values()) or any(
            one.has_pending_parents for one in self._catch_ups
        )

    @property
    def parents_hold(self) -> Hold | None:
        """The hold of the tenants with operations pending at the parents."""
        return self._holds.get((HeldTarget.PARENTS, ""))

    def are_waiting_for_parents(self, tenant_ids: AbstractSet[str]) -> bool:
        """Return whether all of *tenant_ids* are held for operations pending at the parents."""
        hold = self.parents_hold
        return hold is not None and all(tenant_id in hold.tenants for tenant_id in tenant_ids)

    # Verbs

    def split(self, tenant_id: str, hold: Hold, in_memory: Iterable[Unread], arrived_at: datetime) -> None:
        """Give a tenant to *hold*, which reads again the operations *in_memory*; the caller drops them."""
        owner, undone = self.owner_of(tenant_id), Unread(self._main.last_read)
        if owner is not None:
            undone, arrived_at = owner.unread, min(arrived_at, owner.first_arrival)
        hold.lower(union([undone, *in_memory]), arrived_at)
        self._assign(tenant_id, hold)

    def open_shard_hold(self, shard_id: str, arrived_at: datetime, *, lacks: Unread | None = None, now: float) -> Hold:
        """Return the hold of a Postgres shard that takes no operations, or, as a backfill, *lacks* some."""
        hold = self._open(HeldTarget.SHARD, shard_id, HoldReason.SHARD_UNAVAILABLE, arrived_at, now=now)
        if lacks is not None:
            hold.reason = HoldReason.BACKFILL
            hold.is_backfill = True
            hold.lower(lacks, arrived_at)
        return hold

    def hold_tenant(
        self, tenant_id: str, reason: HoldReason, in_memory: Iterable[Unread], arrived_at: datetime, *, now: float
    ) -> Hold:
        """Split a tenant off: to a hold of its own or, beyond TENANT_HOLDS_MAX, to the overflow hold."""
        if self.has_own_hold(tenant_id) or self._tenant_count < TENANT_HOLDS_MAX:
            hold = self._open(HeldTarget.TENANT, tenant_id, reason, arrived_at, now=now)
            hold.reason = reason
        else:
            last = self._holds.get((HeldTarget.OVERFLOW, str(self._overflow_count)))
            self._overflow_count += last is not None and last.catch_up is not None
            hold = self._open(HeldTarget.OVERFLOW, str(self._overflow_count), reason, arrived_at, now=now)
            if not hold.tenants:
                hold.next_attempt_at = now + OVERFLOW_INTERVAL_S
        self.split(tenant_id, hold, in_memory, arrived_at)
        return hold

    def hold_for_share(
        self,
        target: HeldTarget,
        name: str,
        in_memory: Mapping[str, Sequence[Unread]],
        arrived_at: datetime,
        *,
        now: float,
    ) -> Hold:
        """Give tenants to the hold of a business or a shard, with what leaves memory of each.

        A catch-up that still comes to all of it goes on; else the hold begins again, lower.
        """
        hold = self._holds.get((target, name))
        if hold is None:
            hold = self._open(target, name, HoldReason.OVER_SHARE, arrived_at, now=now)
        for tenant_id, unread in in_memory.items():
            owner = self.owner_of(tenant_id)
            undone = union([Unread(self._main.last_read) if owner is None else owner.unread, *unread])
            if hold.catch_up is not None and hold.catch_up.comes_to(undone):
                self._assign(tenant_id, hold)
            else:
                self.split(tenant_id, hold, unread, arrived_at)
        return hold

    def meet_resident(self, tenant_id: str, backfill: Hold, in_memory: Iterable[Unread]) -> Meeting:
        """Decide about a tenant that *backfill* meets on its shard; give it where it can.

        A tenant may be the backfill's already: its operations in memory are then the main reader's.
        """
        owner, catch_up = self.owner_of(tenant_id), backfill.catch_up
        if owner is backfill:
            owner = None
        elif owner is not None and owner.is_waiting_for_parents:
            return Meeting.LEFT
        undone = union([Unread(self._main.last_read) if owner is None else owner.unread, *in_memory])
        if backfill.unread.includes(undone) if catch_up is None else catch_up.comes_to(undone):
            self._assign(tenant_id, backfill)
            return Meeting.TAKEN
        return Meeting.LEFT if undone.includes(backfill.unread) else Meeting.APART

    def start_catch_up(self, holds: Sequence[Hold]) -> CatchUp:
        """Start a catch-up of *holds*."""
        catch_up = CatchUp(holds)
        self._catch_ups.append(catch_up)
        return catch_up

    def meet(self, catch_up: CatchUp) -> None:
        """End the holds of a catch-up that has reached the main reader."""
        for hold in list(catch_up.holds):
            self.remove(hold)

    def remove(self, hold: Hold) -> None:
        """End a hold: its tenants are the main reader's, or that one's from which they came."""
        del self._holds[hold.target, hold.name]
        self._tenant_count -= hold.target is HeldTarget.TENANT
        self.owners.remove(hold)
        hold.enter(HoldState.HELD)  # nothing reads for it any more

    # The tenants of the last owner of the lease, and of the parents

    def inherit(
        self, held: TenantSet | None, pending: TenantSet, unread: Unread, arrived_at: datetime, *, now: float
    ) -> None:
        """Hold the tenants that the last owner of the lease *held*, if any, and those *pending* at the parents."""
        if held is not None:
            target, reason, tenants = HeldTarget.PREDECESSOR, HoldReason.TAKEN_OVER, held.difference(pending)
            self._open(target, "", reason, arrived_at, unread=unread, tenants=tenants, now=now).enter(HoldState.READY)
        if pending:
            target, reason = HeldTarget.PARENTS, HoldReason.RESHARD
            self._open(target, "", reason, arrived_at, unread=unread, tenants=pending, now=now)

    def release_from_parents(self, pending: TenantSet, *, now: float) -> bool:
        """Make ready the tenants with no operation *pending* at the parents; return whether any."""
        hold = self.parents_hold
        if hold is None:
            return False
        released, kept = hold.tenants.difference(pending), hold.tenants.intersection(pending)
        if not released:
            return False
        self.remove(hold)
        self._released_count += 1
        for name, tenants, since in ((str(self._released_count), released, now), ("", kept, hold.since)):
            # One that has another hold has no operation that the parents have.
            if tenants := self.owners.without_names(tenants):
                target, reason, arrived_at, unread = (
                    HeldTarget.PARENTS,
                    HoldReason.RESHARD,
                    hold.arrived_at,
                    hold.unread,
                )
                part = self._open(target, name, reason, arrived_at, unread=unread, tenants=tenants, now=since)
                if name:
                    part.enter(HoldState.READY)
        return True

    # Pending operations

    def floor(self, main: RecordPosition | None) -> RecordPosition | None:
        """Return the position up to which nothing is pending, given the main reader's checkpoint."""
        held = [hold.reached for hold in self._holds.values()]
        return lowest_position([main, *held, *(one.tracker.checkpoint for one in self._pending_catch_ups())])

    def is_settled(self) -> bool:
        """Return whether there is no hold, and no catch-up with a pending operation."""
        return not self._holds and not self._pending_catch_ups()

    def _pending_catch_ups(self) -> list[CatchUp]:
        self._catch_ups = [one for one in self._catch_ups if one.holds or len(one.tracker)]
        return self._catch_ups

    def _assign(self, tenant_id: str, hold: Hold) -> None:
        owner = self.owners.give(tenant_id, hold)
        if owner is not None and not owner.tenants and not owner.is_backfill:
            self.remove(owner)

    def _open(
        self,
        target: HeldTarget,
        name: str,
        reason: HoldReason,
        arrived_at: datetime,
        *,
        unread: Unread | None = None,
        tenants: TenantSet | None = None,
        now: float,
    ) -> Hold:
        hold = self._holds.get((target, name))
        if hold is not None:
            hold.lower(hold.unread, arrived_at)
            return hold
        unread = Unread(self._main.last_read) if unread is None else unread
        hold = Hold(target, name, reason, unread=unread, arrived_at=arrived_at, now=now, tenants=tenants)
        self._holds[target, name] = hold
        self._tenant_count += target is HeldTarget.TENANT
        self.owners.add(hold)
        return hold
