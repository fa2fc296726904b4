from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import structlog
from msgspec.structs import replace
from support.aws.endpoints import ScriptedAws, client_of
from support.aws.kcl3_peer import Kcl3Peer, leader_row, migration_row, table_migration_row

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import KclFollower, KclLeaderWatch, LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON

ME, OTHER = "host:1:me", "kcl:other"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
LEADING = "CLIENT_VERSION_3X"


class Following:
    """A follower with tables of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.table = LeaseTable(client, f"leases-{uuid4()}")
        self.watch = KclLeaderWatch(self.table, follows=True)
        self.follower = KclFollower(self.watch, me=ME, utc=lambda: NOW)

    async def put(self, row: dict[str, Any]) -> None:
        await self.client.put_item(TableName=self.table.name, Item=row)
        await self.table.scan()
        await self.watch.check()

    async def rows(self) -> list[str]:
        found = []
        for label, table, key in (
            ("leases", self.table.name, "leaseKey"),
            ("metrics", self.watch.worker_metrics, "wid"),
        ):
            try:
                reply = await self.client.get_item(TableName=table, Key={key: {"S": ME}})
            except self.client.exceptions.ResourceNotFoundException:
                continue
            found += [label] if "Item" in reply else []
        return found

    async def create_metrics_table(self) -> None:
        await self.client.create_table(
            TableName=self.watch.worker_metrics,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "wid", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "wid", "KeyType": "HASH"}],
        )


@pytest.fixture
async def following(dynamodb: Client) -> Following:
    one = Following(dynamodb)
    await one.table.ensure()
    return one


async def test_metrics_are_written_where_the_kcl_reads_them_and_deleted_at_the_end(following: Following) -> None:
    states = []
    await following.follower.report()
    states.append(await following.rows())
    await following.put(migration_row(LEADING))
    await following.follower.report()
    states.append(await following.rows())
    await following.follower.leave()
    await following.create_metrics_table()
    await following.follower.report()
    states.append(await following.rows())
    await following.put(table_migration_row("PENDING"))
    await following.follower.report()
    states.append(await following.rows())
    await following.follower.leave()
    states.append(await following.rows())

    assert states == [[], ["leases"], ["metrics"], ["leases", "metrics"], ["metrics"]]
    assert (following.follower.trouble, following.watch.trouble) == (None, None)


async def test_metrics_are_not_put_among_the_leases_of_a_kcl_before_3_5(following: Following) -> None:
    coordinator = following.watch.coordinator
    await following.client.create_table(
        TableName=coordinator,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
    )
    await following.client.put_item(TableName=coordinator, Item=migration_row(LEADING, key_name="key"))
    await following.watch.check()
    await following.follower.report()
    before = await following.rows(), following.watch.worker_metrics in str(following.follower.trouble)
    await following.create_metrics_table()
    await following.follower.report()

    assert before == ([], True)
    assert (await following.rows(), following.follower.trouble) == (["metrics"], None)


async def _leave(_table: LeaseTable, _leader: Kcl3Peer, _row: dict[str, Any]) -> None: ...


async def _assign_again(_table: LeaseTable, leader: Kcl3Peer, row: dict[str, Any]) -> None:
    await leader.initiate_handoff(row, OTHER)


async def _assign_by_force(_table: LeaseTable, leader: Kcl3Peer, row: dict[str, Any]) -> None:
    await leader.assign(row, OTHER)


@pytest.mark.parametrize(("change", "is_taken"), [(_leave, True), (_assign_again, False), (_assign_by_force, False)])
async def test_assigned_lease_is_begun_only_while_it_is_assigned(
    following: Following,
    change: Callable[..., Any],
    is_taken: bool,  # noqa: FBT001  # a column of the table
) -> None:
    lease = Lease("a", TRIM_HORIZON, counter=3, owner=ME)
    await following.table.create(lease)
    leader = Kcl3Peer(following.client, following.table.name, "kcl:leader")
    await change(following.table, leader, await leader.read("a"))
    begun = await following.table.take(lease, ME, start_at=NOW, is_assigned=True)
    row = await following.table.find("a")

    assert (begun is not None) == is_taken
    assert row is not None
    assert (row.actual_owner, row.owner) == ((ME, ME) if is_taken else (row.actual_owner, OTHER))
    assert begun in (None, replace(lease, counter=4, started_at=NOW, metered_by=ME))


async def test_lease_table_counts_when_the_others_may_not_be_read() -> None:
    aws = ScriptedAws()
    aws.answer({"Items": [migration_row(LEADING), leader_row("kcl-1", "v1")]})
    aws.refuse("AccessDeniedException", status=400)
    aws.refuse("AccessDeniedException", status=400)
    async with aws.running() as url, client_of("dynamodb", url) as scripted:
        following = Following(scripted)
        with structlog.testing.capture_logs() as logs:
            await following.table.scan()
            await following.watch.check()

    assert (following.watch.leaders, following.watch.trouble) == ("kcl-1", None)
    tables = [following.watch.coordinator, following.watch.worker_metrics]
    assert [(entry["event"], entry["table"]) for entry in logs] == [("kcl_leader.unread", table) for table in tables]
