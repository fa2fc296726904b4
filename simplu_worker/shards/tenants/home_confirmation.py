"""The last step of provisioning: make sure that a tenant which was just made has no other home, and note that.

Whoever makes a tenant asks for other homes before, and again after the commit. So of two that make it at once, on two
shards, because Citrus changed its answer in between, the one that commits last sees both; one of the homes is undone
(`settling`), or a person is called when both have something to lose. That Citrus says the same after the commit is no
proof: it may have said another thing in between. So the shards are asked every time; Citrus, whether it still knows.

A tenant takes operations from its commit on, confirmed or not. As long as it is not, its row says so, and whoever meets
it next goes on here: the same message when it comes again, or `ConfirmationSweep`, which looks for such rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec
import structlog

from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.operations.admission import TenantState
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.coalescing import Coalescer
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.tenant_homes import MOVES_MAX, QUERIES_AT_ONCE, TenantHomes
from simplu_worker.shards.tenants.home_conflict import HomeCandidate, resolve_homes
from simplu_worker.shards.tenants.tenant_rows import DEFAULT_ROW

log = structlog.get_logger(__name__)


class HomeUndoneError(RetryableError):
    """What was made is undone, as the tenant was made elsewhere at the same time; the next try finds it there."""


class TenantSplitError(RetryableError):
    """A tenant has two homes, and both have something to lose: a person has to look."""


class PlacedTenant(msgspec.Struct, frozen=True):
    """A tenant that was found or made on *shard*.

    *is_new*: its name was given to nobody before, so it need not wait for a shard that is down.
    """

    business_id: str
    location_id: str
    business_type: str
    shard: ShardAddress
    is_new: bool = False

    @property
    def tenant_id(self) -> str:
        """The tenant's id."""
        return tenant_id_of(self.business_id, self.location_id)


class _Confirmation(msgspec.Struct):
    """A tenant of which it is not known yet whether it has another home."""

    placed: PlacedTenant
    home: HomeCandidate
    shards: dict[str, ShardAddress]  # by shard id
    queried: set[str]
    rivals: list[HomeCandidate] = msgspec.field(default_factory=list)
    error: WorkerError | None = None  # of one that may be its home


