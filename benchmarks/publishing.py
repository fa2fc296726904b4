"""Measure how much processor time an event of the feed takes on its way out.

    python -m benchmarks.publishing [--events 20000] [--data-bytes 700] [--rounds 5]

Encodes events, publishes them to our Kinesis and our SQS in processes of their own, and to a webhook in this process,
of which the receiver's part is included. Prints microseconds of this process an event, the median of the rounds. Exit
status 1 when an event by Kinesis, encoded, takes over 20 µs, or one was not delivered.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web
from support.aws.endpoints import CREDENTIALS, REGION
from support.feed.events import feed_event

from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import aws_client, start_kinesis, start_sqs
from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.destinations.http import open_webhook
from simplu_worker.feed.destinations.kinesis import open_kinesis
from simplu_worker.feed.destinations.sqs import open_sqs
from simplu_worker.feed.types import Delivered, Destination, FeedEvent

BUDGET_US: Final = 20.0  # of the publisher, by Kinesis
SHARES: Final = {"kinesis": 1, "sqs": 10, "webhook": 20}  # a destination gets the events divided by this


@asynccontextmanager
async def destinations() -> AsyncIterator[dict[str, Destination]]:
    """Open each kind of destination, with a server that takes all events."""

    async def accept(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=204)

    async with AsyncExitStack() as stack:
        group = stack.enter_context(ProcessGroup())
        kinesis_url, sqs_url = await asyncio.gather(start_kinesis(group), start_sqs(group))
        os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_ENDPOINT_URL_SQS": sqs_url}
        async with aws_client("kinesis", kinesis_url) as kinesis, aws_client("sqs", sqs_url) as sqs:
            await kinesis.create_stream(StreamName="changes", ShardCount=4)
            await kinesis.get_waiter("stream_exists").wait(StreamName="changes", WaiterConfig={"Delay": 0.1})
            queue = await sqs.create_queue(QueueName="changes.fifo", Attributes={"FifoQueue": "true"})
        application = web.Application()
        application.router.add_post("/", accept)
        runner = web.AppRunner(application)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url, secret = f"http://127.0.0.1:{runner.addresses[0][1]}/", "whsec_" + base64.b64encode(bytes(32)).decode()
        yield {
            "kinesis": await stack.enter_async_context(open_kinesis("changes", region=REGION)),
            "sqs": await stack.enter_async_context(open_sqs(queue["QueueUrl"], region=REGION)),
            "webhook": await stack.enter_async_context(open_webhook(url, [secret], AllowedHosts.parse(("127.0.0.1",)))),
        }


async def publish(destination: Destination, events: Sequence[FeedEvent]) -> int:
    """Publish *events* as the feed does; return how many were not delivered."""
    lost = 0
    for start in range(0, len(events), destination.max_events):
        deliveries = await destination.publish(events[start : start + destination.max_events])
        lost += sum(not isinstance(delivery, Delivered) for delivery in deliveries)
    return lost


async def measure(count: int, data_bytes: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Return by what was done the microseconds an event of each round, and the number of events not delivered."""
    data = b'"' + b"x" * (data_bytes - 2) + b'"' if data_bytes else None
    found: dict[str, list[float]] = {"encode": []}
    lost = 0
    async with destinations() as opened:
        for number in range(rounds):
            events = [
                feed_event(place, f"p-{place % 5000}", id=f"{number}-{place}", data=data) for place in range(count)
            ]
            started_s = time.process_time()
            for event in events:
                encode_event(event, 1_000_000)
            found["encode"].append((time.process_time() - started_s) / count * 1e6)
            for name, destination in opened.items():
                part = events[: count // SHARES[name]]
                started_s = time.process_time()
                lost += await publish(destination, part)
                found.setdefault(name, []).append((time.process_time() - started_s) / len(part) * 1e6)
    return found, lost


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--data-bytes", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found, lost = asyncio.run(measure(options.events, options.data_bytes, options.rounds))
    for name, rounds in found.items():
        print(f"{name}: {statistics.median(rounds):.1f} µs an event")
    if lost:
        print(f"{lost} events were not delivered")
    sys.exit(1 if lost or statistics.median(found["kinesis"]) > BUDGET_US else 0)


if __name__ == "__main__":
    main()
