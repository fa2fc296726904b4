"""Open all parts of the worker: cache, shards, consumers, feed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from simplu_worker.assembly.aws import open_business_info, open_leases, open_stream, open_subscriptions
from simplu_worker.assembly.shards import Shards, only_shard, open_shards
from simplu_worker.aws.clients import Client, check_aws_profile, open_client
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Message, Queue
from simplu_worker.cache.cache import Cache, CacheAdmin, create_redis_commands, open_cache
from simplu_worker.cache.invalidations import OnChange, ignore_changes
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet, FleetServices, FleetSettings
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderSettings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.rejection_notes import DeadLetterStore, RejectionNotes
from simplu_worker.consumers.sqs.control_handler import ControlHandler
from simplu_worker.consumers.sqs.control_messages import tenant_of_control_message
from simplu_worker.consumers.sqs.order_handler import OrderHandler, open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules, tenant_of_order
from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.poller import POLL_WAIT_S
from simplu_worker.consumers.sqs.receive.receiver import Handler, QueueReceiver, ReceiverSettings
from simplu_worker.consumers.sqs.receive.slots import PriorityGate
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.destinations import open_destination
from simplu_worker.feed.feed import ConfiguredDestination, Feed, ReadDestinations, read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.routing.locator import read_shard_map
from simplu_worker.telemetry.log import register_secret, scrub_text
from simplu_worker.telemetry.spans import TRACING
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import PartitionKeyRule

if TYPE_CHECKING:
    from simplu_worker.telemetry.exported_spans import SpanExport

PROTOCOL: Final = "http/protobuf"
PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")  # the first one wins
HEADER_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")


class FeedParts(NamedTuple):
    """The feed of a replica, and what reads its file again."""

    feed: Feed
    read: ReadDestinations


def make_feed(settings: Settings, shards: Shards, replica_name: str) -> FeedParts | None:
    """Return the feed of a replica; None without `FEED_FILE`. Raises `ConfigurationError` for an unusable file."""
    path = settings.feed_file
    if path is None:
        return None
    allowed = AllowedHosts.parse(settings.feed_allowed_hosts)

    def read() -> list[ConfiguredDestination]:
        return [
            ConfiguredDestination(
                one.terms, partial(open_destination, one, region=settings.aws_region, allowed=allowed)
            )
            for one in read_feed_file(path, settings.feed_allowed_hosts)
        ]

    feed = Feed(shards.locator, shards.pools, shards.commits, name=replica_name, destinations=read())
    return FeedParts(feed, read)


DRAIN_SHARE: Final = 0.8  # of the grace time, for batches and messages in flight; the rest gives leases, messages back
QUEUE_LIMITS: Final = SchedulerLimits(message_count=600, batch_count=200)  # fuller batches, fewer transactions
CALLS_A_QUEUE: Final = 16  # deletes, heartbeats and give-backs of one queue at a time


def check_tracing(environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigurationError` where spans cannot be exported."""
    try:
        import simplu_worker.telemetry.exported_spans  # noqa: F401, PLC0415 - the packages are an extra
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"TRACES: expected the extra `tracing` to be installed, got no module {exc.name}; "
            "install simplu-worker[tracing]"
        ) from None
    for name in PROTOCOL_VARIABLES:
        if protocol := environ.get(name):
            if protocol != PROTOCOL:
                raise ConfigurationError(f"{name}: expected {PROTOCOL}, got {scrub_text(protocol)!r}")
            return


@contextlib.contextmanager
def open_tracing(
    *, group_name: str, replica_name: str, environ: Mapping[str, str] = os.environ
) -> Iterator[SpanExport]:
    """Trace until left; close the export before. Raises `ConfigurationError` for wrong values of `OTEL_*` too."""
    check_tracing(environ)
    from simplu_worker.telemetry.exported_spans import create_span_export  # noqa: PLC0415 - see above

    for name in HEADER_VARIABLES:
        for header in environ.get(name, "").split(","):
            register_secret(header.partition("=")[2].strip())
    try:
        export = create_span_export(group_name=group_name, replica_name=replica_name, environ=environ)
    except ValueError as exc:
        raise ConfigurationError(
            f"OTEL_*: expected values that OpenTelemetry knows, got: {scrub_text(str(exc))}"
        ) from None
    TRACING.tracer = export
    try:
        yield export
    finally:
        TRACING.tracer = None


