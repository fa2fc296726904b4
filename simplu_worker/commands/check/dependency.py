"""The dependencies that `check` asks, and their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeVar, assert_never
from urllib.parse import urlsplit

import msgspec

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError
from simplu_worker.errors import WorkerError
from simplu_worker.feed.destinations import REQUEST_ERRORS, cause_of, connect, region_of_queue, region_of_stream
from simplu_worker.feed.feed import read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts, FeedDestination
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
    return await run_all(
        [
            check_dependency(f"feed {one.name}", _address(one), partial(_check_destination, one, settings))
            for one in file.destinations
        ]
    )


def _address(destination: FeedDestination) -> str:
    if destination.kind in {DestinationKind.KINESIS, DestinationKind.SQS}:
        return destination.target
    url = urlsplit(destination.target)
    return f"{url.scheme}://{url.netloc}"


async def _check_destination(destination: FeedDestination, settings: Settings) -> CheckAnswer:
    match destination.kind:
        case DestinationKind.KINESIS:
            return await _check_stream(destination.target, settings.aws_region)
        case DestinationKind.SQS:
            return await _check_queue(destination.target, settings.aws_region)
        case DestinationKind.WEBHOOK | DestinationKind.NOTIFICATION:
            return await _check_receiver(destination.target, AllowedHosts.parse(settings.feed_allowed_hosts))
        case _:
            assert_never(destination.kind)


async def _check_stream(name_or_arn: str, region: str | None) -> CheckAnswer:
    own_region = region_of_stream(name_or_arn, region)
    async with open_client("kinesis", region=own_region, read_timeout_s=READ_TIMEOUT_S) as client:
        try:
            summary = await Stream(client, name_or_arn).describe()
        except StreamGoneError:
            return CheckAnswer("the stream does not exist; create it, or correct its target", CheckStatus.FAILED)
    return CheckAnswer(f"{summary.status.lower()}, {summary.open_stream_shard_count} open stream shards")


async def _check_queue(url: str, region: str | None) -> CheckAnswer:
    async with open_client("sqs", region=region_of_queue(url, region), read_timeout_s=READ_TIMEOUT_S) as client:
        attributes = await Queue(client, url).find_attributes()
    if attributes is None:
        return CheckAnswer("the queue does not exist; create it, or correct its target", CheckStatus.FAILED)
    return CheckAnswer(f"answers, {attributes.visible_count} waiting")  # a FIFO queue, by its name


async def _check_receiver(url: str, allowed: AllowedHosts) -> CheckAnswer:
    parts = urlsplit(url)
    has_tls = parts.scheme == "https"
    try:
        await connect(parts.hostname or "", parts.port or (443 if has_tls else 80), allowed, has_tls=has_tls)
    except REQUEST_ERRORS as exc:
        return CheckAnswer(cause_of(exc), CheckStatus.FAILED)
    return CheckAnswer(f"can be connected to{' with TLS' if has_tls else ''}; nothing was sent")
