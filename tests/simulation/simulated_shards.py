"""A model of the Postgres shards, of the registered tenants and their shards, and of the dead-letter queue.

A shard does with a batch what the worker's writer and its SQL do in one transaction: the tenant's row decides, the log
drops operations that were applied before, and effects happen in the order of the batch.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Any, TypeAlias
from uuid import uuid4

import msgspec
from simulation.simulated_faults import Fault
from simulation.simulated_log import ARRIVED, COPIED, LEFT, STANDBY_LAG_S, Batch, FeedTables, Server, ShardLog
from simulation.simulated_network import Network

from simplu_worker.bulkheads import of_shard, of_tenant
from simplu_worker.errors import RetryableError
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.dead_letter import DeadLetter, origin_of_part
from simplu_worker.operations.operation import Disposition, Operation, Origin, Outcome, PartNumber
from simplu_worker.operations.waves import HOLD, TenantRow, admit
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.log import BulkOrigin, key_of_id
from simplu_worker.shards.positions import ShardPositions, attempt_claim
from simplu_worker.shards.types import (
    PositionChangedError,
    PositionClaim,
    PositionMerge,
    ShardUnavailableError,
    StoredPositions,
    StreamPosition,
    TenantPausedError,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.transfers.moving.sides import UNREAD_POLL_S, UNREAD_S
from simplu_worker.vocabulary import Absence, DeadLetterReason, Failure, Inability, TenantState

LogKey: TypeAlias = tuple[str, str]  # tenant, request id
RecordKey: TypeAlias = tuple[str, str, PartNumber]  # stream shard, sequence number, place in its record

APPLIED = Outcome(Disposition.APPLIED)
GIVEN_UP = Outcome(Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)
FAILED_BY_ITSELF = Outcome(Disposition.FAILING, error="it fails by itself")
DUPLICATE = Outcome(Disposition.DUPLICATE)
REUSED = Outcome(Disposition.DEAD_LETTER, reason=DeadLetterReason.REQUEST_ID_REUSED, error="used before")
SHARD_IDS = ("shard-1", "shard-2")
CITRUS, LETTERS = "citrus", "letters"
STORE_RETRY_S = 0.5
ACTIVATED_AGAIN_S = 0.3  # by a worker, when the activation was lost


class Tenant(msgspec.Struct):
    """A tenant: its shard, since when, and whether the shard takes its operations now.

    *fenced_rows* are the rows of its shard, by stream shard, as of its fence; None without one. *came_with* is the
    shard that it has left, with those rows; the tenant *is_ready* when its activation was lost.
    """

    tenant_id: str
    shard_id: str
    created_at: datetime | None = None  # None: not registered
    is_active: bool = True
    paused_until: float = 0.0
    moved_at: float | None = None
    fenced_rows: dict[str, StreamPosition] | None = None
    came_with: tuple[str, dict[str, StreamPosition]] | None = None
    is_ready: bool = False
    epoch: int = 0


class Transaction(msgspec.Struct):
    """What one transaction on a shard wrote: rows of the log, positions in place of others, a fence, an activation.

    Where the order of the log counts also its *batch*, and in place of which *tables* it wrote those of the feed.
    """

    applied: list[LogKey]
    before: dict[tuple[str, str], StreamPosition | None] = {}  # by shard and stream shard
    fenced: Tenant | None = None
    activated: Tenant | None = None
    operations: list[tuple[Operation, bool]] = []  # with whether they have failed
    batch: Batch | None = None
    tables: FeedTables | None = None
    at: float = 0.0


class Backup(msgspec.Struct, frozen=True):
    """What one shard had at a moment: the rows of the log, and its positions by stream shard."""

    shard_id: str
    log: frozenset[LogKey]
    positions: dict[str, StreamPosition]
    epochs: dict[str, int]  # of all tenants


class PostgresShards:
    """All shards: `log` contains the applied operations by tenant and request id, with their bytes.

    Each shard has a replica that may lack its last transactions, and takes its place in a failover.
    """

    def __init__(self, network: Network, *, tenant_wait: timedelta) -> None:
        self.network = network
        self.tenants: dict[str, Tenant] = {}
        self.log: dict[LogKey, bytes] = {}
        self.positions: dict[tuple[str, str], StreamPosition] = {}  # by shard and stream shard
        self.merges: dict[tuple[str, str], list[PositionMerge]] = {}  # by shard and stream shard
        self._history: dict[str, list[Transaction]] = {shard_id: [] for shard_id in SHARD_IDS}
        self._positions: Counter[str] = Counter()  # in the write-ahead log, by shard
        self.is_replicated = False  # whether commits are awaited on the standbys
        self.logs: dict[str, ShardLog] = {}
        self.servers: dict[str, Server] = {}
        self._waiting_since: dict[tuple[str, int], float] = {}  # by tenant and epoch: to come back
        self.on_lost: Callable[[Sequence[LogKey]], None] = lambda _keys: None
        self.letters: dict[RecordKey, DeadLetterReason] = {}
        self.poison: set[str] = set()  # request ids of operations that fail by themselves
        self.on_applied: Callable[[Operation], None] = lambda _operation: None
        self.held_back: set[str] = set()  # shards with a gap that nobody has accepted: nothing may be applied there
        self.is_deduplicating = True  # False only in worlds that are meant to break
        self._tenant_wait = tenant_wait

    def keep_logs(self, draws: Random, *, is_replicated: bool) -> None:
        self.is_replicated = is_replicated
        commits = count()
        for shard_id in SHARD_IDS:

            def commit(tables: FeedTables, shard_id: str = shard_id) -> None:
                self._append(shard_id, Transaction([], tables=tables))

            def facts(shard_id: str = shard_id) -> dict[str, Any]:
                return self._replication_of(shard_id)

            self.logs[shard_id] = ShardLog(shard_id, self.network, draws, commits, commit)
            self.servers[shard_id] = Server(self.logs[shard_id], list(self.tenants), facts, self._is_unlogged)

    def _replication_of(self, shard_id: str) -> dict[str, Any]:
        history, now = self._history[shard_id], self.network.loop.time()
        if self.is_replicated:
            history[:] = [one for one in history if one.at > now - STANDBY_LAG_S]
        flushed = self._positions[shard_id] - len(history)
        standbys = [{"name": "standby", "state": "streaming", "flushed": flushed}] if self.is_replicated else []
        names = {"synchronous_commit": "on", "synchronous_standby_names": "", "fsync": True}
        return {"position": self._positions[shard_id], **names, "standbys": json.dumps(standbys)}

    def _is_unlogged(self, tenant_id: str, key: str) -> bool:
        return not any(one == tenant_id and key_of_id(request_id) == key for one, request_id in self.log)

    def _append(self, shard_id: str, transaction: Transaction) -> None:
        transaction.at = self.network.loop.time()
        self._positions[shard_id] += 1
        self._history[shard_id].append(transaction)

    def _end(self, shard_id: str) -> None:
        transaction = self._history[shard_id][-1]
        if self.logs and transaction.operations:
            transaction.batch = self.logs[shard_id].add(transaction.operations)

    def locate(self, tenant_id: str) -> str | Absence:
        tenant = self.tenants[tenant_id]
        if tenant.created_at is None:
            return Absence.UNREGISTERED
        if tenant.shard_id in self.network.down:
            raise ShardUnavailableError("it does not answer", shard_id=tenant.shard_id)
        return tenant.shard_id if tenant.is_active else Absence.INACTIVE

    def positions_at_home(self, tenant_id: str) -> dict[str, StreamPosition] | None:
        tenant = self.tenants[tenant_id]
        if tenant.created_at is None or tenant.is_ready:
            return None
        return {key: row for (shard_id, key), row in self.positions.items() if shard_id == tenant.shard_id}

    def transact(
        self, shard_id: str, operations: Sequence[Operation], claim: PositionClaim | None = None
    ) -> list[Outcome]:
        """Apply a batch in one transaction: after an operation that fails on its own, no other of its tenant."""
        self._begin(shard_id, claim)
        outcomes: list[Outcome] = []
        failing: set[str] = set()
        for operation in operations:
            outcome = HOLD if operation.tenant_id in failing else self._apply(shard_id, operation)
            if outcome is FAILED_BY_ITSELF:
                failing.add(operation.tenant_id)
            outcomes.append(outcome)
        self._end(shard_id)
        return outcomes

    def find_resident_tenants(self, shard_id: str, tenant_ids: Sequence[str]) -> set[str]:
        found = [self.tenants[tenant_id] for tenant_id in tenant_ids]
        return {one.tenant_id for one in found if one.created_at and one.shard_id == shard_id and not one.is_ready}

    def read_positions(self, shard_id: str, stream_shard_ids: Sequence[str]) -> StoredPositions:
        rows = {key: self.positions[shard_id, key] for key in stream_shard_ids if (shard_id, key) in self.positions}
        made = [one.created_at for one in self.tenants.values() if one.created_at and one.shard_id == shard_id]
        now = self.network.loop.time()
        came = [one.moved_at for one in self.tenants.values() if one.shard_id == shard_id]
        moved = [now - at for at in came if at is not None]
        return StoredPositions(rows, min(made, default=None), min(moved, default=None), self._move_token(shard_id))

    def fence_and_read_positions(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], token: str
    ) -> StoredPositions:
        place = shard_id, claim.stream_shard_id
        before = self.positions.get(place)
        self._append(shard_id, Transaction([], {place: before}))
        if before is None:
            self.positions[place] = StreamPosition("TRIM_HORIZON", None, parents_done=False, fencing_token=token)
        else:
            is_timed = before.written_at is not None
            fenced = before.fencing_token[:15] + token[15:] if is_timed else token  # as `fence_position` does
            self.positions[place] = msgspec.structs.replace(before, fencing_token=fenced)
        standing = self.read_positions(shard_id, [claim.stream_shard_id, *ancestors])
        is_unchanged = before is not None and before.fencing_token in claim.fencing_tokens
        return msgspec.structs.replace(standing, is_unchanged=is_unchanged)

    def write_positions(self, shard_id: str, claims: Sequence[PositionClaim]) -> list[str]:
        changed = []
        for claim in claims:
            try:
                self._begin(shard_id, claim)
            except PositionChangedError:
                changed.append(claim.stream_shard_id)
        return changed

    def fail_over(self, shard_id: str, lost_count: int) -> None:
        history = self._history[shard_id]
        self.network.faults.note(Fault.FAILOVER, is_felt=bool(history and lost_count))
        lost: list[LogKey] = []
        batches: list[Batch] = []
        tables: FeedTables | None = None
        for transaction in reversed(history[max(0, len(history) - lost_count) :]):
            lost += transaction.applied
            batches += [] if transaction.batch is None else [transaction.batch]
            tables = transaction.tables or tables
            for place, before in transaction.before.items():
                if before is None:
                    self.positions.pop(place, None)
                else:
                    self.positions[place] = before
            if (tenant := transaction.fenced) is not None:
                tenant.is_active, tenant.fenced_rows = True, None
            if (tenant := transaction.activated) is not None:
                tenant.is_active, tenant.is_ready = False, True
                self.network.loop.call_later(ACTIVATED_AGAIN_S, self._activate, tenant)
        for key in lost:
            del self.log[key]
        history.clear()  # the replica it has now starts with all there is
        if self.logs:
            log = self.logs[shard_id]
            log.fail_over(batches, tables or log.tables)
        self.on_lost(lost)

    def fence(self, tenant: Tenant) -> None:
        """Stop the operations of a tenant that does not move yet; a failover that loses the fence ends it."""
        if not tenant.is_active:
            return
        self.network.faults.fired[Fault.MOVED] += 1
        tenant.is_active = False
        tenant.fenced_rows = {key: row for (at, key), row in self.positions.items() if at == tenant.shard_id}
        self._append(tenant.shard_id, Transaction([], fenced=tenant))

    def move(self, tenant: Tenant, shard_id: str) -> None:
        """Let a fenced tenant go on, on another shard with its rows as of the fence, or on the same.

        It is on the replicas of both that it has left; that it is active may be lost.
        """
        if self.logs and tenant.fenced_rows is not None and not self._is_free(tenant, shard_id):
            self.network.loop.call_later(UNREAD_POLL_S, self.move, tenant, shard_id, context=self.network.nobody)
            return
        source, rows, tenant.fenced_rows = tenant.shard_id, tenant.fenced_rows, None
        if rows is None:
            return  # the fence was lost
        if source == shard_id:
            tenant.is_active = True
            return
        self._history[source].clear()
        tenant.epoch += 1
        self._mark(source, LEFT, tenant)
        self.network.faults.felt[Fault.MOVED] += 1
        tenant.shard_id, tenant.came_with, tenant.is_ready = shard_id, (source, rows), True
        self._activate(tenant)

    def _mark(self, shard_id: str, kind: str, tenant: Tenant, *, origin: str | None = None) -> Batch | None:
        if not self.logs:
            return None
        return self.logs[shard_id].mark(kind, tenant.tenant_id, origin=origin, epoch=tenant.epoch)

    def _is_free(self, tenant: Tenant, shard_id: str) -> bool:
        log, now = self.logs[shard_id], self.network.loop.time()
        if shard_id == tenant.shard_id or not log.has_rows(tenant.tenant_id):
            return True
        waiting_since = self._waiting_since.setdefault((tenant.tenant_id, tenant.epoch), now)
        if not log.is_read(tenant.tenant_id, is_in_file=True) and now < waiting_since + UNREAD_S:
            return False
        self._history[shard_id].clear()
        if not all(log.is_read(tenant.tenant_id, is_in_file=is_in_file) for is_in_file in (True, False)):
            log.mark(COPIED, tenant.tenant_id, origin=BulkOrigin.UNREAD)
        log.drop(tenant.tenant_id)
        return True

    def let_go_on(self, tenant: Tenant) -> None:
        tenant.is_active, tenant.fenced_rows = True, None
        self._activate(tenant)

    def _activate(self, tenant: Tenant) -> None:
        if not tenant.is_ready or tenant.came_with is None:
            return
        (source, rows), shard_id = tenant.came_with, tenant.shard_id
        tenant.is_ready, tenant.is_active = False, True
        tenant.moved_at = self.network.loop.time()
        own = {key for at, key in self.positions if at == shard_id}
        before = {(shard_id, key): self.positions[shard_id, key] for key in own}
        arrived = self._mark(shard_id, ARRIVED, tenant, origin=source)
        self._append(shard_id, Transaction([], dict(before), activated=tenant, batch=arrived))
        for key in sorted(own):
            here, there = rows.get(key), self.positions.pop((shard_id, key), None)
            if here is not None and there is not None:  # without a row nobody knows: that is lower still
                lower = min((here, there), key=lambda row: _order(row.pending_from))
                merge = PositionMerge(str(uuid4()), there.fencing_token, source, here.fencing_token)
                self.merges.setdefault((shard_id, key), []).append(merge)
                self.positions[shard_id, key] = StreamPosition(
                    lower.pending_from,
                    lower.pending_since,
                    parents_done=here.parents_done and there.parents_done,
                    fencing_token=merge.token,
                )

    def _begin(self, shard_id: str, claim: PositionClaim | None) -> None:
        if claim is None:
            self._append(shard_id, Transaction([]))
            return
        place = shard_id, claim.stream_shard_id
        before = self.positions.get(place)
        *seen, token = claim.fencing_tokens
        if (before.fencing_token not in seen) if before is not None else seen:
            raise PositionChangedError("it is another's")
        if not seen and claim.move_token is not None and claim.move_token != self._move_token(shard_id):
            raise PositionChangedError("a tenant was moved here since")
        self._append(shard_id, Transaction([], {place: before}))
        gap = (None, False) if before is None else (before.gap_from, before.is_gap_accepted)
        self.positions[place] = msgspec.structs.replace(
            claim.position, fencing_token=token, gap_from=gap[0], is_gap_accepted=gap[1]
        )

    def mark_gap(self, shard_id: str, stream_shard_id: str, pending_from: str) -> None:
        row = self.positions.get((shard_id, stream_shard_id))
        if row is not None and row.pending_from == pending_from and not row.has_gap:
            marked = msgspec.structs.replace(row, gap_from=pending_from, is_gap_accepted=False)
            self.positions[shard_id, stream_shard_id] = marked

    def accept_gaps(self, shard_id: str) -> int:
        open_rows = {key: row for key, row in self.positions.items() if key[0] == shard_id and row.has_open_gap}
        for key, row in open_rows.items():
            self.positions[key] = msgspec.structs.replace(row, is_gap_accepted=True)
        self.held_back.discard(shard_id)
        return len(open_rows)

    def back_up(self, shard_id: str) -> Backup:
        here = {one.tenant_id for one in self.tenants.values() if one.shard_id == shard_id}
        log = frozenset(key for key in self.log if key[0] in here)
        epochs = {one.tenant_id: one.epoch for one in self.tenants.values()}
        return Backup(shard_id, log, {key: row for (at, key), row in self.positions.items() if at == shard_id}, epochs)

    def restore(self, backup: Backup, *, is_held_back: bool) -> None:
        shard_id = backup.shard_id
        lost = [key for key in self.back_up(shard_id).log if key not in backup.log]
        for key in lost:
            del self.log[key]
        for place in [place for place in self.positions if place[0] == shard_id]:
            del self.positions[place]
        self.positions |= {(shard_id, key): row for key, row in backup.positions.items()}
        self._history[shard_id].clear()
        if is_held_back:
            self.held_back.add(shard_id)
        self.on_lost(lost)

    def restore_tenant(self, tenant: Tenant, backup: Backup) -> list[LogKey] | None:
        """Put a tenant back to a backup of its shard, to catch up; return what is gone. None if it has moved since.

        As the restorer's end does: the log is the backup's, and all rows are lower, with tokens that nobody knows.
        """
        shard_id = tenant.shard_id
        if not tenant.is_active or shard_id != backup.shard_id or tenant.epoch != backup.epochs[tenant.tenant_id]:
            return None
        gone = [key for key in self.log if key[0] == tenant.tenant_id and key not in backup.log]
        for key in gone:
            del self.log[key]
        for place in [place for place in self.positions if place[0] == shard_id]:
            here, there = self.positions.pop(place), backup.positions.get(place[1])
            if there is not None:
                lower = min((here, there), key=lambda row: _order(row.pending_from))
                done = here.parents_done and there.parents_done
                self.positions[place] = StreamPosition(
                    lower.pending_from, lower.pending_since, parents_done=done, fencing_token=str(uuid4())
                )
        self._history[shard_id].clear()
        tenant.epoch += 1
        tenant.moved_at = self.network.loop.time()
        if self.logs:
            self.logs[shard_id].drop(tenant.tenant_id)
            self.logs[shard_id].mark(COPIED, tenant.tenant_id, origin=BulkOrigin.RESTORE)
        self.on_lost(gone)
        return gone

    def _move_token(self, shard_id: str) -> str:
        return " ".join(str(one.moved_at) for one in self.tenants.values() if one.shard_id == shard_id and one.moved_at)

    def give_up(self, shard_id: str, operation: Operation, claim: PositionClaim | None = None) -> Outcome:
        self._begin(shard_id, claim)
        outcome = admit(operation, self._row(shard_id, operation), tenant_wait=self._tenant_wait)
        if outcome is not None:
            return outcome
        key = (operation.tenant_id, operation.request_id)
        if key in self.log:
            return DUPLICATE
        self._note(shard_id, operation, is_failed=True)
        self._end(shard_id)
        return GIVEN_UP

    def store(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            numbers = (letter.origin.part_number,) if letter.parts is None else letter.parts.numbers or ()
            for number in numbers:
                self.letters[record_key(origin_of_part(letter.origin, number))] = letter.reason

    def _apply(self, shard_id: str, operation: Operation) -> Outcome:
        outcome = admit(operation, self._row(shard_id, operation), tenant_wait=self._tenant_wait)
        if outcome is not None:
            return outcome
        key = (operation.tenant_id, operation.request_id)
        logged = self.log.get(key)
        if logged is not None and self.is_deduplicating:
            return DUPLICATE if logged == operation.digest else REUSED
        if operation.request_id in self.poison:
            self.network.faults.felt[Fault.FAILS_BY_ITSELF] += 1
            return FAILED_BY_ITSELF
        self._note(shard_id, operation)
        return APPLIED

    def _note(self, shard_id: str, operation: Operation, *, is_failed: bool = False) -> None:
        key = (operation.tenant_id, operation.request_id)
        self.log[key] = operation.digest
        self._history[shard_id][-1].applied.append(key)
        self._history[shard_id][-1].operations.append((operation, is_failed))
        self.on_applied(operation)

    def _row(self, shard_id: str, operation: Operation) -> TenantRow | None:
        tenant = self.tenants[operation.tenant_id]
        if tenant.created_at is None or tenant.shard_id != shard_id:
            return None
        state = TenantState.ACTIVE if tenant.is_active else TenantState.FENCED
        is_paused = self.is_paused(tenant.tenant_id)
        names = operation.business_id, operation.location_id
        return TenantRow(*names, "gym", state, tenant.created_at, 1, is_paused=is_paused)

    def is_paused(self, tenant_id: str) -> bool:
        return self.tenants[tenant_id].paused_until > self.network.loop.time()

    def end_pause(self, tenant_id: str) -> None:
        self.tenants[tenant_id].paused_until = 0.0


class KnownTime(ShardTime):
    """A shard on which every operation takes as long."""

    def __init__(self, cost_s: float) -> None:
        super().__init__()
        self._cost_s = cost_s

    def cost_s(self, operation: Operation) -> float:
        return self._cost_s

    def costs_s(self, operations: Iterable[Operation]) -> list[float]:
        return [self._cost_s for _ in operations]

    def batch_cost_s(self, demand: Demand) -> float:
        return self._cost_s * demand.counts.total()


class SimulatedGateway(ShardGateway, ShardPositions):
    """One replica's way to the shards; it remembers where it found a tenant."""

    def __init__(self, shards: PostgresShards, *, cost_s: float, commits: ReplicationWaiter | None = None) -> None:
        self._shards = shards
        self.positions = self
        self._safety = commits
        self.times = defaultdict(lambda: KnownTime(cost_s))
        self._remembered: dict[str, str] = {}
        self._last_applied_at: dict[str, float] = {}
        self._first_use = None
        self.reaches_nothing: Inability | None = None

    @property
    def inability(self) -> Inability | None:
        return self.reaches_nothing

    async def look_around(self) -> None: ...

    async def try_write(self, shard_id: str) -> None: ...

    def cached_shard_id(self, tenant_id: str) -> str | None:
        return self._remembered.get(tenant_id)

    def is_up(self, shard_id: str) -> bool:
        return shard_id not in self._shards.network.down

    @of_tenant
    async def find(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        found = await self._shards.network.ask(CITRUS, lambda: self._shards.locate(tenant_id), lost=_lost)
        if isinstance(found, Absence):
            self._remembered.pop(tenant_id, None)
        else:
            self._remembered[tenant_id] = found
        return found

    @of_tenant
    async def find_writable_shard(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        found = await self.find(tenant_id)
        if not isinstance(found, Absence) and self._shards.is_paused(tenant_id):
            self._remembered.pop(tenant_id, None)
            self._shards.network.faults.felt[Fault.PAUSED] += 1
            raise TenantPausedError("paused")
        return found

    @of_tenant
    async def end_pause(self, tenant_id: str) -> None:
        await self._shards.network.ask(CITRUS, lambda: self._shards.end_pause(tenant_id), lost=_lost)

    @of_shard
    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        with nullcontext() if claim is None else attempt_claim(claim):
            said = _said(claim)
            outcomes = await self._shards.network.ask(
                shard_id, lambda: self._shards.transact(shard_id, operations, said), lost=_lost
            )
        self._last_applied_at[shard_id] = loop_time()
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome is HOLD:
                self._remembered.pop(operation.tenant_id, None)
        return outcomes

    @of_shard
    async def probe(self, shard_id: str) -> None:
        await self._shards.network.ask(shard_id, lambda: None, lost=_lost)

    @of_shard
    async def give_up(self, shard_id: str, operation: Operation, *, claim: PositionClaim | None = None) -> Outcome:
        with nullcontext() if claim is None else attempt_claim(claim):
            said = _said(claim)
            return await self._shards.network.ask(
                shard_id, lambda: self._shards.give_up(shard_id, operation, said), lost=_lost
            )

    def paused_s(self, tenant_id: str) -> float:
        return max(0.0, self._shards.tenants[tenant_id].paused_until - self._shards.network.loop.time())

    @of_shard
    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        assert self._safety is not None
        await self._safety.wait_for_operations(shard_id, operations)

    async def list_shard_ids(self) -> list[str]:
        return list(SHARD_IDS)

    @of_shard
    async def read_positions(
        self, shard_id: str, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions:
        wanted = list(stream_shard_ids)
        return await self._shards.network.ask(
            shard_id, lambda: self._shards.read_positions(shard_id, wanted), lost=_lost
        )

    @of_shard
    async def fence_and_read_positions(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions:
        wanted, token, known = list(ancestors), str(uuid4()), msgspec.structs.replace(claim)
        return await self._shards.network.ask(
            shard_id, lambda: self._shards.fence_and_read_positions(shard_id, known, wanted, token), lost=_lost
        )

    @of_shard
    async def find_resident_tenants(self, shard_id: str, tenant_ids: Sequence[str]) -> set[str]:
        here = await self._shards.network.ask(
            shard_id, lambda: self._shards.find_resident_tenants(shard_id, tenant_ids), lost=_lost
        )
        for tenant_id in here:
            self._remembered.pop(tenant_id, None)
        return here

    @of_shard
    async def write_positions(self, shard_id: str, claims: Sequence[PositionClaim]) -> list[PositionClaim]:
        with ExitStack() as attempts:
            for claim in claims:
                attempts.enter_context(attempt_claim(claim))
            said = [one for one in map(_said, claims) if one is not None]
            changed = await self._shards.network.ask(
                shard_id, lambda: self._shards.write_positions(shard_id, said), lost=_lost
            )
        return [claim for claim in claims if claim.stream_shard_id in changed]

    @of_shard
    async def read_merges(self, shard_id: str, stream: str, stream_shard_id: str) -> list[PositionMerge]:
        return await self._shards.network.ask(
            shard_id, lambda: list(self._shards.merges.get((shard_id, stream_shard_id), ())), lost=_lost
        )

    @of_shard
    async def mark_gap(self, shard_id: str, stream: str, stream_shard_id: str, pending_from: str) -> None:
        await self._shards.network.ask(
            shard_id, lambda: self._shards.mark_gap(shard_id, stream_shard_id, pending_from), lost=_lost
        )

    @of_shard
    async def forget_positions(self, shard_id: str, stream: str, stream_shard_ids: Sequence[str]) -> None:
        for key in stream_shard_ids:
            row = self._shards.positions.get((shard_id, key))
            if row is not None and not row.has_open_gap:
                del self._shards.positions[shard_id, key]

    @of_tenant
    async def find_again(self, tenant_id: str) -> str | Absence:
        return await self.find(tenant_id)


class SimulatedDeadLetters:
    """The queue of dead letters, which is not always there."""

    def __init__(self, shards: PostgresShards) -> None:
        self._shards = shards

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        while True:
            try:
                return await self._shards.network.ask(LETTERS, lambda: self._shards.store(letters), lost=_lost)
            except RetryableError as exc:
                if await sleep_or_event(STORE_RETRY_S, until=stopping):
                    raise RetryableError(f"stopping: {exc}") from exc


def record_key(origin: Origin) -> RecordKey:
    return origin.stream_shard_id or "", origin.sequence_number or "", origin.part_number


def _said(claim: PositionClaim | None) -> PositionClaim | None:
    return None if claim is None else msgspec.structs.replace(claim, fencing_tokens=list(claim.fencing_tokens))


def _order(position: str) -> tuple[int, str, int]:
    if position in {"TRIM_HORIZON", "SHARD_END"}:
        return (0 if position == "TRIM_HORIZON" else 1000), "", 0
    sequence_number, _, part = position.partition("/")
    return len(sequence_number), sequence_number, int(part)


def _lost() -> Exception:
    return RetryableError("no answer")
