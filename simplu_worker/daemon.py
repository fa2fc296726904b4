"""Run the worker: serve HTTP, start the tasks, drain at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import structlog

from simplu_worker import __version__, instruments
from simplu_worker.assembly.worker import Consumers, Parts, open_parts
from simplu_worker.bulkheads import contain, keep_running
from simplu_worker.config.settings import TLS_FILES, Settings, unset_sources
from simplu_worker.consumers.source_retention import EffectiveRetention
from simplu_worker.dead_letters.queue import ensure_default_queue
from simplu_worker.errors import WorkerError
from simplu_worker.feed.feed import keep_reading
from simplu_worker.memory_tuning import tune_allocator, widen_threads
from simplu_worker.shards.health.prober import Prober
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.histories import HistoryRetention
from simplu_worker.shards.log import LogRetention
from simplu_worker.shards.routing.locator import StaticMap, read_shard_map
from simplu_worker.shards.routing.shard_watch import ShardMapReloader, ShardWatch
from simplu_worker.shards.tenants.deletion import TenantDeleter
from simplu_worker.shards.usage import UsageCount
from simplu_worker.status.guard import Guard
from simplu_worker.status.history import INTERVAL_S
from simplu_worker.status.lookups import LetterRequests
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.replica import TOP_INTERVAL_S, ReplicaStatus
from simplu_worker.status.roles import LIST_VARIABLE, Tokens, decode_tokens
from simplu_worker.status.server import open_http
from simplu_worker.status.tls import ServerTls, WatchedFiles
from simplu_worker.telemetry import systemd
from simplu_worker.telemetry.systemd import SystemdNotifier
from simplu_worker.timing.waits import repeat_every, shared_pause_s
from simplu_worker.vocabulary import TargetKind

HEARTBEAT_S: Final = 0.5
FLUSH_S: Final = (
    2.0  # at a stop, for notes, invalidations and spans that shards, Redis and the collector did not get yet
)

Task = Callable[[], Coroutine[Any, Any, None]]

log = structlog.get_logger(__name__)


class Signals(NamedTuple):
    """The signals that came: *stopping* by SIGTERM and SIGINT, the others by SIGHUP, which rereads *files*."""

    stopping: asyncio.Event
    hung_up: asyncio.Event
    feed_hung_up: asyncio.Event  # the same, for the one other reader of a file
    files: list[WatchedFiles[Any]]


async def run_worker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends the process. SIGHUP reloads files."""
    widen_threads()
    signals = _handle_signals()
    instruments.set_build_info(__version__)
    notifier = SystemdNotifier(os.environ)
    replica = ReplicaStatus(
        name=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
        stopping=signals.stopping,
        runbook_url=settings.runbook_url,
    )
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(AsyncExitStack())
        port = await _serve_http(serving, settings, replica, signals)
        parts = await stack.enter_async_context(open_parts(settings, replica.name))
        stack.push_async_callback(serving.aclose)  # before the parts that its answers are made of
        if settings.sqs_dead_letter_queue_url is None and (url := settings.dead_letter_queue_url) is not None:
            wait_on = partial(notifier.notify, systemd.EXTEND_START)
            await ensure_default_queue(parts.consumers.sqs, url, signals.stopping, on_failure=wait_on)
        _show_parts(parts, replica)
        tune_allocator()
        log.info("worker.started", replica=replica.name, version=__version__, http_port=port)
        for source in unset_sources(settings):
            log.info("source.not_configured", source=source.name, variable=source.variable, unread=source.brings)
        heartbeat: dict[str, Task] = {
            "heartbeat": partial(_send_heartbeats, notifier, replica),
            "history": partial(repeat_every, INTERVAL_S, replica.note_history),
            "top businesses": partial(repeat_every, TOP_INTERVAL_S, replica.note_top),
        }
        background = heartbeat | _background_tasks(settings, parts, replica.health, signals)
        await _run_until_drained(settings, parts, background, signals.stopping, notifier)
    _require_drained(parts.consumers)
    log.info("worker.stopped", replica=replica.name)


