"""The rows of one reader on the Postgres shards: read, compared with the reader, and written with its batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Final, TypeAlias

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX, ParentRecords, Unread
from simplu_worker.consumers.kinesis.recovery import recovery_plan
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderProgress
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    TRIM_HORIZON,
    AtTimestamp,
    RecordPosition,
    TrimHorizon,
    is_after,
)
from simplu_worker.consumers.pipeline.results import LaneStopError
from simplu_worker.consumers.producer_traces import traceparents_of_records
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import (
    PositionChangedError,
    PositionClaim,
    PositionMerge,
    StoredPositions,
    StreamPosition,
)
from simplu_worker.telemetry.spans import TracedBatch, process_span
from simplu_worker.timing.clock import UtcClock, loop_time

WRITE_AFTER_S: Final = 30.0  # without a write, while the reader went on
WRITE_AFTER_BATCH_S: Final = 1.0  # the same, if the last write was before a batch: for those who ask what is decided
FINAL_WRITE_S: Final = 0.5  # of the last progress, for all Postgres shards together
IDLE_WRITE_AFTER_S: Final = 3600.0  # without a write, in any case: an older row is from a backup (`recovery_plan.py`)
OLDEST_MAX_AGE_S: Final = 10.0
OLDEST_LOOKS: Final = 3
AHEAD_MAX_AGE_S: Final = 1.0
CLOCKS_APART_MOST: Final = timedelta(hours=1)
FOLLOW_WITHIN_S: Final = 0.5  # the tenants of the target wait; to read a little again takes about as long
WRITTEN_TOKENS_KEPT: Final = 64  # of a row: more than a busy reader writes while a tenant is fenced
MOVED_MARGIN_S: Final = 10.0  # between readings of different clocks

log = structlog.get_logger(__name__)


Ahead: TypeAlias = tuple[str, tuple[str, ...]]
"""`read_to` and `held` of a row."""

Reach: TypeAlias = tuple[Ahead | None, datetime | None]
"""Those of a row that has them, and `read_up_to`."""


class RowState(Enum):
    """What a reader knows of its row on a Postgres shard."""

    UNREAD = auto()
    PROVISIONAL = auto()  # known, but read while operations were pending at the parents
    SETTLED = auto()  # known, and read when none was, or it has `parents_done`
    STALE = auto()  # to be read again


MAY_FOLLOW: Final = {
    RowState.UNREAD: {RowState.PROVISIONAL, RowState.SETTLED},
    RowState.PROVISIONAL: {RowState.STALE, RowState.UNREAD},
    RowState.SETTLED: {RowState.STALE, RowState.UNREAD, RowState.SETTLED},
    RowState.STALE: {RowState.PROVISIONAL, RowState.SETTLED},
}


class ShardPosition:
    """The row on one Postgres shard. Hold *lock* to write it, or to decide about it."""

    def __init__(self, shard_id: str, claim: PositionClaim) -> None:
        self.shard_id = shard_id
        self.claim = claim
        self.lock = asyncio.Lock()
        self.state = RowState.UNREAD
        self.written_at = 0.0  # monotonic
        self.rewrite_after_s = 0.0  # since then, if it would have another content
        self.gap: recovery_plan.Gap | None = None  # nothing is written while a person has not accepted it
        self.era = 0  # `ShardPositions.era`, as of the first of the tokens in `claim.written`
        self.is_merging = False  # a tenant has moved to the shard from another one
        self.is_changed = False  # another reader, or a move, has written the row

    def __repr__(self) -> str:
        return f"ShardPosition({self.shard_id}, {self.state.name.lower()}, {self.claim.position})"

    @property
    def is_current(self) -> bool:
        """Whether the row is known, and what it lacks is being read again."""
        return self.state in {RowState.PROVISIONAL, RowState.SETTLED}

    @property
    def was_read(self) -> bool:
        """Whether the row was adopted at least once."""
        return self.state is not RowState.UNREAD

    def enter(self, state: RowState) -> None:
        """Change the state. Raises ValueError where *state* may not follow."""
        if state not in MAY_FOLLOW[self.state]:
            raise ValueError(f"{self}: expected a state that may follow, got {state.name}")
        self.state = state

    def invalidate(self) -> None:
        """Have the row read again before the next batch."""
        if self.is_current:
            self.enter(RowState.STALE)

    def adopt(self, row: StreamPosition | None, move_token: str | None, *, are_parents_settled: bool) -> None:
        """Go on from the row that the shard has; None where it has none."""
        self.claim.fencing_tokens = [] if row is None else [row.fencing_token]
        self.claim.move_token = move_token
        are_done = row is not None and row.parents_done
        self.claim.position = msgspec.structs.replace(self.claim.position, parents_done=are_done)
        self.enter(RowState.SETTLED if are_parents_settled or are_done else RowState.PROVISIONAL)
        self.gap = None

    def forget_row(self, former: RowState) -> None:
        """Go back to the state before the row was adopted."""
        self.enter(former)
        self.claim.fencing_tokens = []


class RowBehindError(LaneStopError):
    """The reader's row on the shard is behind: the shard may lack *unread*."""

    def __init__(self, unread: Unread) -> None:
        super().__init__(f"expected the shard to have all before the reader's position, got a row behind: {unread}")
        self.unread = unread


