"""The upgrade of a shard's schema while workers run: short locks, and no transaction around a long statement.

Why it is safe to kill at any instruction: every statement may be run again, a file is recorded after its statements,
and a half-built index is dropped and built again. Upgrades and `types apply` of a shard exclude each other by an
advisory lock, held by a transaction of its own, so that it works through a pooler.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar

import asyncpg
import msgspec
import structlog

from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, at_home
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.migrations import STEP, Migration, Step, Upgrade, plan_upgrade, steps_of
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, MIGRATIONS, read_schema, read_types, write_types
from simplu_worker.shards.schema.type_files import TypeFile, TypesPlan, plan_types
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import backoff_s

CONNECTIONS: Final = 3  # of one shard's upgrade: one holds the lock, one runs statements, one looks up their blockers
WATCH_INTERVAL_S: Final = 0.5  # between two look-ups of a statement's blockers
BUILD_MAX_S: Final = 7 * 86_400.0  # of a statement outside a transaction: as good as unlimited
PATIENCE_S: Final = 600.0
PAUSE_MIN_S: Final = 1.0  # between two tries for a lock
PAUSE_MAX_S: Final = 15.0
# Workers' batches queue behind a statement that waits for a table: at most for as long as a batch may take.
UPGRADE_TIMEOUTS: Final = ShardTimeouts(lock_s=2.0)
ANOTHER_UPGRADE: Final = "another upgrade of this shard"
TYPES_TITLE: Final = "business types"

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class UpgradeActivity(msgspec.Struct, frozen=True):
    """A step of an upgrade, its progress as *share*, and the sessions that block it."""

    title: str
    share: float | None = None
    waits_for: Sequence[str] = ()


ReportActivity: TypeAlias = Callable[[UpgradeActivity], None]


async def read_upgrade(
    connection: Connection,
    shard_id: str,
    *,
    migrations: Sequence[Migration] = MIGRATIONS,
    types: Mapping[str, TypeFile] = BUSINESS_TYPES,
) -> Upgrade | None:
    """Return the upgrade that the shard of *connection* needs; None if it is empty. Raises as `read_schema` does."""
    schema = await read_schema(connection, shard_id)
    if schema is None:
        return None
    plan = plan_types(await read_types(connection), types, by_upgrade=True)
    return plan_upgrade(schema, migrations, plan.to_write)


class Upgrader:
    """The upgrade of the shard of *pool*, which has room for two connections; retries locks for *patience_s*."""

    def __init__(
        self,
        pool: ShardPool,
        *,
        report: ReportActivity = lambda _: None,
        patience_s: float = PATIENCE_S,
        migrations: Sequence[Migration] = MIGRATIONS,
        types: Mapping[str, TypeFile] = BUSINESS_TYPES,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._report_activity = report
        self._patience_s = patience_s
        self._migrations = migrations
        self._types = types
        self._draw = draw
        self._activity = UpgradeActivity("")
        self._waited_for: Sequence[str] = ()  # by the last statement, when it was last seen to wait

    async def run(self) -> Upgrade | None:
        """Run the upgrade that the shard needs, and return it; None if the shard is empty. Idempotent.

        Raises `ShardUnavailableError` when the shard does not answer, refuses a statement, or a lock is not available.
        """
        return await self._retry_while_blocked(self._run_alone)

    async def run_text(self, text: str) -> None:
        """Run the statements of *text*, as those of a migration. Idempotent; raises as `run` does."""

        async def attempt() -> None:
            async with self._lock() as guard:
                await self._run_file(guard, text)

        await self._retry_while_blocked(attempt)

    async def apply_types(self, files: Mapping[str, TypeFile], *, remove: Collection[str]) -> TypesPlan | None:
        """Carry out the plan of `types apply`, and return it; None if the database is empty. As `run` otherwise."""

        async def attempt() -> TypesPlan | None:
            async with self._pool.transaction() as connection:
                if await read_schema(connection, shard_id) is None:
                    return None
                if not await connection.fetchval(QUERIES["try_lock_schema"]):
                    raise LostRaceError(f"an upgrade of shard {shard_id}, or another `types apply`, is under way")
                return await write_types(connection, files, remove=remove)

        shard_id = self._pool.address.shard_id
        self._set_activity(UpgradeActivity(TYPES_TITLE))
        plan = await self._retry_while_blocked(attempt)
        if plan is not None and plan.is_needed and not plan.refusals:
            log.info("schema.types_applied", shard_id=shard_id, written=plan.to_write, removed=plan.to_remove)
            if plan.index_statements:
                await self.run_text(STEP.join(plan.index_statements))
        return plan

    async def _run_alone(self) -> Upgrade | None:
        async with self._lock() as guard:
            async with self._pool.connection() as connection:
                upgrade = await read_upgrade(
                    connection, self._pool.address.shard_id, migrations=self._migrations, types=self._types
                )
            if upgrade is None or not upgrade.is_needed:
                return upgrade
            for migration in upgrade.migrations:
                await self._run_file(guard, migration.text)
                values = (migration.version, migration.name, migration.works_from)
                async with self._pool.transaction() as connection:
                    await connection.execute(QUERIES["record_migration"], *values)
            if upgrade.business_types:
                await self._retry_while_blocked(self._write_types)
        log.info(
            "schema.upgraded",
            shard_id=self._pool.address.shard_id,
            version_before=upgrade.schema.version,
            version=upgrade.version,
            business_types=list(upgrade.business_types),
        )
        return upgrade

    @contextlib.asynccontextmanager
    async def _lock(self) -> AsyncIterator[Connection]:
        """Lend the connection that locks out other upgrades of this shard. Raises `LostRaceError` when one runs.

        It must not be used: building an index CONCURRENTLY waits for transactions with an older snapshot.
        """
        async with self._pool.transaction() as guard:
            if not await guard.fetchval(QUERIES["try_lock_schema"]):
                raise LostRaceError(f"shard {self._pool.address.shard_id}: {ANOTHER_UPGRADE} is under way")
            # In the simple protocol, and last: the portal of the query before keeps its snapshot until then.
            await guard.execute(QUERIES["lift_idle_timeout"])
            yield guard

    async def _run_file(self, guard: Connection, text: str) -> None:
        for step in steps_of(text):
            if guard.is_closed():
                shard_id = self._pool.address.shard_id
                raise ShardUnavailableError(f"shard {shard_id}: the server has ended the connection with the lock")
            run = self._run_outside_transaction if step.is_concurrent else self._run_in_transaction
            await self._retry_while_blocked(partial(run, step))

    async def _write_types(self) -> None:
        self._set_activity(UpgradeActivity(TYPES_TITLE))
        async with self._pool.transaction() as connection:
            plan = await write_types(connection, self._types, by_upgrade=True)
        if plan.refusals:
            raise ShardUnavailableError(f"shard {self._pool.address.shard_id}: {'; '.join(plan.refusals)}")

    async def _run_in_transaction(self, step: Step) -> None:
        async with self._pool.transaction() as connection:
            await self._execute(connection, step)

    async def _run_outside_transaction(self, step: Step) -> None:
        if step.index is not None and await self._is_half_built(step.index):
            drop = f"DROP INDEX CONCURRENTLY IF EXISTS public.{step.index}"
            await self._run_outside_transaction(Step(drop, drop, is_concurrent=True))
        async with self._pool.connection() as connection:
            connection.begin_single = None
            await connection.execute(QUERIES["lift_timeouts"])
            try:
                await self._execute(connection, step, within_s=BUILD_MAX_S)
            except asyncpg.PostgresError:
                if not connection.is_closed():
                    await connection.execute(QUERIES["restore_timeouts"])
                    connection.terminate()
                raise
            await connection.execute(QUERIES["restore_timeouts"])
            connection.terminate()  # it has not our timeouts and transactions any more

    async def _is_half_built(self, index: str) -> bool:
        async with self._pool.connection() as connection:
            row = await connection.fetchrow(QUERIES["read_index"], connection.home, index)
        if row is not None and row["is_building"]:
            self._waited_for = ["a session that builds the same index"]
            raise LostRaceError(f"shard {self._pool.address.shard_id}: another session builds the index {index}")
        return row is not None and not row["is_valid"]

    async def _execute(self, connection: Connection, step: Step, *, within_s: float | None = None) -> None:
        if step.title != self._activity.title:  # while it is tried again, what it was last seen to wait for is told
            self._waited_for = ()
        self._set_activity(UpgradeActivity(step.title, waits_for=self._waited_for))
        error: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(step), name=f"watch:{self._pool.address.shard_id}")
            try:
                await connection.execute(step.text, timeout=within_s)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
                error = exc  # raised outside the group, which would wrap it
            watch.cancel()  # behind a small pooler it may be waiting for the server connection that this one holds
        if error is not None:
            raise error

    async def _watch(self, step: Step) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            with contextlib.suppress(WorkerError):  # a failed look-up must not end the upgrade
                async with self._pool.connection() as connection:
                    sent = at_home(step.text, connection.home)
                    blockers = [row["blocker"] for row in await connection.fetch(QUERIES["find_blockers"], sent)]
                    share = await connection.fetchval(QUERIES["read_build"], sent) if step.index else None
                    # Just as the statement gives up, a look-up finds no blockers.
                    self._waited_for = blockers or self._waited_for
                    self._set_activity(UpgradeActivity(step.title, share, blockers))

    async def _retry_while_blocked(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        shard_id, started, tries = self._pool.address.shard_id, loop_time(), 0
        while True:
            tries += 1
            try:
                return await attempt()
            except LostRaceError as exc:
                blockers = self._waited_for
                log.info("schema.upgrade_blocked", shard_id=shard_id, error=str(exc), tries=tries, blockers=blockers)
                if loop_time() - started >= self._patience_s:
                    title = self._activity.title or ANOTHER_UPGRADE
                    blocked_by = f"; it waits for {', '.join(blockers)}" if blockers else ""
                    raise ShardUnavailableError(
                        f"shard {shard_id}: expected a lock within {self._patience_s:.0f} s, got none "
                        f"for: {title}{blocked_by}; end the session that holds it, or run the command again later: "
                        "it continues where it stopped"
                    ) from exc
            await asyncio.sleep(backoff_s(tries, draw=self._draw(), base_s=PAUSE_MIN_S, max_s=PAUSE_MAX_S))

    def _set_activity(self, activity: UpgradeActivity) -> None:
        self._activity = activity
        self._report_activity(activity)


async def plan_on(pool: ShardPool, files: Mapping[str, TypeFile], *, remove: Collection[str]) -> TypesPlan | None:
    """Return the plan of `types apply` for one shard; None if its database is empty. Raises `RetryableError`."""
    async with pool.connection() as connection:
        if await read_schema(connection, pool.address.shard_id) is None:
            return None
        return plan_types(await read_types(connection, files.values()), files, remove=remove)
