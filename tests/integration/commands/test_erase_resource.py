from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from pydantic import Secret
from structlog.testing import capture_logs
from support.aws.endpoints import REGION, client_of
from support.citrus.cases import routed_shards
from support.postgres.databases import PoolMaker, ShardMaker
from support.postgres.histories import keep_history
from support.postgres.move_cases import TENANT_ID, ask, fill, move, roll_back, settings_of, stop_in_copy
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_local.processes.loopback import free_port, poll_until
from simplu_worker.aws.clients import Client
from simplu_worker.commands.moves import verify_tenant
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.erasing import erase_resource
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker
from simplu_worker.dead_letters import queue as browse
from simplu_worker.dead_letters.letter import parse_dead_letter
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.types import ResourceRename
from simplu_worker.transfers import erasing as eraser
from simplu_worker.transfers.engine import run_until_won
from simplu_worker.transfers.erasing import Erasure
from simplu_worker.vocabulary import DeadLetterReason, Source

PERSON = "anna@example.com"
MARKER = "PLANTED-7f3a"  # in the content of the person's resource alone
PATIENT = json.dumps({"name": MARKER})
ERASURE = Erasure(*TENANT, "patient", PERSON)
TABLES = """
SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname
"""
# Every column of a row as text: what is compressed is not any more, and what is bytes is hexadecimal.
HOLDERS = (
    "SELECT count(*) AS count FROM {} AS one WHERE one::text LIKE '%' || $1 || '%' OR one::text LIKE '%' || $2 || '%'"
)


async def planted(address: ShardAddress, marker: str = MARKER) -> dict[str, int]:
    found = {}
    for table in await ask(address, TABLES):
        (row,) = await ask(address, HOLDERS.format(f'"{table["name"]}"'), marker, marker.encode().hex())
        if row["count"]:
            found[table["name"]] = row["count"]
    return found


async def plant(address: ShardAddress, tenant: tuple[str, str] = TENANT) -> dict[str, str]:
    pool = ShardPool(address, size=1)
    await add_tenant(pool, tenant)
    case = TenantCase(pool, tenant)
    document = {"name": MARKER, "long": MARKER * 500}
    await case.apply(
        case.operation("create", PERSON, document),
        case.operation("create", "other", {"name": "Other"}),
        case.operation("create", PERSON, {"name": "a note"}, resource_type="note"),
    )
    reads = {
        "read": case.operation("read", PERSON),
        "list": case.operation("list", None),
        "other": case.operation("read", "other"),
        "short": case.operation("list", None, filters={"name": MARKER}),
        "note": case.operation("list", None, resource_type="note"),
    }
    await case.apply_each(*reads.values())
    await case.apply(case.operation("patch", PERSON, {"age": 7}), case.operation("read", PERSON))
    await pool.close()
    # A move looks at all that was changed within seconds before it, mark or not.
    await ask(address, "UPDATE log_batches SET completed_at = completed_at - interval '1 hour'")
    return {name: one.request_id for name, one in reads.items()}


async def result_of(address: ShardAddress, request_id: str) -> Any:
    (row,) = await ask(address, "SELECT status, result::text FROM operations WHERE request_id = $1", request_id)
    assert row["status"] == "succeeded"
    return json.loads(row["result"])


class Ended:
    def __init__(self, status: int, out: str, err: str, events: list[MutableMapping[str, Any]]) -> None:
        self.status = status
        self.json = json.loads(out)
        self.text = out + err + repr(events)
        self.events = [one for one in events if one["event"] == "operator.acted"]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        return {one["shard"]: (one["resources"], one["results"]) for one in self.json["shards"]}


class Terminal:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    async def erase(self, settings: Settings, erasure: Erasure = ERASURE, *, apply: bool = True) -> Ended:
        self._capfd.readouterr()
        with capture_logs() as events:
            status = await show(erase_resource(settings, erasure, apply=apply), as_json=True)
        return Ended(status, *self._capfd.readouterr(), events)


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capfd)


