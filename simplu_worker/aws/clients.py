"""Open AWS clients, and translate their errors by class and code, never by text.

A reply that is no JSON of AWS, as of a proxy, is an error; botocore takes it for one without members. Records of a
stream, and rows of tables that an idle worker reads, are decoded here: botocore's parser takes longer than all the rest
of the worker. An event stream is left to its reader.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from math import inf
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import botocore.session
import msgspec
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver, create_credential_resolver
from aiobotocore.session import AioSession
from botocore import exceptions as botocore_errors
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError
from botocore.parsers import ResponseParserError
from yarl import URL

from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.network_errors import NO_ANSWER, NO_CONNECTION, network_cause
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import SharedAnswer

CA_SETTING: Final = "AWS_CA_BUNDLE"


def unanswered_text(exc: Exception) -> str:
    """Return the address and the cause, or the text of *exc*."""
    facts = getattr(exc, "kwargs", {})
    cause, address = facts.get("error"), facts.get("endpoint_url") or facts.get("proxy_url")
    if address is None:
        return str(exc) if cause is None else f"AWS: {network_cause(cause, ca_setting=CA_SETTING)}"
    place = URL(str(address)).with_user(None).with_query(None)
    if isinstance(exc, botocore_errors.ConnectTimeoutError):
        return f"{place}: {NO_CONNECTION}"
    if isinstance(exc, botocore_errors.ReadTimeoutError):
        return f"{place}: {NO_ANSWER}"
    if cause is None:
        return str(exc)
    return f"{place}: {network_cause(cause, ca_setting=CA_SETTING)}"


ANSWER_KEPT_S: Final = 1.0  # a refreshed one too: however short-lived credentials are, no request asks for itself alone
ASK_MAX_S: Final = 10.0  # longer than botocore tries an agent of a container: three times, for two seconds each
EXPIRED_AFTER_S: Final = 5.0
CAUSE_MAX_LENGTH: Final = 300
NOTHING_FOUND: Final = (
    "no source has any: expected them in the environment, a profile, a web identity, or the role of a container or "
    "an instance"
)

log = structlog.get_logger(__name__)


class CredentialSource:
    """The credentials of all clients; to botocore both its chain and what the chain found.

    botocore asks its chain once, and keeps that it found nothing. Here it is asked when a request is to be signed, and
    again when it had nothing, failed, or AWS refused what it had. Meanwhile requests get a `CredentialRetrievalError`.
    *problem* is why there are none. *expired_since* is since when AWS says, in each answer, that they have expired.
    """

    def __init__(
        self, new_chain: Callable[[str | None], AioCredentialResolver], *, answer_kept_s: float = ANSWER_KEPT_S
    ) -> None:
        self.problem: str | None = None
        self.expired_since: float | None = None
        self.region: str | None = None  # of the first client; STS is asked there
        self._new_chain = new_chain
        self._answer_kept_s = answer_kept_s
        self._answers = SharedAnswer(self._ask, fresh_s=answer_kept_s)
        self._found: Any = None
        self._found_at = -inf
        self._frozen: ReadOnlyCredentials | None = None
        self._is_asking = False

    @property
    def method(self) -> str:
        """The source, as botocore names it."""
        return "any source" if self._found is None else str(self._found.method)

    async def load_credentials(self) -> CredentialSource:
        """Return itself, at once: a client can be made before there are credentials."""
        return self

    def get_deferred_property(self, _name: str) -> Callable[[], Awaitable[str | None]]:
        """Return what gives the account, for botocore."""
        return self.get_account_id

    async def get_account_id(self) -> str | None:
        """Return the account, where the source tells it. Raises CredentialRetrievalError."""
        account_id: str | None = (await self.get_frozen_credentials()).account_id
        return account_id

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the credentials to sign with. Raises CredentialRetrievalError.

        Concurrent requests share an answer. While credentials are renewed, the others use the old ones.
        """
        if self._frozen is None or not self._is_asking:
            await self._answers()
        if self._frozen is None:
            raise CredentialRetrievalError(provider=self.method, error_msg=self.problem)
        return self._frozen

    def forget(self) -> None:
        """Ask all sources again before the next request, as AWS refused the credentials; not those just found."""
        if loop_time() - self._found_at >= self._answer_kept_s:
            self._found = self._frozen = None
            self._answers.forget()

    def note_answer(self, *, are_expired: bool) -> None:
        """Take over whether AWS says that the credentials of a request have expired."""
        if not are_expired:
            self.expired_since = None
        elif self.expired_since is None:
            self.expired_since = loop_time()

    @property
    def are_expired(self) -> bool:
        """Whether they have been expired for longer than renewed ones need to come."""
        return self.expired_since is not None and loop_time() - self.expired_since > EXPIRED_AFTER_S

    async def _ask(self) -> None:
        self._is_asking, problem = True, None
        try:
            async with asyncio.timeout(ASK_MAX_S):
                if self._found is None:
                    self._found, self._found_at = await self._new_chain(self.region).load_credentials(), loop_time()
                self._frozen = None if self._found is None else await self._found.get_frozen_credentials()
            if self._frozen is None:
                problem = NOTHING_FOUND
        except Exception as exc:  # noqa: BLE001 - sources are files, programs and servers, and botocore parses them
            self._frozen, problem = None, describe(exc)
        finally:  # cancelled, too: the next one in the line asks
            self._is_asking = False
        if problem is not None and problem != self.problem:
            log.warning("credentials.unavailable", source=self.method, error=problem)
        if problem is None and self.problem is not None:
            log.info("credentials.available", source=self.method)
        self.problem = problem


