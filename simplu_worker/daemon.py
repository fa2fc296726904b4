"""The one place where things are put together, started and drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final
from urllib.parse import quote

import structlog

from simplu_worker import __version__
from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sqs_queue import POLL_MARGIN_S, Queue
from simplu_worker.business_info.table import BusinessInfo
from simplu_worker.cache.cache import Cache, CacheDesk, open_cache
from simplu_worker.cache.invalidations import OnChange, ignore_changes
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.leases.lease import worker_id
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderSettings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.source_retention import LogWindow
from simplu_worker.consumers.sqs.control.handler import ControlHandler
from simplu_worker.consumers.sqs.orders.handler import OrderHandler, open_orders
from simplu_worker.consumers.sqs.receive.priority import PriorityGate
from simplu_worker.consumers.sqs.receive.receiver import POLL_WAIT_S, Handler, QueueReceiver, SchedulerLimits
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.errors import ConfigurationError, PermanentError, WorkerError
from simplu_worker.memory_tuning import tune_allocator
from simplu_worker.metrics import instruments
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.log_retention import LogRetention
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.health.citrus_watch import CitrusWatch
from simplu_worker.shards.health.prober import Prober
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.citrus import Citrus, open_citrus
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.routing.route_refresh import RouteRefresh
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, read_shard_map
from simplu_worker.shards.routing.shard_map_reload import MapReload, note_no_map
from simplu_worker.shards.tenants.confirmation_sweep import Unconfirmed
from simplu_worker.shards.tenants.deletion import TenantDeletion
from simplu_worker.shards.tenants.destruction import Destroyer
from simplu_worker.shards.tenants.first_use import FindsBusiness, FirstUse
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.tenants.resource_changes import ResourceChanges
from simplu_worker.status.replica import ReplicaStatus, views_of
from simplu_worker.status.server import open_http
from simplu_worker.telemetry.systemd import SystemdNotifier

KINESIS_READ_TIMEOUT_S: Final = 5.0
HEARTBEAT_S: Final = 0.5
FLUSH_S: Final = 2.0  # at a stop, for what the cache is yet to be told
DRAIN_SHARE: Final = 0.8  # of the grace time, for what is in flight; the rest is for giving leases and messages back
QUEUE_LIMITS: Final = SchedulerLimits(message_count=600, batch_count=200)  # fuller batches, fewer transactions
CALLS_A_QUEUE: Final = 16  # deletes, heartbeats and give-backs of one queue at a time
ONLY_SHARD_ID: Final = "database"  # the id of the one shard that DATABASE_* name

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Shards:
    """Everything about shards, opened: what the daemon and the commands for people share."""

    locator: Locator
    pools: Pools
    directory: Directory
    router: ShardGateway
    provisioner: Provisioner
    destroyer: Destroyer
    changes: ResourceChanges


@dataclass
class Consumers:
    """The sources that are on."""

    dead_letters: DeadLetterQueue
    fleet: Fleet | None = None
    receivers: dict[str, QueueReceiver] = field(default_factory=dict)
    orders: dict[str, OrderHandler] = field(default_factory=dict)
    stream: Stream | None = None
    queues: dict[str, Queue] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def open_shards(
    settings: Settings, *, on_change: OnChange = ignore_changes, business_info: FindsBusiness | None = None
) -> AsyncIterator[Shards]:
    """Open the way to the shards; no connection is made yet. *on_change* is told of resources that were changed.

    With *business_info* tenants are made at their first use.
    """
    async with AsyncExitStack() as stack:
        pools = await stack.enter_async_context(
            Pools(size=settings.database_pool_size, max_connections=settings.database_max_connections)
        )
        locator = await stack.enter_async_context(_open_locator(settings))
        directory = Directory(locator, pools)
        tenant_wait = timedelta(seconds=settings.tenant_wait_seconds)
        commits = ReplicationWaiter(pools)
        provisioner = Provisioner(locator, directory, pools, on_change=on_change, commits=commits)
        yield Shards(
            locator=locator,
            pools=pools,
            directory=directory,
            router=ShardGateway(
                directory,
                locator,
                pools,
                tenant_wait=tenant_wait,
                on_change=on_change,
                commits=commits,
                first_use=None if business_info is None else FirstUse(business_info, provisioner, locator, pools),
            ),
            provisioner=provisioner,
            destroyer=Destroyer(locator, directory, pools, commits=commits),
            changes=ResourceChanges(directory, pools, on_change=on_change, commits=commits),
        )


@contextlib.asynccontextmanager
async def _open_locator(settings: Settings) -> AsyncIterator[Locator]:
    allowed_hosts = settings.database_allowed_hosts
    if settings.citrus_server_url is not None:
        api_key = settings.citrus_api_key
        async with open_citrus(
            settings.citrus_server_url,
            api_key=None if api_key is None else api_key.get_secret_value(),
            timeout_s=settings.citrus_timeout / 1000,
            attempts=settings.citrus_retry_attempts,
            allowed_hosts=allowed_hosts,
        ) as citrus:
            yield citrus
    elif settings.shard_map_file is not None:
        yield StaticMap(read_shard_map(settings.shard_map_file, allowed_hosts))
    else:
        shard = MappedShard(shard_id=ONLY_SHARD_ID, connection_string=_only_connection_string(settings))
        try:
            shard.address.checked(allowed_hosts)
        except PermanentError as exc:
            raise ConfigurationError(f"DATABASE_HOST: {exc}") from None
        yield StaticMap(ShardMap(shards=(shard,)))


def _only_connection_string(settings: Settings) -> str:
    password = settings.database_password
    userinfo = quote(settings.database_username or "", safe="")
    if password is not None:
        userinfo += ":" + quote(password.get_secret_value(), safe="")
    host = settings.database_host or ""
    place = f"[{host}]" if ":" in host else quote(host, safe="")  # a socket's folder has slashes
    return f"postgresql://{userinfo}@{place}:{settings.database_port}/{quote(settings.database_name or '', safe='')}"


async def run_worker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain within `SHUTDOWN_GRACE_SECONDS`; a second signal ends the process.

    SIGHUP has `SHARD_MAP_FILE` read anew.
    """
    stopping, hung_up = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, hung_up)
    instruments.set_build_info(__version__)
    notifier = SystemdNotifier(os.environ)
    token = settings.api_token
    replica = ReplicaStatus(
        name=worker_id(socket.gethostname(), os.getpid(), secrets.token_hex(4)),
        stopping=stopping,
        grace_s=settings.shutdown_grace_seconds,
    )
    async with AsyncExitStack() as stack:
        http = open_http(
            settings.http_host,
            settings.http_port,
            token=None if token is None else token.get_secret_value(),
            views=views_of(replica),
            allow_destructive=settings.allow_destructive_http,
        )
        try:
            port = await stack.enter_async_context(http)
        except OSError as exc:
            place = f"{settings.http_host}:{settings.http_port}"
            raise WorkerError(f"HTTP_HOST, HTTP_PORT: expected to listen on {place}, got: {exc.strerror}") from exc
        cache, cache_desk = await _open_cache(stack, settings)
        on_change = ignore_changes if cache is None else cache.changed
        business_info = None
        if settings.provision_on_first_use:
            business_info = await stack.enter_async_context(open_business_info(settings))
        shards = await stack.enter_async_context(
            open_shards(settings, on_change=on_change, business_info=business_info)
        )
        consumers = await _open_consumers(stack, settings, shards, replica.name, cache)
        health = HealthRegistry()
        replica.start(
            shards.router,
            shards.pools,
            shards.locator,
            consumers.fleet,
            consumers.receivers,
            queues=_watched(consumers),
            orders=consumers.orders,
            cache=cache,
            cache_desk=cache_desk,
            health=health,
        )
        tune_allocator()
        log.info("worker.started", replica=replica.name, version=__version__, http_port=port)
        async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as tasks:
            around = [
                tasks.create_task(_heartbeat(notifier, replica), name="heartbeat"),
                tasks.create_task(_retention(settings, shards, consumers).run(), name="retention"),
                tasks.create_task(_deletion(settings, shards, on_change).run(), name="deletion"),
                tasks.create_task(Unconfirmed(shards.provisioner.confirmer, shards.pools).run(), name="unconfirmed"),
                tasks.create_task(Prober(shards.pools, health).run(), name="prober"),
                tasks.create_task(RouteRefresh(shards.directory, shards.locator, shards.pools).run(), name="routes"),
                tasks.create_task(consumers.dead_letters.open(), name="dead-letters"),
                tasks.create_task(_reload_map(settings, shards, hung_up), name="shard-map"),
            ]
            if isinstance(shards.locator, Citrus):
                around.append(tasks.create_task(CitrusWatch(shards.locator, health).run(), name="citrus"))
            if cache is not None:
                around.append(tasks.create_task(cache.run(), name="cache"))
            async with asyncio.TaskGroup() as sources:
                for name, receiver in consumers.receivers.items():
                    sources.create_task(receiver.run(stopping), name=f"queue:{name}")
                if consumers.fleet is not None:
                    sources.create_task(consumers.fleet.run(stopping), name="fleet")
                await stopping.wait()
                notifier.stopping()
                log.info("worker.draining", grace_s=settings.shutdown_grace_seconds)
                deadline.reschedule(asyncio.get_running_loop().time() + settings.shutdown_grace_seconds)
            if cache is not None:
                left_s = (deadline.when() or 0.0) - asyncio.get_running_loop().time()
                await cache.flush(min(FLUSH_S, left_s / 2))
            for task in around:
                task.cancel()
    overdue = sorted(name for name, receiver in consumers.receivers.items() if receiver.overdue_message_ids)
    if overdue:
        raise TimeoutError(f"not drained in time, their messages come again: {', '.join(overdue)}")
    log.info("worker.stopped", replica=replica.name)


