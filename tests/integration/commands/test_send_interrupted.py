"""`operations send` that Ctrl-C ends prints the request ids of what it has put: a repetition would have others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from uuid import uuid4

import pytest
from support.aws.endpoints import REGION, client_of
from support.feed.publishing import command_server
from support.settings import settings_in

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import ThrottledError
from simplu_worker.commands.stream.send import SendOptions, send_operations
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon

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