def _handle_signals() -> Signals:
    loop = asyncio.get_running_loop()
    signals = Signals(asyncio.Event(), asyncio.Event(), asyncio.Event(), [])

    def hang_up() -> None:
        signals.hung_up.set()
        signals.feed_hung_up.set()
        for file in signals.files:
            file.reread()

    def stop() -> None:
        if signals.stopping.is_set():
            os._exit(1)  # the second signal: now, without the drain
        signals.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    return signals


async def _serve_http(stack: AsyncExitStack, settings: Settings, replica: ReplicaStatus, signals: Signals) -> int:
    path, certificate, key = settings.api_tokens_file, settings.http_tls_cert_file, settings.http_tls_key_file
    tokens, tls = None, None
    if path is not None:
        tokens = WatchedFiles((LIST_VARIABLE,), lambda: decode_tokens(path.read_bytes()))
        signals.files.append(tokens)
    if certificate is not None and key is not None:
        tls = ServerTls(certificate, key)
        replica.certificate = WatchedFiles(TLS_FILES, tls.read)
        signals.files.append(replica.certificate)
    operator, viewer = settings.api_token, settings.api_viewer_token
    guard = Guard(
        Tokens(
            operator=None if operator is None else operator.get_secret_value(),
            viewer=None if viewer is None else viewer.get_secret_value(),
            listed=tokens,
        ),
        settings.http_host,
        allow_destructive=settings.allow_destructive_http,
        opens_reads=settings.api_open_reads,
        is_behind_tls=settings.http_behind_tls,
    )
    context = None if tls is None else tls.context
    http = open_http(guard, settings.http_port, replica, LetterRequests(settings), tls=context)
    try:
        return await stack.enter_async_context(http)
    except OSError as exc:
        place = f"{settings.http_host or '*'}:{settings.http_port}"
        advice = "choose another, or end the program there"
        raise WorkerError(f"HTTP_HOST, HTTP_PORT: cannot listen on {place}: {exc.strerror}; {advice}") from exc


def _show_parts(parts: Parts, replica: ReplicaStatus) -> None:
    shards, consumers = parts.shards, parts.consumers
    monitoring = Monitoring(
        consumers.receivers, consumers.all_queues(), consumers.orders, parts.cache, parts.cache_admin
    )
    replica.start(
        shards.gateway,
        shards.pools,
        shards.locator,
        fleet=consumers.fleet,
        feed=None if parts.feed is None else parts.feed.feed,
        monitoring=monitoring,
    )


def _background_tasks(settings: Settings, parts: Parts, health: HealthRegistry, signals: Signals) -> dict[str, Task]:
    shards, consumers = parts.shards, parts.consumers
    grace = timedelta(hours=settings.tenant_destroy_grace_hours)
    tasks: dict[str, Task] = {
        "histories": HistoryRetention(shards.pools).run,
        "retention": LogRetention(shards.pools, _effective_retention(settings, consumers).read).run,
        "deletion": TenantDeleter(shards.pools, grace, on_change=parts.on_change).run,
        "usage": UsageCount(shards.pools, shards.gateway.times).run,
        "split-tenants": shards.provisioner.split.run,
        "shards": ShardWatch(shards.locator, shards.pools, shards.directory.routes).run,
        "dead-letters": consumers.dead_letters.read_limits,
        "rejections": consumers.rejections.run,
        "prober": Prober(shards.pools, health, shards.commits, known=shards.locator.known_shards).run,
    }
    if settings.shard_map_file is not None and isinstance(shards.locator, StaticMap):
        read = partial(read_shard_map, settings.shard_map_file, settings.database_allowed_hosts)
        reloader = ShardMapReloader(read, shards.locator, shards.pools, shards.directory.routes)
        tasks["shard-map"] = partial(reloader.run, signals.hung_up)
    if parts.feed is not None:
        tasks["feed-file"] = partial(keep_reading, *parts.feed, signals.feed_hung_up)
    if parts.cache is not None:
        tasks["cache"] = parts.cache.run
    return tasks