class HomeConfirmer:
    """Confirms tenants. *on_doubt* is told of those whose routes are to be asked anew."""

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
        self._at_once = asyncio.Semaphore(QUERIES_AT_ONCE)
        self._confirmations: dict[str, Coalescer[tuple[str, datetime], WorkerError | None]] = {}  # by shard id

    async def confirm(self, placed: Sequence[PlacedTenant]) -> dict[str, WorkerError]:
        """Confirm those of *placed* that are not, each tenant once; return what kept some from it, by tenant id.

        `HomeUndoneError` and `TenantSplitError` beside the usual ones; whatever it is, the same call may be made again.
        """
        troubles: dict[str, WorkerError] = {}
        homes = await self._fetch_unconfirmed(placed, troubles)
        doubts = await self._begin_confirmations([one for one in placed if one.tenant_id in homes], homes, troubles)
        await self._find_rivals(doubts, troubles)
        async with asyncio.TaskGroup() as tasks:
            for doubt in doubts.values():
                if any(rival.is_home for rival in doubt.rivals):
                    tasks.create_task(self._resolve(doubt, troubles), name=f"settle:{doubt.placed.tenant_id}")
        waiting = {tenant_id for tenant_id, doubt in doubts.items() if doubt.error is not None}
        _defer_unanswered([doubts[tenant_id] for tenant_id in sorted(waiting - troubles.keys())], troubles)
        done = [one for one in placed if one.tenant_id in homes and one.tenant_id not in troubles.keys() | waiting]
        await self._mark_confirmed(done, homes, troubles)
        return troubles

    async def _fetch_unconfirmed(
        self, placed: Iterable[PlacedTenant], troubles: dict[str, WorkerError]
    ) -> dict[str, HomeCandidate]:
        """Return the rows, as they are now, of those tenants that are not confirmed."""
        by_shard: dict[str, tuple[ShardAddress, list[str]]] = {}
        for one in placed:
            by_shard.setdefault(one.shard.shard_id, (one.shard, []))[1].append(one.tenant_id)
        found: dict[str, HomeCandidate] = {}

        async def ask(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            answer = await self._fetch_candidates(shard, tenant_ids)
            for tenant_id in tenant_ids:
                if isinstance(answer, WorkerError):
                    troubles[tenant_id] = answer
                elif (claimant := answer.get(tenant_id)) is None:
                    troubles[tenant_id] = _undone_error(shard.shard_id)
                elif claimant.is_unconfirmed:
                    found[tenant_id] = claimant

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in by_shard.values():
                tasks.create_task(ask(shard, tenant_ids), name=f"confirm:{shard.shard_id}")
        return found

    async def _fetch_candidates(
        self, shard: ShardAddress, tenant_ids: Sequence[str]
    ) -> dict[str, HomeCandidate] | WorkerError:
        try:
            async with self._at_once:
                rows = await self._homes.fetch_rows(shard, tenant_ids, query="find_claimants")
        except WorkerError as exc:
            return exc
        return {tenant_id: HomeCandidate.from_row(shard.shard_id, row) for tenant_id, row in rows.items()}

    async def _begin_confirmations(
        self, placed: Sequence[PlacedTenant], homes: Mapping[str, HomeCandidate], troubles: dict[str, WorkerError]
    ) -> dict[str, _Confirmation]:
        """Ask Citrus, or the map, again for each; return where each may have another home."""
        doubts: dict[str, _Confirmation] = {}

        async def ask(one: PlacedTenant) -> None:
            try:
                async with self._at_once:
                    named = await self._locate(one)
            except RetryableError as exc:
                troubles[one.tenant_id] = exc
                return
            if named is None or named.shard_id != one.shard.shard_id:
                # A changed answer is no new name's any more: somebody may have been sent there before.
                one = msgspec.structs.replace(one, is_new=False)
            to_ask = {} if named is None else {named.shard_id: named}
            doubts[one.tenant_id] = _Confirmation(one, homes[one.tenant_id], to_ask, {one.shard.shard_id})

        async with asyncio.TaskGroup() as tasks:
            for one in placed:
                tasks.create_task(ask(one), name=f"ask-again:{one.tenant_id}")
        try:
            earlier = await self._locator.list_possible_homes(doubts) if doubts else {}
        except (RetryableError, PermanentError) as exc:
            troubles |= dict.fromkeys(doubts, exc)
            return {}
        for tenant_id, shards in earlier.items():
            doubts[tenant_id].shards |= {shard.shard_id: shard for shard in shards}
        return doubts

    async def _locate(self, one: PlacedTenant) -> ShardAddress | None:
        """Return the shard that is named for a tenant now, registered once more where that was forgotten."""
        try:
            named = await self._locator.locate(one.tenant_id)
            if named is None:
                named = (await self._locator.register(one.business_id, one.location_id, one.business_type)).address
        except PermanentError:  # an address that may not be used: another one than that where the tenant was made
            return None
        return named

    async def _find_rivals(self, doubts: Mapping[str, _Confirmation], troubles: dict[str, WorkerError]) -> None:
        """Ask every shard where one of the tenants may be, and those where they moved from there; once for all."""
        for _ in range(MOVES_MAX):
            by_shard: dict[str, tuple[ShardAddress, list[_Confirmation]]] = {}
            for doubt in doubts.values():
                for shard_id, shard in doubt.shards.items():
                    if shard_id not in doubt.queried:
                        by_shard.setdefault(shard_id, (shard, []))[1].append(doubt)
            if not by_shard:
                return
            async with asyncio.TaskGroup() as tasks:
                for shard, asking in by_shard.values():
                    tasks.create_task(self._query_rivals(shard, asking), name=f"rivals:{shard.shard_id}")
        troubles |= {
            tenant_id: RetryableError(f"expected at most {MOVES_MAX} moves of a tenant, got more")
            for tenant_id, doubt in doubts.items()
            if doubt.shards.keys() - doubt.queried
        }

    async def _query_rivals(self, shard: ShardAddress, asking: Sequence[_Confirmation]) -> None:
        answer = await self._fetch_candidates(shard, [doubt.placed.tenant_id for doubt in asking])
        for doubt in asking:
            doubt.queried.add(shard.shard_id)
            if isinstance(answer, WorkerError):
                doubt.error = answer
            elif (claimant := answer.get(doubt.placed.tenant_id)) is not None:
                doubt.rivals.append(claimant)
                if claimant.state == TenantState.MOVED and claimant.moved_to not in doubt.queried:
                    await self._follow_move(claimant, doubt)

    async def _follow_move(self, moved: HomeCandidate, doubt: _Confirmation) -> None:
        try:
            target = await self._homes.find_address(moved.moved_to)
        except (RetryableError, PermanentError) as exc:
            doubt.error = exc
            return
        if target is None:
            doubt.error = RetryableError(f"a tenant moved to shard {moved.moved_to}, which nobody knows")
        else:
            doubt.shards[target.shard_id] = target

    async def _resolve(self, doubt: _Confirmation, troubles: dict[str, WorkerError]) -> None:
        """Undo all homes of a tenant but one."""
        one = doubt.placed
        settlement = resolve_homes([doubt.home, *doubt.rivals])
        shards = {**doubt.shards, one.shard.shard_id: one.shard}
        if settlement.kept is None:
            split = sorted(home.shard_id for home in [doubt.home, *doubt.rivals] if home.is_home)
            log.error("tenant.split", business_id=one.business_id, location_id=one.location_id, shard_ids=split)
            troubles[one.tenant_id] = TenantSplitError(f"the tenant has rows on the shards {', '.join(split)}")
            return
        for home in settlement.undone:
            try:
                await self._undo(
                    self._pools.ensure_pool(shards[home.shard_id]), one, home, kept=settlement.kept.shard_id
                )
            except WorkerError as exc:
                troubles[one.tenant_id] = exc
        if doubt.home in settlement.undone:
            troubles.setdefault(one.tenant_id, _undone_error(one.shard.shard_id))

    async def _undo(self, pool: ShardPool, one: PlacedTenant, home: HomeCandidate, *, kept: str) -> None:
        """Take back what provisioning made on one shard, if it still is what it was seen to be. Idempotent."""
        async with pool.transaction() as connection:
            # First held and then looked at: a batch that was just being applied is seen.
            await connection.fetch(QUERIES["lock_tenants_for_control"], [one.tenant_id])
            row = await connection.fetchrow(QUERIES["find_claimants"], [one.tenant_id])
            if row is None:
                return
            if HomeCandidate.from_row(home.shard_id, dict(row)) != home:
                raise LostRaceError("a tenant's home changed when it was to be undone")
            for query in ("delete_default_row", "delete_tenant_made", "destroy_tenant_remade"):
                await connection.execute(QUERIES[query], one.tenant_id)
        log.warning(
            "tenant.undone",
            business_id=one.business_id,
            location_id=one.location_id,
            shard_id=home.shard_id,
            kept_shard_id=kept,
        )
        instruments.PROVISIONING.labels("undone").inc()
        self._on_undone(one.tenant_id)
        self._on_change([ResourceKey(one.tenant_id, *DEFAULT_ROW)])

    async def _mark_confirmed(
        self, placed: Iterable[PlacedTenant], homes: Mapping[str, HomeCandidate], troubles: dict[str, WorkerError]
    ) -> None:
        """Note that tenants are confirmed, in one transaction a shard with those of other calls."""
        by_shard: dict[str, tuple[ShardAddress, list[str]]] = {}
        for one in placed:
            by_shard.setdefault(one.shard.shard_id, (one.shard, []))[1].append(one.tenant_id)

        async def note(shard: ShardAddress, tenant_ids: Sequence[str]) -> None:
            turns = self._confirmations.get(shard.shard_id)
            if turns is None:
                turns = self._confirmations[shard.shard_id] = Coalescer(
                    lambda noted: self._write_confirmed(shard.shard_id, noted)
                )
            noted = await turns.submit([(tenant_id, homes[tenant_id].created_at) for tenant_id in tenant_ids])
            troubles.update(
                {
                    tenant_id: trouble
                    for tenant_id, trouble in zip(tenant_ids, noted, strict=True)
                    if trouble is not None
                }
            )

        async with asyncio.TaskGroup() as tasks:
            for shard, tenant_ids in by_shard.values():
                tasks.create_task(note(shard, tenant_ids), name=f"confirmed:{shard.shard_id}")

    async def _write_confirmed(self, shard_id: str, noted: Sequence[tuple[str, datetime]]) -> list[WorkerError | None]:
        tenant_ids = [tenant_id for tenant_id, _ in noted]
        try:
            async with self._pools.pool_of(shard_id).transaction() as connection:
                await connection.fetch(QUERIES["lock_tenants_for_control"], tenant_ids)
                made_at = [made_at.isoformat() for _, made_at in noted]
                rows = await connection.fetch(QUERIES["confirm_tenants"], tenant_ids, made_at)
        except WorkerError as exc:
            return [exc] * len(noted)
        confirmed = {row["id"] for row in rows}
        return [None if tenant_id in confirmed else _undone_error(shard_id) for tenant_id in tenant_ids]


def _undone_error(shard_id: str) -> HomeUndoneError:
    return HomeUndoneError(f"what was made on shard {shard_id} is undone: the tenant was made on another one as well")


def _defer_unanswered(doubts: Sequence[_Confirmation], troubles: dict[str, WorkerError]) -> None:
    """Let those wait whose name is not new; say how many others go on, not confirmed."""
    going_on = [doubt for doubt in doubts if doubt.placed.is_new]
    for doubt in doubts:
        if not doubt.placed.is_new and doubt.error is not None:
            troubles[doubt.placed.tenant_id] = doubt.error
    if going_on:
        log.warning("tenants.unconfirmed", count=len(going_on), error=str(going_on[0].error))
