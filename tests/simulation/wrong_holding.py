from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, Hold, Meeting, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet, Unread, union
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderProgress
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup, WaitingTenant
from simplu_worker.consumers.pipeline.results import Overdue
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import UNKNOWN_TENANT_MARGIN
from simplu_worker.operations.tries import GiveUp
from simplu_worker.vocabulary import HoldState

# Lanes and dead letters


class LetterLastDispatcher(Dispatcher):
    async def _give_up(self, shard_id: str, entry: QueuedOperation, given_up: GiveUp, hold: Hold) -> None:
        with suppress(RetryableError):
            await self.shard_positions.write_failure(shard_id, entry.operation)
        await super()._give_up(shard_id, entry, given_up, hold)


class PromptLookup(HomeLookup[QueuedOperation]):
    def _find_overdue(
        self, tenant_id: str, tenant: WaitingTenant[QueuedOperation], asked_at: datetime
    ) -> Overdue[QueuedOperation] | None:
        return super()._find_overdue(tenant_id, tenant, asked_at + UNKNOWN_TENANT_MARGIN)


# Holds and catch-ups


class AmnesicOwnership(Ownership):
    def split(self, tenant_id: str, hold: Hold, in_memory: Iterable[Unread], arrived_at: datetime) -> None:
        owner = self.owner_of(tenant_id)
        is_caught_up = owner is not None and owner.catch_up is not None
        super().split(tenant_id, hold, () if is_caught_up else in_memory, arrived_at)


class StartingOwnership(Ownership):
    def split(self, tenant_id: str, hold: Hold, in_memory: Iterable[Unread], arrived_at: datetime) -> None:
        super().split(tenant_id, hold, () if self.owner_of(tenant_id) is None else in_memory, arrived_at)


class JoiningOwnership(Ownership):
    def start_catch_up(self, holds: Sequence[Hold]) -> CatchUp:
        catch_up = super().start_catch_up(holds)
        catch_up.__class__ = _EmbracingCatchUp
        return catch_up


class _EmbracingCatchUp(CatchUp):
    def take_along(self, hold: Hold) -> bool:
        if not self.holds or self.parents:
            return False
        hold.enter(HoldState.CATCHING_UP, self)
        return True


class ModestOwnership(Ownership):
    def meet_resident(self, tenant_id: str, backfill: Hold, in_memory: Iterable[Unread]) -> Meeting:
        if self.owner_of(tenant_id) not in (None, backfill):
            return Meeting.LEFT
        return super().meet_resident(tenant_id, backfill, in_memory)


class LateOwnership(Ownership):
    def meet_resident(self, tenant_id: str, backfill: Hold, in_memory: Iterable[Unread]) -> Meeting:
        if self.owner_of(tenant_id) not in (None, backfill):
            return super().meet_resident(tenant_id, backfill, in_memory)
        self._assign(tenant_id, backfill)
        return Meeting.TAKEN


class PoliteOwnership(Ownership):
    def meet_resident(self, tenant_id: str, backfill: Hold, in_memory: Iterable[Unread]) -> Meeting:
        meeting = super().meet_resident(tenant_id, backfill, in_memory)
        return Meeting.LEFT if meeting is Meeting.APART else meeting


class ConfidentOwnership(Ownership):
    def are_waiting_for_parents(self, tenant_ids: Any) -> bool:
        return True


class DoneOwnership(Ownership):
    @property
    def has_pending_parents(self) -> bool:
        return False


class KeepingDispatcher(Dispatcher):
    def drop_later_than(self, tenant_id: str, catch_up: CatchUp, in_memory: Sequence[QueuedOperation]) -> bool:
        return True


class NarrowDispatcher(Dispatcher):
    def _set_apart(self, tenant_id: str, unread: Unread, in_memory: Sequence[QueuedOperation]) -> None:
        own = [entry.unread for entry in in_memory]
        super()._set_apart(tenant_id, union(own) if own else unread, in_memory)


# The list of pending tenants


class LanelessProgress(ReaderProgress):
    def all_pending_tenants(self) -> TenantSet:
        return self.ownership.owners.tenants()


class EarlyProgress(ReaderProgress):
    def pending_tenants(self) -> TenantSet | None:
        return self.all_pending_tenants() if self.holds() else None


# Leases


class PresumptuousTable(LeaseTable):
    async def renew(self, lease: Lease, me: str, *arguments: Any, **more: Any) -> Lease | None:
        return await super().renew(lease, lease.owner or me, *arguments, **more)


class FreeingTable(LeaseTable):
    async def _update(self, lease_key: str, update: str, condition: str, values: dict[str, Any]) -> Lease | None:
        if ":one" in values:  # a release
            update = update.replace("checkpointOwner", "leaseOwner, checkpointOwner")
        return await super()._update(lease_key, update, condition, values)


class HalfTakingTable(LeaseTable):
    async def _update(self, lease_key: str, update: str, condition: str, values: dict[str, Any]) -> Lease | None:
        if ":switch" in values:  # a take
            update = update.replace("REMOVE checkpointOwner, ", "REMOVE ")
        return await super()._update(lease_key, update, condition, values)
