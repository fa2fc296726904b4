"""Take leases up to this replica's share, run the holder of each, and compare them with the listing of the stream.

The stream positions on idle Postgres shards are kept fresh, and lost ones found (architecture, idea 8): a shard that
receives no operations would not notice that it lost some. So every shard is queried every few seconds.

A stream shard that a listing lacks is past its retention, or new. Only its own answer tells (as for the KCL).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import FailureCount, contain, translate
from simplu_worker.consumers.kinesis.fleet.fleet_report import is_start_unknown, pinned_start
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseAncestry, LeaseHolder
from simplu_worker.consumers.kinesis.leases.balancing import Reach, plan_takes
from simplu_worker.consumers.kinesis.leases.lease import Lease, StreamView, assigned_leases, unfinished_hand_overs
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import removable_leases
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, PositionGapError
from simplu_worker.consumers.kinesis.recovery.shard_positions import WRITE_AFTER_S, ShardPosition, ShardPositions
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.errors import InternalError, PermanentError, RetryableError, WorkerError
from simplu_worker.instruments import KINESIS_EXPIRED
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import StoredPositions
from simplu_worker.timing.clock import UtcClock, loop_time
from simplu_worker.timing.waits import sleep_or_event, wait_any
from simplu_worker.vocabulary import LeaseState, LeaseTake, StreamShardState, TargetKind

CONCURRENT_TAKES: Final = 10  # connections of the client
OVERDUE_DURATIONS: Final = 2.0  # of a lease, without a renewal: nobody took it either when it expired

log = structlog.get_logger(__name__)


class _Take(Protocol):
    """`LeaseTable.take` or `begin`."""

    async def __call__(self, lease: Lease, me: str, *, start_at: datetime | None) -> Lease | None: ...


class LeaseCoordinator:
    """The leases that this replica holds, and those that it takes."""

    def __init__(
        self,
        table: LeaseTable,
        view: StreamView,
        create_holder: Callable[[Lease], LeaseHolder],
        *,
        me: str,
        lease_duration_s: float,
        initial_position: str | datetime,
        on_expired: Callable[[], None],
        draw: Callable[[], float],
        utc: UtcClock,
    ) -> None:
        self._table = table
        self._view = view
        self._create_holder = create_holder
        self._me = me
        self._lease_duration_s = lease_duration_s
        self._initial_position = initial_position
        self._on_expired = on_expired
        self._draw = draw
        self._utc = utc
        self._holders: dict[str, LeaseHolder] = {}
        self._rest_until: dict[str, float] = {}  # of leases whose reader failed
        self._failures: dict[str, FailureCount] = {}  # of readers, by lease key
        self._untaken: dict[str, str] = {}  # the errors of the last takes, by lease key

    @property
    def held(self) -> Collection[str]:
        """The keys of the leases that this replica holds."""
        return self._holders.keys()

    @property
    def are_all_failing(self) -> bool:
        """Whether every reader has failed and waits for its next try."""
        return not self._holders and bool(self._rest_until)

    @property
    def take_trouble(self) -> str | None:
        """Why the lease table refuses a replica that holds no lease."""
        return None if self._holders else next(iter(self._untaken.values()), None)

    def reader(self, lease_key: str) -> StreamShardReader | None:
        """Return the reader of a lease, if it runs."""
        holder = self._holders.get(lease_key)
        return None if holder is None else holder.reader

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the running readers, in order of their stream shards."""
        found = [self.reader(lease_key) for lease_key in sorted(self._holders)]
        return [reader for reader in found if reader is not None]

    def status(self) -> list[dict[str, Any]]:
        """Return owner, state and checkpoint of every leased stream shard."""
        return [
            self._holders[lease_key].status()
            if lease_key in self._holders
            else {
                "streamShard": lease_key,
                "state": self._state_for_people(one.lease),
                "checkpoint": one.lease.checkpoint.checkpoint,
                "owner": one.lease.actual_owner,
            }
            for lease_key, one in sorted(self._view.observations.items())
        ]

    def update_gauges(self, *, is_blind: bool = False) -> None:
        """Set the gauges by the last scan; if *is_blind*, there was none."""
        counts = Counter(self._state_of(one.lease) for one in self._view.observations.values())
        counts[LeaseState.UNOWNED] += is_blind
        for state in LeaseState:
            instruments.KINESIS_LEASES.labels(state).set(counts[state])

    async def release_from_parents(self) -> None:
        """Let the readers apply what waited for parents that have finished."""
        for holder in list(self._holders.values()):
            try:
                await holder.release_from_parents()
            except Exception as exc:  # noqa: BLE001  # of this reader's memory
                holder.fail(exc)

    async def take(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event, reach: Reach) -> None:
        """Take this replica's share and run the holders in *tasks* until *stopping*."""
        wanted = plan_takes(
            self._view.observations,
            held=self.held,
            now=loop_time(),
            lease_duration_s=self._lease_duration_s,
            me=self._me,
            draw=self._draw(),
            reach=reach,
        )
        await self._take_all(self._without_resting(wanted), self._table.take, tasks, stopping)

    async def take_assigned(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Take only what a KCL 3.x leader has assigned to this replica.

        A lease that was lost while it was to be handed over is handed over now.
        """
        leases = [one.lease for one in self._view.observations.values() if one.lease.lease_key not in self._holders]
        for lease in unfinished_hand_overs(leases, me=self._me):
            await self._end_hand_over(lease)
        assigned = self._without_resting(assigned_leases(leases, me=self._me))
        await self._take_all(assigned, self._table.begin, tasks, stopping)

    def _without_resting(self, leases: Sequence[Lease]) -> list[Lease]:
        now = loop_time()
        self._rest_until = {key: until for key, until in self._rest_until.items() if until > now}
        self._failures = {key: count for key, count in self._failures.items() if key in self._view.observations}
        return [lease for lease in leases if lease.lease_key not in self._rest_until]

    async def _end_hand_over(self, lease: Lease) -> None:
        try:
            await self._table.release(lease, self._me)
        except (RetryableError, PermanentError) as exc:
            log.warning("lease.unreleased", stream_shard_id=lease.lease_key, error=str(exc))

    async def _take_all(
        self, wanted: Sequence[Lease], take: _Take, tasks: asyncio.TaskGroup, stopping: asyncio.Event
    ) -> None:
        keys = {lease.lease_key for lease in wanted}
        self._untaken = {key: error for key, error in self._untaken.items() if key in keys}
        for at in range(0, len(wanted), CONCURRENT_TAKES):
            async with asyncio.TaskGroup() as takes:
                for lease in wanted[at : at + CONCURRENT_TAKES]:
                    takes.create_task(self._take(lease, take, tasks, stopping), name=f"take:{lease.lease_key}")

    async def _take(self, lease: Lease, take: _Take, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        try:
            with translate(TargetKind.LEASES, self._table.name, "take", WorkerError):
                start_at = pinned_start(lease, self._initial_position, now=self._utc())
                taken = await take(lease, self._me, start_at=start_at)
        except (RetryableError, PermanentError) as exc:
            log.warning("lease.untaken", stream_shard_id=lease.lease_key, error=str(exc))
            self._untaken[lease.lease_key] = str(exc)
            return
        self._untaken.pop(lease.lease_key, None)
        if taken is None:
            return
        if is_start_unknown(lease):
            log.warning("lease.start_unknown", stream_shard_id=lease.lease_key, started_at=str(taken.started_at))
        how = LeaseTake.ASSIGNED if take == self._table.begin else self._how(lease)
        log.info(
            "lease.taken",
            stream_shard_id=lease.lease_key,
            checkpoint=lease.checkpoint.checkpoint,
            how=how,
            owner_before=lease.actual_owner,
        )
        if how == LeaseTake.EXPIRED:
            self._on_expired()
        holder = self._holders[lease.lease_key] = self._create_holder(taken)
        tasks.create_task(self._run(holder, stopping), name=f"lease:{lease.lease_key}")

    def _how(self, lease: Lease) -> LeaseTake:
        if lease.actual_owner in {None, self._me}:
            return LeaseTake.FREE
        if lease.is_given_away:
            return LeaseTake.RELEASED
        unchanged_for_s = loop_time() - self._view.observations[lease.lease_key].unchanged_since
        return LeaseTake.EXPIRED if unchanged_for_s > self._lease_duration_s else LeaseTake.STOLEN

    async def _run(self, holder: LeaseHolder, stopping: asyncio.Event) -> None:
        key = holder.lease_key
        try:
            with contain(TargetKind.STREAM_SHARD, key, "lease"):
                await holder.run(stopping)
        finally:
            if holder.has_failed:
                failures = self._failures.setdefault(key, FailureCount())
                self._rest_until[key] = loop_time() + failures.next_delay_s(self._draw())
            del self._holders[key]
            instruments.remove_stream_shard(key)

    def _state_for_people(self, lease: Lease) -> StreamShardState:
        if lease.checkpoint == SHARD_END:
            return StreamShardState.ENDED
        if lease.owner is None:
            return StreamShardState.UNOWNED
        return StreamShardState.RELEASED if lease.owner == self._me else StreamShardState.ELSEWHERE

    def _state_of(self, lease: Lease) -> LeaseState:
        if lease.checkpoint == SHARD_END:
            return LeaseState.ENDED
        if lease.lease_key in self._holders:
            return LeaseState.OWNED
        is_overdue = self._view.unchanged_for_s(lease.lease_key) > OVERDUE_DURATIONS * self._lease_duration_s
        if is_overdue or lease.actual_owner in {None, self._me}:
            return LeaseState.UNOWNED  # nobody reads it, whatever its row says
        return LeaseState.OTHER


INTERVAL_S: Final = 10.0
MIN_PAUSE_S: Final = 0.5  # between two rounds
QUERY_TIMEOUT_S: Final = 3.0
CONCURRENT_SHARDS: Final = 4
SHARDS_PER_S: Final = 40.0


class LockedPosition(NamedTuple):
    """A row of a reader, its lock held until *lock* is closed."""

    reader: StreamShardReader
    positions: ShardPositions
    position: ShardPosition
    lineage: Lineage
    lock: AsyncExitStack


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
                positions = reader.shard_positions
                # Batches in flight and backfills read and write the row themselves.
                if reader.is_backfilling(shard_id):
                    continue
                position = positions.position_on(shard_id)
                if position.lock.locked():
                    continue
                lock = await locks.enter_async_context(AsyncExitStack())
                await lock.enter_async_context(position.lock)
                locked.append(LockedPosition(reader, positions, position, positions.lineage(), lock))
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
            (changed if _must_reconcile(one, stored) else unchanged).append(one)
        await self._write_due(shard_id, unchanged)
        for one in unchanged:
            await one.lock.aclose()
        locked[:] = changed
        async with asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(_is_lease_held(one), name=f"held:{shard_id}") for one in changed]
        for one, is_held in zip(changed, held, strict=True):
            if is_held.result():
                await self._reconcile(shard_id, one, stored)
        await self._write_due(shard_id, changed)

    async def _write_due(self, shard_id: str, locked: Sequence[LockedPosition]) -> None:
        due = [one for one in locked if one.positions.is_write_due(one.position)]
        if due:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                refused = await self._gateway.positions.write_positions(
                    shard_id, [one.positions.prepare_claim(one.position) for one in due]
                )
            for one in due:
                one.position.rewrite_after_s = WRITE_AFTER_S
                if one.position.claim in refused:
                    one.position.invalidate()

    async def _reconcile(self, shard_id: str, locked: LockedPosition, stored: StoredPositions) -> None:
        # Where the reader has a lane to the shard, the lane does so before its next batch.
        reader, positions, position, lineage, _ = locked
        if reader.request_row_read(shard_id):
            return
        former = position.state
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


def _must_reconcile(locked: LockedPosition, stored: StoredPositions) -> bool:
    return not locked.position.is_current or locked.positions.must_reread(locked.position, locked.lineage, stored)


async def _is_lease_held(locked: LockedPosition) -> bool:
    if not locked.position.is_current:
        return True
    locked.position.invalidate()
    return await locked.positions.confirm_lease()


REMOVED_MAX: Final = 100  # of one run: no lease is taken meanwhile


class LeaseCleanup:
    """Removes finished leases, and ends readers of stream shards past their retention."""

    def __init__(
        self,
        stream: Stream,
        table: LeaseTable,
        view: StreamView,
        ancestry: LeaseAncestry,
        coordinator: LeaseCoordinator,
        position_sync: PositionSync,
    ) -> None:
        self._stream = stream
        self._table = table
        self._view = view
        self._ancestry = ancestry
        self._coordinator = coordinator
        self._position_sync = position_sync

    async def run(self) -> None:
        """List the stream, and delete leases that are not needed; add hash ranges to rows of KCL 1.x."""
        leases = self._view.leases()
        self._view.retention = (await self._stream.describe()).retention
        for reader in self._coordinator.readers():
            reader.progress.retention = self._view.retention
        listed = {shard.stream_shard_id: shard for shard in await self._stream.list_stream_shards()}
        self._view.gone = frozenset(leases.keys() - listed.keys())
        self._ancestry.forget_unlisted(listed)
        self._abandon_readers(leases)
        await self._remove_leases(leases)
        for lease_key, lease in leases.items():
            if lease.hash_range is None and lease_key in listed:
                await self._table.write_hash_range(lease_key, listed[lease_key].hash_range)

    def _abandon_readers(self, leases: dict[str, Lease]) -> None:
        for lease_key in self._view.gone & set(self._coordinator.held):
            reader = self._coordinator.reader(lease_key)
            if reader is not None and reader.cursor.is_gone and not reader.progress.is_at_end:
                checkpoint = leases[lease_key].checkpoint.checkpoint
                KINESIS_EXPIRED.inc()
                log.error("stream_shard.gone", stream_shard_id=lease_key, checkpoint=checkpoint)
                reader.abandon()

    async def _remove_leases(self, leases: dict[str, Lease]) -> None:
        for lease in removable_leases(leases, self._view.gone)[:REMOVED_MAX]:
            if await self._table.delete(lease):
                log.info("lease.removed", stream_shard_id=lease.lease_key)
                self._position_sync.remove_rows(lease.lease_key)
