"""The events of one shard that are on their way to one destination, in order by partition key. Pure.

    read ──► waiting ──► sent ──► done
                ▲          │
                └─ later ◄─┘      a key waits behind its first event that is not done, no other key does

The cursor is the place before the oldest event that is not done: the next publisher sends what is behind it again.
Delivered events beyond the cursor stay here, so that this publisher sends none twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final, TypeAlias, assert_never
from weakref import WeakSet

import msgspec

from simplu_worker.feed.types import Delivered, Delivery, Disabled, FeedEvent, Place, Refused, RetryLater
from simplu_worker.operations.tries import WAIT_MAX_S, Failed, GiveUp, Locked, NextTry, RetryRules, next_try

EVENTS_MAX: Final = 1000
DOCUMENTS_MAX_BYTES: Final = 4 * 1024 * 1024
DOCUMENTS_MIN_BYTES: Final = 128 * 1024  # with less, too many reads; each brings one document, however large
TOTAL_DOCUMENT_BYTES: Final = 40 * 1024 * 1024  # of a process


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
        """Return the events to send now, in order: the first of each key, unless it has to wait."""
        due = (one for one in self._first_of_keys() if one.due_at <= now)
        return list(islice(due, max_events))

    def next_due_at(self) -> float | None:
        """Return when the first event is due that is not behind another of its key; None without any."""
        return min((one.due_at for one in self._first_of_keys()), default=None)

    def _first_of_keys(self) -> Iterator[WindowEvent]:
        keys: set[str] = set()
        for one in self._events:
            if not one.is_done and (key := one.event.subject) not in keys:
                keys.add(key)
                yield one

    def settle(
        self, sent: Sequence[WindowEvent], deliveries: Sequence[Delivery], *, rules: RetryRules, now: float, draw: float
    ) -> list[Finished]:
        """Note what became of *sent*; return what is finished, in order. A `RefusedForGood` waits for `finish`."""
        finished: list[Finished] = []
        for one, delivery in zip(sent, deliveries, strict=True):
            match delivery:
                case Delivered():
                    one.is_done = True
                    finished.append(one)
                case RetryLater(error):
                    one.retry_count += 1
                    following: NextTry = next_try(Locked(), one.retry_count, rules=rules, draw=draw)
                    finished += _after_failure(one, error, following, now)
                case Refused(error):
                    one.refusal_count += 1
                    following = next_try(Failed(error), one.refusal_count, rules=rules)
                    finished += _after_failure(one, error, following, now)
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


def _after_failure(one: WindowEvent, error: str, following: NextTry, now: float) -> list[Finished]:
    is_over = isinstance(following, GiveUp)
    delay_s = WAIT_MAX_S if isinstance(following, GiveUp) else following.delay_s
    one.due_at = now + delay_s  # also of one that is over: should it not be kept
    return [RefusedForGood(one, error)] if is_over or one.is_passed else []


def _document_bytes(one: WindowEvent) -> int:
    return 0 if one.event.data is None else len(one.event.data)
