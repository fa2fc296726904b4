"""Apply a batch of operations to the shard of their tenants, exactly once, in one transaction.

A batch that fails is applied in parts, until the operation at fault is known.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import timedelta
from itertools import islice, pairwise
from typing import Final, TypeVar

from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import WorkerError
from simplu_worker.fairness import ShardTime
from simplu_worker.operations.dead_letter import defect_text
from simplu_worker.operations.limits import NO_LIMIT, Limit
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply import write_attempt
from simplu_worker.shards.apply.duplicates import TIMEOUT_PARTS_MAX, cut_points, points_around
from simplu_worker.shards.apply.group_commit import CommitBatch, GroupCommit
from simplu_worker.shards.apply.judging import BatchJudges, ShardRules, as_stored, count_found
from simplu_worker.shards.apply.wave_run import FastPathError, fast_path_error
from simplu_worker.shards.postgres import errors
from simplu_worker.shards.postgres.pool import PROBE_FAILED_FRESH_S, PROBE_FRESH_S, Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import PositionClaim, ShardUnavailableError
from simplu_worker.telemetry.spans import TracedTransaction, transaction_span
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.vocabulary import DeadLetterReason, Failure, TargetKind

SLOW_MAX_COUNT = 1000  # operations that took too long, of which the writer remembers the last
SLOW_LOG_SHARE = 0.25  # of a statement's time; a shard that takes longer for the rows of the log is slow itself
RACES_MAX = 5
RACES_LOST: Final = f"a batch lost {RACES_MAX} races in a row"
LOCK_WAITS_MAX = 10  # for rows of tenants, of one batch: about a second
LOCKED_MAX_COUNT = 1000  # tenants with locked rows, of which the writer remembers the last
LARGE_MAX_COUNT = 10_000  # resources with large data, of which the writer remembers the last
RACE_PAUSE_MAX_S = 0.1

LOCKED = Outcome(disposition=Disposition.LOCKED)
GIVEN_UP = Outcome(disposition=Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)

KeyT = TypeVar("KeyT", bound=tuple[str, ...] | str)
ValueT = TypeVar("ValueT")


class ShardWriter:
    """The writer of batches to one shard."""

    def __init__(
        self,
        pool: ShardPool,
        *,
        tenant_wait: timedelta,
        default_limit: Limit = NO_LIMIT,
        time: ShardTime | None = None,
        draw: Callable[[], float] = random.random,
        memory: write_attempt.ShardMemory | None = None,
        applied_at: dict[str, float] | None = None,  # when each shard last applied; writers share it
    ) -> None:
        self._pool = pool
        self._tenant_wait = tenant_wait
        self._default_limit = default_limit
        self._draw = draw
        self._rules = ShardRules(pool)
        self._shared_probe = SharedAnswer(self._probe_once, fresh_s=PROBE_FRESH_S, failed_fresh_s=PROBE_FAILED_FRESH_S)
        self._time = time or ShardTime()
        self._group_commit = GroupCommit(self._apply, self._time)
        self._memory = memory or write_attempt.ShardMemory()
        self._applied_at: dict[str, float] = {} if applied_at is None else applied_at

    @property
    def stored_names(self) -> Mapping[str, Collection[str]]:
        """The names under which types store resources that are sent under another, by that one."""
        return self._rules.stored_names

    async def apply(self, operations: Sequence[Operation], claim: PositionClaim | None = None) -> list[Outcome]:
        """Apply *operations*, in effect one by one in their order, and return the outcome of each.

        With *claim*, every transaction also writes the claim into the reader's row, and is rolled back with
        `PositionChangedError` if another reader has written the row. Operations with a value that no table can store
        fail alone; one that only this shard does not take is FAILING, and its tenant's later ones are held. Those of
        a tenant with locked rows are LOCKED. Raises `ShardUnavailableError`: the caller may retry the same batch.
        """
        await self._check(self._pool.connection)
        await self._rules.refresh()
        return await self._group_commit.apply(operations, claim)

    async def give_up(self, operation: Operation, claim: PositionClaim | None = None) -> Outcome:
        """Log an operation as given up (`retries_exhausted`), unless the tenant's row or the log decides it.

        Idempotent.
        """
        await self._check(self._pool.connection)
        batch = CommitBatch([operation], () if claim is None else [claim])
        course = write_attempt.Course(StatementBudget.PART, is_careful=True)
        (outcome,) = await self._commit(self._new_attempt(batch, {0: GIVEN_UP}, course))
        return outcome

    async def probe(self) -> None:
        """Check that the shard can apply operations now, with concurrent callers. Raises `RetryableError` if not."""
        await self._shared_probe()

    async def _probe_once(self) -> None:
        await self._pool.probe()
        await self._check(self._pool.fresh_connection)

    async def foresee(self, operations: Sequence[Operation]) -> dict[int, Finding]:
        """Return what the rules of the shard's types say of operations, patches aside."""
        await self._check(self._pool.connection)
        await self._rules.refresh()
        async with self._pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_tenants"], list({one.tenant_id for one in operations}))
        types = {row["id"]: row["business_type"] for row in rows}
        found = BatchJudges(self._rules.by_type, types).judge_sent(as_stored(operations, types, self._rules.by_type))
        return {index: one.finding for index, one in found.items() if one.judge.refuses}

    async def _apply(
        self,
        batch: CommitBatch,
        known_outcomes: Mapping[int, Outcome] = write_attempt.NO_KNOWN_OUTCOMES,
        budget: StatementBudget = StatementBudget.BATCH,
    ) -> list[Outcome]:
        course = write_attempt.Course(budget, may_be_fast=budget is StatementBudget.BATCH and not known_outcomes)
        while True:
            attempt = self._new_attempt(batch, known_outcomes, course)
            try:
                outcomes = await self._commit(attempt)
            except (errors.RolledBackError, errors.LockTimeoutError) as exc:
                if (decided := await self._change_course(attempt, course, exc)) is not None:
                    return decided
            except errors.StatementFailedError as exc:
                self._memory.duplicates.expect_duplicates()
                if isinstance(exc, errors.DuplicateKeyError) and not attempt.is_careful:
                    course.is_careful = True
                    continue
                found = await self._find_culprits(attempt, exc)
                if not found:
                    points = cut_points(attempt.suspects, is_timeout=exc.is_timeout)
                    budget = StatementBudget.PART if exc.is_timeout else course.budget
                    return await self._apply_split(attempt, points, budget)
                known_outcomes = {**known_outcomes, **found}
            except (WorkerError, asyncio.CancelledError):  # the same operations come again
                self._memory.duplicates.expect_duplicates()
                raise
            except Exception as exc:  # noqa: BLE001  # whatever a defect raises
                return await self._apply_around_defect(attempt, exc)
            else:
                self._note_applied(attempt)
                return outcomes

    async def _apply_around_defect(self, attempt: write_attempt.WriteAttempt, exc: Exception) -> list[Outcome]:
        """Apply a batch at which the worker's own code raised in parts; an operation at which it does alone fails.

        Where this process has applied nothing to any shard, none is at fault. Nothing that is remembered counts.
        """
        error = note_trouble(TargetKind.SHARD, self._pool.address.shard_id, "apply", exc)
        self._memory = write_attempt.ShardMemory()
        if (count := len(attempt.batch.operations)) > 1:
            return await self._apply_split(attempt, [count // 2], attempt.budget)
        if not self._applied_at or not count:
            raise error from exc
        reason = DeadLetterReason.INTERNAL_ERROR
        return [Outcome(Disposition.FAILING, reason=reason, error=defect_text(exc))]

    async def _change_course(
        self,
        attempt: write_attempt.WriteAttempt,
        course: write_attempt.Course,
        exc: errors.RolledBackError | errors.LockTimeoutError,
    ) -> list[Outcome] | None:
        """Change the course of the next attempts; or apply the batch in parts, and return the outcomes."""
        match exc:
            case errors.LockTimeoutError():
                return await self._react_to_lock(attempt, course, exc)
            case write_attempt.LockedTenantsError():
                return await self._apply_beside_locked(attempt, [*exc.found])
            case write_attempt.ApartError():
                return await self._apply_split(attempt, points_around(exc.found), course.budget)
            case write_attempt.UnmergedPatchesError():
                course.large.update(exc.found)
                remember(self._memory.large, dict.fromkeys(exc.found), LARGE_MAX_COUNT)
            case FastPathError():
                course.may_be_fast = False
                course.budget = StatementBudget.PART if exc.is_timeout else course.budget
                if exc.has_duplicates:
                    self._memory.duplicates.expect_duplicates()
                    course.is_careful = True
                for operation in attempt.batch.operations:
                    self._memory.tenants.pop(operation.tenant_id, None)
            case _:
                raise exc
        return None

    async def _apply_split(
        self, attempt: write_attempt.WriteAttempt, indexes: Sequence[int], budget: StatementBudget
    ) -> list[Outcome]:
        """Apply a batch, cut at *indexes*, part by part, each with *budget*."""
        operations = attempt.batch.operations
        parts = [list(range(start, end)) for start, end in pairwise([0, *indexes, len(operations)])]
        slow = [len(part) == 1 and write_attempt.key_of(operations[part[0]]) in self._memory.slow for part in parts]
        budgets = [StatementBudget.PART if is_slow else budget for is_slow in slow]
        return await self._apply_parts(attempt, parts, budgets)

    async def _apply_parts(
        self,
        attempt: write_attempt.WriteAttempt,
        parts: Sequence[Sequence[int]],
        budgets: Sequence[StatementBudget],
        *,
        waits_max: float = math.inf,
    ) -> list[Outcome]:
        """Apply the operations at the indexes of each part; of those behind the first part no more after *waits_max*.

        A tenant that is stopped in one part is held in the next ones: it may come back between two transactions.
        """
        whole, known = attempt.batch, attempt.known_outcomes
        outcomes = [HOLD] * len(whole.operations)
        stopped: set[str] = set()
        for number, (part, budget) in enumerate(zip(parts, budgets, strict=True)):
            left = [index for index in part if whole.operations[index].tenant_id not in stopped]
            if not left:
                continue
            if number and whole.root.lock_wait_count >= waits_max:
                part_outcomes = [LOCKED] * len(left)
            else:
                known_here = {place: known[index] for place, index in enumerate(left) if index in known}
                part_outcomes = await self._apply(whole.part(left), known_here, budget)
            for index, outcome in zip(left, part_outcomes, strict=True):
                outcomes[index] = outcome
                if outcome.disposition in write_attempt.STOPPING:
                    stopped.add(whole.operations[index].tenant_id)
        return outcomes

    async def _react_to_lock(
        self, attempt: write_attempt.WriteAttempt, course: write_attempt.Course, exc: errors.LockTimeoutError
    ) -> list[Outcome] | None:
        """Return the outcomes of a batch that waited for a lock for too long; None if it is to be tried again.

        Raises `ShardUnavailableError` after several waits for another lock than that of a tenant's row.
        """
        self._memory.duplicates.expect_duplicates()
        if not attempt.lock_suspects:
            course.lock_wait_count += 1
            if course.lock_wait_count > RACES_MAX:
                raise ShardUnavailableError(f"shard {self._pool.address.shard_id}: {RACES_LOST}") from exc
            course.budget = StatementBudget.PATIENT_BATCH
            return None
        batch = attempt.batch
        batch.root.lock_wait_count += 1
        tenant_ids = list(dict.fromkeys(batch.operations[index].tenant_id for index in attempt.lock_suspects))
        if any(operation.tenant_id != tenant_ids[0] for operation in batch.operations):
            return await self._apply_beside_locked(attempt, tenant_ids)
        if course.budget is not StatementBudget.PART:
            course.budget = StatementBudget.PART  # once more: two transactions may have waited for each other
            return None
        self._memory.locked.pop(tenant_ids[0], None)  # to be the last one that is tried again
        remember(self._memory.locked, dict.fromkeys(tenant_ids), LOCKED_MAX_COUNT)
        return [LOCKED] * len(batch.operations)

    async def _apply_beside_locked(
        self, attempt: write_attempt.WriteAttempt, tenant_ids: Sequence[str]
    ) -> list[Outcome]:
        """Apply a batch in which rows of some of *tenant_ids* are locked by other transactions.

        First the operations of all other tenants, then those of *tenant_ids*, in parts with the short budget, until
        only tenants with locked rows are left, or after LOCK_WAITS_MAX waits.
        """
        size = -(-len(tenant_ids) // TIMEOUT_PARTS_MAX)
        number_of = {tenant_id: 1 + number // size for number, tenant_id in enumerate(tenant_ids)}
        parts: list[list[int]] = [[] for _ in range(1 + max(number_of.values()))]
        for index, operation in enumerate(attempt.batch.operations):
            parts[number_of.get(operation.tenant_id, 0)].append(index)
        budgets = [attempt.budget, *[StatementBudget.PART] * (len(parts) - 1)]
        return await self._apply_parts(attempt, parts, budgets, waits_max=LOCK_WAITS_MAX)

    async def _find_culprits(
        self, attempt: write_attempt.WriteAttempt, exc: errors.StatementFailedError
    ) -> dict[int, Outcome]:
        """Return the outcomes, by index, of operations at fault; none if the batch must be cut to find one.

        Raises *exc* if no operation can be at fault. One that took too long is at fault only on a shard that was quick
        with its row of the log.
        """
        if not attempt.suspects:
            raise exc
        if len(attempt.suspects) > 1:
            return {}
        (index,) = attempt.suspects
        operation = attempt.batch.operations[index]
        if exc.is_timeout and attempt.log_took_s > self._pool.seconds_of(attempt.budget) * SLOW_LOG_SHARE:
            raise exc
        await self._pool.probe()
        if exc.is_timeout and operation.query is not None:
            return {index: write_attempt.QUERY_TOO_LARGE}
        if exc.is_timeout:  # its next tries must not delay others that long
            remember(self._memory.slow, {write_attempt.key_of(operation): None}, SLOW_MAX_COUNT)
        return {index: Outcome(disposition=Disposition.FAILING, error=exc.error)}

    def _note_applied(self, attempt: write_attempt.WriteAttempt) -> None:
        self._applied_at[self._pool.address.shard_id] = loop_time()
        memory = self._memory
        memory.duplicates.note_applied(has_duplicates=attempt.has_duplicates)
        count_found(attempt.found)
        remember(memory.tenants, attempt.tenants, memory.tenants_max_count)
        by_tenant = {tenant_id: row.weight for tenant_id, row in attempt.tenants.items()}
        by_business = {row.business_id: row.business_weight for row in attempt.tenants.values()}
        self._time.note_weights(by_tenant, by_business)
        if memory.locked:
            for operation in attempt.batch.operations:
                memory.locked.pop(operation.tenant_id, None)

    async def _check(self, connect: Callable[[], AbstractAsyncContextManager[Connection]]) -> None:
        if self._pool.checked_address is self._pool.address:
            return
        async with connect() as connection:
            if not await has_schema(connection, self._pool):
                shard_id = self._pool.address.shard_id
                raise ShardUnavailableError(f"shard {shard_id}: its database is empty; no tenant is provisioned yet")

    def _new_attempt(
        self, batch: CommitBatch, known_outcomes: Mapping[int, Outcome], course: write_attempt.Course
    ) -> write_attempt.WriteAttempt:
        return write_attempt.WriteAttempt(
            batch,
            known_outcomes,
            course,
            self._memory,
            tenant_wait=self._tenant_wait,
            rules=self._rules.by_type,
            default_limit=self._default_limit,
        )

    async def _commit(self, attempt: write_attempt.WriteAttempt) -> list[Outcome]:
        address = self._pool.address

        def describe() -> TracedTransaction:
            return TracedTransaction(address.shard_id, address.database, attempt.batch)

        for _ in range(RACES_MAX):
            attempt.suspects = ()
            try:
                with ExitStack() as claimed, transaction_span(describe) as span:
                    async with self._pool.transaction(budget=attempt.budget) as connection:
                        span.note_begun(*connection.place)
                        return await attempt.apply(connection, claimed)
            except (errors.LockTimeoutError, errors.StatementFailedError) as exc:
                if not attempt.is_fast:
                    raise
                raise fast_path_error(exc) from exc
            except errors.LostRaceError:
                await asyncio.sleep(self._draw() * RACE_PAUSE_MAX_S)
        raise ShardUnavailableError(f"shard {address.shard_id}: {RACES_LOST}")


def remember(known: dict[KeyT, ValueT], new: Mapping[KeyT, ValueT], max_count: int) -> None:
    """Add *new* to *known*, and drop the oldest beyond *max_count*."""
    known.update(new)
    for key in list(islice(known, max(0, len(known) - max_count))):
        del known[key]
