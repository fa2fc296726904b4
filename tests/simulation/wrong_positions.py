"""More designs that must not be: of stream positions, and of shards in place of their SQL. See `wrong_designs`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec.structs import replace
from simulation.simulated_shards import PostgresShards, SimulatedGateway, Tenant, Transaction
from support.queued_operations import UnclaimedPositions

from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseTree
from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX, Unread
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, ReplayStart, format_position
from simplu_worker.consumers.kinesis.recovery.shard_positions import Reach, ShardPosition, ShardPositions
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, lowest_position
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.types import PositionClaim, StoredPositions, StreamPosition
from simplu_worker.vocabulary import Failure, HeldTarget

# What a reader does with the row that it finds


class NoPositions(UnclaimedPositions):
    def position_on(self, shard_id: str) -> ShardPosition:
        shard_position = super().position_on(shard_id)
        vars(shard_position.lock)["_locked"] = True  # for all others
        return shard_position

    async def confirm_lease(self) -> bool:
        return True


class PipeliningPositions(NoPositions):
    async def send(self, shard_id: str, entries: Sequence[QueuedOperation]) -> list[Outcome]:
        middle = len(entries) // 2
        if not middle:
            return await super().send(shard_id, entries)
        halves = [super().send(shard_id, half) for half in (entries[:middle], entries[middle:])]
        first, second = await asyncio.gather(*halves)
        return [*first, *second]


class FailurelessPositions(ShardPositions):
    async def write_failure(self, shard_id: str, operation: Operation) -> Outcome:
        return Outcome(Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)


class NeverPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        await super().reconcile_with(shard_position, lineage, stored)
        return None


class WelcomingPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        was_read = shard_position.was_read
        unread = await super().reconcile_with(shard_position, lineage, stored)
        return unread if was_read else None


class RowlessPositions(ShardPositions):
    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Unread | None:
        unread = await super().reconcile_with(shard_position, lineage, stored)
        return unread if self._progress.stream_shard_id in stored.rows else None


class AnyTokenPositions(ShardPositions):
    async def follow_moves(self, shard_position: ShardPosition) -> bool:
        claim = shard_position.claim
        noted = await self._gateway.positions.read_merges(shard_position.shard_id, claim.stream, claim.stream_shard_id)
        known, former = claim.fencing_tokens, [one.former_token for one in noted]
        claim.fencing_tokens = [*former, *known] if known else []
        is_followed = await super().follow_moves(shard_position)
        if not is_followed:
            claim.fencing_tokens = known
        return is_followed


class FindingPositions(ShardPositions):
    def prepare_claim(self, shard_position: ShardPosition) -> PositionClaim:
        claim = super().prepare_claim(shard_position)
        claim.written.extend(claim.fencing_tokens)
        return claim


class SelfTrustingPositions(ShardPositions):
    async def _has_own_left(
        self, row: StreamPosition, behind: ReplayStart, is_old: Callable[[StreamPosition], bool], *, was_read: bool
    ) -> bool:
        self._progress.began_behind = self._progress.read_to
        return await super()._has_own_left(row, behind, is_old, was_read=was_read)


class GrandparentlessTree(LeaseTree):
    def lineage(self, lease: Lease) -> Lineage:
        lineage = super().lineage(lease)
        return replace(lineage, ancestors={key: lineage.ancestors[key] for key in lineage.parents})


# What a reader writes into its row


class RoutedPositions(ShardPositions):
    def _position_now(self, shard_position: ShardPosition) -> StreamPosition:
        now, ownership = super()._position_now(shard_position), self._ownership
        reached = [hold.reached for hold in ownership.holds() if hold.target is not HeldTarget.TENANT]
        running = [one.tracker.checkpoint for one in ownership._catch_ups]
        lowest = lowest_position([ownership._main.checkpoint, *reached, *running])
        if now.pending_from == SHARD_END.checkpoint or lowest is None:
            return now
        return replace(now, pending_from=format_position(lowest), pending_since=lowest.arrived_at)


class ClaimingPositions(ShardPositions):
    def _position_now(self, shard_position: ShardPosition) -> StreamPosition:
        now, read_to = super()._position_now(shard_position), self._progress.read_to
        if now.pending_from == SHARD_END.checkpoint or read_to is None:
            return now
        position, since = format_position(read_to), read_to.arrived_at
        return replace(now, pending_from=position, pending_since=since, read_to=None, held=())


class StubbornPositions(ShardPositions):
    def prepare_claim(self, shard_position: ShardPosition) -> PositionClaim:
        sent, is_adopted = shard_position.claim.position, shard_position.era != self._era
        claim = super().prepare_claim(shard_position)
        claim.position = sent if is_adopted else claim.position
        return claim


class MixedPositions(ShardPositions):
    def _recent_reach(self) -> Reach:
        ahead, read_up_to = super()._recent_reach()
        now = self._progress.row_ahead()
        return (ahead if ahead is None or now is None else (now[0], ahead[1])), read_up_to


class AcquaintedPositions(ShardPositions):
    def _recent_reach(self) -> Reach:
        ahead, read_up_to = super()._recent_reach()
        if ahead is None:
            return None, read_up_to
        inherited = (HeldTarget.PREDECESSOR, HeldTarget.PARENTS)
        owners = {entry: self._ownership.owner_of(entry.removeprefix(NAME_PREFIX)) for entry in ahead[1]}
        seen = [entry for entry, owner in owners.items() if owner is None or owner.target not in inherited]
        return (ahead[0], tuple(seen)), read_up_to


# What a shard does, by its SQL or by our door to it


class BlindShards(PostgresShards):
    def _begin(self, shard_id: str, claim: PositionClaim | None) -> None:
        if claim is not None:
            row = self.positions.get((shard_id, claim.stream_shard_id))
            tokens = [*([] if row is None else [row.fencing_token]), claim.fencing_tokens[-1]]
            claim = replace(claim, fencing_tokens=tokens, move_token=None)
        super()._begin(shard_id, claim)


class CountingShards(PostgresShards):
    def _begin(self, shard_id: str, claim: PositionClaim | None) -> None:
        if claim is not None:
            numbers: dict[str, int] = self.__dict__.setdefault("numbers", {})
            row = self.positions.get((shard_id, claim.stream_shard_id))
            *known, token = claim.fencing_tokens
            seen = {numbers[one] for one in known if one in numbers}
            numbers.setdefault(token, 1 + max(seen, default=0))
            if row is not None and numbers.get(row.fencing_token) in seen:
                claim = replace(claim, fencing_tokens=[row.fencing_token, token])
        super()._begin(shard_id, claim)


class TornShards(PostgresShards):
    def transact(
        self, shard_id: str, operations: Sequence[Operation], claim: PositionClaim | None = None
    ) -> list[Outcome]:
        outcomes = super().transact(shard_id, operations, claim)
        whole = self._history[shard_id].pop()
        self._append(shard_id, Transaction([], whole.before))
        self._history[shard_id].append(replace(whole, before={}))
        return outcomes


class UncarryingShards(PostgresShards):
    def _activate(self, tenant: Tenant) -> None:
        rows = {place: row for place, row in self.positions.items() if place[0] == tenant.shard_id}
        super()._activate(tenant)
        self.positions |= rows


class KeepingShards(PostgresShards):
    def _activate(self, tenant: Tenant) -> None:
        came_from = {} if tenant.came_with is None else tenant.came_with[1]
        rows = {place: row for place, row in self.positions.items() if place[0] == tenant.shard_id}
        super()._activate(tenant)
        self.positions |= {place: row for place, row in rows.items() if place[1] not in came_from}


class HoardingGateway(SimulatedGateway):
    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        tokens = [] if claim is None else claim.fencing_tokens
        outcomes = await super().apply(shard_id, operations, claim=claim)
        if claim is not None:
            claim.fencing_tokens = [*tokens, *claim.fencing_tokens]
        return outcomes


class GlancingGateway(SimulatedGateway):
    async def fence_and_read_positions(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions:
        return await self.read_positions(shard_id, claim.stream, [claim.stream_shard_id, *ancestors])
