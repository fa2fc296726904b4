"""The reader of one stream shard with everything real behind it: order, waiting, dead letters, memory, stopping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.aws.endpoints import ScriptedAws, client_of
from support.aws.kpl_aggregates import sealed
from support.postgres.databases import copy_shard
from support.postgres.tenant_cases import fetch
from support.reader_world import (
    MARGIN,
    ONLY,
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
from simplu_worker.consumers.kinesis.fetch import record_decoder
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.reader import dispatcher
from simplu_worker.consumers.kinesis.stream.aggregation import PARTS_MAX
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import AfterSequenceNumber, AtSequenceNumber, Position
from simplu_worker.consumers.pipeline import lane
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS
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


@pytest.mark.parametrize("count", [3000, 101])
async def test_aggregate_of_bad_parts_holds_up_no_record_behind_it(
    world: World, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    parts_max = PARTS_MAX if count > 101 else 100
    monkeypatch.setattr(record_decoder, "PARTS_MAX", parts_max)
    await world.provision("a-x", "shard-1")
    bomb = sealed(b"\x0a\x01k" + b"\x1a\x04\x08\x00\x1a\x00" * count)
    numbers = await world.put(*chain("a-x", 3), bomb, *chain("a-x", 3, first=3))

    async with world.reading() as reader:
        await reaches(reader, numbers[-1])

    (letter,) = await world.letters()
    assert letter["source"]["sequenceNumber"] == numbers[3]
    assert (letter.get("parts") or {}).get("bad") == (count if count <= parts_max else None)
    assert await outcomes(await world.shard("shard-1"), "a-x") == ["succeeded"] * 6


async def test_reader_reports_operations_with_a_wrong_partition_key(world: World) -> None:
    await world.provision("a-x", "shard-1")
    numbers = await world.put(*chain("a-x", 3))  # with the key `key`
    sample = "simplu_kinesis_wrong_partition_keys_total"
    before = REGISTRY.get_sample_value(sample) or 0.0

    with capture_logs() as lines:
        async with world.reading() as reader:
            await reaches(reader, numbers[-1])

    assert await outcomes(await world.shard("shard-1"), "a-x") == ["succeeded"] * 3
    assert (REGISTRY.get_sample_value(sample) or 0.0) - before == 3
    (line,) = [line for line in lines if line["event"] == "partition_key.wrong"]
    assert (line["business_id"], line["location_id"], line["partition_key"]) == ("a", "x", "key")


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


async def test_lane_waits_for_its_dead_letter_and_others_do_not(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-2")
    queue_url = world.queue_url.rpartition("/")[0] + f"/not-yet-{uuid4()}"
    one, other = [await world.shard(shard_id) for shard_id in ("shard-1", "shard-2")]
    numbers = await world.put(*chain("a-x", 3), record("create", "a-x", 0, resource_id="another"))

    async with world.reading(queue_url=queue_url) as reader:
        await logs(one, "a-x", 3)
        await world.put(*mixed(chain("a-x", 3, first=3), chain("b-x", 3)))
        await logs(other, "b-x", 3)
        assert await outcomes(one, "a-x") == ["succeeded"] * 3
        # The batch in hand is passed over as a whole, once its letter is stored.
        assert reader.checkpoint is None or reader.checkpoint < Position.from_sequence_number(numbers[3])

    assert reader.checkpoint is None or reader.checkpoint < Position.from_sequence_number(numbers[3])


async def test_reader_stops_at_once_while_the_dead_letter_queue_refuses(world: World) -> None:
    await world.provision("a-x", "shard-1")
    numbers = await world.put(*chain("a-x", 3), b"not json")
    shard = await world.shard("shard-1")

    async with world.reading(queue_url=world.queue_url + "-not-there") as reader:
        await logs(shard, "a-x", 3)
        await eventually(lambda: reader.checkpoint == Position.from_sequence_number(numbers[2]))
        stopped_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopped_at < SETTINGS.drain_s / 2
    assert reader.checkpoint == Position.from_sequence_number(numbers[2])

    async with world.reading(AfterSequenceNumber(numbers[2])) as reader:
        await reaches(reader, numbers[3])
    assert [letter["reason"] for letter in await world.letters()] == ["invalid_json"]


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


async def test_reader_decodes_nothing_beyond_what_it_sends_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATE_AFTER_S", "HOLD_AFTER_S"):
        monkeypatch.setattr(lane, name, 60.0)
    monkeypatch.setattr(dispatcher, "AHEAD_MAX_COUNT", 1)
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")

    async with world.reading() as reader:
        async with shard.transaction() as connection:
            await connection.execute("LOCK TABLE tenants IN EXCLUSIVE MODE")  # no batch gets past it
            await world.put(record("create", "a-x", 0))
            await eventually(lambda: reader.view.is_pending("a-x-0", None))
            (second,) = await world.put(record("update", "a-x", 1))
            await eventually(lambda: reader._is_dispatching)
            await asyncio.sleep(0.1)
            assert not reader.view.is_pending("a-x-1", None)
            assert not reader.is_caught_up
        await reaches(reader, second)

    assert await outcomes(shard, "a-x") == ["succeeded"] * 2


async def test_reader_goes_on_for_others_while_its_only_lane_is_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "LATE_AFTER_S", 0.1)
    monkeypatch.setattr(lane, "HOLD_AFTER_S", 60.0)
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-2")

    async with world.reading() as reader, (await world.shard("shard-1")).transaction() as connection:
        await connection.execute("LOCK TABLE tenants IN EXCLUSIVE MODE")  # no batch gets past it
        await world.put(record("create", "a-x", 0))
        await eventually(lambda: reader.view.is_pending("a-x-0", None))
        await world.put(record("create", "b-x", 0))
        await logs(await world.shard("shard-2"), "b-x", 1)
        assert reader.view.is_pending("a-x-0", None)


async def test_reader_applies_a_healthy_shards_new_tenant_while_another_shard_is_frozen(
    world: World, breakable_server: PostgresServer
) -> None:
    frozen = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-1")
    for number in range(20):
        await world.provision(f"f{number}-x", "shard-3")
    shard = await world.shard("shard-1")
    breakable_server.suspend()

    async with world.reading() as reader:
        await world.put(*(record("create", f"f{number}-x", 0) for number in range(20)))
        await eventually(lambda: reader.view.is_pending("f19-x-0", None))
        await world.put(record("create", "a-x", 0))
        await logs(shard, "a-x", 1, within_s=DEFAULT_TIMEOUTS.connect_s - 0.5)  # before any of those lookups fails

        breakable_server.resume()
        await eventually(lambda: not reader.view.held_status() and not reader.view.is_pending("f7-x-0", None))

    assert len(await fetch(frozen, "SELECT FROM operations")) == 20


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


@pytest.mark.parametrize("state", ["fenced", "incoming", "ready"])
async def test_reader_holds_a_tenant_that_is_not_active(world: World, state: str) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-1")
    shard = await world.shard("shard-1")
    set_state = "WITH changed AS (UPDATE tenants SET state = $1 WHERE id = 'a-x' RETURNING 1) SELECT FROM changed"

    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await logs(shard, "a-x", 3)
        await fetch(shard, set_state, state)
        await world.put(*mixed(chain("a-x", 3, first=3), chain("b-x", 3, first=3)))
        await logs(shard, "b-x", 6)
        await eventually(lambda: [held["reason"] for held in reader.view.held_status()] == ["moving"])
        numbers = await world.put(*mixed(chain("a-x", 3, first=6), chain("b-x", 3, first=6)))
        await logs(shard, "b-x", 9)
        assert await outcomes(shard, "a-x") == ["succeeded"] * 3

        await fetch(shard, set_state, "active")
        await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["succeeded"] * 9


async def test_reader_holds_what_is_behind_the_batch_too(world: World) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await world.put(*chain("a-x", 3))

    async with world.reading() as reader:
        await logs(shard, "a-x", 3)
        await fetch(shard, "UPDATE tenants SET state = 'fenced' RETURNING id")
        numbers = await world.put(*chain("a-x", 1500, first=3))
        await eventually(lambda: reader.read_to is not None and reader.read_to.sequence_number == numbers[-1])
        await eventually(lambda: [held["reason"] for held in reader.view.held_status()] == ["moving"])
        assert (reader._dispatcher.pipeline.entries(), await outcomes(shard, "a-x")) == ([], ["succeeded"] * 3)
        await fetch(shard, "UPDATE tenants SET state = 'active' RETURNING id")
        await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["succeeded"] * 1503


@pytest.mark.parametrize("is_held", [False, True])
async def test_reader_keeps_the_order_when_another_reader_finds_the_tenant_first(
    world: World, *, is_held: bool
) -> None:
    await world.put(*chain("new-x", 3))

    async with world.reading() as reader:
        await eventually(
            lambda: bool(reader.view.held_status()) if is_held else reader.view.is_pending("new-x-2", None)
        )
        await world.provision("new-x", "shard-1")
        await world.gateway.find("new-x")
        numbers = await world.put(*chain("new-x", 3, first=3))
        await reaches(reader, numbers[-1])

    assert await outcomes(await world.shard("shard-1"), "new-x") == ["succeeded"] * 6


async def test_reader_follows_a_tenant_that_moved(world: World) -> None:
    await world.provision("a-x", "shard-1")
    old, new = [await world.shard(shard_id) for shard_id in ("shard-1", "shard-2")]

    async with world.reading() as reader:
        await world.put(*chain("a-x", 3))
        await logs(old, "a-x", 3)
        await fetch(
            new,
            "INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)"
            " VALUES ('a-x', 'a', 'x', 'gym', 'active', now(), now()) RETURNING id",
        )
        await fetch(old, "UPDATE tenants SET state = 'moved', moved_to = 'shard-2' WHERE id = 'a-x' RETURNING id")
        numbers = await world.put(*chain("a-x", 30, first=3))
        await reaches(reader, numbers[-1])

    assert await outcomes(old, "a-x") == ["succeeded"] * 3
    assert await outcomes(new, "a-x") == ["succeeded"] * 30


async def test_second_reader_ends_with_the_same_rows_when_the_first_is_stopped_in_the_middle(world: World) -> None:
    tenants = {"a-x": "shard-1", "b-x": "shard-2"}
    for tenant, shard_id in tenants.items():
        await world.provision(tenant, shard_id)
    one, other = [await world.shard(shard_id) for shard_id in tenants.values()]
    numbers = await world.put(*mixed(*(chain(tenant, 600) for tenant in tenants)))

    async with other.transaction() as connection:
        await connection.execute("LOCK TABLE tenants IN EXCLUSIVE MODE")  # no batch gets past it
        async with world.reading(settings=msgspec.structs.replace(SETTINGS, drain_s=0.2)) as reader:
            await logs(one, "a-x", 600)
            await reaches(reader, numbers[0])
    assert reader.checkpoint == Position.from_sequence_number(numbers[0])

    async with world.reading(AfterSequenceNumber(numbers[0])) as reader:
        await reaches(reader, numbers[-1])
    for shard, tenant in ((one, "a-x"), (other, "b-x")):
        assert await outcomes(shard, tenant) == ["succeeded"] * 600
    assert await world.letters() == []


async def test_reader_passes_over_the_record_of_its_checkpoint(world: World) -> None:
    await world.provision("a-x", "shard-1")
    numbers = await world.put(b"not json", *chain("a-x", 3))

    async with world.reading(
        AtSequenceNumber(numbers[0]), checkpoint=Position.from_sequence_number(numbers[0])
    ) as reader:
        await reaches(reader, numbers[-1])

    assert await world.letters() == []
    assert await outcomes(await world.shard("shard-1"), "a-x") == ["succeeded"] * 3


async def test_two_readers_of_one_stream_shard_do_no_harm(world: World) -> None:
    await world.provision("a-x", "shard-1")
    numbers = await world.put(*chain("a-x", 1500))

    async with world.reading() as one, world.reading() as other:
        await reaches(one, numbers[-1])
        await reaches(other, numbers[-1])

    assert await outcomes(await world.shard("shard-1"), "a-x") == ["succeeded"] * 1500
    assert await world.letters() == []


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Stream, ScriptedAws]]:
    """Give a stream that answers by a script, and the script."""
    aws = ScriptedAws()
    async with aws.running() as url, client_of("kinesis", url) as client:
        yield Stream(client, "scripted"), aws


def reply(*sequence_numbers: str, next_iterator: str | None) -> dict[str, Any]:
    """Return a reply to GetRecords with records that are no JSON."""
    return {
        "Records": [
            {"SequenceNumber": number, "PartitionKey": "k", "Data": "e30=", "ApproximateArrivalTimestamp": 1790000000}
            for number in sequence_numbers
        ],
        "NextShardIterator": next_iterator,
        "MillisBehindLatest": 1,
    }


async def test_reader_goes_on_behind_the_last_record_when_its_iterator_expired(
    world: World, scripted: tuple[Stream, ScriptedAws]
) -> None:
    world.stream, aws = scripted
    child = {
        "ShardId": "shardId-000000000001",
        "ParentShards": [ONLY],
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"},
    }
    aws.answer({"ShardIterator": "first"})
    aws.answer(reply("11", "12", next_iterator="second"))
    aws.refuse("ProvisionedThroughputExceededException")
    aws.refuse("ExpiredIteratorException")
    aws.answer({"ShardIterator": "third"})
    aws.answer(reply("13", next_iterator=None) | {"ChildShards": [child]})

    async with world.reading() as reader:
        await eventually(lambda: reader.is_finished)

    assert [(name, asked.get("ShardIterator")) for name, asked in aws.requests if name == "GetRecords"] == [
        ("GetRecords", "first"),
        ("GetRecords", "second"),
        ("GetRecords", "second"),
        ("GetRecords", "third"),
    ]
    assert [asked.get("StartingSequenceNumber") for name, asked in aws.requests if name == "GetShardIterator"] == [
        None,
        "12",
    ]
    assert (reader.checkpoint, reader.is_at_end) == (Position.from_sequence_number("13"), True)
    assert sorted(letter["source"]["sequenceNumber"] for letter in await world.letters()) == ["11", "12", "13"]
