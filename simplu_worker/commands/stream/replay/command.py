"""`replay`: read the stream again from a time. The log drops operations that were applied; the others are applied."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from simplu_worker.assembly.aws import open_lease_table, open_stream
from simplu_worker.assembly.shards import open_shards
from simplu_worker.assembly.worker import reader_settings
from simplu_worker.commands.output.display import print_json, print_note, print_table
from simplu_worker.commands.output.progress import LINE_INTERVAL_S
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.stream.replay.replay_rules import ReplayRange, ReplayTotals, generations, select
from simplu_worker.commands.stream.replay.sink import ApplyingSink, CountingSink, ReplaySink, ShardRoutes
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import Pacing
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.reader_parameters import ReaderSettings
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError, StreamShard
from simplu_worker.consumers.kinesis.stream.first_record import find_first_record
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    AtSequenceNumber,
    AtTimestamp,
    Position,
    Start,
    TrimHorizon,
)
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import StreamReader


async def replay(settings: Settings, chosen: ReplayRange, *, apply: bool, as_json: bool) -> int:
    """Read every stream shard from the start of *chosen* to its end, parents before their children; print the outcomes.

    Needs no lease and moves no checkpoint. Is safe beside the workers' readers, because it starts no later than their
    first pending operation: no operation is applied before an earlier one of its key (architecture, idea 2). Without
    *apply* nothing is applied. Returns 1 if tenants or stream shards were left, or the stream no longer has the start.
    """
    require_settings(settings, routes=True, stream=True)
    totals = ReplayTotals()
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(open_shards(settings))
        stream = await stack.enter_async_context(open_stream(settings))
        table = await stack.enter_async_context(open_lease_table(settings))
        rules = reader_settings(settings)
        routes = ShardRoutes(shards.gateway, totals, tenant_wait=rules.tenant_wait)
        sink: ReplaySink = (ApplyingSink if apply else CountingSink)(shards.gateway, totals, routes)
        leases = {lease.lease_key: lease for lease in await table.scan()}
        totals.left |= _left_the_stream(chosen, (await stream.describe()).retention)
        memory = PrefetchMemory(settings.prefetch_max_bytes)
        stream_replay = _StreamReplay(stream, sink, rules, memory, chosen, leases, totals)
        for generation in generations(await stream.list_stream_shards()):
            if stream_replay.has_failed:
                break  # operations of the children must not come before those of their parents
            await stream_replay.read(generation)
    if as_json:
        print_json(_members(totals, apply=apply))
    else:
        _print_totals(totals, apply=apply)
    return 1 if totals.left else 0


def _left_the_stream(chosen: ReplayRange, retention: timedelta) -> dict[str, str]:
    """Return that the stream no longer has the beginning of *chosen*, if it has not."""
    oldest = utc_now() - retention
    if chosen.start >= oldest:
        return {}
    hours = retention.total_seconds() / 3600
    return {f"records before {oldest.isoformat(timespec='seconds')}": f"the stream keeps records for {hours:g} h"}


def _members(totals: ReplayTotals, *, apply: bool) -> dict[str, Any]:
    return {
        "applied": apply,
        "records": totals.record_count,
        "outcomes": totals.outcomes,
        "deadLetters": totals.dead_letters,
        "leftOperations": totals.left_count,
        "left": totals.left,
        "leftWaiting": len(totals.left),
    }


def _print_totals(totals: ReplayTotals, *, apply: bool) -> None:
    rows = sorted(totals.outcomes.items())
    rows += [(f"no operation: {reason}", count) for reason, count in sorted(totals.dead_letters.items())]
    rows += [("left", totals.left_count)] if totals.left else []
    print_table(("outcome of the records", "count"), rows)
    if not apply:
        print_note("nothing was applied; with --apply the operations that would_apply are")
    for target, reason in sorted(totals.left.items()):
        print_note(f"{target}: left: {reason}")


@dataclass
class _StreamReplay:
    stream: Stream
    sink: ReplaySink
    rules: ReaderSettings
    memory: PrefetchMemory
    chosen: ReplayRange
    leases: Mapping[str, Lease]
    totals: ReplayTotals
    has_failed: bool = False  # a stream shard could not be read
    lags_s: dict[str, float] = field(default_factory=dict)  # of the stream shards that are being read
    shown_at: float = field(default_factory=time.monotonic)

    async def read(self, generation: Sequence[StreamShard]) -> None:
        """Read these stream shards concurrently, each to its tip, its end, or the end of the range."""
        async with asyncio.TaskGroup() as tasks:
            for shard in generation:
                tasks.create_task(self._read(shard), name=f"replay:{shard.stream_shard_id}")

    async def _read(self, shard: StreamShard) -> None:
        quota = self.memory.open_quota()
        access = StreamShardAccess(self.stream, shard.stream_shard_id, quota, random.random)
        try:
            cursor = Cursor(access, await self._find_start(shard), Pacing(access.budget), kind=StreamReader.MAIN)
            decoder = self._decoder_of(shard)
            while not await self._read_reply(cursor, decoder):
                self.lags_s[shard.stream_shard_id] = (cursor.millis_behind or 0) / 1000
                self._show_progress(cursor)
            cursor.release_memory()
        except StreamGoneError:
            return  # past its retention
        except (RetryableError, PermanentError) as exc:
            self.has_failed = True
            self.totals.left[f"stream shard {shard.stream_shard_id}"] = str(exc)
        finally:
            quota.close()
            self.lags_s.pop(shard.stream_shard_id, None)

    async def _read_reply(self, cursor: Cursor, decoder: RecordDecoder) -> bool:
        """Read once, and send the operations on; return whether the stream shard is done.

        Raises PermanentError if it cannot be read.
        """
        reply = await cursor.read(asyncio.Event())
        if reply is None:
            if cursor.refusal is not None and not cursor.is_gone:
                raise PermanentError(cursor.refusal)
            return cursor.is_gone
        self.totals.record_count += len(reply.records)
        selection = select(decoder.decode(reply.records), self.chosen)
        self.totals.count_rejected(selection.rejected)
        await self.sink.send(selection.operations)
        return selection.is_last or cursor.is_at_end or cursor.millis_behind == 0

    def _decoder_of(self, shard: StreamShard) -> RecordDecoder:
        return RecordDecoder(
            self.stream.name,
            shard.stream_shard_id,
            operation_max_bytes=self.rules.operation_max_bytes,
            list_result_limit=self.rules.list_result_limit,
            hash_range=shard.hash_range,
        )

    async def _find_start(self, shard: StreamShard) -> Start:
        """Return the earlier of the requested time and the checkpoint, from which operations may be pending."""
        start = AtTimestamp(self.chosen.start)
        lease = self.leases.get(shard.stream_shard_id)
        if lease is None or lease.checkpoint.is_sentinel:
            ended = lease is not None and lease.checkpoint == SHARD_END
            return start if ended else TrimHorizon()
        first = await find_first_record(self.stream, shard.stream_shard_id, start)
        is_before = first is not None and Position.from_sequence_number(first.sequence_number) <= lease.checkpoint
        return start if is_before else AtSequenceNumber(lease.checkpoint.checkpoint)

    def _show_progress(self, cursor: Cursor) -> None:
        """Print on stderr, from time to time, how far the replay is."""
        if time.monotonic() - self.shown_at < LINE_INTERVAL_S:
            return
        self.shown_at = time.monotonic()
        decided = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.totals.outcomes.items()))
        trouble = f"; {cursor.trouble}" if cursor.trouble else ""
        behind_s = max(self.lags_s.values(), default=0.0)
        print_note(
            f"{self.totals.record_count} records read ({decided or 'no outcome yet'}), {behind_s:.0f} s to go{trouble}"
        )
