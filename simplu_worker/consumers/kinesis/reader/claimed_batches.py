"""Operations in memory, and their batches to Postgres shards, each with the claim to the reader's row there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from simplu_worker.consumers.kinesis.fetch.pacing import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.holding.ownership import Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation
from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPosition, ShardPositions
from simplu_worker.consumers.pipeline.results import LaneStopError
from simplu_worker.consumers.producer_traces import traceparents_of_records
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionChangedError
from simplu_worker.telemetry.spans import TracedBatch, process_span


def cost_bytes_of(entries: Collection[QueuedOperation]) -> int:
    """Return the memory that *entries* count for."""
    return 2 * sum([entry.operation.size_bytes for entry in entries]) + OPERATION_OVERHEAD_BYTES * len(entries)


class RowBehindError(LaneStopError):
    """The reader's row on the shard is behind: the shard may lack *unread*."""

    def __init__(self, unread: Unread) -> None:
        super().__init__(f"expected the shard to have all before the reader's position, got a row behind: {unread}")
        self.unread = unread


class ClaimedBatches:
    """The batches of one reader."""

    def __init__(self, gateway: ShardGateway, ownership: Ownership, shard_positions: ShardPositions) -> None:
        self._gateway = gateway
        self._ownership = ownership
        self._shard_positions = shard_positions
        self._merging: set[str] = set()  # shards to which a tenant has moved from another one
        self._changed: set[str] = set()  # shards of which another reader, or a move, has written the row

    def expect_merge(self, shard_id: str) -> None:
        """Take the new token of the row before the next batch, after a move."""
        self._merging.add(shard_id)

    def forget(self, shard_id: str) -> None:
        """Have the row read before the next batch: nothing that is remembered counts."""
        self._shard_positions.position_on(shard_id).invalidate()

    async def send(self, shard_id: str, entries: Sequence[QueuedOperation]) -> list[Outcome]:
        """Apply *entries* to a shard. Raises `RowBehindError`, `PositionGapError`, and as `ShardGateway.apply`."""
        async with self._known_row(shard_id) as shard_position:
            if not entries:
                return []
            claim = self._shard_positions.prepare_claim(shard_position)
            with process_span(partial(_describe, shard_id, entries)) as span:
                outcomes = await self._gateway.apply(shard_id, [entry.operation for entry in entries], claim=claim)
                span.note_outcomes(outcome.disposition for outcome in outcomes)
                return outcomes

    async def write_failure(self, shard_id: str, operation: Operation) -> Outcome:
        """Write the row of an operation that is given up. Raises `RetryableError`."""
        shard_position = self._shard_positions.position_on(shard_id)
        async with shard_position.lock:
            claim = self._shard_positions.prepare_claim(shard_position)
            outcome = await self._gateway.give_up(shard_id, operation, claim=claim)
        if outcome.disposition is Disposition.HOLD:
            raise RetryableError(f"a tenant does not live on shard {shard_id} now, where its operation failed")
        return outcome

    @asynccontextmanager
    async def _known_row(self, shard_id: str) -> AsyncIterator[ShardPosition]:
        positions = self._shard_positions
        shard_position = positions.position_on(shard_id)
        async with shard_position.lock:
            if shard_id in self._merging and shard_position.is_current:
                await positions.follow_moves(shard_position)
            self._merging.discard(shard_id)
            if not shard_position.is_current:
                await self._reconcile(shard_position)
            try:
                yield shard_position
            except PositionChangedError:  # another reader or a move wrote the row, or commits are lost
                shard_position.invalidate()
                self._changed.add(shard_id)
                raise

    def is_held(self, shard_id: str) -> bool:
        """Return whether a shard has a hold that waits for it."""
        return self._ownership.is_blocked(shard_id)

    async def _reconcile(self, shard_position: ShardPosition) -> None:
        # Confirms the lease where another reader may have written the row: each would make the other read again.
        # Raises `RowBehindError`.
        if await self._shard_positions.follow_moves(shard_position):
            return
        if shard_position.shard_id in self._changed:
            await self._shard_positions.confirm_lease()
        unread = await self._shard_positions.reconcile(shard_position)
        self._changed.discard(shard_position.shard_id)
        if unread is not None:
            raise RowBehindError(unread)


def _describe(shard_id: str, entries: Sequence[QueuedOperation]) -> TracedBatch:
    origin = entries[0].operation.origin
    return TracedBatch(
        origin.source,
        origin.name,
        len(entries),
        lambda: traceparents_of_records(entry.record for entry in entries),
        shard_id,
        origin.stream_shard_id,
    )
