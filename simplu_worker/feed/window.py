"""The events of one shard that are on their way to one destination, in order by partition key. Pure.

    read ──► waiting ──► sent ──► done
                ▲          │
                └─ later ◄─┘      a key waits behind its first event that is not done, no other key does

The cursor is the place before the oldest event that is not done: the next publisher sends what is behind it again.
Delivered events beyond the cursor stay here, so that this publisher sends none twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeAlias, assert_never
from weakref import WeakSet

import msgspec

from simplu_worker.feed.types import Delivered, Delivery, Disabled, FeedEvent, Place, Refused, RetryLater
from simplu_worker.timing.waits import backoff_s

EVENTS_MAX: Final = 1000
DOCUMENTS_MAX_BYTES: Final = 4 * 1024 * 1024
DOCUMENTS_MIN_BYTES: Final = 128 * 1024  # with less, too many reads; each brings one document, however large
TOTAL_DOCUMENT_BYTES: Final = 40 * 1024 * 1024  # of a process
RETRY_BASE_S, RETRY_MAX_S = 0.2, 30.0


class Budget:
    """The bytes of documents that the windows of a process share, in equal parts of those that have any."""

    def __init__(self) -> None:
        self._users: WeakSet[Window] = WeakSet()  # that of a shard which is gone uses nothing

    @property
    def part(self) -> int:
        """What each window may use now, or begin with."""
        part = TOTAL_DOCUMENT_BYTES // max(len(self._users), 1)
        return min(max(part, DOCUMENTS_MIN_BYTES), DOCUMENTS_MAX_BYTES)

    def note(self, user: Window, *, has_documents: bool) -> None:
        """Note whether *user* uses a part; those of all others may be smaller from now on."""
        if has_documents:
            self._users.add(user)
        else:
            self._users.discard(user)


class WindowEvent(msgspec.Struct, eq=False):
    """An event on its way."""

    event: FeedEvent
    place: Place
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

    def __init__(self, head: Place, budget: Budget) -> None:
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
        if added_bytes:
            self._document_bytes += added_bytes
            self._budget.note(self, has_documents=self._document_bytes > 0)


def _document_bytes(one: WindowEvent) -> int:
    return 0 if one.event.data is None else len(one.event.data)
