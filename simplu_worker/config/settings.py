"""The configuration: typed, from environment variables, every problem reported at once (docs/configuration.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from simplu_worker.config.environment import OWN_SECRETS, is_service_link, read_secrets
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry.log import scrub_text

SHOWN_VALUE_MAX_LENGTH = 100


@dataclass(frozen=True)
class Expected:
    """The expected value of a variable, where its type and bounds do not describe it."""

    text: str


def _check_http_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or "@" in value:
        raise ValueError("not an http(s) URL")
    if re.search(r"[\s\x00-\x1f\x7f]", value):  # urlsplit drops some of these unseen
        raise ValueError("white space")
    return value


def _check_server_url(value: str) -> str:
    url = urlsplit(_check_http_url(value))
    if url.query or url.fragment:
        raise ValueError("a query or fragment, to which no path can be appended")
    return value.rstrip("/")


def _parse_position(value: Any) -> Any:
    if not isinstance(value, str) or value in {"TRIM_HORIZON", "LATEST"}:
        return value
    moment = datetime.fromisoformat(value)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment < datetime(1970, 1, 1, tzinfo=UTC):
        raise ValueError("Kinesis counts from 1970")
    return moment


def _split_items(value: Any) -> Any:
    return tuple(item.strip() for item in value.split(",")) if isinstance(value, str) else value


def _normalize_level(value: Any) -> Any:
    return {"warn": "warning"}.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _check_visible_ascii(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
        raise ValueError("not usable in a header")
    return secret


def _check_redis_url(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    url = urlsplit(value)
    place = url.path if url.scheme == "unix" else url.hostname
    if url.scheme not in {"redis", "rediss", "unix"} or not place or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("not a URL of Redis")
    if url.scheme != "unix" and url.port == 0:
        raise ValueError("port 0")
    return secret


def _check_file(path: Path) -> Path:
    if not _is_file(path):
        raise ValueError("no file")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that this user may not enter
        return False


_STREAM = r"^(arn:[\w-]+:kinesis:[\w-]+:\d{12}:stream/)?[a-zA-Z0-9_.-]{1,128}$"
_TABLE = r"^(arn:[\w-]+:dynamodb:[\w-]+:\d{12}:table/)?[a-zA-Z0-9_.-]{3,255}$"
_WORD = r"^[^\s@]+$"

ServerUrl = Annotated[
    str, AfterValidator(_check_server_url), Expected("an http(s) URL without credentials, query and fragment")
]
QueueUrl = Annotated[str, AfterValidator(_check_http_url), Expected("the http(s) URL of a queue, without credentials")]
HeaderSecret = Annotated[
    SecretStr, AfterValidator(_check_visible_ascii), Expected("visible ASCII characters without spaces")
]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url), Expected("a redis://, rediss:// or unix:// URL")]
MapFile = Annotated[Path, AfterValidator(_check_file), Expected("the path of a file that exists")]
HostPattern = Annotated[str, Field(pattern=r"^[^\s@/,]+$")]
TenantPart = Annotated[str, Field(min_length=1, max_length=128), Expected("1 to 128 characters")]
RetryDelay = Annotated[float, Field(ge=0, le=43200)]  # SQS: a message is invisible for at most 12 hours


class Settings(BaseModel):
    """The whole configuration. An attribute has the lower-case name of its variable, and the variable's unit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    aws_region: Annotated[str | None, Expected("the name of a region, such as eu-central-1")] = Field(
        default=None,
        pattern=r"^[a-z0-9-]+$",
        description="Region of every AWS client; else `AWS_DEFAULT_REGION`, the profile's, that in a queue's URL.",
    )
    dynamodb_endpoint: ServerUrl | None = Field(
        default=None, description="Endpoint of DynamoDB (business-info and leases); wins over the standard overrides."
    )

    kinesis_stream_name: Annotated[str | None, Expected("the name or ARN of a stream")] = Field(
        default=None, pattern=_STREAM, description="Stream of resource operations, name or ARN; unset: Kinesis is off."
    )
    kinesis_shard_count: int = Field(
        default=1, ge=1, le=10_000, description="Number of stream shards when the worker creates the stream."
    )
    kinesis_create_stream: bool = Field(
        default=True, description="Create the stream at startup when it does not exist."
    )
    kinesis_application_name: Annotated[
        str, Expected("the name of a DynamoDB table, 3 to 255 of a-z A-Z 0-9 _ . -")
    ] = Field(
        default="simplu-worker",
        pattern=r"^[a-zA-Z0-9_.-]{3,255}$",
        description="Name of the DynamoDB lease table, as with the Kinesis Client Library.",
    )
    kinesis_read: Literal["polling", "fan-out"] = Field(
        default="polling",
        description="How new records are read: `polling` (GetRecords), or `fan-out` (a consumer is registered, and "
        "Kinesis pushes records to it); see [aws.md](aws.md#enhanced-fan-out).",
    )
    kinesis_consumer_name: Annotated[str | None, Expected("the name of a consumer, 1 to 128 of a-z A-Z 0-9 _ . -")] = (
        Field(
            default=None,
            pattern=r"^[a-zA-Z0-9_.-]{1,128}$",
            description="Name of the registered consumer of `fan-out`; unset: `KINESIS_APPLICATION_NAME`.",
        )
    )
    kinesis_coordinator_table: Annotated[str | None, Expected("the name or ARN of a DynamoDB table")] = Field(
        default=None,
        pattern=_TABLE,
        description="Coordinator table of a KCL 3.x application on the same lease table, where it has another name; "
        "unset: `KINESIS_APPLICATION_NAME` with `-CoordinatorState`.",
    )
    kinesis_worker_metrics_table: Annotated[str | None, Expected("the name or ARN of a DynamoDB table")] = Field(
        default=None,
        pattern=_TABLE,
        description="The same for its table of worker metrics; "
        "unset: `KINESIS_APPLICATION_NAME` with `-WorkerMetricStats`.",
    )
    kinesis_kcl_follower: bool = Field(
        default=False,
        description="With a leader of the KCL 3.x on the same lease table: report metrics to it, and read the stream "
        "shards that it assigns. Else the worker takes none while such a leader is alive.",
    )
    kinesis_initial_position: Annotated[
        Literal["TRIM_HORIZON", "LATEST"] | datetime,
        BeforeValidator(_parse_position),
        Expected("TRIM_HORIZON, LATEST or an ISO 8601 time"),
    ] = Field(
        default="TRIM_HORIZON",
        description="Where to start a stream shard without a checkpoint: `TRIM_HORIZON`, `LATEST` or an ISO 8601 time.",
    )
    kinesis_lease_duration_seconds: float = Field(
        default=10,
        ge=1,
        le=3600,
        description="A lease not renewed for this long can be taken by another replica.",
    )
    prefetch_max_bytes: int = Field(
        default=67_108_864,
        ge=1_048_576,
        le=68_719_476_736,
        description="Most bytes read ahead and not yet applied, per replica.",
    )

    sqs_shard_creation_queue_url: QueueUrl | None = Field(default=None, description="The control queue; unset: off.")
    sqs_order_events_queue_url: QueueUrl | None = Field(
        default=None, description="Queue of order events, FIFO or standard; unset: off."
    )
    sqs_priority_queue_url: QueueUrl | None = Field(
        default=None, description="Another queue of order events, polled first; unset: off."
    )
    order_events_business_id: TenantPart | None = Field(
        default=None, description="Business of order events that name no tenant; with `ORDER_EVENTS_LOCATION_ID`."
    )
    order_events_location_id: TenantPart | None = Field(
        default=None, description="Location of order events that name no tenant; with `ORDER_EVENTS_BUSINESS_ID`."
    )
    order_deduplication_seconds: float | None = Field(
        default=None,
        ge=300,
        le=3_153_600_000,
        description="How long a `deduplicationId` is one order event, from message to message as they were sent; "
        "unset: as long as the log has it (`OPERATION_RETENTION_HOURS`).",
    )
    sqs_dead_letter_queue_url: QueueUrl | None = Field(
        default=None,
        description="Queue that dead letters are sent to. Unset: the control queue's name with `-dead-letters`, "
        "created at the start with 14 days' retention; required without a control queue.",
    )
    sqs_retry_delays_seconds: Annotated[
        tuple[RetryDelay, ...],
        BeforeValidator(_split_items),
        Expected("comma-separated seconds, each between 0 and 43200"),
    ] = Field(
        default=(1, 5, 15),
        max_length=100,
        description="Delay after each failure of a message's own operation; after one more it is a dead letter.",
    )

    citrus_server_url: ServerUrl | None = Field(default=None, description="Address of the shard manager.")
    citrus_api_key: HeaderSecret | None = Field(default=None, description="Sent to Citrus as `Authorization: Bearer`.")
    citrus_timeout: int = Field(default=5000, ge=1, le=600_000, description="Milliseconds for one request to Citrus.")
    citrus_retry_attempts: int = Field(default=3, ge=1, le=100, description="Tries in all, backing off with jitter.")
    shard_map_file: MapFile | None = Field(
        default=None,
        description="Static routing by jump consistent hash instead of Citrus; not together with `CITRUS_SERVER_URL`. "
        "Reloaded on SIGHUP.",
    )

    database_host: Annotated[str | None, Expected("a host name, an address or a socket's folder")] = Field(
        default=None,
        pattern=r"^[^\s@?]+$",
        description="The only shard, when neither Citrus nor a map file is set; `DATABASE_*` is ignored beside either.",
    )
    database_port: int = Field(default=5432, ge=1, le=65535, description="Port of the only shard.")
    database_username: str | None = Field(default=None, description="User at the only shard.")
    database_password: SecretStr | None = Field(default=None, description="Password at the only shard.")
    database_name: str | None = Field(default=None, description="Database at the only shard.")
    database_allowed_hosts: Annotated[
        tuple[HostPattern, ...], BeforeValidator(_split_items), Expected("comma-separated host patterns")
    ] = Field(
        default=(),
        description="Comma-separated host patterns that a connection string may name; others are refused. Unset: any.",
    )
    database_pool_size: int = Field(default=4, ge=1, le=1000, description="Most connections to one shard, per replica.")
    database_max_connections: int = Field(
        default=200, ge=1, le=100_000, description="Most connections in all, per replica; idle pools give theirs back."
    )

    dynamodb_business_info_table: Annotated[str, Expected("the name or ARN of a DynamoDB table")] = Field(
        default="business-info", pattern=_TABLE, description="Table of business metadata, key `id`."
    )
    provision_on_first_use: bool = Field(
        default=False,
        description="Provision a tenant that Citrus knows and no shard has at its first operation, "
        "with the type from business-info.",
    )
    tenant_wait_seconds: float = Field(
        default=900, gt=0, le=31_536_000, description="How long operations of an unregistered tenant are held."
    )
    tenant_destroy_grace_hours: float = Field(
        default=168,
        ge=0,
        le=876_000,
        description="Time between `SHARD_DESTRUCTION` and the deletion of the tenant's rows.",
    )
    operation_retention_hours: float = Field(
        default=360,
        ge=1,
        le=876_000,
        description="How long rows of `operations` are kept, the de-duplication window; "
        "raised to the longest retention of any source plus 24 hours.",
    )
    operation_max_bytes: int = Field(
        default=10_485_760, ge=1, le=67_108_864, description="A larger record is a dead letter `too_large`."
    )
    list_result_limit: int = Field(default=1000, ge=1, le=100_000, description="Most rows that one `list` returns.")

    redis_url: RedisUrl | None = Field(
        default=None, description="Cache in which changed resources are invalidated; unset: off."
    )

    http_host: Annotated[str, Expected("a host name or an address")] = Field(
        default="0.0.0.0",  # noqa: S104 - the contract's default: probes and scrapers come from other hosts
        pattern=_WORD,
        description="Address that health, metrics and status listen on.",
    )
    http_port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="Port of health, metrics and status, for 100 connections at most; 0: any free one.",
    )
    backup_url: SecretStr | None = Field(
        default=None,
        description="Connection string of a restored backup: of `shards verify-backup` and `tenants restore` alone.",
    )
    import_source_url: SecretStr | None = Field(
        default=None,
        description="Connection string of the database that `tenants import` reads; nothing else uses it.",
    )
    api_token: HeaderSecret | None = Field(
        default=None, description="Bearer token of operators for the protected pages; unset: they answer 403."
    )
    api_viewer_token: HeaderSecret | None = Field(
        default=None,
        description="Another one, of viewers: they see no results, records or error texts, and change nothing.",
    )
    api_open_reads: bool = Field(
        default=False,
        description="Show counts and states of `/status`, `/shards` and the monitoring points without a token.",
    )
    runbook_url: ServerUrl | None = Field(
        default=None,
        description="Address of the documentation site: the status page and `/status` then link runbooks there.",
    )
    allow_destructive_http: bool = Field(
        default=False, description="Lets the protected `DELETE`s empty a queue or the cache; otherwise they answer 403."
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_normalize_level)] = Field(
        default="info", description="Lowest level that is logged; `debug` shows each call of Kinesis, DynamoDB and SQS."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="`json` for machines, `console` for people."
    )
    traces: bool = Field(
        default=False,
        description="Export traces by OTLP, as the standard variables `OTEL_*` have it; needs the extra `tracing`; see "
        "[tracing.md](tracing.md).",
    )
    shutdown_grace_seconds: float = Field(default=25, gt=0, le=3600, description="Time to drain at SIGTERM.")

    @property
    def dead_letter_queue_url(self) -> str | None:
        """The queue of dead letters: the named one, else the default one beside the control queue."""
        return self.sqs_dead_letter_queue_url or default_dead_letter_queue_url(self.sqs_shard_creation_queue_url)

    @property
    def order_tenant(self) -> tuple[str, str] | None:
        """The business and location of order events that name no tenant."""
        business_id, location_id = self.order_events_business_id, self.order_events_location_id
        return None if business_id is None or location_id is None else (business_id, location_id)

    @property
    def order_window(self) -> timedelta | None:
        """How long a `deduplicationId` is one order event; None: as long as the log has it."""
        seconds = self.order_deduplication_seconds
        return None if seconds is None else timedelta(seconds=seconds)


