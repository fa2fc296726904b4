"""The same tests of the local Kinesis and of two others, so that a misreading of the API is not only ours.

Enhanced fan-out is read by the worker's own door.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from support.aws.endpoints import CREDENTIALS, client_of
from support.aws.servers import KINESIS, running_servers
from support.streams import reshard, wait_until_active

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Reply
from simplu_worker.consumers.kinesis.stream.client import Stream as WorkerStream
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Start, TrimHorizon
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscription, Subscriptions
from simplu_worker.errors import RetryableError

pytestmark = pytest.mark.slow

HASH_KEYS = 2**128
WITHIN_S = 30.0
Test = TypeVar("Test", bound=Callable[..., Any])


def on(*names: str) -> Callable[[Test], Test]:
    mark: Callable[[Test], Test] = pytest.mark.parametrize("endpoint_url", names, indirect=True)
    return mark


@pytest.fixture(scope="module")
def url_of() -> Iterator[Callable[[str], str]]:
    with running_servers(KINESIS) as url_of:
        yield url_of


class Stream:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = f"stream-{uuid4()}"
        self.door = WorkerStream(client, self.name)
        self.subscriptions = Subscriptions(client, self.door, "me")

    async def create(self, shard_count: int = 1) -> None:
        await self.client.create_stream(StreamName=self.name, ShardCount=shard_count)
        await wait_until_active(self.client, self.name)

    async def put(self, *texts: str, hash_key: int = 0) -> list[str]:
        put = [
            await self.client.put_record(
                StreamName=self.name, PartitionKey="key", Data=text.encode(), ExplicitHashKey=str(hash_key)
            )
            for text in texts
        ]
        return [one["SequenceNumber"] for one in put]

    async def shards(self, **more: Any) -> list[dict[str, Any]]:
        return list((await self.client.list_shards(StreamName=self.name, **more))["Shards"])

    async def numbers(self, **more: Any) -> list[int]:
        return sorted(int(shard["ShardId"][-1]) for shard in await self.shards(**more))

    async def iterator(self, kind: str = "TRIM_HORIZON", *, shard: int = 0, **more: Any) -> str:
        answer = await self.client.get_shard_iterator(
            StreamName=self.name, ShardId=shard_id(shard), ShardIteratorType=kind, **more
        )
        return str(answer["ShardIterator"])

    async def read(self, iterator: str) -> list[str]:
        return texts_of(await self.door.get_records(iterator, limit=100))

    async def split(self, shard: int, hash_key: int) -> None:
        await self.client.split_shard(
            StreamName=self.name, ShardToSplit=shard_id(shard), NewStartingHashKey=str(hash_key)
        )
        await wait_until_active(self.client, self.name)

    async def merge(self, lower: int, upper: int) -> None:
        await self.client.merge_shards(
            StreamName=self.name, ShardToMerge=shard_id(lower), AdjacentShardToMerge=shard_id(upper)
        )
        await wait_until_active(self.client, self.name)

    async def scale(self, count: int) -> None:
        await reshard(self.client, self.name, count)


@pytest.fixture
def endpoint_url(url_of: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    return url_of(request.param)


@pytest.fixture
async def stream(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stream]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with client_of("kinesis", endpoint_url) as client:
        yield Stream(client)


def shard_id(index: int) -> str:
    return f"shardId-{index:012d}"


def texts_of(reply: Reply) -> list[str]:
    return [record.data.decode() for record in reply.records]


def ranges_of(shards: list[dict[str, Any]]) -> list[tuple[int, int]]:
    keys = (shard["HashKeyRange"] for shard in shards)
    return sorted((int(one["StartingHashKey"]), int(one["EndingHashKey"])) for one in keys)


async def code_of(awaitable: Any) -> str:
    with pytest.raises(ClientError) as caught:
        await awaitable
    return str(caught.value.response["Error"]["Code"])


ALL = ("ours", "moto", "kinesis-mock")


@on(*ALL)
async def test_records_are_read_as_they_were_put(stream: Stream) -> None:
    await stream.create()
    entries = [{"PartitionKey": f"k-{number}", "Data": bytes([number, 0, 255])} for number in range(5)]
    put = await stream.client.put_records(StreamName=stream.name, Records=entries)
    read = (await stream.door.get_records(await stream.iterator(), limit=100)).records
    assert put["FailedRecordCount"] == 0
    assert [{"PartitionKey": one.partition_key, "Data": one.data} for one in read] == entries
    assert [one.sequence_number for one in read] == [one["SequenceNumber"] for one in put["Records"]]
    assert all(one.arrived_at.tzinfo for one in read)
    numbers = [int(one.sequence_number) for one in read]
    assert numbers == sorted(set(numbers))


@on(*ALL)
async def test_iterators_start_where_they_say(stream: Stream) -> None:
    await stream.create()
    numbers = await stream.put("a", "b")
    await asyncio.sleep(0.02)  # a later millisecond
    numbers += await stream.put("c")
    latest = await stream.iterator("LATEST")
    await stream.put("d")
    reply = await stream.door.get_records(await stream.iterator(), limit=100)
    at = reply.records[2].arrived_at - timedelta(milliseconds=5)
    iterators = [
        await stream.iterator(),
        await stream.iterator("AT_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]),
        await stream.iterator("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]),
        await stream.iterator("AT_TIMESTAMP", Timestamp=at),
        latest,
    ]
    read = [await stream.read(iterator) for iterator in iterators]
    assert read == [list("abcd"), list("bcd"), list("cd"), list("cd"), ["d"]]


@on(*ALL)
async def test_partition_key_decides_by_its_md5(stream: Stream) -> None:
    await stream.create(5)
    size = HASH_KEYS // 5
    keys = [f"key-{number}" for number in range(40)]
    hashes = [int.from_bytes(hashlib.md5(key.encode()).digest(), "big") for key in keys]
    entries = [{"PartitionKey": key, "Data": b"x"} for key in keys]
    put = await stream.client.put_records(StreamName=stream.name, Records=entries)
    expected = [shard_id(min(hash_key // size, 4)) for hash_key in hashes]
    assert [one["ShardId"] for one in put["Records"]] == expected


@on(*ALL)
async def test_stream_is_described_and_deleted(stream: Stream) -> None:
    await stream.create(2)
    for hours in (48, 24):
        change = "increase" if hours > 24 else "decrease"
        call = getattr(stream.client, f"{change}_stream_retention_period")
        await call(StreamName=stream.name, RetentionPeriodHours=hours)
        summary = (await stream.client.describe_stream_summary(StreamName=stream.name))["StreamDescriptionSummary"]
        assert (summary["RetentionPeriodHours"], summary["OpenShardCount"]) == (hours, 2)
    described = (await stream.client.describe_stream(StreamARN=summary["StreamARN"], Limit=1))["StreamDescription"]
    assert ([one["ShardId"] for one in described["Shards"]], described["HasMoreShards"]) == ([shard_id(0)], True)
    await stream.client.delete_stream(StreamName=stream.name)

    async def gone() -> bool:
        return stream.name not in (await stream.client.list_streams(Limit=1000))["StreamNames"]

    assert await poll_until(gone, within_s=30)


@on(*ALL)
async def test_merged_child_has_both_parents(stream: Stream) -> None:
    await stream.create(2)
    await stream.merge(0, 1)
    child = (await stream.shards())[-1]
    assert (child["ParentShardId"], child["AdjacentParentShardId"]) == (shard_id(0), shard_id(1))
    assert ranges_of([child]) == [(0, HASH_KEYS - 1)]


@on("ours", "kinesis-mock")
async def test_closed_stream_shard_ends_with_its_children(stream: Stream) -> None:
    await stream.create()
    earlier = await stream.iterator("LATEST")
    await stream.put("a", "b")
    await stream.split(0, HASH_KEYS // 2)
    for iterator in (earlier, await stream.iterator()):
        texts, reply = list[str](), Reply([], next_iterator=iterator)
        while reply.next_iterator and len(texts) < 5:
            reply = await stream.door.get_records(reply.next_iterator, limit=1)
            texts += texts_of(reply)
        assert texts == ["a", "b"]
        parents = frozenset({shard_id(0)})
        assert sorted(reply.child_shards or (), key=lambda child: child.stream_shard_id) == [
            ChildShard(shard_id(1), HashRange(0, HASH_KEYS // 2 - 1), parents),
            ChildShard(shard_id(2), HashRange(HASH_KEYS // 2, HASH_KEYS - 1), parents),
        ]


@on("ours", "kinesis-mock")
async def test_shard_filters_choose_by_time(stream: Stream, request: pytest.FixtureRequest) -> None:
    step_s = 0.01 if "ours" in request.node.name else 1.1  # of the clock of the other one
    await stream.create()
    await stream.put("a")
    await asyncio.sleep(step_s)
    await stream.split(0, HASH_KEYS // 2)
    await asyncio.sleep(step_s * 2)
    await stream.put("b")
    replies = [await stream.door.get_records(await stream.iterator(shard=shard), limit=1) for shard in (0, 1)]
    times = [reply.records[0].arrived_at for reply in replies]
    filters = [{"Type": kind, "Timestamp": at} for kind in ("AT_TIMESTAMP", "FROM_TIMESTAMP") for at in times]
    assert [await stream.numbers(ShardFilter=one) for one in filters] == [[0], [1, 2], [0, 1, 2], [1, 2]]


@on("ours", "kinesis-mock")
async def test_list_of_stream_shards_comes_in_pages(stream: Stream) -> None:
    await stream.create(5)
    page = await stream.client.list_shards(StreamName=stream.name, MaxResults=2)
    pages = [page]
    while "NextToken" in page:
        last_token = page["NextToken"]
        page = await stream.client.list_shards(NextToken=page["NextToken"], MaxResults=2)
        pages.append(page)
    ids = [[int(shard["ShardId"][-1]) for shard in one["Shards"]] for one in pages]
    assert ids == [[0, 1], [2, 3], [4]]
    both = stream.client.list_shards(NextToken=last_token, StreamName=stream.name)
    assert await code_of(both) == "InvalidArgumentException"


@on("ours", "kinesis-mock")
async def test_writers_at_once_lose_nothing(stream: Stream) -> None:
    await stream.create()

    async def write(writer: int) -> None:
        for start in range(0, 300, 50):
            entries = [{"PartitionKey": "k", "Data": f"{writer}-{n}".encode()} for n in range(start, start + 50)]
            await stream.client.put_records(StreamName=stream.name, Records=entries)

    async with asyncio.TaskGroup() as tasks:
        for writer in range(4):
            tasks.create_task(write(writer))
    read, reply = list[str](), await stream.door.get_records(await stream.iterator(), limit=1000)
    while reply.records:
        read += texts_of(reply)
        reply = await stream.door.get_records(reply.next_iterator or "", limit=1000)
    by_writer = [[text for text in read if text.startswith(f"{writer}-")] for writer in range(4)]
    assert by_writer == [[f"{writer}-{number}" for number in range(300)] for writer in range(4)]


# Enhanced fan-out


@asynccontextmanager
async def subscribed(stream: Stream, start: Start) -> AsyncIterator[Subscription]:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                subscription = await stream.subscriptions.open(shard_id(0), start)
                break
            except RetryableError:
                await asyncio.sleep(0.1)
    try:
        yield subscription
    finally:
        subscription.close()


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


@on("ours", "kinesis-mock")
async def test_consumer_is_registered_once_found_again_and_removed(stream: Stream) -> None:
    await stream.create()
    summary = await stream.client.describe_stream_summary(StreamName=stream.name)
    stream_arn, found = summary["StreamDescriptionSummary"]["StreamARN"], list[str]()

    async def is_active() -> bool:
        with suppress(RetryableError):
            found.append(await stream.door.ensure_consumer("me"))
        return bool(found)

    async def listed() -> list[tuple[str, str]]:
        consumers = (await stream.client.list_stream_consumers(StreamARN=stream_arn))["Consumers"]
        return [(one["ConsumerName"], one["ConsumerARN"]) for one in consumers]

    assert await poll_until(is_active, within_s=WITHIN_S)
    assert found[0].startswith(f"{stream_arn}/consumer/me")
    assert await listed() == [("me", found[0])]
    await stream.client.deregister_stream_consumer(StreamARN=stream_arn, ConsumerName="me")

    async def is_gone() -> bool:
        return not await listed()

    assert await poll_until(is_gone, within_s=WITHIN_S)


@on("ours", "kinesis-mock")
async def test_records_are_pushed_from_the_position_on(stream: Stream) -> None:
    await stream.create()
    await stream.put("a", "b")
    async with subscribed(stream, TrimHorizon()) as subscription:
        assert await texts(subscription, 2) == ["a", "b"]
        (number,) = await stream.put("c")
        reply = await next_reply(subscription)
        while not reply.records:
            reply = await next_reply(subscription)
        (record,) = reply.records
        assert (record.data, record.sequence_number, record.partition_key) == (b"c", number, "key")
        assert reply.next_iterator is not None
        assert int(reply.next_iterator) >= int(number)


@on("ours")
async def test_end_of_a_closed_stream_shard_names_its_children(stream: Stream) -> None:
    await stream.create()
    await stream.put("a")
    await stream.split(0, HASH_KEYS // 2)
    children: set[tuple[str, frozenset[str]]] = set()
    found: list[str] = []
    async with subscribed(stream, TrimHorizon()) as subscription:
        for _ in range(3):
            reply = await next_reply(subscription)
            found += [record.data.decode() for record in reply.records]
            children = {(child.stream_shard_id, child.parents) for child in reply.child_shards or ()}
            if children:
                break
        with pytest.raises(RetryableError, match="has ended"):
            await next_reply(subscription)
    assert found == ["a"]
    parents = frozenset({shard_id(0)})
    assert children == {("shardId-000000000001", parents), ("shardId-000000000002", parents)}
