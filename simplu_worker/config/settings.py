"""The configuration: typed, from environment variables, every problem reported at once (docs/configuration.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from simplu_worker.config.environment import OWN_SECRETS, is_service_link, read_secrets
from simplu_worker.config.kinds import (
    BOOLEAN,
    CONSUMER,
    DATABASE_HOST,
    FILE,
    FOLDERS,
    HEADER_SECRET,
    HOST,
    HOST_PATTERNS,
    LEVEL,
    POSITION,
    QUEUE_URL,
    REDIS_URL,
    REGION,
    RETRY_DELAYS,
    SECRET,
    SERVER_URL,
    STREAM,
    TABLE,
    TABLE_NAME,
    TENANT_PART,
    TEXT,
    Kind,
    Secret,
    integer,
    is_file,
    number,
    number_above,
    one_of,
)
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry.log import scrub_text

SHOWN_VALUE_MAX_LENGTH = 100

T = TypeVar("T")


class Variable(NamedTuple):
    """A variable: its kind, its value where it is unset, and its description in docs/configuration.md."""

    kind: Kind[Any]
    default: Any
    description: str


def variable(kind: Kind[T], default: T, description: str) -> T:
    """Return the field of a variable with *default*; for the type checker it is a default of that type."""
    return field(default=default, metadata={Variable: Variable(kind, default, description)})


def optional(kind: Kind[T], description: str) -> T | None:
    """Return the field of a variable that may be unset."""
    return variable(kind, None, description)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration. An attribute has the lower-case name of its variable, and the variable's unit."""

    aws_region: str | None = optional(
        REGION, "Region of every AWS client; else `AWS_DEFAULT_REGION`, the profile's, that in a queue's URL."
    )
    dynamodb_endpoint: str | None = optional(
        SERVER_URL, "Endpoint of DynamoDB (business-info and leases); wins over the standard overrides."
    )

    kinesis_stream_name: str | None = optional(
        STREAM, "Stream of resource operations, name or ARN; unset: Kinesis is off."
    )
    kinesis_shard_count: int = variable(
        integer(1, 10_000), 1, "Number of stream shards when the worker creates the stream."
    )
    kinesis_create_stream: bool = variable(BOOLEAN, True, "Create the stream at startup when it does not exist.")
    kinesis_application_name: str = variable(
        TABLE_NAME, "simplu-worker", "Name of the DynamoDB lease table, as with the Kinesis Client Library."
    )
    kinesis_read: Literal["polling", "fan-out"] = variable(
        one_of("polling", "fan-out"),
        "polling",
        "How new records are read: `polling` (GetRecords), or `fan-out` (a consumer is registered, and "
        "Kinesis pushes records to it); see [aws.md](aws.md#enhanced-fan-out).",
    )
    kinesis_consumer_name: str | None = optional(
        CONSUMER, "Name of the registered consumer of `fan-out`; unset: `KINESIS_APPLICATION_NAME`."
    )
    kinesis_coordinator_table: str | None = optional(
        TABLE,
        "Coordinator table of a KCL 3.x application on the same lease table, where it has another name; "
        "unset: `KINESIS_APPLICATION_NAME` with `-CoordinatorState`.",
    )
    kinesis_worker_metrics_table: str | None = optional(
        TABLE,
        "The same for its table of worker metrics; unset: `KINESIS_APPLICATION_NAME` with `-WorkerMetricStats`.",
    )
    kinesis_kcl_follower: bool = variable(
        BOOLEAN,
        False,
        "With a leader of the KCL 3.x on the same lease table: report metrics to it, and read the stream "
        "shards that it assigns. Else the worker takes none while such a leader is alive.",
    )
    kinesis_initial_position: Literal["TRIM_HORIZON", "LATEST"] | datetime = variable(
        POSITION,
        "TRIM_HORIZON",
        "Where to start a stream shard without a checkpoint: `TRIM_HORIZON`, `LATEST` or an ISO 8601 time.",
    )
    kinesis_lease_duration_seconds: float = variable(
        number(1, 3600), 10.0, "A lease not renewed for this long can be taken by another replica."
    )
    prefetch_max_bytes: int = variable(
        integer(1_048_576, 68_719_476_736), 67_108_864, "Most bytes read ahead and not yet applied, per replica."
    )

    sqs_shard_creation_queue_url: str | None = optional(QUEUE_URL, "The control queue; unset: off.")
    sqs_order_events_queue_url: str | None = optional(QUEUE_URL, "Queue of order events, FIFO or standard; unset: off.")
    sqs_priority_queue_url: str | None = optional(QUEUE_URL, "Another queue of order events, polled first; unset: off.")
    order_events_business_id: str | None = optional(
        TENANT_PART, "Business of order events that name no tenant; with `ORDER_EVENTS_LOCATION_ID`."
    )
    order_events_location_id: str | None = optional(
        TENANT_PART, "Location of order events that name no tenant; with `ORDER_EVENTS_BUSINESS_ID`."
    )
    order_deduplication_seconds: float | None = optional(
        number(300, 3_153_600_000),
        "How long a `deduplicationId` is one order event, from message to message as they were sent; "
        "unset: as long as the log has it (`OPERATION_RETENTION_HOURS`).",
    )
    sqs_dead_letter_queue_url: str | None = optional(
        QUEUE_URL,
        "Queue that dead letters are sent to. Unset: the control queue's name with `-dead-letters`, "
        "created at the start with 14 days' retention; required without a control queue.",
    )
    sqs_retry_delays_seconds: tuple[float, ...] = variable(
        RETRY_DELAYS,
        (1, 5, 15),
        "Delay after each failure of a message's own operation; after one more it is a dead letter.",
    )

    citrus_server_url: str | None = optional(SERVER_URL, "Address of the shard manager.")
    citrus_api_key: Secret | None = optional(HEADER_SECRET, "Sent to Citrus as `Authorization: Bearer`.")
    citrus_timeout: int = variable(integer(1, 600_000), 5000, "Milliseconds for one request to Citrus.")
    citrus_retry_attempts: int = variable(integer(1, 100), 3, "Tries in all, backing off with jitter.")
    shard_map_file: Path | None = optional(
        FILE,
        "Static routing by jump consistent hash instead of Citrus; not together with `CITRUS_SERVER_URL`. "
        "Reloaded on SIGHUP.",
    )

    database_host: str | None = optional(
        DATABASE_HOST,
        "The only shard, when neither Citrus nor a map file is set; `DATABASE_*` is ignored beside either.",
    )
    database_port: int = variable(integer(1, 65535), 5432, "Port of the only shard.")
    database_username: str | None = optional(TEXT, "User at the only shard.")
    database_password: Secret | None = optional(SECRET, "Password at the only shard.")
    database_name: str | None = optional(TEXT, "Database at the only shard.")
    database_allowed_hosts: tuple[str, ...] = variable(
        HOST_PATTERNS,
        (),
        "Comma-separated host patterns that a connection string may name; others are refused. Unset: any.",
    )
    database_file_folders: tuple[str, ...] = variable(
        FOLDERS,
        (
            "/etc/ssl",
            "/etc/pki",
            "/usr/share/ca-certificates",
            "/usr/local/share/ca-certificates",
            "/etc/simplu-worker",
        ),
        "Folders that files of a connection string from Citrus have to be below: certificates, keys, password files. "
        "Those of a map may be anywhere.",
    )
    database_pool_size: int = variable(integer(1, 1000), 4, "Most connections to one shard, per replica.")
    database_max_connections: int = variable(
        integer(1, 100_000), 200, "Most connections in all, per replica; idle pools give theirs back."
    )

    dynamodb_business_info_table: str = variable(TABLE, "business-info", "Table of business metadata, key `id`.")
    provision_on_first_use: bool = variable(
        BOOLEAN,
        False,
        "Provision a tenant that Citrus knows and no shard has at its first operation, "
        "with the type from business-info.",
    )
    tenant_wait_seconds: float = variable(
        number_above(0, 31_536_000), 900.0, "How long operations of an unregistered tenant are held."
    )
    tenant_destroy_grace_hours: float = variable(
        number(0, 876_000), 168.0, "Time between `SHARD_DESTRUCTION` and the deletion of the tenant's rows."
    )
    operation_retention_hours: float = variable(
        number(1, 876_000),
        360.0,
        "How long rows of `operations` are kept, the de-duplication window; "
        "raised to the longest retention of any source plus 24 hours.",
    )
    operation_max_bytes: int = variable(
        integer(1, 67_108_864), 10_485_760, "A larger record is a dead letter `too_large`."
    )
    list_result_limit: int = variable(integer(1, 100_000), 1000, "Most rows that one `list` returns.")

    redis_url: Secret | None = optional(REDIS_URL, "Cache in which changed resources are invalidated; unset: off.")

    http_host: str | None = optional(
        HOST, "Address that health, metrics and status listen on; unset: all addresses, of IPv4 and IPv6."
    )
    http_port: int = variable(
        integer(0, 65535), 8080, "Port of health, metrics and status, for 100 connections at most; 0: any free one."
    )
    backup_url: Secret | None = optional(
        SECRET, "Connection string of a restored backup: of `shards verify-backup` and `tenants restore` alone."
    )
    import_source_url: Secret | None = optional(
        SECRET, "Connection string of the database that `tenants import` reads; nothing else uses it."
    )
    api_token: Secret | None = optional(
        HEADER_SECRET, "Bearer token of operators for the protected pages; unset: they answer 403."
    )
    api_viewer_token: Secret | None = optional(
        HEADER_SECRET, "Another one, of viewers: they see no results, records or error texts, and change nothing."
    )
    api_open_reads: bool = variable(
        BOOLEAN, False, "Show counts and states of `/status`, `/shards` and the monitoring points without a token."
    )
    runbook_url: str | None = optional(
        SERVER_URL, "Address of the documentation site: the status page and `/status` then link runbooks there."
    )
    allow_destructive_http: bool = variable(
        BOOLEAN, False, "Lets the protected `DELETE`s empty a queue or the cache; otherwise they answer 403."
    )

    log_level: Literal["debug", "info", "warning", "error"] = variable(
        LEVEL, "info", "Lowest level that is logged; `debug` shows each call of Kinesis, DynamoDB and SQS."
    )
    log_format: Literal["json", "console"] = variable(
        one_of("json", "console"), "json", "`json` for machines, `console` for people."
    )
    traces: bool = variable(
        BOOLEAN,
        False,
        "Export traces by OTLP, as the standard variables `OTEL_*` have it; needs the extra `tracing`; see "
        "[tracing.md](tracing.md).",
    )
    shutdown_grace_seconds: float = variable(number_above(0, 3600), 25.0, "Time to drain at SIGTERM.")

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