class Consumers(msgspec.Struct):
    """The sources that are on."""

    sqs: Client
    dead_letters: DeadLetterQueue
    rejections: RejectionNotes  # the same queue, for the sources
    fleet: Fleet | None = None
    receivers: dict[str, QueueReceiver] = msgspec.field(default_factory=dict)
    orders: dict[str, OrderHandler] = msgspec.field(default_factory=dict)
    stream: Stream | None = None
    queues: dict[str, Queue] = msgspec.field(default_factory=dict)

    def all_queues(self) -> dict[str, Queue]:
        """Return every queue by its name, or its URL where queues of two accounts share a name."""
        dead_letters = self.dead_letters.queue
        name = dead_letters.url if dead_letters.name in self.queues else dead_letters.name
        return {**self.queues, name: dead_letters}

    def add(self, queue: Queue, handler: Handler, receiver: QueueReceiver) -> None:
        """Add a source queue, under its displayed name."""
        name = queue.url if queue.name in self.receivers else queue.name
        self.queues[name] = queue
        self.receivers[name] = receiver
        if isinstance(handler, OrderHandler):
            self.orders[name] = handler


class Parts(msgspec.Struct, frozen=True):
    """Everything that a worker consists of, opened."""

    shards: Shards
    consumers: Consumers
    on_change: OnChange = ignore_changes
    cache: Cache | None = None
    cache_admin: CacheAdmin | None = None
    span_export: SpanExport | None = None
    feed: FeedParts | None = None


def find_part_problems(settings: Settings) -> list[str]:
    """Return at what opening the parts of a worker would stop. Reads files, but contacts no dependency."""
    checks: list[Callable[[], object]] = []
    if settings.kinesis_stream_name is not None or any(url is not None for url in _queue_urls(settings)):
        checks.append(partial(check_aws_profile, settings.aws_region))
    if settings.redis_url is not None:
        checks.append(partial(create_redis_commands, settings.redis_url.get_secret_value()))
    if settings.shard_map_file is not None:
        checks.append(partial(read_shard_map, settings.shard_map_file, settings.database_allowed_hosts))
    elif settings.citrus_server_url is None and settings.database_host is not None:
        checks.append(partial(only_shard, settings))
    if settings.feed_file is not None:
        checks.append(partial(read_feed_file, settings.feed_file, settings.feed_allowed_hosts))
    if settings.traces:
        checks.append(check_tracing)
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigurationError as exc:
            problems += exc.problems
    return problems


@contextlib.asynccontextmanager
async def open_parts(settings: Settings, replica_name: str) -> AsyncIterator[Parts]:
    """Open all parts of the worker *replica_name*: cache, shards, consumers."""
    async with AsyncExitStack() as stack:
        span_export = None
        if settings.traces:
            tracing = open_tracing(group_name=settings.kinesis_application_name, replica_name=replica_name)
            span_export = stack.enter_context(tracing)
        cache, cache_admin = None, None
        if settings.redis_url is not None:
            cache, cache_admin = await stack.enter_async_context(open_cache(settings.redis_url.get_secret_value()))
        on_change = ignore_changes if cache is None else cache.invalidate
        business_info = None
        if settings.provision_on_first_use:
            business_info = await stack.enter_async_context(open_business_info(settings))
        shards = await stack.enter_async_context(
            open_shards(settings, on_change=on_change, business_info=business_info)
        )
        consumers = await _open_consumers(stack, settings, shards, replica_name, cache)
        feed = make_feed(settings, shards, replica_name)
        yield Parts(shards, consumers, on_change, cache, cache_admin, span_export, feed)


def reader_settings(settings: Settings) -> ReaderSettings:
    """Return the settings of a stream shard's reader."""
    return ReaderSettings(
        operation_max_bytes=settings.operation_max_bytes,
        list_result_limit=settings.list_result_limit,
        retries=_retry_rules(settings),
        partition_key=PartitionKeyRule(settings.kinesis_partition_key),
        drain_s=DRAIN_SHARE * settings.shutdown_grace_seconds,
    )


def _retry_rules(settings: Settings) -> RetryRules:
    return RetryRules(settings.sqs_retry_delays_seconds, timedelta(seconds=settings.tenant_wait_seconds))


def _fleet_settings(settings: Settings) -> FleetSettings:
    return FleetSettings(
        lease_duration_s=settings.kinesis_lease_duration_seconds,
        initial_position=settings.kinesis_initial_position,
        create_stream=settings.kinesis_create_stream,
        stream_shard_count=settings.kinesis_shard_count,
        reader=reader_settings(settings),
    )


