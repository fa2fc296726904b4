"""Make the frequent calls of a client without the work that botocore repeats for each request.

For each request botocore resolves the endpoint, validates and serializes the arguments by the service's model, and asks
some forty hooks: three quarters of a request's processor time, with the same result for all requests of an operation.
So botocore prepares the first request of an operation here; the later ones have its URL and headers, and their own
body and signature. Credentials, signature, the HTTP session (time limits, proxies, authorities), the rules of retries
and the exceptions remain those of botocore and aiobotocore.

Arguments that the model does not allow are an error of botocore in the first call, later of the service.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypedDict
from uuid import uuid4

import msgspec
from aiobotocore.client import AioBaseClient
from botocore.auth import SIGNED_HEADERS_BLACKLIST, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.context import start_as_current_context
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from simplu_worker.aws.call_log import LoggedCall

Arguments: TypeAlias = Mapping[str, Any]
Decode: TypeAlias = Callable[[bytes], dict[str, Any]]

Member: TypeAlias = dict[str, Any]


class FrequentReply(TypedDict, total=False):
    """The members that a reply of a frequent call may have, of DynamoDB and SQS; others are left out."""

    Attributes: Member | None
    ConsumedCapacity: Member | None
    Count: int | None
    Failed: list[Member] | None
    Items: list[Member] | None
    LastEvaluatedKey: Member | None
    Messages: list[Member] | None
    Successful: list[Member] | None


_reply_decoder = msgspec.json.Decoder(FrequentReply)


def decode_frequent(body: bytes) -> dict[str, Any]:
    """Return a reply as botocore would, but with undecoded bytes and times. Raises msgspec.DecodeError."""
    return {name: value for name, value in _reply_decoder.decode(body).items() if value is not None}


def encode_bytes(value: bytes) -> str:
    """Return bytes as AWS's JSON has them."""
    return base64.b64encode(value).decode()


# The operations that are called directly, each with the decoder of its reply, which raises msgspec.DecodeError. Their
# arguments contain no times. The decoder of GetRecords is in the door to Kinesis.
DECODERS: dict[str, Decode] = dict.fromkeys(
    (
        "ChangeMessageVisibilityBatch",
        "DeleteMessageBatch",
        "ReceiveMessage",
        "Scan",
        "SendMessageBatch",
        "UpdateItem",
    ),
    decode_frequent,
)


class PreparedCall(NamedTuple):
    """The common parts of an operation's requests; *host* as it is signed, *region* and *service* of the signature."""

    url: str
    host: str
    headers: Mapping[str, str]
    region: str
    service: str


class DirectRequest:
    """A request, with the members that botocore's signer and its HTTP session use."""

    method = "POST"
    params: Mapping[str, str] = {}
    stream_output = False

    def __init__(self, call: PreparedCall, body: bytes) -> None:
        self.url = call.url
        self.host = call.host
        self.body = body
        self.headers = dict(call.headers)
        self.context: dict[str, Any] = {}


class SignedHeaders(dict[str, str]):
    """The headers that are signed, by their names in small letters."""

    def get_all(self, name: str) -> tuple[str]:
        """Return the values of a header."""
        return (self[name],)


