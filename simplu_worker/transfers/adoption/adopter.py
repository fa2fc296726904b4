"""Adopt a table of another program: our tables are made beside it, kept up to date, and swapped in.

Why the adopter may be killed at any instruction: each transaction checks its token in the journal, and notes there how
far it is. Nothing of the other program's is changed before the swap, which is one transaction, and nothing is ever
dropped: the old table stays, under another name. Until the swap no worker uses the shard; the journal moves with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from uuid import uuid4

import msgspec
import structlog

from simplu_worker.business_info import Business, BusinessFinder, UnreadableBusinessError
from simplu_worker.operations.operation import is_id, tenant_id_of
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, make_schema
from simplu_worker.shards.settling import SupersededError, TransferRefusedError, read_transfer
from simplu_worker.timing.waits import run_at_once
from simplu_worker.transfers import ADOPTION, QUERIES
from simplu_worker.transfers.adoption.plan import (
    NAMED_MAX,
    AdoptionChoices,
    AdoptionPlan,
    AdoptionStep,
    DuplicateRows,
    FaultyRow,
    Layout,
    OldContents,
    OldTenant,
    Owner,
    Standing,
    layout_of,
    next_step,
    owner_of,
    without_collisions,
)
from simplu_worker.transfers.engine import Journal, TransferEngine, TransferStatus
from simplu_worker.vocabulary import TransferKind, TransferStep

OURS: Final = "simplu_adoption"  # the namespace of our tables until the swap


def refused(shard_id: str, *problems: str) -> TransferRefusedError:
    """Return the error that there is nothing to adopt, or a person has to change or choose something first."""
    return TransferRefusedError("\n".join(f"shard {shard_id}: {problem}" for problem in problems))


async def find_layout(connection: Connection, shard_id: str) -> Layout:
    """Return the layout of the table to adopt; raise `TransferRefusedError` if it cannot be adopted."""
    row = await connection.fetchrow(QUERIES["find_old_table"], connection.home)
    if row is None:
        raise refused(shard_id, "expected a table resources of another program, got none; it cannot be adopted")
    layout = layout_of(msgspec.json.decode(row["columns"]))
    if not isinstance(layout, Layout):
        raise refused(shard_id, layout)
    if not row["is_plain"]:
        raise refused(shard_id, "expected resources to be a table without partitions or descendants")
    if not (row["is_owner"] and row["may_create"]):
        raise refused(
            shard_id,
            "expected a role that owns the table resources and may create schemas in the database and tables "
            "beside it, got another; use the role of the other program in the connection string, or grant these rights",
        )
    return layout


async def begin_adoption(connection: Connection, journal: Journal) -> None:
    """Make our tables and those of the adoption, within a transaction."""
    layout = await find_layout(connection, journal.tenant_id)
    await connection.execute(ADOPTION["adoption_log"])
    with connection.working_in(OURS):
        await make_schema(connection, journal.tenant_id)
        await journal.open(connection, TransferStep.OPEN, place=OLD_TABLE, detail=Standing())
    await connection.execute(ADOPTION[layout])
    await connection.execute(ADOPTION["old_rows"])


async def _read_contents(connection: Connection) -> OldContents:
    contents = OldContents()
    contents.conflicting_names = [row["name"] for row in await connection.fetch(QUERIES["find_conflicting_names"])]
    for row in await connection.fetch(QUERIES["count_old_rows"]):
        contents.add_rows(row["source"] and OldTenant(*row[:3]), row["fault"], row["row_count"])
    if contents.fault_counts:
        contents.faulty = [FaultyRow(*row) for row in await connection.fetch(QUERIES["first_faults"], NAMED_MAX)]
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
    is_known = any(isinstance(business, Business) for business in businesses.values())
    named = await locator.locate(tenant_id_of(*source.candidates[0])) if is_known else None
    named_id = None if named is None else named.shard_id
    return owner_of(source, businesses, named_id, shard_id=shard_id, types=BUSINESS_TYPES)


# While the adopter waits for a lock, the other program waits too, so not for long. A read of a whole table takes hours.
ADOPTION_TIMEOUTS: Final = ShardTimeouts(lock_s=2.0, statement_s=86_400.0, reply_s=86_460.0)
COPY_MAX_ROWS: Final = 2000  # in one transaction, which blocks nothing of the other program's
SWAP_MAX_CHANGES: Final = 1000  # while the old table is locked
LOOKUPS_AT_ONCE: Final = 16
QUIET_S: Final = 3.0  # the other program reads records once a second

OLD_TABLE: Final = "resources_before_adoption"

log = structlog.get_logger(__name__)


class AdoptionResult(msgspec.Struct, frozen=True, rename={"row_count": "rows", "tenant_count": "tenants"}):
    """The numbers of rows and tenants that were adopted."""

    row_count: int
    tenant_count: int


class Adopter(TransferEngine[AdoptionResult]):
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
    ) -> None:
        super().__init__(pool, pool.address.shard_id, show)
        self._locator = locator
        self._business_info = business_info
        self._quiet_s = quiet_s
        self._copy_max_rows = copy_max_rows
        self._journal = Journal(self._tenant_id, TransferKind.ADOPTION, uuid4().hex, home=OURS)
        self._choices: AdoptionChoices | None = None  # for the swap
        self._late = OldContents()  # found after the plan was made
        self._owners: dict[str, Owner] = {}
        self._unknown: list[OldTenant] = []
        self._standing = Standing()
        self._change_count = 0
        self._has_begun = False

    @property
    def journal(self) -> Journal:
        """The row of this adopter."""
        return self._journal

    @property
    def progress(self) -> object:
        """How far the copy is."""
        return self._standing.copied_to, self._standing.copy_to, self._change_count

    @property
    def has_pause(self) -> bool:
        """Whether the old table is locked, and our tables move."""
        return self.status.phase == AdoptionStep.SWAPPING

    def describe_state(self) -> str:
        """Return what was changed, and which command comes next."""
        return "the old table is as it was; end the transactions that lock it (pg_stat_activity), and run this again"

    async def make_plan(self) -> AdoptionPlan | AdoptionResult:
        """Return the plan of an adoption, or the result of an earlier one; nothing is changed.

        Raises `PermanentError` if there is nothing to adopt, `RetryableError` without an answer.
        """
        async with self._shard.connection() as connection:
            is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"], connection.home) or (False, False)
            is_begun = bool(await connection.fetchval(QUERIES["has_adoption"]))
            with connection.working_in(connection.home if is_ours else OURS):
                adopted_as = await connection.fetchval(QUERIES["find_adopted_shard"]) if is_begun else None
            if adopted_as not in (None, self._tenant_id):
                raise refused(
                    self._tenant_id, f"it is being adopted as shard {adopted_as}; correct its connection string"
                )
            if is_ours and adopted_as is None:
                raise refused(self._tenant_id, "its schema is ours; there is nothing to adopt")
            if is_empty:
                raise refused(self._tenant_id, "it is empty: the worker makes its own tables there")
            layout = None if is_ours else await find_layout(connection, self._tenant_id)
        if layout is None:
            return await self._read_result()
        async with self._rehearsal(is_begun=is_begun) as connection:
            contents = await _read_contents(connection)
        self._owners = await self._look_up(list(contents.sources.values()))
        async with self._rehearsal(is_begun=is_begun) as connection:
            await self._write_owners(connection)
            contents = await _read_duplicates(connection, contents, self._owners)
        return AdoptionPlan(self._tenant_id, layout, contents, self._owners, is_begun=is_begun)

    async def adopt(self, plan: AdoptionPlan, choices: AdoptionChoices | None) -> AdoptionResult:
        """Copy the rest, and swap the tables' names; the other program must be stopped. Without *choices* only copy.

        Raises `PermanentError` if *choices* are missing, or the other program still writes.
        """
        if refusals := plan.refusals(choices or AdoptionChoices(leave_unresolved=True, leave_faulty=True)):
            raise refused(self._tenant_id, *refusals)
        self._owners, self._choices = dict(plan.owners), choices
        return await self.run()

    async def go_on(self) -> AdoptionResult:
        """Go on by the row of the journal."""
        self._standing = await self._begin()
        while (step := next_step(self._standing, copies_only=self._choices is None)) is not AdoptionStep.ENDED:
            await self.take(step)
        return await self._read_result()

    async def take(self, step: AdoptionStep) -> None:
        """Take one step, or a part of it that fits into a transaction, and note it in the journal."""
        self._tell(step, max(0, self._standing.copied_to), self._standing.copy_to or 0)
        if step is AdoptionStep.LOOKING_UP:
            self._owners = await self._look_up(self._unknown)
        if step is AdoptionStep.WATCHING:
            await asyncio.sleep(self._quiet_s)
        take = {
            AdoptionStep.LOOKING_UP: self._name_owners,
            AdoptionStep.COPYING: self._copy_some,
            AdoptionStep.CATCHING_UP: self._catch_up,
            AdoptionStep.WATCHING: self._check_for_writes,
            AdoptionStep.SWAPPING: self._swap,
        }[step]
        async with self._shard.transaction() as connection:
            await self._note(connection, self._standing)  # locks the row
            standing = await take(connection, self._standing)
            if not standing.has_ended:
                await self._note(connection, standing)
        self._standing = standing

    async def _begin(self) -> Standing:
        """Make our tables, or take the journal of an adoption that was begun; return how far it is."""
        async with self._shard.transaction() as connection:
            await connection.execute(QUERIES["lock_schema"])
            is_ours, _ = await connection.fetchrow(QUERIES["has_schema"], connection.home) or (False, False)
            if is_ours:
                return Standing(has_ended=True)
            is_begun = await connection.fetchval(QUERIES["has_adoption"])
            if not is_begun:
                await begin_adoption(connection, self._journal)
            with connection.working_in(OURS):
                if is_begun and not self._has_begun:
                    await self._journal.take(connection, TransferStep.OPEN)
                found = await read_transfer(connection, self._tenant_id, TransferKind.ADOPTION)
            known = Standing() if found is None else msgspec.convert(found.detail, Standing)
            standing = Standing(copied_to=known.copied_to, copy_to=known.copy_to)
            await self._note(connection, standing)
        self._has_begun = True
        return standing

    async def _note(self, connection: Connection, standing: Standing) -> None:
        """Note how far the adoption is; raise `SupersededError` if another command has taken the journal."""
        is_copied = self._choices is None and standing.is_caught_up
        step = TransferStep.DONE if standing.has_ended else TransferStep.FOLLOWING if is_copied else TransferStep.OPEN
        with connection.working_in(OURS):
            is_own = await self._journal.note(connection, step, standing)
        if not is_own:
            raise SupersededError(f"shard {self._tenant_id}: another command adopts it since; this one has ended")

    @asynccontextmanager
    async def _rehearsal(self, *, is_begun: bool) -> AsyncIterator[Connection]:
        async with self._shard.transaction(is_rehearsal=True) as connection:
            if not is_begun:
                await begin_adoption(connection, self._journal)
            yield connection

    async def _look_up(self, sources: Sequence[OldTenant]) -> dict[str, Owner]:
        self._tell(AdoptionStep.LOOKING_UP, 0, len(sources))
        find = partial(_find_owner, shard_id=self._tenant_id, locator=self._locator, business_info=self._business_info)
        owners = await run_at_once(find, sources, most=LOOKUPS_AT_ONCE)
        return without_collisions([*self._owners.values(), *owners])

    # The copy

    async def _name_owners(self, connection: Connection, standing: Standing) -> Standing:
        await self._write_owners(connection)
        self._late.sources |= {source.key: source for source in self._unknown}
        return msgspec.structs.replace(standing, has_owners=True)

    async def _write_owners(self, connection: Connection) -> None:
        rows = [
            (one.source.key, one.tenant_id, one.business_id, one.location_id, one.business_type, one.problem)
            for one in self._owners.values()
        ]
        if rows:
            await connection.execute(QUERIES["write_sources"], *map(list, zip(*rows, strict=True)))

    async def _copy_some(self, connection: Connection, standing: Standing) -> Standing:
        if standing.copy_to is None:
            await connection.execute(ADOPTION["watch"])
            return msgspec.structs.replace(standing, copy_to=await connection.fetchval(QUERIES["find_last_row"]))
        rows = await connection.fetch(QUERIES["next_rows"], standing.copied_to, standing.copy_to, self._copy_max_rows)
        if not await self._copy_rows(connection, [row["id"] for row in rows]):
            return msgspec.structs.replace(standing, has_owners=False)
        return msgspec.structs.replace(standing, copied_to=rows[-1]["id"] if rows else standing.copy_to)

    async def _catch_up(self, connection: Connection, standing: Standing) -> Standing:
        limit = SWAP_MAX_CHANGES if standing.is_quiet else self._copy_max_rows
        changes = await connection.fetch(QUERIES["next_changes"], limit)
        ids = sorted({change["old_id"] for change in changes})
        if not await self._copy_rows(connection, ids):
            return msgspec.structs.replace(standing, has_owners=False)
        await connection.execute(QUERIES["delete_changes"], _texts(change["number"] for change in changes))
        faulty = await connection.fetch(QUERIES["find_faults"], _texts(ids))
        self._late.fault_counts.update(row["fault"] for row in faulty)
        self._change_count += len(ids)
        return msgspec.structs.replace(standing, is_caught_up=len(changes) < limit)

    async def _copy_rows(self, connection: Connection, ids: Sequence[int]) -> bool:
        """Copy rows of the old table; return whether the owners of all are known, as nothing is copied otherwise."""
        found = await connection.fetch(QUERIES["find_unknown_sources"], _texts(ids))
        self._unknown = [OldTenant(*row) for row in found]
        if self._unknown:
            return False
        rows = [*await connection.fetch(QUERIES["forget_rows"], _texts(ids))]
        rows += await connection.fetch(QUERIES["take_rows"], _texts(ids))
        if keys := sorted({tuple(row) for row in rows}):
            await connection.execute(QUERIES["make_resources"], *map(list, zip(*keys, strict=True)))
        return True

    # The swap

    async def _check_for_writes(self, connection: Connection, standing: Standing) -> Standing:
        """Raise `PermanentError` if the other program has written since the copy."""
        if await connection.fetchval(QUERIES["is_written"]):
            raise refused(self._tenant_id, "the other program still writes; stop it, and run this again")
        return msgspec.structs.replace(standing, is_quiet=True)

    async def _swap(self, connection: Connection, standing: Standing) -> Standing:
        """Swap the names, unless there are too many changes to apply under the lock."""
        written_at = await connection.fetchval(QUERIES["find_last_write"])
        await connection.execute(ADOPTION["lock_old_table"])
        standing = await self._catch_up(connection, standing)
        if not (standing.has_owners and standing.is_caught_up):
            return standing
        late, choices = self._late, self._choices or AdoptionChoices()
        is_chosen = (choices.leave_faulty or not late.fault_counts) and (
            choices.leave_unresolved or all(self._owners[key].problem is None for key in late.sources)
        )
        if await connection.fetch(QUERIES["find_conflicting_names"]) or not is_chosen:
            raise refused(self._tenant_id, "later rows of the old table need a choice; run this again")
        if made := await connection.fetch(QUERIES["make_adopted_tenants"], written_at):
            with connection.working_in(OURS):
                await connection.fetch(QUERIES["add_default_rows"], *map(list, zip(*made, strict=True)))
        ended = msgspec.structs.replace(standing, has_ended=True)
        await self._note(connection, ended)  # before our tables move
        await connection.execute(ADOPTION["swap"])
        log.info("shard.adopted", shard_id=self._tenant_id)
        return ended

    async def _read_result(self) -> AdoptionResult:
        async with self._shard.connection() as connection:
            return AdoptionResult(*(await connection.fetchrow(QUERIES["count_taken"]) or (0, 0)))


def _texts(ids: Iterable[int]) -> list[str]:
    """Return *ids* as texts: asyncpg would ask the server for arrays of another type by unqualified names."""
    return [str(one) for one in ids]
