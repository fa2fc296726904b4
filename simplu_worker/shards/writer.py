"""Apply a batch of operations to the shard their tenants live on, exactly once, in one transaction.

Why it is exactly once: the log rows are written before any effect, in the same transaction, and only operations whose
row this transaction wrote are applied. A batch that is tried again, by whomever, finds the rows of what was committed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import structlog

from simplu_worker.operations.operation import (
    DeadLetterReason,
    Disposition,
    Failure,
    Operation,
    OperationKind,
    Outcome,
)
from simplu_worker.operations.waves import Wave, plan_waves
from simplu_worker.shards.admission import HOLD, TenantRow, TenantState, admit
from simplu_worker.shards.pools import Connection, InvalidDataError, LostRaceError, ShardPool, ShardUnavailableError
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.schema import SchemaState, check_schema

RESULT_MAX_BYTES = 1024 * 1024  # contract §3: a list over 1 MiB is result_too_large
RACES_MAX = 5
RACE_PAUSE_MAX_S = 0.1

SUCCEEDED = Outcome(disposition=Disposition.APPLIED)
DUPLICATE = Outcome(disposition=Disposition.DUPLICATE)
INVALID_DATA = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_DATA)
REUSED = Outcome(
    disposition=Disposition.DEAD_LETTER,
    reason=DeadLetterReason.REQUEST_ID_REUSED,
    error="requestId: expected one not used before by a different operation; send it again under a new one",
)

log = structlog.get_logger(__name__)


class ShardWriter:
    """Applies batches to one shard."""

    def __init__(self, pool: ShardPool, *, tenant_wait: timedelta, draw: Callable[[], float] = random.random) -> None:
        self._pool = pool
        self._tenant_wait = tenant_wait
        self._draw = draw
        self._is_checked_for: object = None

    async def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply *operations*, in effect one by one in their order, and return what became of each.

        Operations whose data Postgres refuses fail alone: those that it cannot even parse are found by asking for all
        at once; for any other the batch is halved until that one is found.
        Raises `ShardUnavailableError`: then nothing is known of what was committed, and the same batch may be tried
        again.
        """
        await self._check()
        return await self._apply(operations, frozenset())

    async def _apply(self, operations: Sequence[Operation], spoiled: frozenset[int]) -> list[Outcome]:
        """Apply *operations*; those at the positions *spoiled* are known to be refused."""
        try:
            return await self._committed(operations, spoiled)
        except InvalidDataError as exc:
            found = await self._unstorable(operations) - spoiled
            if not found and len(operations) == 1:
                found = frozenset({0})
            shard_id = self._pool.address.shard_id
            for position in sorted(found):
                log.info("operation.refused", shard_id=shard_id, error=str(exc), **_ids(operations[position]))
        if found:
            return await self._apply(operations, spoiled | found)
        return await self._apply_halves(operations)

    async def _apply_halves(self, operations: Sequence[Operation]) -> list[Outcome]:
        middle = len(operations) // 2
        first = await self._apply(operations[:middle], frozenset())
        held = {
            operation.tenant_id
            for operation, outcome in zip(operations[:middle], first, strict=True)
            if outcome.disposition is Disposition.HOLD
        }
        # What is held in the first half holds its tenant in the second, or a tenant that comes back between the two
        # transactions would have its operations out of order.
        rest = [operation for operation in operations[middle:] if operation.tenant_id not in held]
        outcomes = iter(await self._apply(rest, frozenset()) if rest else ())
        return first + [HOLD if operation.tenant_id in held else next(outcomes) for operation in operations[middle:]]

    async def _unstorable(self, operations: Sequence[Operation]) -> frozenset[int]:
        """Return the positions of the operations whose text is JSON that Postgres does not take."""
        texts = [operation.data if operation.query is None else operation.query.members for operation in operations]
        async with self._pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_unstorable"], texts)
        return frozenset(row["position"] for row in rows)

    async def _check(self) -> None:
        """Check identity and schema at the first contact and after every change of address."""
        if self._is_checked_for is self._pool.address:
            return
        address = self._pool.address
        async with self._pool.connection() as connection:
            state = await check_schema(connection, address.shard_id)
        if state is SchemaState.EMPTY:
            raise ShardUnavailableError(
                f"shard {address.shard_id}: its database is empty; no tenant is provisioned yet"
            )
        self._is_checked_for = address

    async def _committed(self, operations: Sequence[Operation], spoiled: frozenset[int]) -> list[Outcome]:
        for _ in range(RACES_MAX):
            try:
                async with self._pool.transaction() as connection:
                    return await _apply_batch(connection, operations, tenant_wait=self._tenant_wait, spoiled=spoiled)
            except LostRaceError:
                await asyncio.sleep(self._draw() * RACE_PAUSE_MAX_S)
        raise ShardUnavailableError(f"shard {self._pool.address.shard_id}: a batch lost {RACES_MAX} races in a row")