@pytest.mark.parametrize("page_rows", [1, 1000])
@pytest.mark.slow(1)
async def test_nothing_of_the_resource_is_left_in_any_table(
    make_shard: ShardMaker, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(eraser, "PAGE_ROWS", page_rows)
    address = await make_shard("a")
    pool = ShardPool(address, size=1)
    await keep_history(pool, "patient")
    await pool.close()
    reads = await plant(address)
    settings = settings_of(tmp_path, address)
    before = await planted(address)
    assert before == {"resources": 1, "log_outcomes": 4, "resource_versions": 1}
    whole, other, note = [await result_of(address, reads[name]) for name in ("list", "other", "note")]

    plan = await terminal.erase(settings, apply=False)
    assert (plan.status, plan.counts, plan.json["applied"], plan.events) == (0, {"a": (1, 4)}, False, [])
    assert await planted(address) == before

    done = await terminal.erase(settings)
    assert (done.status, done.counts, done.json["whole"]) == (0, {"a": (1, 4)}, True)
    assert await planted(address) == {}
    assert await result_of(address, reads["read"]) == {"erased": 1}
    assert await result_of(address, reads["list"]) == whole | {
        "items": [one for one in whole["items"] if one["resourceId"] == "other"],
        "erased": 1,
    }
    short = await result_of(address, reads["short"])
    assert (short["items"], short["erased"]) == ([], 1)
    assert [await result_of(address, reads[name]) for name in ("other", "note")] == [other, note]
    assert [one["shards"][0]["versions"] for one in (plan.json, done.json)] == [min(2, page_rows), 2]
    rows = await ask(address, "SELECT change, document, source FROM resource_history WHERE resource_id = $1", PERSON)
    assert [tuple(row.values()) for row in rows] == [
        ("create", None, "kinesis"),
        ("patch", None, "kinesis"),
        ("delete", None, "erasure"),
    ]
    kept = await ask(address, 'SELECT "resourceName" AS type, "resourceId" AS id FROM resources ORDER BY 1')
    assert [(row["type"], row["id"]) for row in kept] == [("note", PERSON), ("patient", "other")]

    again = await terminal.erase(settings.model_copy(update={"redis_url": Secret("redis://127.0.0.1:1/0")}))
    assert (again.status, again.counts, again.json["found"]) == (1, {"a": (0, 0)}, False)
    assert "the cache was not cleared" in again.json["warning"]
    for one in (plan, done, again):
        assert (MARKER in one.text, PERSON in one.text) == (False, False)
    (event,) = done.events
    assert event["action"] == "erase_resource"
    assert event["asked"] == {
        "businessId": "clinic",
        "locationId": "main",
        "resourceType": "patient",
        "resourceIdSha256": hashlib.sha256(PERSON.encode()).hexdigest()[:16],
    }
    assert event["outcome"] == {"resources": 1, "results": 4, "versions": 2, "letters": 0, "shardsWithoutAnswer": 0}


@pytest.mark.parametrize("name", ["patient", "patients"])
async def test_erasure_finds_the_resource_by_any_name_of_its_type(
    make_shard: ShardMaker, make_pool: PoolMaker, tmp_path: Path, terminal: Terminal, name: str
) -> None:
    address = await make_shard("a")
    case = TenantCase(await make_pool(address), TENANT)
    await add_tenant(case.pool)
    await case.apply(case.operation("create", PERSON, {"name": MARKER}, resource_type="patients"))
    await case.apply(case.operation("read", PERSON, resource_type="patients"), case.operation("list", None))
    await case.apply(case.operation("create", PERSON, {}, resource_type="note"))
    await ask(
        address,
        'INSERT INTO resources SELECT id, "businessType", \'patients\', "resourceId", data, date, "lastUpdated"'
        " FROM resources WHERE \"resourceName\" = 'patient'",
    )

    ended = await terminal.erase(settings_of(tmp_path, address), Erasure(*TENANT, name, PERSON))

    assert (ended.status, ended.counts) == (0, {"a": (2, 2)})
    assert await planted(address) == {}
    assert len(await ask(address, "SELECT FROM resources WHERE \"resourceName\" = 'note'")) == 1


@pytest.mark.slow(2)
async def test_former_home_loses_it_too_before_a_rollback(
    make_shard: ShardMaker, tmp_path: Path, terminal: Terminal
) -> None:
    addresses = [await make_shard("a"), await make_shard("b")]
    await plant(addresses[0])
    settings = settings_of(tmp_path, *addresses)
    assert await move(settings, "b") == 0

    done = await terminal.erase(settings)
    assert (done.status, done.counts) == (0, {"a": (1, 4), "b": (1, 4)})
    assert [await planted(one) for one in addresses] == [{}, {}]
    assert await show(verify_tenant(settings, TENANT), as_json=True) == 0
    assert await roll_back(settings) == 0
    assert [await planted(one) for one in addresses] == [{}, {}]


@pytest.mark.slow(2)
async def test_rollback_repeats_the_deletion_on_a_home_that_was_down(
    shards: list[ShardAddress], tmp_path: Path, terminal: Terminal
) -> None:
    await ask(
        shards[0], 'UPDATE resources SET "resourceId" = $1, data = $2 WHERE "resourceId" = \'7\'', PERSON, PATIENT
    )
    settings = settings_of(tmp_path, *shards)
    assert await move(settings, "b") == 0
    down = ShardAddress("a", f"postgresql://worker@127.0.0.1:{free_port()}/shard")
    (tmp_path / "down").mkdir()
    partly = await terminal.erase(settings_of(tmp_path / "down", down, shards[1], tenants={TENANT_ID: "b"}))
    assert (partly.status, partly.counts, partly.json["whole"]) == (1, {"b": (1, 0)}, False)
    assert list(partly.json["shardsWithoutAnswer"]) == ["a"]
    assert [bool(await planted(one)) for one in shards] == [True, False]

    assert await roll_back(settings) == 0
    assert [await planted(one) for one in shards] == [{}, {}]


@pytest.mark.slow(2)
async def test_move_that_has_begun_ends_first(make_shard: ShardMaker, tmp_path: Path, terminal: Terminal) -> None:
    addresses = [await make_shard("a"), await make_shard("b")]
    await plant(addresses[0])
    settings = settings_of(tmp_path, *addresses)
    before = await planted(addresses[0])
    await stop_in_copy(move(settings, "b"), *addresses)
    await ask(addresses[0], "UPDATE transfers SET detail = '{}', updated_at = now()")  # as if it went on

    for shard_state in ("a mover runs on shard a", "its row is incoming on shard b"):
        for apply in (False, True):
            with pytest.raises(RetryableError, match=shard_state):
                await terminal.erase(settings, apply=apply)
        await ask(addresses[0], "UPDATE transfers SET updated_at = now() - interval '1 hour'")  # the mover is dead
    assert await planted(addresses[0]) == before

    assert await move(settings, "b") == 0
    assert (await terminal.erase(settings)).counts == {"a": (1, 4), "b": (1, 4)}
    assert [await planted(one) for one in addresses] == [{}, {}]


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("change", ["move_token = 3", "state = 'fenced'", "epoch = 2"])
@pytest.mark.slow(1)
async def test_erasure_ends_where_a_mover_has_come_meanwhile(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch, change: str, *, has_begun: bool
) -> None:
    original = run_until_won
    async with Pools(size=2) as pools:
        pool = pools.ensure_pool(await make_shard("a"))
        await plant(pool.address)
        commits = ReplicationWaiter(pools)
        standing = await eraser.find_standing(pool, ERASURE)
        assert standing is not None
        before = await planted(pool.address)

        async def run_and_change(*arguments: Any, **options: Any) -> Any:
            found = await original(*arguments, **options) if has_begun else None
            await ask(pool.address, f"UPDATE tenants SET {change}")
            return found or await original(*arguments, **options)

        monkeypatch.setattr("simplu_worker.transfers.erasing.run_until_won", run_and_change)
        with pytest.raises(RetryableError, match="has changed: a move, a restore"):
            await eraser.erase_on_shard(pool, commits, ERASURE, standing, apply=True)
        assert await planted(pool.address) == ({"log_outcomes": 4} if has_begun else before)

        standing = await eraser.find_standing(pool, ERASURE)  # as after a kill
        if standing is not None and not change.startswith("state"):
            monkeypatch.undo()
            assert (await eraser.erase_on_shard(pool, commits, ERASURE, standing, apply=True)).results == 4
            assert await planted(pool.address) == {}


@pytest.mark.slow(0.4)
async def test_erasure_is_reported_when_it_is_safe(make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Pools(size=2) as pools:
        pool = pools.ensure_pool(await make_shard("a"))
        await plant(pool.address)
        standing = await eraser.find_standing(pool, ERASURE)
        assert standing is not None

        async def lose(*_: object) -> None:
            assert await planted(pool.address) == {}
            raise RetryableError("lost")

        commits = ReplicationWaiter(pools)
        monkeypatch.setattr(commits, "wait_for_transaction", lose)
        with pytest.raises(RetryableError, match="lost"):
            await eraser.erase_on_shard(pool, commits, ERASURE, standing, apply=True)


@pytest.mark.slow(0.4)
async def test_batch_in_flight_leaves_no_result(make_shard: ShardMaker, tmp_path: Path, terminal: Terminal) -> None:
    address = await make_shard("a")
    await plant(address)
    batch = await asyncpg.connect(address.connection_string)
    async with batch.transaction():
        await batch.execute("SELECT FROM tenants FOR SHARE")
        erasing = asyncio.create_task(terminal.erase(settings_of(tmp_path, address)))
        assert await poll_until(lambda: _waits(address), within_s=60)
        await batch.execute(
            """
            WITH old AS (
                SELECT log_rows.*, result FROM log_rows JOIN log_outcomes USING (batch_id, position)
                WHERE result ? 'data' AND result::text LIKE '%PLANTED%' LIMIT 1
            ), added AS (
                INSERT INTO log_rows (batch_id, position, tenant_no, request, kind, type_at, origin_at, requested_at,
                    received_at, digest, resource)
                SELECT batch_id, 99, tenant_no, '\\x0200', kind, type_at, origin_at, requested_at, received_at, digest,
                    resource FROM old
            )
            INSERT INTO log_outcomes (batch_id, position, tenant_no, result)
            SELECT batch_id, 99, tenant_no, result FROM old
            """
        )
    await batch.close()
    assert (await erasing).counts == {"a": (1, 5)}
    assert await planted(address) == {}


async def _waits(address: ShardAddress) -> bool:
    return bool(await ask(address, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@pytest.mark.slow(0.3)
async def test_ids_before_a_rename_are_named(make_shard: ShardMaker, tmp_path: Path, terminal: Terminal) -> None:
    address = await make_shard("a")
    await plant(address)
    async with routed_shards([address]) as routed:
        routed.register(TENANT, "a")
        await routed.changes.rename(ResourceRename(*TENANT, "patient", PERSON, "new", None, datetime.now(UTC)))
    settings = settings_of(tmp_path, address)

    found = await terminal.erase(settings, Erasure(*TENANT, "patient", "new"))
    assert (found.counts, found.json["otherIds"]) == ({"a": (1, 0)}, [PERSON])
    assert (await terminal.erase(settings)).counts == {"a": (0, 4)}
    assert await planted(address) == {}
    assert (await terminal.erase(settings, Erasure(*TENANT, "note", PERSON))).json["otherIds"] == []


async def test_tenant_that_no_shard_has_is_refused(make_shard: ShardMaker, tmp_path: Path, terminal: Terminal) -> None:
    address = await make_shard("a")
    await fill(address)
    erasure = Erasure("nobody", "main", "patient", PERSON)
    with pytest.raises(PermanentError, match=r"expected a tenant of some shard, got none$"):
        await terminal.erase(settings_of(tmp_path, address), erasure)
    down = ShardAddress("b", f"postgresql://worker@127.0.0.1:{free_port()}/shard")
    with pytest.raises(RetryableError, match="no answer from b"):
        await terminal.erase(settings_of(tmp_path, address, down), erasure)


# Dead letters


@pytest.fixture
async def sqs(endpoint_url: str, aws_credentials: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setattr(browse, "POLL_WAIT_S", 0)  # moto has but one server, which knows at once
    async with client_of("sqs", endpoint_url) as client:
        yield client


def record(**members: Any) -> bytes:
    return json.dumps({"operation": "create", "businessId": TENANT[0], "locationId": TENANT[1], **members}).encode()


def letter(number: int, data: bytes, **members: Any) -> DeadLetter:
    at = datetime.now(UTC) - timedelta(minutes=1)
    origin = Origin(
        source=Source.KINESIS,
        name="stream",
        arrived_at=at,
        stream_shard_id="shardId-000000000000",
        sequence_number=str(number),
        partition_key=f"key {number}",
    )
    return DeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, "", origin, at, 4, data, **members)


@pytest.mark.slow(1)
@pytest.mark.parametrize("is_fifo", [False, True])
async def test_dead_letters_with_it_are_deleted_or_named(
    make_shard: ShardMaker, tmp_path: Path, terminal: Terminal, sqs: Client, *, is_fifo: bool
) -> None:
    address = await make_shard("a")
    await fill(address)
    fifo = {"FifoQueue": "true"} if is_fifo else {}
    name = f"{uuid4()}-letters" + (".fifo" if is_fifo else "")
    url = (await sqs.create_queue(QueueName=name, Attributes=fifo))["QueueUrl"]
    person = {"resourceType": "patient", "resourceId": PERSON, "data": {"name": MARKER}}
    packer = AggregatePacker()
    packer.add("one", record(**person))
    packer.add("two", record(resourceType="patient", resourceId="other", requestId="r"))
    visit = record(resourceType="visit", resourceId="v", data={"who": PERSON})
    await DeadLetterQueue(sqs, url).store(
        [
            letter(1, record(**person)),
            letter(2, packer.seal()),
            letter(3, f"{{{PERSON} {MARKER}".encode(), business_id=TENANT[0], location_id=TENANT[1]),
            letter(4, visit),
            letter(5, record(resourceType="patient", resourceId="b")),
            letter(6, record(**person) + b" ", business_id="other", location_id="main"),
        ],
        stopping=asyncio.Event(),
    )
    named = {"sqs_dead_letter_queue_url": url, "aws_region": REGION}
    settings = settings_of(tmp_path, address).model_copy(update=named)

    plan = await terminal.erase(settings, apply=False)
    assert plan.json["lettersError"] is None
    letters = plan.json["letters"]
    assert (plan.status, letters["deleted"], len(letters["among"]), len(letters["mentioning"])) == (1, 2, 1, 1)
    done = await terminal.erase(settings)
    assert done.json["letters"] | {"behind": 0} == letters
    again = await terminal.erase(settings)
    assert (again.status, again.json["letters"]["deleted"], again.json["letters"]["among"]) == (1, 0, letters["among"])

    left: dict[int, DeadLetter] = {}
    while messages := (await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)).get("Messages"):
        parsed = [parse_dead_letter(message["Body"]).letter for message in messages]
        left |= {int(one.origin.sequence_number or 0): one for one in parsed}
        await sqs.delete_message_batch(
            QueueUrl=url,
            Entries=[{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)],
        )
    assert left.keys() == {2, 4, 5, 6}
    assert left[4].record == visit
    for one in (plan, done, again):
        assert (MARKER in one.text, PERSON in one.text) == (False, False)
