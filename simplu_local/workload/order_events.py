"""Order events (docs/sending.md), messages that can never be one, and sending them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from simplu_local.workload.workload import Tenant

SEND_MAX_MESSAGES = 10  # SendMessageBatch's quota
SEND_MAX_BYTES = 900_000  # below its 1 MiB; attributes count too
INVALID_JSON = frozenset({"invalid_json"})
INVALID_MESSAGE = frozenset({"invalid_message"})
UNKNOWN_TYPE = frozenset({"unknown_type"})

Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """One message of an order queue. *tenant* is the one in the message attributes; none when the body contains it."""

    group_id: str
    deduplication_id: str
    body: str
    tenant: Tenant | None = None

    @property
    def attributes(self) -> Mapping[str, str]:
        """The message attributes, all of them strings."""
        if self.tenant is None:
            return {}
        return {"BusinessId": self.tenant.business_id, "LocationId": self.tenant.location_id}


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """The id that a queue gave to a message, and the bounds of the time at which it accepted the message."""

    message_id: str
    earliest: datetime
    latest: datetime


def event_members(
    kind: str, order_id: str, data: object, *, group_id: str, deduplication_id: str | None, tenant: Tenant | None
) -> Members:
    """Return the members of an order event's body; with *tenant* the body contains its ids."""
    members: Members = {"type": kind, "orderId": order_id, "data": data, "groupId": group_id}
    if deduplication_id is not None:
        members["deduplicationId"] = deduplication_id
    if tenant is not None:
        members |= {"businessId": tenant.business_id, "locationId": tenant.location_id}
    return members


def spoil_event(number: int, members: Members, event: OrderEvent) -> tuple[OrderEvent, frozenset[str]]:
    """Make a valid `CREATE` invalid, in a way chosen by *number*; also return the reasons its dead letter may name."""
    if number % 4 == 0:
        return replace(event, body=NOT_JSON[number // 4 % len(NOT_JSON)]), INVALID_JSON
    if number % 4 == 1:
        spoilt = dict(members)
        spoilt.pop("type")
        kind = UNKNOWN_TYPES[number // 4 % len(UNKNOWN_TYPES)]
        spoilt |= {} if kind is None else {"type": kind}
        return replace(event, body=json.dumps(spoilt)), UNKNOWN_TYPE
    if number % 8 == 2:
        spoilt = {name: value for name, value in members.items() if name not in {"businessId", "locationId"}}
        return replace(event, body=json.dumps(spoilt), tenant=None), INVALID_MESSAGE
    if number % 8 == 6 and event.tenant is not None:
        return replace(event, body=json.dumps(members | {"businessId": "another"})), INVALID_MESSAGE
    gone, instead = SPOILERS[number // 4 % len(SPOILERS)]
    spoilt = {name: value for name, value in members.items() if name != gone} | instead
    return replace(event, body=json.dumps(spoilt)), INVALID_MESSAGE


NOT_JSON = ("not json at all", "{", '{"type": "CREATE", ', '{"type": "CREATE"} and more', '{"type": NaN}')
UNKNOWN_TYPES: tuple[object, ...] = (None, "REFUND", "create", "", 5, {})
SPOILERS: tuple[tuple[str, Members], ...] = (
    ("", {"orderId": []}),
    ("data", {}),
    ("", {"orderId": ""}),
    ("", {"orderId": "x" * 257}),
    ("", {"orderId": 7}),
    ("", {"orderId": "nul\x00"}),
    ("", {"data": []}),
    ("", {"data": "text"}),
    ("", {"deduplicationId": "x" * 129}),
    ("", {"deduplicationId": "simplu:mine"}),
    ("", {"deduplicationId": "lone \udfff"}),
)


async def send_events(
    sqs: Any,
    queue_url: str,
    events: Iterable[OrderEvent],
    *,
    on_sent: Callable[[OrderEvent, SendReceipt], None],
    rate: float | None = None,
) -> None:
    """Send *events* in order, one request at a time, and call *on_sent* for each that the queue accepted.

    *rate* is the maximum of events a second; `None`: as fast as the queue accepts them.

    Raises:
        RuntimeError: the queue rejected an event; later events of its group must not be sent.

    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    for request in _split_into_requests(events):
        entries = [_entry(number, event, is_fifo=queue_url.endswith(".fifo")) for number, event in enumerate(request)]
        began_at = datetime.now(UTC)
        answer = await sqs.send_message_batch(QueueUrl=queue_url, Entries=entries)
        ended_at = datetime.now(UTC)
        if failed := answer.get("Failed"):
            raise RuntimeError(f"expected the order queue to accept all events, it rejected {len(failed)}: {failed[0]}")
        for sent in answer["Successful"]:
            on_sent(request[int(sent["Id"])], SendReceipt(sent["MessageId"], began_at, ended_at))
        if rate is not None:
            due += len(request) / rate
            await asyncio.sleep(max(0.0, due - loop.time()))


def _split_into_requests(events: Iterable[OrderEvent]) -> Iterator[list[OrderEvent]]:
    request: list[OrderEvent] = []
    size_bytes = 0
    for event in events:
        event_bytes = len(event.body.encode()) + sum(
            len(name + text) * 4 + 6 for name, text in event.attributes.items()
        )
        if request and (len(request) == SEND_MAX_MESSAGES or size_bytes + event_bytes > SEND_MAX_BYTES):
            yield request
            request, size_bytes = [], 0
        request.append(event)
        size_bytes += event_bytes
    if request:
        yield request


def _entry(number: int, event: OrderEvent, *, is_fifo: bool) -> dict[str, Any]:
    attributes = {name: {"DataType": "String", "StringValue": text} for name, text in event.attributes.items()}
    entry: dict[str, Any] = {"Id": str(number), "MessageBody": event.body, "MessageAttributes": attributes}
    if is_fifo:
        entry |= {"MessageGroupId": event.group_id, "MessageDeduplicationId": event.deduplication_id}
    return entry