class DirectSigner(SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """botocore's signature, version 4; botocore's own copies all headers into an e-mail message, twice a request."""

    def headers_to_sign(self, request: DirectRequest) -> SignedHeaders:
        """Return the headers that the signature covers."""
        named = [(name.lower(), value) for name, value in request.headers.items()]
        signed = SignedHeaders([pair for pair in named if pair[0] not in SIGNED_HEADERS_BLACKLIST])
        signed["host"] = request.host
        return signed


class DirectClient(AioBaseClient):  # type: ignore[misc]  # aiobotocore has no types
    """A client with direct calls of the operations in DECODERS. Each call has a line in the log at debug."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._prepared: dict[tuple[str | None, ...], PreparedCall] = {}

    async def _make_api_call(self, operation_name: str, api_params: dict[str, Any]) -> dict[str, Any]:
        with LoggedCall(self._service_model.service_name, operation_name):
            decode = DECODERS.get(operation_name)
            if decode is not None:
                return await self._call(operation_name, api_params, decode)
            reply: dict[str, Any] = await super()._make_api_call(operation_name, api_params)
            return reply

    async def _call(self, name: str, arguments: Arguments, decode: Decode) -> dict[str, Any]:
        """Make a request, and more where botocore's rules have it tried again; return the reply."""
        operation = self._service_model.operation_model(name)
        body, invocation_id, attempt = json.dumps(arguments, default=encode_bytes).encode(), str(uuid4()), 1
        context: dict[str, Any] = {}  # the retry handler's notes
        while True:
            request = await self._sign(operation, arguments, body)
            request.headers |= {"amz-sdk-invocation-id": invocation_id, "amz-sdk-request": f"attempt={attempt}"}
            answer, failure = await self._send(request)
            if answer is not None and answer.status_code < 300:
                break
            refusal = {} if answer is None else await self._parse_refusal(operation, answer, attempt)
            tried = None if answer is None else (answer, refusal)
            if not await self._endpoint._needs_retry(attempt, operation, {"context": context}, tried, failure):  # noqa: SLF001
                raise failure or await self._error_of(operation, answer, refusal, context)
            attempt += 1
        if attempt > 1:
            await self._end(operation, answer, {}, context)
        try:
            return decode(await answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ResponseParserError(f"{name}: {exc}") from None

    async def _send(self, request: DirectRequest) -> tuple[Any, Exception | None]:
        """Return the answer, or the error of a request without an answer."""
        try:
            return await self._endpoint.http_session.send(request), None
        except (BotoCoreError, ResponseParserError) as exc:
            return None, exc

    async def _sign(self, operation: Any, arguments: Arguments, body: bytes) -> DirectRequest:
        credentials = self._get_credentials()
        frozen = None if credentials is None else await credentials.get_frozen_credentials()
        # What may change the endpoint: the account, and the ARN of a stream or table.
        given = [arguments.get(parameter.member_name) for parameter in operation.context_parameters]
        key = (operation.name, None if frozen is None else frozen.account_id, *given)
        if (call := self._prepared.get(key)) is None:
            call = self._prepared[key] = await self._prepare(operation, arguments)
        request = DirectRequest(call, body)
        DirectSigner(frozen, call.service, call.region).add_auth(request)
        return request

    async def _prepare(self, operation: Any, arguments: Arguments) -> PreparedCall:
        """Have botocore make a request."""
        context: dict[str, Any] = {"client_region": self.meta.region_name, "client_config": self.meta.config}
        with start_as_current_context():  # in which it notes features for the User-Agent
            url, headers, _ = await self._resolve_endpoint_ruleset(operation, arguments, context)
            request = await self._convert_to_request_dict(
                api_params=arguments, operation_model=operation, endpoint_url=url, context=context, headers=headers
            )
        signing = context.get("signing", {})
        host = SigV4Auth(None, "", "").headers_to_sign(AWSRequest("POST", request["url"]))["host"]
        return PreparedCall(
            url=request["url"],
            host=host,
            headers=dict(request["headers"]),
            region=signing.get("region") or self._request_signer.region_name,
            service=signing.get("signing_name") or self._request_signer.signing_name,
        )

    async def _parse_refusal(self, operation: Any, answer: Any, attempt: int) -> dict[str, Any]:
        """Return an answer with an error as botocore parses it, with the members of the error."""
        parser = self._endpoint._response_parser_factory.create_parser(operation.service_model.resolved_protocol)  # noqa: SLF001
        response = {"headers": answer.headers, "status_code": answer.status_code, "body": await answer.content}
        response["context"] = {"operation_name": operation.name}
        refusal: dict[str, Any] = await parser.parse(response, operation.output_shape)
        await self._endpoint._add_modeled_error_fields(response, refusal, operation, parser)  # noqa: SLF001
        refusal["ResponseMetadata"]["RetryAttempts"] = attempt - 1
        return refusal

    async def _error_of(
        self, operation: Any, answer: Any, refusal: dict[str, Any], context: dict[str, Any]
    ) -> ClientError:
        await self._end(operation, answer, refusal, context)
        code = context.get("error_code_override") or refusal.get("Error", {}).get("Code")
        error: ClientError = self.exceptions.from_code(code)(refusal, operation.name)
        return error

    async def _end(self, operation: Any, answer: Any, parsed: dict[str, Any], context: dict[str, Any]) -> None:
        """Run botocore's hooks for the end of a call: the budget of retries, the codes of SQS's errors."""
        event = f"after-call.{operation.service_model.service_id.hyphenize()}.{operation.name}"
        await self.meta.events.emit(event, http_response=answer, parsed=parsed, model=operation, context=context)


def make_direct(base_classes: list[type], **_: object) -> None:
    """Give the class of a client that botocore is about to create the direct calls: a hook of its session."""
    base_classes.insert(0, DirectClient)
