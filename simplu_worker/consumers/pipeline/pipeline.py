"""The pipeline of one source: the lanes of the shards, and the lookup of homes in front of them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, assert_never

import structlog

from simplu_worker.consumers.pipeline import results
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.vocabulary import Source

TENANTS_REMEMBERED: Final = 10_000

log = structlog.get_logger(__name__)


class EntrySource(Protocol[results.EntryT]):
    """What the pipeline asks of the source of its entries."""

    def without_held(self, entries: Sequence[results.EntryT]) -> Sequence[results.EntryT]:
        """Return those of a tenant's entries that are still to be applied."""
        return entries

    def admitted(self, lane: Lane[results.EntryT], entries: Sequence[results.EntryT]) -> Sequence[results.EntryT]:
        """Return those of *entries* that may join a lane; the source has put back the others."""

    async def settle(self, lane: Lane[results.EntryT], batch: results.BatchDecided[results.EntryT]) -> None:
        """Settle a batch that its shard took.

        Before the first `await`, every entry that is not settled is in one place: back in the source with all of its
        chain behind it, or in the lookup (`Pipeline.look_up_again`).
        """

    def put_back_lane(self, shard_id: str, entries: Sequence[results.EntryT], cause: WorkerError) -> None:
        """Put back *entries*, all of a shard's lane, until *cause* is over."""

    def crash(self, lane: Lane[results.EntryT], crashed: results.BatchCrashed[results.EntryT]) -> None:
        """Put back the lane, have the batch sent one by one, or count a try of its only entry."""
        self.put_back_lane(lane.shard_id, lane.take_all(), crashed.error)

    def put_back_tenant(self, waited: results.Waited[results.EntryT]) -> None:
        """Put back a tenant's entries, until it has a home."""

    def on_home_found(self, tenant_id: str) -> None:  # noqa: ARG002
        """Go on with a tenant that was put back; nothing where it comes again by itself."""
        return

    def on_unregistered(self, unregistered: results.Unregistered) -> None:  # noqa: ARG002
        """Note that a tenant that was put back has no home; nothing where it comes again by itself."""
        return

    def must_end_pause(self, paused: results.Paused[results.EntryT]) -> bool:
        """Return whether what waits has half of its source's retention behind it."""

    async def give_up(self, overdue: results.Overdue[results.EntryT]) -> None:
        """Give up entries whose tenant was not registered in time."""


