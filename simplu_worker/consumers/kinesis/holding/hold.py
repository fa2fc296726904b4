"""A hold: the tenants of one target that takes no operations now, and the records still to be read for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Protocol

import msgspec

from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.holding.unread import Unread, union
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position, RecordPosition
from simplu_worker.vocabulary import HeldTarget, HoldReason, HoldState

MAY_FOLLOW: Final = {
    HoldState.HELD: {HoldState.HELD, HoldState.READY},
    HoldState.READY: {HoldState.HELD, HoldState.READY, HoldState.CATCHING_UP},
    HoldState.CATCHING_UP: {HoldState.HELD},
}


class HasTracker(Protocol):
    """An operation in memory."""

    @property
    def tracker(self) -> CheckpointTracker[RecordPosition]:
        """That of the cursor that read it."""


class Hold:
    """One target and its tenants. All their unread operations come through the catch-up of the hold.

    *arrived_at* is about when the first of these operations arrived.
    """

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
        self.more_names: set[str] = set()  # its tenants in slots that belong to an older hold
        self.sample_tenant = name  # of a shard's hold: one of its tenants
        self.is_backfill = False  # its catch-up also takes the tenants that the Postgres shard names
        self.state = HoldState.HELD
        self.catch_up: CatchUp | None = None  # of a hold that is catching up
        self.attempt_count = 0  # probes since the target is held
        self.passed_count = 0  # operations that the main reader has read and left to the hold, for people
        self.next_attempt_at = now  # monotonic
        self._unread = unread

    def __repr__(self) -> str:
        return f"Hold({self.target} {self.name}, {self.reason}, {self.state}, unread={self.unread})"

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
        """The own position after which its tenants' operations are still to come; None is the beginning."""
        return self.unread.after

    @property
    def is_waiting(self) -> bool:
        """Whether its target takes no operations yet."""
        return self.state is HoldState.HELD

    @property
    def is_paced(self) -> bool:
        """Whether its tenant sends more than its share: its catch-up lasts as long as that, and waits for the lane."""
        return self.target is HeldTarget.TENANT and self.reason == HoldReason.OVER_SHARE

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
        """Change the state. The hold leaves its catch-up, if any; one that is catching up is a hold of *catch_up*.

        Raises ValueError where *state* may not follow.
        """
        if state not in MAY_FOLLOW[self.state] or (catch_up is None) is (state is HoldState.CATCHING_UP):
            raise ValueError(f"{self}: expected a state that may follow, got {state}, {catch_up}")
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
    """A cursor that reads again for some holds: the records it has still to read, and its pending operations."""

    def __init__(self, holds: Sequence[Hold]) -> None:
        unread = union([hold.unread for hold in holds])
        self.holds: list[Hold] = []
        self.parents = unread.parents  # that are still to be read, the first one in part; no own record before them
        self.tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(unread.after)
        self._own_from = 0  # the ticket of the first own record
        for hold in holds:
            hold.enter(HoldState.CATCHING_UP, self)

    def __repr__(self) -> str:
        return f"CatchUp({self.holds}, {self.tracker!r})"

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
        """Return whether it comes to *unread*; while it reads those of parents, it may start lower with its own."""
        if self.parents and self.unread.includes_parents_of(unread):
            self.start_own_lower(unread.after)
        return self.unread.includes(unread)

    def has_others(self, entries: Iterable[HasTracker]) -> bool:
        """Return whether another cursor has read any of *entries*."""
        return any(entry.tracker is not self.tracker for entry in entries)

    def pass_parent_record(self, position: Position) -> None:
        """Go on after a record of the first of the parents."""
        start = AtSequenceNumber(str(position.number))
        first = msgspec.structs.replace(self.parents[0], start=start, after=position)
        self.parents = (first, *self.parents[1:])

    def pass_parent(self) -> None:
        """Go on after the first of the parents."""
        self.parents = self.parents[1:]
        self._own_from = self.tracker.next_ticket

    def start_own_lower(self, after: RecordPosition | None) -> None:
        """Start with its own records no later than after *after*; only while it reads those of parents."""
        self.tracker.rewind(union([self.unread, Unread(after)]).after)
