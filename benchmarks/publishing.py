"""Measure how much processor time an event of the feed takes on its way out.

    python -m benchmarks.publishing [--events 20000] [--data-bytes 700] [--rounds 5]

Takes rows of the log through the feed of a destination that has everything at once, encodes events, and publishes them
to our Kinesis, to our SQS and to a webhook, each a process of its own. Prints microseconds of this process an event,
the median of the rounds, by turns. Reading the log is not part of it. Exit status 1 when an event by Kinesis takes over
20 µs with its way through the feed, or one was not delivered.
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
from datetime import UTC, datetime
from struct import pack
from typing import Final

import uvloop
from support.aws.endpoints import CREDENTIALS, REGION
from support.feed.events import feed_event
from support.feed.publishing import open_webhook

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import aws_client, start_kinesis, start_sqs
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.destination_feed import DestinationFeed
from simplu_worker.feed.destinations import open_aws
from simplu_worker.feed.events import LogBatch, read_row
from simplu_worker.feed.feed_file import AllowedHosts
from simplu_worker.feed.rows import CursorRow
from simplu_worker.feed.shard_feed import READ_MAX
from simplu_worker.feed.types import Delivered, Destination, DestinationTerms, FeedEvent, Place, Publication
from simplu_worker.feed.window import Budget
from simplu_worker.memory_tuning import tune_allocator
from simplu_worker.shards.log import key_of_id

BUDGET_US: Final = 20.0  # of the publisher, by Kinesis
SHARES: Final = {"kinesis": 1, "sqs": 10, "webhook": 10}  # a destination gets the events divided by this
BATCH_ROWS: Final = 50
SECRET: Final = "whsec_" + base64.b64encode(bytes(32)).decode()


class Sink:
    """A destination that has everything at once; *has_all* is set with the event number *count*."""

    max_events = 1000

    def __init__(self, count: int) -> None:
        self.has_all = asyncio.Event()
        self._left = count

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivered]:
        """Take *events*."""
        self._left -= len(events)
        if self._left <= 0:
            self.has_all.set()
        return [Delivered()] * len(events)


@asynccontextmanager
async def destinations() -> AsyncIterator[dict[str, Destination]]:
    """Open each kind of destination, with a server that takes all events."""
    async with AsyncExitStack() as stack:
        group = stack.enter_context(ProcessGroup())
        kinesis_url, sqs_url, url = await asyncio.gather(start_kinesis(group), start_sqs(group), start_receiver(group))
        os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "AWS_ENDPOINT_URL_SQS": sqs_url}
        async with aws_client("kinesis", kinesis_url) as kinesis, aws_client("sqs", sqs_url) as sqs:
            await kinesis.create_stream(StreamName="changes", ShardCount=4)
            await kinesis.get_waiter("stream_exists").wait(StreamName="changes", WaiterConfig={"Delay": 0.1})
            queue = await sqs.create_queue(QueueName="changes.fifo", Attributes={"FifoQueue": "true"})
        yield {
            "kinesis": await stack.enter_async_context(open_aws("kinesis", "changes", region=REGION)),
            "sqs": await stack.enter_async_context(open_aws("sqs", queue["QueueUrl"], region=REGION)),
            "webhook": await stack.enter_async_context(open_webhook(url, [SECRET], AllowedHosts.parse(("127.0.0.1",)))),
        }


async def start_receiver(group: ProcessGroup) -> str:
    """Start a receiver of webhooks in *group*; return its URL."""
    log_path = group.directory / "receiver.log"
    program = [sys.executable, "-m", "support.feed.webhook_receiver", os.devnull, SECRET, "--faults", "0"]
    group.spawn(program, log_path=log_path)

    async def listens() -> bool:
        return log_path.read_bytes().endswith(b"\n")

    await poll_until(listens, within_s=30.0)
    return log_path.read_text().strip()


async def publish(destination: Destination, events: Sequence[FeedEvent]) -> int:
    """Publish *events* as the feed does; return how many were not delivered."""
    lost = 0
    for start in range(0, len(events), destination.max_events):
        deliveries = await destination.publish(events[start : start + destination.max_events])
        lost += sum(not isinstance(delivery, Delivered) for delivery in deliveries)
    return lost


def log_batch(number: int) -> LogBatch:
    """Return a batch of the log with BATCH_ROWS patches."""
    at = datetime(2026, 3, 1, 9, 0, 0, 250_000, tzinfo=UTC)
    token, first = f"8a2c1f30-1d3b-4c5f-9a77-{number:012}", number * BATCH_ROWS
    tenant, ones = ["7", "smile-berlin", "smile", "berlin", "dental", "{}"], b"\0\1" * BATCH_ROWS
    return LogBatch(
        *("1", at, 0, "on", "", True, "[]", None, None, number + 1, at, token, "o"),
        *(None, 7, ["patient"], ["changes"], [tenant], []),
        *(pack(f">{BATCH_ROWS}h", *range(BATCH_ROWS)), b"\0\0\0\7" * BATCH_ROWS, "p" * BATCH_ROWS, ones, ones),
        [key_of_id(f"p-{(first + position) % 5000}") for position in range(BATCH_ROWS)],
        [key_of_id(f"request-{first + position}") for position in range(BATCH_ROWS)],
    )


async def feed(batches: Sequence[LogBatch]) -> int:
    """Take *batches* through the feed of a destination, as `ShardFeed` does; return how many were not delivered."""
    changed, publication = (
        asyncio.Event(),
        Publication("shard-1", "019ca8d6e0b1f0aa", "8a2c1f30-1d3b-4c5f-9a77-000000000000"),
    )
    row = CursorRow("sink", Place(0, 0), publication.incarnation)
    sink = Sink(len(batches) * BATCH_ROWS)
    one = DestinationFeed(publication, DestinationTerms("sink"), sink, row, changed=changed, documents=Budget())

    async def keep_refusal(_: str, __: FeedEvent, ___: str) -> None:
        raise AssertionError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run(is_publisher=lambda: True, keep_refusal=keep_refusal))
        step = READ_MAX // BATCH_ROWS
        for start in range(0, len(batches), step):
            rows = [row for batch in batches[start : start + step] for row in batch.rows()]
            one.add([read_row(row, publication) for row in rows], {})
            one.row()
            while not one.is_reading:
                one.is_awaited = True
                await changed.wait()
                changed.clear()
        await sink.has_all.wait()
        one.end()
    return 0 if one.window.cursor == (len(batches), BATCH_ROWS - 1) else 1


async def measure(count: int, data_bytes: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Return by what was done the microseconds an event of each round, and the number of events not delivered."""
    data = b'"' + b"x" * (data_bytes - 2) + b'"' if data_bytes else None
    found: dict[str, list[float]] = {"feed": [], "encode": []}
    batches = [log_batch(number) for number in range(count // BATCH_ROWS)]
    lost = 0
    async with destinations() as opened:
        tune_allocator()  # as the daemon does
        for number in range(rounds):
            started_s = time.process_time()
            lost += await feed(batches)
            found["feed"].append((time.process_time() - started_s) / count * 1e6)
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
    found, lost = uvloop.run(measure(options.events, options.data_bytes, options.rounds))
    medians = {name: statistics.median(rounds) for name, rounds in found.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.1f} µs an event")
    if lost:
        print(f"{lost} events were not delivered")
    sys.exit(1 if lost or medians["feed"] + medians["kinesis"] > BUDGET_US else 0)


if __name__ == "__main__":
    main()
