"""The table of all variables, from which docs/configuration.md is made, and the rules across them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import Field, Secret
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from simplu_worker.config import values

QUEUE_NAME_MAX_LENGTH: Final = 80  # SQS API reference, CreateQueue


class Settings(BaseSettings):
    """The whole configuration. An attribute has its variable's lower-case name, and its unit."""

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        allow_inf_nan=False,
        case_sensitive=True,
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_by_name=True,
    )

    aws_region: values.Region | None = None
    """Region of every AWS client; by default `AWS_DEFAULT_REGION`, the region in a queue's URL, or the profile's."""
    dynamodb_endpoint: values.ServerUrl | None = None
    """Endpoint of DynamoDB (business-info and leases); wins over the standard overrides."""
    aws_access_key_id: values.SecretToken | None = None
    """Standard AWS credentials; without them profiles and roles are tried."""
    aws_secret_access_key: values.SecretToken | None = None
    """The secret of `AWS_ACCESS_KEY_ID`."""
    aws_session_token: values.SecretToken | None = None
    """The session of temporary credentials."""

    kinesis_stream_name: values.Stream | None = None
    """Stream of resource operations, name or ARN; unset: Kinesis is off."""
    kinesis_shard_count: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of stream shards when the worker creates the stream."""
    kinesis_create_stream: bool = True
    """Create the stream at startup when it does not exist."""
    kinesis_application_name: values.TableName = "simplu-worker"
    """Name of the DynamoDB lease table, as with the Kinesis Client Library."""
    kinesis_read: Literal["polling", "fan-out"] = "polling"
    """How new records are read: `polling` (GetRecords), or [`fan-out`](aws.md#enhanced-fan-out) (Kinesis pushes them
    to a registered consumer).
    """
    kinesis_consumer_name: values.ConsumerName | None = None
    """Name of the registered consumer of `fan-out`; unset: `KINESIS_APPLICATION_NAME`."""
    kinesis_coordinator_table: values.Table | None = None
    """Coordinator table of a KCL 3.x application on the same lease table; unset: `KINESIS_APPLICATION_NAME` with
    `-CoordinatorState`.
    """
    kinesis_worker_metrics_table: values.Table | None = None
    """Its table of worker metrics; unset: `KINESIS_APPLICATION_NAME` with `-WorkerMetricStats`."""
    kinesis_kcl_follower: bool = False
    """[Follow](engines.md#the-kcl-as-leader) a KCL 3.x leader on the same lease table: report metrics to it, and
    read what it assigns.
    """
    kinesis_initial_position: values.Position = "TRIM_HORIZON"
    """Where a stream shard without a checkpoint begins: `TRIM_HORIZON`, `LATEST` or a time by RFC 3339."""
    kinesis_lease_duration_seconds: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """Another replica can take a lease that was not renewed for this long."""
    kinesis_partition_key: Literal["resource-type", "tenant", "any"] = "resource-type"
    """[Partition key](sending.md#order) of producers: `resource-type` (`{businessId}-{locationId}-{resourceType}`),
    `tenant` (`{businessId}-{locationId}`) or `any`.
    """
    prefetch_max_bytes: Annotated[int, Field(ge=1_048_576, le=68_719_476_736)] = 67_108_864
    """[Memory](holding.md#memory) of a replica for operations that are not yet applied."""

    sqs_shard_creation_queue_url: values.QueueUrl | None = None
    """The control queue; unset: off."""
    sqs_order_events_queue_url: values.QueueUrl | None = None
    """Queue of order events, FIFO or standard; unset: off."""
    sqs_priority_queue_url: values.QueueUrl | None = None
    """Another queue of order events, polled first; unset: off."""
    order_events_business_id: values.Name | None = None
    """Business of order events that name no tenant; with `ORDER_EVENTS_LOCATION_ID`."""
    order_events_location_id: values.Name | None = None
    """Location of order events that name no tenant; with `ORDER_EVENTS_BUSINESS_ID`."""
    order_deduplication_seconds: Annotated[float, Field(ge=300, le=3_153_600_000)] | None = None
    """How long after a message a `deduplicationId` still names [the same order event](queues.md#order-events);
    unset: `OPERATION_RETENTION_HOURS`.
    """
    sqs_dead_letter_queue_url: values.QueueUrl | None = None
    """Queue for dead letters. Unset: [made from the control queue's name](dead-letters.md#the-queue); required
    without a control queue.
    """
    sqs_retry_delays_seconds: values.Delays = (1, 5, 15)
    """Delay after each failure of an operation or message itself; after one more failure it becomes a dead letter."""

    citrus_server_url: values.ServerUrl | None = None
    """Address of the shard manager."""
    citrus_api_key: values.SecretToken | None = None
    """Sent to Citrus as `Authorization: Bearer`."""
    citrus_timeout: Annotated[int, Field(ge=1, le=600_000)] = 5000
    """Milliseconds for one request to Citrus."""
    citrus_retry_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Tries in all, backing off with jitter."""
    shard_map_file: Path | None = None
    """[Static map](shards.md#the-static-map) instead of Citrus; not together with `CITRUS_SERVER_URL`. Reloaded on
    SIGHUP.
    """
    database_host: values.DatabaseHost | None = None
    """The only shard; `DATABASE_*` is ignored if Citrus or a map is set."""
    database_port: values.Port = 5432
    """Port of the only shard."""
    database_username: values.Text | None = None
    """User at the only shard."""
    database_password: values.SecretText | None = None
    """Password at the only shard."""
    database_name: values.Text | None = None
    """Database at the only shard."""
    database_allowed_hosts: values.HostPatterns = ()
    """Comma-separated patterns of hosts that a connection string may name. Unset: any."""
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = 4
    """Most connections to one shard, per replica."""
    database_max_connections: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Most connections in all, per replica."""

    dynamodb_business_info_table: values.Table = "business-info"
    """Table of business metadata, key `id`."""
    provision_on_first_use: bool = False
    """Create a tenant that Citrus knows and no shard has [at its first
    operation](tenants.md#at-the-first-operation).
    """
    tenant_wait_seconds: Annotated[float, Field(gt=0, le=31_536_000)] = 900.0
    """How long operations of an unregistered tenant are held."""
    tenant_operations_per_second: Annotated[float, Field(ge=0.01, le=1_000_000)] | None = None
    """[Limit](holding.md#limits) on the operations of each tenant without a limit of its own; unset: none."""
    tenant_bytes_per_second: Annotated[float, Field(ge=1, le=1_000_000_000)] | None = None
    """The same for the bytes of their records."""
    tenant_destroy_grace_hours: Annotated[float, Field(ge=0, le=876_000)] = 168.0
    """Time between `SHARD_DESTRUCTION` and the deletion of the tenant's rows."""
    operation_retention_hours: Annotated[float, Field(ge=1, le=876_000)] = 360.0
    """How long rows of `operations` are kept and repetitions dropped; at least the longest retention of a source
    plus 24 hours.
    """
    operation_max_bytes: Annotated[int, Field(ge=1, le=67_108_864)] = 10_485_760
    """A larger record is a dead letter `too_large`."""
    list_result_limit: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Most rows that one `list` returns."""

    redis_url: values.RedisUrl | None = None
    """Cache in which changed resources are invalidated; unset: off."""

    feed_file: Path | None = None
    """JSON file with the destinations of the [change feed](feed.md); unset: off. Reloaded on SIGHUP."""
    feed_allowed_hosts: values.HostsAndNetworks = ()
    """Hosts of webhooks and notifications: patterns of names, and addresses or networks, which are needed for
    addresses that are not public. Unset: any public host, over https.
    """

    http_host: values.Host | None = None
    """Address to listen on; unset: all addresses, of IPv4 and IPv6."""
    http_port: values.PortOrAny = 8080
    """Port of health, metrics and status; 0: any free one."""
    http_tls_cert_file: Path | None = None
    """Certificate chain for HTTPS instead of HTTP; read again on SIGHUP."""
    http_tls_key_file: Path | None = None
    """Its private key, without a password."""
    http_behind_tls: bool = False
    """A proxy in front of `HTTP_PORT` does HTTPS: producers' tokens are accepted over HTTP."""
    api_token: values.SecretToken | None = None
    """Bearer token of operators; unset: protected paths answer 403."""
    api_viewer_token: values.SecretToken | None = None
    """Bearer token of viewers, who see no results, records or error texts, and change nothing."""
    api_tokens_file: Path | None = None
    """JSON file with [further tokens](security.md#tokens); read again on SIGHUP."""
    api_open_reads: bool = False
    """Show counts and states of `/status`, `/shards` and the monitoring points without a token."""
    runbook_url: values.ServerUrl | None = None
    """Address of the documentation site, for links from the status page and `/status`."""
    allow_destructive_http: bool = False
    """Let the protected `DELETE`s empty a queue or the cache; otherwise they answer 403."""

    backup_url: values.SecretText | None = None
    """Connection string of a restored backup, for `tenants restore`."""
    import_source_url: values.SecretText | None = None
    """Connection string of the database that `tenants import` reads."""
    export_target_url: values.SecretText | None = None
    """Connection string of the database that `tenants export` writes."""

    reader_username: values.Text | None = None
    """Read-only role of [`shards query`](reading.md#one-question-to-all-shards) on every shard."""
    reader_password: values.SecretText | None = None
    """Its password. Unset: IAM, a client certificate or a password file, as in the shard's connection string."""

    log_level: values.Level = "info"
    """Lowest level that is logged: `debug` (with each call of AWS), `info`, `warning` or `error`."""
    log_format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for people."""
    traces: bool = False
    """Export [traces](tracing.md) by OTLP, as the standard variables `OTEL_*` say; needs the extra `tracing`."""
    shutdown_grace_seconds: Annotated[float, Field(gt=0, le=3600)] = 25.0
    """Time to drain at SIGTERM."""

    @property
    def dead_letter_queue_url(self) -> str | None:
        """The named queue of dead letters, else the default one beside the control queue, a standard queue.

        None where its name would be too long.
        """
        if self.sqs_dead_letter_queue_url is not None or self.sqs_shard_creation_queue_url is None:
            return self.sqs_dead_letter_queue_url
        url = self.sqs_shard_creation_queue_url.rstrip("/").removesuffix(".fifo") + "-dead-letters"
        return url if len(url.rpartition("/")[2]) <= QUEUE_NAME_MAX_LENGTH else None

    @property
    def order_tenant(self) -> tuple[str, str] | None:
        """The tenant of order events that name none."""
        business_id, location_id = self.order_events_business_id, self.order_events_location_id
        return None if business_id is None or location_id is None else (business_id, location_id)

    @property
    def order_window(self) -> timedelta | None:
        """How long a `deduplicationId` is one order event; None: as long as the log has it."""
        seconds = self.order_deduplication_seconds
        return None if seconds is None else timedelta(seconds=seconds)


VARIABLES: Final[dict[str, FieldInfo]] = {name.upper(): field for name, field in Settings.model_fields.items()}
SECRETS: Final = tuple(
    name for name, one in VARIABLES.items() if any(get_origin(part) is Secret for part in get_args(one.annotation))
)


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each variable."""
    return dict(Settings.model_json_schema()["properties"])


class SourceVariable(NamedTuple):
    """A source, which may be left out: its name, its variable, and what it brings."""

    name: str
    variable: str
    brings: str


ALL_SOURCES: Final = (
    SourceVariable("stream", "KINESIS_STREAM_NAME", "operations of a Kinesis stream"),
    SourceVariable(
        "control queue", "SQS_SHARD_CREATION_QUEUE_URL", "control messages, which create and destroy tenants"
    ),
    SourceVariable("order events", "SQS_ORDER_EVENTS_QUEUE_URL", "order events"),
    SourceVariable("priority order events", "SQS_PRIORITY_QUEUE_URL", "order events that go before others"),
)
SOURCES: Final = tuple(source.variable for source in ALL_SOURCES)
SOURCE_QUEUES: Final = SOURCES[1:]
ROUTES: Final = ("CITRUS_SERVER_URL", "SHARD_MAP_FILE", "DATABASE_HOST")  # in their order of precedence
NO_ROUTE: Final = f"{ROUTES[0]}: expected a way to find shards, {' or '.join(ROUTES)}, got none; set one"
TLS_FILES: Final = ("HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE")
ORDER_TENANT: Final = ("ORDER_EVENTS_BUSINESS_ID", "ORDER_EVENTS_LOCATION_ID")
# The older form begins with the region: https://eu-central-1.queue.amazonaws.com/.
_QUEUE_HOST: Final = re.compile(r"https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")


def set_of(settings: Settings, *names: str) -> list[str]:
    """Return those of the variables *names* that are set."""
    return [name for name in names if getattr(settings, name.lower()) is not None]


def unset_sources(settings: Settings) -> list[SourceVariable]:
    """Return the sources that are not configured."""
    return [source for source in ALL_SOURCES if not set_of(settings, source.variable)]


def find_contradictions(given: Settings) -> Iterator[str]:
    """Yield the contradictions between variables."""
    queues = {name: getattr(given, name.lower()) for name in set_of(given, *SOURCE_QUEUES)}
    queues["SQS_DEAD_LETTER_QUEUE_URL"] = given.dead_letter_queue_url or ""
    for first, second in combinations(queues, 2):
        if queues[first].rstrip("/") == queues[second].rstrip("/"):
            yield f"{second}: expected another queue than {first}, got the same; give each a queue of its own"
    routes = set_of(given, *ROUTES)
    if routes[:2] == ["CITRUS_SERVER_URL", "SHARD_MAP_FILE"]:
        yield "SHARD_MAP_FILE: expected either CITRUS_SERVER_URL or SHARD_MAP_FILE, got both; unset one"
    if routes == ["DATABASE_HOST"]:
        for name in ("DATABASE_NAME", "DATABASE_USERNAME"):
            if not set_of(given, name):
                yield f"{name}: expected a value, since DATABASE_HOST names the only shard, got nothing; set it"
    for pair in (ORDER_TENANT, TLS_FILES):
        match set_of(given, *pair):
            case [name]:
                (missing,) = {*pair} - {name}
                yield f"{missing}: expected a value, since {name} is set, got nothing; set both or neither"
    if given.api_token is not None and given.api_token == given.api_viewer_token:
        yield "API_VIEWER_TOKEN: expected another token than API_TOKEN, got the same; every viewer would be an operator"


def find_omissions(given: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what `run` needs and is not set."""
    sources = set_of(given, *SOURCES)
    if not sources:
        yield f"{SOURCES[0]}: expected a source, {' or '.join(SOURCES)}, got none; set one"
    elif given.dead_letter_queue_url is None:
        yield (
            "SQS_DEAD_LETTER_QUEUE_URL: expected the URL of a queue for dead letters, "
            f"since {' and '.join(sources)} is set, got nothing; set it"
        )
    if sources and given.aws_region is None and not _has_aws_profile(environ):
        yield "AWS_REGION: expected the name of a region, got nothing; set it, or AWS_DEFAULT_REGION, or AWS_PROFILE"
    if not set_of(given, *ROUTES):
        yield NO_ROUTE


def find_region(environ: Mapping[str, str]) -> str | None:
    """Return the region in a variable or a queue's URL; without one, a profile may name it."""
    if region := environ.get("AWS_REGION", environ.get("AWS_DEFAULT_REGION")):
        return region
    hosts = (_QUEUE_HOST.match(environ.get(name, "")) for name in SOURCE_QUEUES)
    return next((host[1] for host in hosts if host is not None), None)


def _has_aws_profile(environ: Mapping[str, str]) -> bool:
    """Return whether a profile may name the region; botocore decides."""
    # os.path, because Path raises for a folder that this user may not enter.
    config = os.path.join(environ.get("HOME", ""), ".aws", "config")  # noqa: PTH118
    named = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"} & environ.keys()
    return bool(named) or os.path.isfile(config)  # noqa: PTH113