class SettingsDraft(NamedTuple):
    """The settings of the valid values, with defaults in place of the invalid ones, and every problem."""

    settings: Settings
    problems: list[str]


def load_settings(environ: Mapping[str, str], *, for_run: bool = True) -> Settings:
    """Return the settings in *environ*, as `draft_settings`. Raises ConfigurationError with every problem."""
    draft = draft_settings(environ, for_run=for_run)
    if draft.problems:
        raise ConfigurationError(*draft.problems)
    return draft.settings


def draft_settings(environ: Mapping[str, str], *, for_run: bool) -> SettingsDraft:
    """Return the settings in *environ*, and its problems.

    Unknown names and addresses of services are ignored, since programs share the environment.

    *for_run* requires every variable that `run` needs; without it, for commands that need fewer, those that are present
    must be valid. Registers every secret with the log.
    """
    given = {name: value for name, value in environ.items() if value and not is_service_link(name, value)}
    if region := given.get("AWS_REGION", given.get("AWS_DEFAULT_REGION", _region_of_queues(given))):
        given["AWS_REGION"] = region
    secrets, problems = read_secrets(given)
    texts = {name: given[name] for name in map(str.upper, Settings.model_fields) if name in given} | {
        name: secrets[name] for name in OWN_SECRETS if name in secrets
    }
    values = {name.lower(): text for name, text in texts.items()}
    try:
        settings = Settings(**values)  # type: ignore[arg-type]
    except ValidationError as exc:
        names = dict.fromkeys(str(error["loc"][0]) for error in exc.errors(include_input=False, include_context=False))
        problems += [_describe_problem(name, values.pop(name)) for name in names]
        settings = Settings(**values)  # type: ignore[arg-type]  # each value is checked alone
    problems += find_contradictions(given)
    problems += find_equal_tokens(texts)
    problems += find_omissions(given) if for_run else ()
    return SettingsDraft(settings, list(dict.fromkeys(map(scrub_text, problems))))


