"""The dependencies that `check` asks, and their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeVar, assert_never
from urllib.parse import urlsplit

import msgspec

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.feed.destinations import REQUEST_ERRORS, cause_of, connect, region_of_queue, region_of_stream
from simplu_worker.feed.feed import read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts, FeedDestination
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.status.tls import own_url
from simplu_worker.status.words import ProblemCause, Severity
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


# What is wrong when one fails, in the words of the page and the alerts.
CAUSES: Final = {
    "credentials": ProblemCause.CREDENTIALS_FAILING,
    "stream": ProblemCause.STREAM_FAILING,
    "lease table": ProblemCause.STREAM_SHARD_UNREAD,
    "control queue": ProblemCause.QUEUE_FAILING,
    "order events": ProblemCause.QUEUE_FAILING,
    "priority order events": ProblemCause.QUEUE_FAILING,
    "dead letters": ProblemCause.QUEUE_FAILING,
    "Citrus": ProblemCause.CITRUS_FAILING,
    "Redis": ProblemCause.CACHE_FAILING,
}


class CheckedDependency(msgspec.Struct, frozen=True):
    """A line of the table."""

    dependency: str
    address: str
    status: CheckStatus
    result: str
    seconds: float

    @property
    def cause(self) -> ProblemCause | None:
        """What is wrong if it fails."""
        return ProblemCause.SHARD_LOST if self.dependency.startswith("shard ") else CAUSES.get(self.dependency)


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
    return CheckedDependency(dependency, address, answer.status, answer.result, round(time.perf_counter() - started, 4))


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


PROBLEMS_NAMED: Final = 5
LASTS: Final = timedelta(minutes=1)  # what is critical for so long does not pass by itself


async def check_fleet(settings: Settings) -> list[CheckedDependency]:
    """Ask the worker of this machine what is wrong now."""

    async def ask() -> CheckAnswer:
        try:
            async with open_replica(settings, None) as replica:
                fleet = await replica.ask("GET", "/fleet")
        except RetryableError as exc:
            if NO_SERVER in str(exc):
                return CheckAnswer("no worker runs on this machine", CheckStatus.OFF)
            return CheckAnswer(str(exc), CheckStatus.WARNING)
        except WorkerError as exc:
            return CheckAnswer(f"not asked: {exc}", CheckStatus.OFF)
        if "problems" not in fleet:
            return CheckAnswer("another program answers there", CheckStatus.OFF)
        return describe_problems(fleet["problems"], datetime.fromisoformat(fleet["at"]))

    address = own_url(settings.http_host, settings.http_port, is_https=settings.http_tls_cert_file is not None)
    return [await check_dependency("running fleet", address, ask)]


def describe_problems(problems: Iterable[Mapping[str, Any]], now: datetime) -> CheckAnswer:
    """Return the problems of `/fleet` that are not over *now*, the worst first."""
    found = [one for one in problems if not one["isOver"]]
    if not found:
        return CheckAnswer("nothing is wrong")
    named = [f"{one['problem']}{_about(one)}" for one in found[:PROBLEMS_NAMED]]
    more = f"; and {len(found) - PROBLEMS_NAMED} more" if len(found) > PROBLEMS_NAMED else ""
    fails = any(
        one["severity"] == Severity.CRITICAL and now - datetime.fromisoformat(one["since"]) > LASTS for one in found
    )
    text = f"{'; '.join(named)}{more}. {found[0]['advice']}"
    return CheckAnswer(text, CheckStatus.FAILED if fails else CheckStatus.WARNING)


def _about(problem: Mapping[str, Any]) -> str:
    about = [part for part in (problem["subject"], (problem.get("reason") or "").replace("_", " ")) if part]
    return f" ({', '.join(about)})" if about else ""
