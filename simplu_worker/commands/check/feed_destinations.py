"""The destinations of `FEED_FILE`, reached as far as that is possible without an event."""

from __future__ import annotations

from functools import partial
from typing import assert_never
from urllib.parse import urlsplit

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.commands.check.dependency import (
    READ_TIMEOUT_S,
    CheckAnswer,
    CheckedDependency,
    CheckStatus,
    check_dependency,
    run_all,
)
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError
from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.destinations.guarded_session import REQUEST_ERRORS, cause_of, connect
from simplu_worker.feed.destinations.kinesis import region_of_stream
from simplu_worker.feed.destinations.sqs import region_of_queue
from simplu_worker.feed.feed_file import FeedDestination
from simplu_worker.feed.feed_file_reading import read_feed_file
from simplu_worker.vocabulary import DestinationKind


async def check_feed(settings: Settings) -> list[CheckedDependency]:
    """Check each destination, in the order of the file. The file was found to be right before."""
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
    """Return the target, but of a URL over HTTP the host alone: its path may be a secret."""
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
