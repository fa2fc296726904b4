"""Replies are AWS's, or an error, and calls are tried as often as asked for. No request leaves this machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import pytest
from aiohttp import web
from botocore.parsers import create_parser
from botocore.session import get_session

from simplu_worker.aws.clients import DECODERS, open_client, translate_errors
from simplu_worker.consumers.kinesis.leases.lease_table import decode_rows
from simplu_worker.consumers.kinesis.stream.client import decode_get_records
from simplu_worker.errors import RetryableError

REGION = "eu-west-1"
QUEUE_URL = f"https://sqs.{REGION}.amazonaws.com/123456789012/orders.fifo"
ENTRIES = [{"Id": "0", "ReceiptHandle": "handle"}]

# An operation of a service, its method, and arguments as the worker gives them.
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GetRecords": ("kinesis", "get_records", {"ShardIterator": "one", "Limit": 1000}),
    "Scan": ("dynamodb", "scan", {"TableName": "leases", "ConsistentRead": False, "ReturnConsumedCapacity": "TOTAL"}),
    "ReceiveMessage": ("sqs", "receive_message", {"QueueUrl": QUEUE_URL, "WaitTimeSeconds": 20}),
    "DeleteMessageBatch": ("sqs", "delete_message_batch", {"QueueUrl": QUEUE_URL, "Entries": ENTRIES}),
}
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.Response]]
Answer: TypeAlias = tuple[int, dict[str, Any], dict[str, str]]  # its status, JSON and headers


class SentRequest(NamedTuple):
    target: str
    headers: dict[str, str]
    body: bytes


class Recorder:
    def __init__(self, *answers: Answer) -> None:
        self.requests: list[SentRequest] = []
        self.handler: Handler = self.answer
        self._answers = list(answers or [(200, {"Records": []}, {})])

    async def answer(self, request: web.BaseRequest) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(SentRequest(request.raw_path, headers, await request.read()))
        status, body, more = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return web.json_response(body, status=status, headers=more, content_type="application/x-amz-json-1.0")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        runner = web.ServerRunner(web.Server(self.handler))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


pytestmark = pytest.mark.usefixtures("aws_credentials")


def test_records_and_rows_alone_are_decoded_by_us() -> None:
    assert {"GetRecords": decode_get_records, "Scan": decode_rows, "UpdateItem": decode_rows} == DECODERS


ROW = {"leaseKey": {"S": "one"}, "leaseCounter": {"N": "1"}, "parentShardId": {"SS": ["a"]}, "other": {"NULL": True}}


@pytest.mark.parametrize(
    ("operation", "reply"),
    [
        ("Scan", {"Items": [ROW, {"deep": {"M": {"list": {"L": [{"BOOL": False}]}}}}], "LastEvaluatedKey": ROW}),
        ("Scan", {"Items": [], "LastEvaluatedKey": None, "ConsumedCapacity": {"CapacityUnits": 2.5}}),
        ("UpdateItem", {"Attributes": ROW}),
        ("UpdateItem", {}),
    ],
    ids=str,
)
def test_rows_are_decoded_as_by_botocore(operation: str, reply: dict[str, Any]) -> None:
    body = json.dumps(reply).encode()
    shape = get_session().get_service_model("dynamodb").operation_model(operation).output_shape
    parsed = create_parser("json").parse({"body": body, "headers": {}, "status_code": 200}, shape)
    del parsed["ResponseMetadata"]
    assert parsed == decode_rows(body)


@pytest.mark.parametrize("text", ["<html>hello</html>", "", "[]"], ids=len)
@pytest.mark.parametrize("operation", ["GetRecords", "Scan", "DeleteMessageBatch"])
async def test_answer_that_is_no_reply_is_transient(operation: str, text: str) -> None:
    service, method, arguments = CALLS[operation]

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=text)

    recorder = Recorder()
    recorder.handler = answer
    async with recorder.running() as url, open_client(service, region=REGION, endpoint_url=url) as client:
        with pytest.raises(RetryableError, match=operation), translate_errors():
            await getattr(client, method)(**arguments)
