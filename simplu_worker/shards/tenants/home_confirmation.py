"""The last step of provisioning: check that a new tenant has no other home, and record that.

Earlier homes are asked before the commit and again after it. So if two replicas make a tenant on two shards at once,
the one that commits last finds both. One home is undone, or a person decides if both have data to lose. The same answer
of Citrus after the commit is no proof: the shards are asked every time.

A tenant takes operations from its commit on. An unconfirmed one is confirmed by the same message when it comes again,
and by `ConfirmationSweep`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import note_trouble
from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.log import mark_changes
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import LostRaceError, RolledBackError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_shard, group_by_shard
from simplu_worker.shards.routing.tenant_homes import QUERIES_AT_ONCE, TenantHomes
from simplu_worker.shards.tenants.control_rules import DEFAULT_ROW, HomeCandidate, rank_homes, timestamp_text
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.timing.waits import repeat_every
from simplu_worker.vocabulary import ProvisioningOutcome, TargetKind, TenantState

log = structlog.get_logger(__name__)


class HomeUndoneError(RetryableError):
    """The tenant was made on another shard at the same time, and this home is undone."""


class TenantSplitError(RetryableError):
    """A tenant has two homes, and both have data to lose: a person has to decide."""


class PlacedTenant(msgspec.Struct, frozen=True):
    """A tenant that was found or made on *shard*. *is_new*: it need not wait for a shard that is down."""

    business_id: str
    location_id: str
    business_type: str
    shard: ShardAddress
    is_new: bool = False

    @property
    def tenant_id(self) -> str:
        """The tenant's id."""
        return tenant_id_of(self.business_id, self.location_id)


class _RivalSearch(msgspec.Struct):
    placed: PlacedTenant
    home: HomeCandidate
    shards: dict[str, ShardAddress]  # to query, by shard id
    rivals: list[HomeCandidate] = msgspec.field(default_factory=list)
    error: WorkerError | None = None  # of a shard that may have the tenant


