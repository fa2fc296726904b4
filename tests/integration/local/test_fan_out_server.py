"""Enhanced fan-out of the local Kinesis over HTTP, for aiobotocore with its own decoder of event streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, EventStreamError
from support.aws.endpoints import CREDENTIALS, REGION

from simplu_local.aws_server.faults import AdvanceClock, SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import KinesisFault
from simplu_local.kinesis.model import KinesisOptions
from simplu_local.kinesis.server import serve_kinesis

NAME = "stream"
SHARD = "shardId-000000000000"
QUICK = KinesisOptions(create_delay_ms=0, update_delay_ms=0, consumer_delay_ms=0)


class Consumer:
    def __init__(self, client: Any, url: str, arn: str) -> None:
        self.client = client
        self.url = url
        self.arn = arn
        self.opened: list[Any] = []

    async def subscribe(self, kind: str = "TRIM_HORIZON", **more: Any) -> AsyncIterator[dict[str, Any]]:
        answer = await self.client.subscribe_to_shard(
            ConsumerARN=self.arn, ShardId=SHARD, StartingPosition={"Type": kind} | more
        )
        self.opened.append(answer["EventStream"])
        return aiter(answer["EventStream"])

    async def put(self, text: str) -> None:
        await self.client.put_record(StreamName=NAME, PartitionKey="k", Data=text.encode())


@pytest.fixture
async def consumer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Consumer]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with (
        serve_kinesis(options=QUICK) as url,
        AioSession().create_client("kinesis", region_name=REGION, endpoint_url=url) as client,
    ):
        await client.create_stream(StreamName=NAME, ShardCount=1)
        summary = await client.describe_stream_summary(StreamName=NAME)
        arn = summary["StreamDescriptionSummary"]["StreamARN"]
        registered = await client.register_stream_consumer(StreamARN=arn, ConsumerName="me")
        consumer = Consumer(client, url, registered["Consumer"]["ConsumerARN"])
        yield consumer
        for stream in consumer.opened:
            stream.close()


async def texts(events: AsyncIterator[dict[str, Any]], count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        event = await asyncio.wait_for(anext(events), 30)
        found += [one["Data"].decode() for one in event["SubscribeToShardEvent"]["Records"]]
    return found


async def test_earlier_subscription_fails_when_another_takes_it(consumer: Consumer) -> None:
    earlier = await consumer.subscribe()
    await anext(earlier)
    with pytest.raises(ClientError, match="ResourceInUseException"):
        await consumer.subscribe()
    await send_commands(consumer.url, AdvanceClock(5000))
    later = await consumer.subscribe()
    with pytest.raises(EventStreamError, match="ResourceInUseException"):
        async for _ in earlier:  # an event that came in time
            pass
    await anext(later)


async def test_subscription_ends_without_an_error_after_its_time(consumer: Consumer) -> None:
    await send_commands(consumer.url, SetOptions({"subscription_ms": 50}))
    events = await consumer.subscribe()
    assert len([event async for event in events]) == 1


async def test_faults_strike_subscriptions(consumer: Consumer) -> None:
    await consumer.put("a")
    kinds: tuple[Literal["fail", "silent", "end", "repeat"], ...] = ("fail", "silent", "end", "repeat")
    code = "AccessDeniedException"
    faults = [KinesisFault(action="SubscribeToShard", kind=kind, code=code, status=400) for kind in kinds]
    await send_commands(consumer.url, *faults)
    with pytest.raises(ClientError, match=code):
        await consumer.subscribe()
    silent = await consumer.subscribe()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(silent), 0.1)
    await send_commands(consumer.url, AdvanceClock(5000))
    assert len([event async for event in await consumer.subscribe()]) == 1
    await send_commands(consumer.url, AdvanceClock(5000))
    assert await texts(await consumer.subscribe(), 2) == ["a", "a"]
