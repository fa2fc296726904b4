from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from copy import copy
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import CREDENTIALS, client_of

from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import KinesisFault
from simplu_local.kinesis.model import KinesisOptions
from simplu_local.kinesis.server import serve_kinesis
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.fetch import pacing
from simplu_worker.consumers.kinesis.fetch.cursor import PushedCursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import Start, TrimHorizon
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions

pytestmark = pytest.mark.slow(0.5)

NAME = "stream"
SHARD = "shardId-000000000000"
QUICK = KinesisOptions(create_delay_ms=0, update_delay_ms=0, consumer_delay_ms=0, heartbeat_ms=20)
Kind = Literal["throttle", "fail", "cut", "silent", "end", "repeat"]


DECODER = RecordDecoder(NAME, SHARD, operation_max_bytes=1000, list_result_limit=1)


class World:
    """A stream of one stream shard, and a reader of it."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = url
        self.client = client
        self.memory = PrefetchMemory(8 * 1024 * 1024).open_quota()
        self.stopping = asyncio.Event()
        self.stream = Stream(client, NAME)
        self.access = StreamShardAccess(self.stream, DECODER, self.memory, lambda: 0.0)
        self.cursor = self.open(TrimHorizon())
        self.put_texts: list[str] = []
        self.read_texts: list[str] = []

    def open(self, start: Start) -> PushedCursor:
        return PushedCursor(self.access, start, Subscriptions(self.client, self.stream, "me"))

    async def put(self, count: int = 1) -> None:
        for _ in range(count):
            text = str(len(self.put_texts))
            self.put_texts.append(text)
            await self.client.put_record(StreamName=NAME, PartitionKey="k", Data=text.encode())

    async def read(self) -> None:
        reply = await self.cursor.read(self.stopping)
        self.read_texts += [] if reply is None else [record.data.decode() for record in reply.records]

    async def read_until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                await self.read()

    async def read_all(self) -> None:
        await self.read_until(lambda: len(self.read_texts) >= len(self.put_texts))
        assert self.read_texts == self.put_texts

    async def strike(self, kind: Kind, **more: Any) -> None:
        await send_commands(self.url, KinesisFault(action="SubscribeToShard", kind=kind, **more))

    async def state(self) -> dict[str, Any]:
        return await send_commands(self.url)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pacing, "CALL_INTERVAL_S", 0.2)
    monkeypatch.setattr(pacing, "RETRY_BASE_S", 0.1)
    # Much shorter than CALL_INTERVAL_S: the server counts from when it came to a call.
    monkeypatch.setattr("simplu_local.kinesis.consumers.RESUBSCRIBE_AFTER_MS", 20)
    async with serve_kinesis(options=copy(QUICK)) as url, client_of("kinesis", url) as client:
        await client.create_stream(StreamName=NAME, ShardCount=1)
        world = World(url, client)
        yield world
        world.cursor.close()


async def test_records_come_by_push_and_the_quota_of_polling_is_left(world: World) -> None:
    await world.put(3)
    await world.read_until(lambda: world.cursor.is_pushed)
    await world.read_all()
    for _ in range(5):
        await world.put()
        await world.read_all()
    await world.read()
    calls = (await world.state())["calls"]
    assert calls["RegisterStreamConsumer"] == calls["SubscribeToShard"] == 1
    assert calls.get("GetRecords", 0) <= 1  # while the consumer was CREATING
    assert (world.cursor.millis_behind, world.cursor.trouble) == (0, None)
    world.cursor.close()
    world.cursor = world.open(TrimHorizon())
    world.read_texts.clear()
    await world.read_all()
    assert (await world.state())["calls"]["RegisterStreamConsumer"] == 1


@pytest.mark.parametrize("action", ["SubscribeToShard", "RegisterStreamConsumer", "DescribeStreamConsumer"])
async def test_reader_polls_where_fan_out_is_refused(world: World, action: str) -> None:
    fault = KinesisFault(action=action, kind="fail", code="AccessDeniedException", status=400, count=99)
    await send_commands(world.url, fault)
    with capture_logs() as logs:
        for _ in range(3):
            await world.put()
            await world.read_all()
    refusals = [entry for entry in logs if entry["event"] == "subscription.refused"]
    assert (len(refusals), refusals[0]["log_level"]) == (1, "error")
    assert (world.cursor.is_pushed, world.cursor.trouble) == (False, None)
    assert "AccessDeniedException" in refusals[0]["error"]


async def test_end_of_a_stream_shard_names_the_children(world: World) -> None:
    await world.put()
    await world.read_until(lambda: world.cursor.is_pushed)
    await world.client.split_shard(StreamName=NAME, ShardToSplit=SHARD, NewStartingHashKey=str(2**127))
    await world.read_until(lambda: world.cursor.is_at_end)
    children = [child.stream_shard_id for child in world.cursor.child_shards]
    assert children == ["shardId-000000000001", "shardId-000000000002"]
    assert world.read_texts == world.put_texts
    await world.read_until(lambda: bool(world.cursor.child_shards))
    assert (world.cursor.is_at_end, world.cursor.is_pushed) == (True, False)


async def test_nothing_is_received_while_memory_is_short(world: World) -> None:
    await world.read_until(lambda: world.cursor.is_pushed)
    taken_bytes = world.memory.room_bytes
    world.memory.reserve(taken_bytes)
    before = world.memory.held_bytes
    await world.put(5)
    for _ in range(5):
        assert await asyncio.wait_for(world.cursor.read(world.stopping), 30) is None
        assert world.memory.held_bytes == before
    world.memory.release(taken_bytes)
    await world.read_all()
    world.cursor.release_memory()
    assert world.memory.held_bytes == 0
