from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.log_rows import LogRow, write_log_rows
from support.postgres.tenant_cases import TENANT, add_tenant, fetch
from support.settings import settings_of

from simplu_worker.commands.output import show
from simplu_worker.commands.shards.gaps import accept_gaps
from simplu_worker.commands.stream import OperationListOptions
from simplu_worker.commands.stream.send import preview_operations
from simplu_worker.commands.stream.show import list_operations
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, UsageError
from simplu_worker.operations.json_record import EXPECTED_TIME
from simplu_worker.shards.listing import ListRequest
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.status.guard import Guard
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import open_http

TENANT_ID = "-".join(TENANT)
ROWS = [
    LogRow(TENANT_ID, "r1"),
    LogRow(TENANT_ID, "r2", 1, resource_id=None),
    LogRow(TENANT_ID, "r3", 2, error="not_found"),
    LogRow("smile-berlin", "r4", 3),
]
TOKEN = "token-1"


@dataclass(frozen=True)
class World:
    settings: Settings
    routed: RoutedShards
    url: str

    async def ask(self, **query: str) -> tuple[int, dict[str, Any]]:
        whole = {"businessId": TENANT[0], "locationId": TENANT[1]} | query
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with ClientSession() as session, session.get(self.url, params=whole, headers=headers) as response:
            return response.status, await response.json()

    async def run(self, request: ListRequest | None = None, *, tenant: tuple[str, str] = TENANT, **how: bool) -> int:
        return await show(
            list_operations(self.settings, *tenant, request or ListRequest()), as_json=how.get("as_json", False)
        )

    async def preview(self, text: bytes, *, as_json: bool) -> int:
        (path := Path(str(self.settings.shard_map_file)).with_name("lines")).write_bytes(text)
        return await show(preview_operations(self.settings, path, is_orders=False), as_json=as_json)


@pytest.fixture
async def world(make_shard: ShardMaker, tmp_path: Path) -> AsyncIterator[World]:
    address = await make_shard("shard-1")
    async with routed_shards([address]) as routed:
        pool = routed.pools.ensure_pool(address)
        await add_tenant(pool)
        await add_tenant(pool, ("smile", "berlin"))
        await write_log_rows(pool, ROWS)
        routed.register(TENANT, "shard-1")
        replica = ReplicaStatus("replica-1", asyncio.Event())
        replica.start(routed.gateway, routed.pools, routed.locator)
        async with open_http(Guard(Tokens(operator=TOKEN), "127.0.0.1"), 0, replica) as port:
            yield World(settings_of(tmp_path, address), routed, f"http://127.0.0.1:{port}/operations")