class Pipeline(Generic[results.EntryT]):
    """The lanes of one source, and the lookup of homes."""

    def __init__(
        self,
        name: str,
        kind: Source,
        gateway: ShardGateway,
        source: EntrySource[results.EntryT],
        sender: results.BatchSender[results.EntryT],
        lookup: HomeLookup[results.EntryT],
        *,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._name = name
        self._kind = kind
        self._gateway = gateway
        self._source = source
        self._sender = sender
        self.lookup = lookup
        self._draw = draw
        self._utc = utc
        self._lanes: dict[str, Lane[results.EntryT]] = {}
        self._lane_by_tenant: dict[
            str, Lane[results.EntryT]
        ] = {}  # the lane of its queued entries, or of its last ones
        self._remembered_max = TENANTS_REMEMBERED
        self._tasks = asyncio.TaskGroup()
        self._ending = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether no entry is in memory."""
        return not any(map(len, self._lanes.values())) and not self.lookup.entries()

    @property
    def is_stuck(self) -> bool:
        """Whether a batch in flight may never be answered."""
        return any(lane.is_stuck for lane in self._lanes.values())

    @property
    def has_idle_lane(self) -> bool:
        """Whether new entries could be applied at once, or a lane is late."""
        return not self._lanes or any(not len(lane) or lane.is_late for lane in self._lanes.values())

    @property
    def has_progress(self) -> bool:
        """Whether an entry does not wait for a stuck batch."""
        return bool(self.lookup.entries()) or any(len(lane) and not lane.is_stuck for lane in self._lanes.values())

    def lanes(self) -> list[Lane[results.EntryT]]:
        """Return all lanes."""
        return list(self._lanes.values())

    def lane_to(self, shard_id: str) -> Lane[results.EntryT] | None:
        """Return the lane of a shard, if there is one."""
        return self._lanes.get(shard_id)

    def lane_of(self, tenant_id: str) -> Lane[results.EntryT] | None:
        """Return the lane of a tenant's last entries, if it is known."""
        return self._lane_by_tenant.get(tenant_id)

    def entries(self) -> list[results.EntryT]:
        """Return all entries in memory."""
        return [entry for lane in self._lanes.values() for entry in lane.entries()] + self.lookup.entries()

    def undecided(self, lanes: Iterable[Lane[results.EntryT]] | None = None) -> list[results.EntryT]:
        """Return the entries without a known outcome, of *lanes* or of all."""
        if lanes is None:
            return self.undecided(self._lanes.values()) + self.lookup.in_memory()
        return [entry for lane in lanes for entry in lane.in_memory()]

    def remove(self, entries: Iterable[results.EntryT]) -> None:
        """Remove entries, wherever they are. In flight, their outcome counts no longer."""
        ids = {id(entry) for entry in entries}
        if ids:
            self.lookup.remove(ids)
            for lane in self._lanes.values():
                lane.remove(ids)

    def start(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        """Work in *tasks* until *ending*; then finish the batches in flight."""
        self._tasks = tasks
        self._ending = ending
        tasks.create_task(self._run_lookups(), name=f"lookups:{self._name}")

    def send(self, entries: Sequence[results.EntryT]) -> None:
        """Send entries, each behind those of its tenant that are in memory: where they are put back, they all are."""
        waiting = self.lookup if len(self.lookup) else ()
        by_lane: defaultdict[Lane[results.EntryT], list[results.EntryT]] = defaultdict(list)
        without_lane: defaultdict[str, list[results.EntryT]] = defaultdict(list)
        for entry in entries:
            tenant_id = entry.operation.tenant_id
            lane = self._lane_by_tenant.get(tenant_id)
            if lane is None or tenant_id in waiting:
                without_lane[tenant_id].append(entry)
            else:
                by_lane[lane].append(entry)
        for lane, own in by_lane.items():
            lane.enqueue(self._source.admitted(lane, own))
        for tenant_id, own in without_lane.items():
            if tenant_id in waiting:
                self._look_up_home(tenant_id, own)
            elif (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
                self._send_home(tenant_id, shard_id, own)
            else:
                self._look_up_home(tenant_id, own)

    def _look_up_home(self, tenant_id: str, entries: Sequence[results.EntryT], *, left: str | None = None) -> None:
        if (waited := self.lookup.add(tenant_id, entries, left=left)) is not None:
            self._source.put_back_tenant(waited)

    def look_up_again(self, lane: Lane[results.EntryT], not_here: dict[str, list[results.EntryT]]) -> None:
        """Look up the homes of tenants that do not live on a lane's shard, with all of their entries behind."""
        for tenant_id, entries in not_here.items():
            self._lane_by_tenant.pop(tenant_id, None)
            self._look_up_home(tenant_id, [*entries, *lane.take_tenant(tenant_id)], left=lane.shard_id)

    def _send_home(self, tenant_id: str, shard_id: str, entries: Sequence[results.EntryT]) -> None:
        if wanted := self._source.without_held(entries):
            lane = self.remember_home(tenant_id, shard_id)
            lane.enqueue(self._source.admitted(lane, wanted))

    def remember_home(self, tenant_id: str, shard_id: str) -> Lane[results.EntryT]:
        """Return the lane of a shard, into which a tenant's later entries go."""
        lane = self._open_lane(shard_id)
        if len(self._lane_by_tenant) >= self._remembered_max:
            self._forget_idle_tenants()
        self._lane_by_tenant[tenant_id] = lane
        return lane

    def _forget_idle_tenants(self) -> None:
        """Forget where tenants without entries live; so seldom that it costs each tenant little."""
        busy = {entry.operation.tenant_id for lane in self._lanes.values() for entry in lane.entries()}
        self._lane_by_tenant = {tenant: lane for tenant, lane in self._lane_by_tenant.items() if tenant in busy}
        self._remembered_max = max(TENANTS_REMEMBERED, 2 * len(self._lane_by_tenant))

    def forget_homes(self, tenant_ids: Iterable[str]) -> None:
        """Look up the homes of tenants again, of which nothing is in memory."""
        for tenant_id in tenant_ids:
            self._lane_by_tenant.pop(tenant_id, None)

    def _open_lane(self, shard_id: str) -> Lane[results.EntryT]:
        lane = self._lanes.get(shard_id)
        if lane is None:
            lane = self._lanes[shard_id] = Lane(
                shard_id,
                self._kind,
                self._sender,
                last_applied_at=self._gateway.last_applied_at,
                time=self._gateway.times[shard_id],
                draw=self._draw,
                utc=self._utc,
            )
            self._tasks.create_task(self._run_lane(lane), name=f"lane:{self._name}:{shard_id}")
        return lane

    async def _run_lane(self, lane: Lane[results.EntryT]) -> None:
        while (result := await lane.next_result(self._ending)) is not None:
            match result:
                case results.BatchDecided():
                    await self._source.settle(lane, result)
                case results.LaneEmptied():
                    self._source.put_back_lane(lane.shard_id, result.entries, result.cause)
                case results.BatchCrashed():
                    self._source.crash(lane, result)
                case _:
                    assert_never(result)
            del result  # else the memory of its entries would be free only after the next batch

    async def _run_lookups(self) -> None:
        """Do the lookups that are due until the end. None waits for another one."""
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()
            while not self._ending.is_set():
                for waited in self.lookup.take_long_waiting():
                    self._source.put_back_tenant(waited)
                for tenant_id in self.lookup.take_due():
                    shard_id = self._gateway.cached_shard_id(tenant_id)
                    if shard_id is not None:  # found for another source since it was sent
                        self._on_found(self.lookup.take_found(tenant_id, shard_id))
                        continue
                    self.lookup.begin(tenant_id)
                    task = tasks.create_task(self._look_up(tenant_id), name=f"ask:{tenant_id}")
                    running.add(task)
                    task.add_done_callback(running.discard)
                await self.lookup.wait_for_change(self._ending)
            for task in running:
                task.cancel()

    async def _look_up(self, tenant_id: str) -> None:
        try:
            match await self.lookup.look_up(tenant_id):
                case results.Found() as found:
                    self._on_found(found)
                case results.Unregistered() as unregistered if not self._ending.is_set():
                    self._source.on_unregistered(unregistered)
                case results.Paused(tenant_id=tenant_id) as paused:
                    if self._source.must_end_pause(paused):
                        await self._end_pause(tenant_id)
                case results.Overdue() as overdue if not self._ending.is_set():
                    await self._source.give_up(overdue)
                    self.lookup.remove_overdue(overdue)
        finally:
            self.lookup.end(tenant_id)

    async def _end_pause(self, tenant_id: str) -> None:
        try:
            await self._gateway.end_pause(tenant_id)
        except (RetryableError, PermanentError) as exc:
            log.warning("tenant.pause_not_ended", tenant_id=tenant_id, error=str(exc))
        else:
            log.warning("tenant.pause_ended", tenant_id=tenant_id)

    def _on_found(self, found: results.Found[results.EntryT] | None) -> None:
        if found is None:
            return
        if found.entries:
            if found.has_moved:
                self._sender.expect_merge(found.shard_id)
            self._send_home(found.tenant_id, found.shard_id, found.entries)
        self._source.on_home_found(found.tenant_id)  # may be put back too: these may have come for its shard's hold
