"""Open the stream, its consumers and leases, and business-info."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from simplu_worker.aws.clients import open_client
from simplu_worker.business_info.table import BusinessInfo
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.leases.lease_table import KclLeaderWatch, LeaseTable
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions

KINESIS_READ_TIMEOUT_S: Final = 5.0
SUBSCRIPTION_READ_TIMEOUT_S: Final = 60.0  # longer than the silence after which a reader leaves a subscription
SUBSCRIPTIONS_MAX: Final = 10_000  # more than the stream shards of a replica
CONSUMER_NAME_MAX_LENGTH: Final = 128


@contextlib.asynccontextmanager
async def open_stream(settings: Settings) -> AsyncIterator[Stream]:
    """Open the stream."""
    async with open_client(
        "kinesis", region=settings.aws_region, read_timeout_s=KINESIS_READ_TIMEOUT_S, pool_size=64
    ) as client:
        yield Stream(client, settings.kinesis_stream_name or "")


@contextlib.asynccontextmanager
async def open_subscriptions(settings: Settings) -> AsyncIterator[Subscriptions]:
    """Open the subscriptions to stream shards."""
    name = settings.kinesis_consumer_name or settings.kinesis_application_name[:CONSUMER_NAME_MAX_LENGTH]
    async with (
        open_client("kinesis", region=settings.aws_region, read_timeout_s=KINESIS_READ_TIMEOUT_S) as own_client,
        open_client(
            "kinesis",
            region=settings.aws_region,
            read_timeout_s=SUBSCRIPTION_READ_TIMEOUT_S,
            pool_size=SUBSCRIPTIONS_MAX,
        ) as client,
    ):
        yield Subscriptions(client, Stream(own_client, settings.kinesis_stream_name or ""), name)


@contextlib.asynccontextmanager
async def open_leases(settings: Settings) -> AsyncIterator[tuple[LeaseTable, KclLeaderWatch]]:
    """Open the lease table, and the watch for a leader of the KCL 3.x."""
    async with open_client(
        "dynamodb", region=settings.aws_region, endpoint_url=settings.dynamodb_endpoint, pool_size=32
    ) as client:
        table = LeaseTable(client, settings.kinesis_application_name)
        yield table, kcl_leader_watch(settings, table)


def kcl_leader_watch(settings: Settings, table: LeaseTable) -> KclLeaderWatch:
    """Return the watch for a leader of the KCL 3.x."""
    return KclLeaderWatch(
        table,
        settings.kinesis_coordinator_table,
        settings.kinesis_worker_metrics_table,
        follows=settings.kinesis_kcl_follower,
    )


@contextlib.asynccontextmanager
async def open_business_info(settings: Settings, *, attempts: int = 1) -> AsyncIterator[BusinessInfo]:
    """Open business-info; each request is tried *attempts* times."""
    async with open_client(
        "dynamodb", region=settings.aws_region, endpoint_url=settings.dynamodb_endpoint, max_attempts=attempts
    ) as client:
        yield BusinessInfo(client, settings.dynamodb_business_info_table)
