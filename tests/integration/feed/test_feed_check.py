"""`check` and the destinations of `FEED_FILE`: what each answers, without an event."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from integration.feed.test_http_destination import NOT_ALLOWED, SECRETS, NameServer
from support.aws.endpoints import REGION
from support.settings import settings_in

from simplu_worker.aws.clients import open_client
from simplu_worker.commands.check.dependency import check_feed
from simplu_worker.network_errors import NO_SERVER, NO_TLS


@pytest.mark.slow(2)
@pytest.mark.usefixtures("aws_credentials")
async def test_check_reaches_each_destination_as_far_as_that_needs_no_event(
    kinesis_url: str, sqs_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs_url)
    monkeypatch.setattr(socket, "getaddrinfo", NameServer("127.0.0.2", "10.0.0.1").getaddrinfo)
    async with (
        open_client("kinesis", region=REGION) as kinesis,
        open_client("sqs", region=REGION) as sqs,
        await asyncio.start_server(_refuse_all, "127.0.0.1", 0) as server,
    ):
        await kinesis.create_stream(StreamName="checked", ShardCount=2)
        await kinesis.get_waiter("stream_exists").wait(StreamName="checked", WaiterConfig={"Delay": 0.05})
        made = await sqs.create_queue(QueueName="checked.fifo", Attributes={"FifoQueue": "true"})
        queue, port = made["QueueUrl"], server.sockets[0].getsockname()[1]
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed_port = unused.getsockname()[1]
            destinations: dict[str, tuple[str, str]] = {
                "stream": ("kinesis", "checked"),
                "no-stream": ("kinesis", "unknown"),
                "queue": ("sqs", queue),
                "no-queue": ("sqs", queue.replace("checked", "unknown")),
                "hook": ("webhook", f"http://127.0.0.1:{port}/secret"),
                "no-tls": ("notification", f"https://127.0.0.1:{port}"),
                "closed": ("webhook", f"http://127.0.0.1:{closed_port}"),
                "forbidden": ("webhook", f"http://rebound.example:{port}"),
            }
            file = tmp_path / "feed.json"
            file.write_text(json.dumps({"destinations": _entries(destinations, tmp_path)}))
            named = {"AWS_REGION": REGION, "FEED_FILE": str(file), "FEED_ALLOWED_HOSTS": "127.0.0.1,rebound.example"}
            found = await check_feed(settings_in(named))
    assert [(one.dependency, one.status.value, one.result) for one in found] == [
        ("feed stream", "ok", "active, 2 open stream shards, records kept for 24 h"),
        ("feed no-stream", "failed", "the stream does not exist; create it, or correct its target"),
        ("feed queue", "ok", "answers, 0 waiting"),
        ("feed no-queue", "failed", "the queue does not exist; create it, or correct its target"),
        ("feed hook", "ok", "can be connected to; nothing was sent"),
        ("feed no-tls", "failed", NO_TLS),
        ("feed closed", "failed", NO_SERVER),
        ("feed forbidden", "failed", f"{NOT_ALLOWED}rebound.example"),
    ]
    assert [one.address for one in found[3:6]] == [
        queue.replace("checked", "unknown"),
        f"http://127.0.0.1:{port}",
        f"https://127.0.0.1:{port}",
    ]
    assert await check_feed(settings_in({"AWS_REGION": REGION})) == []


async def _refuse_all(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def _entries(destinations: dict[str, tuple[str, str]], folder: Path) -> list[dict[str, Any]]:
    secret = folder / "secret"
    secret.write_text(SECRETS[0])
    return [
        {"name": name, "kind": kind, "target": target, "allTenants": True}
        | ({"secretFiles": [str(secret)]} if kind == "webhook" else {})
        for name, (kind, target) in destinations.items()
    ]
