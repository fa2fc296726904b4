"""A model of the Postgres shards, of who is registered where, and of the queue of dead letters.

What a shard does with a batch is what the worker's writer and its SQL do in one transaction: the tenant's row has the
last word, the log drops what was applied before, and effects happen in the order of the batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

import msgspec
from simulated_network import Network

from simplu_worker.consumers.dead_letters import DeadLetter
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import TryAgainLaterError
from simplu_worker.operations.operation import DeadLetterReason, Disposition, Failure, Operation, Origin, Outcome
from simplu_worker.shards.admission import HOLD, TenantRow, TenantState, admit
from simplu_worker.shards.directory import Absence
from simplu_worker.shards.pools import ShardUnavailableError
from simplu_worker.shards.router import Router

RecordKey: TypeAlias = tuple[str, str, int]  # stream shard, sequence number, place in its aggregate

APPLIED = Outcome(Disposition.APPLIED)
GIVEN_UP = Outcome(Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)
FAILED_BY_ITSELF = Outcome(Disposition.UNEXPECTED, error="it fails by itself")
DUPLICATE = Outcome(Disposition.DUPLICATE)
REUSED = Outcome(Disposition.DEAD_LETTER, reason=DeadLetterReason.REQUEST_ID_REUSED, error="used before")
SHARD_IDS = ("shard-1", "shard-2")
CITRUS, LETTERS = "citrus", "letters"
STORE_RETRY_S = 0.5


class Tenant(msgspec.Struct):
    """A tenant: where it lives, from when on, and whether its shard takes its operations now."""

    tenant_id: str
    shard_id: str
    created_at: datetime | None = None  # None: not registered
    is_active: bool = True


class PostgresShards:
    """All shards: `log` is what was applied, by tenant and request id, with the bytes that were."""

    def __init__(self, network: Network, *, tenant_wait: timedelta) -> None:
        self.network = network
        self.tenants: dict[str, Tenant] = {}
        self.log: dict[tuple[str, str], bytes] = {}
        self.letters: dict[RecordKey, DeadLetterReason] = {}
        self.poison: set[str] = set()  # request ids of operations that fail by themselves
        self.on_applied: Callable[[Operation], None] = lambda _operation: None
        self.is_deduplicating = True  # False only in worlds that are meant to break
        self._tenant_wait = tenant_wait

    def locate(self, tenant_id: str) -> str | Absence:
        """Return the shard that confirms a tenant, or why there is none."""
        tenant = self.tenants[tenant_id]
        if tenant.created_at is None:
            return Absence.UNREGISTERED
        if tenant.shard_id in self.network.down:
            raise ShardUnavailableError("it does not answer", shard_id=tenant.shard_id)
        return tenant.shard_id if tenant.is_active else Absence.INACTIVE

    def transact(self, shard_id: str, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply a batch in one transaction; behind one that fails by itself, its tenant's others are not applied."""
        outcomes: list[Outcome] = []
        failing: set[str] = set()
        for operation in operations:
            outcome = HOLD if operation.tenant_id in failing else self._apply(shard_id, operation)
            if outcome is FAILED_BY_ITSELF:
                failing.add(operation.tenant_id)
            outcomes.append(outcome)
        return outcomes

    def give_up(self, shard_id: str, operation: Operation) -> Outcome:
        """Leave the row of an operation that is given up."""
        outcome = admit(operation, self._row(shard_id, operation), tenant_wait=self._tenant_wait)
        if outcome is not None:
            return outcome
        if self.log.setdefault((operation.tenant_id, operation.request_id), operation.digest) != operation.digest:
            return DUPLICATE
        self.on_applied(operation)
        return GIVEN_UP

    def store(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters."""
        for letter in letters:
            self.letters[record_key(letter.origin)] = letter.reason

    def _apply(self, shard_id: str, operation: Operation) -> Outcome:
        outcome = admit(operation, self._row(shard_id, operation), tenant_wait=self._tenant_wait)
        if outcome is not None:
            return outcome
        key = (operation.tenant_id, operation.request_id)
        logged = self.log.get(key)
        if logged is not None and self.is_deduplicating:
            return DUPLICATE if logged == operation.digest else REUSED
        if operation.request_id in self.poison:
            return FAILED_BY_ITSELF
        self.log[key] = operation.digest
        self.on_applied(operation)
        return APPLIED

    def _row(self, shard_id: str, operation: Operation) -> TenantRow | None:
        tenant = self.tenants[operation.tenant_id]
        if tenant.created_at is None or tenant.shard_id != shard_id:
            return None
        state = TenantState.ACTIVE if tenant.is_active else TenantState.FENCED
        return TenantRow(operation.business_id, operation.location_id, state, tenant.created_at)


class SimulatedRouter(Router):
    """One replica's way to the shards; it remembers where it found a tenant."""

    def __init__(self, shards: PostgresShards) -> None:
        self._shards = shards
        self._remembered: dict[str, str] = {}

    def remembered(self, tenant_id: str) -> str | None:
        """Return where the tenant was last found."""
        return self._remembered.get(tenant_id)

    async def find(self, tenant_id: str) -> str | Absence:
        """Ask for the shard of a tenant."""
        found = await self._shards.network.ask(CITRUS, lambda: self._shards.locate(tenant_id), lost=_lost)
        if not isinstance(found, Absence):
            self._remembered[tenant_id] = found
        return found

    async def apply(self, shard_id: str, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply a batch; a lost answer leaves open whether it was committed."""
        outcomes = await self._shards.network.ask(
            shard_id, lambda: self._shards.transact(shard_id, operations), lost=_lost
        )
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome is HOLD:
                self._remembered.pop(operation.tenant_id, None)
        return outcomes

    async def probe(self, shard_id: str) -> None:
        """Ask whether a shard is there."""
        await self._shards.network.ask(shard_id, lambda: None, lost=_lost)

    async def give_up(self, shard_id: str, operation: Operation) -> Outcome:
        """Mark an operation as given up."""
        return await self._shards.network.ask(shard_id, lambda: self._shards.give_up(shard_id, operation), lost=_lost)

    async def find_again(self, tenant_id: str) -> str | Absence:
        """Ask for the shard of a tenant anew."""
        self._remembered.pop(tenant_id, None)
        return await self.find(tenant_id)


class SimulatedDeadLetters:
    """The queue of dead letters, which is not always there."""

    def __init__(self, shards: PostgresShards) -> None:
        self._shards = shards

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        """Store, however long it takes; raise TryAgainLaterError when it is to stop first."""
        while True:
            try:
                return await self._shards.network.ask(LETTERS, lambda: self._shards.store(letters), lost=_lost)
            except TryAgainLaterError as exc:
                if await pause(STORE_RETRY_S, until=stopping):
                    raise TryAgainLaterError(f"stopping: {exc}") from exc


def record_key(origin: Origin) -> RecordKey:
    """Return what tells a record from all others."""
    return origin.stream_shard_id or "", origin.sequence_number or "", origin.sub_sequence_number


def _lost() -> Exception:
    return TryAgainLaterError("no answer")
