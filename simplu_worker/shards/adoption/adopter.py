"""Takes over a table that another program has written: ours is made beside it, kept up to date, and swapped in.

Why it can be killed at any instruction: what is done is in the shard, in the transaction that did it, and what is left
to do is found there. Nothing of the other program's is changed before the swap, which is one transaction, and nothing
is ever dropped: its table stays, under another name. Until the swap the shard is nobody's whom a worker would serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog

from simplu_worker.business_info.table import BusinessFinder
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.adoption.discovery import (
    OURS,
    AdoptionRefusedError,
    OldTable,
    begin_adoption,
    find_old_table,
    find_owner,
    read_contents,
    source_of,
)
from simplu_worker.shards.adoption.plan import (
    AdoptionChoices,
    AdoptionPlan,
    Duplicates,
    OldContents,
    OldTenant,
    Owner,
    without_collisions,
)
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.migrations import pause_s
from simplu_worker.shards.schema.sql_files import ADOPTION
from simplu_worker.shards.types import ShardUnavailableError

# A lock that is waited for holds off the other program too: not for long. Reading a whole table takes what it takes.
ADOPTION_DEADLINES: Final = ShardTimeouts(lock_s=2.0, statement_s=86_400.0, reply_s=86_460.0)
COPY_MAX_ROWS: Final = 2000  # rows in one transaction, which holds nobody off
SWAP_MAX_CHANGES: Final = 1000  # while the old table is locked
LOOKUPS_AT_ONCE: Final = 16
ATTEMPTS: Final = 30  # for a lock
QUIET_S: Final = 3.0  # the other program asks for records once a second

T = TypeVar("T")

log = structlog.get_logger(__name__)


class AdoptionStep(StrEnum):
    """What an adoption is at."""

    LOOKING_UP = "looking up tenants"
    COPYING = "copying rows"
    CATCHING_UP = "catching up"
    WATCHING = "watching for writes"
    SWAPPING = "swapping names"


class AdoptionProgress(msgspec.Struct, frozen=True):
    """How far a step got; by ids of rows where *total* is given."""

    step: AdoptionStep
    done: int = 0
    total: int | None = None


class AdoptionResult(msgspec.Struct, frozen=True):
    """What was taken over: rows of the old table, and tenants."""

    shard_id: str
    row_count: int
    tenant_count: int
    old_table: str = "resources_before_adoption"


ReportProgress: TypeAlias = Callable[[AdoptionProgress], None]


class _RehearsedError(WorkerError):
    """Nothing is wrong: what was tried out, and *found* so, is to be rolled back."""

    def __init__(self, found: OldContents) -> None:
        super().__init__("rehearsed")
        self.found = found


class _AdoptedError(WorkerError):
    """Somebody else has just swapped the names."""


class _BehindError(WorkerError):
    """There are more changes than the lock may be held for."""


class _UnknownSourcesError(WorkerError):
    """Rows of somebody who has not been looked up."""

    def __init__(self, sources: Sequence[OldTenant]) -> None:
        super().__init__("rows of unknown sources")
        self.sources = sources


class Adopter:
    """Adopts the shard of *pool*, which is made with `ADOPTION_DEADLINES`; *tell* is told how far it is."""

    def __init__(
        self,
        pool: ShardPool,
        locator: Locator,
        business_info: BusinessFinder,
        *,
        report: ReportProgress = lambda _: None,
        quiet_s: float = QUIET_S,
        copy_max_rows: int = COPY_MAX_ROWS,
        attempts: int = ATTEMPTS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._shard_id = pool.address.shard_id
        self._locator = locator
        self._business_info = business_info
        self._report = report
        self._quiet_s = quiet_s
        self._copy_max_rows = copy_max_rows
        self._attempts = attempts
        self._draw = draw
        self._late = OldContents()  # what came since the plan was made
        self._owners: dict[str, Owner] = {}

    def __repr__(self) -> str:
        return f"Adopter({self._shard_id}, tenants={len(self._owners)})"

    async def make_plan(self) -> AdoptionPlan | AdoptionResult:
        """Return what there is to be adopted, or what was; nothing is changed.

        Raises `PermanentError` where there is nothing to adopt, `RetryableError` while somebody who is asked does not
        answer.
        """
        async with self._pool.connection() as connection:
            is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"]) or (False, False)
            is_begun = bool(await connection.fetchval(QUERIES["has_adoption"]))
            adoption = await connection.fetchrow(QUERIES["read_adoption"]) if is_begun else None
        if adoption is not None and adoption["shard_id"] != self._shard_id:
            raise self._refused(f"it is being adopted as shard {adoption['shard_id']}; correct its connection string")
        if adoption is not None and adoption["adopted_at"] is not None:
            return await self._read_result()
        if is_ours:
            raise self._refused("its schema is ours; there is nothing to adopt")
        if is_empty:
            raise self._refused("it is empty; there is nothing to adopt, the worker makes its tables by itself")
        old_table = await self._run(lambda connection: find_old_table(connection, self._shard_id))
        found = await self._read_old_table(old_table, is_begun=is_begun)
        self._owners = await self._look_up(list(found.sources.values()))
        return AdoptionPlan(self._shard_id, old_table.layout, found, self._owners, is_begun=is_begun)

    async def copy(self, plan: AdoptionPlan, choices: AdoptionChoices) -> None:
        """Copy everything, and everything that changes meanwhile; the other program may go on, now and afterwards.

        Raises as `plan` does.
        """
        if plan.contents.conflicting_names:
            raise self._refused(*plan.refusals(AdoptionChoices(leave_unresolved=True, leave_faulty=True)))
        with contextlib.suppress(_AdoptedError):
            await self._run(self._begin)
            await self._write_owners(plan.owners.values())
            if choices.duplicates is not None:
                await self._choose(newest_wins=choices.duplicates is Duplicates.NEWEST)
            await self._run(self._watch)
            await self._repeat(self._copy_some)
            await self._repeat(self._catch_up_some)

    async def adopt(self, plan: AdoptionPlan, choices: AdoptionChoices) -> AdoptionResult:
        """Copy what is not copied yet, and give the tables their names; the other program must have been stopped.

        Raises `PermanentError` where something has to be done or chosen before, or the other program still writes.
        """
        if refusals := plan.refusals(choices):
            raise self._refused(*refusals)
        await self.copy(plan, choices)
        with contextlib.suppress(_AdoptedError):
            await self._run(self._analyze)
            await self._check_for_writes()
            while not await self._swapped(choices):
                await self._repeat(self._catch_up_some)
            log.info("shard.adopted", shard_id=self._shard_id)
        return await self._read_result()

    def _refused(self, *problems: str) -> PermanentError:
        return AdoptionRefusedError(self._shard_id, *problems)

    async def _run(self, step: Callable[[Connection], Awaitable[T]]) -> T:
        """Do *step* in a transaction of its own, again and again while a lock is not to be had."""
        for attempt in range(self._attempts):
            try:
                async with self._pool.transaction() as connection:
                    return await step(connection)
            except LostRaceError:
                await asyncio.sleep(pause_s(attempt, draw=self._draw()))
        raise ShardUnavailableError(
            f"shard {self._shard_id}: expected a lock on the old table within {self._attempts} tries, got none; "
            f"end the transactions that use it ({await self._describe_users()}) and run this again; "
            "it continues where it stopped"
        )

    async def _describe_users(self) -> str:
        async with self._pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_users_of_old_table"])
        users = [
            f"pid {row['pid']}: " + ", ".join(filter(None, (row["application_name"], row["role"], row["state"])))
            for row in rows
        ]
        return "; ".join(users) or "none is there any more"

    async def _repeat(self, step: Callable[[Connection], Awaitable[bool]]) -> None:
        """Do *step* until it says that there is no more, and look up those whom it does not know."""
        while True:
            try:
                if not await self._run(step):
                    return
            except _UnknownSourcesError as exc:
                await self._look_up_late(exc.sources)

    async def _read_old_table(self, old_table: OldTable, *, is_begun: bool) -> OldContents:
        """Return what the old table has; what has to be made for that is not kept."""

        async def look(connection: Connection) -> None:
            if not is_begun:
                await self._begin(connection)
            await connection.execute(QUERIES["work_in"], old_table.home)
            raise _RehearsedError(await read_contents(connection))

        try:
            await self._run(look)
        except _RehearsedError as exc:
            return exc.found
        raise AssertionError("a rehearsal always ends so")

    async def _look_up(self, sources: Sequence[OldTenant]) -> dict[str, Owner]:
        """Return who all are who are known, with *sources*."""
        owners: list[Owner] = []

        async def look_up(source: OldTenant) -> None:
            owners.append(await find_owner(source, self._shard_id, self._locator, self._business_info))

        for start in range(0, len(sources), LOOKUPS_AT_ONCE):
            self._report(AdoptionProgress(AdoptionStep.LOOKING_UP, start, len(sources)))
            try:
                async with asyncio.TaskGroup() as tasks:
                    for source in sources[start : start + LOOKUPS_AT_ONCE]:
                        tasks.create_task(look_up(source), name=f"look-up:{source.key}")
            except ExceptionGroup as group:
                raise group.exceptions[0] from group
        return without_collisions([*self._owners.values(), *owners])

    # The copy

    async def _begin(self, connection: Connection) -> None:
        await connection.execute(QUERIES["lock_schema"])
        if not await connection.fetchval(QUERIES["has_adoption"]):
            await begin_adoption(connection, self._shard_id, await find_old_table(connection, self._shard_id))

    async def _held(self, connection: Connection) -> Any:
        await connection.execute(QUERIES["work_in"], OURS)
        adoption = await connection.fetchrow(QUERIES["hold_adoption"])
        if adoption is None or adoption["adopted_at"] is not None:
            raise _AdoptedError
        return adoption

    async def _write_owners(self, owners: Iterable[Owner]) -> None:
        rows = [
            (one.source.key, one.tenant_id, one.business_id, one.location_id, one.business_type, one.problem)
            for one in owners
        ]

        async def note(connection: Connection) -> None:
            await self._held(connection)
            others = await connection.fetch(QUERIES["note_sources"], *map(list, zip(*rows, strict=True)))
            await connection.execute(QUERIES["look_again_at_sources"], [row["key"] for row in others])

        if rows:
            await self._run(note)

    async def _choose(self, *, newest_wins: bool) -> None:
        async def choose(connection: Connection) -> None:
            await self._held(connection)
            await connection.execute(QUERIES["choose_duplicates"], newest_wins)

        await self._run(choose)

    async def _watch(self, connection: Connection) -> None:
        if (await self._held(connection))["copy_to"] is None:
            await connection.execute(ADOPTION["watch"])
            await connection.execute(QUERIES["begin_copy"])

    async def _copy_some(self, connection: Connection) -> bool:
        adoption = await self._held(connection)
        after, up_to = adoption["copied_to"], adoption["copy_to"]
        self._report(AdoptionProgress(AdoptionStep.COPYING, max(0, after), up_to))
        rows = await connection.fetch(QUERIES["next_rows"], after, up_to, self._copy_max_rows)
        ids = [row["id"] for row in rows]
        if ids:
            await self._take_rows(connection, adoption, ids)
            await connection.execute(QUERIES["note_copied"], ids[-1])
        return bool(ids)

    async def _catch_up_some(self, connection: Connection) -> bool:
        adoption = await self._held(connection)
        self._report(AdoptionProgress(AdoptionStep.CATCHING_UP))
        return await self._catch_up(connection, adoption, self._copy_max_rows) == self._copy_max_rows

    async def _catch_up(self, connection: Connection, adoption: Any, limit: int) -> int:
        """Do at most *limit* changes, note what is amiss with them, and return how many they were."""
        rows = await connection.fetch(QUERIES["next_changes"], limit)
        ids = sorted({row["old_id"] for row in rows})
        if ids:
            keys = await self._take_rows(connection, adoption, ids)
            faulty = await connection.fetch(QUERIES["find_faults"], ids)
            self._late.fault_counts.update(row["fault"] for row in faulty)
            if await connection.fetch(QUERIES["find_taken_duplicates"], *keys):
                self._late.duplicate_counts[self._shard_id] += 1
        return len(rows)

    async def _take_rows(self, connection: Connection, adoption: Any, ids: Sequence[int]) -> list[list[str]]:
        """Make ours as the old rows *ids* are; return the resources that they were or are, as three columns."""
        unknown = await connection.fetch(QUERIES["find_unknown_sources"], ids)
        if unknown:
            raise _UnknownSourcesError([source for row in unknown if (source := source_of(row)) is not None])
        rows = await connection.fetch(QUERIES["take_rows"], ids)
        keys = [[row[name] for row in rows] for name in ("tenant_id", "resource_type", "resource_id")]
        await connection.execute(QUERIES["make_resources"], *keys, adoption["newest_wins"])
        return keys

    async def _look_up_late(self, sources: Sequence[OldTenant]) -> None:
        """Look up those who have come since the plan was made."""
        self._owners = await self._look_up(sources)
        self._late.sources |= {source.key: source for source in sources}
        await self._write_owners(self._owners.values())

    # The swap

    async def _analyze(self, connection: Connection) -> None:
        await self._held(connection)
        await connection.execute(QUERIES["analyze_adopted"])

    async def _check_for_writes(self) -> None:
        """Raise `PermanentError` when the other program writes within a few seconds: it would fail after the swap."""
        await self._repeat(self._catch_up_some)
        self._report(AdoptionProgress(AdoptionStep.WATCHING))
        await asyncio.sleep(self._quiet_s)
        async with self._pool.connection() as connection:
            if await connection.fetchval(QUERIES["is_written"]):
                raise self._refused(
                    f"the other program wrote to its table within {self._quiet_s:g} s; stop it, and run this again: "
                    "all is copied, and kept up to date"
                )

    async def _swapped(self, choices: AdoptionChoices) -> bool:
        """Swap the names; return False when there was too much left to do, or somebody to be looked up."""
        self._report(AdoptionProgress(AdoptionStep.SWAPPING))
        try:
            await self._run(lambda connection: self._swap(connection, choices))
        except _BehindError:
            return False
        except _UnknownSourcesError as exc:
            await self._look_up_late(exc.sources)
            return False
        return True

    async def _swap(self, connection: Connection, choices: AdoptionChoices) -> None:
        adoption = await self._held(connection)
        await connection.execute(ADOPTION["hold_old_table"])
        if await self._catch_up(connection, adoption, SWAP_MAX_CHANGES) == SWAP_MAX_CHANGES:
            raise _BehindError
        if await connection.fetch(QUERIES["find_names_in_the_way"]) or not self._allow_late(choices):
            raise self._refused("what is in the old table has changed since it was looked at; run this again")
        await connection.execute(QUERIES["make_adopted_tenants"])
        await connection.execute(QUERIES["add_adopted_default_rows"])
        await connection.execute(ADOPTION["swap"])
        await connection.execute(QUERIES["end_adoption"])

    def _allow_late(self, choices: AdoptionChoices) -> bool:
        late = self._late
        return (
            (choices.leave_faulty or not late.fault_counts)
            and (choices.duplicates is not None or not late.duplicate_counts)
            and (choices.leave_unresolved or all(self._owners[key].problem is None for key in late.sources))
        )

    async def _read_result(self) -> AdoptionResult:
        async with self._pool.connection() as connection:
            row_count, tenant_count = await connection.fetchrow(QUERIES["count_taken"]) or (0, 0)
        return AdoptionResult(self._shard_id, row_count, tenant_count)
