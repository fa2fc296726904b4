from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.aws.endpoints import REGION, client_of
from support.citrus.cases import silent
from support.feed.publishing import command_server
from support.postgres.databases import ShardMaker, execute
from support.settings import settings_in, settings_of

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import ThrottledError
from simplu_worker.commands.output import show
from simplu_worker.commands.shards.upgrade import upgrade_shards
from simplu_worker.commands.stream.send import SendOptions, send_operations
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION

# The third line has the partition key of the first: it is put after the first two, and so is the fourth after it.
TYPES = ("order", "patient", "order", "order")
LINE = {"operation": "delete", "businessId": "b", "locationId": "l", "resourceId": "r"}


@pytest.mark.usefixtures("aws_credentials")
async def test_send_prints_the_ids_when_interrupted_while_it_puts(
    kinesis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    (file := tmp_path / "lines").write_text("\n".join(json.dumps(LINE | {"resourceType": one}) for one in TYPES))
    async with client_of("kinesis", kinesis_url) as client:
        stream = Stream(client, f"stream-{uuid4()}")
        await stream.ensure(create=True, stream_shard_count=1)
        (shard,) = await stream.list_stream_shards()
        iterator = await stream.get_iterator(shard.stream_shard_id, TrimHorizon())
        await command_server(kinesis_url, do="fault", action="PutRecords", kind="hang", applied=True)
        settings = settings_in({"AWS_REGION": REGION, "KINESIS_STREAM_NAME": stream.name})
        options = SendOptions(wait=False, timeout_s=60, force=False)
        command = asyncio.create_task(send_operations(settings, file, options, as_json=True))
        put: list[str] = []

        async def is_put() -> bool:
            with contextlib.suppress(ThrottledError):  # a stream shard takes five calls a second
                reply = await stream.get_records(iterator, limit=100)
                put[:] = [json.loads(record.data)["requestId"] for record in reply.records]
            return bool(put)

        assert await poll_until(is_put, within_s=60)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        await command_server(kinesis_url, do="clear_faults")
    outcomes = json.loads(capsys.readouterr().out)["operations"]
    assert [one["status"] for one in outcomes] == ["unknown", "unknown", "not sent", "not sent"]
    assert [one["requestId"] for one in outcomes[:2]] == put


async def answer_of(
    capfd: pytest.CaptureFixture[str], settings: Settings, *shard_ids: str, apply: bool = False
) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    status = await show(upgrade_shards(settings, shard_ids, apply=apply), as_json=True)
    answer = json.loads(capfd.readouterr().out)
    assert answer["schemaVersion"] == SCHEMA_VERSION
    assert answer["applied"] == apply
    return status, {shard["shardId"]: shard for shard in answer["shards"]}


def states_of(shards: dict[str, Any]) -> dict[str, str]:
    return {shard_id: shard["state"] for shard_id, shard in shards.items()}


async def lose_gym(address: ShardAddress) -> None:
    await execute(address.connection_string, "UPDATE business_types SET digest = '' WHERE name = 'gym'")


async def test_shards_upgrade_plans_first_and_then_does_it(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    current, empty = await make_shard("a-current"), await make_shard("b-empty", is_empty=True)
    behind = [await make_shard("c-behind"), await make_shard("d-behind")]
    for address in behind:
        await lose_gym(address)
    settings = settings_of(tmp_path, current, empty, *behind)

    plan = await answer_of(capfd, settings)
    named = await answer_of(capfd, settings, "d-behind", apply=True)
    done = await answer_of(capfd, settings, apply=True)
    again = await answer_of(capfd, settings)

    assert [status for status, _ in (plan, named, done, again)] == [0, 0, 0, 0]
    expected = {"a-current": "current", "b-empty": "empty", "c-behind": "behind", "d-behind": "behind"}
    assert states_of(plan[1]) == expected
    assert plan[1]["c-behind"] == {
        "shardId": "c-behind",
        "place": behind[0].place,
        "state": "behind",
        "schemaVersion": SCHEMA_VERSION,
        "targetVersion": SCHEMA_VERSION,
        "migrations": [],
        "businessTypes": ["gym"],
    }
    assert states_of(named[1]) == {"d-behind": "upgraded"}
    assert states_of(done[1]) == expected | {"c-behind": "upgraded", "d-behind": "current"}
    assert states_of(again[1]) == expected | {"c-behind": "current", "d-behind": "current"}


async def test_upgrade_creates_the_schema_of_a_named_empty_shard(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named, other = await make_shard("a-named", is_empty=True), await make_shard("b-other", is_empty=True)
    settings = settings_of(tmp_path, named, other)

    assert await show(upgrade_shards(settings, ["a-named"], apply=False), as_json=False) == 0
    assert "to create it: simplu-worker shards upgrade a-named --apply" in capfd.readouterr().err
    status, created = await answer_of(capfd, settings, "a-named", apply=True)
    assert (status, created["a-named"]["state"], created["a-named"]["schemaVersion"]) == (0, "created", SCHEMA_VERSION)
    assert states_of((await answer_of(capfd, settings, "a-named", apply=True))[1]) == {"a-named": "current"}
    assert states_of((await answer_of(capfd, settings, apply=True))[1]) == {"a-named": "current", "b-other": "empty"}


async def test_upgrade_fails_for_the_shards_that_cannot_be_upgraded(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer, strange = await make_shard("a-newer"), await make_shard("b-strange", is_empty=True)
    behind = await make_shard("c-behind")
    await execute(newer.connection_string, "INSERT INTO schema_migrations (version, name) VALUES (99, 'later')")
    await execute(strange.connection_string, "CREATE TABLE orders (id int)")
    await lose_gym(behind)
    settings = settings_of(tmp_path, newer, strange, behind, silent("d-down"))

    status, shards = await answer_of(capfd, settings, apply=True)

    assert status == 1
    assert states_of(shards) == {
        "a-newer": "refused",
        "b-strange": "failed",
        "c-behind": "upgraded",
        "d-down": "failed",
    }
    assert "got 99; a schema never goes backwards" in shards["a-newer"]["error"]
    assert "another program's tables" in shards["b-strange"]["error"]
    assert shards["d-down"]["error"] == NO_SERVER
