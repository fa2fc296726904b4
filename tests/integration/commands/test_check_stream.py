"""`check` and the stream: positions that belong to another stream of the same name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.aws.endpoints import client_of
from support.full_stack import poll_until_true
from support.postgres.databases import ShardMaker, execute
from support.settings import settings_in

from simplu_local.aws_server.account import REGION
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_kinesis
from simplu_worker.commands.check import check
from simplu_worker.commands.check.checking import check_dependencies
from simplu_worker.commands.check.dependency import CheckStatus
from simplu_worker.config.settings import SOURCES
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import Position
from simplu_worker.errors import ConfigurationError

OF_ANOTHER = "of another stream, which had the name of this one"
POSITION = """
INSERT INTO stream_positions (stream, stream_shard_id, pending_from, parents_done, token)
VALUES ('operations', '{}', '{}/0', true, gen_random_uuid())
"""


def test_check_names_the_sources_when_none_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("SHARD_MAP_FILE", "map.json")
    with pytest.raises(
        ConfigurationError, match=f"KINESIS_STREAM_NAME: expected a source, {' or '.join(SOURCES)}, got"
    ):
        check()


@pytest.mark.slow(5)
@pytest.mark.usefixtures("aws_credentials")
async def test_check_names_the_positions_of_another_stream_when_the_stream_was_made_again(
    endpoint_url: str, make_shard: ShardMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = await make_shard("shard-1")
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"shards": [{"shardId": "shard-1", "connectionString": shard.connection_string}]}))
    with ProcessGroup() as group:
        kinesis_url = await start_kinesis(group)
        urls = {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_ENDPOINT_URL": endpoint_url}
        for name, value in urls.items():
            monkeypatch.setenv(name, value)
        names = {"KINESIS_STREAM_NAME": "operations", "AWS_REGION": REGION, "SHARD_MAP_FILE": str(path)}
        settings = settings_in(names)
        async with client_of("kinesis", kinesis_url) as kinesis, client_of("dynamodb", endpoint_url) as dynamodb:
            stream, table = Stream(kinesis, "operations"), LeaseTable(dynamodb, settings.kinesis_application_name)
            await stream.ensure(create=True, stream_shard_count=2)
            made_at = int(time.time())
            await table.ensure()
            for one in await stream.list_stream_shards():
                await table.create(
                    Lease(
                        one.stream_shard_id,
                        Position.from_sequence_number(one.starting_sequence_number),
                        hash_range=one.hash_range,
                    )
                )
                row = POSITION.format(one.stream_shard_id, one.starting_sequence_number)
                await execute(shard.connection_string, row)
            before = await check_dependencies(settings, {})
            await kinesis.delete_stream(StreamName="operations")

            async def is_gone() -> bool:
                is_later = int(time.time()) > made_at  # sequence numbers begin with the second of the stream's making
                return is_later and await stream._status() is None

            assert await poll_until_true(is_gone, within_s=60)
            await stream.ensure(create=True, stream_shard_count=2)
            after = await check_dependencies(settings, {})

    assert [one for one in before.odd if OF_ANOTHER in one.problem] == []
    off = [one for one in before.dependencies if one.status is CheckStatus.OFF and one.dependency != "running fleet"]
    assert [(one.dependency, one.address) for one in off] == [
        ("control queue", "SQS_SHARD_CREATION_QUEUE_URL"),
        ("order events", "SQS_ORDER_EVENTS_QUEUE_URL"),
        ("priority order events", "SQS_PRIORITY_QUEUE_URL"),
    ]
    named = [(one.about, one.advice) for one in after.odd if OF_ANOTHER in one.problem]
    assert named == [
        (
            "lease table simplu-worker",
            "stop all workers, then delete the lease table, or set KINESIS_APPLICATION_NAME to a new name",
        ),
        ("shard shard-1", "stop all workers, then delete its rows of stream_positions"),
    ]
