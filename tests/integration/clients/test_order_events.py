"""The client in Python and a FIFO queue that all tenants share: no event keeps another one away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import boto3
import pytest
from simplu_client import Client, OrderEvent

from simplu_local.sqs.server import serve_sqs

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def sqs() -> AsyncIterator[Any]:
    async with serve_sqs() as url:
        client = boto3.client("sqs", endpoint_url=url, region_name="eu-central-1")
        yield client
        client.close()


def event_of(business_id: str, n: int = 1) -> OrderEvent:
    return {
        "type": "CREATE",
        "businessId": business_id,
        "locationId": "berlin",
        "orderId": "o-1",
        "data": {"n": n},
        "deduplicationId": "o-1-created",
    }


def receive(sqs: Any, url: str) -> list[tuple[str, int, str]]:
    messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=1).get("Messages", [])
    bodies = [(json.loads(message["Body"]), message["ReceiptHandle"]) for message in messages]
    return [(body["businessId"], body["data"]["n"], handle) for body, handle in bodies]


async def test_events_of_two_tenants_and_a_corrected_one_all_arrive(sqs: Any) -> None:
    def send_and_receive() -> list[tuple[str, int]]:
        url = sqs.create_queue(QueueName="orders.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
        client = Client(order_queue_url=url, sqs=sqs)
        for event in (event_of("smile"), event_of("grin"), event_of("smile", n=2)):
            client.send_order(event)
        in_flight = receive(sqs, url)
        beside = receive(sqs, url)
        assert receive(sqs, url) == []  # the corrected one is in the group of the first
        sqs.delete_message(QueueUrl=url, ReceiptHandle=in_flight[0][2])
        return [(business, n) for business, n, _ in in_flight + beside + receive(sqs, url)]

    assert await asyncio.to_thread(send_and_receive) == [("smile", 1), ("grin", 1), ("smile", 2)]
