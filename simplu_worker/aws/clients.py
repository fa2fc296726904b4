"""Open AWS clients, and translate their errors by a table.

Every module that calls an AWS service uses a client opened here, and turns the client's errors into our few errors with
`translate`, by class and by code, never by text.
"""

from __future__ import annotations

import functools
import gzip
import os
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import aiohttp
import botocore.session
import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.parsers import AioJSONParser, AioResponseParserFactory
from aiobotocore.session import AioSession
from botocore import exceptions as botocore_errors
from botocore.context import get_context
from botocore.loaders import JSONFileLoader, Loader
from botocore.parsers import ResponseParserError
from botocore.useragent import UserAgentString
from botocore.utils import parse_timestamp
from yarl import URL

from simplu_worker.aws.direct_calls import make_direct
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.network_errors import network_cause
from simplu_worker.timing.clock import OWN_CLOCK

SERVICES = ("dynamodb", "kinesis", "sqs")
REPLY_MAX_BYTES = 32 * 1024 * 1024  # twice the largest that a service sends, which is 16 MB (BatchGetItem)

Client: TypeAlias = Any  # botocore makes its clients at run time from the service's model: they have no class to import

AWS_ERRORS: tuple[type[Exception], ...] = (
    botocore_errors.ClientError,
    botocore_errors.BotoCoreError,
    ResponseParserError,
)

# Too many requests. botocore 1.43 retries/standard.py, ThrottledRetryableChecker; Kinesis API reference, GetRecords
# (KMSThrottling), DescribeStreamSummary (LimitExceeded is its rate); SQS API reference, ReceiveMessage (OverLimit),
# SendMessage (RequestThrottled, KmsThrottled).
THROTTLING_CODES = frozenset(
    {
        "AWS.SimpleQueueService.PurgeQueueInProgress",
        "BandwidthLimitExceeded",
        "KMS.ThrottlingException",  # SQS, by its query code
        "KMSThrottlingException",
        "KmsThrottled",
        "LimitExceededException",
        "OverLimit",
        "ProvisionedThroughputExceededException",
        "PurgeQueueInProgress",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    },
)

# Transient states with an HTTP status 4xx. botocore 1.43 retries/standard.py, TransientRetryableChecker; DynamoDB
# developer guide, "Error handling"; Kinesis ListShards and DynamoDB UpdateTable (ResourceInUse: being created, changed
# or deleted); expired tokens: the credentials chain fetches new ones for the next call.
TRANSIENT_CODES = frozenset(
    {
        "AWS.SimpleQueueService.QueueDeletedRecently",  # for 60 s no queue of that name can be created
        "ExpiredToken",
        "ExpiredTokenException",
        "InternalFailure",
        "InternalServerError",
        "PriorRequestNotComplete",
        "QueueDeletedRecently",
        "RequestTimeout",
        "RequestTimeoutException",
        "ResourceInUseException",
        "TransactionConflictException",
        "TransactionInProgressException",
    },
)

# Raised by botocore itself, in place of an answer of the service: errors of the network or of a source of credentials.
TRANSIENT_ERRORS: tuple[type[Exception], ...] = (
    botocore_errors.ConnectionError,
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.MetadataRetrievalError,
    botocore_errors.TokenRetrievalError,
    ResponseParserError,
)
CREDENTIALS_ERRORS: tuple[type[Exception], ...] = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.NoAuthTokenError,
    botocore_errors.SSOError,
    botocore_errors.LoginError,
)


NO_REGION = "AWS_REGION: expected a region such as eu-west-1, none is set"


class ThrottledError(RetryableError):
    """The service answered that it gets too many requests; wait longer each time."""


@asynccontextmanager
async def open_client(
    service: str,
    *,
    region: str | None,
    endpoint_url: str | None = None,
    read_timeout_s: float = 10.0,
    connect_timeout_s: float = 3.0,
    max_attempts: int = 1,
    pool_size: int = 10,
) -> AsyncIterator[Client]:
    """Open a client of *service* (`kinesis`, `dynamodb`, `sqs`) and close it, with its connections, at the end.

    Credentials come from the standard AWS chain. `AWS_ENDPOINT_URL*` apply when *endpoint_url* is `None`, and the
    profile's region when *region* is. *max_attempts* counts all attempts, 1 = no retry: loops back off themselves, and
    a retry hidden in the client would only delay the error; allow more for calls made once. A long poll holds its
    connection: *pool_size* must exceed the polls at one time, else other calls wait behind them.

    Raises ConfigurationError when there is no region or the profile does not exist.
    """
    config = AioConfig(
        read_timeout=read_timeout_s,
        connect_timeout=connect_timeout_s,
        max_pool_connections=pool_size,
        retries={"total_max_attempts": max_attempts, "mode": "standard"},
        http_session_cls=_BoundedSession,
    )
    async with AsyncExitStack() as stack:
        try:
            client: Client = await stack.enter_async_context(
                _session().create_client(service, region_name=region, endpoint_url=endpoint_url, config=config),
            )
        except botocore_errors.NoRegionError as exc:
            raise ConfigurationError(NO_REGION) from exc
        except botocore_errors.ProfileNotFound as exc:
            raise ConfigurationError(f"AWS_PROFILE: {exc}") from exc
        except ValueError as exc:  # of botocore, for an endpoint or a region without a valid host
            raise ConfigurationError(
                f"AWS_ENDPOINT_URL, AWS_REGION: expected an http(s) URL and a region, got no valid host for {service}"
            ) from exc
        yield client


