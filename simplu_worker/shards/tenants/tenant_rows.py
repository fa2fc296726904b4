"""Make the rows of tenants on one shard: each tenant in one transaction, and none twice."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import MarkOrigin, mark_changes
from simplu_worker.shards.postgres.errors import LockTimeoutError, LostRaceError, StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import check_registration
from simplu_worker.shards.tenants.control_rules import (
    ControlledTenant,
    ControlStep,
    error_of,
    step_of_creation,
    timestamp_text,
)
from simplu_worker.shards.types import ProvisionRequest, UnknownBusinessTypeError

DEFAULT_ROW: Final = ("settings", "default")  # resource type and id of the row that `add_default_rows` adds
AWAITED_MAX: Final = 1000  # tenants that wait for a type, on one shard
NAMED_MAX: Final = 50  # types, in an error
TRANSACTION_MAX_TENANTS: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable


class DecidedTenant(NamedTuple):
    """The step to take for one tenant, and the business type of its row after that step."""

    step: ControlStep
    business_type: str


class RowResult(msgspec.Struct, frozen=True):
    """The step taken for one tenant, the business type of its row, and the server that committed the transaction."""

    step: ControlStep
    business_type: str
    server: Server


RowOutcome: TypeAlias = "RowResult | Exception"


async def make_rows(pool: ShardPool, wanted: Sequence[ProvisionRequest]) -> list[RowOutcome]:
    """Make tenants unless they are there; return the step or the error of each, in order."""
    outcomes: list[RowOutcome] = [RetryableError("not made")] * len(wanted)
    for batch in batches_of(wanted):
        made = await _make_in_one_transaction(pool, [wanted[index] for index in batch])
        for index in batch:
            outcomes[index] = made[wanted[index].tenant_id]
    return outcomes


def batches_of(wanted: Sequence[ProvisionRequest], size: int = TRANSACTION_MAX_TENANTS) -> Iterator[list[int]]:
    """Yield the indexes of *wanted* that go into one transaction: in order, at most *size*, and no tenant twice."""
    left = list(range(len(wanted)))
    while left:
        chosen: dict[str, int] = {}
        for index in left:
            if len(chosen) < size:
                chosen.setdefault(wanted[index].tenant_id, index)
        batch = list(chosen.values())
        yield batch
        done = set(batch)
        left = [index for index in left if index not in done]


async def _make_in_one_transaction(pool: ShardPool, wanted: Sequence[ProvisionRequest]) -> dict[str, RowOutcome]:
    try:
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            missing = await find_missing_types(
                connection, pool.address.shard_id, {one.tenant_id: one.business_type for one in wanted}
            )
            refused: dict[str, Exception] = {
                one.tenant_id: missing[one.business_type] for one in wanted if one.business_type in missing
            }
            for row in await connection.fetch(QUERIES["find_not_taken"], [one.tenant_id for one in wanted]):
                refused.setdefault(row["id"], RetryableError(describe_drained(pool.address.shard_id)))
            made, changed = await _make_tenants(connection, [one for one in wanted if one.tenant_id not in refused])
            await mark_changes(connection, [(tenant_id, *DEFAULT_ROW) for tenant_id in changed], MarkOrigin.CREATION)
            if not {ControlStep.MAKE, ControlStep.REMAKE}.isdisjoint(one.step for one in made.values()):
                await check_registration(connection)
            server = await note_server(connection)
    except (StatementFailedError, LostRaceError) as exc:
        if len(wanted) == 1:
            return {wanted[0].tenant_id: exc}
        # Behind a lock each alone: every transaction with the locked row waits.
        size = 1 if isinstance(exc, LockTimeoutError) else len(wanted) // 2
        outcomes: dict[str, RowOutcome] = {}
        for start in range(0, len(wanted), size):
            outcomes |= await _make_in_one_transaction(pool, wanted[start : start + size])
        return outcomes
    except Exception as exc:  # noqa: BLE001  # the outcome of each tenant: nothing was made
        return {one.tenant_id: exc for one in wanted}
    return refused | {
        tenant_id: error_of(one.step, tenant_id) or RowResult(one.step, one.business_type, server)
        for tenant_id, one in made.items()
    }


def describe_drained(shard_id: str) -> str:
    """Return why a drained shard takes no tenants, and what to do."""
    return (
        f"shard {shard_id} was drained, and takes no tenants; retire it in the map or Citrus, or let it take tenants "
        f"again: simplu-worker shards drain {shard_id} --undo --apply"
    )


async def find_missing_types(
    connection: Connection, shard_id: str, types: Mapping[str, str]
) -> dict[str, UnknownBusinessTypeError]:
    """Return for those of *types*, by tenant, that the shard lacks the error of each; note that the tenants wait."""
    rows = await connection.fetch(QUERIES["find_missing_types"], sorted(set(types.values())))
    missing = {row["name"] for row in rows}
    if not missing:
        return {}
    waiting = sorted(tenant_id for tenant_id, name in types.items() if name in missing)
    await connection.execute(
        QUERIES["note_awaited_types"], waiting, [types[tenant_id] for tenant_id in waiting], AWAITED_MAX
    )
    known = [row["name"] for row in await connection.fetch(QUERIES["name_types"], NAMED_MAX)]
    return {name: UnknownBusinessTypeError(name, shard_id=shard_id, known=known) for name in missing}


async def _make_tenants(
    connection: Connection, wanted: Sequence[ProvisionRequest]
) -> tuple[dict[str, DecidedTenant], list[str]]:
    by_id = {one.tenant_id: one for one in wanted}
    decided = await _lock_and_decide(connection, wanted)
    to_make = _ids_of_step(decided, ControlStep.MAKE)
    made, changed = await _insert(connection, [by_id[tenant_id] for tenant_id in to_make])
    # Rows that another replica inserted since they were looked up.
    decided |= await _lock_and_decide(connection, [by_id[tenant_id] for tenant_id in to_make if tenant_id not in made])
    if not made.issuperset(_ids_of_step(decided, ControlStep.MAKE)):
        raise LostRaceError("a tenant's row was inserted and deleted by another transaction, or its type was removed")
    for step, query in ((ControlStep.RESTORE, "restore_tenants"), (ControlStep.NOTE, "note_control")):
        if noted := _ids_of_step(decided, step):
            times = [timestamp_text(by_id[tenant_id].requested_at) for tenant_id in noted]
            await connection.execute(QUERIES[query], noted, times)
    remade = await _remake(connection, [by_id[tenant_id] for tenant_id in _ids_of_step(decided, ControlStep.REMAKE)])
    return decided, [*changed, *remade]


async def _lock_and_decide(connection: Connection, wanted: Sequence[ProvisionRequest]) -> dict[str, DecidedTenant]:
    if not wanted:
        return {}
    rows = await connection.fetch(QUERIES["lock_tenants_for_control"], [one.tenant_id for one in wanted])
    found = {row["id"]: row for row in rows}
    return {one.tenant_id: _decide(one, found.get(one.tenant_id)) for one in wanted}


def _decide(wanted: ProvisionRequest, row: Mapping[str, Any] | None) -> DecidedTenant:
    tenant = None if row is None else ControlledTenant.from_row(row)
    step = step_of_creation(tenant, wanted.business_id, wanted.location_id, wanted.requested_at)
    if row is None or step is ControlStep.REMAKE:
        return DecidedTenant(step, wanted.business_type)
    return DecidedTenant(step, row["business_type"])


def _ids_of_step(decided: Mapping[str, DecidedTenant], step: ControlStep) -> list[str]:
    return sorted(tenant_id for tenant_id, one in decided.items() if one.step is step)


async def _insert(connection: Connection, wanted: Sequence[ProvisionRequest]) -> tuple[set[str], list[str]]:
    if not wanted:
        return set(), []
    rows = await connection.fetch(
        QUERIES["make_tenants"],
        [one.tenant_id for one in wanted],
        [one.business_id for one in wanted],
        [one.location_id for one in wanted],
        [one.business_type for one in wanted],
        [timestamp_text(one.requested_at) for one in wanted],
    )
    made = {row["id"] for row in rows}
    return made, await _add_default_rows(connection, [one for one in wanted if one.tenant_id in made])


async def _remake(connection: Connection, wanted: Sequence[ProvisionRequest]) -> list[str]:
    if not wanted:
        return []
    status = await connection.execute(QUERIES["remake_tenants"], *_types_and_times(wanted))
    if affected_count(status) < len(wanted):
        raise LostRaceError("the type of a tenant to make again was removed by another transaction")
    return await _add_default_rows(connection, wanted)


async def _add_default_rows(connection: Connection, wanted: Sequence[ProvisionRequest]) -> list[str]:
    if not wanted:
        return []
    return [row["id"] for row in await connection.fetch(QUERIES["add_default_rows"], *_types_and_times(wanted))]


def _types_and_times(wanted: Sequence[ProvisionRequest]) -> tuple[list[str], list[str], list[str]]:
    return (
        [one.tenant_id for one in wanted],
        [one.business_type for one in wanted],
        [timestamp_text(one.requested_at) for one in wanted],
    )


AT_ONCE: Final = 2  # a shard has few connections, and batches need them too
WAIT_S: Final = 5.0  # messages are handled together: one that waits for longer comes again
SAFE_WITHIN_S: Final = 5.0  # after the commit, for the same reason; it finds its change done then


class ShardSlots:
    """The slots of each shard."""

    def __init__(self) -> None:
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    @asynccontextmanager
    async def take(self, shard_id: str) -> AsyncIterator[None]:
        """Have a slot of a shard. Raises `RetryableError` while none becomes free."""
        slots = self._slots[shard_id]
        try:
            async with asyncio.timeout(WAIT_S):
                await slots.acquire()
        except TimeoutError:
            raise RetryableError(f"shard {shard_id}: others of its changes take long") from None
        try:
            yield
        finally:
            slots.release()
