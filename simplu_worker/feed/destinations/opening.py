"""Open the destinations of `FEED_FILE`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import assert_never

from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.destinations.http import open_notification, open_webhook
from simplu_worker.feed.destinations.kinesis import open_kinesis
from simplu_worker.feed.destinations.sqs import open_sqs
from simplu_worker.feed.feed_file import FeedDestination
from simplu_worker.feed.types import Destination
from simplu_worker.vocabulary import DestinationKind


def open_destination(
    destination: FeedDestination, *, region: str | None, allowed: AllowedHosts
) -> AbstractAsyncContextManager[Destination]:
    """Return the destination as a context, in which it is open. It may be unreachable: then its events wait."""
    match destination.kind:
        case DestinationKind.KINESIS:
            return open_kinesis(destination.target, region=region)
        case DestinationKind.SQS:
            return open_sqs(destination.target, region=region)
        case DestinationKind.WEBHOOK:
            return open_webhook(destination.target, destination.secrets, allowed)
        case DestinationKind.NOTIFICATION:
            return open_notification(destination.target, allowed)
        case _:
            assert_never(destination.kind)
