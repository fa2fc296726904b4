"""The polls of an idle worker in a loop of plain aiobotocore: what the requests alone cost.

    python -m benchmarks.throughput.plain_polls --kinesis-url URL

Each stream shard is read once a second, all of them at the same times, as an idle worker does. There is nothing else:
no lease, no shard of Postgres, no HTTP server. It reads until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvloop
from aiobotocore.session import get_session

from simplu_local.aws_server.account import REGION
from simplu_local.stack.aws import STREAM_NAME
from simplu_worker.consumers.kinesis.fetch.pacing import IDLE_INTERVAL_S, LIMIT_UNKNOWN


async def poll(client: Any, stream_shard_id: str) -> None:
    """Read one stream shard until cancelled."""
    loop = asyncio.get_running_loop()
    first = await client.get_shard_iterator(
        StreamName=STREAM_NAME, ShardId=stream_shard_id, ShardIteratorType="TRIM_HORIZON"
    )
    iterator = first["ShardIterator"]
    while True:
        await asyncio.sleep(IDLE_INTERVAL_S - loop.time() % IDLE_INTERVAL_S)
        reply = await client.get_records(ShardIterator=iterator, Limit=LIMIT_UNKNOWN)
        iterator = reply["NextShardIterator"]


async def run(url: str) -> None:
    """Read all stream shards until the process is killed."""
    async with get_session().create_client("kinesis", region_name=REGION, endpoint_url=url) as client:
        listed = await client.list_shards(StreamName=STREAM_NAME)
        async with asyncio.TaskGroup() as tasks:
            for stream_shard in listed["Shards"]:
                tasks.create_task(poll(client, stream_shard["ShardId"]))


def main() -> None:
    """Run the loop as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinesis-url", required=True)
    uvloop.run(run(parser.parse_args().kinesis_url))


if __name__ == "__main__":
    main()
