from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import msgspec
import pytest
from support.aws.endpoints import ScriptedAws, client_of
from support.postgres.databases import copy_shard
from support.postgres.tenant_cases import fetch
from support.reader_world import (
    MARGIN,
    SETTINGS,
    WAIT,
    World,
    chain,
    eventually,
    logs,
    mixed,
    outcomes,
    reaches,
    record,
)

from simplu_local.postgres.server import PostgresServer
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, Position
from simplu_worker.timing.clock import utc_now

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1.2)]


async def test_reader_applies_each_tenants_operations_in_stream_order(world: World) -> None:
    tenants = {"a-x": "shard-1", "b-x": "shard-2", "c-x": "shard-1"}
    for tenant, shard_id in tenants.items():
        await world.provision(tenant, shard_id)
    numbers = await world.put(*mixed(*(chain(tenant, 400) for tenant in tenants)))

    async with world.reading() as reader:
        await reaches(reader, numbers[-1])

    for tenant, shard_id in tenants.items():
        assert await outcomes(await world.shard(shard_id), tenant) == ["succeeded"] * 400
        rows = await fetch(await world.shard(shard_id), "SELECT data FROM resources WHERE \"resourceName\" = 'class'")
        assert all(json.loads(row["data"])["number"] == 399 for row in rows)
    assert await world.letters() == []
    assert (reader.view.lag_s, reader.view.held_status()) == (0.0, [])


async def test_reader_lets_nobody_wait_for_an_unregistered_tenant(world: World) -> None:
    await world.provision("a-x", "shard-1")
    numbers = await world.put(*chain("a-x", 3), *chain("new-x", 3), *chain("a-x", 3, first=3))
    shard = await world.shard("shard-1")

    async with world.reading() as reader:
        await logs(shard, "a-x", 6)
        await eventually(lambda: reader.view.is_pending("new-x-1", ("new", "x")) or bool(reader.view.held_status()))
        assert not reader.view.is_pending("a-x-1", None)
        await eventually(lambda: bool(reader.view.held_status()))
        assert reader.checkpoint == Position.from_sequence_number(numbers[2])
        assert [(held["target"], held["reason"], held["tenants"]) for held in reader.view.held_status()] == [
            ("tenant new-x", "unregistered", 1)
        ]
        assert not reader.view.is_pending("new-x-1", ("new", "x"))

        more = await world.put(*chain("new-x", 3, first=3))
        await world.provision("new-x", "shard-1")
        await reaches(reader, more[-1])

    assert await outcomes(shard, "new-x") == ["succeeded"] * 6
    assert await world.letters() == []


async def test_reader_gives_up_an_unknown_tenants_operations_after_wait_and_margin(world: World) -> None:
    ahead = WAIT + MARGIN - timedelta(seconds=45)  # it takes some seconds until nothing has happened
    numbers = await world.put(record("create", "nobody-x", 0))

    async with world.reading(utc=lambda: utc_now() + ahead) as reader:
        await eventually(lambda: bool(reader.view.held_status()))
        assert reader.checkpoint is None
        await asyncio.sleep(0.5)
        assert await world.letters() == []
        ahead = WAIT + MARGIN
        await reaches(reader, numbers[0])
        ahead = timedelta(0)
        await world.put(record("create", "nobody-x", 1))
        await eventually(lambda: bool(reader.view.held_status()))

    (letter,) = await world.letters()
    assert (letter["reason"], letter["requestId"], letter["source"]["sequenceNumber"]) == (
        "unknown_tenant",
        "nobody-x-0",
        numbers[0],
    )
    assert letter["error"] == "its tenant was not registered within 960 s; register it and replay this dead letter"
    assert reader.checkpoint == Position.from_sequence_number(numbers[0])


