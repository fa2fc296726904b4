"""Direct calls send the requests that botocore sends, and end as its calls do. No request leaves this machine."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import botocore.auth
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.aws import clients
from simplu_worker.aws.clients import Client, open_client, translate_errors
from simplu_worker.aws.direct_calls import DECODERS, DirectRequest, DirectSigner, PreparedCall
from simplu_worker.consumers.kinesis.stream.client import decode_get_records
from simplu_worker.errors import PermanentError, RetryableError

REGION = "eu-west-1"
NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
ARN = f"arn:aws:kinesis:{REGION}:123456789012:stream/operations"
QUEUE_URL = f"https://sqs.{REGION}.amazonaws.com/123456789012/orders.fifo"
ENTRIES = [{"Id": "0", "ReceiptHandle": "handle"}]

# An operation of a service, its method, and arguments as the worker gives them.
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GetRecords": ("kinesis", "get_records", {"ShardIterator": "one", "Limit": 1000}),
    "Scan": ("dynamodb", "scan", {"TableName": "leases", "ConsistentRead": False, "ReturnConsumedCapacity": "TOTAL"}),
    "UpdateItem": (
        "dynamodb",
        "update_item",
        {
            "TableName": "leases",
            "Key": {"leaseKey": {"S": "one"}},
            "UpdateExpression": "SET leaseOwner = :me",
            "ExpressionAttributeValues": {
                ":me": {"S": "größe \ud800 \x00"},
                ":tenants": {"SS": ["a", "b"]},
                ":part": {"B": b"\xff"},
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        },
    ),
    "ReceiveMessage": ("sqs", "receive_message", {"QueueUrl": QUEUE_URL, "WaitTimeSeconds": 20}),
    "SendMessageBatch": (
        "sqs",
        "send_message_batch",
        {"QueueUrl": QUEUE_URL, "Entries": [{"Id": "0", "MessageBody": "é"}]},
    ),
    "DeleteMessageBatch": ("sqs", "delete_message_batch", {"QueueUrl": QUEUE_URL, "Entries": ENTRIES}),
    "ChangeMessageVisibilityBatch": (
        "sqs",
        "change_message_visibility_batch",
        {"QueueUrl": QUEUE_URL, "Entries": [ENTRIES[0] | {"VisibilityTimeout": 30}]},
    ),
}
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.Response]]
Answer: TypeAlias = tuple[int, dict[str, Any], dict[str, str]]  # its status, JSON and headers

OF_A_TRY = {"amz-sdk-invocation-id", "amz-sdk-request", "authorization", "x-amz-date"}


class SentRequest(NamedTuple):
    """A request as a service gets it."""

    target: str
    headers: dict[str, str]
    body: bytes


class Recorder:
    """A service, and a proxy, that records requests; gives *answers* in turn, and the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[SentRequest] = []
        self.handler: Handler = self.answer
        self._answers = list(answers or [(200, {"Records": []}, {})])

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Record a request, and answer it."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(SentRequest(request.raw_path, headers, await request.read()))
        status, body, more = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return web.json_response(body, status=status, headers=more, content_type="application/x-amz-json-1.0")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen on loopback; yield the URL."""
        runner = web.ServerRunner(web.Server(self.handler))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setattr(clients, "_session", lambda: own_session(os.environ.get("AWS_ACCOUNT_ID")))


@functools.cache
def own_session(account: str | None) -> AioSession:
    """Return a session as the worker has it, for the tests of this module: a session keeps its credentials."""
    del account  # is in the environment
    return make_session()


make_session = clients._session.__wrapped__  # without its cache
plain_session = functools.cache(AioSession)


@asynccontextmanager
async def plain_client(service: str, endpoint_url: str | None = None) -> AsyncIterator[Client]:
    """Open a client as aiobotocore has it."""
    config = AioConfig(retries={"total_max_attempts": 1, "mode": "standard"})
    credentials = {
        "aws_access_key_id": "ours",
        "aws_secret_access_key": "secret",
        "aws_session_token": "token",
        "aws_account_id": os.environ.get("AWS_ACCOUNT_ID"),
    }
    async with plain_session().create_client(
        service, region_name=REGION, endpoint_url=endpoint_url, config=config, **credentials
    ) as client:
        yield client


def test_all_operations_with_a_decoder_are_tried() -> None:
    """A decoder makes the calls of its operation direct."""
    assert CALLS.keys() == DECODERS.keys()
    assert DECODERS["GetRecords"] is decode_get_records


@pytest.mark.parametrize("operation", CALLS)
async def test_request_is_the_one_of_botocore(operation: str) -> None:
    """The first one, which botocore prepares, and a later one: to the byte, but for its time, its id and its number."""
    service, method, arguments = CALLS[operation]
    recorder = Recorder()
    async with recorder.running() as url:
        async with plain_client(service, url) as client:
            await getattr(client, method)(**arguments)
        async with open_client(service, region=REGION, endpoint_url=url) as client:
            for _ in range(2):
                await getattr(client, method)(**arguments)
    expected, *direct = recorder.requests
    for request in direct:
        assert (request.target, request.body) == (expected.target, expected.body)
        assert common_headers(request) == common_headers(expected)
        assert set(request.headers["user-agent"].split()) >= common_agent(expected)
        signed = [part.partition("Signature=")[0] for part in (request.headers["authorization"],)]
        assert signed == [expected.headers["authorization"].partition("Signature=")[0]]


def common_headers(request: SentRequest) -> dict[str, str]:
    """Return the headers that all requests of an operation have."""
    return {name: value for name, value in request.headers.items() if name not in OF_A_TRY | {"user-agent"}}


def common_agent(request: SentRequest) -> set[str]:
    """Return the parts of the User-Agent beside the list of features."""
    return {part for part in request.headers["user-agent"].split() if not part.startswith(("m/", "cfg/"))}


header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1).filter(
    lambda text: text.strip()
)


@given(
    body=st.binary(),
    host=st.sampled_from(["kinesis.eu-west-1.amazonaws.com", "127.0.0.1:4566", "[::1]:80"]),
    path=st.sampled_from(["/", "/one/two", "/a b/../c"]),
    token=st.none() | header_values,
    headers=st.dictionaries(st.sampled_from(["X-Amz-Target", "Content-Type", "User-Agent", "X-Own"]), header_values),
)
def test_signature_is_that_of_botocore(
    body: bytes, host: str, path: str, token: str | None, headers: dict[str, str]
) -> None:
    """For every request: a wrong signature is refused by AWS alone, and by no server of these tests."""
    credentials = ReadOnlyCredentials("key", "secret", token, None)
    call = PreparedCall(f"https://{host}{path}", host.removesuffix(":80"), headers, REGION, "kinesis")
    request = DirectRequest(call, body)
    expected = AWSRequest("POST", call.url, headers=dict(request.headers), data=body)
    expected.headers["host"] = call.host
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)
        DirectSigner(credentials, "kinesis", REGION).add_auth(request)
        SigV4Auth(credentials, "kinesis", REGION).add_auth(expected)
    assert request.headers["Authorization"] == expected.headers["Authorization"]
    assert request.headers["X-Amz-Date"] == expected.headers["X-Amz-Date"]
    assert request.headers.get("X-Amz-Security-Token") == token


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_ENDPOINT_URL": "https://own.example:8443/aws"},
        {"AWS_ENDPOINT_URL_KINESIS": "http://[::1]:80"},
        {"AWS_ACCOUNT_ID": "123456789012"},
        {"AWS_ACCOUNT_ID": "123456789012", "AWS_ACCOUNT_ID_ENDPOINT_MODE": "disabled"},
    ],
    ids=str,
)
@pytest.mark.parametrize("arn", [None, ARN])
async def test_endpoint_is_the_one_of_botocore(
    variables: dict[str, str], arn: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of FIPS, of both stacks, of an account, of a stream by its ARN, and of the user."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for service, method, arguments in (CALLS[name] for name in ("GetRecords", "Scan", "ReceiveMessage")):
        given = arguments | ({"StreamARN": arn} if arn and service == "kinesis" else {})
        expected = await url_of_botocore(service, method, given)
        async with open_client(service, region=REGION) as client:
            operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
            request = await client._sign(operation, given, b"{}")
        assert request.url == expected.url
        assert request.headers["Authorization"].split(", ")[0].split("/")[2:] == expected.scope


class SignedUrl(NamedTuple):
    """The URL of a request, and region, service and kind of its signature."""

    url: str
    scope: list[str]


async def url_of_botocore(service: str, method: str, arguments: dict[str, Any]) -> SignedUrl:
    """Return to where botocore would send a request."""
    found: list[SignedUrl] = []

    def note(request: Any, **_: Any) -> None:
        signed = request.headers["Authorization"].decode().split(", ")[0]
        found.append(SignedUrl(request.url, signed.split("/")[2:]))
        raise EndpointConnectionError(endpoint_url=request.url)

    async with plain_client(service) as client:
        client.meta.events.register("before-send", note)
        with pytest.raises(EndpointConnectionError):
            await getattr(client, method)(**arguments)
    return found[0]


async def test_streams_have_an_endpoint_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepared request is one of a stream: its ARN contains the account, which may be in the host."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "")
    async with open_client("kinesis", region=REGION) as client:
        operation = client.meta.service_model.operation_model("GetRecords")
        urls = [
            (await client._sign(operation, {"ShardIterator": "one"} | given, b"{}")).url
            for given in ({}, {"StreamARN": ARN}, {"StreamARN": ARN.replace("123456789012", "999999999999")}, {})
        ]
    assert urls[0] == urls[3]
    assert len(set(urls)) == 3


REFUSALS: dict[str, tuple[str, int, dict[str, Any], dict[str, str]]] = {
    "a code of Kinesis": ("GetRecords", 400, {"__type": "ExpiredIteratorException", "message": "late"}, {}),
    "a row": (
        "UpdateItem",
        400,
        {
            "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
            "message": "no",
            "Item": {"leaseKey": {"S": "one"}, "parts": {"B": "e30="}},
        },
        {"x-amzn-RequestId": "42"},
    ),
    "a code of the query protocol": (
        "DeleteMessageBatch",
        400,
        {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"},
        {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
    ),
    "an unknown code": ("Scan", 400, {"__type": "SomethingNew"}, {}),
    "an outage": ("Scan", 503, {}, {}),
    "no code": ("ReceiveMessage", 404, {"message": "not here"}, {}),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusal_is_the_exception_of_botocore(name: str) -> None:
    """Its class, its text, and the parsed answer with the members of the error."""
    operation, status, body, headers = REFUSALS[name]
    service, method, arguments = CALLS[operation]
    raised: list[ClientError] = []
    async with Recorder((status, body, headers)).running() as url:
        for opened in (plain_client(service, url), open_client(service, region=REGION, endpoint_url=url)):
            async with opened as client:
                with pytest.raises(ClientError) as caught:
                    await getattr(client, method)(**arguments)
            caught.value.response["ResponseMetadata"]["HTTPHeaders"].pop("date")
            raised.append(caught.value)
    expected, ours = raised
    assert type(ours).__name__ == type(expected).__name__
    assert str(ours) == str(expected)
    assert ours.operation_name == expected.operation_name
    assert ours.response == expected.response


OUTAGE: Answer = (500, {"__type": "InternalServerError"}, {})


async def test_call_is_tried_again_as_often_as_the_client_was_opened_for() -> None:
    """With the same id, and the number of the try; a refusal that is final is not tried again."""
    recorder = Recorder(OUTAGE, (200, {"Items": [], "LastEvaluatedKey": None}, {}), OUTAGE)
    async with (
        recorder.running() as url,
        open_client("dynamodb", region=REGION, endpoint_url=url, max_attempts=2) as client,
    ):
        assert await client.scan(TableName="one") == {"Items": []}
        with pytest.raises(RetryableError), translate_errors():
            await client.scan(TableName="one")
    tries = [request.headers["amz-sdk-request"] for request in recorder.requests]
    assert tries == ["attempt=1", "attempt=2"] * 2
    ids = [request.headers["amz-sdk-invocation-id"] for request in recorder.requests]
    assert (ids[0], ids[2]) == (ids[1], ids[3])
    assert ids[0] != ids[2]


async def test_final_refusal_is_not_tried_again() -> None:
    """By botocore's rules."""
    recorder = Recorder((400, {"__type": "AccessDeniedException", "message": "no"}, {}))
    async with (
        recorder.running() as url,
        open_client("dynamodb", region=REGION, endpoint_url=url, max_attempts=3) as client,
    ):
        with pytest.raises(PermanentError), translate_errors():
            await client.scan(TableName="one")
    assert len(recorder.requests) == 1


