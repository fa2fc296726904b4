"""The Kinesis of the throughput benchmark: the local one, with the records already in the stream when it listens.

With `--fill-later` it adds them at SIGUSR1.

    python -m benchmarks.throughput.filled_kinesis --records 300000 --stream-shards 32 --port 4567

The records do not pass through PutRecords, which would take longer than reading them. GetRecords answers from JSON that
was encoded when a record was put, so a reply of 1 MiB costs a join and a write to the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import signal
import time
from collections.abc import Callable

import structlog
import uvloop

from benchmarks.throughput.mixes import mix_of, mixed_records
from benchmarks.throughput.records import make_records
from simplu_local.kinesis.model import KinesisOptions
from simplu_local.kinesis.server import KinesisServer
from simplu_local.kinesis.stream_shard import NewRecord
from simplu_local.stack.aws import STREAM_NAME

log = structlog.get_logger(__name__)

MEMORY_MAX_BYTES = 2 * 1024**3


Fill = Callable[[], None]


def filled_server(arguments: argparse.Namespace) -> tuple[KinesisServer, Fill]:
    """Return a server, and a function that puts the records into its stream."""
    options = KinesisOptions(
        memory_max_bytes=MEMORY_MAX_BYTES, read_throttling=not arguments.no_throttling, create_delay_ms=0
    )
    server = KinesisServer(options)
    now_ms = time.time_ns() // 1_000_000
    stream = server.account.create(STREAM_NAME, arguments.stream_shards, now_ms)
    stream.apply_due(now_ms + 1)
    open_shards = stream.open_stream_shards
    # In turn: with an uneven stream the benchmark would measure the fullest of its stream shards.
    hash_keys: dict[str, int] = {}
    made = []
    records = (
        mixed_records(mix_of(arguments.mix), arguments.records)
        if arguments.mix
        else make_records(arguments.records, arguments.tenants)
    )
    for key, data in records:
        if key not in hash_keys:
            hash_keys[key] = open_shards[len(hash_keys) % len(open_shards)].hash_range.start
        text = base64.b64encode(data).decode()
        made.append(NewRecord(key, text, len(data) + len(key), hash_keys[key]))

    def fill() -> None:
        stream.apply_due(server.now_ms())
        for record in made:
            stream.put(record)
        made.clear()

    return server, fill


async def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server, fill = filled_server(arguments)
    if arguments.fill_later:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fill)
    else:
        fill()
    async with server.serve(arguments.port) as url:
        log.info("kinesis.started", url=url)
        await stopped.wait()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--mix", help="a name of mixes.py; then its tenants count")
    parser.add_argument("--stream-shards", type=int, required=True)
    parser.add_argument("--no-throttling", action="store_true", help="for readers that exceed Kinesis's quotas")
    parser.add_argument("--fill-later", action="store_true", help="add the records at SIGUSR1")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