async def test_reader_stores_what_is_no_operation_as_dead_letters_and_goes_on(world: World) -> None:
    await world.provision("a-x", "shard-1")
    garbage = [
        b"not json",
        b"\xff\xfe",
        b"[]",
        json.dumps({"operation": "create"}).encode(),
        record("create", "a-x", 90, requestId="simplu:mine"),
        record("create", "a-x", 91, resourceId="\0"),
        record("create", "a-x", 92, data={"filler": "x" * 100_000}),
        b'{"data": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ]
    unstorable = record("create", "a-x", 6, resource_id="r2", data={"text": "\0"})
    reused = record("create", "a-x", 0, resource_id="another")
    numbers = await world.put(*chain("a-x", 3), *garbage, *chain("a-x", 3, first=3), unstorable, reused)

    async with world.reading() as reader:
        await reaches(reader, numbers[-1])

    expected = ["invalid_json", "invalid_json", *["invalid_message"] * 4, "too_large", "invalid_message"]
    letters = {letter["source"]["sequenceNumber"]: letter["reason"] for letter in await world.letters()}
    assert letters == dict(zip(numbers[3:11], expected, strict=True)) | {numbers[-1]: "request_id_reused"}
    shard = await world.shard("shard-1")
    assert await outcomes(shard, "a-x") == ["succeeded"] * 6 + ["invalid_data"]


async def test_reader_waits_while_the_dead_letter_queue_refuses(world: World) -> None:
    await world.provision("a-x", "shard-1")
    name = f"not-yet-{uuid4()}"
    queue_url = world.queue_url.rpartition("/")[0] + f"/{name}"
    numbers = await world.put(*chain("a-x", 3), b"not json", *chain("a-x", 3, first=3))
    shard = await world.shard("shard-1")

    async with world.reading(queue_url=queue_url) as reader:
        await logs(shard, "a-x", 6)
        more = await world.put(*chain("a-x", 3, first=6))
        await reaches(reader, numbers[2])
        await asyncio.sleep(0.5)
        assert reader.checkpoint == Position.from_sequence_number(numbers[2])
        assert len(await outcomes(shard, "a-x")) == 6

        world.queue_url = (await world.sqs.create_queue(QueueName=name))["QueueUrl"]
        await reaches(reader, more[-1])

    assert [letter["source"]["sequenceNumber"] for letter in await world.letters()] == [numbers[3]]
    assert await outcomes(shard, "a-x") == ["succeeded"] * 9


async def test_reader_stops_reading_when_too_much_is_in_hand(world: World) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    numbers = await world.put(*chain("a-x", 60))

    async with shard.transaction() as connection:
        await connection.execute("LOCK TABLE tenants IN EXCLUSIVE MODE")  # no batch gets past it
        async with world.reading(prefetch=PrefetchMemory(32 * 1024)) as reader:
            await eventually(lambda: reader.status()["state"] == "waits for memory")
            assert len(reader._dispatcher.pipeline.entries()) < 60
            await connection.execute("ROLLBACK")
            await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["succeeded"] * 60


async def test_reader_stops_in_time_when_a_shard_is_frozen(world: World, breakable_server: PostgresServer) -> None:
    frozen = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-3")
    await world.provision("b-x", "shard-3")
    numbers = await world.put(*chain("a-x", 3))

    async with world.reading(settings=msgspec.structs.replace(SETTINGS, drain_s=0.2)) as reader:
        await reaches(reader, numbers[-1])
        breakable_server.suspend()
        await world.put(*chain("a-x", 3, first=3), record("create", "b-x", 0))
        await eventually(lambda: reader.view.is_pending("a-x-5", None) and reader.view.is_pending("b-x-0", None))
        await asyncio.sleep(0.2)
        stopped_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopped_at < SETTINGS.drain_s - 5
    assert reader.checkpoint == Position.from_sequence_number(numbers[-1])

    breakable_server.resume()
    async with world.reading(AfterSequenceNumber(numbers[-1])):
        await logs(frozen, "a-x", 6)
        await logs(frozen, "b-x", 1)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Stream, ScriptedAws]]:
    aws = ScriptedAws()
    async with aws.running() as url, client_of("kinesis", url) as client:
        yield Stream(client, "scripted"), aws
