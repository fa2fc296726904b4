from __future__ import annotations

from uuid import uuid4

import pytest
import structlog
from support.aws.endpoints import ScriptedAws, client_of
from support.aws.kcl3_peer import leader_row, migration_row
from support.aws.kcl_peer import Row

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases.kcl_leader_watch import KclLeaderWatch, KclTables
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable

pytestmark = pytest.mark.slow


LEADING = "CLIENT_VERSION_3X"


class Application:
    """A lease table of its own for a test, the tables beside it, and the watch."""

    def __init__(self, client: Client, *, coordinator: str | None = None, worker_metrics: str | None = None) -> None:
        self._client = client
        self.table = LeaseTable(client, f"leases-{uuid4()}")
        self.tables = KclTables.of(self.table.name, coordinator, worker_metrics)
        self.watch = KclLeaderWatch(client, self.table, self.tables)

    async def create(self, table: str, key_name: str) -> None:
        await self._client.create_table(
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key_name, "AttributeType": "S"}],
            KeySchema=[{"AttributeName": key_name, "KeyType": "HASH"}],
        )

    async def put(self, table: str, row: Row) -> None:
        await self._client.put_item(TableName=table, Item=row)

    async def look(self) -> list[bool]:
        await self.table.scan()
        await self.watch.check()
        return [self.watch.is_leading, "kcl-" in str(self.watch.trouble)]


@pytest.fixture
async def application(dynamodb: Client) -> Application:
    one = Application(dynamodb)
    await one.table.ensure()
    return one


async def test_leader_is_found_in_the_lease_table_when_there_is_no_other_table(application: Application) -> None:
    table = application.table.name
    none_yet = await application.look()
    await application.put(table, migration_row(LEADING))
    await application.put(table, leader_row("kcl-1", "v1"))
    looks = [await application.look() for _ in range(3)]
    await application.put(table, leader_row("kcl-1", "v2"))
    looks.append(await application.look())

    assert none_yet == [False, False]
    assert looks == [[True, True], [True, True], [False, False], [True, True]]


async def test_lease_table_counts_when_the_others_may_not_be_read(dynamodb: Client) -> None:
    aws = ScriptedAws()
    aws.answer({"Items": [migration_row(LEADING), leader_row("kcl-1", "v1")]})
    aws.refuse("AccessDeniedException", status=400)
    aws.refuse("AccessDeniedException", status=400)
    aws.answer({"Items": []})
    aws.refuse("AccessDeniedException", status=400)
    async with aws.running() as url, client_of("dynamodb", url) as scripted:
        application = Application(scripted)
        with structlog.testing.capture_logs() as logs:
            looks = [await application.look(), await application.look()]

    assert looks == [[True, True], [False, False]]
    assert [(entry["event"], entry["table"]) for entry in logs] == [
        ("kcl_leader.unread", application.tables.coordinator),
        ("kcl_leader.unread", application.tables.worker_metrics),
        ("kcl_leader.unread", application.tables.coordinator),
    ]