def check_aws_profile(region: str | None) -> None:
    """Raise ConfigurationError when the profile does not exist, or neither *region* nor the profile names a region."""
    session = botocore.session.get_session()  # the one of the process would keep the profile
    try:
        region = region or session.get_config_variable("region")
        session.get_scoped_config()
    except botocore_errors.ProfileNotFound as exc:
        raise ConfigurationError(f"AWS_PROFILE: {exc}") from None
    except botocore_errors.BotoCoreError as exc:  # a file that is not in the format of profiles
        raise ConfigurationError(f"AWS_CONFIG_FILE: {exc}") from None
    if region is None:
        raise ConfigurationError(NO_REGION)


def address_of(client: Client, name: str) -> str:
    """Return the endpoint of *client*, without credentials, and *name*."""
    url = urlsplit(str(client.meta.endpoint_url))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/{name}"


def error_code(exc: Exception) -> str:
    """Return the error code of the service; empty for an error without an answer of the service."""
    if not isinstance(exc, botocore_errors.ClientError):
        return ""
    return str(exc.response.get("Error", {}).get("Code", ""))


def translate(exc: Exception) -> WorkerError:
    """Return our error for one of AWS_ERRORS.

    Raises *exc* itself when the call was wrong (a parameter that is not in the model): a bug of ours.
    """
    if isinstance(exc, botocore_errors.ClientError):
        return _service_error(exc)
    if isinstance(exc, CREDENTIALS_ERRORS):
        return PermanentError(
            f"no usable AWS credentials: expected them in the environment, a profile or a role; {exc}"
        )
    if isinstance(exc, TRANSIENT_ERRORS):
        return RetryableError(_unanswered_text(exc))
    raise exc


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise our errors in place of AWS_ERRORS from the calls inside."""
    try:
        yield
    except AWS_ERRORS as exc:
        raise translate(exc) from exc


def _unanswered_text(exc: Exception) -> str:
    """Return the address and the cause of a request without an answer of the service."""
    facts = getattr(exc, "kwargs", {})
    cause, endpoint_url = facts.get("error"), facts.get("endpoint_url")
    if endpoint_url is None:
        return str(exc) if cause is None else f"AWS: {network_cause(cause)}"
    place = URL(str(endpoint_url)).with_user(None).with_query(None)
    if isinstance(exc, botocore_errors.ConnectTimeoutError):
        return f"{place}: no connection in time"
    if isinstance(exc, botocore_errors.ReadTimeoutError):
        return f"{place}: no answer in time"
    return f"{place}: {str(exc) if cause is None else network_cause(cause)}"


def _service_error(exc: botocore_errors.ClientError) -> WorkerError:
    code = error_code(exc)
    message = f"{exc.operation_name}: {code}: {exc.response.get('Error', {}).get('Message', '')}"
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in THROTTLING_CODES or status == 429:
        return ThrottledError(message)
    if code in TRANSIENT_CODES or status >= 500:
        return RetryableError(message)
    return PermanentError(message)


_tls_contexts: dict[bool | str, ssl.SSLContext] = {}  # by the file of authorities; True: botocore's own
_tls_lock = threading.Lock()


@functools.cache
def _session() -> AioSession:
    """Return the one session of the process: it caches service models (a further session takes 33 ms and 6 MB)."""
    session = AioSession()
    factory = _ParserFactory()
    factory.set_parser_defaults(timestamp_parser=_parse_timestamp)
    session.register_component("response_parser_factory", factory)
    session.register_component("user_agent_creator", _UserAgent.from_environment())
    session.register_component("data_loader", ServiceModels(session.get_config_variable("data_path")))
    session.register("creating-client-class", make_direct)
    return session


class _BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """Reads at most REPLY_MAX_BYTES of an answer; aiobotocore reads all, and has no setting for that.

    Nothing is decompressed: requests do not accept compression, and a compressed answer is not parsed. All clients
    share one TLS context: the authorities that it knows take 13 ms to load.
    """

    def _build_ssl_contexts(self, proxy_url: str | None) -> tuple[Any, Any]:
        if proxy_url or self._cert_file:  # certificates of the client's own
            built: tuple[Any, Any] = super()._build_ssl_contexts(proxy_url)
            return built
        with _tls_lock:  # clients connect at the same time, each in a thread
            if (context := _tls_contexts.get(self._verify)) is None:
                context = _tls_contexts[self._verify] = super()._build_ssl_contexts(None)[0]
        return context, None

    async def send(self, request: Any) -> Any:
        is_streamed, request.stream_output = request.stream_output, True  # the answer's body is left unread
        try:
            response = await super().send(request)
        finally:
            request.stream_output = is_streamed
        if (date := response.headers.get("date")) is not None:
            OWN_CLOCK.compare(date)
        response.raw = _BoundedReply(response.raw)
        if not is_streamed:
            try:
                await response.content  # which keeps it
            except aiohttp.ServerTimeoutError as exc:
                raise botocore_errors.ReadTimeoutError(endpoint_url=request.url, error=exc) from exc
            except (aiohttp.ClientError, OSError) as exc:
                raise botocore_errors.ConnectionClosedError(endpoint_url=request.url, error=exc) from exc
        return response


class _BoundedReply:
    """The unread body of an answer."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def read(self) -> bytes:
        """Return the body; close its connection if that fails. Raises ResponseParserError if it is too long."""
        try:
            return b"".join([part async for part in self._read_parts()])
        except BaseException:
            self._reply.close()
            raise

    async def read_any(self) -> bytes:
        """Return the bytes of an event stream that are there, at least one; none at its end. Raises AWS_ERRORS."""
        try:
            return await self._reply.content.readany()
        except aiohttp.ServerTimeoutError as exc:
            raise botocore_errors.ReadTimeoutError(endpoint_url=str(self._reply.url), error=exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise botocore_errors.ConnectionClosedError(endpoint_url=str(self._reply.url), error=exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._reply.close()

    async def _read_parts(self) -> AsyncIterator[bytes]:
        left_bytes = REPLY_MAX_BYTES
        async for part in self._reply.content.iter_any():
            left_bytes -= len(part)
            if left_bytes < 0:
                place = self._reply.url.with_user(None).with_query(None)
                raise ResponseParserError(f"{place}: expected an answer of at most {REPLY_MAX_BYTES} bytes, got more")
            yield part


class ServiceModels(Loader):  # type: ignore[misc]  # botocore has no types
    """Finds the models of services; its list of services is that of the worker.

    botocore's own loader looks through the folders of all 400 services, twice, before it loads one.
    """

    def __init__(self, data_path: str | None) -> None:
        paths = [] if data_path is None else data_path.split(os.pathsep)
        super().__init__(extra_search_paths=[str(Path(os.path.expandvars(path)).expanduser()) for path in paths])
        self.file_loader = ModelFiles()

    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 - as of botocore
        """Return the names of the services that the worker uses."""
        return list(SERVICES)


class ModelFiles(JSONFileLoader):  # type: ignore[misc]  # botocore has no types
    """Reads the models of services and the list of endpoints into plain dicts that share their keys.

    The dicts stay for the life of the process. botocore's own loader makes OrderedDicts, which take 5 MiB more.
    """

    def load_file(self, file_path: str) -> Any:
        """Return the content of the file, `None` if there is none; *file_path* has no extension.

        Raises ConfigurationError for a file that is no JSON: users may have their own models in `AWS_DATA_PATH` and
        `~/.aws/models`.
        """
        for ending, open_file in ((".json", open), (".json.gz", gzip.open)):
            try:
                with open_file(file_path + ending, "rb") as file:
                    return msgspec.json.decode(file.read())
            except FileNotFoundError:
                continue
            except msgspec.DecodeError as exc:
                raise ConfigurationError(f"{file_path}{ending}: expected a model of botocore in JSON; {exc}") from None
        return None


class _UserAgent(UserAgentString):  # type: ignore[misc]  # botocore has no types
    """Caches the User-Agent of a client for each set of features that botocore notes of a request.

    botocore builds the same text twice a request, character by character, which takes a quarter of a request's time.
    """

    def __init__(self, **environment: Any) -> None:
        super().__init__(**environment)
        self._texts: dict[frozenset[str], str] = {}

    def with_client_config(self, client_config: Any) -> _UserAgent:
        of_client: _UserAgent = super().with_client_config(client_config)
        of_client._texts = {}
        return of_client

    def to_string(self) -> str:
        context = get_context()
        features = frozenset(() if context is None else context.features)
        if (text := self._texts.get(features)) is None:
            text = self._texts[features] = super().to_string()
        return text


class _JsonParser(AioJSONParser):  # type: ignore[misc]  # botocore has no types
    """Raises ResponseParserError for every reply that it cannot parse."""

    async def parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        try:
            parsed: dict[str, Any] = await super().parse(response, shape)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:  # of botocore, which expects AWS
            name = "an answer" if shape is None else shape.name
            raise ResponseParserError(
                f"{name}: expected JSON of AWS, got something else ({type(exc).__name__})"
            ) from None
        return parsed

    async def _handle_event_stream(self, response: dict[str, Any], _shape: Any, event_name: str) -> dict[str, Any]:
        """Leave an event stream unread: its reader decides when to receive how much (`read_any`)."""
        return {event_name: response["body"]}


class _ParserFactory(AioResponseParserFactory):  # type: ignore[misc]  # as above
    def create_parser(self, protocol_name: str) -> Any:
        if protocol_name == "json":
            return _JsonParser(**self._defaults)
        return super().create_parser(protocol_name)


def _parse_timestamp(value: str | float) -> datetime:
    """Parse a timestamp of an answer into UTC; botocore's parser gives the machine's zone, ten times as slowly."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    parsed: datetime = parse_timestamp(value)
    return parsed.astimezone(UTC)