async def _open_consumers(
    stack: AsyncExitStack, settings: Settings, shards: Shards, name: str, cache: Cache | None
) -> Consumers:
    queue_count = sum(url is not None for url in _queue_urls(settings))
    # Deletes, heartbeats and dead letters never wait behind parked polls: those have a client of their own.
    sqs = await stack.enter_async_context(
        open_client("sqs", region=settings.aws_region, pool_size=CALLS_A_QUEUE * (queue_count + 1))
    )
    consumers = Consumers(DeadLetterQueue(sqs, settings.sqs_dead_letter_queue_url or ""))
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
        consumers.fleet = Fleet(
            consumers.stream,
            await stack.enter_async_context(open_lease_table(settings)),
            me=name,
            lease_duration_s=settings.kinesis_lease_duration_seconds,
            initial_position=settings.kinesis_initial_position,
            create_stream=settings.kinesis_create_stream,
            stream_shard_count=settings.kinesis_shard_count,
            router=shards.router,
            dead_letters=consumers.dead_letters,
            rules=reading_rules(settings),
            prefetch=PrefetchMemory(settings.prefetch_max_bytes),
            on_expired=(lambda: None) if cache is None else cache.replica_ended,
        )
    return consumers


def _watched(consumers: Consumers) -> dict[str, Queue]:
    """Return every queue of the configuration by the name it is shown by; one of another account may share a name."""
    letters = consumers.dead_letters.queue
    return {**consumers.queues, letters.url if letters.name in consumers.queues else letters.name: letters}


