"""The reader of one stream shard with everything real behind it, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from support.aws.endpoints import client_of
from support.postgres.databases import QUICK, ShardMaker
from support.postgres.tenant_cases import fetch

from simplu_local.processes.loopback import poll_until
from simplu_local.stack import citrus_server as local_citrus
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import ReadAhead
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderServices, ReaderSettings, StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderAssignment
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage
from simplu_worker.consumers.kinesis.stream.client import ChildShard, Stream
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, Start, TrimHorizon
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.citrus import open_citrus
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.types import ProvisionRequest
from simplu_worker.timing.clock import UtcClock, utc_now

WAIT = timedelta(seconds=900)
MARGIN = timedelta(seconds=60)
PATIENCE_S = 60.0
PREFETCH_MAX_BYTES = 64 * 1024 * 1024
SETTINGS = ReaderSettings(operation_max_bytes=100_000, list_result_limit=1000, retries=RetryRules((1, 5, 15), WAIT))
ONLY = "shardId-000000000000"


class SureLease:
    """A lease that no other reader has; its stream shard ends with every reply without an iterator."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        self.started_at = None

    async def confirm(self) -> bool:
        return True

    def lineage(self) -> Lineage:
        return self._lineage

    async def is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        return True


class World:
    """A stream of one stream shard, a dead-letter queue, Citrus, and the way to the shards that it knows."""

    def __init__(
        self, kinesis: Client, sqs: Client, queue_url: str, citrus: local_citrus.CitrusServer, make_shard: ShardMaker
    ) -> None:
        self.stream = Stream(kinesis, f"stream-{uuid4()}")
        self.kinesis = kinesis
        self.sqs = sqs
        self.queue_url = queue_url
        self.citrus = citrus
        self._make_shard = make_shard
        self.pools: Pools
        self.gateway: ShardGateway
        self.provisioner: Provisioner
        self.locator: Locator

    def add_shard(self, address: ShardAddress) -> ShardPool:
        self.citrus.add_shard(address.shard_id, address.connection_string)
        return self.pools.ensure_pool(address)

    async def shard(self, shard_id: str) -> ShardPool:
        if shard_id not in self.citrus.registry.shards:
            self.add_shard(await self._make_shard(shard_id))
        return self.pools.by_shard_id()[shard_id]

    async def provision(self, tenant: str, shard_id: str) -> None:
        await self.shard(shard_id)
        business_id, _, location_id = tenant.partition("-")
        self.citrus.registry.place(tenant, self.citrus.registry.shards[shard_id])
        await self.provisioner.provision(ProvisionRequest(business_id, location_id, "gym", datetime.now(UTC)))

    async def put(self, *records: bytes) -> list[str]:
        """Put records in their order; return their sequence numbers."""
        numbers: list[str] = []
        at_once = 500 if max(map(len, records), default=0) < 1000 else 10
        for first in range(0, len(records), at_once):
            entries = [{"Data": one, "PartitionKey": "key"} for one in records[first : first + at_once]]
            reply = await self.kinesis.put_records(StreamName=self.stream.name, Records=entries)
            numbers += [one["SequenceNumber"] for one in reply["Records"]]
        return numbers

    async def letters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            reply = await self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=0)
            if not (messages := reply.get("Messages")):
                return found
            found += [json.loads(message["Body"]) for message in messages]

    @asynccontextmanager
    async def reading(
        self,
        start: Start | None = None,
        *,
        checkpoint: Position | None = None,
        queue_url: str | None = None,
        settings: ReaderSettings = SETTINGS,
        prefetch: PrefetchMemory | None = None,
        hash_range: HashRange | None = None,
        pending_at_parents: TenantSet | None = None,
        read_ahead: ReadAhead | None = None,
        lineage: Lineage | None = None,
        stream_shard_id: str = ONLY,
        utc: UtcClock = utc_now,
        retention: timedelta | None = None,
    ) -> AsyncIterator[StreamShardReader]:
        dead_letters = DeadLetterQueue(self.sqs, queue_url or self.queue_url, draw=lambda: 0.0)
        assignment = ReaderAssignment(
            stream_shard_id,
            start or TrimHorizon(),
            checkpoint=checkpoint,
            hash_range=hash_range,
            read_ahead=read_ahead,
            pending_at_parents=pending_at_parents,
            retention=retention,
        )
        reader = StreamShardReader(
            ReaderServices(self.stream, self.gateway, dead_letters),
            assignment,
            settings,
            (prefetch or PrefetchMemory(PREFETCH_MAX_BYTES)).open_quota(),
            lease=SureLease(lineage or Lineage()),
            draw=lambda: 0.0,  # the shortest back-offs
            utc=utc,
        )
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.run(stopping))
            try:
                yield reader
            finally:
                stopping.set()
        await reader.shard_positions.write_final_positions()


