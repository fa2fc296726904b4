"""The one place where things are put together, started and drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import quote

import structlog

from simplu_worker import __version__
from simplu_worker.consumers.aws import open_client
from simplu_worker.consumers.dead_letters import DeadLetterQueue
from simplu_worker.consumers.kinesis.fleet import Fleet
from simplu_worker.consumers.kinesis.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases import worker_id
from simplu_worker.consumers.kinesis.prefetch import Prefetch
from simplu_worker.consumers.kinesis.reader import ReadingRules
from simplu_worker.consumers.kinesis.stream import Stream
from simplu_worker.consumers.retention import LogWindow
from simplu_worker.consumers.sqs.control import ControlHandler
from simplu_worker.consumers.sqs.queue import POLL_MARGIN_S, Queue
from simplu_worker.consumers.sqs.receiver import POLL_WAIT_S, QueueReceiver
from simplu_worker.errors import ConfigurationError, RefusedError, TryAgainLaterError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.metrics.http import open_http
from simplu_worker.notify import SystemdNotifier
from simplu_worker.settings import Settings
from simplu_worker.shards.citrus import Citrus, open_citrus
from simplu_worker.shards.directory import Directory, Locator, StaticMap
from simplu_worker.shards.pools import Pools
from simplu_worker.shards.provisioning import Provisioner
from simplu_worker.shards.retention import LogRetention
from simplu_worker.shards.router import Router
from simplu_worker.shards.shard_map import MappedShard, ShardMap, read_shard_map
from simplu_worker.views import Replica, views_of

KINESIS_READ_TIMEOUT_S: Final = 5.0
HEARTBEAT_S: Final = 0.5
PROBE_INTERVAL_S: Final = 5.0
DRAIN_SHARE: Final = 0.8  # of the grace time, for batches in flight; the rest is for giving leases back
ONLY_SHARD_ID: Final = "database"  # the id of the one shard that DATABASE_* name

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Shards:
    """Everything about shards, opened: what the daemon and the commands for people share."""

    locator: Locator
    pools: Pools
    directory: Directory
    router: Router
    provisioner: Provisioner


@dataclass
class Consumers:
    """The sources that are on."""

    dead_letters: DeadLetterQueue
    fleet: Fleet | None = None
    receivers: dict[str, QueueReceiver] = field(default_factory=dict)
    stream: Stream | None = None
    queues: list[Queue] = field(default_factory=list)


@contextlib.asynccontextmanager
async def open_shards(settings: Settings) -> AsyncIterator[Shards]:
    """Open the way to the shards; no connection is made yet."""
    async with AsyncExitStack() as stack:
        pools = await stack.enter_async_context(Pools(size=settings.database_pool_size))
        locator = await stack.enter_async_context(_open_locator(settings))
        directory = Directory(locator, pools)
        tenant_wait = timedelta(seconds=settings.tenant_wait_seconds)
        yield Shards(
            locator=locator,
            pools=pools,
            directory=directory,
            router=Router(directory, locator, pools, tenant_wait=tenant_wait),
            provisioner=Provisioner(locator, directory, pools),
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
        except RefusedError as exc:
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
    """Run until SIGTERM or SIGINT, then drain within `SHUTDOWN_GRACE_SECONDS`; a second signal ends the process."""
    stopping = asyncio.Event()
    _on_signals(stopping)
    instruments.set_build_info(__version__)
    notifier = SystemdNotifier(os.environ)
    token = settings.api_token
    replica = Replica(name=worker_id(socket.gethostname(), os.getpid(), secrets.token_hex(4)), stopping=stopping)
    async with AsyncExitStack() as stack:
        http = open_http(
            settings.http_host,
            settings.http_port,
            token=None if token is None else token.get_secret_value(),
            views=views_of(replica),
        )
        try:
            port = await stack.enter_async_context(http)
        except OSError as exc:
            place = f"{settings.http_host}:{settings.http_port}"
            raise WorkerError(f"HTTP_HOST, HTTP_PORT: expected to listen on {place}, got: {exc.strerror}") from exc
        shards = await stack.enter_async_context(open_shards(settings))
        consumers = await _open_consumers(stack, settings, shards, replica.name)
        replica.start(shards.router, shards.pools, shards.locator, consumers.fleet, consumers.receivers)
        log.info("worker.started", replica=replica.name, version=__version__, http_port=port)
        async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as tasks:
            around = [
                tasks.create_task(_heartbeat(notifier, replica), name="heartbeat"),
                tasks.create_task(_retention(settings, shards, consumers).run(), name="retention"),
                tasks.create_task(_probe(shards), name="probe"),
                tasks.create_task(consumers.dead_letters.open(), name="dead-letters"),
            ]
            async with asyncio.TaskGroup() as sources:
                for name, receiver in consumers.receivers.items():
                    sources.create_task(receiver.run(stopping), name=f"queue:{name}")
                if consumers.fleet is not None:
                    sources.create_task(consumers.fleet.run(stopping), name="fleet")
                await stopping.wait()
                notifier.stopping()
                log.info("worker.draining", grace_s=settings.shutdown_grace_seconds)
                deadline.reschedule(asyncio.get_running_loop().time() + settings.shutdown_grace_seconds)
            for task in around:
                task.cancel()
    log.info("worker.stopped", replica=replica.name)


async def _open_consumers(stack: AsyncExitStack, settings: Settings, shards: Shards, name: str) -> Consumers:
    region = settings.aws_region
    # Deletes, heartbeats and dead letters never wait behind parked polls: those have a client of their own.
    sqs = await stack.enter_async_context(open_client("sqs", region=region, pool_size=32))
    dead_letters = DeadLetterQueue(sqs, settings.sqs_dead_letter_queue_url or "")
    consumers = Consumers(dead_letters)
    if settings.sqs_shard_creation_queue_url is not None:
        polls = await stack.enter_async_context(
            open_client("sqs", region=region, read_timeout_s=POLL_WAIT_S + POLL_MARGIN_S, pool_size=4)
        )
        queue = Queue(sqs, settings.sqs_shard_creation_queue_url, poll_client=polls)
        handler = ControlHandler(shards.provisioner, queue, retry_delays_s=settings.sqs_retry_delays_seconds)
        consumers.queues.append(queue)
        # A parked poll is waited out at a stop: it must leave most of the grace time to what is in hand.
        poll_wait_s = min(POLL_WAIT_S, max(1, int(settings.shutdown_grace_seconds / 4)))
        consumers.receivers[queue.name] = QueueReceiver(
            queue, handler.handle, dead_letters, poll_wait_s=poll_wait_s, stop_wait_s=poll_wait_s + 1.0
        )
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
            dead_letters=dead_letters,
            rules=reading_rules(settings),
            prefetch=Prefetch(settings.prefetch_max_bytes),
        )
    return consumers


def _retention(settings: Settings, shards: Shards, consumers: Consumers) -> LogRetention:
    configured = timedelta(hours=settings.operation_retention_hours)
    window = LogWindow(configured, stream=consumers.stream, queues=consumers.queues)
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


def reading_rules(settings: Settings) -> ReadingRules:
    """Return what the settings say about reading."""
    return ReadingRules(
        operation_max_bytes=settings.operation_max_bytes,
        list_result_limit=settings.list_result_limit,
        tenant_wait=timedelta(seconds=settings.tenant_wait_seconds),
        drain_s=DRAIN_SHARE * settings.shutdown_grace_seconds,
    )


async def _probe(shards: Shards) -> None:
    """Notice that a lost shard, or a Citrus that refused us, is back, also when nobody needs it just then."""
    while True:
        await asyncio.sleep(PROBE_INTERVAL_S)
        await shards.pools.probe()
        if isinstance(shards.locator, Citrus) and shards.locator.is_denied:
            with contextlib.suppress(TryAgainLaterError, RefusedError):
                await shards.locator.shards()


async def _heartbeat(notifier: SystemdNotifier, replica: Replica) -> None:
    """Measure how late the event loop is, keep the gauges that nobody sets by an event, and tell systemd."""
    is_ready_told = False
    watchdog_at = 0.0
    while True:
        wanted = time.monotonic() + HEARTBEAT_S
        await asyncio.sleep(HEARTBEAT_S)
        instruments.EVENT_LOOP_LAG.set(max(0.0, time.monotonic() - wanted))
        replica.refresh_gauges()
        if not is_ready_told and replica.not_ready() is None:
            is_ready_told = True
            notifier.ready()
            log.info("worker.ready", replica=replica.name)
        interval_s = notifier.watchdog_interval_s
        if interval_s is not None and time.monotonic() >= watchdog_at and replica.not_live() is None:
            notifier.watchdog()
            watchdog_at = time.monotonic() + interval_s


def _on_signals(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)  # asked twice: now, without the drain
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
