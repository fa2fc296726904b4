"""This replica's part in reading a stream: it takes leases, reads their stream shards and keeps the leases complete."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from simplu_worker import __version__, instruments
from simplu_worker.bulkheads import FailureCount, contain, keep_running, note_trouble, translate
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory, ReadSchedule
from simplu_worker.consumers.kinesis.fleet.fleet_report import (
    SILENT_S,
    fleet_report,
    pinned_start,
    start_of,
)
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseHolder, LeaseRenewer, LeaseTree
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases import lease_rules
from simplu_worker.consumers.kinesis.leases.lease import Lease, LeaseReport, Observation, ReplicaFigures, StreamView
from simplu_worker.consumers.kinesis.leases.lease_table import (
    CHECK_INTERVAL_S,
    REPORT_INTERVAL_S,
    KclFollower,
    KclLeaderWatch,
    LeaseTable,
)
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderServices, ReaderSettings, StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderAssignment, ReaderLease
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import Inability, LeaseState, LeaseTake, StreamShardState, TargetKind

log = structlog.get_logger(__name__)

SCANS_PER_DURATION: Final = 10
SCAN_CAPACITY_PER_S: Final = 50.0  # read capacity units that a replica spends on scans
AUDIT_INTERVAL_S: Final = 10.0
CLEANUP_INTERVAL_S: Final = 60.0
REMOVED_MAX: Final = 100  # leases of one clean-up: none is taken meanwhile
TROUBLE_PAUSE_S: Final = 1.0
UNREAD_S: Final = 10.0  # longer than Kinesis throttles a reader
DEFECT_PAUSE_MAX_S: Final = 15.0  # leases of other replicas may expire in the meantime
CONCURRENT_TAKES: Final = 10  # connections of the client
OVERDUE_DURATIONS: Final = 2.0  # of a lease, without a renewal: nobody took it either when it expired
TARGET_MAX_LENGTH: Final = 900  # of a held target as people see it


class FleetServices(msgspec.Struct, frozen=True):
    """The opened services; with *subscriptions* readers read by push."""

    stream: Stream
    table: LeaseTable
    kcl_leader: KclLeaderWatch
    gateway: ShardGateway
    dead_letters: DeadLetterStore
    prefetch: PrefetchMemory
    subscriptions: Subscriptions | None = None


class FleetSettings(msgspec.Struct, frozen=True):
    """The settings of reading a stream; *initial_position* is `KINESIS_INITIAL_POSITION`."""

    lease_duration_s: float
    initial_position: str | datetime
    create_stream: bool
    stream_shard_count: int  # of a stream that is created
    reader: ReaderSettings


class LeaseCoordinator:
    """The leases that this replica holds, and those that it takes."""

    def __init__(
        self,
        table: LeaseTable,
        view: StreamView,
        create_holder: Callable[[Lease], LeaseHolder],
        settings: FleetSettings,
        *,
        me: str,
        on_expired: Callable[[], None],
        draw: Callable[[], float],
        utc: UtcClock,
    ) -> None:
        self._table = table
        self._view = view
        self._create_holder = create_holder
        self._settings = settings
        self._me = me
        self._on_expired = on_expired
        self._draw = draw
        self._utc = utc
        self.holders: dict[str, LeaseHolder] = {}  # by lease key
        self._rest_until: dict[str, float] = {}  # of leases whose reader failed
        self._failures: dict[str, FailureCount] = {}  # of readers, by lease key
        self._untaken: dict[str, str] = {}  # the errors of the last takes, by lease key

    @property
    def are_all_failing(self) -> bool:
        """Whether every reader has failed and waits for its next try."""
        return not self.holders and bool(self._rest_until)

    @property
    def take_trouble(self) -> str | None:
        """Why the lease table refuses a replica that holds no lease."""
        return None if self.holders else next(iter(self._untaken.values()), None)

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the running readers, in order of their stream shards."""
        return [reader for _, holder in sorted(self.holders.items()) if (reader := holder.renewer.reader) is not None]

    def status(self) -> list[dict[str, Any]]:
        """Return owner, state and checkpoint of every leased stream shard."""
        return [
            self.holders[lease_key].status()
            if lease_key in self.holders
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
        counts = Counter(map(self._state_of, self._view.observations.values()))
        counts[LeaseState.UNOWNED] += is_blind
        for state in LeaseState:
            instruments.KINESIS_LEASES.labels(state).set(counts[state])

    async def release_from_parents(self) -> None:
        """Let the readers apply what waited for parents that have finished."""
        for holder in list(self.holders.values()):
            try:
                await holder.release_from_parents()
            except Exception as exc:  # noqa: BLE001  # of this reader's memory
                holder.fail(exc)

    async def take(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event, reach: lease_rules.Reach) -> None:
        """Take this replica's share and run the holders in *tasks* until *stopping*."""
        wanted = lease_rules.plan_takes(
            self._view.observations,
            held=self.holders.keys(),
            now=loop_time(),
            lease_duration_s=self._settings.lease_duration_s,
            me=self._me,
            draw=self._draw(),
            reach=reach,
        )
        await self._take_all(wanted, tasks, stopping)

    async def take_assigned(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Take only what a KCL 3.x leader has assigned to this replica.

        A lease that was lost while it was to be handed over is handed over now.
        """
        leases = [lease for key, lease in self._view.leases.items() if key not in self.holders]
        for lease in leases:
            if lease.checkpoint_owner == self._me:
                try:
                    await self._table.release(lease, self._me, None, lease.ahead)
                except (RetryableError, PermanentError) as exc:
                    log.warning("lease.unreleased", stream_shard_id=lease.lease_key, error=str(exc))
        await self._take_all(lease_rules.assigned_leases(leases, me=self._me), tasks, stopping, is_assigned=True)

    async def _take_all(
        self, wanted: Sequence[Lease], tasks: asyncio.TaskGroup, stopping: asyncio.Event, *, is_assigned: bool = False
    ) -> None:
        now = loop_time()
        self._rest_until = {key: until for key, until in self._rest_until.items() if until > now}
        self._failures = {key: count for key, count in self._failures.items() if key in self._view.observations}
        wanted = [lease for lease in wanted if lease.lease_key not in self._rest_until]
        keys = {lease.lease_key for lease in wanted}
        self._untaken = {key: error for key, error in self._untaken.items() if key in keys}
        for at in range(0, len(wanted), CONCURRENT_TAKES):
            async with asyncio.TaskGroup() as takes:
                for lease in wanted[at : at + CONCURRENT_TAKES]:
                    work = self._take(lease, tasks, stopping, is_assigned=is_assigned)
                    takes.create_task(work, name=f"take:{lease.lease_key}")

    async def _take(
        self, lease: Lease, tasks: asyncio.TaskGroup, stopping: asyncio.Event, *, is_assigned: bool
    ) -> None:
        key = lease.lease_key
        try:
            with translate(TargetKind.LEASES, self._table.name, "take", WorkerError):
                start_at = pinned_start(lease, self._settings.initial_position, now=self._utc())
                taken = await self._table.take(lease, self._me, start_at=start_at, is_assigned=is_assigned)
        except (RetryableError, PermanentError) as exc:
            log.warning("lease.untaken", stream_shard_id=key, error=str(exc))
            self._untaken[key] = str(exc)
            return
        self._untaken.pop(key, None)
        if taken is None:
            return
        how = LeaseTake.ASSIGNED if is_assigned else self._how(lease)
        checkpoint, owner = lease.checkpoint.checkpoint, lease.actual_owner
        log.info("lease.taken", stream_shard_id=key, checkpoint=checkpoint, how=how, owner_before=owner)
        if how == LeaseTake.EXPIRED:
            self._on_expired()
        tasks.create_task(self._run(self._create_holder(taken), stopping), name=f"lease:{key}")

    def _how(self, lease: Lease) -> LeaseTake:
        if lease.actual_owner in {None, self._me}:
            return LeaseTake.FREE
        if lease.is_given_away:
            return LeaseTake.RELEASED
        unchanged_for_s = loop_time() - self._view.observations[lease.lease_key].unchanged_since
        return LeaseTake.EXPIRED if unchanged_for_s > self._settings.lease_duration_s else LeaseTake.STOLEN

    async def _run(self, holder: LeaseHolder, stopping: asyncio.Event) -> None:
        key = holder.lease_key
        try:
            with contain(TargetKind.STREAM_SHARD, key, "lease"):
                self.holders[key] = holder  # here, so that none stays without its task
                await holder.run(stopping)
        finally:
            if holder.has_failed:
                failures = self._failures.setdefault(key, FailureCount())
                self._rest_until[key] = loop_time() + failures.next_delay_s(self._draw())
            self.holders.pop(key, None)
            instruments.remove_stream_shard(key)

    def _state_for_people(self, lease: Lease) -> StreamShardState:
        if lease.checkpoint == SHARD_END:
            return StreamShardState.ENDED
        if lease.owner is None:
            return StreamShardState.UNOWNED
        return StreamShardState.RELEASED if lease.owner == self._me else StreamShardState.ELSEWHERE

    def _state_of(self, one: Observation) -> LeaseState:
        if one.lease.checkpoint == SHARD_END:
            return LeaseState.ENDED
        if one.lease.lease_key in self.holders:
            return LeaseState.OWNED
        unchanged_for_s = self._view.scanned_at - one.unchanged_since
        is_overdue = unchanged_for_s > OVERDUE_DURATIONS * self._settings.lease_duration_s
        if is_overdue or one.lease.actual_owner in {None, self._me}:
            return LeaseState.UNOWNED  # nobody reads it, whatever its row says
        return LeaseState.OTHER


class Fleet:
    """Scans the lease table; after each scan it runs the chores that are due, and takes leases."""

    def __init__(
        self,
        services: FleetServices,
        settings: FleetSettings,
        *,
        me: str,
        on_expired: Callable[[], None] = lambda: None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*on_expired* is called for each lease taken from an owner that ended."""
        self._services = services
        self._settings = settings
        self._me = me
        self._draw = draw
        self._utc = utc
        self.stream_name = services.stream.name
        self.prefetch = services.prefetch
        self.kcl_leader = services.kcl_leader
        self._read_schedule = ReadSchedule(draw())
        self._view = StreamView()
        self._tree = LeaseTree(services.stream, services.table, self._view, settings.initial_position, utc=utc)
        self._follower = KclFollower(self.kcl_leader, me=me, utc=utc)
        self._coordinator = LeaseCoordinator(
            services.table,
            self._view,
            self.create_holder,
            settings,
            me=me,
            on_expired=on_expired,
            draw=draw,
            utc=utc,
        )
        self._position_sync = PositionSync(services.gateway, self.stream_name, self.readers)
        self._chores: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self._audit, AUDIT_INTERVAL_S),
            (self._clean_up, CLEANUP_INTERVAL_S),
            (self.kcl_leader.check, CHECK_INTERVAL_S),
        ]
        if self.kcl_leader.follows:
            self._chores.append((self._report_to_leader, REPORT_INTERVAL_S))
        self._due_at: dict[object, float] = {}  # of chores that ran well once
        self.is_set_up = False
        self.trouble: str | None = None
        self.last_turn = float("inf")
        self.figures = ReplicaFigures()  # of this replica, set from outside
        self._ability = lease_rules.Ability()
        self._told_inability: Inability | None = None

    @property
    def reading_trouble(self) -> str | None:
        """Why nothing is read though the lease table answers: every reader has failed."""
        return "every reader failed, see the log event loop.failed" if self._coordinator.are_all_failing else None

    @property
    def outage(self) -> str | None:
        """Why the lease table or, for some time, the stream refuses this replica."""
        refused = None if self.kcl_leader.is_leading else self._coordinator.take_trouble
        return self.trouble or refused or (self.readers()[0].cursor.trouble if self._is_unread else None)

    @property
    def _is_unread(self) -> bool:
        readers = self.readers()
        return bool(readers) and all(one.view.unread_for_s > UNREAD_S for one in readers)

    @property
    def inability(self) -> Inability | None:
        """Why this replica can do nothing, and gives its leases away."""
        is_told = not self._coordinator.holders or self._ability.is_unable(loop_time())
        return self._ability.trouble if is_told else None

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the running readers, in order of their stream shards."""
        return self._coordinator.readers()

    def leases(self) -> list[Lease]:
        """Return the leases of the last scan, with the progress of own readers."""
        readers = {reader.stream_shard_id: reader for reader in self.readers()}
        return [
            lease if (reader := readers.get(key)) is None else reader.progress.apply_to(lease)
            for key, lease in self._view.leases.items()
        ]

    def status(self) -> list[dict[str, Any]]:
        """Return owner, state and checkpoint of every leased stream shard."""
        return self._coordinator.status()

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all of them, or *target*; return how many."""
        return sum(reader.retry_holds(target) for reader in self.readers())

    async def ask_to_retry(self, target: str | None) -> dict[str, bool]:
        """Ask the replicas that report held targets to try them: all, or *target*.

        Return the owners, each with whether it was asked. Raises ValueError.
        """
        if target is not None and len(target) > TARGET_MAX_LENGTH:
            raise ValueError("target: expected the name of a held target, as /status has it, got a longer text")
        retry = f"{secrets.token_hex(8)} {target or ''}"
        asked: dict[str, bool] = {}
        for lease in self._view.leases.values():
            if lease.report is None or not lease.report.held_count or lease.report.by == self._me:
                continue
            try:
                is_written = await self._services.table.write_retry(lease, retry)
            except (RetryableError, PermanentError) as exc:
                log.warning("hold.unasked", stream_shard_id=lease.lease_key, error=str(exc))
                is_written = False
            asked[lease.report.by] = asked.get(lease.report.by, True) and is_written
        return asked

    @property
    def retention(self) -> timedelta | None:
        """For how long the stream keeps records; None while that is unknown."""
        return self._view.retention

    def report(self) -> dict[str, Any]:
        """Return the replicas and the stream shards of the whole fleet."""
        return fleet_report(
            self._view.observations,
            {row["streamShard"]: row["state"] for row in self.status()},
            LeaseReport(self._me, __version__, self.own_figures()),
            silent_after_s=max(SILENT_S, self._settings.lease_duration_s),
            now=loop_time(),
        )

    def own_figures(self) -> ReplicaFigures:
        """Return the figures of this replica."""
        return msgspec.structs.replace(self.figures, unable=self.inability)

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan, take and read until *stopping*; then every reader drains and its lease is released."""
        await self._services.gateway.look_around()
        async with asyncio.TaskGroup() as tasks:
            work = partial(self._position_sync.run, stopping)
            sync = keep_running(TargetKind.LEASES, self.stream_name, "positions", work, stopping=stopping)
            tasks.create_task(sync, name="position-sync")
            failures = FailureCount()
            while not stopping.is_set():
                self.last_turn = loop_time()
                try:
                    await self._turn(tasks, stopping)
                    self.trouble = self.kcl_leader.trouble or self._follower.trouble
                    pause_s = self._scan_pause_s()
                except (RetryableError, PermanentError) as exc:
                    self.trouble = str(exc)
                    log.error("stream.unavailable", stream=self.stream_name, error=str(exc))  # noqa: TRY400  (theirs)
                    pause_s = max(TROUBLE_PAUSE_S, self._scan_pause_s())  # a throttled scan is not repeated faster
                except Exception as exc:  # noqa: BLE001  # readers and renewals go on beside it
                    self.trouble = str(note_trouble(TargetKind.LEASES, self._services.table.name, "fleet", exc))
                    pause_s = min(failures.next_delay_s(self._draw()), DEFECT_PAUSE_MAX_S)
                await sleep_or_event(pause_s, until=stopping)
            # Before the leases are released: the leader must not assign them to it.
            with contain(TargetKind.LEASES, self._services.table.name, "leaving"):
                await self._follower.leave()

    async def _turn(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        # Before the scan: it may fail, and the leases expire.
        self._coordinator.update_gauges(is_blind=not self.is_set_up and self.trouble is not None)
        leases = await self._scan()
        now = loop_time()
        self._view.update(leases, now=now)
        self._note_ability(now)
        await self._run_chores(now)
        await self._coordinator.release_from_parents()
        if self.kcl_leader.is_leading:
            if self.kcl_leader.follows:
                await self._coordinator.take_assigned(tasks, stopping)
        elif self.kcl_leader.trouble is None:
            await self._coordinator.take(tasks, stopping, self._ability.reach(now))

    async def _run_chores(self, now: float) -> None:
        # A first run that fails is repeated at once: no lease may be taken before the first look for a KCL leader.
        for run, interval_s in self._chores:
            if now >= self._due_at.get(run, 0.0):
                due_at = loop_time() + interval_s
                if is_repeated := run in self._due_at:
                    self._due_at[run] = due_at
                try:
                    await run()
                except (RetryableError, PermanentError):
                    raise
                except Exception as exc:
                    if not is_repeated:
                        raise
                    note_trouble(TargetKind.LEASES, self._services.table.name, "chores", exc)
                self._due_at[run] = due_at

    def _note_ability(self, now: float) -> None:
        trouble, readers = self._services.gateway.inability, self.readers()
        if trouble is None and self._is_unread and not any(one.cursor.is_gone for one in readers):
            trouble = Inability.STREAM_UNAVAILABLE
        self._ability.note(trouble, is_reading=bool(readers), now=now)
        inability = self.inability
        if inability is not None and inability is not self._told_inability:
            log.error("replica.unable", reason=inability, leases=len(self._coordinator.holders))
        self._told_inability = inability

    async def _report_to_leader(self) -> None:
        await (self._follower.report() if self.inability is None else self._follower.leave())

    async def _scan(self) -> list[Lease]:
        table, settings = self._services.table, self._settings
        if self.is_set_up:
            return await table.scan()
        await self._services.stream.ensure(
            create=settings.create_stream, stream_shard_count=settings.stream_shard_count
        )
        await table.ensure()
        leases = await self._tree.sync_at_start(await table.scan())
        self.is_set_up = True
        return leases

    def _scan_pause_s(self) -> float:
        expensive_s = self._services.table.scan_capacity / SCAN_CAPACITY_PER_S
        return max(self._settings.lease_duration_s / SCANS_PER_DURATION, expensive_s)

    def create_holder(self, lease: Lease) -> LeaseHolder:
        """Return the holder of a lease that was taken."""
        table, duration_s = self._services.table, self._settings.lease_duration_s
        return LeaseHolder(
            LeaseRenewer(table, lease, self.own_figures, me=self._me, duration_s=duration_s),
            self._tree,
            self.create_reader,
            duration_s=duration_s,
        )

    async def _audit(self) -> None:
        await self._tree.audit(self._view.leases.values())

    async def _clean_up(self) -> None:
        # A stream shard that a listing lacks is past its retention, or new. Only its own answer tells (as for the KCL).
        stream, table, leases = self._services.stream, self._services.table, self._view.leases
        self._view.retention = (await stream.describe()).retention
        listed = {shard.stream_shard_id: shard for shard in await stream.list_stream_shards()}
        self._view.gone = frozenset(leases.keys() - listed.keys())
        self._tree.forget_unlisted(listed)
        for reader in self.readers():
            reader.progress.retention = self._view.retention
            key = reader.stream_shard_id
            if key in self._view.gone and reader.cursor.is_gone and not reader.progress.is_at_end:
                instruments.KINESIS_EXPIRED.inc()
                log.error("stream_shard.gone", stream_shard_id=key, checkpoint=leases[key].checkpoint.checkpoint)
                reader.abandon()
        for lease in lease_rules.removable_leases(leases, self._view.gone)[:REMOVED_MAX]:
            if await table.delete(lease):
                log.info("lease.removed", stream_shard_id=lease.lease_key)
                self._position_sync.remove_rows(lease.lease_key)
        for key, lease in leases.items():  # of KCL 1.x
            if lease.hash_range is None and key in listed:
                await table.write_hash_range(key, listed[key].hash_range)

    def create_reader(self, lease: Lease, pending: TenantSet, held: ReaderLease) -> StreamShardReader:
        """Return the reader of a lease, with the tenants *pending* at its parents."""
        self._position_sync.request()
        services, ahead = self._services, lease.ahead
        if ahead is not None and ahead.read_to <= lease.checkpoint:
            ahead = None  # a KCL has checkpointed past it
        assignment = ReaderAssignment(
            lease.lease_key,
            start_of(lease, self._utc()),
            checkpoint=None if lease.checkpoint.is_sentinel else lease.checkpoint,
            hash_range=lease.hash_range,
            read_ahead=ahead,
            pending_at_parents=pending,
            retention=self._view.retention,
            read_up_to=lease.last_read_up_to,
        )
        return StreamShardReader(
            ReaderServices(
                services.stream, services.gateway, services.dead_letters, services.subscriptions, self._read_schedule
            ),
            assignment,
            self._settings.reader,
            self.prefetch.open_quota(),
            lease=held,
            draw=self._draw,
            utc=self._utc,
        )