def is_caught_up(reader: StreamShardReader) -> bool:
    """Return whether a reader is at the tip, with every record finished or held."""
    progress = reader.progress
    at_tip = progress.is_at_end or (reader.cursor.millis_behind == 0 and not progress.is_dispatching)
    is_catching_up = not all(hold.is_waiting for hold in progress.holds()) or reader.status()["catchUps"]
    has_asked_all = all(tenant.failure_count for tenant in progress.pipeline.lookup._tenants.values())
    return at_tip and not len(progress.tracker) and not is_catching_up and has_asked_all


@asynccontextmanager
async def looked_after(world: World, *readers: StreamShardReader) -> AsyncIterator[PositionSync]:
    looking = PositionSync(world.gateway, world.stream.name, lambda: readers)
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(looking.run(stopping))
        try:
            yield looking
        finally:
            stopping.set()


@asynccontextmanager
async def open_world(
    endpoint_url: str, make_shard: ShardMaker, *, kinesis_url: str | None = None, timeouts: ShardTimeouts = QUICK
) -> AsyncIterator[World]:
    async def no_more_shards() -> tuple[str, str]:
        raise AssertionError("the tests place their tenants themselves")

    citrus = local_citrus.CitrusServer(api_key="a-key-for-tests", make_shard=no_more_shards)
    async with AsyncExitStack() as stack:
        kinesis = await stack.enter_async_context(client_of("kinesis", kinesis_url or endpoint_url))
        sqs = await stack.enter_async_context(client_of("sqs", endpoint_url))
        queue = await sqs.create_queue(QueueName=f"letters-{uuid4()}")
        world = World(kinesis, sqs, queue["QueueUrl"], citrus, make_shard)
        url = await stack.enter_async_context(citrus.serve())
        locator = await stack.enter_async_context(
            open_citrus(url, api_key="a-key-for-tests", timeout_s=5, attempts=1, allowed_hosts=())
        )
        world.locator = locator
        world.pools = await stack.enter_async_context(Pools(size=4, timeouts=timeouts))
        directory = Directory(locator, world.pools)
        world.gateway = ShardGateway(directory, locator, world.pools, tenant_wait=WAIT)
        world.provisioner = Provisioner(locator, directory, world.pools)
        await world.stream.ensure(create=True, stream_shard_count=1)
        yield world


def record(kind: str, tenant: str, number: int, *, resource_id: str = "r1", **more: Any) -> bytes:
    business_id, _, location_id = tenant.partition("-")
    members = {
        "operation": kind,
        "businessId": business_id,
        "locationId": location_id,
        "resourceType": "class",
        "resourceId": resource_id,
        "timestamp": "2026-01-31T09:00:00Z",
        "requestId": f"{tenant}-{number}",
        "data": {"number": number},
    }
    return json.dumps(members | more).encode()


def chain(tenant: str, count: int, *, first: int = 0) -> list[bytes]:
    """Return operations of one resource that all succeed in this order, and in no other: made, changed, removed."""
    kinds = ("create", "update", "delete")
    return [record(kinds[number % 3], tenant, number) for number in range(first, first + count)]


def mixed(*chains: Sequence[bytes]) -> list[bytes]:
    return [one for together in zip(*chains, strict=True) for one in together]


async def outcomes(pool: ShardPool, tenant: str) -> list[str]:
    """Return the log of the shard for a tenant's operations, in the order of their numbers.

    Fail when a later number was applied in an earlier transaction.
    """
    rows = await fetch(
        pool, "SELECT request_id, status, error, completed_at FROM operations WHERE tenant_id = $1", tenant
    )
    rows.sort(key=lambda row: int(row["request_id"].rpartition("-")[2]))
    transactions = [row["completed_at"] for row in rows]
    assert transactions == sorted(transactions)
    return [row["error"] or row["status"] for row in rows]


def held_targets(reader: StreamShardReader) -> list[tuple[str, str, str]]:
    return sorted((held["target"], held["reason"], held["state"]) for held in reader.view.held_status())


async def eventually(is_so: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Wait until *is_so*, and fail when it never is."""

    async def ask() -> bool:
        return is_so()

    assert await poll_until(ask, within_s=within_s)


async def reaches(reader: StreamShardReader, sequence_number: str) -> None:
    """Wait until the reader's checkpoint is at *sequence_number*."""
    await eventually(lambda: reader.progress.checkpoint == Position.from_sequence_number(sequence_number))


async def logs(pool: ShardPool, tenant: str, count: int, *, within_s: float = PATIENCE_S) -> None:
    """Wait until a tenant's log has *count* rows, all succeeded."""

    async def ask() -> bool:
        return len(await outcomes(pool, tenant)) >= count

    assert await poll_until(ask, within_s=within_s), await outcomes(pool, tenant)
    assert await outcomes(pool, tenant) == ["succeeded"] * count
