from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import REGION, client_of
from support.aws.kpl_aggregates import aggregate
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import fetch
from support.reader_world import MARGIN, SETTINGS, WAIT, World, eventually, is_caught_up, open_world, reaches, record
from support.settings import settings_in

from simplu_worker.aws import sending
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.commands.dead_letters.command import discard_dead_letters, list_dead_letters, replay_dead_letters
from simplu_worker.commands.output import show
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon
from simplu_worker.dead_letters import queue
from simplu_worker.dead_letters.plan import ALL_LETTERS, EditRequest, LettersRequest
from simplu_worker.dead_letters.queue import DeadLetterBrowser, DeadLetterQueue
from simplu_worker.dead_letters.service import DeadLetterService, LettersAction
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.status.guard import Actor
from simplu_worker.status.lookups import LetterRequests
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import DeadLetterReason, Source

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1.5)]

APPLY = LettersRequest(apply=True, limit=ALL_LETTERS)
PLAN = LettersRequest(limit=ALL_LETTERS)
OPERATOR = Actor("operator", "10.0.0.1")
INVALID = DeadLetterReason.INVALID_JSON
GIVEN_UP = DeadLetterReason.RETRIES_EXHAUSTED


@pytest.fixture
async def world(endpoint_url: str, kinesis_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(endpoint_url, make_shard) as world, client_of("kinesis", kinesis_url) as kinesis:
        world.kinesis = kinesis
        world.stream = Stream(kinesis, f"stream-{uuid4()}")
        await world.stream.ensure(create=True, stream_shard_count=1)
        yield world


class Ended(NamedTuple):
    status: int
    json: Any


class Bench:
    def __init__(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self.more: dict[str, str] = {}
        self._capfd = capfd

    @property
    def settings(self) -> Settings:
        env = {
            "AWS_REGION": REGION,
            "KINESIS_STREAM_NAME": self.world.stream.name,
            "SQS_DEAD_LETTER_QUEUE_URL": self.world.queue_url,
            "OPERATION_MAX_BYTES": "100000",
        }
        return settings_in(env | self.more)

    async def _run(self, command: Awaitable[int]) -> Ended:
        self._capfd.readouterr()
        status = await command
        return Ended(status, json.loads(self._capfd.readouterr().out))

    async def replay(self, request: LettersRequest = APPLY) -> Ended:
        return await self._run(show(replay_dead_letters(self.settings, request), as_json=True))

    async def discard(self, request: LettersRequest) -> Ended:
        return await self._run(show(discard_dead_letters(self.settings, request), as_json=True))

    async def shown(self, request: LettersRequest = PLAN) -> Ended:
        return await self._run(show(list_dead_letters(self.settings, request), as_json=True))

    async def store(self, *letters: DeadLetter, url: str | None = None) -> None:
        await DeadLetterQueue(self.world.sqs, url or self.world.queue_url).store(letters, stopping=asyncio.Event())

    async def receive_counts(self, url: str) -> set[int]:
        counts = set[int]()
        while messages := (
            await self.world.sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["ApproximateReceiveCount"]
            )
        ).get("Messages"):
            counts |= {int(message["Attributes"]["ApproximateReceiveCount"]) - 1 for message in messages}
        return counts

    async def count(self, url: str | None = None) -> tuple[int, int]:
        attributes = await Queue(self.world.sqs, url or self.world.queue_url).read_attributes()
        return attributes.visible_count, attributes.in_flight_count

    async def new_queue(self, name: str, **attributes: str) -> str:
        made = await self.world.sqs.create_queue(QueueName=f"{uuid4()}-{name}", Attributes=attributes)
        return str(made["QueueUrl"])

    async def records(self) -> list[bytes]:
        (shard,) = await self.world.stream.list_stream_shards()
        iterator = await self.world.stream.get_iterator(shard.stream_shard_id, TrimHorizon())
        return [one.data for one in (await self.world.stream.get_records(iterator, limit=10_000)).records]


@pytest.fixture
def bench(
    world: World,
    endpoint_url: str,
    kinesis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Bench:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    monkeypatch.setattr(queue, "POLL_WAIT_S", 0)  # moto has but one server, which knows at once
    return Bench(world, capfd)


def letter(
    bench: Bench,
    data: bytes,
    number: str = "1",
    *,
    reason: DeadLetterReason = GIVEN_UP,
    failed_at: datetime = datetime(2026, 1, 2, tzinfo=UTC),
    **origin: Any,
) -> DeadLetter:
    place: dict[str, Any] = {
        "source": Source.KINESIS,
        "name": bench.world.stream.name,
        "arrived_at": datetime(2026, 1, 1, tzinfo=UTC),
        "stream_shard_id": "shardId-000000000000",
        "sequence_number": number,
        "partition_key": "key",
    }
    return DeadLetter(
        reason=reason, error="", origin=Origin(**place | origin), failed_at=failed_at, attempts=4, record=data
    )


def without_id(data: bytes) -> bytes:
    members = json.loads(data)
    return json.dumps({name: members[name] for name in members if name not in {"requestId", "resourceId"}}).encode()


@asynccontextmanager
async def late_reader(world: World) -> AsyncIterator[Any]:
    async with world.reading(utc=lambda: utc_now() + WAIT + MARGIN + timedelta(seconds=5)) as reader:
        yield reader


async def test_replayed_operations_are_applied_exactly_once(bench: Bench) -> None:
    world = bench.world
    sent = [
        record("create", "late-x", 1),
        record("update", "late-x", 2),
        without_id(record("create", "late-x", 3)),
        record("patch", "late-x", 4),
    ]
    numbers = await world.put(*sent)
    async with late_reader(world) as reader:
        await reaches(reader, numbers[-1])
    listed = await bench.shown()
    assert [row["reason"] for row in listed.json["letters"]] == ["unknown_tenant"] * 4
    assert {row["locationId"] for row in listed.json["letters"]} == {"x"}
    derived = next(row for row in listed.json["letters"] if row["sequenceNumber"] == numbers[2])["requestId"]

    await world.provision("late-x", "shard-1")
    shard = await world.shard("shard-1")
    planned = await bench.replay(PLAN)
    assert (planned.status, planned.json["wouldSend"], planned.json["sent"]) == (0, 4, 0)
    assert (await bench.count(), len(await bench.records())) == ((4, 0), 4)
    done = await bench.replay()
    assert (done.status, done.json["sent"], done.json["left"]) == (0, 4, 0)
    assert await bench.count() == (0, 0)
    put_again = (await bench.records())[4:]
    assert [put_again[place] for place in (0, 1, 3)] == [sent[place] for place in (0, 1, 3)]

    for _ in range(2):
        async with world.reading() as reader:
            await eventually(lambda: is_caught_up(reader))
        rows = await fetch(shard, "SELECT request_id, status, resource_id FROM operations ORDER BY batch_id, position")
        assert [(row["request_id"], row["status"]) for row in rows] == [
            ("late-x-1", "succeeded"),
            ("late-x-2", "succeeded"),
            (derived, "succeeded"),
            ("late-x-4", "succeeded"),
        ]
        assert rows[2]["resource_id"] == derived
        data = await fetch(shard, "SELECT data FROM resources WHERE \"resourceId\" = 'r1'")
        assert [json.loads(row["data"])["number"] for row in data] == [4]
    assert (await world.letters()) == []


async def test_replay_after_a_kill_sends_again_what_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    world = bench.world
    await world.provision("a-x", "shard-1")
    data = [record("create", "a-x", 1), without_id(record("create", "a-x", 2))]
    await bench.store(*(letter(bench, one, str(number)) for number, one in enumerate(data, 1)))

    class KilledError(BaseException): ...

    async def killed(self: DeadLetterBrowser, message_ids: Any) -> set[str]:
        raise KilledError

    async def keep(self: DeadLetterBrowser) -> None:
        hidden.extend(self._in_flight.values())

    hidden: list[Message] = []
    with monkeypatch.context() as patch:
        patch.setattr(queue, "visibility_timeout_s", lambda count: 600)
        patch.setattr(DeadLetterBrowser, "delete", killed)
        patch.setattr(DeadLetterBrowser, "_return_all", keep)
        with pytest.raises(KilledError):
            await bench.replay()
    assert len(await bench.records()) >= 1
    too_early = await bench.replay()
    assert (too_early.status, too_early.json["hidden"], too_early.json["sent"]) == (1, 2, 0)
    letters = Queue(bench.world.sqs, bench.world.queue_url)
    await letters.change_visibility_batch([(one, 0) for one in hidden])  # as after their timeout
    assert await bench.count() == (2, 0)
    done = await bench.replay()
    assert (done.status, done.json["sent"]) == (0, 2)
    assert await bench.count() == (0, 0)
    assert len(await bench.records()) >= 3

    async with world.reading() as reader:
        await eventually(lambda: is_caught_up(reader))
    rows = await fetch(await world.shard("shard-1"), "SELECT status FROM operations")
    assert [row["status"] for row in rows] == ["succeeded"] * 2
    assert await world.letters() == []


async def test_list_prints_what_is_meant_and_leaves_all_of_it(bench: Bench) -> None:
    secret = {"note": "private"}
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in (3, 1, 2)]
    await bench.store(
        *(
            letter(bench, record("create", f"t{n}-x", n, data=secret), str(n), failed_at=moment)
            for n, moment in enumerate(moments)
        ),
        letter(bench, b"\xffprivate", "9", reason=DeadLetterReason.INVALID_JSON, failed_at=moments[0]),
    )
    await bench.world.sqs.send_message(QueueUrl=bench.world.queue_url, MessageBody='{"private": 1}')
    for _ in range(2):
        listed = await bench.shown()
        assert [row["failedAt"][:10] for row in listed.json["letters"]] == [
            "2026-01-01",
            "2026-01-02",
            "2026-01-03",
            "2026-01-03",
        ]
        assert (listed.status, len(listed.json["notLetters"]), listed.json["isCut"]) == (0, 1, False)
        assert "private" not in json.dumps(listed.json)
        assert await bench.count() == (5, 0)
    tenant: dict[str, Any] = {"business_id": "t1", "location_id": "x"}
    some = await bench.shown(
        LettersRequest(**tenant, since=moments[1], until=moments[2], source=Source.KINESIS, limit=10, records=True)
    )
    (row,) = some.json["letters"]
    assert json.loads(row["record"])["data"] == secret
    assert (row["businessId"], row["streamShard"], some.json["notLetters"]) == ("t1", "shardId-000000000000", [])
    (named,) = (await bench.shown(LettersRequest(message_ids=frozenset({row["messageId"], "another"})))).json["letters"]
    assert named["messageId"] == row["messageId"]
    invalid = await bench.shown(LettersRequest(frozenset({INVALID}), limit=10, records=True))
    assert [row["recordBase64"] for row in invalid.json["letters"]] == ["/3ByaXZhdGU="]
    cut = await bench.shown(LettersRequest(limit=2))
    assert (cut.status, len(cut.json["letters"]), cut.json["isCut"]) == (0, 2, True)
    service = DeadLetterService(bench.settings)
    in_a_byte = await service.list(LettersRequest(records=True), print, room_bytes=1)
    assert (len(in_a_byte["letters"]), in_a_byte["isCut"]) == (1, True)
    assert await bench.count() == (5, 0)


async def test_replay_leaves_by_name_what_is_not_meant_or_cannot_go(bench: Bench) -> None:
    good = letter(bench, record("create", "a-x", 1), "1")
    await bench.store(
        good,
        letter(bench, record("create", "a-x", 2), "2", name="another"),
        letter(bench, b"{", "3", reason=DeadLetterReason.INVALID_JSON),
        letter(bench, record("create", "b-x", 4), "4"),
    )
    await bench.world.sqs.send_message(QueueUrl=bench.world.queue_url, MessageBody="nonsense")
    done = await bench.replay(msgspec.structs.replace(APPLY, business_id="a", location_id="x"))
    assert (done.status, done.json["sent"], done.json["left"]) == (1, 1, 1)
    rest = await bench.replay(PLAN)
    why = sorted(outcome.get("why", outcome["status"]) for outcome in rest.json["letters"])
    assert (rest.status, why) == (1, ["not_a_letter", "source_not_configured", "would send", "would_come_back"])
    forced = await bench.replay(LettersRequest(frozenset({INVALID}), apply=True, force=True))
    assert (forced.status, forced.json["sent"]) == (0, 1)
    assert (await bench.records())[-1] == b"{"
    one = await bench.replay(LettersRequest(apply=True, limit=1))
    assert one.json["sent"] + one.json["left"] == 2  # the first of the letters, and a message that is none
    nothing = await bench.replay(LettersRequest(business_id="nobody", location_id="x", apply=True))
    assert (nothing.status, nothing.json["letters"]) == (0, [])


async def test_replay_takes_a_truncated_record_from_the_stream(bench: Bench) -> None:
    world = bench.world
    noise = hashlib.shake_256(b"n").hexdigest(30_000)
    big = [record("create", "a-x", n, resource_id=f"r{n}", data={"noise": noise[n:]}) for n in range(3)]
    packed = aggregate([("key", None, big[0]), ("key", None, big[1])])
    whole, part, other = await world.put(big[2], packed, big[0])
    small = await bench.new_queue("letters", MaximumMessageSize="2000")
    bench.more["SQS_DEAD_LETTER_QUEUE_URL"] = small
    await bench.store(
        letter(bench, big[2], whole),
        letter(bench, big[1], part, sub_sequence_number=1),
        letter(bench, big[1], other),  # something else is there
        letter(bench, big[1], "77" * 20),  # and nothing at all
        url=small,
    )
    done = await bench.replay()
    assert (done.status, done.json["sent"], done.json["left"]) == (1, 2, 2)
    assert {outcome["why"] for outcome in done.json["letters"] if outcome["status"] == "left"} == {"record_gone"}
    assert (await bench.records())[3:] == [big[2], big[1]]


@pytest.mark.parametrize(
    ("is_aggregate", "bad_count", "is_cut"), [(True, 2, True), (True, 2, False), (False, 2, True), (False, 11, True)]
)
async def test_replay_sends_only_the_bad_parts_of_a_record(
    bench: Bench, *, is_aggregate: bool, bad_count: int, is_cut: bool
) -> None:
    """Each part is applied once, though none has a requestId and the stream is read again.

    Few bad parts of an array have a letter each, many share one. With *is_cut* the letters have no room for the parts,
    which come from the stream then.
    """
    world = bench.world
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    noise = hashlib.shake_256(b"n").hexdigest(4000)
    parts = [without_id(record("create", "a-x", n, data={"noise": noise if n < bad_count else ""})) for n in range(13)]
    strict = msgspec.structs.replace(SETTINGS, operation_max_bytes=1000)
    packed = aggregate([(f"k{n}", None, part) for n, part in enumerate(parts)])
    await world.put(packed if is_aggregate else b"[%b]" % b",".join(parts))
    url = await bench.new_queue("letters", MaximumMessageSize="2000") if is_cut else world.queue_url
    bench.more["SQS_DEAD_LETTER_QUEUE_URL"] = url

    async with world.reading(settings=strict, queue_url=url) as reader:
        await eventually(lambda: is_caught_up(reader) and reader.progress.checkpoint is not None)
    listed = (await bench.shown()).json["letters"]
    assert len(listed) == (2 if not is_aggregate and bad_count == 2 else 1)
    assert {one["truncated"] for one in listed} == {is_cut}

    done = await bench.replay()
    assert (done.status, done.json["left"]) == (0, 0)
    assert len(await bench.records()) == 1 + bad_count
    for _ in range(2):  # from the beginning: the good parts, and those that were sent
        async with world.reading() as reader:
            await eventually(lambda: is_caught_up(reader))
    rows = await fetch(shard, "SELECT status, count(*) FROM operations GROUP BY status")
    assert [tuple(row.values()) for row in rows] == [("succeeded", 13)]
    assert len(await fetch(shard, "SELECT FROM resources WHERE \"resourceName\" = 'class'")) == 13
    assert await world.letters() == []


async def received(bench: Bench, url: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            reply = await bench.world.sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=1,
                WaitTimeSeconds=1,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            for message in reply.get("Messages", []):
                await bench.world.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                found.append(message)
    return found


async def test_replay_sends_messages_to_their_queues(bench: Bench) -> None:
    control = await bench.new_queue("control")
    orders = await bench.new_queue("orders.fifo", FifoQueue="true")
    bench.more["SQS_SHARD_CREATION_QUEUE_URL"] = control
    one = letter(
        bench,
        b'{"businessId":"b"}',
        source=Source.SQS,
        name=control.rpartition("/")[2],
        message_id="m-0",
        partition_key=None,
    )
    attributes = {"MessageType": "SHARD_CREATION", "other": "ż"}
    await bench.store(msgspec.structs.replace(one, message_attributes=attributes))
    done = await bench.replay()
    assert (done.status, done.json["sent"]) == (0, 1)
    (message,) = await received(bench, control, 1)
    assert message["Body"] == '{"businessId":"b"}'
    assert {name: value["StringValue"] for name, value in message["MessageAttributes"].items()} == attributes

    bench.more["SQS_ORDER_EVENTS_QUEUE_URL"] = orders
    event = {"type": "UPDATE", "businessId": "b", "locationId": "l"}
    events = [
        letter(
            bench,
            json.dumps(event | {"orderId": f"o-{n % 2}", "data": {"n": n}}).encode(),
            str(1000 + n),
            source=Source.SQS,
            name=orders.rpartition("/")[2],
            message_id=f"m-{n}",
            group_id=f"g-{n % 2}",
            partition_key=None,
        )
        for n in range(24)
    ]
    events = [msgspec.structs.replace(event, request_id=f"d-{n}") for n, event in enumerate(events)]
    for _ in range(2):  # as after a kill: within five minutes SQS drops the second
        await bench.store(*events[::-1])
        done = await bench.replay()
        assert (done.status, done.json["sent"]) == (0, 24)
    assert (await bench.count(orders))[0] == 24
    messages = await received(bench, orders, 24)
    for group in range(2):
        bodies = [
            json.loads(message["Body"])
            for message in messages
            if message["Attributes"]["MessageGroupId"] == f"g-{group}"
        ]
        assert [body["data"]["n"] for body in bodies] == list(range(group, 24, 2))
        assert [body["deduplicationId"] for body in bodies] == [f"d-{n}" for n in range(group, 24, 2)]


@pytest.mark.parametrize("name", ["standard", "letters.fifo"])
async def test_discard_deletes_the_letters_of_its_plan_alone(bench: Bench, name: str) -> None:
    is_fifo = name.endswith(".fifo")
    url = await bench.new_queue(name, **({"FifoQueue": "true"} if is_fifo else {}))
    bench.more["SQS_DEAD_LETTER_QUEUE_URL"] = url
    wanted = [letter(bench, b"{", str(number), reason=INVALID) for number in range(25)]
    kept = [letter(bench, b"[]", str(number), reason=GIVEN_UP, partition_key="other") for number in range(3)]
    await bench.store(*wanted, *kept, url=url)
    fifo = {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if is_fifo else {}
    await bench.world.sqs.send_message(QueueUrl=url, MessageBody="no letter", **fifo)
    chosen = LettersRequest(frozenset({INVALID}), limit=ALL_LETTERS)

    planned = await bench.discard(chosen)
    assert (planned.status, planned.json["applied"], planned.json["discarded"]) == (0, False, 0)
    assert planned.json["wouldDiscard"] + planned.json["behind"] == 25
    assert (await bench.count(url))[0] == 29
    few = await bench.discard(msgspec.structs.replace(chosen, apply=True, limit=4))
    assert (few.status, few.json["discarded"], [one["count"] for one in few.json["letters"]]) == (0, 4, [4])
    done = await bench.discard(msgspec.structs.replace(chosen, apply=True))
    assert (done.status, done.json["discarded"], done.json["left"]) == (0, 21, 0)
    assert await bench.count(url) == (4, 0)
    shown = await bench.shown()
    assert [row["reason"] for row in shown.json["letters"]] == ["retries_exhausted"] * 3
    assert len(shown.json["notLetters"]) == 1


async def test_letters_that_are_too_many_for_a_run_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplu_worker.dead_letters.queue.IN_FLIGHT_MAX", 10)
    bench.more["SQS_DEAD_LETTER_QUEUE_URL"] = await bench.new_queue("crowded")
    url = bench.more["SQS_DEAD_LETTER_QUEUE_URL"]
    valid = record("create", "late-x", 1)
    await bench.store(*(letter(bench, valid, str(number), partition_key=str(number)) for number in range(25)), url=url)

    planned = await bench.discard(PLAN)
    assert (planned.status, planned.json["wouldDiscard"] + planned.json["behind"]) == (0, 25)
    sent = await bench.replay()
    assert (sent.status, sent.json["sent"] + sent.json["behind"]) == (1, 25)
    discarded = await bench.discard(APPLY)
    assert (discarded.status, discarded.json["discarded"] + discarded.json["behind"]) == (1, sent.json["behind"])
    last = await bench.discard(APPLY)
    assert (last.status, last.json["discarded"], last.json["behind"]) == (0, discarded.json["behind"], 0)


async def test_letters_are_looked_at_replayed_and_discarded_over_http(bench: Bench) -> None:
    desk = LetterRequests(bench.settings)
    valid = record("create", "late-x", 1)
    early, late = datetime(2026, 1, 2, tzinfo=UTC), utc_now() + timedelta(hours=1)
    await bench.store(
        letter(bench, valid, "1", failed_at=early),
        letter(bench, b"{", "2", reason=INVALID, failed_at=early),
        letter(bench, b"{", "3", reason=INVALID, failed_at=late),
    )
    status, listed = await desk.act(LettersAction.LIST, LettersRequest(frozenset({GIVEN_UP}), records=True), OPERATOR)
    assert (status, [one["record"] for one in listed["letters"]]) == (200, [valid.decode()])
    assert any("hidden from other readers" in note for note in listed["notes"])
    assert (
        "record"
        not in (await desk.act(LettersAction.LIST, LettersRequest(frozenset({GIVEN_UP})), OPERATOR))[1]["letters"][0]
    )

    _, planned = await desk.act(LettersAction.REPLAY, LettersRequest(frozenset({GIVEN_UP})), OPERATOR)
    assert (planned["applied"], planned["wouldSend"]) == (False, 1)
    assert (await desk.act(LettersAction.REPLAY, LettersRequest(frozenset({GIVEN_UP}), apply=True), OPERATOR))[0] == 400
    until = datetime.fromisoformat(planned["until"])
    with capture_logs() as logs:
        _, sent = await desk.act(
            LettersAction.REPLAY, LettersRequest(frozenset({GIVEN_UP}), until=until, apply=True), OPERATOR
        )
    assert (sent["sent"], await bench.records()) == (1, [valid])

    (line,) = [one for one in logs if one["event"] == "operator.acted"]
    assert (line["action"], line["peer"], line["apply"], line["error"]) == ("replay_letters", "10.0.0.1", True, None)
    assert line["asked"] == {"reasons": [GIVEN_UP], "until": until, "limit": 1000}
    assert (line["outcome"]["sent"], line["outcome"]["left"]) == (1, 0)
    assert valid.decode() not in str(logs)

    (_, plan), (busy, _) = await asyncio.gather(
        desk.act(LettersAction.DISCARD, LettersRequest(), OPERATOR),
        desk.act(LettersAction.DISCARD, LettersRequest(), OPERATOR),
    )
    assert (plan["wouldDiscard"], busy) == (1, 409)
    request = LettersRequest(until=datetime.fromisoformat(plan["until"]), apply=True)
    _, done = await desk.act(LettersAction.DISCARD, request, OPERATOR)
    assert (done["discarded"], done["left"], await bench.count()) == (1, 0, (1, 0))


async def test_corrected_letter_has_a_new_id_linked_to_the_old_one(bench: Bench) -> None:
    desk = LetterRequests(bench.settings)
    valid = record("create", "late-x", 1)
    await bench.store(letter(bench, b"{", "1", reason=INVALID), letter(bench, valid, "2"))
    (row,) = (await desk.act(LettersAction.LIST, LettersRequest(frozenset({INVALID})), OPERATOR))[1]["letters"]
    status, plan = await desk.act(LettersAction.EDIT, EditRequest(row["messageId"], valid.decode()), OPERATOR)
    assert (status, plan["applied"], plan["sent"], await bench.records()) == (200, False, 0, [])
    assert (plan["operation"], plan["requestId"] != plan["oldRequestId"]) == ("create", True)
    wanted = EditRequest(row["messageId"], valid.decode(), apply=True)
    assert (await desk.act(LettersAction.EDIT, wanted, OPERATOR))[0] == 400  # without the id of the plan
    assert (await desk.act(LettersAction.EDIT, EditRequest(row["messageId"], "{"), OPERATOR))[0] == 400
    with capture_logs() as logs:
        status, done = await desk.act(
            LettersAction.EDIT, msgspec.structs.replace(wanted, request_id=plan["requestId"]), OPERATOR
        )
    (sent,) = await bench.records()
    assert (status, done["sent"], json.loads(sent)["requestId"]) == (200, 1, plan["requestId"])
    assert await bench.count() == (1, 0)
    (line,) = [one for one in logs if one["event"] == "operator.acted"]
    assert (line["action"], line["apply"], line["outcome"]["sent"]) == ("edit_letter", True, 1)
    assert line["asked"] == {
        "messageId": row["messageId"],
        "requestId": plan["requestId"],
        "oldRequestId": plan["oldRequestId"],
    }
    assert "late-x" not in str(line)
    assert (await desk.act(LettersAction.EDIT, EditRequest("gone", valid.decode()), OPERATOR))[0] == 404


async def test_newest_letters_are_those_of_the_whole_queue(bench: Bench) -> None:
    desk = LetterRequests(bench.settings)
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (3, 9, 1, 7, 5, 8, 2, 6, 4)] * 3
    valid = record("create", "late-x", 1)
    await bench.store(*(letter(bench, valid, str(n), failed_at=at) for n, at in enumerate(times)))
    _, found = await desk.act(LettersAction.LIST, LettersRequest(limit=4, newest=True, records=True), OPERATOR)
    assert [one["failedAt"].day for one in found["letters"]] == [9, 9, 9, 8]
    assert (found["matched"], found["isCut"]) == (27, True)
    before = LettersRequest(limit=4, newest=True, until=datetime(2026, 1, 3, tzinfo=UTC))
    _, older = await desk.act(LettersAction.LIST, before, OPERATOR)
    assert [one["failedAt"].day for one in older["letters"]] == [2, 2, 2, 1]


async def test_replay_stops_by_name_when_the_stream_is_in_trouble(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "RETRY_MAX_S", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:1")
    await bench.store(*(letter(bench, record("create", "a-x", n), str(n)) for n in range(3)))
    done = await bench.replay()
    assert (done.status, done.json["sent"]) == (1, 0)
    assert {outcome["why"] for outcome in done.json["letters"]} == {"not_reached"}
    assert await bench.count() == (3, 0)