async def _apply_batch(
    connection: Connection[Any], operations: Sequence[Operation], *, tenant_wait: timedelta, spoiled: frozenset[int]
) -> list[Outcome]:
    """Apply one batch within the transaction of *connection*; those at *spoiled* are logged as `invalid_data`."""
    tenants = await _lock_tenants(connection, {operation.tenant_id for operation in operations})
    outcomes = [admit(operation, tenants.get(operation.tenant_id), tenant_wait=tenant_wait) for operation in operations]
    for position in spoiled:
        outcomes[position] = outcomes[position] or INVALID_DATA
    logged = [
        position
        for position, outcome in enumerate(outcomes)
        if outcome is None or outcome.disposition is Disposition.APPLIED
    ]
    known = await _log(connection, [(operations[position], outcomes[position]) for position in logged])
    for position, outcome in zip(logged, known, strict=True):
        outcomes[position] = outcome or outcomes[position]
    applied = [position for position, outcome in enumerate(outcomes) if outcome is None]
    for wave in plan_waves([operations[position] for position in applied]):
        for place, failure in await _apply_wave(connection, [operations[position] for position in applied], wave):
            outcomes[applied[place]] = Outcome(disposition=Disposition.APPLIED, failure=failure)
    return [outcome or SUCCEEDED for outcome in outcomes]


async def _lock_tenants(connection: Connection[Any], tenant_ids: Iterable[str]) -> dict[str, TenantRow]:
    rows = await connection.fetch(QUERIES["lock_tenants"], list(tenant_ids))
    return {
        row["id"]: TenantRow(
            business_id=row["business_id"],
            location_id=row["location_id"],
            state=TenantState(row["state"]),
            created_at=row["created_at"],
            moved_to=row["moved_to"],
        )
        for row in rows
    }


async def _log(connection: Connection[Any], batch: Sequence[tuple[Operation, Outcome | None]]) -> list[Outcome | None]:
    """Write the log rows of *batch*; return DUPLICATE or REUSED for each that was there before, None for the others."""
    if not batch:
        return []
    operations = [operation for operation, _ in batch]
    tenant_ids = [operation.tenant_id for operation in operations]
    request_ids = [operation.request_id for operation in operations]
    status = await connection.execute(
        QUERIES["log_operations"],
        tenant_ids,
        request_ids,
        [operation.kind for operation in operations],
        [operation.resource_type for operation in operations],
        [operation.resource_id for operation in operations],
        [None if outcome is None else outcome.failure for _, outcome in batch],
        [operation.digest for operation in operations],
        [operation.origin.source for operation in operations],
        [operation.origin.stream_shard_id for operation in operations],
        [operation.origin.sequence_number for operation in operations],
        _texts_of_times(operations),
        [operation.origin.arrived_at for operation in operations],
    )
    if status == f"INSERT 0 {len(operations)}":
        return [None] * len(operations)
    rows = await connection.fetch(QUERIES["logged_operations"], tenant_ids, request_ids)
    if len(rows) < len(operations):
        raise LostRaceError("a row of the log was deleted for its age between two looks at it")
    digests = {(row["tenant_id"], row["request_id"]): row["digest"] for row in rows}
    fresh = {(row["tenant_id"], row["request_id"]) for row in rows if row["is_fresh"]}
    outcomes: list[Outcome | None] = []
    for operation in operations:
        key = (operation.tenant_id, operation.request_id)
        if key in fresh:
            fresh.discard(key)  # a second one in this batch is not the one that was written
            outcomes.append(None)
        else:
            outcomes.append(DUPLICATE if digests[key] == operation.digest else REUSED)
    return outcomes


async def _apply_wave(
    connection: Connection[Any], operations: Sequence[Operation], wave: Wave
) -> list[tuple[int, Failure]]:
    """Apply one wave; return the places, in *operations*, of those that could not take effect, and why."""
    reads = [place for place in wave.reads if operations[place].kind is OperationKind.READ]
    lists = [place for place in wave.reads if operations[place].kind is OperationKind.LIST]
    failures: list[tuple[int, Failure]] = []
    for places, statement in ((reads, _read), (lists, _list), (wave.writes, _write)):
        if places:
            rows = await statement(connection, [operations[place] for place in places])
            failures += [(places[row["position"]], Failure(row["error"])) for row in rows if row["error"]]
    return failures


async def _write(connection: Connection[Any], operations: Sequence[Operation]) -> list[Any]:
    return await connection.fetch(
        QUERIES["apply_writes"],
        [operation.tenant_id for operation in operations],
        [operation.request_id for operation in operations],
        [operation.kind for operation in operations],
        [operation.resource_type for operation in operations],
        [operation.resource_id for operation in operations],
        [operation.data for operation in operations],
        _texts_of_times(operations),
    )


async def _read(connection: Connection[Any], operations: Sequence[Operation]) -> list[Any]:
    return await connection.fetch(
        QUERIES["apply_reads"],
        [operation.tenant_id for operation in operations],
        [operation.request_id for operation in operations],
        [operation.resource_type for operation in operations],
        [operation.resource_id for operation in operations],
    )


async def _list(connection: Connection[Any], operations: Sequence[Operation]) -> list[Any]:
    asked = [(operation, operation.query) for operation in operations if operation.query is not None]
    return await connection.fetch(
        QUERIES["apply_lists"],
        [operation.tenant_id for operation, _ in asked],
        [operation.request_id for operation, _ in asked],
        [operation.resource_type for operation, _ in asked],
        [query.members for _, query in asked],
        [query.days.first for _, query in asked],
        [query.days.last for _, query in asked],
        [query.page for _, query in asked],
        [query.limit for _, query in asked],
        RESULT_MAX_BYTES,
    )


def _texts_of_times(operations: Sequence[Operation]) -> list[str]:
    """Return the operations' times as text: asyncpg takes the first and the last datetime for the infinities."""
    return [operation.requested_at.isoformat() for operation in operations]


def _ids(operation: Operation) -> dict[str, str]:
    return {
        "business_id": operation.business_id,
        "location_id": operation.location_id,
        "request_id": operation.request_id,
    }
