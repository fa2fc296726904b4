"""Find the shards of tenants that have no known one, and keep their operations in memory for a moment.

They wait for about a second, longer than a move or a registration takes. Then the tenant is held: its operations leave
memory, and the lookups go on.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from itertools import count
from typing import Final, Generic

import msgspec
import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.consumers.pipeline.results import EntryT, Found, LookupResult, Overdue, Paused, Unregistered, Waited
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import absence_max_age_s, is_overdue, tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import HomeUnknownError, ShardUnavailableError, TenantNotMadeError, TenantPausedError
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import backoff_s, wait_any
from simplu_worker.vocabulary import Absence, HoldReason, TargetKind

LOOKUPS_MAX: Final = 64  # at a time
RECENT_LOOKUPS_MAX: Final = 16  # of them; the others have been without an answer for ANSWER_S
ANSWER_S: Final = 0.5  # a lookup of a tenant with a shard that answers takes milliseconds
CROWD_COUNT: Final = 256  # tenants not looked up yet; more of them are not read, or not kept in memory
BUSINESS_CROWD_COUNT: Final = CROWD_COUNT // 2  # of one business; more of them are not kept in memory
FOUND_WEIGHT: Final = 0.02  # of the last answer in the share of lookups that found a shard
WAIT_MAX_S: Final = 1.0  # in memory: of a tenant without a shard; of all tenants while no lookup is answered
UNASKED_WAIT_MAX_S: Final = 5.0  # of a tenant that was not looked up yet, while other lookups are answered
CHECK_INTERVAL_MAX_S: Final = 0.25
PATIENCE_CHECK_S: Final = 0.05
RETRY_BASE_S: Final = 0.25
MOVING_RETRY_S: Final = 0.01  # of a tenant that waits in memory: a move pauses it for milliseconds
RETRY_MAX_S: Final = 5.0
PAUSED_RETRY_MAX_S: Final = 3.0  # of a tenant that a person has paused, and may resume: promised within 5 s
NAMES_MAX: Final = 8  # pairs of ids that make one tenant id
LOOKUPS_PER_S: Final = 25.0  # of held tenants, however many there are

log = structlog.get_logger(__name__)


class WaitingTenant(msgspec.Struct, Generic[EntryT]):
    """A tenant that is being looked up; without entries it is held. Times are monotonic.

    *agenda_number* identifies its entry in the agenda; None during a lookup.
    """

    entries: deque[EntryT]
    waiting_since: float
    reason: HoldReason = HoldReason.SHARD_UNAVAILABLE
    shard_id: str | None = None  # the Postgres shard that did not answer
    cause: Exception | None = RetryableError("no answer yet")
    failure_count: int = 0
    agenda_number: int | None = None
    left: str | None = None  # the Postgres shard that has refused its operations
    names: dict[tuple[str, str], None] = {}  # its pairs of business and location, in order of their first operation
    business_id: str = ""


class HomeLookup(Generic[EntryT]):
    """Looks up the shard of each tenant on its own, with back-off."""

    def __init__(
        self,
        gateway: ShardGateway,
        is_wanted: Callable[[str], bool],
        *,
        tenant_wait: timedelta,
        patience_s: float = WAIT_MAX_S,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*is_wanted* returns whether a tenant is looked up though none of its operations waits here.

        *patience_s* is how long a tenant without a home waits in memory, unless it is being moved.
        """
        self._gateway = gateway
        self._is_wanted = is_wanted
        self._tenant_wait = tenant_wait
        self._patience_s = patience_s
        self._draw = draw
        self._utc = utc
        self._tenants: dict[str, WaitingTenant[EntryT]] = {}
        self._unasked: Counter[str] = Counter()  # by business: tenants with entries that were not looked up yet
        self._agenda: list[tuple[float, int, str]] = []  # a heap of lookups: time, number, tenant
        self._agenda_numbers = count()
        self._due: dict[str, deque[tuple[int, str]]] = {}  # of the agenda: number, tenant, by business in turn
        self._lookups: dict[str, tuple[str, float]] = {}  # by tenant, while one runs: business, start (monotonic)
        self._answered_at = float("-inf")
        self._found_share = 1.0
        self._checked_at = float("-inf")  # how long each tenant has waited
        self._change = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tenants)

    def __contains__(self, tenant_id: str) -> bool:
        """Return whether operations of the tenant wait."""
        tenant = self._tenants.get(tenant_id)
        return tenant is not None and bool(tenant.entries)

    def has_names(self, names: tuple[str, str]) -> bool:
        """Return whether operations of this business and location wait, or are held."""
        tenant = self._tenants.get(tenant_id_of(*names))
        return tenant is not None and names in tenant.names

    @property
    def is_crowded(self) -> bool:
        """Whether so many tenants wait for their first lookup that the stream need not be read further.

        Not where most tenants have no shard, or all are of one business or two.
        """
        counts = [min(own, BUSINESS_CROWD_COUNT) for own in self._unasked.values()]
        return sum(counts) > CROWD_COUNT and self._found_share > 0.5

    @property
    def is_busy(self) -> bool:
        """Whether as many tenants wait for a lookup as can be looked up soon."""
        return self._unasked.total() >= RECENT_LOOKUPS_MAX

    def entries(self) -> list[EntryT]:
        """Return all waiting operations."""
        return [entry for tenant in self._tenants.values() for entry in tenant.entries]

    def remove(self, ids: AbstractSet[int]) -> None:
        """Remove the waiting operations with these object ids."""
        for tenant in self._tenants.values():
            tenant.entries = deque(entry for entry in tenant.entries if id(entry) not in ids)

    def add(self, tenant_id: str, entries: Iterable[EntryT], *, left: str | None = None) -> Waited[EntryT] | None:
        """Append operations of a tenant; a new one is looked up at once. *left* is the shard that has refused them.

        Return the tenant where it is to be held at once.
        """
        tenant = self._tenants.get(tenant_id)
        arrived = list(entries)
        if tenant is None:
            business_id = arrived[0].operation.business_id
            tenant = WaitingTenant(deque(), waiting_since=loop_time(), business_id=business_id)
            self._tenants[tenant_id] = tenant
            self._unasked[business_id] += 1
            self._schedule(tenant_id, tenant, loop_time())
        elif not tenant.entries:  # was held
            tenant.waiting_since = loop_time()
            self._schedule(tenant_id, tenant, loop_time())
        tenant.left = left or tenant.left
        tenant.entries.extend(arrived)
        for entry in arrived:
            if len(tenant.names) < NAMES_MAX:
                tenant.names[entry.operation.business_id, entry.operation.location_id] = None
        if tenant.failure_count:
            return None
        is_over = self._unasked[tenant.business_id] > BUSINESS_CROWD_COUNT
        if is_over or (self._unasked.total() > CROWD_COUNT and not self.is_crowded):
            return self._take_waited(tenant_id, tenant)
        return None

    def _note_asked(self, tenant: WaitingTenant[EntryT]) -> None:
        if not tenant.failure_count:
            self._unasked[tenant.business_id] -= 1
            if not self._unasked[tenant.business_id]:
                del self._unasked[tenant.business_id]

    def _schedule(self, tenant_id: str, tenant: WaitingTenant[EntryT], at: float) -> None:
        tenant.agenda_number = next(self._agenda_numbers)
        heapq.heappush(self._agenda, (at, tenant.agenda_number, tenant_id))
        self._change.set()

    def retry(self, tenant_id: str) -> None:
        """Look a waiting tenant up now, and not after its back-off."""
        tenant = self._tenants.get(tenant_id)
        if tenant is not None and tenant_id not in self._lookups:
            self._schedule(tenant_id, tenant, loop_time())

    def take_due(self) -> list[str]:
        """Remove and return the tenants that are due, the longest due of each business first; businesses take turns."""
        due: list[str] = []
        now = loop_time()
        while self._agenda and self._agenda[0][0] <= now:
            _, turn, tenant_id = heapq.heappop(self._agenda)
            tenant = self._tenants.get(tenant_id)
            if tenant is not None and tenant.agenda_number == turn:
                self._due.setdefault(tenant.business_id, deque()).append((turn, tenant_id))
        lately, running = self._count_lookups()
        while (business_id := next_in_turn(self._due, lately, running)) is not None:
            own = self._due.pop(business_id)
            turn, tenant_id = own.popleft()
            if own:
                self._due[business_id] = own  # behind the others
            tenant = self._tenants.get(tenant_id)
            if tenant is None or tenant.agenda_number != turn:
                continue
            tenant.agenda_number = None
            if not tenant.entries and not self._is_wanted(tenant_id):
                self.forget(tenant_id)
            elif tenant_id not in self._lookups:
                due.append(tenant_id)
                lately[business_id] += 1
                running[business_id] += 1
        return due

    def _count_lookups(self) -> tuple[Counter[str], Counter[str]]:
        """Return the lookups by business: those that may be answered soon, and all."""
        now = loop_time()
        lately = Counter(business_id for business_id, at in self._lookups.values() if now - at < ANSWER_S)
        return lately, Counter(business_id for business_id, _ in self._lookups.values())

    async def wait_for_change(self, stopping: asyncio.Event) -> None:
        """Wait until something may have to be done."""
        self._change.clear()
        within_s = None
        if self._tenants or self._agenda:
            if self._due and next_in_turn(self._due, *self._count_lookups()) is not None:
                return  # else those that are due have to wait for an answer
            due_s = self._agenda[0][0] - loop_time() if self._agenda else CHECK_INTERVAL_MAX_S
            within_s = min(max(0.0, due_s), CHECK_INTERVAL_MAX_S)
        await wait_any(self._change, stopping, within_s=within_s)

    def take_long_waiting(self) -> Iterator[Waited[EntryT]]:
        """Remove and yield the tenants that are to be held, each PATIENCE_CHECK_S."""
        now = loop_time()
        if now < self._checked_at + PATIENCE_CHECK_S:
            return  # nearly always: it is asked after each lookup
        self._checked_at = now
        in_line_s = UNASKED_WAIT_MAX_S if now - self._answered_at < WAIT_MAX_S else WAIT_MAX_S
        for tenant_id, tenant in list(self._tenants.items()):
            patience_s = WAIT_MAX_S if tenant.reason is HoldReason.MOVING else self._patience_s
            longest_s = patience_s if tenant.failure_count else in_line_s
            if tenant.entries and now - tenant.waiting_since >= longest_s:
                yield self._take_waited(tenant_id, tenant)

    def _take_waited(self, tenant_id: str, tenant: WaitingTenant[EntryT]) -> Waited[EntryT]:
        self._note_asked(tenant)
        tenant.failure_count = tenant.failure_count or 1
        entries = list(tenant.entries)
        tenant.entries.clear()
        return Waited(tenant_id, entries, tenant.reason, tenant.shard_id, tenant.cause)

    def forget(self, tenant_id: str) -> None:
        """Look a tenant up no more."""
        self._note_asked(self._tenants.pop(tenant_id))

    def begin(self, tenant_id: str) -> None:
        """Note that a lookup of a tenant begins."""
        tenant = self._tenants.get(tenant_id)
        self._lookups[tenant_id] = "" if tenant is None else tenant.business_id, loop_time()

    def end(self, tenant_id: str) -> None:
        """Note that a lookup has ended, and its result is dealt with."""
        del self._lookups[tenant_id]
        tenant = self._tenants.get(tenant_id)
        if tenant is not None and tenant.agenda_number is None:  # added, or due, during the lookup
            self._schedule(tenant_id, tenant, loop_time())
        self._change.set()

    async def look_up(self, tenant_id: str) -> LookupResult[EntryT] | None:
        """Look up a tenant's shard once; None where the tenant waits on."""
        asked_at = self._utc()
        max_age_s = self._absence_max_age_s(tenant_id, asked_at)
        asked_at -= timedelta(seconds=max_age_s)
        why = None
        try:
            found = await self._gateway.find_writable_shard(tenant_id, absence_max_age_s=max_age_s)
            self._answered_at = loop_time()
            self._found_share += FOUND_WEIGHT * ((not isinstance(found, Absence)) - self._found_share)
            if found is Absence.NOT_HERE and (tenant := self._tenants.get(tenant_id)) is not None:
                found, why = await self._create_tenant(tenant_id, list(tenant.names))
        except TenantPausedError:
            self._schedule_retry(tenant_id, HoldReason.PAUSED)
            tenant = self._tenants.get(tenant_id)
            return None if tenant is None else Paused(tenant_id, list(tenant.entries))
        except HomeUnknownError as exc:
            self._schedule_retry(tenant_id, HoldReason.HOME_UNKNOWN, exc)
            return None
        except (RetryableError, PermanentError) as exc:
            self._schedule_retry(tenant_id, HoldReason.SHARD_UNAVAILABLE, exc)
            return None
        except Exception as exc:  # noqa: BLE001  # a defect in the lookup of one tenant must not end the others
            trouble = note_trouble(TargetKind.TENANT, tenant_id, "lookup", exc)
            trouble.__cause__ = exc  # whose own text may quote a record
            self._schedule_retry(tenant_id, HoldReason.INTERNAL_ERROR, trouble)
            return None
        if not isinstance(found, Absence):
            return self.take_found(tenant_id, found)
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            return None
        self._schedule_retry(tenant_id, HoldReason(found), why)
        if found is not Absence.UNREGISTERED:
            return None
        return self._find_overdue(tenant_id, tenant, asked_at) if tenant.entries else Unregistered(tenant_id, asked_at)

    def take_found(self, tenant_id: str, shard_id: str) -> Found[EntryT] | None:
        """Remove a tenant with a known shard, and return its operations, if it waits."""
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            return None
        self.forget(tenant_id)
        return Found(tenant_id, shard_id, tenant.entries, has_moved=tenant.left not in {None, shard_id})

    async def _create_tenant(
        self, tenant_id: str, names: Sequence[tuple[str, str]]
    ) -> tuple[str | Absence, Exception | None]:
        try:
            return await self._gateway.provision_on_first_use(tenant_id, names), None
        except (TenantNotMadeError, RetryableError, PermanentError) as exc:
            return Absence.NOT_HERE, exc

    def _absence_max_age_s(self, tenant_id: str, now: datetime) -> float:
        """Return how old the answer "not registered" may be: above 0 for the first lookup alone.

        So an unregistered tenant that keeps sending costs no request each time it is held again.
        """
        tenant = self._tenants.get(tenant_id)
        if tenant is None or tenant.failure_count:
            return 0.0
        arrivals = (entry.operation.origin.arrived_at for entry in tenant.entries)
        return absence_max_age_s(arrivals, now=now, tenant_wait=self._tenant_wait)

    def _schedule_retry(self, tenant_id: str, reason: HoldReason, exc: Exception | None = None) -> None:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            return
        tenant.reason, tenant.cause = reason, exc
        tenant.shard_id = exc.shard_id if isinstance(exc, ShardUnavailableError) else None
        wished_s = exc.retry_after_s or 0.0 if isinstance(exc, RetryableError) else 0.0
        self._note_asked(tenant)
        if reason is HoldReason.MOVING and tenant.entries:
            tenant.failure_count = tenant.failure_count or 1
            self._schedule(tenant_id, tenant, loop_time() + MOVING_RETRY_S)
            return
        tenant.failure_count += 1
        longest_s = PAUSED_RETRY_MAX_S if reason is HoldReason.PAUSED else RETRY_MAX_S
        max_s = max(longest_s, len(self._tenants) / LOOKUPS_PER_S)
        delay_s = backoff_s(tenant.failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=max_s)
        self._schedule(tenant_id, tenant, loop_time() + max(delay_s, wished_s))

    def _find_overdue(
        self, tenant_id: str, tenant: WaitingTenant[EntryT], asked_at: datetime
    ) -> Overdue[EntryT] | None:
        entries = [
            entry
            for entry in tenant.entries
            if is_overdue(entry.operation.origin.arrived_at, now=asked_at, tenant_wait=self._tenant_wait)
        ]
        if not entries:
            return None
        return Overdue(tenant_id, entries)

    def remove_overdue(self, overdue: Overdue[EntryT]) -> None:
        """Remove the operations of *overdue*, which are settled."""
        tenant = self._tenants[overdue.tenant_id]
        tenant.waiting_since = loop_time()
        given_up = {id(entry) for entry in overdue.entries}
        tenant.entries = deque(entry for entry in tenant.entries if id(entry) not in given_up)
        if not tenant.entries and not self._is_wanted(overdue.tenant_id):
            self.forget(overdue.tenant_id)


def next_in_turn(waiting: Iterable[str], lately: Mapping[str, int], running: Mapping[str, int]) -> str | None:
    """Return the first business that may have one more lookup; those without an answer count less.

    A business has at most three times the room that all leave, so at most three quarters of what others do not use.
    """
    recent_room = RECENT_LOOKUPS_MAX - sum(lately.values())
    room = LOOKUPS_MAX - sum(running.values())
    for business_id in waiting:
        if lately.get(business_id, 0) < 3 * recent_room and running.get(business_id, 0) < 3 * room:
            return business_id
    return None
