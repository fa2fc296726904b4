"""What consumers call: find the shard of a tenant, apply operations there, ask what became of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from simplu_worker.cache.invalidations import OnChange, ignore_changes, touched
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.admission import HOLD
from simplu_worker.operations.operation import Disposition, Operation, Outcome, is_storable
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import Survey, survey_shards
from simplu_worker.shards.tenants.first_use import FirstUse, Name
from simplu_worker.shards.types import Absence, PositionClaim, StoredPositions
from simplu_worker.timing.clock import loop_time


class LoggedOperation(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One operation as its shard's log has it; *result* is JSON text as Postgres wrote it."""

    request_id: str
    status: str
    operation: str
    resource_type: str
    received_at: datetime
    completed_at: datetime
    shard_id: str
    resource_id: str | None = None
    error: str | None = None
    result: msgspec.Raw | None = None


class ShardGateway:
    """The one way from the consumers to the shards."""

    def __init__(
        self,
        directory: Directory,
        locator: Locator,
        pools: Pools,
        *,
        tenant_wait: timedelta,
        on_change: OnChange = ignore_changes,
        commits: ReplicationWaiter | None = None,
        first_use: FirstUse | None = None,
    ) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self._tenant_wait = tenant_wait
        self._on_change = on_change
        self._commits = commits or ReplicationWaiter(pools)
        self._first_use = first_use
        self._writers: dict[str, tuple[ShardPool, ShardWriter]] = {}
        self._took_at: dict[str, float] = {}

    def remembered(self, tenant_id: str) -> str | None:
        """Return the id of the shard on which the tenant was last found, without asking anybody."""
        address = self._directory.remembered(tenant_id)
        return None if address is None else address.shard_id

    def is_up(self, shard_id: str) -> bool:
        """Whether the last use of a shard, or look at it, found it to work."""
        pool = self._pools.by_shard_id().get(shard_id)
        return pool is not None and pool.is_healthy

    def took_at(self, shard_id: str) -> float:
        """Return when a shard last took a batch of anybody's (monotonic)."""
        return self._took_at.get(shard_id, float("-inf"))

    async def find(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        """Return the id of the shard that confirms the tenant, or why there is none.

        That it is not registered may have been asked for up to *absence_max_age_s* ago. Raises as `Directory.find`.
        """
        found = await self._directory.find(tenant_id, absence_max_age_s=absence_max_age_s)
        return found.shard_id if isinstance(found, ShardAddress) else found

    async def make_at_first_use(self, tenant_id: str, names: Iterable[Name]) -> str | Absence:
        """Make a tenant that was found `NOT_HERE`, with `PROVISION_ON_FIRST_USE`; return what `find` then does.

        *names* are the businesses and locations, of its id, that sent operations. Raises `TenantNotMadeError`, with
        why, and as `find` does.
        """
        if self._first_use is None:
            return Absence.NOT_HERE
        await self._first_use.make(names)
        self._directory.forget(tenant_id)
        return await self.find(tenant_id)

    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        """Apply *operations* to a shard, in effect one by one in order; return what became of each.

        Tenants whose operations are to be held are asked for anew the next time. With *claim*, the reader's row there
        is written with them. Raises `RetryableError` when the shard cannot take the batch: nothing is then known of
        it, and the same batch may be tried again; `PositionChangedError` when the row has to be read first.
        """
        if self._pools.has_left(shard_id):
            outcomes = [HOLD] * len(operations)  # nobody lives there any more
        else:
            outcomes = await self._writer(shard_id).apply(operations, claim)
            self._took_at[shard_id] = loop_time()
        for tenant_id in {operation.tenant_id for operation in operations}:
            self._directory.remembered(tenant_id)  # it is in use, whoever else remembers where it lives
        hold = Disposition.HOLD  # looked up once: an enum answers slowly
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome.disposition is hold:
                self._directory.forget(operation.tenant_id)
        self._on_change(touched(operations, outcomes))
        return outcomes

    async def make_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        """Wait until operations that were applied, or found applied, are as safe as their shard can make them.

        For what comes from a queue, and is gone with its message. Raises `RetryableError` when the shard does not
        say so, or has lost them: then they are to be applied again.
        """
        await self._commits.of_operations(shard_id, operations)

    async def give_up(self, shard_id: str, operation: Operation, *, claim: PositionClaim | None = None) -> Outcome:
        """Leave the row of an operation that is given up, `retries_exhausted`, after which later ones may be applied.

        Idempotent; to be called when its dead letter is stored. Returns APPLIED with that failure when this call wrote
        the row, DUPLICATE when it is there, or what the batch of it alone would come to: HOLD where the tenant does
        not live there now (it is asked for anew the next time), APPLIED with `tenant_destroyed`, a DEAD_LETTER. *claim*
        and errors as with `apply`.
        """
        outcome = HOLD if self._pools.has_left(shard_id) else await self._writer(shard_id).give_up(operation, claim)
        if outcome.disposition is Disposition.HOLD:
            self._directory.forget(operation.tenant_id)
        return outcome

    async def probe(self, shard_id: str) -> None:
        """Make sure, within seconds, that a shard can take operations now; raise `RetryableError` when it cannot.

        Of many who ask at once one looks, and its answer is everybody's for a moment. One that left the map is waited
        for by nobody: it takes what there is, and says of all of it that its tenants do not live there.
        """
        if not self._pools.has_left(shard_id):
            await self._writer(shard_id).probe()

    async def shard_ids(self) -> list[str]:
        """Return the ids of all shards that are known now and may be used; those in use where nobody tells of others.

        Raises nothing.
        """
        with contextlib.suppress(RetryableError, PermanentError):
            for address in await self._locator.shards():
                if address.refusal is None:
                    self._pools.pool(address)
        return sorted(self._pools.by_shard_id())

    async def standing(
        self, shard_id: str, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Return what a shard knows of stream shards; None where it has no tenant yet.

        *is_first* is for who asks it for the first time. Raises `RetryableError` when it does not answer.
        """
        return await self._writer(shard_id).standing(stream, stream_shard_ids, is_first=is_first)

    async def adopt(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Return what `standing` would, and make sure that what it says of ancestors cannot be lost without a trace."""
        return await self._writer(shard_id).adopt(claim, ancestors, is_first=is_first)

    async def who_is_here(self, shard_id: str, tenant_ids: Sequence[str]) -> set[str]:
        """Return which of the tenants live on a shard, as it says itself; other places of theirs are forgotten.

        Raises `RetryableError` when the shard does not answer.
        """
        here = await self._writer(shard_id).who_is_here(tenant_ids)
        for tenant_id in here:
            self._directory.forget(tenant_id)
        return here

    async def touch(self, shard_id: str, claims: Sequence[PositionClaim]) -> list[PositionClaim]:
        """Write *claims* into the rows of their readers; return those whose rows have to be read first.

        Raises `RetryableError` when the shard does not answer.
        """
        return await self._writer(shard_id).touch(claims)

    async def forget_positions(self, shard_id: str, stream: str, stream_shard_ids: Sequence[str]) -> None:
        """Delete what a shard knows of stream shards past their retention. Raises as `touch`."""
        await self._writer(shard_id).forget_positions(stream, stream_shard_ids)

    async def find_again(self, tenant_id: str) -> str | Absence:
        """Find a tenant's shard as if it had never been found; a new address of its shard is learned on the way."""
        self._directory.forget(tenant_id)
        return await self.find(tenant_id)

    async def operation(self, request_id: str, tenant_id: str | None) -> tuple[LoggedOperation | None, list[str]]:
        """Return one operation from the log, and the ids of shards that should have been asked and did not answer.

        Without the tenant all shards are asked; where several tenants used the request id, the newest is returned.
        """
        if not is_storable(request_id):
            return None, []
        if tenant_id is not None:
            found = await self._directory.find(tenant_id) if is_storable(tenant_id) else Absence.UNREGISTERED
            if isinstance(found, Absence):
                return None, []
            row = await self._fetch_one(found, "find_operation", tenant_id, request_id)
            return (None if row is None else _logged(found.shard_id, row)), []
        survey = await self.survey("find_operation_of_any_tenant", request_id)
        operations = [_logged(shard_id, row) for shard_id, row in survey.rows]
        return max(operations, key=lambda operation: operation.completed_at, default=None), survey.silent

    async def tenant(self, tenant_id: str) -> tuple[str, dict[str, Any]] | Absence:
        """Return the shard of a tenant and its row there, with the count of its resources and operations."""
        found = await self._directory.find(tenant_id) if is_storable(tenant_id) else Absence.UNREGISTERED
        if isinstance(found, Absence):
            return found
        row = await self._fetch_one(found, "show_tenant", tenant_id)
        return Absence.NOT_HERE if row is None else (found.shard_id, row)

    async def survey(self, query: str, *arguments: object) -> Survey:
        """Ask every known shard the same, all at once, each for at most a few seconds."""
        return await survey_shards(self._locator, self._pools, query, *arguments)

    async def _fetch_one(self, shard: ShardAddress, query: str, *arguments: object) -> dict[str, Any] | None:
        async with self._pools.pool(shard).connection() as connection:
            row = await connection.fetchrow(QUERIES[query], *arguments)
        return None if row is None else dict(row)

    def _writer(self, shard_id: str) -> ShardWriter:
        pool = self._pools.at(shard_id)
        known, writer = self._writers.get(shard_id, (None, None))
        if writer is None or known is not pool:  # it left, and came back
            writer = ShardWriter(pool, tenant_wait=self._tenant_wait)
            self._writers[shard_id] = pool, writer
        return writer


def _logged(shard_id: str, row: dict[str, Any]) -> LoggedOperation:
    return LoggedOperation(
        request_id=row["request_id"],
        status=row["status"],
        operation=row["operation"],
        resource_type=row["resource_type"],
        resource_id=row["resource_id"],
        error=row["error"],
        result=None if row["result"] is None else msgspec.Raw(row["result"].encode()),
        received_at=row["received_at"],
        completed_at=row["completed_at"],
        shard_id=shard_id,
    )