def _queue_urls(settings: Settings) -> tuple[str | None, str | None, str | None]:
    """Return the source queues: of control messages, of order events that go first, of order events."""
    return (
        settings.sqs_shard_creation_queue_url,
        settings.sqs_priority_queue_url,
        settings.sqs_order_events_queue_url,
    )


async def _open_receivers(
    stack: AsyncExitStack, settings: Settings, shards: Shards, consumers: Consumers, sqs: Client, polls: Client
) -> None:
    """Open the consumers of the source queues."""

    def add(queue: Queue, handler: Handler, gate: Callable[[], Awaitable[None]] | None = None) -> QueueReceiver:
        # A parked poll is waited out at a stop: it must leave most of the grace time to what is in hand.
        poll_wait_s = min(POLL_WAIT_S, max(1, int(settings.shutdown_grace_seconds / 4)))
        receiver = QueueReceiver(
            queue,
            handler,
            consumers.dead_letters,
            limits=QUEUE_LIMITS,
            rules=RedriveRules(
                try_count=len(settings.sqs_retry_delays_seconds) + 1, grace_s=settings.shutdown_grace_seconds
            ),
            gate=gate,
            poll_wait_s=poll_wait_s,
            stop_wait_s=poll_wait_s + 1.0,
            drain_s=DRAIN_SHARE * settings.shutdown_grace_seconds,
        )
        name = queue.url if queue.name in consumers.receivers else queue.name  # of another account, perhaps
        consumers.queues[name] = queue
        consumers.receivers[name] = receiver
        if isinstance(handler, OrderHandler):
            consumers.orders[name] = handler
        return receiver

    control_url, priority_url, orders_url = _queue_urls(settings)
    tenant_wait = timedelta(seconds=settings.tenant_wait_seconds)
    retry_delays_s = settings.sqs_retry_delays_seconds
    if control_url is not None:
        queue = Queue(sqs, control_url, poll_client=polls)
        add(
            queue,
            ControlHandler(
                shards.provisioner,
                shards.destroyer,
                shards.changes,
                queue,
                retry_delays_s=retry_delays_s,
                tenant_wait=tenant_wait,
            ),
        )
    first: QueueReceiver | None = None
    for url in (priority_url, orders_url):
        if url is None:
            continue
        queue = Queue(sqs, url, poll_client=polls)
        handler = await stack.enter_async_context(
            open_orders(
                shards.router,
                queue,
                operation_max_bytes=settings.operation_max_bytes,
                tenant_wait=tenant_wait,
                retry_delays_s=retry_delays_s,
            )
        )
        first = add(queue, handler, None if first is None else PriorityGate(partial(_is_busy, first)))


