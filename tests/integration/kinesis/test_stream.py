from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws.clients import Client, ThrottledError
from simplu_worker.consumers.kinesis.stream.client import (
    ChildShard,
    ExpiredIteratorError,
    Reply,
    Stream,
    StreamGoneError,
    _InUseError,
)
from simplu_worker.consumers.kinesis.stream.positions import (
    AfterSequenceNumber,
    AtSequenceNumber,
    AtTimestamp,
    HashRange,
    Latest,
    Start,
    TrimHorizon,
)
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import KINESIS_THROTTLED

LAST_HASH_KEY = 2**128 - 1


pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def kinesis(endpoint_url: str) -> AsyncIterator[Client]:
    async with client_of("kinesis", endpoint_url) as client:
        yield client


@pytest.fixture
async def stream(kinesis: Client) -> Stream:
    stream = Stream(kinesis, f"stream-{uuid4()}")
    await stream.ensure(create=True, stream_shard_count=1)
    for number in range(3):
        await kinesis.put_record(StreamName=stream.name, PartitionKey=f"key-{number}", Data=str(number).encode())
    return stream


@pytest.fixture
def aws() -> ScriptedAws:
    return ScriptedAws()


@pytest.fixture
async def scripted(aws: ScriptedAws) -> AsyncIterator[Stream]:
    async with aws.running() as url, client_of("kinesis", url) as client:
        yield Stream(client, "scripted")


async def read(stream: Stream, start: Start, *, limit: int = 100) -> Reply:
    shard = (await stream.list_stream_shards())[0]
    return await stream.get_records(await stream.get_iterator(shard.stream_shard_id, start), limit=limit)


@pytest.mark.slow
async def test_stream_is_created_once_when_many_replicas_start_together(kinesis: Client) -> None:
    stream = Stream(kinesis, f"stream-{uuid4()}")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(stream.ensure(create=True, stream_shard_count=2))

    shards = await stream.list_stream_shards()

    assert [shard.hash_range for shard in shards] == [HashRange(0, 2**127 - 1), HashRange(2**127, LAST_HASH_KEY)]
    assert [(shard.is_open, shard.parents) for shard in shards] == [(True, frozenset())] * 2


async def test_stream_may_be_named_by_its_arn(kinesis: Client, stream: Stream) -> None:
    described = await kinesis.describe_stream_summary(StreamName=stream.name)
    by_arn = Stream(kinesis, described["StreamDescriptionSummary"]["StreamARN"])
    await by_arn.ensure(create=False, stream_shard_count=1)

    assert by_arn.name == stream.name
    assert (await read(by_arn, TrimHorizon())).records == (await read(stream, TrimHorizon())).records


async def test_stream_shards_name_their_parents_after_a_split_and_a_merge(kinesis: Client, stream: Stream) -> None:
    root = (await stream.list_stream_shards())[0].stream_shard_id
    await kinesis.split_shard(StreamName=stream.name, ShardToSplit=root, NewStartingHashKey=str(2**127))
    children = [shard.stream_shard_id for shard in await stream.list_stream_shards() if shard.is_open]
    await kinesis.merge_shards(StreamName=stream.name, ShardToMerge=children[0], AdjacentShardToMerge=children[1])

    shards = {shard.stream_shard_id: shard for shard in await stream.list_stream_shards()}
    merged = next(shard for shard in shards.values() if shard.is_open)

    assert [shards[child].parents for child in children] == [frozenset({root})] * 2
    assert merged.parents == frozenset(children)
    assert merged.hash_range == HashRange(0, LAST_HASH_KEY)
    assert len(shards) == 4


def raw_shard(number: int, **more: Any) -> dict[str, Any]:
    return {
        "ShardId": f"shardId-{number:012}",
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(LAST_HASH_KEY)},
        "SequenceNumberRange": {"StartingSequenceNumber": "495"},
    } | more


async def test_records_come_in_order_with_their_facts(stream: Stream) -> None:
    before = datetime.now(UTC)
    reply = await read(stream, TrimHorizon())

    assert [(record.partition_key, record.data) for record in reply.records] == [
        ("key-0", b"0"),
        ("key-1", b"1"),
        ("key-2", b"2"),
    ]
    assert all(abs(record.arrived_at - before) < timedelta(seconds=30) for record in reply.records)
    assert {record.arrived_at.tzinfo for record in reply.records} == {UTC}
    assert (reply.millis_behind, reply.size_bytes, reply.child_shards) == (0, 18, None)


@pytest.mark.parametrize(
    ("start_at", "expected"),
    [
        (lambda records: AtSequenceNumber(records[1].sequence_number), [b"1", b"2"]),
        (lambda records: AfterSequenceNumber(records[1].sequence_number), [b"2"]),
        (lambda _: Latest(), []),
        (lambda _: AtTimestamp(datetime.now(UTC) - timedelta(hours=1)), [b"0", b"1", b"2"]),
        (lambda _: AtTimestamp(datetime.now(UTC) + timedelta(hours=1)), []),
    ],
)
async def test_iterator_starts_where_requested(stream: Stream, start_at: Any, expected: list[bytes]) -> None:
    records = (await read(stream, TrimHorizon())).records

    reply = await read(stream, start_at(records))

    assert [record.data for record in reply.records] == expected


@pytest.mark.parametrize("ending", [{}, {"NextShardIterator": None}])
async def test_reply_has_no_next_iterator_at_the_end_of_a_closed_stream_shard(
    scripted: Stream, aws: ScriptedAws, ending: dict[str, None]
) -> None:
    parents = ["shardId-000000000000", "shardId-000000000001"]
    child = raw_shard(2, ParentShards=parents)
    aws.answer({"Records": [], "ChildShards": [child]} | ending)

    reply = await scripted.get_records("iterator", limit=10)

    children = (ChildShard("shardId-000000000002", HashRange(0, LAST_HASH_KEY), frozenset(parents)),)
    assert reply == Reply([], child_shards=children)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("ExpiredIteratorException", 400, ExpiredIteratorError),
        ("ProvisionedThroughputExceededException", 400, ThrottledError),
        ("ResourceNotFoundException", 400, StreamGoneError),
        ("ResourceInUseException", 400, _InUseError),
        ("InternalFailure", 500, RetryableError),
        ("AccessDeniedException", 400, PermanentError),
        ("SomethingNew", 400, PermanentError),
    ],
)
async def test_errors_of_kinesis_become_ours_by_their_code(
    scripted: Stream, aws: ScriptedAws, code: str, status: int, expected: type[Exception]
) -> None:
    before = KINESIS_THROTTLED._value.get()
    aws.refuse(code, status=status)

    with pytest.raises(expected) as raised:
        await scripted.get_records("iterator", limit=10)

    assert type(raised.value) is expected
    assert len(aws.requests) == 1
    assert KINESIS_THROTTLED._value.get() - before == (expected is ThrottledError)
