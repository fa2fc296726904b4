"""The Kinesis of the retention benchmark: records flow into its stream at a steady rate, and go once they were read.

    python -m benchmarks.retention.flowing_kinesis --records 10000000 --rate 20000 --stream-shards 32 --port 4567

Nothing flows before SIGUSR1. Ten million records of 600 bytes do not fit into memory, so each is made when it is due.
Read records stay for some seconds, for readers that read them again; unread ones stay, and the flow waits while there
are too many of these. `GET /_control` has the counts as `flow`. The trickle, a few records of a tenant of its own, goes
to all stream shards in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import time
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, count
from typing import Any, Final

import structlog
import uvloop

from benchmarks.retention.load import RETENTION_MIX, TRICKLE_LOCATION, TRICKLE_RATE
from benchmarks.throughput.mixes import mixed_records
from benchmarks.throughput.records import BUSINESS_ID, PutRecord
from simplu_local.kinesis.model import KinesisOptions, LocalStream
from simplu_local.kinesis.server import KinesisServer
from simplu_local.kinesis.stream_shard import LocalStreamShard, NewRecord, ReadResult
from simplu_local.stack.aws import STREAM_NAME

STEP_S: Final = 0.01
STEP_MOST_S: Final = 0.2  # a server that was held up puts no burst after that
TRIM_S: Final = 1.0
KEPT_TURNS: Final = 10  # of trimming: a record goes that many seconds after it was read
UNREAD_MAX_S: Final = 3.0  # of the flow, at its rate

log = structlog.get_logger(__name__)


class FlowingStream(LocalStream):
    """A stream that knows how far each of its stream shards was read."""

    def __init__(self, name: str, shard_count: int, *, now_ms: int, options: KinesisOptions) -> None:
        super().__init__(name, shard_count, now_ms=now_ms, options=options)
        self.read_to = dict.fromkeys(self.stream_shards, 0)

    def read(self, stream_shard: LocalStreamShard, position: int, *, limit: int) -> ReadResult:
        """Read a stream shard."""
        found = super().read(stream_shard, position, limit=limit)
        known = self.read_to[stream_shard.stream_shard_id]
        self.read_to[stream_shard.stream_shard_id] = max(known, found.next_position)
        return found

    @property
    def unread_count(self) -> int:
        """The number of records that were not read yet."""
        return sum(one.end_position - self.read_to[one.stream_shard_id] for one in self.open_stream_shards)

    def trim_to(self, read_to: dict[str, int]) -> None:
        """Drop the records before these positions."""
        for stream_shard in self.open_stream_shards:
            stream_shard.trim(max(0, read_to[stream_shard.stream_shard_id] - stream_shard.first_position))


class FlowingKinesis(KinesisServer):
    """A Kinesis with one stream, into which `run_flow` puts *records* records at *rate* a second."""

    def __init__(self, *, records: int, rate: float, stream_shards: int, resources: int) -> None:
        super().__init__(KinesisOptions(create_delay_ms=0))
        now_ms = self.now_ms()
        self._stream = FlowingStream(STREAM_NAME, stream_shards, now_ms=now_ms, options=self.account.options)
        self.account.streams[STREAM_NAME] = self._stream
        self._stream.apply_due(now_ms + 1)
        self._places = [one.hash_range.start for one in self._stream.open_stream_shards]
        self._rate, self._count = rate, records
        flow = mixed_records(RETENTION_MIX, records, filled=resources)
        self._records = chain([next(flow)], flow)  # the first one takes seconds, for all kinds are drawn before it
        self._trickle = trickle_records()
        self._put_count = self._trickle_count = 0
        self._waited_s = 0.0

    def state(self) -> dict[str, Any]:
        """Return the state that the control path shows."""
        counts = {
            "put": self._put_count,
            "trickled": self._trickle_count,
            "unread": self._stream.unread_count,
            "waited_s": self._waited_s,
        }
        return super().state() | {"flow": counts}

    async def run_flow(self) -> None:
        """Put every record, each when it is due."""
        hash_keys: dict[str, int] = {}  # in turn: an uneven stream would have a fullest stream shard
        most_unread = int(self._rate * UNREAD_MAX_S)
        before = time.monotonic()
        due = trickle_due = 0.0
        while self._put_count < self._count:
            await asyncio.sleep(STEP_S)
            elapsed_s, before = min(time.monotonic() - before, STEP_MOST_S), time.monotonic()
            trickle_due += elapsed_s * TRICKLE_RATE
            self._stream.apply_due(self.now_ms())
            while self._trickle_count < trickle_due:
                self._put(next(self._trickle), self._places[self._trickle_count % len(self._places)])
                self._trickle_count += 1
            if self._stream.unread_count > most_unread:
                self._waited_s += elapsed_s
                continue
            due = min(due + elapsed_s * self._rate, self._count)
            while self._put_count < due:
                record = next(self._records)
                place = hash_keys.setdefault(record.partition_key, self._places[len(hash_keys) % len(self._places)])
                self._put(record, place)
                self._put_count += 1

    def _put(self, record: PutRecord, hash_key: int) -> None:
        key, data = record
        self._stream.put(NewRecord(key, base64.b64encode(data).decode(), len(data) + len(key), hash_key))

    async def run_trimming(self) -> None:
        """Drop records that were read some time ago, until cancelled."""
        earlier = deque([dict(self._stream.read_to)], maxlen=KEPT_TURNS)
        while True:
            await asyncio.sleep(TRIM_S)
            if len(earlier) == KEPT_TURNS:
                self._stream.trim_to(earlier[0])
            earlier.append(dict(self._stream.read_to))


def trickle_records() -> Iterator[PutRecord]:
    """Yield records that create resources of the tenant of the trickle."""
    note = "as agreed " * (RETENTION_MIX.document_bytes // 10)
    for number in count():
        members = {
            "operation": "create",
            "businessId": BUSINESS_ID,
            "locationId": TRICKLE_LOCATION,
            "resourceType": "member",
            "resourceId": str(uuid.uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "requestId": str(uuid.uuid4()),
            "data": {"name": f"Person {number}", "note": note},
        }
        yield PutRecord(f"{TRICKLE_LOCATION}-{number}", json.dumps(members).encode())


async def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped, begun = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, begun.set)
    server = FlowingKinesis(
        records=arguments.records,
        rate=arguments.rate,
        stream_shards=arguments.stream_shards,
        resources=arguments.resources,
    )
    async with server.serve(arguments.port) as url, asyncio.TaskGroup() as tasks:
        log.info("kinesis.started", url=url)
        await begun.wait()
        running = [tasks.create_task(server.run_flow()), tasks.create_task(server.run_trimming())]
        await stopped.wait()
        for task in running:
            task.cancel()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="records/s")
    parser.add_argument("--stream-shards", type=int, required=True)
    parser.add_argument("--resources", type=int, required=True, help="that exist before the run")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
