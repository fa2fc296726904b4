"""`python -m support.aws_access.parts`: the calls of a worker that a short run does not come to, by its own functions.

A lease is deleted once the stream has forgotten its stream shard; the metrics of a follower need a leader of the KCL.
The feed has a stream and a queue, which need not be there. The variables are those of a worker, and the KCL's table of
worker metrics is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from support.aws.kcl3_peer import migration_row
from support.feed.events import feed_event
from support.settings import settings_in

from simplu_worker.assembly.aws import open_lease_table, open_leases
from simplu_worker.assembly.worker import open_destination
from simplu_worker.aws.clients import open_client
from simplu_worker.commands.check.dependency import check_feed
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.fleet import CpuShare, KclFollower
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import TableRequests
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON
from simplu_worker.feed.feed import read_feed_file
from simplu_worker.feed.feed_file import AllowedHosts

FEED_STREAM, FEED_QUEUE = "changes", "changes.fifo"
LEASE = Lease("shardId-forgotten", TRIM_HORIZON)


async def delete_lease(settings: Settings) -> None:
    async with open_lease_table(settings) as table:
        assert await table.create(LEASE)
        found = await table.find(LEASE.lease_key)
        assert found is not None
        assert await table.delete(found)


async def follow(settings: Settings) -> None:
    async with (
        open_leases(settings) as (table, watch),
        open_client("dynamodb", region=settings.aws_region, endpoint_url=settings.dynamodb_endpoint) as client,
    ):
        await table.requests.call(table.name, "put_item", Item=migration_row("CLIENT_VERSION_3X"))
        await table.scan()
        await watch.check()
        cpu = CpuShare(cores=1.0, cpu_s=lambda: 0.0, wall_s=lambda: 0.0)
        requests = TableRequests(client)
        follower = KclFollower(requests, watch, me="host:1:me", utc=lambda: datetime.now(UTC), cpu=cpu)
        await follower.report()
        await follower.leave()


async def feed(settings: Settings) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(feed_file(str(settings.sqs_shard_creation_queue_url)))
        file.flush()
        named = settings.model_copy(update={"feed_file": Path(file.name)})
        await check_feed(named)
        for destination in read_feed_file(Path(file.name), ()).destinations:
            async with open_destination(destination, region=settings.aws_region, allowed=AllowedHosts()) as opened:
                await opened.publish([feed_event()])


def feed_file(queue_url: str) -> str:
    """Return a `FEED_FILE` with the destinations of AWS; *queue_url* is that of another queue of the account."""
    targets = {"kinesis": FEED_STREAM, "sqs": f"{queue_url.rpartition('/')[0]}/{FEED_QUEUE}"}
    entries = [{"name": f"a-{kind}", "kind": kind, "target": at, "allTenants": True} for kind, at in targets.items()]
    return json.dumps({"destinations": entries})


async def run() -> None:
    settings = settings_in(os.environ)
    await delete_lease(settings)
    await feed(settings)
    await follow(settings.model_copy(update={"kinesis_kcl_follower": True}))


if __name__ == "__main__":
    asyncio.run(run())
