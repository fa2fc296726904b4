"""Measure reading by push (enhanced fan-out) beside polling: latency, throughput, memory, the cost of decoding.

    python -m benchmarks.fan_out [--rate 1000] [--seconds 30] [--backlog 30000]
    python -m benchmarks.fan_out --decode

Starts the embedded stack, and one worker after the other, which reads by polling and then by push, twice: under a
steady load, and with a backlog that was put while no worker ran. At the end every row of every shard is compared with
the records that were put. Exit status 1 when a target is missed or a row differs. `--decode` compares the processor
time for the records of GetRecords replies with that for the same records in events.

The local Kinesis pushes a record as soon as it has it; AWS takes about 70 ms by its own figures, and polls of it find a
record about as late.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import PhaseResult, Testbed
from support.processes.resource_usage import MemorySampler

from benchmarks.targets import LoadReport, PerformanceTarget, ratio_of
from simplu_local.kinesis.fan_out.event_stream import encode_event
from simplu_worker.consumers.kinesis.stream.client import Record, decode_get_records
from simplu_worker.consumers.kinesis.stream.subscriptions import MessageBuffer, decode_event

READS = ("polling", "fan-out")
LATENCY_MOST_RATIO = 0.5
THROUGHPUT_LEAST_RATIO = 0.95  # of two runs of the same, on the machine of this repository
RSS_GROWTH_MIB = 32.0
SETTLE_S = 8.0  # more than the five seconds after which a subscription may be taken
STOP_WITHIN_S = 35.0
APPLIED_WITHIN_S = 120.0
DECODE_MOST_US = 0.5
DECODED_RECORDS = 2000  # of one reply, or event
RECORD_BYTES = 500
PART_BYTES = 64 * 1024  # in which a socket delivers
DECODE_ROUNDS = 60


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="operations/s")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each steady phase")
    parser.add_argument("--backlog", type=int, default=30_000, metavar="N", help="records that wait for each worker")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    console = open_console(as_json=arguments.json)
    if arguments.decode:
        sys.exit(compare_decoding(console))
    sys.exit(asyncio.run(run(arguments, console)))


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, print, and return the exit status."""
    async with Testbed(shards=3, stream_shards=4, worker_env={"KINESIS_READ": READS[0]}) as testbed:
        # Between two workers there is none.
        testbed.memory = MemorySampler(lambda: testbed.workers[0].pid if testbed.workers else None)
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(testbed.memory.run(), name="memory")
            steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=arguments.rate)
            for read in READS:
                if read != READS[0]:
                    await replace_worker(testbed, read)
                await asyncio.sleep(SETTLE_S)
                console.print(f"{read}: {arguments.rate:g} operations/s for {arguments.seconds:g} s")
                async with testbed.phase(read):
                    await asyncio.sleep(arguments.seconds)
            await steady.producer.stop()
            await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
            plans = [await apply_backlog(testbed, read, arguments.backlog, console) for read in READS]
            sampling.cancel()
        report = LoadReport(f"{arguments.rate:g} operations/s, and a backlog of {arguments.backlog}")
        for phase, plan in zip(testbed.phases, [steady.plan, steady.plan, *plans], strict=True):
            report.phases.append(await testbed.measure_phase(phase, plan, testbed.urls))
        report.differences = await testbed.find_differences()
    add_targets(report)
    report.print(console)
    if arguments.json:
        print(report.as_json())
    return report.status


async def replace_worker(testbed: Testbed, read: str) -> None:
    """Stop the worker in order, and start one that reads in another way."""
    await testbed.worker.stop(within_s=STOP_WITHIN_S)
    testbed.workers.clear()
    await testbed.start_worker({"KINESIS_READ": read})