SOURCE_QUEUES = ("SQS_SHARD_CREATION_QUEUE_URL", "SQS_ORDER_EVENTS_QUEUE_URL", "SQS_PRIORITY_QUEUE_URL")
SOURCES = ("KINESIS_STREAM_NAME", *SOURCE_QUEUES)
QUEUE_NAME_MAX_LENGTH = 80  # SQS API reference, CreateQueue
# The older form begins with the region: https://eu-central-1.queue.amazonaws.com/.
_QUEUE_HOST = re.compile(r"https?://(?:sqs\.)?(?P<region>[a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")
ORDER_TENANT = ("ORDER_EVENTS_BUSINESS_ID", "ORDER_EVENTS_LOCATION_ID")
ROUTES = ("CITRUS_SERVER_URL", "SHARD_MAP_FILE", "DATABASE_HOST")


def find_contradictions(given: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each pair of variables in *given* that contradict each other. Their values may be invalid."""
    queues = {name: given[name].rstrip("/") for name in SOURCE_QUEUES if name in given}
    for first, second in combinations(queues, 2):
        if queues[first] == queues[second]:
            yield f"{second}: expected another queue than {first}, got the same; each would take the other's messages"
    dead_letters = (_dead_letter_queue_url(given) or "").rstrip("/")
    for name, url in queues.items():
        if url == dead_letters:
            yield (
                f"SQS_DEAD_LETTER_QUEUE_URL: expected another queue than {name}, got the same; "
                "dead letters would be read again"
            )
    if "CITRUS_SERVER_URL" in given and "SHARD_MAP_FILE" in given:
        yield "SHARD_MAP_FILE: expected either CITRUS_SERVER_URL or SHARD_MAP_FILE, got both; unset one"
    if len(half := {*ORDER_TENANT} - given.keys()) == 1:
        (missing,) = half
        (other,) = {*ORDER_TENANT} - half
        yield f"{missing}: expected a value, since {other} is set, got nothing; set both or neither"
    if routing_variable(given) == "DATABASE_HOST":
        for name in ("DATABASE_NAME", "DATABASE_USERNAME"):
            if name not in given:
                yield f"{name}: expected a value, since DATABASE_HOST names the only shard, got nothing; set it"


def find_equal_tokens(given: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem if both roles have one token: every viewer would be an operator. Files of secrets are read."""
    if (token := given.get("API_VIEWER_TOKEN")) is not None and token == given.get("API_TOKEN"):
        yield "API_VIEWER_TOKEN: expected another token than API_TOKEN, got the same; every viewer would be an operator"


def find_omissions(given: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each variable that `run` needs and *given* lacks."""
    sources = [name for name in SOURCES if name in given]
    if not sources:
        yield f"{SOURCES[0]}: expected a source, {' or '.join(SOURCES)}, got none; set one"
    if sources and _dead_letter_queue_url(given) is None:
        yield (
            "SQS_DEAD_LETTER_QUEUE_URL: expected the URL of a queue for dead letters, "
            f"since {' and '.join(sources)} is set, got nothing; set it"
        )
    if sources and "AWS_REGION" not in given and not _has_aws_profile(given):
        yield "AWS_REGION: expected the name of a region, got nothing; set it, or AWS_DEFAULT_REGION, or AWS_PROFILE"
    if routing_variable(given) is None:
        yield f"{ROUTES[0]}: expected a way to find shards, {' or '.join(ROUTES)}, got none; set one"


def routing_variable(given: Mapping[str, str]) -> str | None:
    """Return the variable that determines the routing of tenants: the first one in the order of precedence."""
    return next((name for name in ROUTES if name in given), None)


def default_dead_letter_queue_url(control_queue_url: str | None) -> str | None:
    """Return the URL of the dead-letter queue that belongs to a control queue; None where its name would be too long.

    A standard queue: dead letters have no order to keep.
    """
    if control_queue_url is None:
        return None
    url = control_queue_url.rstrip("/").removesuffix(".fifo") + "-dead-letters"
    return url if len(url.rpartition("/")[2]) <= QUEUE_NAME_MAX_LENGTH else None


def _dead_letter_queue_url(given: Mapping[str, str]) -> str | None:
    named = given.get("SQS_DEAD_LETTER_QUEUE_URL")
    return named or default_dead_letter_queue_url(given.get("SQS_SHARD_CREATION_QUEUE_URL"))


def _region_of_queues(given: Mapping[str, str]) -> str | None:
    """Return the region in the URL of a source queue, unless a profile may name one."""
    if _has_aws_profile(given):
        return None
    regions = (_QUEUE_HOST.match(given[name]) for name in SOURCE_QUEUES if name in given)
    return next((found["region"] for found in regions if found is not None), None)


def _has_aws_profile(given: Mapping[str, str]) -> bool:
    """Return whether a profile may name the region; botocore, which the caller asks, decides whether it does."""
    if not {"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"}.isdisjoint(given):
        return True
    return "HOME" in given and _is_file(Path(given["HOME"], ".aws", "config"))


def _describe_problem(name: str, value: str) -> str:
    """Describe the expected value of the field *name*, and *value* unless it is or may contain a secret."""
    if name.upper() in OWN_SECRETS:
        got = "something else, which is not shown"
    elif "@" in value:
        got = "a value with @, which is not shown because it may contain a password"
    else:
        got = repr(scrub_text(value))
        got = got if len(got) <= SHOWN_VALUE_MAX_LENGTH else f"{got[:SHOWN_VALUE_MAX_LENGTH]}…"
    return f"{name.upper()}: expected {describe_expected(Settings.model_fields[name])}, got {got}"


def describe_expected(field: FieldInfo) -> str:
    """Return a text for the expected value of *field*: its own, or one from its type and bounds."""
    parts = (*field.metadata, field.annotation)
    while parts:
        if own := next((part for part in parts if isinstance(part, Expected)), None):
            return own.text
        parts = tuple(inner for part in parts for inner in (*getattr(part, "__metadata__", ()), *get_args(part)))
    if field.annotation is bool:
        return "true or false"
    if field.annotation in {int, float}:
        return _describe_bounds(field)
    if get_origin(field.annotation) is Literal:
        return " or ".join(", ".join(get_args(field.annotation)).rsplit(", ", 1))
    return "text"


def _describe_bounds(field: FieldInfo) -> str:
    kind = "an integer" if field.annotation is int else "a number"
    low = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    above = next((bound.gt for bound in field.metadata if isinstance(bound, Gt)), None)
    high = next(bound.le for bound in field.metadata if isinstance(bound, Le))
    return f"{kind} between {low} and {high}" if above is None else f"{kind} above {above}, at most {high}"
