"""The pipeline of one source: the lanes of the shards, and the lookup of homes in front of them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Generic, Protocol

import structlog

from simplu_worker.consumers.pipeline import results
from simplu_worker.consumers.pipeline.failing import FailingOperations
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.vocabulary import Source

TENANTS_REMEMBERED: Final = 10_000

log = structlog.get_logger(__name__)


class EntrySource(Protocol[results.EntryT]):
    """What the pipeline asks of the source of its entries, beside `results.BatchSender.send`."""

    def admit(self, lane: Lane[results.EntryT], entries: Sequence[results.EntryT]) -> Sequence[results.EntryT]:
        """Return those of *entries* that may join a lane; the source has put back the others, or reads them again."""

    async def settle(self, lane: Lane[results.EntryT], batch: results.BatchDecided[results.EntryT]) -> None:
        """Settle a batch that its shard took.

        Before the first `await`, every entry that is not settled is in one place: back in the source with all of its
        chain behind it, or in the lookup (`Pipeline.look_up_again`).
        """

    def put_back(self, returned: results.PutBack[results.EntryT]) -> None:
        """Put back all of a shard's lane, until its cause is over, or all of a tenant, until it has a home."""

    async def on_home(self, answer: results.LookupResult[results.EntryT]) -> None:
        """Go on with a tenant that was put back, give up its overdue entries, or end its pause.

        Nothing without an `await` before where it has a home.
        """


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
        rules: RetryRules,
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
        self.failing = FailingOperations(kind, gateway, rules, draw)
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

    def is_idle_to(self, shard_id: str) -> bool:
        """Return whether no batch to a shard is in flight."""
        lane = self._lanes.get(shard_id)
        return lane is None or lane.is_idle

    def request_turn(self, shard_id: str) -> bool:
        """Have the lane to a shard send its next batch now, even an empty one; return False without a lane."""
        lane = self._lanes.get(shard_id)
        if lane is not None:
            lane.request_turn()
        return lane is not None

    def lane_to(self, shard_id: str) -> Lane[results.EntryT] | None:
        """Return the lane of a shard, if there is one."""
        return self._lanes.get(shard_id)

    def lane_of(self, tenant_id: str) -> Lane[results.EntryT] | None:
        """Return the lane of a tenant's last entries, if it is known."""
        return self._lane_by_tenant.get(tenant_id)

    def entries(self) -> list[results.EntryT]:
        """Return all entries in memory."""
        return [entry for lane in self._lanes.values() for entry in lane.entries()] + self.lookup.entries()

    def undecided_of(
        self, tenant_ids: AbstractSet[str], lanes: Iterable[Lane[results.EntryT]] | None = None
    ) -> dict[str, list[results.EntryT]]:
        """Return the entries of tenants without a known outcome, in *lanes*; by default in all, and in the lookup."""
        found = self.lookup.entries() if lanes is None else []
        for lane in self._lanes.values() if lanes is None else lanes:
            found += lane.in_memory()
        return grouped_by_tenant(entry for entry in found if entry.operation.tenant_id in tenant_ids)

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

    def start_task(self, work: Coroutine[None, None, None], name: str) -> None:
        """Do what the lanes are not to wait for."""
        self._tasks.create_task(work, name=name)

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
            lane.enqueue(self._source.admit(lane, own))
        for tenant_id, own in without_lane.items():
            if tenant_id in waiting:
                self._look_up_home(tenant_id, own)
            elif (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
                self._send_home(tenant_id, shard_id, own)
            else:
                self._look_up_home(tenant_id, own)

    def _look_up_home(self, tenant_id: str, entries: Sequence[results.EntryT], *, left: str | None = None) -> None:
        if (waited := self.lookup.add(tenant_id, entries, left=left)) is not None:
            self._source.put_back(waited)

    def look_up_again(self, lane: Lane[results.EntryT], not_here: dict[str, list[results.EntryT]]) -> None:
        """Look up the homes of tenants that do not live on a lane's shard, with all of their entries behind."""
        for tenant_id, entries in not_here.items():
            self._lane_by_tenant.pop(tenant_id, None)
            self._look_up_home(tenant_id, [*entries, *lane.take_tenant(tenant_id)], left=lane.shard_id)

    def _send_home(self, tenant_id: str, shard_id: str, entries: Sequence[results.EntryT]) -> None:
        lane = self.remember_home(tenant_id, shard_id)
        lane.enqueue(self._source.admit(lane, entries))

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
                self._gateway,
                self.failing,
                draw=self._draw,
                utc=self._utc,
            )
            self._tasks.create_task(self._run_lane(lane), name=f"lane:{self._name}:{shard_id}")
        return lane

    async def _run_lane(self, lane: Lane[results.EntryT]) -> None:
        while (result := await lane.next_result(self._ending)) is not None:
            if isinstance(result, results.BatchDecided):
                await self._source.settle(lane, result)
            else:
                self._source.put_back(result)
            del result  # else the memory of its entries would be free only after the next batch

    async def _run_lookups(self) -> None:
        """Do the lookups that are due until the end. None waits for another one."""
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()
            while not self._ending.is_set():
                for waited in self.lookup.take_long_waiting():
                    self._source.put_back(waited)
                for tenant_id in self.lookup.take_due():
                    shard_id = self._gateway.cached_shard_id(tenant_id)
                    if shard_id is not None:  # found for another source since it was sent
                        if (found := self.lookup.take_found(tenant_id, shard_id)) is not None:
                            await self._on_found(found)
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
                case None:
                    pass
                case results.Found() as found:
                    await self._on_found(found)
                case answer if not self._ending.is_set():
                    await self._source.on_home(answer)
                    if isinstance(answer, results.Overdue):
                        self.lookup.remove_overdue(answer)
        finally:
            self.lookup.end(tenant_id)

    async def end_pause(self, tenant_id: str) -> None:
        """Have a tenant that a person has paused go on."""
        try:
            await self._gateway.end_pause(tenant_id)
        except (RetryableError, PermanentError) as exc:
            log.warning("tenant.pause_not_ended", tenant_id=tenant_id, error=str(exc))
        else:
            log.warning("tenant.pause_ended", tenant_id=tenant_id)

    async def _on_found(self, found: results.Found[results.EntryT]) -> None:
        if found.entries:
            self._send_home(found.tenant_id, found.shard_id, found.entries)
        await self._source.on_home(found)  # may be put back too: these may have come for its shard's hold


def grouped_by_tenant(entries: Iterable[results.EntryT]) -> dict[str, list[results.EntryT]]:
    """Return *entries* by tenant, in their order."""
    found: defaultdict[str, list[results.EntryT]] = defaultdict(list)
    for entry in entries:
        found[entry.operation.tenant_id].append(entry)
    return found