class ShardPositions:
    """The rows of one reader on all Postgres shards."""

    def __init__(
        self,
        gateway: ShardGateway,
        progress: ReaderProgress,
        access: StreamShardAccess,
        *,
        tenant_wait: timedelta,
        utc: UtcClock,
    ) -> None:
        self._gateway = gateway
        self._ownership = progress.ownership
        self._progress = progress
        self._access = access
        self._tenant_wait = tenant_wait
        self._utc = utc
        self._positions: dict[str, ShardPosition] = {}
        self._began_at = loop_time()
        self._reach: tuple[float, Reach] = (0.0, (None, None))  # and until when it is good
        self._era = 0  # changes when a row is adopted
        self._highest = progress.checkpoint_at_start  # the highest position that the lease may have as its checkpoint
        self._oldest: dict[str, tuple[float, RecordPosition | None]] = {}  # by stream shard, and until when it is good

    async def send(self, shard_id: str, entries: Sequence[QueuedOperation]) -> list[Outcome]:
        """Apply *entries* to a shard. Raises `RowBehindError`, `PositionGapError`, and as `ShardGateway.apply`."""
        shard_position = self.position_on(shard_id)
        async with shard_position.lock:
            await self._make_current(shard_position)
            if not entries:
                return []
            claim = self.prepare_claim(shard_position)
            try:
                with process_span(partial(_describe, shard_id, entries)) as span:
                    outcomes = await self._gateway.apply(shard_id, [entry.operation for entry in entries], claim=claim)
                    span.note_outcomes(outcome.disposition for outcome in outcomes)
                    return outcomes
            except PositionChangedError:  # another reader or a move wrote the row, or commits are lost
                shard_position.invalidate()
                shard_position.is_changed = True
                raise

    async def write_failure(self, shard_id: str, operation: Operation) -> Outcome:
        """Write the row of an operation that is given up. Raises `RetryableError`."""
        shard_position = self.position_on(shard_id)
        async with shard_position.lock:
            claim = self.prepare_claim(shard_position)
            outcome = await self._gateway.give_up(shard_id, operation, claim=claim)
        if outcome.disposition is Disposition.HOLD:
            raise RetryableError(f"a tenant does not live on shard {shard_id} now, where its operation failed")
        return outcome

    async def _make_current(self, shard_position: ShardPosition) -> None:
        # Confirms the lease where another reader may have written the row: each would make the other read again.
        if shard_position.is_merging and shard_position.is_current:
            await self.follow_moves(shard_position)
        shard_position.is_merging = False
        if shard_position.is_current or await self.follow_moves(shard_position):
            return
        if shard_position.is_changed:
            await self.confirm_lease()
        unread = await self.reconcile(shard_position)
        shard_position.is_changed = False
        if unread is not None:
            raise RowBehindError(unread)

    def position_on(self, shard_id: str) -> ShardPosition:
        """Return the position on a Postgres shard."""
        shard_position = self._positions.get(shard_id)
        if shard_position is None:
            claim = PositionClaim(self._progress.stream_name, self._progress.stream_shard_id)
            shard_position = self._positions[shard_id] = ShardPosition(shard_id, claim)
        return shard_position

    def prepare_claim(self, shard_position: ShardPosition) -> PositionClaim:
        """Return the claim for the next write of the row: where the reader is before that write."""
        claim = shard_position.claim
        claim.position = self._position_now(shard_position)
        claim.as_of = self._utc()
        # While the shard has a hold, a tenant that it lacks operations of may leave before it is read again.
        if shard_position.era != self._era or self._ownership.shard_hold(shard_position.shard_id) is not None:
            claim.written = deque(maxlen=WRITTEN_TOKENS_KEPT)  # a write in flight adds its token to the old ones
            shard_position.era = self._era
        shard_position.written_at, shard_position.rewrite_after_s = loop_time(), WRITE_AFTER_BATCH_S
        return claim

    def is_write_due(self, shard_position: ShardPosition, *, after_s: float | None = None) -> bool:
        """Return whether a known row was not written for *after_s*, and would change or is old."""
        age_s = loop_time() - shard_position.written_at
        if not shard_position.is_current or age_s < (shard_position.rewrite_after_s if after_s is None else after_s):
            return False
        if age_s >= IDLE_WRITE_AFTER_S:
            return True
        written = shard_position.claim.position  # the time alone passes on an idle stream too, and needs no write
        return written != msgspec.structs.replace(self._position_now(shard_position), read_up_to=written.read_up_to)

    def _position_now(self, shard_position: ShardPosition) -> StreamPosition:
        progress = self._progress.row()
        self._note_highest()
        ahead, read_up_to = self._recent_reach()
        if progress.pending_from == SHARD_END.checkpoint:
            ahead = None
        read_to, held = (None, ()) if ahead is None else ahead
        # What the shard lacked of the parents is applied once no record of a parent is pending here.
        are_parents_done = shard_position.claim.position.parents_done or (
            shard_position.state is RowState.SETTLED and not self._ownership.has_pending_parents
        )
        return msgspec.structs.replace(
            progress, read_to=read_to, held=held, parents_done=are_parents_done, read_up_to=read_up_to
        )

    async def write_final_positions(self) -> None:
        """Write the final progress to the shards that answer at once, and whose row is not locked."""
        self._reach = (0.0, (None, None))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINAL_WRITE_S), asyncio.TaskGroup() as tasks:
                for one in self._positions.values():
                    is_free = self._gateway.is_up(one.shard_id) and not one.lock.locked()
                    if is_free and self.is_write_due(one, after_s=0.0):
                        tasks.create_task(self._write_final(one), name=f"final-position:{one.shard_id}")

    async def _write_final(self, shard_position: ShardPosition) -> None:
        async with shard_position.lock:
            if shard_position.is_current:
                with contextlib.suppress(RetryableError):
                    claims = [self.prepare_claim(shard_position)]
                    if await self._gateway.positions.write_positions(shard_position.shard_id, claims):
                        shard_position.invalidate()

    async def confirm_lease(self) -> bool:
        """Return whether the reader still has the lease, as far as the lease table answers."""
        return await self._progress.lease.confirm()

    async def reconcile(self, shard_position: ShardPosition) -> Unread | None:
        """Read the row; return the records to be read again for all tenants of the shard, if any.

        Must be called with the lock. Raises `RetryableError` while that is unknown, and `PositionGapError` where the
        stream no longer has some of them and no person has accepted that.
        """
        claim, lineage = shard_position.claim, self.lineage()  # the lineage before the rows are read
        shard_id, is_first = shard_position.shard_id, not shard_position.was_read
        older = lineage.stream_shard_ids
        if lineage.ancestors:
            stored = await self._gateway.positions.fence_and_read_positions(shard_id, claim, older, is_first=is_first)
        else:
            stored = await self._gateway.positions.read_positions(
                shard_id, claim.stream, [claim.stream_shard_id, *older], is_first=is_first
            )
        if stored is None:
            raise RetryableError(f"shard {shard_position.shard_id}: it has no schema yet")
        return await self.reconcile_with(shard_position, lineage, stored)

    async def follow_moves(self, shard_position: ShardPosition) -> bool:
        """Take the token that moves to the shard have left, if neither side lost anything; return that.

        Must be called with the lock. Raises `RetryableError`.
        """
        claim, shard_id = shard_position.claim, shard_position.shard_id
        if not claim.fencing_tokens or not self._is_whole(shard_position):
            return False
        stored, noted = await asyncio.gather(
            self._gateway.positions.read_positions(shard_id, claim.stream, [claim.stream_shard_id]),
            self._gateway.positions.read_merges(shard_id, claim.stream, claim.stream_shard_id),
        )
        row = None if stored is None else stored.rows.get(claim.stream_shard_id)
        if row is None or row.fencing_token in claim.fencing_tokens:
            return False
        merges = recovery_plan.merges_since(row.fencing_token, claim.fencing_tokens, noted)
        try:
            async with asyncio.timeout(FOLLOW_WITHIN_S):
                if not merges or not all([await self._has_all_from(merge) for merge in merges]):
                    return False
        except (RetryableError, TimeoutError):  # of a source
            return False
        if not self._is_whole(shard_position):
            return False
        claim.fencing_tokens = [row.fencing_token]
        shard_position.enter(RowState.SETTLED)
        log.info(
            "position.followed",
            shard_id=shard_id,
            stream_shard_id=self._progress.stream_shard_id,
            source_shard_ids=[merge.source_shard_id for merge in merges],
        )
        return True

    async def _has_all_from(self, merge: PositionMerge) -> bool:
        source, era = self.position_on(merge.source_shard_id), self._era
        claim = source.claim
        written_before, known = {*claim.written}, {*claim.fencing_tokens}
        if merge.carried_token not in written_before or source.era != era:
            return False
        stored = await self._gateway.positions.read_positions(source.shard_id, claim.stream, [claim.stream_shard_id])
        row = None if stored is None else stored.rows.get(claim.stream_shard_id)
        known |= {*claim.fencing_tokens} | ({*claim.written} - written_before)  # batches go on beside the read
        is_known = row is not None and row.fencing_token in known
        return is_known and source.is_current and self._is_whole(source) and self._era == era

    def _is_whole(self, shard_position: ShardPosition) -> bool:
        is_held = self._ownership.shard_hold(shard_position.shard_id) is not None
        return shard_position.was_read and shard_position.claim.position.parents_done and not is_held

    def lineage(self) -> recovery_plan.Lineage:
        """Return the ancestors of the stream shard."""
        return self._progress.lease.lineage()

    def must_reread(
        self, shard_position: ShardPosition, lineage: recovery_plan.Lineage, stored: StoredPositions
    ) -> bool:
        """Return whether a row has another token, or the parents have ended since."""
        if not recovery_plan.is_own_row(
            stored.rows.get(self._progress.stream_shard_id), shard_position.claim.fencing_tokens
        ):
            return True
        return shard_position.state is RowState.PROVISIONAL and self._are_parents_settled(lineage)

    def _are_parents_settled(self, lineage: recovery_plan.Lineage) -> bool:
        return lineage.is_ended and self._ownership.parents_hold is None

    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: recovery_plan.Lineage, stored: StoredPositions
    ) -> Unread | None:
        """Do what `reconcile` does, with rows that were just read."""
        row, reader = stored.rows.get(self._progress.stream_shard_id), self._progress
        # A tenant that was moved to the shard since the start may lack operations that its last shard has.
        is_plain_start = not shard_position.was_read and not self._was_tenant_moved_in(stored)
        read_to = reader.began_behind if is_plain_start else reader.read_to
        after: RecordPosition | None = None
        start: recovery_plan.ReplayStart = None
        if read_to is not None and recovery_plan.may_lack_writes(row, stored, shard_position.claim.fencing_tokens):
            start = self._find_replay_start(shard_position, stored)
            after = await self._resolve_replay_start(start, read_to)
        # After the beginning, where a row may be, there may be no record any more.
        behind = start if row is not None and isinstance(start, datetime) else after
        if (gap := await self._find_gap(shard_position, lineage, stored, behind)) is not None:
            await self._keep_gap(shard_position, gap, stored.rows[gap.stream_shard_id])
            raise recovery_plan.PositionGapError(gap)
        if read_to is not None and isinstance(start, RecordPosition):  # the holds may have changed during the wait
            after = await self._resolve_replay_start(self._find_replay_start(shard_position, stored), read_to)
        # Parents may have released tenants during the wait. From here on nothing is awaited.
        parents: tuple[ParentRecords, ...] = ()
        if row is None or not row.parents_done:
            rest = recovery_plan.ignoring_pending(stored, self._ownership.are_waiting_for_parents)
            parents = recovery_plan.missing_parent_records(lineage, rest, tenant_wait=self._tenant_wait)
        self._era += 1
        shard_position.adopt(row, stored.move_token, are_parents_settled=self._are_parents_settled(lineage))
        if after is None and not parents:
            return None
        unread = Unread(after or read_to, parents)
        self._reach = (0.0, (None, None))
        instruments.SHARD_BACKFILLS.labels(shard_position.shard_id).inc()
        log.info(
            "shard.backfilling",
            shard_id=shard_position.shard_id,
            stream_shard_id=reader.stream_shard_id,
            pending_since=_arrival(unread.after),
            read_until=_arrival(read_to),
            parents=[records.stream_shard_id for records in parents],
        )
        return unread

    def _find_replay_start(self, shard_position: ShardPosition, stored: StoredPositions) -> recovery_plan.ReplayStart:
        return recovery_plan.replay_start(
            stored.rows.get(self._progress.stream_shard_id),
            stored.first_tenant_at,
            tenant_wait=self._tenant_wait,
            started_at=self._progress.started_at,
            covers=partial(self._covers, was_read=shard_position.was_read),
            now=self._utc(),
        )

    async def _find_gap(
        self,
        shard_position: ShardPosition,
        lineage: recovery_plan.Lineage,
        stored: StoredPositions,
        behind: recovery_plan.ReplayStart,
    ) -> recovery_plan.Gap | None:
        # The stream is asked only about rows older than its records.
        self._note_highest()
        own, was_read = self._progress.stream_shard_id, shard_position.was_read
        row = stored.rows.get(own)
        is_old = partial(recovery_plan.is_older_than_stream, now=self._utc(), retention=self._progress.retention)
        if row is not None and (row.has_open_gap or await self._has_own_left(row, behind, is_old, was_read=was_read)):
            return recovery_plan.Gap(own, row.pending_from)
        for key, row in recovery_plan.rows_of_ancestors_behind(lineage, stored, own, is_old=is_old):
            if row.has_open_gap or await self._has_ancestor_left(key, row, lineage, was_read=was_read):
                return recovery_plan.Gap(key, row.pending_from)
        return None

    async def _has_own_left(
        self,
        row: StreamPosition,
        behind: recovery_plan.ReplayStart,
        is_old: Callable[[StreamPosition], bool],
        *,
        was_read: bool,
    ) -> bool:
        # At the first contact the last owner's positions count, whatever this reader has read since.
        checkpoint = self._highest if was_read else self._progress.checkpoint_at_start
        if behind is None or row.has_gap or not is_old(row) or not recovery_plan.went_back(row, behind, checkpoint):
            return False
        oldest = await self._find_oldest(self._progress.stream_shard_id)
        return recovery_plan.has_left_stream(behind, oldest) and (was_read or self._has_read_on(oldest))

    async def _has_ancestor_left(
        self, key: str, row: StreamPosition, lineage: recovery_plan.Lineage, *, was_read: bool
    ) -> bool:
        oldest = await self._find_oldest(key) if key in lineage.ancestors else None
        if row.pending_from != TRIM_HORIZON.checkpoint:
            position = recovery_plan.parse_position(row.pending_from, self._utc())
            if not recovery_plan.has_left_stream(position, oldest):
                return False
        if was_read or oldest is not None:
            return True
        return self._has_read_on(await self._find_oldest(self._progress.stream_shard_id))

    def _has_read_on(self, oldest: RecordPosition | None) -> bool:
        # Whether the stream has the record to which earlier owners have read.
        read_to = self._progress.began_behind
        return read_to is not None and not recovery_plan.has_left_stream(read_to, oldest)

    async def _keep_gap(self, shard_position: ShardPosition, gap: recovery_plan.Gap, row: StreamPosition) -> None:
        if not row.has_gap:
            await self._mark_gap(shard_position.shard_id, gap)
        is_known, shard_position.gap = shard_position.gap == gap, gap
        if not is_known:
            oldest = await self._find_oldest(gap.stream_shard_id)
            log.error(
                "shard.gap_found",
                shard_id=shard_position.shard_id,
                stream_shard_id=self._progress.stream_shard_id,
                gap_in=gap.stream_shard_id,
                pending_from=gap.pending_from,
                oldest=oldest and oldest.sequence_number,
                written_at=None if row.written_at is None else row.written_at.isoformat(timespec="seconds"),
            )

    async def _mark_gap(self, shard_id: str, gap: recovery_plan.Gap) -> None:
        await self._gateway.positions.mark_gap(
            shard_id, self._progress.stream_name, gap.stream_shard_id, gap.pending_from
        )

    async def has_open_gap(self, shard_id: str) -> bool:
        """Return whether a gap is still there and not accepted. Raises `RetryableError`.

        A mark that a failover has lost is made again.
        """
        shard_position = self.position_on(shard_id)
        if (gap := shard_position.gap) is None:
            return False
        stored = await self._gateway.positions.read_positions(
            shard_id, self._progress.stream_name, [gap.stream_shard_id]
        )
        row = None if stored is None else stored.rows.get(gap.stream_shard_id)
        if row is not None and row.pending_from == gap.pending_from and not row.is_gap_accepted:
            if not row.has_gap:
                await self._mark_gap(shard_id, gap)
            return True
        log.info("shard.gap_ended", shard_id=shard_id, stream_shard_id=self._progress.stream_shard_id)
        shard_position.gap = None
        return False

    async def _find_oldest(self, stream_shard_id: str) -> RecordPosition | None:
        good_until, oldest = self._oldest.get(stream_shard_id, (0.0, None))
        if loop_time() >= good_until:
            looks = OLDEST_LOOKS  # a reply may look like the end by mistake: the absence has to show several times
            while (oldest := await self._access.find_first(stream_shard_id, TrimHorizon())) is None and looks > 1:
                looks -= 1
            self._oldest[stream_shard_id] = loop_time() + OLDEST_MAX_AGE_S, oldest
        return oldest

    def _note_highest(self) -> None:
        position = self._progress.safe_position
        if _is_after(position, self._highest):
            self._highest = position

    def _was_tenant_moved_in(self, stored: StoredPositions) -> bool:
        return (
            stored.last_move_age_s is not None
            and stored.last_move_age_s < loop_time() - self._began_at + MOVED_MARGIN_S
        )

    def _covers(self, names: AbstractSet[str], pending_from: RecordPosition | None, *, was_read: bool) -> bool:
        # For the tenants that it holds and, before it has sent anything to the shard, those held at its start.
        began_lower = not _is_after(self._progress.checkpoint_at_start, pending_from)
        if not was_read and began_lower and names <= self._progress.predecessor_tenants:
            return True
        owners = [self._ownership.owner_of(name) for name in names]
        return all(owner is not None and not _is_after(owner.reached, pending_from) for owner in owners)

    async def _resolve_replay_start(
        self, start: recovery_plan.ReplayStart, read_to: RecordPosition
    ) -> RecordPosition | None:
        if isinstance(start, datetime):
            # The time of a position taken over is that of this replica's clock: the arrival of its record is unknown.
            if read_to.arrived_at < start - CLOCKS_APART_MOST:
                return None
            start = await self._access.find_first(self._progress.stream_shard_id, AtTimestamp(start))
        return start if start is not None and is_after(read_to, start) else None

    def invalidate_parent_rows(self) -> list[ShardPosition]:
        """Have all rows without `parents_done` read again; return their positions."""
        invalidated = [
            one for one in self._positions.values() if one.is_current and not one.claim.position.parents_done
        ]
        for shard_position in invalidated:
            shard_position.invalidate()
        return invalidated

    def _recent_reach(self) -> Reach:
        if any(hold.is_backfill for hold in self._ownership.holds()):
            return None, None  # not all of its tenants are known by name
        good_until, reach = self._reach
        if loop_time() >= good_until:
            ahead = self._progress.row_ahead()
            if ahead is not None and not all(entry.startswith(NAME_PREFIX) for entry in ahead[1]):
                ahead = None
            reach = ahead, self._progress.read_up_to(None if ahead is None else self._progress.ahead)
            self._reach = loop_time() + AHEAD_MAX_AGE_S, reach
        return reach


def _is_after(position: RecordPosition | None, other: RecordPosition | None) -> bool:
    return position is not None and is_after(position, other)


def _arrival(position: RecordPosition | None) -> str | None:
    return None if position is None else position.arrived_at.isoformat(timespec="seconds")


def cost_bytes_of(entries: Collection[QueuedOperation]) -> int:
    """Return the memory that *entries* count for."""
    return 2 * sum([entry.operation.size_bytes for entry in entries]) + OPERATION_OVERHEAD_BYTES * len(entries)


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
