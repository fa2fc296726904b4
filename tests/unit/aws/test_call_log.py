"""Calls of AWS in the log at debug: operation, duration and error code, and nothing of what was sent or received."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from support.aws.endpoints import ScriptedAws, client_of

from simplu_local.processes.loopback import HOST, free_port
from simplu_worker.aws import clients
from simplu_worker.aws.clients import translate_errors
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.telemetry import log as log_module
from simplu_worker.telemetry.log import configure_logging

pytestmark = pytest.mark.usefixtures("aws_credentials")

CONTENT = "content-of-a-record"
QUEUE_URL = f"http://{HOST}:1/1/q"  # a client sends to its endpoint, not there
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "kinesis": ("put_record", {"StreamName": "s", "PartitionKey": CONTENT, "Data": CONTENT.encode()}),
    "dynamodb": ("put_item", {"TableName": "t", "Item": {"leaseKey": {"S": CONTENT}}}),
    "sqs": ("send_message", {"QueueUrl": QUEUE_URL, "MessageBody": CONTENT}),
}
ANSWERS: dict[str, dict[str, Any]] = {
    "kinesis": {"ShardId": CONTENT, "SequenceNumber": "1"},
    "dynamodb": {"Attributes": {"leaseKey": {"S": CONTENT}}},
    "sqs": {"MessageId": CONTENT},
}


@pytest.fixture(params=["debug", "info"])
def logged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, io.StringIO]]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging(request.param, "json", stream=(stream := io.StringIO()))
    # A logger keeps the level of its first use.
    monkeypatch.setattr(clients, "log", structlog.get_logger("call_log"))
    yield request.param, stream
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    monkeypatch.setattr(log_module, "_output", None)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in lines if line["event"].endswith(".called")]


@pytest.mark.parametrize("service", CALLS)
async def test_each_call_is_one_line_without_its_content(logged: tuple[str, io.StringIO], service: str) -> None:
    level, stream = logged
    operation, arguments = CALLS[service]
    aws = ScriptedAws()
    async with aws.running() as url, client_of(service, url) as client:
        aws.answer(ANSWERS[service])
        await getattr(client, operation)(**arguments)
        aws.refuse("AccessDeniedException")
        with pytest.raises(PermanentError), translate_errors():
            await getattr(client, operation)(**arguments)
    async with client_of(service, f"http://{HOST}:{free_port()}") as client:
        with pytest.raises(RetryableError), translate_errors():
            await getattr(client, operation)(**arguments)
    lines = lines_of(stream)
    expected = [None, "AccessDeniedException", "EndpointConnectionError"] if level == "debug" else []
    assert [line["error"] for line in lines] == expected
    for line in lines:
        assert (line["event"], line["operation"], line["level"]) == (f"{service}.called", operation, "debug")
        assert 0 <= line["duration_s"] < 60
    assert CONTENT not in stream.getvalue()
