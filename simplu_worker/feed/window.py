"""The events of one shard that are on their way to one destination, in order by partition key. Pure.

    read ──► waiting ──► sent ──► done
                ▲          │
                └─ later ◄─┘      a key waits behind its first event that is not done, no other key does

The cursor is the place before the oldest event that is not done: the next publisher sends what is behind it again.
Delivered events beyond the cursor stay here, so that this publisher sends none twice. Events that were sent lately are
remembered, in case that the shard has lost their commits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final, Generic, TypeAlias, TypeVar, assert_never
from weakref import WeakSet

import msgspec

from simplu_worker.feed.types import (
    BatchRef,
    Delivered,
    Delivery,
    Disabled,
    FeedEvent,
    FeedFilter,
    Place,
    Refused,
    RetryLater,
)
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import FeedKind

User = TypeVar("User")


class Budget(Generic[User]):
    """*total* in equal parts of those that use any, each at least *least* and at most *most*.

    `part` is what each user may use now, or begin with.
    """

    def __init__(self, total: int, *, least: int, most: int) -> None:
        self._total = total
        self._least = least
        self._most = most
        self._users: WeakSet[User] = WeakSet()  # that of a shard which is gone uses nothing
        self.part = most

    @property
    def users(self) -> Iterable[User]:
        """Those that use a part."""
        return list(self._users)

    def enter(self, user: User) -> None:
        """Note that *user* uses a part; those of all others may be smaller from now on."""
        self._users.add(user)
        self._divide()

    def leave(self, user: User) -> None:
        """Note that *user* uses nothing any more."""
        self._users.discard(user)
        self._divide()

    def _divide(self) -> None:
        self.part = min(max(self._total // max(len(self._users), 1), self._least), self._most)


EVENTS_MAX: Final = 1000
DOCUMENTS_MAX_BYTES: Final = 4 * 1024 * 1024
DOCUMENTS_MIN_BYTES: Final = 128 * 1024  # with less, too many reads; each brings one document, however large
TOTAL_DOCUMENT_BYTES: Final = 40 * 1024 * 1024  # of a process
RETRY_BASE_S, RETRY_MAX_S = 0.2, 30.0


class WindowEvent(msgspec.Struct, eq=False):
    """An event on its way; *ref* is its batch, None for an event that is no row of the log."""

    event: FeedEvent
    place: Place
    ref: BatchRef | None = None
    is_sent: bool = False  # at least once: the destination may have it
    is_done: bool = False
    due_at: float = 0.0
    retry_count: int = 0
    refusal_count: int = 0
    is_passed: bool = False  # by a person's word: its next failure is its last one, whatever the reason


class RefusedForGood(msgspec.Struct, frozen=True):
    """An event that was refused as often as the terms allow, or that is passed."""

    one: WindowEvent
    error: str


Finished: TypeAlias = WindowEvent | RefusedForGood | Disabled


class Window:
    """The window of a destination: events up to *head*, where its log is read next; documents within *budget*."""

    def __init__(self, head: Place, budget: Budget[Window]) -> None:
        self.head = head
        self._budget = budget
        self._events: deque[WindowEvent] = deque()
        self._document_bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def has_room(self) -> bool:
        """Whether another read is worth its while."""
        return len(self._events) <= EVENTS_MAX // 2 and self._document_bytes <= self._budget.part // 2

    @property
    def cursor(self) -> Place:
        """The place up to which everything is done."""
        return self._events[0].place.before if self._events else self.head

    @property
    def behind_since(self) -> datetime | None:
        """The time of the oldest event that is not done."""
        return self._events[0].event.time if self._events else None

    def has_kind(self, kind: FeedKind) -> bool:
        """Return whether an event of *kind* is not done."""
        return any(one.event.kind is kind and not one.is_done for one in self._events)

    def add(self, events: Sequence[WindowEvent], head: Place) -> None:
        """Add what was read up to *head*."""
        self._events += events
        self._count_documents(sum(_document_bytes(one) for one in events))
        self.head = head

    def due(self, max_events: int, *, now: float) -> list[WindowEvent]:
        """Return the events to send now, in order, up to the first of each key that has to wait."""
        chosen: list[WindowEvent] = []
        blocked: set[str] = set()
        for one in self._events:
            if one.is_done:
                continue
            key = one.event.subject
            if key in blocked:
                continue
            if one.due_at > now:
                blocked.add(key)
                continue
            chosen.append(one)
            if len(chosen) == max_events:
                break
        return chosen

    def next_due_at(self) -> float | None:
        """Return when the first event is due that is not behind another of its key; None without any."""
        due_at_by_key: dict[str, float] = {}
        for one in self._events:
            if not one.is_done:
                due_at_by_key.setdefault(one.event.subject, one.due_at)
        return min(due_at_by_key.values(), default=None)

    def settle(
        self, sent: Sequence[WindowEvent], deliveries: Sequence[Delivery], *, tries: int, now: float, draw: float
    ) -> list[Finished]:
        """Note what became of *sent*; return what is finished, in order. A `RefusedForGood` waits for `finish`."""
        finished: list[Finished] = []
        failed: set[str] = set()
        for one, delivery in zip(sent, deliveries, strict=True):
            key = one.event.subject
            match delivery:
                case Delivered():
                    one.is_done = True
                    finished.append(one)
                case RetryLater() | Refused() if key in failed:
                    pass
                case RetryLater(error, after_s):
                    failed.add(key)
                    one.retry_count += 1
                    wait_s = backoff_s(one.retry_count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
                    one.due_at = now + max(wait_s, after_s or 0.0)
                    if one.is_passed:
                        finished.append(RefusedForGood(one, error))
                case Refused(error):
                    failed.add(key)
                    one.refusal_count += 1
                    wait_s = backoff_s(one.refusal_count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
                    one.due_at = now + wait_s
                    if one.refusal_count >= tries:
                        finished.append(RefusedForGood(one, error))
                case Disabled():
                    finished.append(delivery)
                case _:
                    assert_never(delivery)
        self._drop_done()
        return finished

    def finish(self, one: WindowEvent) -> None:
        """Go on behind an event that was not delivered, and is kept elsewhere."""
        one.is_done = True
        self._drop_done()

    def _drop_done(self) -> None:
        while self._events and self._events[0].is_done:
            self._count_documents(-_document_bytes(self._events.popleft()))

    def _count_documents(self, added_bytes: int) -> None:
        if not added_bytes:
            return
        self._document_bytes += added_bytes
        if self._document_bytes:
            self._budget.enter(self)
        else:
            self._budget.leave(self)


def document_budget() -> Budget[Window]:
    """Return the bytes that the documents in all windows of a process share."""
    return Budget(TOTAL_DOCUMENT_BYTES, least=DOCUMENTS_MIN_BYTES, most=DOCUMENTS_MAX_BYTES)


def _document_bytes(one: WindowEvent) -> int:
    return 0 if one.event.data is None else len(one.event.data)


PROCESS_EVENTS_MAX: Final = 10_000
EVENTS_MIN: Final = 500  # a read of the log: with less, each restart of a busy server would begin an incarnation
TOTAL_EVENTS: Final = 50_000  # of a process, with less than 1 KB each
KEPT_S: Final = 600.0  # a standby that lags further is no standby to promote


class SentEvents:
    """The events that one destination may have of one shard, of the last KEPT_S, within its part of *budget*.

    `known_from` is the place behind which none is missing, if any.
    """

    def __init__(self, budget: Budget[SentEvents]) -> None:
        self._budget = budget
        self._events: deque[tuple[float, BatchRef, Place, FeedEvent]] = deque()
        self._undone: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._forgotten_through = Place(0, 0)
        self.known_from: Place | None = None
        self._filter = FeedFilter()

    @property
    def has_events(self) -> bool:
        """Whether there is any event."""
        return bool(self._events)

    def note(self, ref: BatchRef, place: Place, event: FeedEvent, *, now: float) -> None:
        """Remember an event that the destination may have."""
        if not self._events:
            self._budget.enter(self)
            for one in self._budget.users:
                one.keep_to_part()
        self._events.append(
            (now, ref, place, event if event.data is None else msgspec.structs.replace(event, data=None))
        )
        self.keep_to_part()
        self.forget_old(now)

    def forget_old(self, now: float) -> None:
        """Forget the events of more than KEPT_S ago."""
        while self._events and now - self._events[0][0] > KEPT_S:
            self._forget_oldest()
        self._leave_if_empty()

    def keep_to_part(self) -> None:
        """Forget the oldest events beyond its part of the budget."""
        while len(self._events) > self._budget.part:
            self._forget_oldest()

    def _leave_if_empty(self) -> None:
        if not self._events:
            self._budget.leave(self)

    def _forget_oldest(self) -> None:
        _, _, gone, _ = self._events.popleft()
        self._forgotten_through = max(gone, self._forgotten_through)
        self.known_from = None if self.known_from is None else max(gone, self.known_from)

    def note_filter(self, chosen: FeedFilter) -> None:
        """Note which events are sent from now on; what an earlier filter left out is not remembered."""
        if chosen != self._filter:
            self._filter, self.known_from = chosen, None

    def note_whole(self, behind: Place) -> None:
        """Note that every event that anybody has sent from behind *behind* was noted here."""
        self.known_from = max(behind, self._forgotten_through)

    def is_complete_behind(self, cursor: Place) -> bool:
        """Return whether every event sent from behind *cursor* is remembered."""
        return self.known_from is not None and self.known_from <= cursor

    def refs_behind(self, cursor: Place) -> list[BatchRef]:
        """Return the batches of the events behind *cursor*, each once."""
        return list(dict.fromkeys(ref for _, ref, place, _ in self._events if place > cursor))

    def take_undone(self, cursor: Place, there: Collection[str]) -> list[FeedEvent]:
        """Forget the events behind *cursor*; return those whose batches are not *there*, the newest first."""
        behind = [one for one in self._events if one[2] > cursor]
        self._events = deque(one for one in self._events if one[2] <= cursor)
        self._leave_if_empty()
        gone: dict[str, FeedEvent] = {}
        for _, ref, _, event in behind:
            if ref.token not in there:
                gone[event.id] = event
        return [*gone.values()][::-1]

    def note_undone(self, event: FeedEvent) -> None:
        """Remember that the change of *event* may be applied again, under a new id."""
        if (change := _change_of(event)) is not None:
            self._undone[change] = event.id
            if len(self._undone) > self._budget.part:
                self._undone.popitem(last=False)

    def reapplied(self, event: FeedEvent) -> str | None:
        """Return the id of the undone event of the same change, if any."""
        change = _change_of(event) if self._undone else None
        return None if change is None else self._undone.get(change)


def event_budget() -> Budget[SentEvents]:
    """Return what the memories of a process have together."""
    return Budget(TOTAL_EVENTS, least=EVENTS_MIN, most=PROCESS_EVENTS_MAX)


def _change_of(event: FeedEvent) -> tuple[str, str] | None:
    if event.tenant is None or event.request_id is None:
        return None
    return event.tenant.tenant_id, event.request_id
