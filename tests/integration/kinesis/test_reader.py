from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import msgspec
import pytest
from support.postgres.databases import copy_shard
from support.postgres.trouble import make_touchy
from support.reader_world import SETTINGS, WAIT, World, chain, eventually, logs, outcomes, reaches, record

from simplu_local.postgres.server import PostgresServer
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, Position
from simplu_worker.operations.tries import RetryRules

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1.2)]


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


async def test_reader_goes_on_beside_letters_that_are_not_stored(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-1")
    name = f"not-yet-{uuid4()}"
    queue_url = world.queue_url.rpartition("/")[0] + f"/{name}"
    reused = record("create", "a-x", 0, resource_id="another")
    failing = record("create", "b-x", 0, data={"raise": "P0001"})
    numbers = await world.put(*chain("a-x", 3), reused, b"not json", failing, *chain("a-x", 3, first=3))
    shard = await world.shard("shard-1")
    await make_touchy(shard)

    settings = msgspec.structs.replace(SETTINGS, retries=RetryRules((), WAIT))
    async with world.reading(queue_url=queue_url, settings=settings) as reader:
        await logs(shard, "a-x", 6)
        more = await world.put(*chain("a-x", 3, first=6))
        await logs(shard, "a-x", 9)
        assert reader.progress.checkpoint == Position.from_sequence_number(numbers[2])
        assert "a-x" in reader.progress.all_pending_tenants()  # of the operation without its letter

        world.queue_url = (await world.sqs.create_queue(QueueName=name))["QueueUrl"]
        await reaches(reader, more[-1])

    assert {letter["source"]["sequenceNumber"] for letter in await world.letters()} == set(numbers[3:6])
    assert await outcomes(shard, "a-x") == ["succeeded"] * 9
    assert await outcomes(shard, "b-x") == ["retries_exhausted"]


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
    assert reader.progress.checkpoint == Position.from_sequence_number(numbers[-1])

    breakable_server.resume()
    async with world.reading(AfterSequenceNumber(numbers[-1])):
        await logs(frozen, "a-x", 6)
        await logs(frozen, "b-x", 1)