def _is_busy(receiver: QueueReceiver) -> bool:
    """Whether a queue has messages in hand, but for those that wait for a dependency."""
    if not receiver.in_flight_count:
        return False
    stats = receiver.stats()
    return bool(stats["queued"] + stats["handling"] > stats["waiting"])


async def _open_cache(stack: AsyncExitStack, settings: Settings) -> tuple[Cache | None, CacheDesk | None]:
    if settings.redis_url is None:
        return None, None
    return await stack.enter_async_context(open_cache(settings.redis_url.get_secret_value()))


def _deletion(settings: Settings, shards: Shards, on_change: OnChange) -> TenantDeletion:
    grace = timedelta(hours=settings.tenant_destroy_grace_hours)
    return TenantDeletion(shards.locator, shards.pools, grace, on_change=on_change)


def _retention(settings: Settings, shards: Shards, consumers: Consumers) -> LogRetention:
    configured = timedelta(hours=settings.operation_retention_hours)
    window = LogWindow(configured, stream=consumers.stream, queues=list(consumers.queues.values()))
    return LogRetention(shards.pools, window.read)


@contextlib.asynccontextmanager
async def open_stream(settings: Settings) -> AsyncIterator[Stream]:
    """Open the way to the stream; no request is made yet."""
    async with open_client(
        "kinesis", region=settings.aws_region, read_timeout_s=KINESIS_READ_TIMEOUT_S, pool_size=64
    ) as client:
        yield Stream(client, settings.kinesis_stream_name or "")


@contextlib.asynccontextmanager
async def open_lease_table(settings: Settings) -> AsyncIterator[LeaseTable]:
    """Open the way to the lease table; no request is made yet."""
    async with open_client(
        "dynamodb", region=settings.aws_region, endpoint_url=settings.dynamodb_endpoint, pool_size=32
    ) as client:
        yield LeaseTable(client, settings.kinesis_application_name)


@contextlib.asynccontextmanager
async def open_business_info(settings: Settings, *, attempts: int = 1) -> AsyncIterator[BusinessInfo]:
    """Open the way to business-info; no request is made yet. Each is tried *attempts* times in all."""
    async with open_client(
        "dynamodb", region=settings.aws_region, endpoint_url=settings.dynamodb_endpoint, max_attempts=attempts
    ) as client:
        yield BusinessInfo(client, settings.dynamodb_business_info_table)


def reading_rules(settings: Settings) -> ReaderSettings:
    """Return what the settings say about reading."""
    return ReaderSettings(
        operation_max_bytes=settings.operation_max_bytes,
        list_result_limit=settings.list_result_limit,
        tenant_wait=timedelta(seconds=settings.tenant_wait_seconds),
        drain_s=DRAIN_SHARE * settings.shutdown_grace_seconds,
    )


async def _heartbeat(notifier: SystemdNotifier, replica: ReplicaStatus) -> None:
    """Measure how late the event loop is, and tell systemd."""
    is_ready_told = False
    watchdog_at = 0.0
    while True:
        wanted = time.monotonic() + HEARTBEAT_S
        await asyncio.sleep(HEARTBEAT_S)
        instruments.EVENT_LOOP_LAG.set(max(0.0, time.monotonic() - wanted))
        if not is_ready_told and replica.not_ready() is None:
            is_ready_told = True
            notifier.ready()
            log.info("worker.ready", replica=replica.name)
        interval_s = notifier.watchdog_interval_s
        if interval_s is not None and time.monotonic() >= watchdog_at and replica.not_live() is None:
            notifier.watchdog()
            watchdog_at = time.monotonic() + interval_s


async def _reload_map(settings: Settings, shards: Shards, wanted: asyncio.Event) -> None:
    """Read the shard map anew, where there is one, whenever that is *wanted*."""
    path = settings.shard_map_file
    if path is None or not isinstance(shards.locator, StaticMap):
        await note_no_map(wanted)
        return
    read = partial(read_shard_map, path, settings.database_allowed_hosts)
    await MapReload(read, shards.locator, shards.directory, shards.pools).run(wanted)


def _on_signals(stopping: asyncio.Event, hung_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)  # asked twice: now, without the drain
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