async def _open_consumers(
    stack: AsyncExitStack, settings: Settings, shards: Shards, replica_name: str, cache: Cache | None
) -> Consumers:
    queue_count = sum(url is not None for url in _queue_urls(settings))
    # Deletes, heartbeats and dead letters never wait behind parked polls: polls have a client of their own.
    sqs = await stack.enter_async_context(
        open_client("sqs", region=settings.aws_region, pool_size=CALLS_A_QUEUE * (queue_count + 1))
    )
    dead_letters = DeadLetterQueue(sqs, settings.dead_letter_queue_url or "")
    rejections = RejectionNotes(dead_letters, dead_letters.queue.name, shards.gateway)
    consumers = Consumers(sqs, dead_letters, rejections)
    if queue_count:
        polls = await stack.enter_async_context(
            open_client(
                "sqs",
                region=settings.aws_region,
                read_timeout_s=POLL_WAIT_S + POLL_MARGIN_S,
                pool_size=QUEUE_LIMITS.poll_count * queue_count + 1,
            )
        )
        await _open_receivers(stack, settings, shards, consumers, sqs, polls)
    if settings.kinesis_stream_name is not None:
        consumers.stream = await stack.enter_async_context(open_stream(settings))
        table, kcl_leader = await stack.enter_async_context(open_leases(settings))
        subscriptions = None
        if settings.kinesis_read == "fan-out":
            subscriptions = await stack.enter_async_context(open_subscriptions(settings))
        services = FleetServices(
            consumers.stream,
            table,
            kcl_leader,
            shards.gateway,
            consumers.rejections,
            PrefetchMemory(settings.prefetch_max_bytes),
            subscriptions,
        )
        consumers.fleet = Fleet(
            services,
            _fleet_settings(settings),
            me=replica_name,
            on_expired=(lambda: None) if cache is None else cache.note_replica_ended,
            utc=utc_now,
        )
    return consumers


def _queue_urls(settings: Settings) -> tuple[str | None, str | None, str | None]:
    return (settings.sqs_shard_creation_queue_url, settings.sqs_priority_queue_url, settings.sqs_order_events_queue_url)


async def _open_receivers(
    stack: AsyncExitStack, settings: Settings, shards: Shards, consumers: Consumers, sqs: Client, polls: Client
) -> None:
    control_url, priority_url, orders_url = _queue_urls(settings)
    retries = _retry_rules(settings)
    if control_url is not None:
        queue = Queue(sqs, control_url, poll_client=polls)
        control = ControlHandler(
            shards.provisioner, shards.destroyer, shards.changes, queue, retries=retries, clock=utc_now
        )
        receiver = _receiver(settings, queue, control, consumers.rejections, tenant_of=tenant_of_control_message)
        consumers.add(queue, control, receiver)
    order_rules = OrderRules(settings.operation_max_bytes, settings.order_tenant, settings.order_window)
    gate: PriorityGate | None = None
    for url in (priority_url, orders_url):
        if url is None:
            continue
        queue = Queue(sqs, url, poll_client=polls)
        orders = await stack.enter_async_context(
            open_orders(shards.gateway, queue, rules=order_rules, retries=retries, utc=utc_now)
        )
        tenant_of = partial(tenant_of_order, rules=order_rules)
        receiver = _receiver(settings, queue, orders, consumers.rejections, gate=gate, tenant_of=tenant_of)
        consumers.add(queue, orders, receiver)
        # Order events wait while the priority queue is busy.
        gate = PriorityGate(receiver.activity)


def _receiver(
    settings: Settings,
    queue: Queue,
    handler: Handler,
    dead_letters: DeadLetterStore,
    *,
    gate: PriorityGate | None = None,
    tenant_of: Callable[[Message], tuple[str, str] | None],
) -> QueueReceiver:
    # The drain waits for a parked poll: the poll must leave most of the grace time to messages in flight.
    poll_wait_s = min(POLL_WAIT_S, max(1, int(settings.shutdown_grace_seconds / 4)))
    return QueueReceiver(
        queue,
        handler,
        dead_letters,
        ReceiverSettings(
            limits=QUEUE_LIMITS, poll_wait_s=poll_wait_s, drain_s=DRAIN_SHARE * settings.shutdown_grace_seconds
        ),
        gate=gate,
        tenant_of=tenant_of,
    )
