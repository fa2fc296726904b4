"""Keep the stream positions on idle Postgres shards fresh, and find lost ones (architecture, idea 8).

A shard that receives no operations would not notice that it lost some. So every shard is queried every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from simplu_worker.bulkheads import translate
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, PositionGapError
from simplu_worker.consumers.kinesis.recovery.shard_positions import WRITE_AFTER_S, ShardPosition
from simplu_worker.errors import InternalError, PermanentError, RetryableError, WorkerError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import StoredPositions
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event, wait_any
from simplu_worker.vocabulary import TargetKind

INTERVAL_S: Final = 10.0
MIN_PAUSE_S: Final = 0.5  # between two rounds
QUERY_TIMEOUT_S: Final = 3.0
CONCURRENT_SHARDS: Final = 4
SHARDS_PER_S: Final = 40.0


class LockedPosition(NamedTuple):
    """A row of a reader, its lock held until *lock* is closed."""

    reader: StreamShardReader
    position: ShardPosition
    lineage: Lineage
    lock: AsyncExitStack

    def must_reconcile(self, stored: StoredPositions) -> bool:
        """Return whether the row may not be as the reader left it."""
        is_known = self.position.is_current
        return not is_known or self.reader.shard_positions.must_reread(self.position, self.lineage, stored)

    async def is_lease_held(self) -> bool:
        """Have the row read; where it was known, another reader may have written it, and the lease is confirmed."""
        if not self.position.is_current:
            return True
        self.position.invalidate()
        return await self.reader.shard_positions.confirm_lease()


class PositionSync:
    """Visits the shards in rounds."""

    def __init__(
        self,
        gateway: ShardGateway,
        stream_name: str,
        readers: Callable[[], Sequence[StreamShardReader]],
    ) -> None:
        self._gateway = gateway
        self._stream_name = stream_name
        self._readers = readers
        self._slots = asyncio.Semaphore(CONCURRENT_SHARDS)
        self._to_remove: set[str] = set()
        self._is_requested = asyncio.Event()

    def request(self) -> None:
        """Have the next round begin soon: there is a new reader."""
        self._is_requested.set()

    def remove_rows(self, stream_shard_id: str) -> None:
        """Have the rows of a stream shard removed in the next round."""
        self._to_remove.add(stream_shard_id)

    async def run(self, stopping: asyncio.Event) -> None:
        """Visit all shards again and again until *stopping*."""
        while not stopping.is_set():
            self._is_requested.clear()
            to_remove, self._to_remove = sorted(self._to_remove), set()
            async with asyncio.TaskGroup() as tasks:
                for shard_id in await self._gateway.list_shard_ids():
                    await self._slots.acquire()
                    tasks.create_task(self._visit(shard_id, to_remove), name=f"position:{shard_id}")
                    if await sleep_or_event(1 / SHARDS_PER_S, until=stopping):
                        break
            ends_at = loop_time() + INTERVAL_S
            if not await sleep_or_event(min(MIN_PAUSE_S, INTERVAL_S), until=stopping):
                await wait_any(self._is_requested, stopping, within_s=max(0.0, ends_at - loop_time()))

    async def _visit(self, shard_id: str, to_remove: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                if to_remove:
                    await self._gateway.positions.forget_positions(shard_id, self._stream_name, to_remove)
            await self._sync(shard_id)
        except (RetryableError, PermanentError, TimeoutError):
            return  # logged where the shard is needed
        finally:
            self._slots.release()

    async def _sync(self, shard_id: str) -> None:
        async with AsyncExitStack() as locks:
            locked: list[LockedPosition] = []
            for reader in self._readers():
                position = reader.shard_positions.position_on(shard_id)
                # Batches in flight and backfills read and write the row themselves.
                if not reader.is_backfilling(shard_id) and not position.lock.locked():
                    lock = await locks.enter_async_context(AsyncExitStack())
                    await lock.enter_async_context(position.lock)
                    locked.append(LockedPosition(reader, position, reader.shard_positions.lineage(), lock))
            if not locked:
                return
            try:
                with translate(TargetKind.SHARD, shard_id, "positions", WorkerError, TimeoutError):
                    await self._compare(shard_id, locked)
            except InternalError:
                for one in locked:
                    one.position.invalidate()
                raise

    async def _compare(self, shard_id: str, locked: list[LockedPosition]) -> None:
        # Rows that are as their readers left them are unlocked first: the checks of the others may take seconds.
        ids = [one.reader.stream_shard_id for one in locked]
        is_first = not all(one.position.was_read for one in locked)
        async with asyncio.timeout(QUERY_TIMEOUT_S):
            stored = await self._gateway.positions.read_positions(shard_id, self._stream_name, ids, is_first=is_first)
        if stored is None:
            return
        unchanged: list[LockedPosition] = []
        changed: list[LockedPosition] = []
        for one in locked:
            (changed if one.must_reconcile(stored) else unchanged).append(one)
        await self._write_due(shard_id, unchanged)
        for one in unchanged:
            await one.lock.aclose()
        locked[:] = changed
        async with asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(one.is_lease_held(), name=f"held:{shard_id}") for one in changed]
        for one, is_held in zip(changed, held, strict=True):
            if is_held.result():
                await self._reconcile(shard_id, one, stored)
        await self._write_due(shard_id, changed)

    async def _write_due(self, shard_id: str, locked: Sequence[LockedPosition]) -> None:
        due = [one for one in locked if one.reader.shard_positions.is_write_due(one.position)]
        if due:
            claims = [one.reader.shard_positions.prepare_claim(one.position) for one in due]
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                refused = await self._gateway.positions.write_positions(shard_id, claims)
            for one in due:
                one.position.rewrite_after_s = WRITE_AFTER_S
                if one.position.claim in refused:
                    one.position.invalidate()

    async def _reconcile(self, shard_id: str, locked: LockedPosition, stored: StoredPositions) -> None:
        # Where the reader has a lane to the shard, the lane does so before its next batch.
        reader, position, lineage, _ = locked
        if reader.request_row_read(shard_id):
            return
        former, positions = position.state, reader.shard_positions
        try:
            if await positions.follow_moves(position):
                return
            if lineage.stream_shard_ids:
                unread = await positions.reconcile(position)
            else:
                unread = await positions.reconcile_with(position, lineage, stored)
        except PositionGapError:
            return  # logged when it was found; a lane that is opened finds it too
        if reader.request_row_read(shard_id):  # the lane was opened in between
            position.forget_row(former)
        elif unread is not None:
            reader.start_backfill(shard_id, unread)
