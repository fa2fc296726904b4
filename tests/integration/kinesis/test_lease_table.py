from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
import structlog
from msgspec.structs import replace
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws.clients import Client, ThrottledError
from simplu_worker.consumers.kinesis.leases.lease import Lease, Progress, ReadAhead
from simplu_worker.consumers.kinesis.leases.lease_table import OWNER_INDEX, LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON, HashRange, Position
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import DYNAMODB_REQUEST

ME, OTHER = "host:1:me", "host:2:other"
NEW = Lease(
    "shardId-000000000001",
    TRIM_HORIZON,
    parents=frozenset({"shardId-000000000000"}),
    hash_range=HashRange(0, 2**128 - 1),
)


@pytest.fixture
async def table(dynamodb: Client) -> LeaseTable:
    table = LeaseTable(dynamodb, f"leases-{uuid4()}")
    await table.ensure()
    return table


@pytest.fixture
async def taken(table: LeaseTable) -> Lease:
    await table.create(NEW)
    return sure(await table.take(NEW, ME))


def sure(lease: Lease | None) -> Lease:
    assert lease is not None
    return lease


async def row_in(dynamodb: Client, table: LeaseTable) -> dict[str, Any]:
    reply = await dynamodb.get_item(TableName=table.name, Key={"leaseKey": {"S": NEW.lease_key}}, ConsistentRead=True)
    row: dict[str, Any] = reply["Item"]
    return row


async def test_table_is_made_as_the_kcl_expects_it(dynamodb: Client, table: LeaseTable) -> None:
    described = (await dynamodb.describe_table(TableName=table.name))["Table"]
    index = described["GlobalSecondaryIndexes"][0]

    assert described["KeySchema"] == [{"AttributeName": "leaseKey", "KeyType": "HASH"}]
    assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert index["IndexName"] == OWNER_INDEX
    assert [(part["AttributeName"], part["KeyType"]) for part in index["KeySchema"]] == [
        ("leaseOwner", "HASH"),
        ("leaseKey", "RANGE"),
    ]
    assert index["Projection"]["ProjectionType"] == "KEYS_ONLY"


async def test_table_is_refused_when_its_key_is_another(dynamodb: Client) -> None:
    name = f"orders-{uuid4()}"
    await dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )

    with pytest.raises(PermanentError, match="KINESIS_APPLICATION_NAME"):
        await LeaseTable(dynamodb, name).ensure()


async def test_lease_is_created_once_with_the_attributes_of_the_kcl(dynamodb: Client, table: LeaseTable) -> None:
    created = [await table.create(NEW), await table.create(replace(NEW, checkpoint=SHARD_END))]

    assert created == [True, False]
    assert await row_in(dynamodb, table) == {
        "leaseKey": {"S": "shardId-000000000001"},
        "leaseCounter": {"N": "0"},
        "ownerSwitchesSinceCheckpoint": {"N": "0"},
        "checkpoint": {"S": "TRIM_HORIZON"},
        "checkpointSubSequenceNumber": {"N": "0"},
        "parentShardId": {"SS": ["shardId-000000000000"]},
        "startingHashKey": {"S": "0"},
        "endingHashKey": {"S": str(2**128 - 1)},
        "entityType": {"S": "LEASE"},
    }


