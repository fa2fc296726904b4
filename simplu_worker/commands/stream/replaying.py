"""`replay`, which reads the stream again and applies what no log has."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter
from typing import Final

from simplu_worker.assembly.aws import open_leases, open_stream
from simplu_worker.assembly.shards import open_shards
from simplu_worker.assembly.worker import reader_settings
from simplu_worker.aws.sending import RequestBounds, cut
from simplu_worker.commands.output import Answer, ProgressLine, Table
from simplu_worker.commands.running import require_settings
from simplu_worker.commands.stream import replay_rules
from simplu_worker.commands.stream.send import find_operations
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.fetch.record_decoder import RecordDecoder
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderSettings
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamGoneError, StreamShard
from simplu_worker.consumers.pipeline.lane import BATCH_MAX_BYTES, BATCH_MAX_COUNT
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Disposition, Operation
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import utc_now
from simplu_worker.timing.waits import retry
from simplu_worker.vocabulary import Absence, DeadLetterReason, HoldReason, StreamReader

BATCHES: Final = RequestBounds(BATCH_MAX_COUNT, BATCH_MAX_BYTES)


class ReplaySink:
    """Takes the operations of a stream shard, in order, and counts their outcomes; with *apply* it applies them."""

    def __init__(
        self, gateway: ShardGateway, totals: replay_rules.ReplayTotals, *, tenant_wait: timedelta, apply: bool
    ) -> None:
        self._gateway = gateway
        self._totals = totals
        self._tenant_wait = tenant_wait
        self._applies = apply

    async def send(self, operations: Sequence[Operation]) -> None:
        """Send *operations*; return once each is decided, or left. Raises nothing."""
        if not self._applies:
            await self._look_up(operations)
            return
        for shard_id, own in (await self._group_by_shard(operations)).items():
            for batch in cut(own, BATCHES, key_of=lambda _: None, size_of=attrgetter("size_bytes")):
                await self._apply(shard_id, batch)

    async def _look_up(self, operations: Sequence[Operation]) -> None:
        keys = {(operation.tenant_id, operation.request_id) for operation in operations}
        found = await find_operations(self._gateway, keys)
        missing: list[Operation] = []
        for operation in operations:
            row = found.rows.get((operation.tenant_id, operation.request_id))
            if row is None:
                missing.append(operation)
            else:
                self._totals.count_logged(operation, row)
        for shard_id, own in (await self._group_by_shard(missing)).items():
            if found.error is not None or shard_id in found.silent_shard_ids:
                self._totals.leave(own, found.error or f"shard {shard_id} does not answer")
            else:
                self._totals.outcomes[replay_rules.WOULD_APPLY] += len(own)

    async def _group_by_shard(self, operations: Sequence[Operation]) -> dict[str, list[Operation]]:
        by_tenant: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            by_tenant[operation.tenant_id].append(operation)
        by_shard: defaultdict[str, list[Operation]] = defaultdict(list)
        for tenant_id, own in by_tenant.items():
            if self._totals.has_left(tenant_id):
                self._totals.leave(own, "")
            elif (shard_id := await self._find(tenant_id, own)) is not None:
                by_shard[shard_id] += own
        return by_shard

    async def _find(self, tenant_id: str, operations: Sequence[Operation]) -> str | None:
        try:
            found = await retry(self._gateway.find, tenant_id)
        except (RetryableError, PermanentError) as exc:
            self._totals.leave(operations, str(exc))
            return None
        if not isinstance(found, Absence):
            if not self._gateway.paused_s(tenant_id):
                return found
            self._totals.leave(operations, HoldReason.PAUSED)
            return None
        now = utc_now()
        for operation in operations:
            arrived_at = operation.origin.arrived_at
            if replay_rules.became_dead_letter(found, arrived_at, tenant_wait=self._tenant_wait, now=now):
                self._totals.count_dead_letter(DeadLetterReason.UNKNOWN_TENANT)
            else:
                self._totals.leave([operation], found)
        return None

    async def _apply(self, shard_id: str, operations: Sequence[Operation]) -> None:
        while operations:
            operations = await self._apply_within_limits(shard_id, operations)

    async def _apply_within_limits(self, shard_id: str, operations: Sequence[Operation]) -> list[Operation]:
        """Apply *operations*; return those beyond a limit, once it may allow some of them."""
        batch = [one for one in operations if not self._totals.has_left(one.tenant_id)]
        self._totals.left_count += len(operations) - len(batch)
        if not batch:
            return []
        try:
            outcomes = await retry(self._gateway.apply, shard_id, batch)
        except RetryableError as exc:
            self._totals.leave(batch, str(exc))
            return []
        beyond: list[Operation] = []
        for operation, outcome in zip(batch, outcomes, strict=True):
            match outcome.disposition:
                case Disposition.FAILING:
                    self._totals.leave([operation], outcome.error or "it fails on its shard")
                case Disposition.LOCKED if outcome.over_limit_s is not None:
                    beyond.append(operation)
                case Disposition.LOCKED:
                    left = f"another transaction keeps rows of the tenant locked on shard {shard_id}"
                    self._totals.leave([operation], left)
                case Disposition.HOLD:
                    if await self._find(operation.tenant_id, [operation]) is not None:
                        left = f"it is not on shard {shard_id} any more; run the command again"
                        self._totals.leave([operation], left)
                case _:
                    self._totals.count(outcome)
        await asyncio.sleep(max([one.over_limit_s or 0.0 for one in outcomes]))
        return beyond


async def replay(settings: Settings, chosen: replay_rules.ReplayRange, *, apply: bool) -> Answer:
    """Read every stream shard from the start of *chosen* to its end, parents before their children.

    Needs no lease and moves no checkpoint. It is safe beside workers, as it starts no later than their first pending
    operation: none is applied before an earlier one of its key (architecture, idea 2). It fails if something was left.
    """
    require_settings(settings, routes=True, stream=True)
    totals = replay_rules.ReplayTotals()
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(open_shards(settings))
        stream = await stack.enter_async_context(open_stream(settings))
        table, _ = await stack.enter_async_context(open_leases(settings))
        rules = reader_settings(settings)
        sink = ReplaySink(shards.gateway, totals, tenant_wait=rules.retries.tenant_wait, apply=apply)
        leases = {lease.lease_key: lease for lease in await table.scan()}
        oldest = utc_now() - (await stream.describe()).retention
        if chosen.start < oldest:
            totals.left[f"records before {oldest.isoformat(timespec='seconds')}"] = "the stream keeps no older ones"
        memory = PrefetchMemory(settings.prefetch_max_bytes)
        progress = stack.enter_context(ProgressLine("no record read yet"))
        stream_replay = _StreamReplay(stream, sink, rules, memory, chosen, leases, totals, progress)
        for generation in replay_rules.generations(await stream.list_stream_shards()):
            if stream_replay.has_failed:
                break  # operations of the children must not come before those of their parents
            await stream_replay.read(generation)
    rows = sorted(totals.outcomes.items())
    rows += [(f"no operation: {reason}", count) for reason, count in sorted(totals.dead_letters.items())]
    rows += [("left", totals.left_count)] if totals.left else []
    parts = [
        Table(("outcome of the records", "count"), rows),
        None if apply else "nothing was applied; with --apply the operations that would_apply are",
        *(f"{target}: left: {reason}" for target, reason in sorted(totals.left.items())),
    ]
    members = {
        "applied": apply,
        "records": totals.record_count,
        "outcomes": totals.outcomes,
        "deadLetters": totals.dead_letters,
        "leftOperations": totals.left_count,
        "left": totals.left,
        "leftWaiting": len(totals.left),
    }
    return Answer(members, parts, is_failed=bool(totals.left))


@dataclass
class _StreamReplay:
    stream: Stream
    sink: ReplaySink
    rules: ReaderSettings
    memory: PrefetchMemory
    chosen: replay_rules.ReplayRange
    leases: Mapping[str, Lease]
    totals: replay_rules.ReplayTotals
    progress: ProgressLine
    has_failed: bool = False  # a stream shard could not be read

    async def read(self, generation: Sequence[StreamShard]) -> None:
        """Read these stream shards concurrently, each to its tip, its end, or the end of the range."""
        async with asyncio.TaskGroup() as tasks:
            for shard in generation:
                tasks.create_task(self._read(shard), name=f"replay:{shard.stream_shard_id}")

    async def _read(self, shard: StreamShard) -> None:
        quota = self.memory.open_quota()
        decoder = RecordDecoder(
            self.stream.name,
            shard.stream_shard_id,
            operation_max_bytes=self.rules.operation_max_bytes,
            list_result_limit=self.rules.list_result_limit,
            hash_range=shard.hash_range,
        )
        access = StreamShardAccess(self.stream, decoder, quota, random.random)
        try:
            start = await self._find_start(shard, access)
            cursor = Cursor(access, start, kind=StreamReader.MAIN)
            while not await self._read_reply(cursor, decoder):
                self._show_progress(cursor)
            cursor.release_memory()
        except StreamGoneError:
            return  # past its retention
        except (RetryableError, PermanentError) as exc:
            self.has_failed = True
            self.totals.left[f"stream shard {shard.stream_shard_id}"] = str(exc)
        finally:
            quota.close()

    async def _read_reply(self, cursor: Cursor, decoder: RecordDecoder) -> bool:
        reply = await cursor.read(asyncio.Event())
        if reply is None:
            if cursor.refusal is not None and not cursor.is_gone:
                raise PermanentError(cursor.refusal)
            return cursor.is_gone
        self.totals.record_count += len(reply.records)
        selection = replay_rules.select(decoder.decode(reply.records), self.chosen)
        self.totals.count_rejected(selection.rejected)
        await self.sink.send(selection.operations)
        return selection.is_last or cursor.is_at_end or cursor.millis_behind == 0

    async def _find_start(self, shard: StreamShard, access: StreamShardAccess) -> positions.Start:
        """Return the earlier of the requested time and the checkpoint, from which operations may be pending."""
        start = positions.AtTimestamp(self.chosen.start)
        lease = self.leases.get(shard.stream_shard_id)
        if lease is None or lease.checkpoint.is_sentinel:
            ended = lease is not None and lease.checkpoint == positions.SHARD_END
            return start if ended else positions.TrimHorizon()
        first = await retry(access.find_first, shard.stream_shard_id, start)
        is_before = (
            first is not None and positions.Position.from_sequence_number(first.sequence_number) <= lease.checkpoint
        )
        return start if is_before else positions.AtSequenceNumber(lease.checkpoint.checkpoint)

    def _show_progress(self, cursor: Cursor) -> None:
        decided = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.totals.outcomes.items()))
        text = f"{self.totals.record_count} records read ({decided or 'no outcome yet'})"
        trouble = f"; {cursor.trouble}" if cursor.trouble else ""
        self.progress.tell(f"{text}, {(cursor.millis_behind or 0) / 1000:.0f} s to go{trouble}")
