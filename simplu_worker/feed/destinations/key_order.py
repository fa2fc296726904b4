"""Which of a call's events may be sent next, so that those of a partition key stay in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, RetryLater

T = TypeVar("T")

BEHIND: Final = "expected the event of its resource before it to be delivered, it was not"


class KeyOrder:
    """The events of one call of `publish`, by their indexes, and what became of each so far."""

    def __init__(self, events: Sequence[FeedEvent]) -> None:
        self._keys = [event.subject for event in events]
        self._waiting: dict[str, list[int]] = {}
        for index in reversed(range(len(events))):
            self._waiting.setdefault(self._keys[index], []).append(index)  # the next one is the last
        self._deliveries: list[Delivery] = [RetryLater(BEHIND)] * len(events)

    def __repr__(self) -> str:
        return f"KeyOrder({len(self._waiting)} keys with events to send)"

    def lanes(self) -> list[list[int]]:
        """Return the events that were not sent yet, those of each key in order; the key of the first event first."""
        return sorted([waiting[::-1] for waiting in self._waiting.values()])

    def next_round(self) -> list[int]:
        """Return in their order the next event of each key whose events so far were delivered; none at the end."""
        return sorted([waiting[-1] for waiting in self._waiting.values()])

    def note(self, index: int, delivery: Delivery) -> None:
        """Note what became of the next event of a key; unless it was delivered, no other of the key is sent."""
        self._deliveries[index] = delivery
        key = self._keys[index]
        waiting = self._waiting[key]
        if waiting.pop() != index:
            raise ValueError("an event was sent before another one of its key")
        if not isinstance(delivery, Delivered):
            after_s = delivery.after_s if isinstance(delivery, RetryLater) else None
            for blocked in waiting:
                self._deliveries[blocked] = RetryLater(BEHIND, after_s)
            waiting.clear()
        if not waiting:
            del self._waiting[key]

    def give_up(self, delivery: Delivery) -> None:
        """Note *delivery* for all events that were not sent."""
        for index in [index for waiting in self._waiting.values() for index in waiting]:
            self._deliveries[index] = delivery
        self._waiting.clear()

    def deliveries(self) -> list[Delivery]:
        """Return what became of each event, in their order."""
        return [*self._deliveries]


def requests_of(items: Iterable[tuple[T, int]], *, max_count: int, max_bytes: int) -> list[list[T]]:
    """Return *items*, each with its bytes, in requests of at most *max_count* and *max_bytes*; one item always fits."""
    requests: list[list[T]] = []
    room_bytes = 0
    for item, size_bytes in items:
        if not requests or len(requests[-1]) == max_count or size_bytes > room_bytes:
            requests.append([])
            room_bytes = max_bytes
        requests[-1].append(item)
        room_bytes -= size_bytes
    return requests