VARIABLES: Final[Mapping[str, Variable]] = {one.name.upper(): one.metadata[Variable] for one in fields(Settings)}


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
    texts = given | {name: secrets[name] for name in OWN_SECRETS if name in secrets}
    values: dict[str, Any] = {}
    for name, one in VARIABLES.items():
        if (text := texts.get(name)) is not None:
            try:
                text.encode()  # fails for bytes of the environment that are not UTF-8
                values[name.lower()] = one.kind.parse(text)
            except ValueError:
                problems.append(_describe_problem(name, text))
    problems += find_contradictions(given)
    problems += find_equal_tokens(texts)
    problems += find_omissions(given) if for_run else ()
    return SettingsDraft(Settings(**values), list(dict.fromkeys(map(scrub_text, problems))))


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
    return "HOME" in given and is_file(Path(given["HOME"], ".aws", "config"))


def _describe_problem(name: str, value: str) -> str:
    """Describe the expected value of the variable *name*, and *value* unless it is or may contain a secret."""
    if name in OWN_SECRETS:
        got = "something else, which is not shown"
    elif "@" in value:
        got = "a value with @, which is not shown because it may contain a password"
    else:
        got = repr(scrub_text(value))
        got = got if len(got) <= SHOWN_VALUE_MAX_LENGTH else f"{got[:SHOWN_VALUE_MAX_LENGTH]}…"
    return f"{name}: expected {VARIABLES[name].kind.expected}, got {got}"
