"""Send the events of a call in rounds of requests, each with one event of a partition key at most, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from simplu_worker.aws.clients import error_code
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, Refused, RetryLater

T = TypeVar("T")

BEHIND: Final = "the event of its resource before it was not delivered"


class KeyOrder:
    """The events of one call of `publish`, by their indexes, and what became of each."""

    def __init__(self, events: Sequence[FeedEvent]) -> None:
        self._keys = [event.subject for event in events]
        self._waiting: dict[str, list[int]] = {}
        for index in reversed(range(len(events))):
            self._waiting.setdefault(self._keys[index], []).append(index)  # the next one is the last
        self._deliveries: list[Delivery] = [RetryLater(BEHIND)] * len(events)

    def lanes(self) -> list[list[int]]:
        """Return the events that were not sent yet by key, each key in order."""
        return sorted([waiting[::-1] for waiting in self._waiting.values()])

    def next_round(self) -> list[int]:
        """Return the next event of each key whose events so far were delivered; none at the end."""
        return sorted([waiting[-1] for waiting in self._waiting.values()])

    def note(self, index: int, delivery: Delivery) -> None:
        """Note what became of the next event of a key; behind a failure none is sent."""
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
        """Return what became of each event."""
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


# The service finds the content of an entry at fault: Kinesis API reference, PutRecords; SQS API reference,
# SendMessageBatch. Anything else, such as a missing permission, is no event's fault.
CONTENT_CODES: Final = frozenset(
    {
        "AWS.SimpleQueueService.BatchRequestTooLong",
        "BatchRequestTooLong",
        "InvalidArgumentException",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "InvalidParameterValueException",
        "SerializationException",
        "ValidationException",
    }
)
TOO_LARGE: Final = Refused("it is too large for the destination, even without its data")


class _SizedEntry(Protocol):
    @property
    def size_bytes(self) -> int: ...


Entry = TypeVar("Entry", bound=_SizedEntry)


class _EntryService(Protocol[Entry]):
    @property
    def request_max_count(self) -> int: ...

    @property
    def request_max_bytes(self) -> int: ...

    def pack(self, event: FeedEvent) -> Entry | None:
        """None if the event is too large."""

    async def send(self, entries: Sequence[Entry]) -> Sequence[Delivery]:
        """Return what became of each entry; raise `RetryableError` or `PermanentError` if the request fails."""


async def publish_in_rounds(
    service: _EntryService[Entry], events: Sequence[FeedEvent], requests_at_once: asyncio.Semaphore
) -> list[Delivery]:
    """Deliver *events* to *service*; return what became of each. A round with a failed request is the last one."""
    order = KeyOrder(events)

    async def send(request: Sequence[tuple[int, Entry]]) -> RetryLater | None:
        async with requests_at_once:
            deliveries = await _send(service, [entry for _, entry in request])
        if isinstance(deliveries, RetryLater):
            return deliveries
        for (index, _), delivery in zip(request, deliveries, strict=True):
            order.note(index, delivery)
        return None

    while indexes := order.next_round():
        packed = [(index, service.pack(events[index])) for index in indexes]
        for index, entry in packed:
            if entry is None:
                order.note(index, TOO_LARGE)
        sized = [((index, entry), entry.size_bytes) for index, entry in packed if entry is not None]
        limits = {"max_count": service.request_max_count, "max_bytes": service.request_max_bytes}
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(send(request)) for request in requests_of(sized, **limits)]
        failures = [failure for task in sent if (failure := task.result()) is not None]
        if failures:
            order.give_up(failures[0])
    return order.deliveries()


async def _send(service: _EntryService[Entry], entries: Sequence[Entry]) -> Sequence[Delivery] | RetryLater:
    try:
        return await service.send(entries)
    except RetryableError as exc:
        return RetryLater(str(exc))
    except PermanentError as exc:
        if not isinstance(exc.__cause__, Exception) or error_code(exc.__cause__) not in CONTENT_CODES:
            return RetryLater(str(exc))
        if len(entries) == 1:
            return [Refused(str(exc))]
    deliveries: list[Delivery] = []
    for entry in entries:  # one of them is at fault, and must not take the others with it
        one = await _send(service, [entry])
        deliveries += [one] if isinstance(one, RetryLater) else one
    return deliveries