def describe(exc: Exception) -> str:
    """Return why a source gave no credentials, without what it answered instead."""
    if isinstance(exc, OSError):  # a timeout too
        return f"{exc.filename}: {exc.strerror}" if exc.filename else network_cause(exc, ca_setting=CA_SETTING)
    # botocore's own: that a token may not contain a line break, that new credentials are expired already.
    if isinstance(exc, BotoCoreError):
        return " ".join(unanswered_text(exc).split())[:CAUSE_MAX_LENGTH]
    if isinstance(exc, ClientError) or type(exc) in {ValueError, RuntimeError}:
        return " ".join(str(exc).split())[:CAUSE_MAX_LENGTH]
    return f"expected credentials of AWS, got something else ({type(exc).__name__})"


T = TypeVar("T")
Decode: TypeAlias = Callable[[bytes], dict[str, Any]]

# The operations whose replies are decoded here, each with its decoder, which raises msgspec.DecodeError; the doors to
# Kinesis and to the lease table have them.
DECODERS: dict[str, Decode] = {}
NO_MEMBERS: Final = b"{}"

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _before_parse(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    name, shape, body = operation_model.name, operation_model.output_shape, response_dict["body"]
    if response_dict["status_code"] >= 300 or shape is None:
        return
    if operation_model.has_event_stream_output:
        customized_response_dict[shape.event_stream_name] = EventBody(body)
        response_dict["body"] = _BeginningOfEvents()
        return
    try:
        if (decode := DECODERS.get(name)) is None:
            _members_decoder.decode(body)
        else:
            customized_response_dict |= decode(body)
            response_dict["body"] = NO_MEMBERS
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ResponseParserError(f"{name}: expected JSON of AWS, got something else ({exc})") from None


class EventBody:
    """The unread body of an event stream."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def read_any(self) -> bytes:
        """Return the bytes that are there, at least one; none at the end. Raises AWS_ERRORS."""
        try:
            return await self._reply.content.readany()
        except aiohttp.ServerTimeoutError as exc:
            raise botocore_errors.ReadTimeoutError(endpoint_url=str(self._reply.url), error=exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise botocore_errors.ConnectionClosedError(endpoint_url=str(self._reply.url), error=exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._reply.close()


class _BeginningOfEvents:
    @property
    def content(self) -> _BeginningOfEvents:
        return self

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        yield _INITIAL_RESPONSE, True


# The message of an event stream with the headers `:message-type: event` and `:event-type: initial-response`.
_INITIAL_RESPONSE: Final = (
    b"\0\0\0E\0\0\x005\xa3\x82\xccs\r:message-type\7\0\5event\x0b:event-type\7\0\x10initial-response\xb7bM\xee"
)


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
    }
)

# AWS does not know the access key, or no longer accepts its token: the sources are asked again for the next call.
# API references of Kinesis, DynamoDB, SQS, "Common errors".
EXPIRED_CREDENTIALS_CODES = frozenset({"ExpiredToken", "ExpiredTokenException"})
REFUSED_CREDENTIALS_CODES = EXPIRED_CREDENTIALS_CODES | {"InvalidClientTokenId", "UnrecognizedClientException"}

# AWS accepts signatures for 5 minutes by its clock: set the one of this machine. API references, "Common errors".
SIGNATURE_CODES = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)

# Transient states with an HTTP status 4xx. botocore 1.43 retries/standard.py, TransientRetryableChecker; DynamoDB
# developer guide, "Error handling"; Kinesis ListShards and DynamoDB UpdateTable (ResourceInUse: being created, changed
# or deleted).
TRANSIENT_CODES = (
    REFUSED_CREDENTIALS_CODES
    | SIGNATURE_CODES
    | frozenset(
        {
            "AWS.SimpleQueueService.QueueDeletedRecently",  # for 60 s no queue of that name can be created
            "InternalFailure",
            "InternalServerError",
            "PriorRequestNotComplete",
            "QueueDeletedRecently",
            "RequestTimeout",
            "RequestTimeoutException",
            "ResourceInUseException",
            "TransactionConflictException",
            "TransactionInProgressException",
        }
    )
)

# Raised by botocore itself, in place of an answer of the service.
TRANSIENT_ERRORS: tuple[type[Exception], ...] = (
    botocore_errors.ConnectionError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
    ResponseParserError,
)
WRONG_CLOCK: Final = "; set the clock of this machine by NTP, or correct the secret key"

_PLACE: Final = re.compile(
    "^AWS_.*ENDPOINT|_CA_BUNDLE$|^https?_proxy$", re.IGNORECASE
)  # texts that errors do not quote
CONNECT_TIMEOUT_S: Final = 3.0
OF_PROFILE: Final = "AWS_CONFIG_FILE, ~/.aws/config"  # where no variable has the value
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
    max_attempts: int = 1,
    pool_size: int = 10,
) -> AsyncIterator[Client]:
    """Open a client of *service* (`kinesis`, `dynamodb`, `sqs`) and close it at the end.

    *max_attempts* counts all attempts: loops back off themselves, so allow more for calls made once. A long poll holds
    its connection: *pool_size* must exceed the polls at one time. Raises ConfigurationError for what botocore refuses
    of the environment and the profile, and without a region.
    """
    config = _config(read_timeout_s, max_attempts, pool_size)
    async with AsyncExitStack() as stack:
        try:
            client: Client = await stack.enter_async_context(
                _session().create_client(service, region_name=region, endpoint_url=endpoint_url, config=config)
            )
            session = client._endpoint.http_session  # noqa: SLF001 - to read the files of CAs, and the proxy's URL
            await session._get_session(session._proxy_config.proxy_url_for(client.meta.endpoint_url))  # noqa: SLF001
        except botocore_errors.NoRegionError as exc:
            raise ConfigurationError(NO_REGION) from exc
        except Exception as exc:  # whatever a text of the environment or the profile leads to
            raise _refusal(exc) from exc
        source = credential_source()
        source.region = source.region or client.meta.region_name  # a destination of the feed may have another region
        client.meta.events.register("before-parse", _before_parse)
        client.meta.events.register("after-call", _judge_credentials)
        yield client


def _refusal(exc: Exception) -> ConfigurationError:
    text = str(exc)
    given = {
        name: value
        for name, value in sorted(os.environ.items())
        if (name.startswith("AWS_") or _PLACE.search(name)) and value
    }
    quoted = [name for name, value in given.items() if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)]
    places = [name for name in given if _PLACE.search(name)] if isinstance(exc, ValueError | OSError) else []
    names = quoted or places or [OF_PROFILE]
    shown = "expected another value, got one with @, which is not shown" if "@" in text else " ".join(text.split())
    return ConfigurationError(f"{', '.join(names)}: {shown}")


def check_aws_profile(region: str | None) -> None:
    """Raise ConfigurationError without the profile, or without a region."""
    session = botocore.session.get_session()  # the one of the process would keep the profile
    try:
        region = region or session.get_config_variable("region")
        session.get_scoped_config()
    except botocore_errors.BotoCoreError as exc:  # no such profile, or a file in another format
        raise _refusal(exc) from None
    if region is None:
        raise ConfigurationError(NO_REGION)


def address_of(client: Client, name: str) -> str:
    """Return the endpoint of *client*, without credentials, and *name*."""
    url = urlsplit(str(client.meta.endpoint_url))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/{name}"


def error_code(exc: BaseException | None) -> str:
    """Return the error code of the service; empty without an answer of the service."""
    if not isinstance(exc, botocore_errors.ClientError):
        return ""
    return str(exc.response.get("Error", {}).get("Code", ""))


def translate(exc: Exception) -> WorkerError:
    """Return our error for one of AWS_ERRORS. Raises *exc* itself for a wrong parameter, a bug of ours."""
    if isinstance(exc, botocore_errors.ClientError):
        return _service_error(exc)
    if isinstance(exc, TRANSIENT_ERRORS):
        return RetryableError(unanswered_text(exc))
    raise exc


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise our errors in place of AWS_ERRORS from the calls inside."""
    try:
        yield
    except AWS_ERRORS as exc:
        raise translate(exc) from exc


async def find(call: Awaitable[T], missing: Collection[str]) -> T | None:
    """Return the answer of *call*; None for an error with one of the codes *missing*. Raises our errors."""
    try:
        with translate_errors():
            return await call
    except PermanentError as exc:
        if error_code(exc.__cause__) in missing:
            return None
        raise


def _service_error(exc: botocore_errors.ClientError) -> WorkerError:
    code = error_code(exc)
    message = f"{exc.operation_name}: {code}: {exc.response.get('Error', {}).get('Message', '')}"
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in THROTTLING_CODES or status == 429:
        return ThrottledError(message)
    if code in TRANSIENT_CODES or status >= 500:
        return RetryableError(message + (WRONG_CLOCK if code in SIGNATURE_CODES else ""))
    return PermanentError(message)


def _config(read_timeout_s: float, max_attempts: int, pool_size: int) -> AioConfig:
    return AioConfig(
        read_timeout=read_timeout_s,
        connect_timeout=CONNECT_TIMEOUT_S,
        max_pool_connections=pool_size,
        retries={"total_max_attempts": max_attempts, "mode": "standard"},
        parameter_validation=False,  # ours are of the right types; values are checked by the service
        user_agent=_session().user_agent(),  # else botocore puts a longer one together twice a request
    )


@functools.cache
def _session() -> AioSession:
    """Return the one session of the process: it caches service models (a further session takes 33 ms and 6 MB)."""
    session = AioSession()
    session.register_component("credential_provider", credential_source())
    return session


@functools.cache
def credential_source() -> CredentialSource:
    """Return the credentials of all clients of the process."""
    return CredentialSource(_new_chain)


def _new_chain(region: str | None) -> AioCredentialResolver:
    session = AioSession()
    session.register_component("data_loader", _session().get_component("data_loader"))
    session.set_default_client_config(_config(read_timeout_s=3.0, max_attempts=2, pool_size=1))
    return create_credential_resolver(session, region_name=region)


def _judge_credentials(parsed: dict[str, Any], **_: object) -> None:
    code = parsed.get("Error", {}).get("Code")
    credential_source().note_answer(are_expired=code in EXPIRED_CREDENTIALS_CODES)
    if code in REFUSED_CREDENTIALS_CODES:
        credential_source().forget()


class TableSummary(msgspec.Struct, frozen=True):
    """The status of a table, its key attributes, the partition key first, and its provisioned read units a second."""

    status: str
    key: tuple[str, ...]
    read_units: int = 0


async def describe_table(client: Client, name: str) -> TableSummary | None:
    """Return the description of table *name*; None when it does not exist. Raises our errors."""
    answer = await find(client.describe_table(TableName=name), {"ResourceNotFoundException"})
    if answer is None:
        return None
    table = answer["Table"]
    parts = sorted(table["KeySchema"], key=lambda part: str(part["KeyType"]))  # HASH before RANGE
    return TableSummary(
        status=table["TableStatus"],
        key=tuple(part["AttributeName"] for part in parts),
        read_units=table.get("ProvisionedThroughput", {}).get("ReadCapacityUnits", 0),
    )


VALID_S: Final = 900  # the longest that RDS accepts
# In China `rds` comes before the region, but for older endpoints.
_REGION_OF_HOST: Final = re.compile(
    r"\.(?:rds\.(?P<china>[a-z0-9-]+)\.amazonaws\.com\.cn|(?P<region>[a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?)$"
)


def region_of_host(host: str) -> str | None:
    """Return the region in the name of an endpoint of RDS, None for another name."""
    found = _REGION_OF_HOST.search(host)
    return None if found is None else found["china"] or found["region"]


async def make_rds_password(host: str, port: int, user: str) -> str:
    """Return a password of *user* at an endpoint of RDS, valid for 15 minutes; no request is made.

    Raises `RetryableError` without credentials, `ConfigurationError` without a region.
    """
    region = region_of_host(host) or credential_source().region or os.environ.get("AWS_REGION")
    region = region or _session().get_config_variable("region")
    if region is None:
        raise ConfigurationError(NO_REGION)
    with translate_errors():
        credentials = await credential_source().get_frozen_credentials()
    query = urlencode({"Action": "connect", "DBUser": user}, quote_via=quote)
    request = AWSRequest("GET", f"https://{host}:{port}/?{query}")
    SigV4QueryAuth(credentials, "rds-db", region, expires=VALID_S).add_auth(request)
    return str(request.url).removeprefix("https://")
