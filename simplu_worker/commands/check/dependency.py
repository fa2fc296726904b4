"""The dependencies that `check` asks, and their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from simplu_worker.aws.clients import find, open_client
from simplu_worker.aws.sqs_queue import MISSING_QUEUE_CODES, Queue
from simplu_worker.commands.check.findings import format_hours
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError
from simplu_worker.errors import WorkerError
from simplu_worker.feed.destinations import REQUEST_ERRORS, cause_of, connect, region_of
from simplu_worker.feed.feed import read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts, DestinationMembers
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import DestinationKind

DEADLINE_S: Final = 10.0
READ_TIMEOUT_S: Final = 8.0  # below DEADLINE_S: the client's own error names the service that hangs
T = TypeVar("T")


class CheckStatus(StrEnum):
    """The state of a dependency."""

    OK = "ok"
    WARNING = "warning"  # it works, with a problem; or no configured feature needs it
    FAILED = "failed"
    OFF = "off"  # not configured, or not there to be asked


class CheckAnswer(msgspec.Struct, frozen=True):
    """The answer of one dependency."""

    result: str
    status: CheckStatus = CheckStatus.OK


class CheckedDependency(msgspec.Struct, frozen=True):
    """A line of the table."""

    dependency: str
    address: str
    status: CheckStatus
    result: str
    seconds: float


async def check_dependency(
    dependency: str, address: str, ask: Callable[[], Awaitable[CheckAnswer]]
) -> CheckedDependency:
    """Call *ask* for at most DEADLINE_S, and time it."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S):
            answer = await ask()
    except TimeoutError:
        answer = CheckAnswer(f"no answer within {DEADLINE_S:g} s", CheckStatus.FAILED)
    except WorkerError as exc:
        answer = CheckAnswer(str(exc), CheckStatus.FAILED)
    seconds = round(time.perf_counter() - started, 4)
    return CheckedDependency(dependency, scrub_text(address), answer.status, scrub_text(answer.result), seconds)


async def run_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run *coroutines* concurrently; return their results in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in coroutines]
    return [task.result() for task in tasks]


async def check_feed(settings: Settings) -> list[CheckedDependency]:
    """Check each destination of FEED_FILE, as far as possible without an event."""
    if settings.feed_file is None:
        return []
    file = read_feed_file(settings.feed_file, settings.feed_allowed_hosts)
    return await run_all([_check_destination(one.terms, settings) for one in file])


async def _check_destination(destination: DestinationMembers, settings: Settings) -> CheckedDependency:
    kind, target = destination.kind, destination.target
    url = urlsplit(target)
    is_of_aws = kind in {DestinationKind.KINESIS, DestinationKind.SQS}

    async def ask() -> CheckAnswer:
        if not is_of_aws:
            return await _connect(url, AllowedHosts.parse(settings.feed_allowed_hosts))
        region = region_of(target, settings.aws_region)
        async with open_client(kind, region=region, read_timeout_s=READ_TIMEOUT_S) as client:
            if kind is DestinationKind.KINESIS:
                return await ask_stream(Stream(client, target), _missing("stream"), {})
            attributes = await find(Queue(client, target).read_attributes(), MISSING_QUEUE_CODES)
        return _missing("queue") if attributes is None else CheckAnswer(f"answers, {attributes.visible_count} waiting")

    address = target if is_of_aws else f"{url.scheme}://{url.netloc}"
    return await check_dependency(f"feed {destination.name}", address, ask)


async def ask_stream(stream: Stream, absent: CheckAnswer, retentions: dict[str, timedelta]) -> CheckAnswer:
    """Return what a stream says of itself, or *absent*; note how long it keeps records."""
    try:
        summary = await stream.describe()
    except StreamGoneError:
        return absent
    retentions[f"stream {stream.name}"] = summary.retention
    kept = f"records kept for {format_hours(summary.retention)}"
    return CheckAnswer(f"{summary.status.lower()}, {summary.open_stream_shard_count} open stream shards, {kept}")


def _missing(what: str) -> CheckAnswer:
    return CheckAnswer(f"the {what} does not exist; create it, or correct its target", CheckStatus.FAILED)


async def _connect(url: SplitResult, allowed: AllowedHosts) -> CheckAnswer:
    has_tls = url.scheme == "https"
    try:
        await connect(url.hostname or "", url.port or (443 if has_tls else 80), allowed, has_tls=has_tls)
    except REQUEST_ERRORS as exc:
        return CheckAnswer(cause_of(exc), CheckStatus.FAILED)
    return CheckAnswer(f"can be connected to{' with TLS' if has_tls else ''}; nothing was sent")