class HomeConfirmer:
    """Confirms tenants. Calls *on_undone* with each tenant id that has to be looked up again."""

    def __init__(
        self,
        locator: Locator,
        pools: Pools,
        *,
        on_change: OnChange = ignore_changes,
        on_undone: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._homes = TenantHomes(locator, pools)
        self._on_change = on_change
        self._on_undone = on_undone
        self._slots = asyncio.Semaphore(QUERIES_AT_ONCE)
        self._confirmations: Coalescer[str, tuple[str, datetime], WorkerError | None] = Coalescer(self._write_confirmed)

    async def confirm(self, placed: Sequence[PlacedTenant]) -> dict[str, WorkerError]:
        """Confirm the unconfirmed tenants of *placed*, each once; return the errors of the others by tenant id."""
        errors: dict[str, WorkerError] = {}
        homes = await self._fetch_unconfirmed(placed, errors)
        searches = await self._begin_searches([one for one in placed if one.tenant_id in homes], homes, errors)
        await self._find_rivals(searches)
        async with asyncio.TaskGroup() as tasks:
            for search in searches.values():
                if any(rival.is_home for rival in search.rivals):
                    tasks.create_task(self._resolve(search, errors), name=f"resolve:{search.placed.tenant_id}")
        unanswered = {tenant_id for tenant_id, search in searches.items() if search.error is not None}
        _defer_unanswered([searches[tenant_id] for tenant_id in sorted(unanswered - errors.keys())], errors)
        done = [one for one in placed if one.tenant_id in homes and one.tenant_id not in errors.keys() | unanswered]
        await self._mark_confirmed(done, homes, errors)
        return errors

    async def _fetch_unconfirmed(
        self, placed: Iterable[PlacedTenant], errors: dict[str, WorkerError]
    ) -> dict[str, HomeCandidate]:
        found: dict[str, HomeCandidate] = {}

        async def fetch(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            answer = await self._fetch_candidates(shard, tenant_ids)
            for tenant_id in tenant_ids:
                if isinstance(answer, WorkerError):
                    errors[tenant_id] = answer
                elif (candidate := answer.get(tenant_id)) is None:
                    errors[tenant_id] = _undone_error(shard.shard_id)
                elif candidate.is_unconfirmed:
                    found[tenant_id] = candidate

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in group_by_shard((one.shard, one.tenant_id) for one in placed):
                tasks.create_task(fetch(shard, tenant_ids), name=f"confirm:{shard.shard_id}")
        return found

    async def _fetch_candidates(
        self, shard: ShardAddress, tenant_ids: Sequence[str]
    ) -> dict[str, HomeCandidate] | WorkerError:
        try:
            async with self._slots:
                rows = await self._homes.fetch_rows(shard, tenant_ids, query="find_home_candidates")
        except WorkerError as exc:
            return exc
        return {tenant_id: HomeCandidate.from_row(shard.shard_id, row) for tenant_id, row in rows.items()}

    async def _begin_searches(
        self, placed: Sequence[PlacedTenant], homes: Mapping[str, HomeCandidate], errors: dict[str, WorkerError]
    ) -> dict[str, _RivalSearch]:
        searches: dict[str, _RivalSearch] = {}

        async def locate(one: PlacedTenant) -> None:
            try:
                async with self._slots:
                    named = await self._locate(one)
            except RetryableError as exc:
                errors[one.tenant_id] = exc
                return
            if named is None or named.shard_id != one.shard.shard_id:
                # After a changed answer the tenant is not new any more: another replica may have made it there.
                one = msgspec.structs.replace(one, is_new=False)
            shards = {} if named is None else {named.shard_id: named}
            searches[one.tenant_id] = _RivalSearch(one, homes[one.tenant_id], shards)

        async with asyncio.TaskGroup() as tasks:
            for one in placed:
                tasks.create_task(locate(one), name=f"locate-again:{one.tenant_id}")
        try:
            possible = await self._locator.list_possible_homes(searches) if searches else {}
        except (RetryableError, PermanentError) as exc:
            errors |= dict.fromkeys(searches, exc)
            return {}
        for tenant_id, shards in possible.items():
            searches[tenant_id].shards |= {shard.shard_id: shard for shard in shards}
        return searches

    async def _locate(self, one: PlacedTenant) -> ShardAddress | None:
        try:
            return await self._locator.locate(one.tenant_id)
        except PermanentError:  # an address that may not be used, so not that of the shard where the tenant was made
            return None

    async def _find_rivals(self, searches: Mapping[str, _RivalSearch]) -> None:
        groups = group_by_shard(
            (shard, search)
            for search in searches.values()
            for shard_id, shard in search.shards.items()
            if shard_id != search.placed.shard.shard_id
        )
        async with asyncio.TaskGroup() as tasks:
            for shard, some in groups:
                tasks.create_task(self._query_rivals(shard, some), name=f"rivals:{shard.shard_id}")

    async def _query_rivals(self, shard: ShardAddress, searches: Sequence[_RivalSearch]) -> None:
        answer = await self._fetch_candidates(shard, [search.placed.tenant_id for search in searches])
        for search in searches:
            if isinstance(answer, WorkerError):
                search.error = answer
            elif (candidate := answer.get(search.placed.tenant_id)) is not None:
                search.rivals.append(candidate)
                if candidate.state == TenantState.MOVED and candidate.moved_to not in {
                    search.placed.shard.shard_id,
                    *search.shards,
                }:
                    search.error = RetryableError(f"a tenant moved to shard {candidate.moved_to}, which was not asked")

    async def _resolve(self, search: _RivalSearch, errors: dict[str, WorkerError]) -> None:
        one = search.placed
        shards = {**search.shards, one.shard.shard_id: one.shard}
        left = rank_homes([search.home, *search.rivals])
        for home in reversed(left.copy()):
            if len(left) == 1:
                break
            try:
                await self._undo(self._pools.ensure_pool(shards[home.shard_id]), one, home)
                left.remove(home)
            except RolledBackError:
                continue  # it has data to lose
            except WorkerError as exc:
                errors[one.tenant_id] = exc
                return
        if len(left) > 1:
            split = sorted(home.shard_id for home in left)
            log.error("tenant.split", business_id=one.business_id, location_id=one.location_id, shard_ids=split)
            errors[one.tenant_id] = TenantSplitError(f"the tenant has rows on the shards {', '.join(split)}")
        elif search.home not in left:
            errors[one.tenant_id] = _undone_error(one.shard.shard_id)

    async def _undo(self, pool: ShardPool, one: PlacedTenant, home: HomeCandidate) -> None:
        """Undo a home that was just made. Raises `RolledBackError` where it has data to lose."""
        async with pool.transaction() as connection:
            # Locked first and read then, so that the read sees a batch that was being applied.
            await connection.fetch(QUERIES["lock_tenants_for_control"], [one.tenant_id])
            row = await connection.fetchrow(QUERIES["find_home_candidates"], [one.tenant_id])
            if row is None:
                return
            if HomeCandidate.from_row(home.shard_id, dict(row)) != home:
                raise LostRaceError("a tenant's home changed since it was read; it is not undone")
            await mark_changes(connection, [(one.tenant_id, *DEFAULT_ROW)])
            if await connection.fetchval(QUERIES["undo_tenant"], one.tenant_id) is None:
                raise RolledBackError
        log.warning("tenant.undone", business_id=one.business_id, location_id=one.location_id, shard_id=home.shard_id)
        instruments.PROVISIONING.labels(ProvisioningOutcome.UNDONE).inc()
        self._on_undone(one.tenant_id)
        self._on_change([ResourceKey(one.tenant_id, *DEFAULT_ROW)])

    async def _mark_confirmed(
        self, placed: Iterable[PlacedTenant], homes: Mapping[str, HomeCandidate], errors: dict[str, WorkerError]
    ) -> None:
        async def mark(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            made = [(tenant_id, homes[tenant_id].created_at) for tenant_id in tenant_ids]
            results = await self._confirmations.submit(shard.shard_id, made)
            errors.update(
                {tenant_id: error for tenant_id, error in zip(tenant_ids, results, strict=True) if error is not None}
            )

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in group_by_shard((one.shard, one.tenant_id) for one in placed):
                tasks.create_task(mark(shard, tenant_ids), name=f"confirmed:{shard.shard_id}")

    async def _write_confirmed(
        self, shard_id: str, tenants: Sequence[tuple[str, datetime]]
    ) -> list[WorkerError | None]:
        tenant_ids = [tenant_id for tenant_id, _ in tenants]
        try:
            async with self._pools.pool_of(shard_id).transaction() as connection:
                await connection.fetch(QUERIES["lock_tenants_for_control"], tenant_ids)
                made_at = [timestamp_text(made_at) for _, made_at in tenants]
                rows = await connection.fetch(QUERIES["confirm_tenants"], tenant_ids, made_at)
        except WorkerError as exc:
            return [exc] * len(tenants)
        confirmed = {row["id"] for row in rows}
        return [None if tenant_id in confirmed else _undone_error(shard_id) for tenant_id in tenant_ids]


def _undone_error(shard_id: str) -> HomeUndoneError:
    return HomeUndoneError(f"the tenant's rows on shard {shard_id} are undone: the tenant was made on another one too")


def _defer_unanswered(searches: Sequence[_RivalSearch], errors: dict[str, WorkerError]) -> None:
    new = [search for search in searches if search.placed.is_new]
    for search in searches:
        if not search.placed.is_new and search.error is not None:
            errors[search.placed.tenant_id] = search.error
    if new:
        log.warning("tenants.unconfirmed", count=len(new), error=str(new[0].error))


SWEEP_INTERVAL_S: Final = 300.0
OVERDUE: Final = timedelta(minutes=2)  # by then the replica that made the tenant has confirmed it, or never will
SWEEP_MAX_TENANTS: Final = 500  # of one shard
SHARDS_AT_ONCE: Final = 8


class ConfirmationSweep:
    """Confirms tenants on the shards in use, *overdue* after they were made."""

    def __init__(
        self,
        confirmer: HomeConfirmer,
        pools: Pools,
        *,
        interval_s: float = SWEEP_INTERVAL_S,
        overdue: timedelta = OVERDUE,
    ) -> None:
        self._confirmer = confirmer
        self._pools = pools
        self._interval_s = interval_s
        self._overdue = overdue
        self._split_count = 0  # tenants with two homes that both have data to lose, as last seen

    async def run(self) -> None:
        """Sweep until cancelled, one sweep at a time; each begins at least `interval_s` after the one before."""
        await repeat_every(self._interval_s, self.sweep)

    async def sweep(self) -> int:
        """Confirm the overdue tenants; return the number that could not be confirmed."""
        in_use = list(self._pools.by_shard_id().values())
        pools = [pool for pool in in_use if pool.is_healthy]
        slots = asyncio.Semaphore(SHARDS_AT_ONCE)

        async def fetch(pool: ShardPool) -> list[PlacedTenant] | None:
            async with slots:
                return await self._fetch_overdue(pool)

        async with asyncio.TaskGroup() as tasks:
            fetches = [tasks.create_task(fetch(pool), name=f"unconfirmed:{pool.address.shard_id}") for pool in pools]
        # Each tenant once: if it is unconfirmed on two shards, the confirmation of one home finds the other.
        answers = [task.result() for task in fetches]
        overdue = {placed.tenant_id: placed for answer in answers for placed in answer or ()}
        errors = await self._confirmer.confirm(list(overdue.values())) if overdue else {}
        are_all_answers_whole = all(answer is not None and len(answer) < SWEEP_MAX_TENANTS for answer in answers)
        split_count = sum(isinstance(error, TenantSplitError) for error in errors.values())
        if (are_all_answers_whole and len(pools) == len(in_use)) or split_count > self._split_count:
            self._split_count = split_count
            instruments.TENANTS_SPLIT.set(split_count)
        for error in errors.values():
            log.debug("confirmation.deferred", shard_id=None, count=len(errors), error=str(error))
            break
        return len(errors)

    async def _fetch_overdue(self, pool: ShardPool) -> list[PlacedTenant] | None:
        address = pool.address
        try:
            rows = await fetch_from_shard(
                pool, QUERIES["find_unconfirmed"], self._overdue.total_seconds(), SWEEP_MAX_TENANTS
            )
        except Exception as exc:  # noqa: BLE001  # of this shard; the others continue
            if not isinstance(exc, WorkerError):
                exc = note_trouble(TargetKind.SHARD, address.shard_id, "confirmation", exc)
            log.debug("confirmation.deferred", shard_id=address.shard_id, count=None, error=str(exc))
            return None
        return [PlacedTenant(row["business_id"], row["location_id"], row["business_type"], address) for row in rows]
