"""The consumers' way to the shards: find the shard of a tenant, apply operations there, look up an operation."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from simplu_worker.bulkheads import of_shard, of_tenant
from simplu_worker.cache.invalidations import OnChange, changed_keys, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.fairness import ShardTime
from simplu_worker.operations.limits import NO_LIMIT, Limit
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.health.trial_write import try_write
from simplu_worker.shards.lookups import ShardLookups
from simplu_worker.shards.positions import ShardPositions
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.following import find_addresses
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.tenants.provisioning import FirstUse, TenantName
from simplu_worker.shards.types import PositionClaim, TenantPausedError
from simplu_worker.vocabulary import Absence, Inability, TenantState

LOOK_AROUND_S: Final = 5.0


class ShardGateway:
    """The only way from the consumers to the shards."""

    def __init__(
        self,
        directory: Directory,
        locator: Locator,
        pools: Pools,
        *,
        tenant_wait: timedelta,
        default_limit: Limit = NO_LIMIT,
        on_change: OnChange = ignore_changes,
        commits: ReplicationWaiter | None = None,
        first_use: FirstUse | None = None,
    ) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self._tenant_wait = tenant_wait
        self._default_limit = default_limit
        self._on_change = on_change
        self._commits = commits or ReplicationWaiter(pools)
        self._first_use = first_use
        self.positions = ShardPositions(pools)
        self.lookups = ShardLookups(directory, locator, pools)
        self._writers: dict[str, tuple[ShardPool, ShardWriter]] = {}
        self.times: defaultdict[str, ShardTime] = defaultdict(ShardTime)  # what operations cost each shard, by id
        self._last_applied_at: dict[str, float] = {}  # by shard id, noted by the writers

    @property
    def inability(self) -> Inability | None:
        """Why no operation can be applied now, whichever tenant's."""
        if (reason := self._locator.inability) is not None:
            return reason
        pools = self._pools.by_shard_id().values()
        are_lost = bool(pools) and not any(pool.is_healthy and pool.refusal is None for pool in pools)
        return Inability.SHARDS_UNREACHABLE if are_lost else None

    async def look_around(self) -> None:
        """Find out whether a shard answers, so that `inability` is known. Raises nothing."""
        with contextlib.suppress(RetryableError, PermanentError, TimeoutError):
            async with asyncio.timeout(LOOK_AROUND_S):
                for shard in await self._locator.list_shards():
                    with contextlib.suppress(RetryableError, PermanentError):
                        await self._pools.ensure_pool(shard).probe()
                        break

    def cached_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which the tenant was last found; None if it is paused."""
        address = self._directory.cached_address(tenant_id)
        return None if address is None or self.paused_s(tenant_id) else address.shard_id

    def paused_s(self, tenant_id: str) -> float:
        """Return for how many seconds a tenant is still paused."""
        return self._directory.paused_s(tenant_id)

    def is_tenant(self, business_id: str, location_id: str) -> bool | None:
        """Return whether the tenant's id is of these two ids; None if unknown."""
        return self._directory.routes.is_tenant(business_id, location_id)

    def is_up(self, shard_id: str) -> bool:
        """Return whether the last use or probe of a shard succeeded."""
        pool = self._pools.by_shard_id().get(shard_id)
        return pool is not None and pool.is_healthy

    def last_applied_at(self, shard_id: str) -> float:
        """Return when a shard last applied a batch, or a part of one, of any caller (monotonic)."""
        return self._last_applied_at.get(shard_id, float("-inf"))

    @of_tenant
    async def find(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        """Return the id of the shard that confirms the tenant, or why there is none. Raises as `Directory.find`."""
        found = await self._directory.find(tenant_id, absence_max_age_s=absence_max_age_s)
        return found.shard_id if isinstance(found, ShardAddress) else found

    @of_tenant
    async def find_writable_shard(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        """Return the shard that takes operations of the tenant, or why there is none.

        Raises `TenantPausedError` too.
        """
        found = await self.find(tenant_id, absence_max_age_s=absence_max_age_s)
        if not isinstance(found, Absence) and self.paused_s(tenant_id):
            raise TenantPausedError("a person has paused the tenant")
        return found

    @of_tenant
    async def end_pause(self, tenant_id: str) -> None:
        """End the pause of a tenant. Raises as `find`."""
        home = await self.find(tenant_id)
        if not isinstance(home, Absence):
            async with self._pools.pool_of(home).connection() as connection:
                await connection.execute(QUERIES["end_pause"], tenant_id)

    @of_tenant
    async def provision_on_first_use(self, tenant_id: str, names: Iterable[TenantName]) -> str | Absence:
        """Provision a tenant that was `NOT_HERE`, if `PROVISION_ON_FIRST_USE` is set; then return as `find`.

        *names* are the pairs of business and location that sent operations. Raises `TenantNotMadeError`.
        """
        if self._first_use is None:
            return Absence.NOT_HERE
        await self._first_use.make_tenant(names)
        self._directory.forget(tenant_id)
        return await self.find(tenant_id)

    @of_shard
    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        """Apply *operations* to a shard, in effect one by one in order; return the outcome of each.

        With *claim*, the same transaction writes the reader's row. Raises `RetryableError` with an unknown outcome: the
        caller may retry the same batch; `PositionChangedError` when the reader must read the row.
        """
        stored_names: Mapping[str, Collection[str]] = {}
        if self._pools.is_retired(shard_id):
            outcomes = [HOLD] * len(operations)  # it has no tenants any more
        else:
            writer = self._ensure_writer(shard_id)
            outcomes = await writer.apply(operations, claim)
            stored_names = writer.stored_names
        for tenant_id in {operation.tenant_id for operation in operations}:
            self._directory.cached_address(tenant_id)  # marks the cached route as used
        hold = Disposition.HOLD  # looked up once: access to an enum member is slow
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome.disposition is hold:
                self._directory.forget(operation.tenant_id)
        self._on_change(changed_keys(operations, outcomes, stored_names))
        return outcomes

    @of_shard
    async def foresee(self, shard_id: str, operations: Sequence[Operation]) -> dict[int, Finding]:
        """Return what the rules of a shard's business types say of operations, patches aside, as of now."""
        return await self._ensure_writer(shard_id).foresee(operations)

    @of_shard
    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        """Wait until applied operations of a queue are as safe as their shard can make them.

        Raises `RetryableError` when the shard does not confirm them or has lost them: apply them again.
        """
        await self._commits.wait_for_operations(shard_id, operations)

    @of_shard
    async def give_up(self, shard_id: str, operation: Operation, *, claim: PositionClaim | None = None) -> Outcome:
        """Log an operation as given up (`retries_exhausted`), once its dead letter is stored. Idempotent.

        Returns APPLIED with that failure, DUPLICATE when the row exists, else the outcome of a batch of this operation
        alone. *claim* and errors as with `apply`.
        """
        outcome = (
            HOLD if self._pools.is_retired(shard_id) else await self._ensure_writer(shard_id).give_up(operation, claim)
        )
        if outcome.disposition is Disposition.HOLD:
            self._directory.forget(operation.tenant_id)
        return outcome

    @of_shard
    async def try_write(self, shard_id: str) -> None:
        """Try what operations do on a shard, and roll it back. Raises `WorkerError`."""
        await try_write(self._pools.pool_of(shard_id))

    @of_shard
    async def probe(self, shard_id: str) -> None:
        """Check, within seconds, that a shard can apply operations now; raise `RetryableError` when it cannot.

        A retired shard counts as up: `apply` holds all its operations, so that their tenants are looked up again.
        """
        if not self._pools.is_retired(shard_id):
            await self._ensure_writer(shard_id).probe()

    async def list_shard_ids(self) -> list[str]:
        """Return the ids of all usable shards; those in use if the locator cannot list the shards."""
        await find_addresses(self._locator, self._pools)
        return sorted(self._pools.by_shard_id())

    @of_shard
    async def find_resident_tenants(self, shard_id: str, tenant_ids: Sequence[str]) -> set[str]:
        """Return which of the tenants live on a shard, or may again, and drop their cached routes.

        A shard may have lost an activation with what was applied after it: then the tenant is `incoming` again.
        """
        if self._pools.is_retired(shard_id):
            return set()
        pool = self._pools.pool_of(shard_id)
        async with pool.connection() as connection:
            if not await has_schema(connection, pool):
                return set()
            rows = await connection.fetch(QUERIES["find_tenants"], list(tenant_ids))
        resident = {TenantState.ACTIVE, TenantState.FENCED, TenantState.INCOMING}
        here = {row["id"] for row in rows if row["state"] in resident}
        for tenant_id in here:
            self._directory.forget(tenant_id)
        return here

    @of_tenant
    async def find_again(self, tenant_id: str) -> str | Absence:
        """Find a tenant's shard, or its new address, without the cached route. Raises as `find`."""
        found = await self._directory.find(tenant_id, is_cached_enough=False)
        return found.shard_id if isinstance(found, ShardAddress) else found

    def _ensure_writer(self, shard_id: str) -> ShardWriter:
        pool = self._pools.pool_of(shard_id)
        known, writer = self._writers.get(shard_id, (None, None))
        if writer is None or known is not pool:  # the shard was retired, and restored
            time, applied_at = self.times[shard_id], self._last_applied_at
            writer = ShardWriter(
                pool, tenant_wait=self._tenant_wait, default_limit=self._default_limit, time=time, applied_at=applied_at
            )
            self._writers[shard_id] = pool, writer
        return writer
