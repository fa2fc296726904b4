"""`replay`: read the stream again from a time. The log drops operations that were applied; the others are applied."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from rich.console import Console

from simplu_worker.assembly import open_lease_table, open_shards, open_stream, reader_settings
from simplu_worker.commands.output.display import print_json, print_table
from simplu_worker.commands.requirements import require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.reader_parameters import ReaderAssignment, ReaderServices, ReaderSettings
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.stream.client import (
    AtSequenceNumber,
    AtTimestamp,
    Start,
    StreamShard,
    TrimHorizon,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.metrics import instruments

POLL_INTERVAL_S: Final = 0.25
POLLS_PER_REPORT: Final = 8

log = structlog.get_logger(__name__)


class DeadLetterCounter:
    """Counts dead letters instead of storing them: they were stored when the records were first read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    async def store(self, dead_letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:  # noqa: ARG002
        """Count *dead_letters* by reason."""
        self.counts.update(letter.reason for letter in dead_letters)


async def replay(settings: Settings, start: datetime, *, as_json: bool) -> int:
    """Read every stream shard from *start* to its tip, parents before their children; print the outcomes.

    Needs no lease and moves no checkpoint. Is safe beside the workers' readers, because it starts no later than their
    first pending operation: no operation is applied before an earlier one of its key (architecture, idea 2).
    """
    require_settings(settings, routes=True, stream=True)
    dead_letters = DeadLetterCounter()
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(open_shards(settings))
        stream = await stack.enter_async_context(open_stream(settings))
        table = await stack.enter_async_context(open_lease_table(settings))
        leases = {lease.lease_key: lease for lease in await table.scan()}
        prefetch = PrefetchMemory(settings.prefetch_max_bytes)
        services = ReaderServices(stream, shards.gateway, dead_letters)
        stream_replay = _StreamReplay(services, reader_settings(settings), prefetch, start, leases)
        for generation in generations(await stream.list_stream_shards()):
            await stream_replay.read(generation)
    outcomes = instruments.totals_by(instruments.OPERATIONS, "outcome")
    answer = {"outcomes": outcomes, "deadLetters": dict(dead_letters.counts), "leftWaiting": stream_replay.left_waiting}
    if as_json:
        print_json(answer)
    else:
        rows = sorted(outcomes.items())
        rows += [(f"no operation: {reason}", count) for reason, count in sorted(dead_letters.counts.items())]
        rows += [("left held: shards or tenants", stream_replay.left_waiting)] if stream_replay.left_waiting else []
        print_table(("outcome of the records", "count"), rows)
    return 1 if stream_replay.left_waiting else 0


def generations(stream_shards: Sequence[StreamShard]) -> Iterator[list[StreamShard]]:
    """Yield groups of stream shards, as large as possible, each shard in a later group than its parents."""
    left = {shard.stream_shard_id: shard for shard in stream_shards}
    while left:
        ready = [shard for shard in left.values() if not shard.parents & left.keys()]
        for shard in ready:
            del left[shard.stream_shard_id]
        yield ready


@dataclass
class _StreamReplay:
    services: ReaderServices
    settings: ReaderSettings
    prefetch: PrefetchMemory
    start: datetime
    leases: Mapping[str, Lease]
    left_waiting: int = 0

    async def read(self, generation: Sequence[StreamShard]) -> None:
        """Read these stream shards concurrently, each to its tip or end."""
        async with asyncio.TaskGroup() as tasks:
            for shard in generation:
                tasks.create_task(self._read(shard), name=f"replay:{shard.stream_shard_id}")

    async def _read(self, shard: StreamShard) -> None:
        assignment = ReaderAssignment(shard.stream_shard_id, await self._find_start(shard))
        reader = StreamShardReader(self.services, assignment, self.settings, self.prefetch.open_quota())
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(reader.run(stopping), name=f"read:{shard.stream_shard_id}")
            polls = 0
            while not reading.done() and not reader.is_caught_up:
                await asyncio.sleep(POLL_INTERVAL_S)
                polls += 1
                if polls % POLLS_PER_REPORT == 0:
                    _show_lag(shard, reader)
            stopping.set()
        self.left_waiting += len(reader.holds())

    async def _find_start(self, shard: StreamShard) -> Start:
        """Return the earlier of the requested time and the checkpoint, from which operations may be pending."""
        lease = self.leases.get(shard.stream_shard_id)
        if lease is None or lease.checkpoint.is_sentinel:
            ended = lease is not None and lease.checkpoint == SHARD_END
            return AtTimestamp(self.start) if ended else TrimHorizon()
        iterator: str | None = await self.services.stream.get_iterator(shard.stream_shard_id, AtTimestamp(self.start))
        while iterator is not None:
            reply = await self.services.stream.get_records(iterator, limit=1)
            if reply.records:
                first = Position.from_sequence_number(reply.records[0].sequence_number)
                if first <= lease.checkpoint:
                    return AtTimestamp(self.start)
                break
            if not reply.millis_behind:
                break
            iterator = reply.next_iterator
            await asyncio.sleep(POLL_INTERVAL_S)
        return AtSequenceNumber(lease.checkpoint.checkpoint)


def _show_lag(shard: StreamShard, reader: StreamShardReader) -> None:
    trouble = f": {reader.trouble}" if reader.trouble else ""
    lag = "unknown" if reader.view.lag_s is None else f"{reader.view.lag_s:.0f} s"
    Console(stderr=True, highlight=False).print(f"{shard.stream_shard_id}: {lag} to go{trouble}", markup=False)