async def apply_backlog(testbed: Testbed, read: str, count: int, console: Console) -> ChainPlan:
    """Put records while no worker runs; measure how a worker applies them."""
    await testbed.worker.stop(within_s=STOP_WITHIN_S)
    testbed.workers.clear()
    flow = testbed.start_flow(ChainPlan(f"backlog-{read}", testbed.tenants_of()), rate=None, count=count)
    await flow.producer.wait_until_done(within_s=APPLIED_WITHIN_S)
    await asyncio.sleep(SETTLE_S)
    console.print(f"{read}: a backlog of {count}")
    await testbed.start_worker({"KINESIS_READ": read})
    async with testbed.phase(f"backlog, {read}"):
        await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
    return flow.plan


def add_targets(report: LoadReport) -> None:
    """Add the targets: of latency, throughput and memory by push, each relative to polling."""
    polled, pushed, polled_backlog, pushed_backlog = report.phases
    for name, value_of in (("p50", _p50), ("p99", _p99)):
        ratio = ratio_of(value_of(pushed), value_of(polled))
        report.targets.append(PerformanceTarget(f"fan-out: {name} ÷ polling's", ratio, most=LATENCY_MOST_RATIO))
    ratio = ratio_of(pushed_backlog.rate, polled_backlog.rate)
    report.targets.append(
        PerformanceTarget("fan-out: backlog, operations/s ÷ polling's", ratio, least=THROUGHPUT_LEAST_RATIO)
    )
    before, after = polled_backlog.rss_bytes, pushed_backlog.rss_bytes
    growth = None if before is None or after is None else (after.most - before.most) / 2**20
    report.targets.append(
        PerformanceTarget("fan-out: backlog, memory beyond polling's", growth, most=RSS_GROWTH_MIB, unit="MiB")
    )


def _p50(measured: PhaseResult) -> float | None:
    return measured.p50_s


def _p99(measured: PhaseResult) -> float | None:
    return measured.p99_s


def compare_decoding(console: Console) -> int:
    """Print the processor time for a record of a reply, and of an event; return the exit status."""
    body = reply_of(DECODED_RECORDS)
    frame = encode_event("SubscribeToShardEvent", body, "application/json")
    parts = [frame[at : at + PART_BYTES] for at in range(0, len(frame), PART_BYTES)]

    def decode_parts() -> list[Record]:
        buffer = MessageBuffer()
        for part in parts:
            buffer.add(part)
        message = buffer.take()
        reply = None if message is None else decode_event(message)
        return [] if reply is None else reply.records

    def decode_reply() -> list[Record]:
        received = b"".join([body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)])
        records: list[Record] = decode_get_records(received)["Reply"].records
        return records

    assert decode_parts() == decode_reply()
    reply_us, event_us = microseconds_a_record(decode_reply), microseconds_a_record(decode_parts)
    console.print(f"records of {RECORD_BYTES} bytes, {DECODED_RECORDS} in a reply: {reply_us:.2f} µs a record")
    console.print(f"the same in an event: {event_us:.2f} µs, {event_us - reply_us:+.2f}")
    return 0 if event_us - reply_us <= DECODE_MOST_US else 1


def reply_of(count: int) -> bytes:
    """Return the members that a reply and an event have in common, in JSON."""
    data = base64.b64encode(b"x" * RECORD_BYTES).decode()
    arrived_at = datetime.now(UTC).timestamp()
    records = [
        {
            "SequenceNumber": str(10**55 + number),
            "ApproximateArrivalTimestamp": arrived_at,
            "PartitionKey": f"clinic-main-{number % 50}",
            "Data": data,
        }
        for number in range(count)
    ]
    return json.dumps({"Records": records, "MillisBehindLatest": 0, "ContinuationSequenceNumber": "1"}).encode()


def microseconds_a_record(decode: Callable[[], object]) -> float:
    """Return the shortest of many times."""
    times_s = []
    for _ in range(DECODE_ROUNDS):
        started_at = time.perf_counter()
        decode()
        times_s.append(time.perf_counter() - started_at)
    return min(times_s) * 1e6 / DECODED_RECORDS


if __name__ == "__main__":
    main()
