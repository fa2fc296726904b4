"""Send the events of a call in rounds of requests, each with one event of a partition key at most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from simplu_worker.aws.clients import error_code
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.feed.destinations.key_order import KeyOrder, requests_of
from simplu_worker.feed.types import Delivery, FeedEvent, Refused, RetryLater

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
TOO_LARGE: Final = Refused("expected an event that the destination can take, got a larger one, even without its data")


class SizedEntry(Protocol):
    """An entry of a request."""

    @property
    def size_bytes(self) -> int:
        """What counts for the limit of a request."""


Entry = TypeVar("Entry", bound=SizedEntry)


class EntryService(Protocol[Entry]):
    """A service that takes entries, and may refuse some of a request."""

    @property
    def request_max_count(self) -> int:
        """How many entries a request may have."""

    @property
    def request_max_bytes(self) -> int:
        """How many bytes the entries of a request may have."""

    def pack(self, event: FeedEvent) -> Entry | None:
        """Return the entry of *event*; None if it is too large."""

    async def send(self, entries: Sequence[Entry]) -> Sequence[Delivery]:
        """Send one request; return what became of each entry.

        Raises `RetryableError` or `PermanentError` if the request fails as a whole.
        """


async def publish_in_rounds(
    service: EntryService[Entry], events: Sequence[FeedEvent], requests_at_once: asyncio.Semaphore
) -> list[Delivery]:
    """Deliver *events* to *service*; return what became of each.

    A round in which a request fails as a whole is the last one: the next one would fail in the same way.
    """
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


async def _send(service: EntryService[Entry], entries: Sequence[Entry]) -> Sequence[Delivery] | RetryLater:
    """Send one request; return what became of each entry, or why none was accepted."""
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
