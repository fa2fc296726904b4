"""The same tests of enhanced fan-out, of the local Kinesis and of another one, read by the worker's own door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from support.aws.endpoints import CREDENTIALS, client_of
from support.aws.kinesis_endpoints import Servers, kinesis_servers

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.stream.client import Reply, StreamConsumers
from simplu_worker.consumers.kinesis.stream.positions import Start, TrimHorizon
from simplu_worker.consumers.kinesis.stream.subscriptions import (
    EndOfSubscriptionError,
    Subscription,
    Subscriptions,
)
from simplu_worker.errors import RetryableError

pytestmark = pytest.mark.slow(1.5)

SHARD = "shardId-000000000000"
BOTH = pytest.mark.parametrize("endpoint_url", ["ours", "kinesis-mock"], indirect=True)
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with kinesis_servers() as servers:
        yield servers


@pytest.fixture
def endpoint_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    return servers.url_of(request.param)


class Stream:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = f"stream-{uuid4()}"
        self.consumers = StreamConsumers(client, self.name)
        self.subscriptions = Subscriptions(client, self.consumers, "me")

    async def settle(self) -> None:

        async def active() -> bool:
            described = await self.client.describe_stream_summary(StreamName=self.name)
            return bool(described["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")

        assert await poll_until(active, within_s=30)

    async def put(self, *texts: str) -> list[str]:
        put = [
            await self.client.put_record(StreamName=self.name, PartitionKey="key", Data=text.encode()) for text in texts
        ]
        return [one["SequenceNumber"] for one in put]

    @asynccontextmanager
    async def subscribe(self, start: Start) -> AsyncIterator[Subscription]:
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    subscription = await self.subscriptions.open(SHARD, start)
                    break
                except RetryableError:
                    await asyncio.sleep(0.1)
        try:
            yield subscription
        finally:
            subscription.close()


@pytest.fixture
async def stream(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stream]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with client_of("kinesis", endpoint_url) as client:
        stream = Stream(client)
        await client.create_stream(StreamName=stream.name, ShardCount=1)
        await stream.settle()
        yield stream


async def next_reply(subscription: Subscription) -> Reply:
    async with asyncio.timeout(WITHIN_S):
        while (reply := subscription.take()) is None:
            await subscription.receive(asyncio.Event(), within_s=1.0)
        return reply


async def texts(subscription: Subscription, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += [record.data.decode() for record in (await next_reply(subscription)).records]
    return found


@BOTH
async def test_consumer_is_registered_once_found_again_and_removed(stream: Stream) -> None:
    assert await stream.consumers.find("me") is None
    registered = await stream.consumers.ensure("me")
    assert registered.arn.rpartition(":")[0].endswith(f":stream/{stream.name}/consumer/me")

    async def active() -> bool:
        return (await stream.consumers.ensure("me")).status == "ACTIVE"

    assert await poll_until(active, within_s=WITHIN_S)
    assert [(one.name, one.arn) for one in await stream.consumers.list()] == [("me", registered.arn)]
    assert await stream.consumers.remove("me")

    async def is_gone() -> bool:
        return await stream.consumers.find("me") is None

    assert await poll_until(is_gone, within_s=WITHIN_S)


@BOTH
async def test_records_are_pushed_from_the_position_on(stream: Stream) -> None:
    await stream.put("a", "b")
    async with stream.subscribe(TrimHorizon()) as subscription:
        assert await texts(subscription, 2) == ["a", "b"]
        (number,) = await stream.put("c")
        reply = await next_reply(subscription)
        while not reply.records:
            reply = await next_reply(subscription)
        (record,) = reply.records
        assert (record.data, record.sequence_number, record.partition_key) == (b"c", number, "key")
        assert reply.next_iterator is not None
        assert int(reply.next_iterator) >= int(number)


@pytest.mark.parametrize("endpoint_url", ["ours"], indirect=True)
async def test_end_of_a_closed_stream_shard_names_its_children(stream: Stream) -> None:
    await stream.put("a")
    await stream.client.split_shard(StreamName=stream.name, ShardToSplit=SHARD, NewStartingHashKey=str(2**127))
    await stream.settle()
    children: set[tuple[str, frozenset[str]]] = set()
    found: list[str] = []
    async with stream.subscribe(TrimHorizon()) as subscription:
        for _ in range(3):
            reply = await next_reply(subscription)
            found += [record.data.decode() for record in reply.records]
            children = {(child.stream_shard_id, child.parents) for child in reply.child_shards}
            if children:
                break
        with pytest.raises(EndOfSubscriptionError):
            await next_reply(subscription)
    assert found == ["a"]
    parents = frozenset({SHARD})
    assert children == {("shardId-000000000001", parents), ("shardId-000000000002", parents)}
