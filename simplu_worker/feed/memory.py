"""The events that were sent lately, in case that the shard has lost their commits. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Final

import msgspec

from simplu_worker.feed.budget import Budget
from simplu_worker.feed.places import BatchRef, Place
from simplu_worker.feed.types import FeedEvent, FeedFilter

EVENTS_MAX: Final = 10_000
EVENTS_MIN: Final = 500  # a read of the log: with less, each restart of a busy server would begin an incarnation
TOTAL_EVENTS: Final = 50_000  # of a process, with less than 1 KB each
KEPT_S: Final = 600.0  # a standby that lags further is no standby to promote


class SentEvents:
    """The events of one shard that one destination may have, of the last KEPT_S, and at most its part of *budget*.

    `known_from` is the place behind which none is missing, None while another publisher may have sent events that are
    not here.
    """

    def __init__(self, budget: Budget[SentEvents]) -> None:
        self._budget = budget
        self._events: deque[tuple[float, BatchRef, Place, FeedEvent]] = deque()
        self._undone: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._forgotten_through = Place(0, 0)
        self.known_from: Place | None = None
        self._filter = FeedFilter()

    def __repr__(self) -> str:
        return f"SentEvents({len(self._events)}, known_from={self.known_from}, undone={len(self._undone)})"

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
        """Forget the oldest events beyond this memory's part of the budget."""
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
        """Note which events are sent from now on. What an earlier filter left out is not known to be remembered."""
        if chosen != self._filter:
            self._filter, self.known_from = chosen, None

    def note_whole(self, behind: Place) -> None:
        """Note that every event that anybody has sent from behind *behind* was noted here."""
        self.known_from = max(behind, self._forgotten_through)

    def is_complete_behind(self, cursor: Place) -> bool:
        """Return whether every event that was sent from behind *cursor* is remembered."""
        return self.known_from is not None and self.known_from <= cursor

    def refs_behind(self, cursor: Place) -> list[BatchRef]:
        """Return the batches of the events behind *cursor*, each once."""
        return list(dict.fromkeys(ref for _, ref, place, _ in self._events if place > cursor))

    def take_undone(self, cursor: Place, there: Collection[str]) -> list[FeedEvent]:
        """Forget the events behind *cursor*, and return those whose batches have none of the tokens *there*.

        The newest first, each once: as they are taken back.
        """
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
    return Budget(TOTAL_EVENTS, least=EVENTS_MIN, most=EVENTS_MAX)


def _change_of(event: FeedEvent) -> tuple[str, str] | None:
    """Return the tenant and the request of *event*: what it has in common with that of the same change."""
    if event.tenant is None or event.request_id is None:
        return None
    return event.tenant.tenant_id, event.request_id