@pytest.mark.slow
async def test_command_and_http_have_the_same_pages(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert await world.run(ListRequest(limit=2), as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    status, first = await world.ask(limit="2")
    _, last = await world.ask(limit="2", after=first["next"])

    assert (status, printed) == (200, first)
    assert first["operations"][0] == {
        "requestId": "r3",
        "status": "failed",
        "operation": "update",
        "resourceType": "patient",
        "resourceId": "p1",
        "error": "not_found",
        "receivedAt": "2026-01-01T00:00:00Z",
        "completedAt": "2026-03-01T12:00:00.000002Z",
    }
    assert "resourceId" not in first["operations"][1]
    assert (first["searchedTo"], first["shardId"]) == ("2026-03-01T12:00:00.000001Z", "shard-1")
    assert [one["requestId"] for one in first["operations"] + last["operations"]] == ["r3", "r2", "r1"]
    assert (last["next"], last["searchedTo"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"limit": 0}, "--limit: expected 1 to 500, got 0"),
        ({"since": "soon"}, f"--since: expected {EXPECTED_TIME}, got 'soon'"),
        ({"resource_id": "\udcff"}, "--resource-id: expected 1 to 256 characters"),
        ({"after": "forged"}, "--after: expected the `next` of a page, unchanged"),
    ],
)
def test_command_refuses_options_that_cannot_be_meant(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as refused:
        OperationListOptions(**options).parse()
    assert str(refused.value).startswith(problem)


@pytest.mark.slow
async def test_unknown_tenant_is_reported(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = await world.ask(businessId="nobody")
    assert (status, answer) == (404, {"businessId": "nobody", "locationId": "main", "state": "unregistered"})
    capsys.readouterr()  # the call of an operator is logged
    assert await world.run(tenant=("nobody", "main"), as_json=True) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"operations": [], "next": None, "state": "not_here"}
    assert shown.err == "no shard has the tenant nobody main: not_here\n"
    with pytest.raises(PermanentError, match="location: expected 1 to 128 characters"):
        await world.run(tenant=("nobody", "x" * 129))


@pytest.mark.slow
async def test_preview_applies_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    pool = world.routed.pools.ensure_pool(next(iter(world.routed.pools.by_shard_id().values())).address)
    before = await fetch(pool, "SELECT count(*) AS count FROM operations")
    common = {"operation": "create", "resourceType": "patient", "resourceId": "p9", "data": {}}
    tenant = {"businessId": TENANT[0], "locationId": TENANT[1]}
    lines = [
        common | tenant | {"requestId": "r1"},
        common | tenant | {"requestId": "new"},
        common | {"businessId": "no", "locationId": "one", "requestId": "n"},
        common | {"businessId": "no"},
        common | tenant | {"requestId": "bad", "resourceType": "room"},
    ]
    room = {"name": "room", "validation": "enforce", "schema": {"required": ["number"]}}
    definition = {"name": "dental", "defaultSettings": {}, "staffResourceType": "dentist", "resourceTypes": [room]}
    await fetch(pool, "UPDATE public.business_types SET definition = $1 WHERE name = 'dental'", json.dumps(definition))
    text = "\n".join(map(json.dumps, lines)).encode()
    assert await world.preview(text, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)["records"]
    assert [(one["fate"], one.get("shardId"), one.get("reason")) for one in found] == [
        ("duplicate", "shard-1", None),
        ("applied", "shard-1", None),
        ("held", None, "not_here"),
        ("dead_letter", None, "invalid_message"),
        ("failed", "shard-1", "invalid_data"),
    ]
    assert found[-1]["error"] == '#/required: expected the member "number"'
    assert await fetch(pool, "SELECT count(*) AS count FROM operations") == before
    assert await world.preview(text.splitlines()[0], as_json=False) == 0
    assert "nothing was sent or applied" in capsys.readouterr().err


MAKE_ROWS = """
INSERT INTO stream_positions (stream, stream_shard_id, pending_from, parents_done, token, gap_from, gap_found_at)
SELECT 'stream', one.id, one.pending_from, true, gen_random_uuid(), one.gap_from, now()
FROM (VALUES ('s-0', '5/0', '5/0'), ('s-1', '6/0', '5/0'), ('s-2', '5/0', NULL)) AS one (id, pending_from, gap_from)
"""


async def answer_of(
    capfd: pytest.CaptureFixture[str], settings: Settings, shard_id: str | None = None, *, apply: bool = True
) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    status = await show(accept_gaps(settings, shard_id, apply=apply), as_json=True)
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    return status, answer


async def held_shard(make_shard: ShardMaker, shard_id: str) -> ShardAddress:
    address = await make_shard(shard_id)
    await execute(address.connection_string, MAKE_ROWS)
    return address


async def test_gap_of_one_shard_is_accepted_once(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, await held_shard(make_shard, "a"), await held_shard(make_shard, "b"))
    status, planned = await answer_of(capfd, settings, "a", apply=False)
    assert (status, planned["applied"]) == (0, False)
    status, answer = await answer_of(capfd, settings, "a")
    assert answer == planned | {"applied": True}
    (accepted,) = answer["gaps"]
    assert (status, answer["shardsWithoutAnswer"], accepted.pop("foundAt") != "") == (0, [], True)
    assert accepted == {"shardId": "a", "stream": "stream", "streamShard": "s-0", "position": "5/0"}
    status, answer = await answer_of(capfd, settings, "a")
    assert (status, answer["gaps"]) == (1, [])
    with pytest.raises(PermanentError, match="expected a shard out of a, b; got c"):
        await show(accept_gaps(settings, "c", apply=True), as_json=True)


@pytest.mark.slow(0.3)
async def test_gaps_of_all_shards_are_accepted_where_they_can_be(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = await make_shard("c-other")
    await execute(other.connection_string, "DELETE FROM schema_migrations")
    empty = await make_shard("d-empty", is_empty=True)
    held = await held_shard(make_shard, "a"), await held_shard(make_shard, "b")
    settings = settings_of(tmp_path, *held, other, empty, silent("e-down"))
    status, answer = await answer_of(capfd, settings)
    assert (status, [one["shardId"] for one in answer["gaps"]]) == (1, ["a", "b"])
    assert answer["shardsWithoutAnswer"] == ["c-other", "e-down"]
    status, answer = await answer_of(capfd, settings_of(tmp_path, *held))
    assert (status, answer["gaps"]) == (0, [])
