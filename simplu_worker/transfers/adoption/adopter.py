"""Adopt a table of another program: our tables are made beside it, kept up to date, and swapped in.

Why the adopter may be killed at any instruction: each transaction stores its progress on the shard. Nothing of the
other program's is changed before the swap, which is one transaction, and nothing is ever dropped: the old table stays,
under another name. Until the swap no worker uses the shard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog

from simplu_worker.business_info import Business, BusinessFinder, UnreadableBusinessError
from simplu_worker.errors import PermanentError
from simplu_worker.operations.operation import is_id, tenant_id_of
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, make_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.waits import run_at_once
from simplu_worker.transfers import ADOPTION, QUERIES
from simplu_worker.transfers.adoption.plan import (
    NAMED_MAX,
    AdoptionChoices,
    AdoptionPlan,
    DuplicateRows,
    FaultyRow,
    Layout,
    OldContents,
    OldTenant,
    Owner,
    layout_of,
    owner_of,
    without_collisions,
)
from simplu_worker.transfers.engine import TransferStatus, run_until_won

OURS: Final = "simplu_adoption"  # the namespace of our tables until the swap


class AdoptionRefusedError(PermanentError):
    """There is nothing to adopt, or a person has to change or choose something first."""

    def __init__(self, shard_id: str, *problems: str) -> None:
        super().__init__("\n".join(f"shard {shard_id}: {problem}" for problem in problems))


async def find_layout(connection: Connection, shard_id: str) -> Layout:
    """Return the layout of the table to adopt; raise `AdoptionRefusedError` if it cannot be adopted."""
    row = await connection.fetchrow(QUERIES["find_old_table"], connection.home)
    if row is None:
        raise AdoptionRefusedError(
            shard_id, "expected a table resources of another program, got none; it cannot be adopted"
        )
    layout = layout_of(msgspec.json.decode(row["columns"]))
    if not isinstance(layout, Layout):
        raise AdoptionRefusedError(shard_id, layout)
    if not row["is_plain"]:
        raise AdoptionRefusedError(shard_id, "expected resources to be a table without partitions or descendants")
    if not (row["is_owner"] and row["may_create"]):
        raise AdoptionRefusedError(
            shard_id,
            "expected a role that owns the table resources and may create schemas in the database and tables "
            "beside it, got another; use the role of the other program in the connection string, or grant these rights",
        )
    return layout


async def begin_adoption(connection: Connection, shard_id: str) -> None:
    """Make our tables and those of the adoption, within a transaction."""
    layout = await find_layout(connection, shard_id)
    await connection.execute(ADOPTION["adoption_log"])
    with connection.working_in(OURS):
        await make_schema(connection, shard_id)
    await connection.execute(ADOPTION[layout])
    await connection.execute(ADOPTION["old_rows"])
    await connection.execute(QUERIES["begin_adoption"], shard_id)


async def _read_contents(connection: Connection) -> OldContents:
    contents = OldContents()
    contents.conflicting_names = [row["name"] for row in await connection.fetch(QUERIES["find_conflicting_names"])]
    for row in await connection.fetch(QUERIES["count_old_rows"]):
        contents.add_rows(source_of(row), row["fault"], row["row_count"])
    if contents.fault_counts:
        rows = await connection.fetch(QUERIES["first_faults"], NAMED_MAX)
        contents.faulty = [FaultyRow(row["id"], row["fault"]) for row in rows]
    return contents


async def _read_duplicates(connection: Connection, contents: OldContents, owners: Mapping[str, Owner]) -> OldContents:
    """Return *contents* with the duplicates, once the *owners* are written; reads the whole table."""
    found = msgspec.structs.replace(contents, duplicates=[], duplicate_counts=Counter())
    async for row in connection.cursor(QUERIES["list_duplicates"], prefetch=1000):
        names = owners[row["source"]].name, row["resource_type"], row["resource_id"]
        found.add_duplicate(row["source"], DuplicateRows(*names, row["row_count"], [int(one) for one in row["ids"]]))
    return found


async def _find_owner(source: OldTenant, shard_id: str, locator: Locator, business_info: BusinessFinder) -> Owner:
    businesses: dict[str, Business | str | None] = {}
    for business_id, location_id in source.candidates:
        if is_id(business_id) and is_id(location_id) and business_id not in businesses:
            try:
                businesses[business_id] = await business_info.find(business_id)
            except UnreadableBusinessError as exc:
                businesses[business_id] = str(exc)
    named = None
    if any(isinstance(business, Business) for business in businesses.values()):
        named = await locator.locate(tenant_id_of(*source.candidates[0]))
    named_id = None if named is None else named.shard_id
    return owner_of(source, businesses, named_id, shard_id=shard_id, types=BUSINESS_TYPES)


def source_of(row: Any) -> OldTenant | None:
    """Return the source of a row of the old table; None if the row names none."""
    if row["source"] is None:
        return None
    return OldTenant(row["source"], row["business_id"], row["location_id"])


# While the adopter waits for a lock, the other program waits too, so not for long. A read of a whole table takes hours.
ADOPTION_TIMEOUTS: Final = ShardTimeouts(lock_s=2.0, statement_s=86_400.0, reply_s=86_460.0)
COPY_MAX_ROWS: Final = 2000  # in one transaction, which blocks nothing of the other program's
SWAP_MAX_CHANGES: Final = 1000  # while the old table is locked
LOOKUPS_AT_ONCE: Final = 16
ATTEMPTS: Final = 30  # for a lock
QUIET_S: Final = 3.0  # the other program reads records once a second

OLD_TABLE: Final = "resources_before_adoption"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class AdoptionStep(StrEnum):
    """The steps of an adoption."""

    LOOKING_UP = "looking up tenants"
    COPYING = "copying rows"
    CATCHING_UP = "catching up"
    WATCHING = "watching for writes"
    SWAPPING = "swapping names"


class AdoptionResult(msgspec.Struct, frozen=True):
    """The numbers of rows and tenants that were adopted."""

    row_count: int
    tenant_count: int


class _AdoptedError(Exception):
    """Another adopter has swapped the names: nothing is left to do."""


class _UnknownSourcesError(Exception):
    def __init__(self, sources: list[OldTenant]) -> None:
        super().__init__()
        self.sources = sources


_Step: TypeAlias = Callable[[Connection, Any], Awaitable[bool]]
"""One transaction of a step, with the locked row of the adoption; it returns whether the step has more to do."""


class Adopter:
    """Adopts the shard of *pool*, which is made with `ADOPTION_TIMEOUTS`; *show* gets the progress, in ids of rows."""

    def __init__(
        self,
        pool: ShardPool,
        locator: Locator,
        business_info: BusinessFinder,
        *,
        show: Callable[[TransferStatus], None] = lambda _: None,
        quiet_s: float = QUIET_S,
        copy_max_rows: int = COPY_MAX_ROWS,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._pool = pool
        self._shard_id = pool.address.shard_id
        self._locator = locator
        self._business_info = business_info
        self._show = show
        self._quiet_s = quiet_s
        self._copy_max_rows = copy_max_rows
        self._attempts = attempts
        self._late = OldContents()  # found after the plan was made
        self._owners: dict[str, Owner] = {}

    async def make_plan(self) -> AdoptionPlan | AdoptionResult:
        """Return the plan of an adoption, or the result of an earlier one; nothing is changed.

        Raises `PermanentError` if there is nothing to adopt, `RetryableError` without an answer.
        """
        async with self._pool.connection() as connection:
            is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"], connection.home) or (False, False)
            is_begun = bool(await connection.fetchval(QUERIES["has_adoption"]))
            adoption = await connection.fetchrow(QUERIES["read_adoption"]) if is_begun else None
        if adoption is not None and adoption["shard_id"] != self._shard_id:
            raise self._refused(f"it is being adopted as shard {adoption['shard_id']}; correct its connection string")
        if adoption is not None and adoption["adopted_at"] is not None:
            return await self._read_result()
        if is_ours:
            raise self._refused("its schema is ours; there is nothing to adopt")
        if is_empty:
            raise self._refused("it is empty; there is nothing to adopt, as the worker makes its own tables there")
        layout = await self._run(lambda connection: find_layout(connection, self._shard_id))
        contents = await self._rehearse(_read_contents, is_begun=is_begun)
        self._owners = await self._look_up(list(contents.sources.values()))

        async def read(connection: Connection) -> OldContents:
            await self._write_owners(connection)
            return await _read_duplicates(connection, contents, self._owners)

        contents = await self._rehearse(read, is_begun=is_begun)
        return AdoptionPlan(self._shard_id, layout, contents, self._owners, is_begun=is_begun)

    async def adopt(self, plan: AdoptionPlan, choices: AdoptionChoices) -> AdoptionResult:
        """Copy the rest, and swap the tables' names; the other program must be stopped.

        Raises `PermanentError` if *choices* are missing, or the other program still writes.
        """
        if refusals := plan.refusals(choices):
            raise self._refused(*refusals)
        with contextlib.suppress(_AdoptedError):
            await self._copy(plan)
            await self._check_for_writes()
            self._show(TransferStatus(AdoptionStep.SWAPPING))
            while await self._run_locked(partial(self._swap, choices=choices)):
                await self._complete(self._catch_up_some)
            log.info("shard.adopted", shard_id=self._shard_id)
        return await self._read_result()

    def _refused(self, *problems: str) -> PermanentError:
        return AdoptionRefusedError(self._shard_id, *problems)

    async def copy(self, plan: AdoptionPlan) -> None:
        """Copy all rows, and all changes until now; the other program may go on writing. Raises as `make_plan`."""
        with contextlib.suppress(_AdoptedError):
            await self._copy(plan)

    async def _copy(self, plan: AdoptionPlan) -> None:
        if plan.contents.conflicting_names:
            raise self._refused(*plan.refusals(AdoptionChoices(leave_unresolved=True, leave_faulty=True)))
        self._owners = dict(plan.owners)
        await self._run(self._begin)
        await self._complete(self._write_owners, self._watch, self._copy_some, self._catch_up_some)

    async def _run(self, step: Callable[[Connection], Awaitable[T]], *, is_rehearsal: bool = False) -> T:
        """Run *step* in its own transaction; try again while a lock is not to be had."""

        async def once() -> T:
            async with self._pool.transaction(is_rehearsal=is_rehearsal) as connection:
                return await step(connection)

        with contextlib.suppress(LostRaceError):
            return await run_until_won(once, tries=self._attempts)
        raise ShardUnavailableError(
            f"shard {self._shard_id}: others kept the old table locked in {self._attempts} tries; "
            "end the transactions that use it (pg_stat_activity has them), and run this again; "
            "it continues where it stopped"
        )

    async def _run_locked(self, step: _Step) -> bool:
        """Run *step* with the row of the adoption; again once tenants that it finds are looked up."""

        async def run(connection: Connection) -> bool:
            adoption = await connection.fetchrow(QUERIES["lock_adoption"])
            if adoption is None or adoption["adopted_at"] is not None:
                raise _AdoptedError
            return await step(connection, adoption)

        while True:
            try:
                return await self._run(run)
            except _UnknownSourcesError as exc:
                self._owners = await self._look_up(exc.sources)
                self._late.sources |= {source.key: source for source in exc.sources}
                await self._run_locked(self._write_owners)

    async def _complete(self, *steps: _Step) -> None:
        for step in steps:
            while await self._run_locked(step):
                pass

    async def _rehearse(self, read: Callable[[Connection], Awaitable[T]], *, is_begun: bool) -> T:
        async def rehearsal(connection: Connection) -> T:
            if not is_begun:
                await self._begin(connection)
            return await read(connection)

        return await self._run(rehearsal, is_rehearsal=True)

    async def _look_up(self, sources: Sequence[OldTenant]) -> dict[str, Owner]:
        owners: list[Owner] = []

        async def look_up(source: OldTenant) -> None:
            owners.append(await _find_owner(source, self._shard_id, self._locator, self._business_info))
            self._show(TransferStatus(AdoptionStep.LOOKING_UP, len(owners), row_total=len(sources)))

        await run_at_once(look_up, sources, most=LOOKUPS_AT_ONCE)
        return without_collisions([*self._owners.values(), *owners])

    # The copy

    async def _begin(self, connection: Connection) -> None:
        await connection.execute(QUERIES["lock_schema"])
        if not await connection.fetchval(QUERIES["has_adoption"]):
            await begin_adoption(connection, self._shard_id)

    async def _write_owners(self, connection: Connection, _: Any = None) -> bool:
        rows = [
            (one.source.key, one.tenant_id, one.business_id, one.location_id, one.business_type, one.problem)
            for one in self._owners.values()
        ]
        if rows:
            await connection.execute(QUERIES["write_sources"], *map(list, zip(*rows, strict=True)))
        return False

    async def _watch(self, connection: Connection, adoption: Any) -> bool:
        if adoption["copy_to"] is None:
            await connection.execute(ADOPTION["watch"])
            await connection.execute(QUERIES["begin_copy"])
        return False

    async def _copy_some(self, connection: Connection, adoption: Any) -> bool:
        after, up_to = adoption["copied_to"], adoption["copy_to"]
        self._show(TransferStatus(AdoptionStep.COPYING, max(0, after), row_total=up_to))
        rows = await connection.fetch(QUERIES["next_rows"], after, up_to, self._copy_max_rows)
        if ids := [row["id"] for row in rows]:
            await self._copy_rows(connection, ids)
            await connection.execute(QUERIES["record_copied"], ids[-1])
        return bool(ids)

    async def _catch_up_some(self, connection: Connection, _: Any) -> bool:
        self._show(TransferStatus(AdoptionStep.CATCHING_UP))
        return await self._catch_up(connection, self._copy_max_rows)

    async def _catch_up(self, connection: Connection, limit: int) -> bool:
        changes = await connection.fetch(QUERIES["next_changes"], limit)
        if ids := sorted({change["old_id"] for change in changes}):
            await connection.execute(QUERIES["delete_changes"], _texts(change["number"] for change in changes))
            await self._copy_rows(connection, ids)
            faulty = await connection.fetch(QUERIES["find_faults"], _texts(ids))
            self._late.fault_counts.update(row["fault"] for row in faulty)
        return len(changes) == limit

    async def _copy_rows(self, connection: Connection, ids: Sequence[int]) -> None:
        if unknown := await connection.fetch(QUERIES["find_unknown_sources"], _texts(ids)):
            raise _UnknownSourcesError([source for row in unknown if (source := source_of(row)) is not None])
        rows = [*await connection.fetch(QUERIES["forget_rows"], _texts(ids))]
        rows += await connection.fetch(QUERIES["take_rows"], _texts(ids))
        if keys := sorted({tuple(row) for row in rows}):
            await connection.execute(QUERIES["make_resources"], *map(list, zip(*keys, strict=True)))

    # The swap

    async def _check_for_writes(self) -> None:
        """Raise `PermanentError` if the other program writes within `quiet_s`."""
        self._show(TransferStatus(AdoptionStep.WATCHING))
        await asyncio.sleep(self._quiet_s)
        async with self._pool.connection() as connection:
            if await connection.fetchval(QUERIES["is_written"]):
                raise self._refused(
                    "the other program still writes; stop it, and run this again: all rows are copied, and kept up to "
                    "date"
                )

    async def _swap(self, connection: Connection, _: Any, *, choices: AdoptionChoices) -> bool:
        """Swap the names, unless there are too many changes to apply under the lock."""
        await connection.execute(ADOPTION["lock_old_table"])
        if await self._catch_up(connection, SWAP_MAX_CHANGES):
            return True
        if await connection.fetch(QUERIES["find_conflicting_names"]) or not self._allow_late(choices):
            raise self._refused("later rows of the old table need a choice; run this again")
        if made := await connection.fetch(QUERIES["make_adopted_tenants"]):
            with connection.working_in(OURS):
                await connection.fetch(QUERIES["add_default_rows"], *map(list, zip(*made, strict=True)))
        await connection.execute(ADOPTION["swap"])
        await connection.execute(QUERIES["end_adoption"])
        return False

    def _allow_late(self, choices: AdoptionChoices) -> bool:
        late = self._late
        return (choices.leave_faulty or not late.fault_counts) and (
            choices.leave_unresolved or all(self._owners[key].problem is None for key in late.sources)
        )

    async def _read_result(self) -> AdoptionResult:
        async with self._pool.connection() as connection:
            row_count, tenant_count = await connection.fetchrow(QUERIES["count_taken"]) or (0, 0)
        return AdoptionResult(row_count, tenant_count)


def _texts(ids: Iterable[int]) -> list[str]:
    """Return *ids* as texts: asyncpg would ask the server for arrays of another type by unqualified names."""
    return [str(one) for one in ids]