DEEP = '{"Items":[{"a":' + "[" * 100_000


@pytest.mark.parametrize("text", ["<html>hello</html>", "", "[]", DEEP, '{"Items":1,"Records":1,"Failed":1}'], ids=len)
@pytest.mark.parametrize("operation", ["GetRecords", "Scan", "DeleteMessageBatch"])
async def test_answer_that_is_no_reply_is_transient(operation: str, text: str) -> None:
    """A proxy may answer in place of AWS."""
    service, method, arguments = CALLS[operation]

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=text)

    recorder = Recorder()
    recorder.handler = answer
    async with recorder.running() as url, open_client(service, region=REGION, endpoint_url=url) as client:
        with pytest.raises(RetryableError, match=operation), translate_errors():
            await getattr(client, method)(**arguments)


async def test_new_credentials_sign_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary credentials are refreshed before they end."""
    recorder = Recorder()
    async with recorder.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as client:
        await client.get_records(ShardIterator="one")
        monkeypatch.setattr(client._get_credentials(), "access_key", "other")
        await client.get_records(ShardIterator="one")
    keys = [request.headers["authorization"].partition("Credential=")[2].split("/")[0] for request in recorder.requests]
    assert keys == ["ours", "other"]


async def test_call_without_credentials_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of any other call."""
    async with open_client("kinesis", region=REGION, endpoint_url="http://127.0.0.1:1") as client:
        monkeypatch.setattr(client._request_signer, "_credentials", None)
        with pytest.raises(NoCredentialsError):
            await client.get_records(ShardIterator="one")


async def test_request_goes_through_the_users_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that botocore reads."""
    recorder = Recorder()
    async with recorder.running() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        async with open_client("kinesis", region=REGION, endpoint_url="http://aws.example") as client:
            assert (await client.get_records(ShardIterator="one"))["Records"] == []
    assert [request.target for request in recorder.requests] == ["http://aws.example/"]


async def test_cancelled_call_ends_at_once() -> None:
    """Its connection is closed: an answer that comes later is not that of the next call."""
    recorder, hanging = Recorder(), asyncio.Event()

    async def answer_late(request: web.BaseRequest) -> web.Response:
        if not recorder.requests:
            answered = await recorder.answer(request)
            hanging.set()
            await asyncio.sleep(0.2)
            return answered
        return await recorder.answer(request)

    recorder.handler = answer_late
    async with recorder.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as client:
        call = asyncio.ensure_future(client.get_records(ShardIterator="first"))
        await hanging.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await client.get_records(ShardIterator="second")
    assert [json.loads(request.body)["ShardIterator"] for request in recorder.requests] == ["first", "second"]
