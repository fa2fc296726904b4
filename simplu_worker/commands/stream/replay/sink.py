"""Where `replay` sends operations: to their shards, or without `--apply` to the logs, to be looked up there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from simplu_worker.commands.stream.replay.replay_rules import WOULD_APPLY, ReplayTotals, batches, became_dead_letter
from simplu_worker.commands.stream.wait_outcomes import LastPoll, find_operations
from simplu_worker.consumers.pipeline.lane import BATCH_MAX_BYTES, BATCH_MAX_COUNT
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Disposition, Operation
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import utc_now
from simplu_worker.timing.retrying import retry
from simplu_worker.vocabulary import Absence, DeadLetterReason, HoldReason


class ReplaySink(Protocol):
    """Takes the operations of a stream shard, in order, and counts their outcomes."""

    async def send(self, operations: Sequence[Operation]) -> None:
        """Send *operations*; return once each is decided, or left. Raises nothing."""


class ShardRoutes:
    """Finds the shards of operations; leaves those of tenants without one."""

    def __init__(self, gateway: ShardGateway, totals: ReplayTotals, *, tenant_wait: timedelta) -> None:
        self._gateway = gateway
        self._totals = totals
        self._tenant_wait = tenant_wait

    async def group_by_shard(self, operations: Sequence[Operation]) -> dict[str, list[Operation]]:
        """Return *operations* by shard, in order, but for those of tenants that are left."""
        by_tenant: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            by_tenant[operation.tenant_id].append(operation)
        shard_ids: dict[str, str] = {}
        for tenant_id, own in by_tenant.items():
            if self._totals.has_left(tenant_id):
                self._totals.leave(own, "")
            elif (shard_id := await self._find(tenant_id, own)) is not None:
                shard_ids[tenant_id] = shard_id
        by_shard: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            if operation.tenant_id in shard_ids:
                by_shard[shard_ids[operation.tenant_id]].append(operation)
        return by_shard

    async def _find(self, tenant_id: str, operations: Sequence[Operation]) -> str | None:
        try:
            found = await retry(self._gateway.find, tenant_id)
        except (RetryableError, PermanentError) as exc:
            self._totals.leave(operations, str(exc))
            return None
        if not isinstance(found, Absence):
            if not self._gateway.paused_s(tenant_id):
                return found
            self._totals.leave(operations, HoldReason.PAUSED)
            return None
        now = utc_now()
        for operation in operations:
            arrived_at = operation.origin.arrived_at
            if became_dead_letter(found, arrived_at, tenant_wait=self._tenant_wait, now=now):
                self._totals.count_dead_letter(DeadLetterReason.UNKNOWN_TENANT)
            else:
                self._totals.leave([operation], found)
        return None


class ApplyingSink:
    """Applies operations to their shards; the logs drop those that were applied before."""

    def __init__(self, gateway: ShardGateway, totals: ReplayTotals, routes: ShardRoutes) -> None:
        self._gateway = gateway
        self._totals = totals
        self._routes = routes

    async def send(self, operations: Sequence[Operation]) -> None:
        """Apply *operations*; return once each is decided, or left."""
        for shard_id, own in (await self._routes.group_by_shard(operations)).items():
            for batch in batches(own, max_count=BATCH_MAX_COUNT, max_bytes=BATCH_MAX_BYTES):
                await self._apply(shard_id, batch)

    async def _apply(self, shard_id: str, operations: Sequence[Operation]) -> None:
        """Apply a batch, without the tenants that are left; those that have moved, once more on their new shard."""
        moved = await self._apply_here(shard_id, operations)
        for other_id, own in (await self._routes.group_by_shard(moved)).items():
            for operation in await self._apply_here(other_id, own):
                self._totals.leave([operation], f"shard {other_id} does not have the tenant now")

    async def _apply_here(self, shard_id: str, operations: Sequence[Operation]) -> list[Operation]:
        """Return the operations of tenants that the shard does not have."""
        batch = [one for one in operations if not self._totals.has_left(one.tenant_id)]
        self._totals.left_count += len(operations) - len(batch)
        if not batch:
            return []
        try:
            outcomes = await retry(self._gateway.apply, shard_id, batch)
        except RetryableError as exc:
            self._totals.leave(batch, str(exc))
            return []
        moved = []
        for operation, outcome in zip(batch, outcomes, strict=True):
            if outcome.disposition is Disposition.UNEXPECTED:
                self._totals.leave([operation], outcome.error or "it fails on its shard")
            elif outcome.disposition is Disposition.LOCKED:
                self._totals.leave(
                    [operation], f"another transaction keeps rows of the tenant locked on shard {shard_id}"
                )
            elif outcome.disposition is not Disposition.HOLD:
                self._totals.count(outcome)
            else:
                moved.append(operation)
        return moved


class CountingSink:
    """Looks operations up in the logs, and changes nothing.

    An operation that comes twice and is in no log counts twice: the second one would be dropped.
    """

    def __init__(self, gateway: ShardGateway, totals: ReplayTotals, routes: ShardRoutes) -> None:
        self._gateway = gateway
        self._totals = totals
        self._routes = routes

    async def send(self, operations: Sequence[Operation]) -> None:
        """Count *operations* by the outcome that they would have."""
        keys = {(operation.tenant_id, operation.request_id) for operation in operations}
        poll = LastPoll(pending_count=len(keys))
        rows = await find_operations(self._gateway, keys, poll)
        missing: list[Operation] = []
        for operation in operations:
            row = rows.get((operation.tenant_id, operation.request_id))
            if row is None:
                missing.append(operation)
            else:
                self._totals.count_logged(operation, row)
        for shard_id, own in (await self._routes.group_by_shard(missing)).items():
            if poll.error is not None or shard_id in poll.silent_shard_ids:
                self._totals.leave(own, poll.error or f"shard {shard_id} does not answer")
            else:
                self._totals.outcomes[WOULD_APPLY] += len(own)
