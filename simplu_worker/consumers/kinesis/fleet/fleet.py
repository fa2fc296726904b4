"""This replica's part in reading a stream: which leases it takes, and what it does for the tree of stream shards.

Replicas share the work through the lease table alone, as workers of the Kinesis Client Library do, and beside them.
Whatever one of them creates or deletes there is conditional, so doing it twice, or at the same time, is harmless.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.fleet.lease_holder import Confirm, EndCheck, LeaseHolder, start_of
from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.holding.parent_records import HORIZON
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.balancing import next_expiry, plan_takes
from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, ReadAhead, observe
from simplu_worker.consumers.kinesis.leases.lease_sync import LeaseSyncer
from simplu_worker.consumers.kinesis.leases.lease_table import KclLeader, LeaseTable
from simplu_worker.consumers.kinesis.leases.shard_tree import (
    first_hole_in_leases,
    pending_at_parents,
    removable_leases,
    unfinished_parents,
)
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import LeaseContext, ReaderSettings, StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, lineage_of
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, HashRange
from simplu_worker.dead_letters.queue import DeadLetterStore
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event

SCANS_PER_DURATION: Final = 10
LOST_RACE_PAUSE_S: Final = 0.2
SCAN_CAPACITY_PER_S: Final = 50.0  # read capacity units a replica spends on looking at leases
TAKEN_AT_ONCE: Final = 10  # connections of the client
AUDIT_INTERVAL_S: Final = 10.0
AUDITS_UNTIL_SYNC: Final = 3  # the same hole so often in a row is none that a reshard passes through (KCL)
LISTING_INTERVAL_S: Final = 60.0
LEADER_INTERVAL_S: Final = 35.0  # a leader of the KCL 3.x that lives writes a new version every 30 s
LEADING_VERSIONS: Final = frozenset({"CLIENT_VERSION_3X", "CLIENT_VERSION_3X_WITH_ROLLBACK"})
TROUBLE_PAUSE_S: Final = 1.0
EXPIRY_MARGIN_S: Final = 0.01

log = structlog.get_logger(__name__)


class Fleet:
    """Takes leases and reads the stream shards they stand for, until told to stop."""

    def __init__(
        self,
        stream: Stream,
        table: LeaseTable,
        *,
        me: str,
        lease_duration_s: float,
        initial_position: str | datetime,
        create_stream: bool,
        stream_shard_count: int,
        gateway: ShardGateway,
        dead_letters: DeadLetterStore,
        rules: ReaderSettings,
        prefetch: PrefetchMemory,
        on_expired: Callable[[], None] = lambda: None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*on_expired* is called when the lease of a replica that did not give it back was taken."""
        self._stream = stream
        self._table = table
        self._me = me
        self._lease_duration_s = lease_duration_s
        self._initial_position = initial_position
        self._maker = LeaseSyncer(stream, table, initial_position, utc=utc)
        self._create_stream = create_stream
        self._stream_shard_count = stream_shard_count
        self._gateway = gateway
        self._dead_letters = dead_letters
        self._rules = rules
        self.prefetch = prefetch
        self._on_expired = on_expired
        self._draw = draw
        self._utc = utc
        self._observations: dict[str, Observation] = {}
        self._holders: dict[str, LeaseHolder] = {}
        self._gone: frozenset[str] = frozenset()  # leased stream shards past their retention
        self._hole: tuple[HashRange | None, int] = (None, 0)
        self._leader: KclLeader | None = None
        self._retention: timedelta | None = None
        self._ancestors: dict[str, Lease] = {}  # of all that was begun: not every scan shows them
        self._rounds = PositionSync(gateway, stream.name, self.readers, draw=draw)
        self._due = {self._audit: 0.0, self._look_at_listing: 0.0, self._look_for_leader: 0.0}
        self.is_set_up = False
        self._has_lost_race = False
        self.is_led_by_kcl = False
        self.trouble: str | None = None
        self.last_turn = float("inf")

    def __repr__(self) -> str:
        return f"Fleet({self._stream.name}, me={self._me}, holding={sorted(self._holders)})"

    @property
    def stream_name(self) -> str:
        """The name of the stream."""
        return self._stream.name

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the readers at work, in order of their stream shards."""
        holders = [self._holders[lease_key] for lease_key in sorted(self._holders)]
        return [holder.reader for holder in holders if holder.reader is not None]

    def status(self) -> list[dict[str, Any]]:
        """Return every stream shard with a lease: its owner, its state and how far it is."""
        return [
            self._holders[lease_key].status()
            if lease_key in self._holders
            else {
                "streamShard": lease_key,
                "state": "ended" if one.lease.checkpoint == SHARD_END else "elsewhere",
                "checkpoint": one.lease.checkpoint.checkpoint,
                "owner": one.lease.owner,
            }
            for lease_key, one in sorted(self._observations.items())
        ]

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan, take and read until *stopping*; then every reader drains and gives its lease back."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rounds.run(stopping), name="position-rounds")
            while not stopping.is_set():
                self.last_turn = loop_time()
                try:
                    await self._turn(tasks, stopping)
                    self.trouble = self._leader_trouble()
                    pause_s = self._pause_s()
                except (RetryableError, PermanentError) as exc:
                    self.trouble = str(exc)
                    log.error("stream.unavailable", stream=self._stream.name, error=str(exc))  # noqa: TRY400  (theirs)
                    pause_s = TROUBLE_PAUSE_S
                await sleep_or_event(pause_s, until=stopping)

    def _pause_s(self) -> float:
        """Return how long until the next scan: sooner when a lease expires, later when scans are expensive.

        Soon, too, when another was faster: of several that were given back at once, some may be left.
        """
        usual_s = LOST_RACE_PAUSE_S if self._has_lost_race else self._lease_duration_s / SCANS_PER_DURATION
        pause_s = max(usual_s, self._table.scan_capacity / SCAN_CAPACITY_PER_S)
        expiry = next_expiry(self._observations, held=self._holders.keys(), lease_duration_s=self._lease_duration_s)
        if expiry is None or expiry <= (now := loop_time()):
            return pause_s
        return min(pause_s, expiry - now + EXPIRY_MARGIN_S)

    async def _turn(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        if not self.is_set_up:
            await self._stream.ensure(create=self._create_stream, stream_shard_count=self._stream_shard_count)
            await self._table.ensure()
        leases = await self._table.scan()
        if not self.is_set_up:
            leases = await self._maker.sync_at_start(leases)
            self.is_set_up = True
        now = loop_time()
        self._observations = observe(self._observations, leases, now=now)
        for chore, due_at in self._due.items():
            if now >= due_at:
                await chore()
        self._count_leases()
        for holder in list(self._holders.values()):
            await holder.free_parents()
        self._has_lost_race = False
        if not self.is_led_by_kcl:
            await self._take(tasks, stopping)

    async def _take(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        wanted = plan_takes(
            self._observations,
            held=self._holders.keys(),
            now=loop_time(),
            lease_duration_s=self._lease_duration_s,
            me=self._me,
            draw=self._draw(),
        )
        for at in range(0, len(wanted), TAKEN_AT_ONCE):
            async with asyncio.TaskGroup() as takes:
                for lease in wanted[at : at + TAKEN_AT_ONCE]:
                    takes.create_task(self._take_one(lease, tasks, stopping), name=f"take:{lease.lease_key}")

    async def _take_one(self, lease: Lease, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        try:
            taken = await self._table.take(lease, self._me, start_at=self._pin(lease))
        except (RetryableError, PermanentError) as exc:
            log.warning("lease.untaken", stream_shard_id=lease.lease_key, error=str(exc))
            return
        if taken is None:
            self._has_lost_race = True
            return
        how = self._how(lease)
        instruments.KINESIS_LEASE_TAKES.labels(how).inc()
        log.info(
            "lease.taken",
            stream_shard_id=lease.lease_key,
            checkpoint=lease.checkpoint.checkpoint,
            how=how,
            owner_before=lease.owner,
        )
        if how == "expired":
            self._on_expired()
        holder = self._holders[lease.lease_key] = self._holder(taken)
        tasks.create_task(self._hold(holder, stopping), name=f"lease:{lease.lease_key}")

    def _how(self, lease: Lease) -> str:
        if lease.owner in {None, self._me}:
            return "free"
        unchanged_for_s = loop_time() - self._observations[lease.lease_key].unchanged_since
        return "expired" if unchanged_for_s > self._lease_duration_s else "stolen"

    def _pin(self, lease: Lease) -> datetime | None:
        """Return the instant from which on a stream shard is read by this application, where its row does not say.

        One of which somebody else has read a part is a Kinesis Client Library's: what came before is that one's affair.
        """
        if lease.started_at is not None:
            return None
        if lease.checkpoint == TRIM_HORIZON:
            return HORIZON
        if lease.checkpoint not in {LATEST, AT_TIMESTAMP}:
            return self._utc()
        return self._initial_position if isinstance(self._initial_position, datetime) else self._utc()

    def _holder(self, lease: Lease) -> LeaseHolder:
        return LeaseHolder(
            self._table,
            lease,
            duration_s=self._lease_duration_s,
            unfinished_parents=self._unfinished_parents,
            pending_at_parents=self._pending_at_parents,
            make_reader=self._reader,
            sync=self._maker.sync,
        )

    def _reader(self, lease: Lease, owed: TenantSet, is_end: EndCheck, confirm: Confirm) -> StreamShardReader:
        self._rounds.is_wanted = True
        return StreamShardReader(
            self._stream,
            lease.lease_key,
            start_of(lease, self._utc()),
            done=None if lease.checkpoint.is_sentinel else lease.checkpoint,
            hash_range=lease.hash_range,
            pending_at_parents=owed,
            ahead=_ahead_of(lease),
            gateway=self._gateway,
            dead_letters=self._dead_letters,
            rules=self._rules,
            memory=self.prefetch.open_quota(),
            retention=self._retention,
            is_end=is_end,
            ties=LeaseContext(confirm, lambda: self._lineage(lease), lease.started_at),
            draw=self._draw,
            utc=self._utc,
        )

    async def _hold(self, holder: LeaseHolder, stopping: asyncio.Event) -> None:
        try:
            await holder.run(stopping)
        finally:
            del self._holders[holder.lease_key]
            instruments.remove_stream_shard(holder.lease_key)

    def _lineage(self, lease: Lease) -> Lineage:
        return lineage_of(lease, self._ancestors | self._leases(), self._gone)

    def _unfinished_parents(self, lease: Lease) -> list[str]:
        return unfinished_parents(lease, self._leases(), self._gone)

    async def _pending_at_parents(self, lease: Lease) -> TenantSet | None:
        """Return to whom the parents of a lease still owe something; None while one of them is being read.

        Those that the last scan does not show at their end are asked for one by one: a scan is eventually consistent,
        and may show a lease just created and not yet that of its parent, although that was created before.
        """
        known = self._leases()
        if self._unfinished_parents(lease):
            return None
        parents: dict[str, Lease] = {}
        for key in sorted(lease.parents - self._gone):
            if key in known and known[key].checkpoint == SHARD_END:
                continue
            if (found := await self._found(key)) is not None:
                parents[key] = self._ancestors[key] = found
        if unfinished_parents(lease, parents, self._gone):
            return None
        await self._find_ancestors(lease)
        try:
            return TenantSet.decode(pending_at_parents(lease, parents, self._gone))
        except ValueError as exc:
            raise RetryableError(f"what its parents owe cannot be read: {exc}") from exc

    async def _find_ancestors(self, lease: Lease) -> None:
        """Find the leases of all that *lease* continues, and keep them: not every scan shows them."""
        known = self._ancestors | self._leases()
        waiting = sorted(lease.parents)
        for key in waiting:  # which grows
            if key in self._gone:
                continue
            ancestor = known.get(key) or await self._found(key)
            if ancestor is not None:
                self._ancestors[key] = ancestor
                waiting += sorted(ancestor.parents.difference(waiting))

    async def _found(self, lease_key: str) -> Lease | None:
        """Return a lease as it is now; None when there is none. Raises `RetryableError` where it cannot be read."""
        found = await self._table.find(lease_key)
        if found is None and self._table.is_unreadable(lease_key):
            raise RetryableError(f"the lease of its ancestor {lease_key} cannot be read")
        return found

    def _leases(self) -> dict[str, Lease]:
        return {key: one.lease for key, one in self._observations.items()}

    async def _audit(self) -> None:
        """Look for hash keys that no lease covers; the same hole a few times in a row means a lease is missing."""
        self._put_off(self._audit, AUDIT_INTERVAL_S)
        hole = first_hole_in_leases(self._leases().values())
        last_hole, times = self._hole
        times = times + 1 if hole is not None and hole == last_hole else int(hole is not None)
        self._hole = (hole, times)
        if times >= AUDITS_UNTIL_SYNC:
            self._hole = (None, 0)
            log.warning("leases.incomplete", stream=self._stream.name)
            await self._maker.sync()

    async def _look_at_listing(self) -> None:
        """See which leased stream shards are past their retention; remove what is done with, fill in hash ranges."""
        self._put_off(self._look_at_listing, LISTING_INTERVAL_S)
        leases = self._leases()
        self._retention = (await self._stream.describe()).retention
        for reading in self.readers():
            reading.retention = self._retention
        listed = {shard.stream_shard_id: shard for shard in await self._stream.list_stream_shards()}
        # Every lease was made from a listing: one that a later listing lacks is past its retention.
        self._gone = frozenset(leases.keys() - listed.keys())
        self._ancestors = {key: lease for key, lease in self._ancestors.items() if key in listed}
        for lease_key in self._gone & self._holders.keys():
            reader = self._holders[lease_key].reader
            if reader is not None and not reader.is_at_end:
                log.error(
                    "stream_shard.gone", stream_shard_id=lease_key, checkpoint=leases[lease_key].checkpoint.checkpoint
                )
                reader.abandon()
        for lease in removable_leases(leases, self._gone):
            if await self._table.delete(lease):
                log.info("lease.removed", stream_shard_id=lease.lease_key)
                self._rounds.forget(lease.lease_key)
        for lease_key, lease in leases.items():
            if lease.hash_range is None and lease_key in listed:
                await self._table.write_metadata(
                    Lease(lease_key, lease.checkpoint, hash_range=listed[lease_key].hash_range)
                )

    async def _look_for_leader(self) -> None:
        """Keep off leases while a leader of the KCL 3.x assigns them: it would take back what we take."""
        self._put_off(self._look_for_leader, LEADER_INTERVAL_S)
        try:
            leader = await self._table.find_kcl_leader()
        except PermanentError as exc:
            log.warning("kcl_leader.unread", error=str(exc))
            leader = None
        leads = leader is not None and leader.client_version in LEADING_VERSIONS and leader.record_version != ""
        # At the first look nobody knows whether it lives; at the next its version has changed, or it is dead.
        self.is_led_by_kcl = leads and leader != self._leader
        self._leader = leader

    def _leader_trouble(self) -> str | None:
        if not self.is_led_by_kcl or self._leader is None:
            return None
        return (
            f"table {self._table.name}: the Kinesis Client Library 3.x at {self._leader.owner} assigns its leases; "
            "stop that application, or set KINESIS_APPLICATION_NAME to another name"
        )

    def _put_off(self, chore: Callable[[], Any], interval_s: float) -> None:
        """Have *chore* done again after about *interval_s*; not at the same time on every replica."""
        self._due[chore] = loop_time() + interval_s * (0.9 + 0.2 * self._draw())

    def _count_leases(self) -> None:
        counts = Counter(self._state_of(one.lease) for one in self._observations.values())
        for state in instruments.LEASE_STATES:
            instruments.KINESIS_LEASES.labels(state).set(counts[state])
        ages = [holder.renewal_age_s for holder in self._holders.values()]
        instruments.KINESIS_RENEWAL_AGE.set(max(ages, default=0.0))

    def _state_of(self, lease: Lease) -> str:
        if lease.checkpoint == SHARD_END:
            return "ended"
        if lease.lease_key in self._holders:
            return "owned"
        return "unowned" if lease.owner is None else "other"


def _ahead_of(lease: Lease) -> ReadAhead | None:
    """Return where the last owner was, unless a Kinesis Client Library has gone past it since or it cannot be read."""
    ahead = lease.ahead
    if ahead is None or ahead.read_to <= lease.checkpoint:
        return None
    try:
        TenantSet.decode(ahead.held)
    except ValueError as exc:
        log.warning("lease.ahead_unreadable", stream_shard_id=lease.lease_key, error=str(exc))
        return None
    return ahead