TARGETS: Final = {  # of the background tasks that work for one thing; the others are chores of the replica
    "cache": TargetKind.CACHE,
    "dead-letters": TargetKind.QUEUE,
    "rejections": TargetKind.QUEUE,
}


def _effective_retention(settings: Settings, consumers: Consumers) -> EffectiveRetention:
    configured = timedelta(hours=settings.operation_retention_hours)
    return EffectiveRetention(configured, stream=consumers.stream, queues=list(consumers.queues.values()))


async def _send_heartbeats(notifier: SystemdNotifier, replica: ReplicaStatus) -> None:
    was_ready = False
    extend_at = watchdog_at = 0.0
    while True:
        pause_s = shared_pause_s(time.monotonic(), HEARTBEAT_S)
        wanted = time.monotonic() + pause_s
        await asyncio.sleep(pause_s)
        instruments.EVENT_LOOP_LAG.set(max(0.0, time.monotonic() - wanted))
        if not was_ready and replica.readiness_problem() is None:
            was_ready = True
            notifier.notify(systemd.READY)
            log.info("worker.ready", replica=replica.name)
        is_starting = not was_ready and not replica.stopping.is_set()  # a drain has a time limit of its own
        # What a live worker waits for comes back without a restart. A start that is stuck runs into systemd's limit.
        if is_starting and time.monotonic() >= extend_at and replica.liveness_problem() is None:
            notifier.notify(systemd.EXTEND_START)
            extend_at = time.monotonic() + systemd.START_EXTENSION_S / 4
        interval_s = notifier.watchdog_interval_s
        if interval_s is not None and time.monotonic() >= watchdog_at and replica.liveness_problem() is None:
            notifier.notify(systemd.WATCHDOG)
            watchdog_at = time.monotonic() + interval_s


async def _run_until_drained(
    settings: Settings, parts: Parts, background: dict[str, Task], stopping: asyncio.Event, notifier: SystemdNotifier
) -> None:
    loop = asyncio.get_running_loop()
    grace_s = settings.shutdown_grace_seconds
    consumers, cache = parts.consumers, parts.cache
    async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as tasks:
        background_tasks = [
            tasks.create_task(keep_running(TARGETS.get(name, TargetKind.REPLICA), name, name, run), name=name)
            for name, run in background.items()
        ]
        async with asyncio.TaskGroup() as sources:
            for name, receiver in consumers.receivers.items():
                sources.create_task(receiver.run(stopping), name=f"queue:{name}")
            if consumers.fleet is not None:
                run_fleet = partial(consumers.fleet.run, stopping)
                fleet = keep_running(TargetKind.LEASES, "fleet", "fleet", run_fleet, stopping=stopping)
                sources.create_task(fleet, name="fleet")
            if parts.feed is not None:
                run_feed = partial(parts.feed.feed.run, stopping)
                feed = keep_running(TargetKind.REPLICA, "feed", "feed", run_feed, stopping=stopping)
                sources.create_task(feed, name="feed")
            await stopping.wait()
            notifier.notify(systemd.STOPPING)
            log.info("worker.draining", grace_s=grace_s)
            deadline.reschedule(loop.time() + grace_s)
        flush_s = min(FLUSH_S, ((deadline.when() or 0.0) - loop.time()) / 2)
        flushes = [consumers.rejections.flush(flush_s)]
        if cache is not None:
            flushes.append(cache.flush(flush_s))
        if parts.span_export is not None:
            flushes.append(parts.span_export.close(within_s=flush_s))
        async with asyncio.TaskGroup() as flushing:
            for flush in flushes:
                flushing.create_task(_flush(flush))
        for task in background_tasks:
            task.cancel()


async def _flush(flush: Coroutine[Any, Any, None]) -> None:
    with contain(TargetKind.REPLICA, "flush", "flush"):
        await flush


def _require_drained(consumers: Consumers) -> None:
    """Raise TimeoutError if handlers were cancelled at the end of the drain."""
    overdue = sorted(name for name, receiver in consumers.receivers.items() if receiver.overdue_message_ids)
    if overdue:
        raise TimeoutError(f"not drained in time, their messages come again: {', '.join(overdue)}")
