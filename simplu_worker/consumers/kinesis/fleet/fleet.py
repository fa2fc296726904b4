"""This replica's part in reading a stream: it takes leases, reads their stream shards and keeps the leases complete."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from simplu_worker import __version__
from simplu_worker.bulkheads import FailureCount, contain, keep_running, note_trouble
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory, ReadSchedule
from simplu_worker.consumers.kinesis.fleet.fleet_report import SILENT_S, KnownReplica, fleet_report, start_of
from simplu_worker.consumers.kinesis.fleet.lease_coordinator import LeaseCleanup, LeaseCoordinator, PositionSync
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseAncestry, LeaseHolder, LeaseRenewer, StreamShardEnd
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases import kcl_leader_watch
from simplu_worker.consumers.kinesis.leases.balancing import Ability
from simplu_worker.consumers.kinesis.leases.kcl_leader_watch import REPORT_INTERVAL_S, KclFollower, KclLeaderWatch
from simplu_worker.consumers.kinesis.leases.lease import HoldRetry, Lease, ReplicaFigures, StreamView
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseSyncer, LeaseTable
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderServices, ReaderSettings, StreamShardReader
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderAssignment, ReaderLease
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import Inability, TargetKind

log = structlog.get_logger(__name__)

SCANS_PER_DURATION: Final = 10
SCAN_CAPACITY_PER_S: Final = 50.0  # read capacity units that a replica spends on scans
AUDIT_INTERVAL_S: Final = 10.0
CLEANUP_INTERVAL_S: Final = 60.0
TROUBLE_PAUSE_S: Final = 1.0
UNREAD_S: Final = 10.0  # longer than Kinesis throttles a reader
DEFECT_PAUSE_MAX_S: Final = 15.0  # leases of other replicas may expire in the meantime


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
        stream, table = services.stream, services.table
        self._read_schedule = ReadSchedule(draw())
        self._view = StreamView()
        self._syncer = LeaseSyncer(stream, table, settings.initial_position, utc=utc)
        self._ancestry = LeaseAncestry(table, self._view)
        self.kcl_leader = services.kcl_leader
        self._follower = (
            KclFollower(table.requests, self.kcl_leader, me=me, utc=utc) if self.kcl_leader.follows else None
        )
        self._coordinator = LeaseCoordinator(
            table,
            self._view,
            self.create_holder,
            me=me,
            lease_duration_s=settings.lease_duration_s,
            initial_position=settings.initial_position,
            on_expired=on_expired,
            draw=draw,
            utc=utc,
        )
        self._position_sync = PositionSync(services.gateway, stream.name, self.readers)
        cleanup = LeaseCleanup(stream, table, self._view, self._ancestry, self._coordinator, self._position_sync)
        self._chores: tuple[_Chore, ...] = (
            _Chore("audit", self._audit, AUDIT_INTERVAL_S),
            _Chore("cleanup", cleanup.run, CLEANUP_INTERVAL_S),
            _Chore("kcl leader", self.kcl_leader.check, kcl_leader_watch.CHECK_INTERVAL_S),
        )
        if self._follower is not None:
            follow = partial(self._report_to_leader, self._follower)
            self._chores += (_Chore("kcl follower", follow, REPORT_INTERVAL_S),)
        self.is_set_up = False
        self.trouble: str | None = None
        self.last_turn = float("inf")
        self.figures = ReplicaFigures()  # of this replica, set from outside
        self._ability = Ability()
        self._told_inability: Inability | None = None

    @property
    def stream_name(self) -> str:
        """The name of the stream."""
        return self._services.stream.name

    @property
    def prefetch(self) -> PrefetchMemory:
        """The memory for records that are read and not yet applied."""
        return self._services.prefetch

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
        is_told = not self._coordinator.held or self._ability.is_unable(loop_time())
        return self._ability.trouble if is_told else None

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the running readers, in order of their stream shards."""
        return self._coordinator.readers()

    def leases(self) -> list[Lease]:
        """Return the leases of the last scan, with the progress of own readers."""
        readers = {reader.stream_shard_id: reader for reader in self.readers()}
        return [
            lease if (reader := readers.get(key)) is None else reader.progress.apply_to(lease)
            for key, lease in self._view.leases().items()
        ]

    def status(self) -> list[dict[str, Any]]:
        """Return owner, state and checkpoint of every leased stream shard."""
        return self._coordinator.status()

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all of them, or *target*; return how many."""
        return sum(reader.retry_holds(target) for reader in self.readers())

    async def ask_to_retry(self, retry: HoldRetry) -> dict[str, bool]:
        """Ask the replicas that report held targets to try them.

        Return the owners, each with whether it was asked. Raises ValueError.
        """
        asked: dict[str, bool] = {}
        for lease in self._view.leases().values():
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
        states = {row["streamShard"]: row["state"] for row in self.status()}
        now = loop_time()
        return fleet_report(
            self._view.observations,
            states,
            KnownReplica(self._me, __version__, self.own_figures()),
            silent_after_s=max(SILENT_S, self._settings.lease_duration_s),
            now=now,
        )

    def own_figures(self) -> ReplicaFigures:
        """Return the figures of this replica."""
        return msgspec.structs.replace(self.figures, unable=self.inability)

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan, take and read until *stopping*; then every reader drains and its lease is released."""
        await self._services.gateway.look_around()
        async with asyncio.TaskGroup() as tasks:
            sync = keep_running(
                TargetKind.LEASES,
                self.stream_name,
                "positions",
                partial(self._position_sync.run, stopping),
                stopping=stopping,
            )
            tasks.create_task(sync, name="position-sync")
            failures = FailureCount()
            while not stopping.is_set():
                self.last_turn = loop_time()
                try:
                    await self._turn(tasks, stopping)
                    self.trouble = self.kcl_leader.trouble or (
                        None if self._follower is None else self._follower.trouble
                    )
                    pause_s = self._scan_pause_s()
                except (RetryableError, PermanentError) as exc:
                    self.trouble = str(exc)
                    log.error("stream.unavailable", stream=self.stream_name, error=str(exc))  # noqa: TRY400  (theirs)
                    pause_s = max(TROUBLE_PAUSE_S, self._scan_pause_s())  # a throttled scan is not repeated faster
                except Exception as exc:  # noqa: BLE001  # readers and renewals go on beside it
                    self.trouble = str(note_trouble(TargetKind.LEASES, self._services.table.name, "fleet", exc))
                    pause_s = min(failures.next_delay_s(self._draw()), DEFECT_PAUSE_MAX_S)
                await sleep_or_event(pause_s, until=stopping)
            if self._follower is not None:  # before the leases are released: the leader must not assign them to it
                with contain(TargetKind.LEASES, self._services.table.name, "leaving"):
                    await self._follower.leave()

    async def _turn(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        # Before the scan: it may fail, and the leases expire.
        self._coordinator.update_gauges(is_blind=not self.is_set_up and self.trouble is not None)
        leases = await self._scan()
        now = loop_time()
        self._view.update(leases, now=now)
        self._note_ability(now)
        for chore in self._chores:
            await chore.run_if_due(now)
        await self._coordinator.release_from_parents()
        if not self.kcl_leader.is_leading:
            await self._coordinator.take(tasks, stopping, self._ability.reach(now))
        elif self._follower is not None:
            await self._coordinator.take_assigned(tasks, stopping)

    def _note_ability(self, now: float) -> None:
        trouble = self._services.gateway.inability
        readers = self.readers()
        if readers:
            is_unread = self._is_unread and not any(one.cursor.is_gone for one in readers)
            self._ability.note(trouble or (Inability.STREAM_UNAVAILABLE if is_unread else None), now=now)
        else:
            self._ability.note_without_lease(trouble, now=now)
        inability = self.inability
        if inability is not None and inability is not self._told_inability:
            log.error("replica.unable", reason=inability, leases=len(self._coordinator.held))
        self._told_inability = inability

    async def _report_to_leader(self, follower: KclFollower) -> None:
        await (follower.report() if self.inability is None else follower.leave())

    async def _scan(self) -> list[Lease]:
        table, settings = self._services.table, self._settings
        if self.is_set_up:
            return await table.scan()
        await self._services.stream.ensure(
            create=settings.create_stream, stream_shard_count=settings.stream_shard_count
        )
        await table.ensure()
        leases = await self._syncer.sync_at_start(await table.scan())
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
            StreamShardEnd(table, self._syncer, me=self._me),
            self._ancestry,
            self.create_reader,
            duration_s=duration_s,
        )

    async def _audit(self) -> None:
        await self._syncer.audit(self._view.leases().values())

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


class _Chore:
    """A periodic chore, and when it is due next."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]], interval_s: float) -> None:
        self._name = name
        self._run = run
        self._interval_s = interval_s
        self._due_at = 0.0

    async def run_if_due(self, now: float) -> None:
        # A first run that fails is repeated at once: no lease may be taken before the first look for a KCL leader.
        if now >= self._due_at:
            is_first = self._due_at == 0.0
            self._due_at = loop_time() + self._interval_s
            try:
                await self._run()
            except (RetryableError, PermanentError):
                self._due_at = 0.0 if is_first else self._due_at
                raise
            except Exception as exc:
                self._due_at = 0.0 if is_first else self._due_at
                error = note_trouble(TargetKind.LEASES, self._name, self._name, exc)
                if is_first:
                    raise error from exc