async def test_scan_returns_leases_and_leaves_out_rows_of_other_kinds_and_garbage(
    dynamodb: Client, table: LeaseTable
) -> None:
    await table.create(NEW)
    for row in (
        {"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}},
        {"leaseKey": {"S": "garbage"}, "leaseCounter": {"N": "7"}},
    ):
        await dynamodb.put_item(TableName=table.name, Item=row)

    with structlog.testing.capture_logs() as logs:
        scans = [await table.scan(), await table.scan()]

    assert scans == [[NEW], [NEW]]
    assert [(entry["event"], entry["lease_key"]) for entry in logs] == [("lease.unreadable", "garbage")]
    with pytest.raises(RetryableError, match="garbage"):
        await table.find("garbage")


async def test_scan_is_refused_when_no_row_is_a_lease(dynamodb: Client, table: LeaseTable) -> None:
    await dynamodb.put_item(TableName=table.name, Item={"leaseKey": {"S": "garbage"}, "leaseCounter": {"N": "7"}})
    with pytest.raises(PermanentError, match="no row is a lease as the KCL writes it, such as garbage"):
        await table.scan()


async def test_scan_reads_all_pages(dynamodb: Client, table: LeaseTable) -> None:
    leases = [replace(NEW, lease_key=f"shardId-{number:012}") for number in range(4)]
    for lease in leases:
        await table.create(lease)
        await dynamodb.update_item(  # three such rows do not fit a page
            TableName=table.name,
            Key={"leaseKey": {"S": lease.lease_key}},
            UpdateExpression="SET filler = :filler",
            ExpressionAttributeValues={":filler": {"S": "x" * 390_000}},
        )

    assert sorted(await table.scan(), key=lambda lease: lease.lease_key) == leases


async def test_take_has_one_winner_when_many_try(table: LeaseTable) -> None:
    await table.create(NEW)
    tries = [await table.take(NEW, f"host:{number}:x") for number in range(10)]
    winners = [lease for lease in tries if lease is not None]

    assert len(winners) == 1
    assert await table.scan() == winners
    assert winners[0] == replace(NEW, owner=winners[0].owner, counter=1, metered_by=winners[0].owner)


async def test_request_reaches_the_owner_with_its_next_renewal(table: LeaseTable, taken: Lease) -> None:
    retry = "1 shard s-1"
    assert await table.write_retry(taken, retry)
    renewed = sure(await table.renew(taken, ME))
    assert await table.take(renewed, OTHER) is not None
    assert not await table.write_retry(renewed, "2 ")

    assert [lease.retry for lease in (taken, renewed, *await table.scan())] == [None, retry, retry]
    assert renewed.counter == taken.counter + 1


async def test_lease_is_given_away_until_it_is_taken_or_kept(table: LeaseTable, taken: Lease) -> None:
    given = sure(await table.renew(taken, ME, Progress(is_given_away=True)))
    kept = sure(await table.renew(given, ME))
    again = sure(await table.renew(kept, ME, Progress(is_given_away=True)))
    by_other = sure(await table.take(again, OTHER))
    by_me = sure(await table.take(by_other, ME))

    assert [one.is_given_away for one in (taken, given, kept, again, by_other, by_me)] == [False, True] * 2 + [
        False
    ] * 2


async def test_renewal_and_checkpoint_are_one_write(dynamodb: Client, table: LeaseTable, taken: Lease) -> None:
    switches = [(await row_in(dynamodb, table))["ownerSwitchesSinceCheckpoint"]]
    renewed = sure(await table.renew(taken, ME))
    checkpointed = await table.renew(renewed, ME, Progress(Position(17, 3)))
    switches.append((await row_in(dynamodb, table))["ownerSwitchesSinceCheckpoint"])

    assert renewed == replace(taken, counter=2)
    assert checkpointed == replace(taken, counter=3, checkpoint=Position(17, 3))
    assert await table.scan() == [checkpointed]
    assert switches == [{"N": "1"}, {"N": "0"}]


@pytest.mark.parametrize(
    ("landed", "repeated", "expected_counter", "expected_checkpoint"),
    [
        (None, None, 2, TRIM_HORIZON),
        (Position(17), Position(17), 2, Position(17)),
        (Position(17), Position(20), 3, Position(20)),
    ],
)
async def test_renewal_whose_answer_was_lost_is_recognised_when_repeated(
    table: LeaseTable,
    taken: Lease,
    landed: Position | None,
    repeated: Position | None,
    expected_counter: int,
    expected_checkpoint: Position,
) -> None:
    await table.renew(taken, ME, Progress(landed))
    renewed = await table.renew(taken, ME, Progress(repeated))

    assert renewed is not None
    assert (renewed.counter, renewed.checkpoint) == (expected_counter, expected_checkpoint)
    assert await table.scan() == [renewed]


async def test_release_frees_the_lease_with_its_last_checkpoint(
    dynamodb: Client, table: LeaseTable, taken: Lease
) -> None:
    released = [await table.release(taken, ME, Position(17), None) for _ in range(2)]
    row = await row_in(dynamodb, table)

    assert released == [True, True]
    assert "leaseOwner" not in row
    assert await table.scan() == [replace(taken, owner=None, counter=2, checkpoint=Position(17))]


@pytest.mark.parametrize(
    ("code", "status", "expected", "outcome"),
    [
        ("ProvisionedThroughputExceededException", 400, ThrottledError, "error"),
        ("TransactionConflictException", 400, RetryableError, "error"),
        ("AccessDeniedException", 400, PermanentError, "error"),
        ("ResourceNotFoundException", 400, PermanentError, "missing"),
    ],
)
async def test_errors_of_dynamodb_become_ours_and_are_counted(
    dynamodb: Client, code: str, status: int, expected: type[Exception], outcome: str
) -> None:
    before = request_count("scan", outcome)
    aws = ScriptedAws()
    aws.refuse(code, status=status)
    async with aws.running() as url, client_of("dynamodb", url) as client:
        with pytest.raises(expected):
            await LeaseTable(client, "leases").scan()

    assert len(aws.requests) == 1
    assert request_count("scan", outcome) - before == 1


def request_count(operation: str, outcome: str) -> float:
    samples = DYNAMODB_REQUEST.labels(operation, outcome)._child_samples()
    return next(sample.value for sample in samples if sample.name == "_count")


async def test_renew_notes_how_far_the_reader_is_ahead_and_removes_it(table: LeaseTable, taken: Lease) -> None:
    ahead, tenants = ReadAhead(Position(40, 2), frozenset({"tenant:a-x"})), frozenset({"tenant:b-y"})
    noted = sure(await table.renew(taken, ME, Progress(Position(17), ahead, pending_tenants=tenants)))
    kept = sure(await table.renew(noted, ME, Progress(ahead=ahead)))
    await table.release(kept, ME, Position(18), ahead)
    released = sure(await table.find(taken.lease_key))
    cleared = sure(await table.renew(sure(await table.take(released, ME)), ME, Progress(Position(50))))

    found = [(one.checkpoint.number, one.ahead, one.pending_tenants) for one in (noted, kept, released, cleared)]
    assert found == [(17, ahead, tenants), (17, ahead, tenants), (18, ahead, tenants), (50, None, tenants)]
