"""The client with Kinesis and SQS in memory: what its callers and their callbacks may do."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime
from enum import Enum
from typing import Any, cast

import pytest
from simplu_client import (
    Client,
    ControlMessage,
    InvalidOperationError,
    Limits,
    NotSentError,
    Operation,
    Sent,
    SimpluError,
)
from simplu_client.client import Position

WITHIN_S = 60.0


class Memory:
    """Accepts all records and messages, and keeps them."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Memory({len(self.records)} records, {len(self.messages)} messages)"

    def put_records(self, *, StreamName: str, Records: Sequence[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - boto3
        """Accept them."""
        self.records += Records
        return {"Records": [{"ShardId": StreamName, "SequenceNumber": "1"} for _ in Records]}

    def send_message(self, **request: Any) -> None:
        """Accept it."""
        self.messages.append(request)


def operation_of(number: int) -> Operation:
    """Return an operation of one of few keys."""
    return {"operation": "list", "businessId": "b", "locationId": "l", "resourceType": f"t{number % 3}"}


def accepted_of(sent: Sent) -> Future[Position]:
    """Return what an operation, unlike a message, always has."""
    assert sent.accepted is not None
    return sent.accepted


def test_callbacks_send_while_the_queue_is_full() -> None:
    """They run in the threads that make room: each of these would wait for the others."""
    kinesis, count, followed = Memory(), 200, threading.Semaphore(0)
    client = Client(stream="s", kinesis=kinesis, limits=Limits(max_count=2))

    def follow(_: Future[Position]) -> None:
        accepted_of(client.send(operation_of(0))).add_done_callback(lambda _: followed.release())

    def produce() -> None:
        for number in range(count):
            accepted_of(client.send(operation_of(number))).add_done_callback(follow)

    producers = [threading.Thread(target=produce, daemon=True) for _ in range(4)]
    for producer in producers:
        producer.start()
    assert all(followed.acquire(timeout=WITHIN_S) for _ in range(4 * count))
    assert client.close(WITHIN_S) == []
    assert len(kinesis.records) == 2 * 4 * count


def test_callback_closes_the_client() -> None:
    """The thread that it runs in is not waited for."""
    client = Client(stream="s", kinesis=Memory())
    left: Future[list[NotSentError]] = Future()
    accepted_of(client.send(operation_of(0))).add_done_callback(lambda _: left.set_result(client.close(WITHIN_S)))
    assert left.result(WITHIN_S) == []
    assert client.close(WITHIN_S) == []


CREATION: ControlMessage = {
    "messageType": "SHARD_CREATION",
    "businessId": "b",
    "locationId": "l",
    "businessType": "gym",
}


def test_timestamp_that_is_none_is_the_time_of_sending() -> None:
    """As null counts as absent, and the worker refuses what has no timestamp."""
    memory = Memory()
    with Client(stream="s", control_queue_url="q", kinesis=memory, sqs=memory) as client:
        client.send(cast("Operation", {**operation_of(0), "timestamp": None}))
        client.send_control(cast("ControlMessage", {**CREATION, "timestamp": None}))
    sent = [json.loads(text) for text in (memory.records[0]["Data"], memory.messages[0]["MessageBody"])]
    assert all(datetime.fromisoformat(message["timestamp"]).tzinfo for message in sent)


@pytest.mark.parametrize("name", ["businessId", "locationId", "businessType"])
def test_control_message_that_lacks_a_member_is_an_invalid_one(name: str) -> None:
    """Whichever it is."""
    message = {member: value for member, value in CREATION.items() if member != name}
    client = Client(control_queue_url="q", sqs=Memory())
    with pytest.raises(InvalidOperationError, match=name):
        client.send_control(cast("ControlMessage", message))


def test_partition_key_is_by_the_rule_of_the_worker() -> None:
    """And another rule than the packages know is refused."""
    kinesis = Memory()
    with Client(stream="s", kinesis=kinesis, partition_key="tenant") as client:
        client.send(operation_of(0))
    assert [record["PartitionKey"] for record in kinesis.records] == ["b-l"]
    with pytest.raises(SimpluError, match="partition_key: expected one of"):
        Client(partition_key=cast("Any", "any"))


class Name(str, Enum):  # noqa: UP042 - a StrEnum is its value everywhere, this one is not
    """Texts as producers have them, whose names differ from their values."""

    BUSINESS = "b"
    LOCATION = "l"
    TYPE = "t"
    ORDER = "o"


def test_texts_of_an_enum_are_their_values() -> None:
    """In the partition key, the group, and what the outcome is asked for by; not the names, as in an f-string."""
    memory = Memory()
    tenant: dict[str, Any] = {"businessId": Name.BUSINESS, "locationId": Name.LOCATION}
    listing: Any = {"operation": "list", **tenant, "resourceType": Name.TYPE}
    queues: dict[str, Any] = {"order_queue_url": "orders.fifo", "control_queue_url": "control.fifo"}
    with Client(stream="s", kinesis=memory, sqs=memory, **queues) as client:
        sent = client.send(listing)
        event = client.send_order(cast("Any", {"type": "DELETE", **tenant, "orderId": Name.ORDER}))
        client.send_control(cast("Any", {**CREATION, **tenant}))
    assert memory.records[0]["PartitionKey"] == "b-l-t"
    assert [message["MessageGroupId"] for message in memory.messages] == ["b-l-o", "b-l"]
    assert {f"{one.business_id} {one.location_id}" for one in (sent, event)} == {"b l"}
