"""The client with Kinesis and SQS in memory: what its callers and their callbacks may do."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import pytest
from simplu_client import Client, Limits, Operation, Sent, SimpluError
from simplu_client.client import THREADS, Position

WITHIN_S = 60.0


class Memory:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Memory({len(self.records)} records, {len(self.messages)} messages)"

    def put_records(self, *, StreamName: str, Records: Sequence[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - boto3
        self.records += Records
        return {"Records": [{"ShardId": StreamName, "SequenceNumber": "1"} for _ in Records]}

    def operations(self) -> list[dict[str, Any]]:
        return [json.loads(line) for record in self.records for line in record["Data"].splitlines()]

    def send_message(self, **request: Any) -> None:
        self.messages.append(request)


def operation_of(number: int) -> Operation:
    return {"operation": "list", "businessId": "b", "locationId": "l", "resourceType": f"t{number % 3}"}


def accepted_of(sent: Sent) -> Future[Position]:
    assert sent.accepted is not None
    return sent.accepted


def test_callbacks_send_while_the_queue_is_full() -> None:
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
    assert len(kinesis.operations()) == 2 * 4 * count


class Gate(Memory):
    def __init__(self, *results: dict[str, str]) -> None:
        super().__init__()
        self.results = list(results)
        self.is_asked, self.is_open = threading.Event(), threading.Event()

    def put_records(self, *, StreamName: str, Records: Sequence[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - boto3
        if self.is_open.is_set():
            return super().put_records(StreamName=StreamName, Records=Records)
        self.is_asked.set()
        assert self.is_open.wait(WITHIN_S)
        return {"Records": self.results}


def test_operations_of_a_key_share_a_record() -> None:
    kinesis = Gate({"ShardId": "s", "SequenceNumber": "1"})
    client = Client(stream="s", kinesis=kinesis)
    sent = [client.send(operation_of(0))]
    assert kinesis.is_asked.wait(WITHIN_S)
    sent += [client.send(operation_of(0)) for _ in range(99)]
    kinesis.is_open.set()
    assert client.close(WITHIN_S) == []
    assert [one["requestId"] for one in kinesis.operations()] == [one.request_id for one in sent[1:]]
    assert len(kinesis.records) == 1


@pytest.mark.parametrize("results", [[], [{}], [{"ShardId": "s", "SequenceNumber": "1"}] * 3])
def test_reply_without_a_result_for_each_record_ends_no_sender(results: list[dict[str, str]]) -> None:
    kinesis = Gate(*results)
    client = Client(stream="s", kinesis=kinesis, limits=Limits(base_s=0.001))
    accepted = [accepted_of(client.send(operation_of(0)))]
    assert kinesis.is_asked.wait(WITHIN_S)
    kinesis.is_open.set()
    accepted += [accepted_of(client.send(operation_of(0))) for _ in range(2 * THREADS)]
    assert [one.result(WITHIN_S).stream_shard_id for one in accepted] == ["s"] * len(accepted)
    assert client.close(WITHIN_S) == []


def test_partition_key_is_by_the_rule_of_the_worker() -> None:
    kinesis = Memory()
    with Client(stream="s", kinesis=kinesis, partition_key="tenant") as client:
        client.send(operation_of(0))
    assert [record["PartitionKey"] for record in kinesis.records] == ["b-l"]
    with pytest.raises(SimpluError, match="partition_key: expected one of"):
        Client(partition_key=cast("Any", "any"))
