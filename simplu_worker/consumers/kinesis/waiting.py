"""The waiting room of one reader: operations of tenants for which no shard is known now, in order, tenant by tenant."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from simplu_worker.clock import UtcClock, loop_time, utc_now
from simplu_worker.consumers.backoff import backoff_s
from simplu_worker.consumers.kinesis.lanes import Entry
from simplu_worker.consumers.letters import DeadLetter
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.operations.operation import DeadLetterReason
from simplu_worker.shards.directory import Absence
from simplu_worker.shards.router import Router

ASKED_AT_ONCE: Final = 64
REST_MAX_S: Final = 0.25
RETRY_BASE_S: Final = 0.25
RETRY_MAX_S: Final = 5.0
UNKNOWN_TENANT_MARGIN: Final = timedelta(seconds=60)  # architecture, idea 7: clock skew and a slow registration
UNANSWERED: Final = "shard_unavailable"

log = structlog.get_logger(__name__)


class WaitingTenant(msgspec.Struct):
    """One tenant's operations, why they wait, and when its shard is asked for next (monotonic seconds)."""

    entries: deque[Entry]
    next_ask: float
    waiting_since: float
    reason: str | None = None
    failure_count: int = 0


def overdue(entries: Iterable[Entry], *, now: datetime, tenant_wait: timedelta) -> list[Entry]:
    """Return the entries that are dead letters, had their tenant been found unregistered at *now* (idea 7)."""
    latest_arrival = now - tenant_wait - UNKNOWN_TENANT_MARGIN
    return [entry for entry in entries if entry.operation.origin.arrived_at <= latest_arrival]


class WaitingRoom:
    """Asks for the shard of each waiting tenant, backing off one by one, and lets all its operations go at once."""

    def __init__(
        self,
        router: Router,
        *,
        tenant_wait: timedelta,
        let_go: Callable[[str, str, Sequence[Entry]], None],
        settle: Callable[[Sequence[Entry], Sequence[DeadLetter]], Awaitable[None]],
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*let_go* (tenant id, shard id, entries) sends all a tenant has to the shard found; *settle* passes over."""
        self._router = router
        self._tenant_wait = tenant_wait
        self._let_go = let_go
        self._settle = settle
        self._draw = draw
        self._utc = utc
        self._tenants: dict[str, WaitingTenant] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}  # by tenant: the question that is under way
        self._change = asyncio.Event()

    def __repr__(self) -> str:
        return f"WaitingRoom({list(self._tenants)})"

    def __contains__(self, tenant_id: object) -> bool:
        return tenant_id in self._tenants

    def tenants(self) -> dict[str, WaitingTenant]:
        """Return who waits, by tenant id."""
        return self._tenants

    @property
    def is_asked_through(self) -> bool:
        """Whether every tenant that waits was asked for at least once, with no shard as the answer."""
        return all(tenant.failure_count for tenant in self._tenants.values())

    def put(self, tenant_id: str, entries: Iterable[Entry]) -> None:
        """Append entries of a tenant; a tenant that is new here is asked for at once."""
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            now = loop_time()
            tenant = self._tenants[tenant_id] = WaitingTenant(deque(), next_ask=now, waiting_since=now)
            self._change.set()
        tenant.entries.extend(entries)

    async def run(self, stopping: asyncio.Event) -> None:
        """Ask for those that are due until *stopping*; questions that are still open then are given up.

        No question waits for another: a tenant of a shard that does not answer keeps nobody else waiting.
        """
        async with asyncio.TaskGroup() as tasks:
            while not stopping.is_set():
                for tenant_id in self._due():
                    task = tasks.create_task(self._ask(tenant_id, stopping), name=f"ask:{tenant_id}")
                    self._asked[tenant_id] = task
                await self._rest()
            for task in self._asked.values():
                task.cancel()

    def _due(self) -> list[str]:
        """Return who is to be asked for now, the longest due first."""
        now = loop_time()
        due = sorted(
            (one.next_ask, tenant_id)
            for tenant_id, one in self._tenants.items()
            if one.next_ask <= now and tenant_id not in self._asked
        )
        return [tenant_id for _, tenant_id in due[: ASKED_AT_ONCE - len(self._asked)]]

    async def _rest(self) -> None:
        """Wait until somebody arrives, is answered or is due; short enough for a stop to be seen soon."""
        next_ask = min(
            (one.next_ask for tenant_id, one in self._tenants.items() if tenant_id not in self._asked),
            default=float("inf"),
        )
        # With all questions taken, who is due has to wait for an answer.
        is_full = len(self._asked) >= ASKED_AT_ONCE
        self._change.clear()
        await pause(REST_MAX_S if is_full else min(max(0.0, next_ask - loop_time()), REST_MAX_S), until=self._change)

    async def _ask(self, tenant_id: str, stopping: asyncio.Event) -> None:
        try:
            await self._decide(tenant_id, stopping)
        finally:
            del self._asked[tenant_id]
            self._change.set()

    async def _decide(self, tenant_id: str, stopping: asyncio.Event) -> None:
        """Ask for a tenant's shard, and let its operations go, keep them or give them up."""
        tenant = self._tenants[tenant_id]
        asked_at = self._utc()
        try:
            found = await self._router.find(tenant_id)
        except (TryAgainLaterError, RefusedError) as exc:
            self._keep(tenant, UNANSWERED, error=str(exc))
            wished_s = exc.retry_after_s or 0.0 if isinstance(exc, TryAgainLaterError) else 0.0
            tenant.next_ask = max(tenant.next_ask, loop_time() + wished_s)
            return
        if not isinstance(found, Absence):
            self._let_go(tenant_id, found, self._tenants.pop(tenant_id).entries)
            return
        self._keep(tenant, found)
        if found is Absence.UNREGISTERED and not stopping.is_set():
            await self._give_up(tenant_id, overdue(tenant.entries, now=asked_at, tenant_wait=self._tenant_wait))

    def _keep(self, tenant: WaitingTenant, reason: str, **facts: str) -> None:
        if tenant.reason != reason or facts:
            operation = tenant.entries[0].operation
            ids = {"business_id": operation.business_id, "location_id": operation.location_id}
            log.warning("tenant.held", reason=reason, **ids, **facts)
        tenant.reason = reason
        tenant.failure_count += 1
        delay_s = backoff_s(tenant.failure_count, draw=self._draw(), base_s=RETRY_BASE_S, most_s=RETRY_MAX_S)
        tenant.next_ask = loop_time() + delay_s

    async def _give_up(self, tenant_id: str, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        waited_s = (self._tenant_wait + UNKNOWN_TENANT_MARGIN).total_seconds()
        error = f"its tenant was not registered within {waited_s:g} s; register it and replay this letter"
        failed_at = self._utc()
        reason = DeadLetterReason.UNKNOWN_TENANT
        await self._settle(entries, [entry.letter(reason, error, failed_at=failed_at) for entry in entries])
        given_up = {entry.ticket for entry in entries}
        tenant = self._tenants[tenant_id]
        tenant.entries = deque(entry for entry in tenant.entries if entry.ticket not in given_up)
        if not tenant.entries:
            del self._tenants[tenant_id]
