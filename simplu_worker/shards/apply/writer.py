"""Apply a batch of operations to the shard of their tenants, exactly once, in one transaction.

Why exactly once: the log rows are written before any effect, in the same transaction, and only operations with a row of
this transaction are applied. A retry of the batch, by any replica, finds the rows of the committed operations.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import timedelta
from itertools import islice, pairwise
from typing import Final, TypeAlias, TypeVar

import msgspec
import structlog

from simplu_worker.fairness import ShardTime
from simplu_worker.operations.merge_patch import is_nested
from simplu_worker.operations.operation import Disposition, ListProblem, Operation, Outcome
from simplu_worker.operations.waves import HOLD, TenantRow, admit, admits_all, is_too_late, isolate, plan_waves
from simplu_worker.shards.apply.duplicates import (
    TIMEOUT_PARTS_MAX,
    InsertedTable,
    InsertForms,
    LogMatch,
    cut_points,
    points_around,
)
from simplu_worker.shards.apply.fast_path import (
    FAST_MAX_COUNT,
    FastPathError,
    TenantMemory,
    apply_fast,
    fast_path_error,
    fits_fast_path,
)
from simplu_worker.shards.apply.group_commit import CommitBatch, GroupCommit
from simplu_worker.shards.apply.judging import (
    BatchJudges,
    Foreseen,
    Found,
    ShardRules,
    TypeRules,
    as_stored,
    count_found,
    foresee,
)
from simplu_worker.shards.apply.operation_log import find_logged, write_log
from simplu_worker.shards.apply.patch_merging import (
    PATCH,
    ResourceId,
    find_laborious,
    resource_of,
)
from simplu_worker.shards.apply.wave_run import WaveRun, find_unstorable, statement_for
from simplu_worker.shards.positions import (
    attempt_claim,
    fence_position,
    is_row_known,
    mark_gap,
    position_changed_error,
    read_merges,
    read_stored_positions,
    write_positions,
)
from simplu_worker.shards.postgres.errors import (
    DuplicateKeyError,
    LockTimeoutError,
    LostRaceError,
    RolledBackError,
    StatementFailedError,
    ValueRefusedError,
)
from simplu_worker.shards.postgres.pool import PROBE_FAILED_FRESH_S, PROBE_FRESH_S, Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.types import PositionClaim, PositionMerge, ShardUnavailableError, StoredPositions
from simplu_worker.telemetry.spans import TracedTransaction, transaction_span
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.vocabulary import DeadLetterReason, Failure, OperationKind, TenantState

SLOW_MAX_COUNT = 1000  # operations that took too long, of which the writer remembers the last
SLOW_LOG_SHARE = 0.25  # of a statement's time; a shard that takes longer for the rows of the log is slow itself
RACES_MAX = 5
RACES_LOST: Final = f"a batch lost {RACES_MAX} races in a row"
LOCK_WAITS_MAX = 10  # for rows of tenants, of one batch: about a second
LOCKED_MAX_COUNT = 1000  # tenants with locked rows, of which the writer remembers the last
UNMERGED = "unmerged"  # of a patch, in `applying.sql`: the worker has to merge it
LARGE_MAX_COUNT = 10_000  # resources with large data, of which the writer remembers the last
RACE_PAUSE_MAX_S = 0.1

SUCCEEDED = Outcome(disposition=Disposition.APPLIED)
DUPLICATE = Outcome(disposition=Disposition.DUPLICATE)
INVALID_DATA = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_DATA)
INVALID_QUERY = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_QUERY)
QUERY_TOO_LARGE = Outcome(disposition=Disposition.APPLIED, failure=Failure.QUERY_TOO_LARGE)
JUDGED = frozenset({SUCCEEDED, INVALID_DATA})  # outcomes at which a finding counts
LOCKED = Outcome(disposition=Disposition.LOCKED)
GIVEN_UP = Outcome(disposition=Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)
REUSED = Outcome(
    disposition=Disposition.DEAD_LETTER,
    reason=DeadLetterReason.REQUEST_ID_REUSED,
    error="requestId: expected one not used before by a different operation; send it again under a new one",
)

NO_KNOWN_OUTCOMES: Final[Mapping[int, Outcome]] = {}
# Of logged operations, which are not applied.
OUTCOME_BY_MATCH = {
    LogMatch.REDELIVERY: DUPLICATE,
    LogMatch.LATE_REPETITION: Outcome(disposition=Disposition.DUPLICATE, is_late=True),
    LogMatch.REUSE: REUSED,
}
STOPPING = frozenset(
    {Disposition.HOLD, Disposition.UNEXPECTED, Disposition.LOCKED}
)  # no later operation of the tenant may be applied

CREATE: Final = OperationKind.CREATE  # looked up once: access to an enum member is slow
STATES: Final = {state.value: state for state in TenantState}  # the same

KeyT = TypeVar("KeyT", bound=tuple[str, ...] | str)
OperationKey: TypeAlias = tuple[str, str]  # the tenant's id and the request id

log = structlog.get_logger(__name__)


class ShardWriter:
    """The writer of batches to one shard."""

    def __init__(
        self,
        pool: ShardPool,
        *,
        tenant_wait: timedelta,
        time: ShardTime | None = None,
        draw: Callable[[], float] = random.random,
        insert_forms: InsertForms | None = None,
        tenants: TenantMemory | None = None,
    ) -> None:
        self._pool = pool
        self._tenant_wait = tenant_wait
        self._draw = draw
        self._rules = ShardRules(pool)
        self._shared_probe = SharedAnswer(self._probe_once, fresh_s=PROBE_FRESH_S, failed_fresh_s=PROBE_FAILED_FRESH_S)
        self._time = time or ShardTime()
        self._group_commit = GroupCommit(self._apply, self._time)
        self._slow: dict[OperationKey, None] = {}  # oldest first
        self._large: dict[ResourceId, None] = {}  # the same
        self._locked: dict[str, None] = {}  # tenants, the one that was tried last is the last
        self._insert_forms = insert_forms or InsertForms()
        self._tenants = TenantMemory() if tenants is None else tenants

    @property
    def stored_names(self) -> Mapping[str, Collection[str]]:
        """The names under which types store resources that are sent under another, by that one."""
        return self._rules.stored_names

    async def apply(self, operations: Sequence[Operation], claim: PositionClaim | None = None) -> list[Outcome]:
        """Apply *operations*, in effect one by one in their order, and return the outcome of each.

        With *claim*, every transaction also writes the claim into the reader's row, and is rolled back with
        `PositionChangedError` if another reader has written the row. Operations with a value that no table can store
        fail alone; one that only this shard does not take is UNEXPECTED, and its tenant's later ones are held. Those of
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
        (outcome,) = await self._commit(self._new_attempt(batch, {0: GIVEN_UP}))
        return outcome

    async def probe(self) -> None:
        """Check that the shard can apply operations now, with concurrent callers. Raises `RetryableError` if not."""
        await self._shared_probe()

    async def _probe_once(self) -> None:
        await self._pool.probe()
        await self._check(self._pool.fresh_connection)

    async def read_positions(
        self, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Return the stored positions of stream shards; None if the shard has no schema, and so no tenant, yet.

        With *is_first* also when the shard's tenants came. Raises `ShardUnavailableError`, also if another shard
        answers.
        """
        async with self._pool.connection() as connection:
            if not await has_schema(connection, self._pool):
                return None
            return await read_stored_positions(connection, stream, stream_shard_ids, is_first=is_first)

    async def find_resident_tenants(self, tenant_ids: Sequence[str]) -> set[str]:
        """Return which of the tenants have a live row on the shard. Raises as `read_positions` does."""
        async with self._pool.connection() as connection:
            if not await has_schema(connection, self._pool):
                return set()
            rows = await connection.fetch(QUERIES["find_tenants"], list(tenant_ids))
        return {row["id"] for row in rows if row["state"] in {TenantState.ACTIVE, TenantState.FENCED}}

    async def foresee(self, operations: Sequence[Operation]) -> Foreseen:
        """Return what the rules of the shard's types say of operations, patches aside."""
        await self._check(self._pool.connection)
        await self._rules.refresh()
        async with self._pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_tenants"], list({one.tenant_id for one in operations}))
        return foresee(operations, {row["id"]: row["business_type"] for row in rows}, self._rules.by_type)

    async def fence_and_read_positions(
        self, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Write a new fencing token into the row of *claim*, and return the positions of it and of *ancestors*.

        In one transaction: otherwise a failover could lose the rows of ancestors but not the token.
        """
        async with self._pool.transaction() as connection:
            if not await has_schema(connection, self._pool):
                return None
            is_unchanged = await fence_position(connection, claim)
            ids = [claim.stream_shard_id, *ancestors]
            stored = await read_stored_positions(connection, claim.stream, ids, is_first=is_first)
            return msgspec.structs.replace(stored, is_unchanged=is_unchanged)

    async def write_positions(self, claims: Sequence[PositionClaim]) -> list[PositionClaim]:
        """Write *claims* without operations, not waiting for the disk.

        Return those with a row that another reader has written.
        """
        with ExitStack() as attempts:
            tokens = [attempts.enter_context(attempt_claim(claim)) for claim in claims]
            async with self._pool.transaction() as connection:
                await connection.execute(QUERIES["skip_disk_wait"])
                return await write_positions(connection, list(zip(claims, tokens, strict=True)))

    async def read_merges(self, stream: str, stream_shard_id: str) -> list[PositionMerge]:
        """Return what `positions.rows.read_merges` does. Raises `ShardUnavailableError`."""
        async with self._pool.connection() as connection:
            return await read_merges(connection, stream, stream_shard_id)

    async def mark_gap(self, stream: str, stream_shard_id: str, pending_from: str) -> None:
        """Mark a row as `positions.rows.mark_gap` does. Raises `ShardUnavailableError`."""
        async with self._pool.connection() as connection:
            await mark_gap(connection, stream, stream_shard_id, pending_from)

    async def forget_positions(self, stream: str, stream_shard_ids: Sequence[str]) -> None:
        """Delete the rows of stream shards past their retention. Raises `ShardUnavailableError`."""
        async with self._pool.connection() as connection:
            if await has_schema(connection, self._pool):
                await connection.execute(QUERIES["forget_positions"], stream, list(stream_shard_ids))

    async def _apply(
        self,
        batch: CommitBatch,
        known_outcomes: Mapping[int, Outcome] = NO_KNOWN_OUTCOMES,
        budget: StatementBudget = StatementBudget.BATCH,
    ) -> list[Outcome]:
        course = Course(budget, may_be_fast=budget is StatementBudget.BATCH and not known_outcomes)
        while True:
            attempt = self._next_attempt(batch, known_outcomes, course)
            try:
                outcomes = await self._commit(attempt, course.budget)
            except (RolledBackError, LockTimeoutError) as exc:
                if (decided := await self._change_course(attempt, course, exc)) is not None:
                    return decided
            except StatementFailedError as exc:
                if self._is_duplicate(attempt, course, exc):
                    continue
                found = await self._find_culprits(attempt, exc, course.budget)
                if not found:
                    points = cut_points(attempt.suspects, is_timeout=exc.is_timeout)
                    budget = StatementBudget.PART if exc.is_timeout else course.budget
                    return await self._apply_split(attempt, points, budget)
                known_outcomes = {**known_outcomes, **found}
            except (ShardUnavailableError, asyncio.CancelledError):  # the same operations come again
                self._insert_forms.expect_duplicates()
                raise
            else:
                self._note_applied(attempt)
                return outcomes

    def _next_attempt(self, batch: CommitBatch, known_outcomes: Mapping[int, Outcome], course: Course) -> WriteAttempt:
        slow = self._slow if course.budget is StatementBudget.BATCH else ()
        attempt = self._new_attempt(batch, known_outcomes, slow)
        attempt.locked = self._locked if course.budget is StatementBudget.BATCH else ()
        attempt.large = course.large.union(self._large) if course.large else self._large
        attempt.careful_tables = self._insert_forms.careful_tables().union(course.with_duplicates)
        attempt.remembered = self._tenants if course.may_be_fast and not known_outcomes else None
        return attempt

    async def _change_course(
        self, attempt: WriteAttempt, course: Course, exc: RolledBackError | LockTimeoutError
    ) -> list[Outcome] | None:
        """Change the course of the next attempts; or apply the batch in parts, and return the outcomes."""
        match exc:
            case LockTimeoutError():
                return await self._react_to_lock(attempt, course, exc)
            case LockedTenantsError():
                return await self._apply_beside_locked(attempt, exc.tenant_ids, course.budget)
            case ApartError():
                return await self._apply_split(attempt, points_around(exc.indexes), course.budget)
            case UnmergedPatchesError():
                course.large.update(exc.resources)
                remember(self._large, exc.resources, LARGE_MAX_COUNT)
            case FastPathError():
                course.may_be_fast = False
                course.budget = StatementBudget.PART if exc.is_timeout else course.budget
                if exc.duplicates_in is not None:
                    self._insert_forms[exc.duplicates_in].note_failed()
                    course.with_duplicates.add(exc.duplicates_in)
                self._tenants.forget({operation.tenant_id for operation in attempt.batch.operations})
            case _:
                raise exc
        return None

    async def _apply_split(
        self, attempt: WriteAttempt, indexes: Sequence[int], budget: StatementBudget
    ) -> list[Outcome]:
        """Apply a batch, cut at *indexes*, part by part, each with *budget*.

        A tenant that is stopped in one part is held in the next ones: it may come back between two transactions.
        """
        operations = attempt.batch.operations
        outcomes = [HOLD] * len(operations)
        stopped: set[str] = set()
        for start, end in pairwise([0, *indexes, len(operations)]):
            part = [index for index in range(start, end) if operations[index].tenant_id not in stopped]
            if not part:
                continue
            is_slow = len(part) == 1 and key_of(operations[part[0]]) in self._slow
            part_outcomes = await self._apply_part(attempt, part, StatementBudget.PART if is_slow else budget)
            for index, outcome in zip(part, part_outcomes, strict=True):
                outcomes[index] = outcome
                if outcome.disposition in STOPPING:
                    stopped.add(operations[index].tenant_id)
        return outcomes

    async def _apply_part(
        self, attempt: WriteAttempt, indexes: Sequence[int], budget: StatementBudget
    ) -> list[Outcome]:
        whole, known = attempt.batch, attempt.known_outcomes
        part = CommitBatch([whole.operations[index] for index in indexes], whole.claims, whole.spans, whole.lock_waits)
        known = {number: known[index] for number, index in enumerate(indexes) if index in known}
        return await self._apply(part, known, budget)

    async def _react_to_lock(
        self, attempt: WriteAttempt, course: Course, exc: LockTimeoutError
    ) -> list[Outcome] | None:
        """Return the outcomes of a batch that waited for a lock for too long; None if it is to be tried again.

        Raises `ShardUnavailableError` after several waits for another lock than that of a tenant's row.
        """
        self._insert_forms.expect_duplicates()
        if not attempt.lock_suspects or await self._are_tables_locked():
            course.lock_wait_count += 1
            if course.lock_wait_count > RACES_MAX:
                raise ShardUnavailableError(f"shard {self._pool.address.shard_id}: {RACES_LOST}") from exc
            course.budget = StatementBudget.PATIENT_BATCH
            return None
        batch = attempt.batch
        batch.lock_waits.count += 1
        tenant_ids = list(dict.fromkeys(batch.operations[index].tenant_id for index in attempt.lock_suspects))
        if any(operation.tenant_id != tenant_ids[0] for operation in batch.operations):
            return await self._apply_beside_locked(attempt, tenant_ids, course.budget)
        if course.budget is not StatementBudget.PART:
            course.budget = StatementBudget.PART  # once more: two transactions may have waited for each other
            return None
        self._locked.pop(tenant_ids[0], None)  # to be the last one that is tried again
        remember(self._locked, tenant_ids, LOCKED_MAX_COUNT)
        return [LOCKED] * len(batch.operations)

    async def _are_tables_locked(self) -> bool:
        async with self._pool.connection() as connection:
            return bool(await connection.fetchval(QUERIES["are_tables_locked"]))

    async def _apply_beside_locked(
        self, attempt: WriteAttempt, tenant_ids: Sequence[str], budget: StatementBudget
    ) -> list[Outcome]:
        """Apply a batch in which rows of some of *tenant_ids* are locked by other transactions.

        First the operations of all other tenants, then those of *tenant_ids*, in parts with the short budget, until
        only tenants with locked rows are left, or after LOCK_WAITS_MAX waits.
        """
        operations, lock_waits = attempt.batch.operations, attempt.batch.lock_waits
        size = -(-len(tenant_ids) // TIMEOUT_PARTS_MAX)
        number_of = {tenant_id: 1 + number // size for number, tenant_id in enumerate(tenant_ids)}
        parts: list[list[int]] = [[] for _ in range(1 + max(number_of.values()))]
        for index, operation in enumerate(operations):
            parts[number_of.get(operation.tenant_id, 0)].append(index)
        outcomes = [HOLD] * len(operations)
        for number, part in enumerate(parts):
            if number and lock_waits.count >= LOCK_WAITS_MAX:
                part_outcomes = [LOCKED] * len(part)
            elif part:
                part_outcomes = await self._apply_part(attempt, part, StatementBudget.PART if number else budget)
            else:
                continue
            for index, outcome in zip(part, part_outcomes, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _find_refused(self, attempt: WriteAttempt, exc: StatementFailedError) -> dict[int, Outcome]:
        operations = attempt.batch.operations
        texts = [one.text if one.query is None else one.query.text for one in operations]
        found = set(await find_unstorable(self._pool, texts)).difference(attempt.known_outcomes)
        for index in sorted(found):
            shard_id = self._pool.address.shard_id
            log.info("operation.refused", shard_id=shard_id, error=exc.error, **_ids_of(operations[index]))
        return dict.fromkeys(found, INVALID_DATA)

    async def _find_culprits(
        self, attempt: WriteAttempt, exc: StatementFailedError, budget: StatementBudget
    ) -> dict[int, Outcome]:
        """Return the outcomes, by index, of operations at fault; none if the batch must be cut to find one.

        Raises *exc* if no operation can be at fault. One that took too long is at fault only on a shard that was quick
        with its row of the log.
        """
        if not attempt.suspects:
            raise exc
        if isinstance(exc, ValueRefusedError) and (refused := await self._find_refused(attempt, exc)):
            return refused
        if len(attempt.suspects) > 1:
            return {}
        (index,) = attempt.suspects
        operation = attempt.batch.operations[index]
        if exc.is_timeout and attempt.log_took_s > self._pool.seconds_of(budget) * SLOW_LOG_SHARE:
            raise exc
        await self._pool.probe()
        if exc.is_timeout and operation.query is not None:
            return {index: QUERY_TOO_LARGE}
        if exc.is_timeout:  # its next tries must not delay others that long
            remember(self._slow, [key_of(operation)], SLOW_MAX_COUNT)
        return {index: Outcome(disposition=Disposition.UNEXPECTED, error=exc.error)}

    def _is_duplicate(self, attempt: WriteAttempt, course: Course, exc: StatementFailedError) -> bool:
        table = attempt.inserting
        if isinstance(exc, DuplicateKeyError) and table is not None and table not in attempt.careful_tables:
            self._insert_forms[table].note_failed()
            course.with_duplicates.add(table)
            return True
        self._insert_forms.expect_duplicates()
        return False

    def _note_applied(self, attempt: WriteAttempt) -> None:
        for table, has_duplicates in attempt.inserted.items():
            was_careful = table in attempt.careful_tables
            self._insert_forms[table].note_applied(was_careful=was_careful, has_duplicates=has_duplicates)
        count_found(attempt.found)
        self._tenants.remember(attempt.tenants)
        self._time.note_weights({tenant_id: row.weight for tenant_id, row in attempt.tenants.items()})
        if self._locked:
            for operation in attempt.batch.operations:
                self._locked.pop(operation.tenant_id, None)

    async def _check(self, connect: Callable[[], AbstractAsyncContextManager[Connection]]) -> None:
        if self._pool.checked_address is self._pool.address:
            return
        async with connect() as connection:
            if not await has_schema(connection, self._pool):
                shard_id = self._pool.address.shard_id
                raise ShardUnavailableError(f"shard {shard_id}: its database is empty; no tenant is provisioned yet")

    def _new_attempt(
        self, batch: CommitBatch, known_outcomes: Mapping[int, Outcome], slow: Collection[OperationKey] = ()
    ) -> WriteAttempt:
        return WriteAttempt(batch, known_outcomes, slow, tenant_wait=self._tenant_wait, rules=self._rules.by_type)

    async def _commit(self, attempt: WriteAttempt, budget: StatementBudget = StatementBudget.BATCH) -> list[Outcome]:
        address = self._pool.address

        def describe() -> TracedTransaction:
            return TracedTransaction(address.shard_id, address.database, attempt.batch)

        for _ in range(RACES_MAX):
            attempt.suspects = ()
            try:
                with ExitStack() as claimed, transaction_span(describe) as span:
                    async with self._pool.transaction(budget=budget) as connection:
                        span.note_begun(*connection.place)
                        return await attempt.apply(connection, claimed)
            except (LockTimeoutError, StatementFailedError) as exc:
                if not attempt.is_fast:
                    raise
                raise fast_path_error(exc) from exc
            except LostRaceError:
                await asyncio.sleep(self._draw() * RACE_PAUSE_MAX_S)
        raise ShardUnavailableError(f"shard {address.shard_id}: {RACES_LOST}")


def key_of(operation: Operation) -> OperationKey:
    """Return what identifies an operation on its shard."""
    return operation.tenant_id, operation.request_id


def remember(known: dict[KeyT, None], keys: Iterable[KeyT], max_count: int) -> None:
    """Add *keys* to *known*, and drop the oldest ones beyond *max_count*."""
    known.update(dict.fromkeys(keys))
    for key in list(islice(known, max(0, len(known) - max_count))):
        del known[key]


class Course:
    """How a batch is attempted: each failed attempt shows more about it."""

    def __init__(self, budget: StatementBudget, *, may_be_fast: bool) -> None:
        self.budget = budget
        self.may_be_fast = may_be_fast
        self.lock_wait_count = 0  # waits for locks that are of no tenant's rows
        self.large: set[ResourceId] = set()  # resources of which the worker merges every patch
        self.with_duplicates: set[InsertedTable] = set()  # tables with rows that existed


class UnmergedPatchesError(RolledBackError):
    """The shard did not merge patches of *resources*, which the worker has to merge."""

    def __init__(self, resources: Collection[ResourceId]) -> None:
        super().__init__(f"patches of {len(resources)} resources are to be merged in the worker")
        self.resources = resources


class ApartError(RolledBackError):
    """The operations at *indexes* of the batch are to be applied apart from the others."""

    def __init__(self, indexes: Sequence[int], reason: str) -> None:
        super().__init__(f"{len(indexes)} operations are to be applied apart: {reason}")
        self.indexes = indexes


class LockedTenantsError(RolledBackError):
    """The operations of *tenant_ids* are to be applied apart: rows of these tenants were locked."""

    def __init__(self, tenant_ids: Sequence[str]) -> None:
        super().__init__(f"operations of {len(tenant_ids)} tenants are to be applied apart: rows were locked")
        self.tenant_ids = tenant_ids


class WriteAttempt:
    """One attempt to apply a batch; may be repeated after a lost race.

    After an error `suspects` are the indexes of the operations that can have caused it, and `log_took_s` the time until
    the rows of the log were written. Into `careful_tables` rows are inserted that may exist; in another table, that of
    `inserting`, they fail the transaction. `inserted` tells by table whether any row existed. With `remembered` rows of
    tenants the batch may be applied in one statement; `tenants` are rows that were read.
    """

    def __init__(
        self,
        batch: CommitBatch,
        known_outcomes: Mapping[int, Outcome] = NO_KNOWN_OUTCOMES,
        slow: Collection[OperationKey] = (),
        *,
        tenant_wait: timedelta,
        rules: Mapping[str, TypeRules],
    ) -> None:
        self.batch = batch
        self.known_outcomes = known_outcomes
        self.suspects: Sequence[int] = ()
        self.is_locking_tenants = False
        self.locked: Collection[str] = ()  # tenants that must not be in one transaction with others
        self.log_took_s = 0.0
        self.large: Container[ResourceId] = ()  # resources of which the worker merges every patch
        self.careful_tables: Collection[InsertedTable] = frozenset(InsertedTable)
        self.inserting: InsertedTable | None = None
        self.inserted: dict[InsertedTable, bool] = {}
        self.remembered: TenantMemory | None = None
        self.is_fast = False
        self.tenants: Mapping[str, TenantRow] = {}
        self.rules = rules
        self.operations: Sequence[Operation] = ()
        self.found: dict[int, Found] = {}
        self._slow = slow
        self._tenant_wait = tenant_wait

    @property
    def lock_suspects(self) -> Sequence[int]:
        """After a wait for a lock, the indexes of the operations that may need it."""
        return range(len(self.batch.operations)) if self.is_locking_tenants else self.suspects

    async def apply(self, connection: Connection, claimed: ExitStack) -> list[Outcome]:
        """Apply the batch in the transaction of *connection*.

        Raises `ApartError` if operations are to be applied apart.
        """
        self.batch.close()
        self.inserting, self.inserted, self.is_fast, self.is_locking_tenants = None, {}, False, False
        self.found = {}
        operations = self.operations = self.batch.operations
        if not operations:
            return []
        began_at = loop_time()
        self._check_slow(operations)
        claims = [(claim, claimed.enter_context(attempt_claim(claim))) for claim in self.batch.claims]
        known = self._find_known_tenants()
        if known and len(claims) == 1 and is_row_known(*claims[0]):
            return await self._apply_fast(connection, known, claims[0])
        if changed := await write_positions(connection, claims):
            raise position_changed_error(changed)
        if known:
            return await self._apply_fast(connection, known)
        self.is_locking_tenants = True
        tenants = await _lock_tenants(connection, {operation.tenant_id for operation in operations})
        self.is_locking_tenants = False
        self.tenants = tenants
        operations = self.operations = as_stored(operations, types_of(tenants), self.rules)
        judges = self._judges_for(tenants)
        self.found = judges.judge_sent(operations)
        decided = self._decide(tenants)
        await self._mark_known_duplicates(connection, tenants, decided)
        logged: Sequence[int] = range(len(operations))
        if decided:
            logged = [index for index in logged if index not in decided or leaves_row(decided[index])]
        failures = {number: decided[index].failure for number, index in enumerate(logged) if index in decided}
        results = {number: self._result_of(logged[number], decided[logged[number]]) for number in failures}
        self.suspects = logged
        self.inserting = InsertedTable.LOG
        expects_new = InsertedTable.LOG not in self.careful_tables
        matches = await write_log(
            connection, _select(logged, operations), logged, tenants, failures, results, expects_new=expects_new
        )
        self.inserted[InsertedTable.LOG] = bool(matches)
        if apart := [logged[number] for number, one in matches.items() if one is LogMatch.BEHIND_ANOTHER]:
            raise ApartError(apart, "order events with the id of one before them")
        decided |= {logged[number]: OUTCOME_BY_MATCH[one] for number, one in matches.items() if one in OUTCOME_BY_MATCH}
        applied = [index for index in logged if index not in decided] if decided else logged
        self.suspects = applied
        self.log_took_s = loop_time() - began_at
        self.inserting = InsertedTable.RESOURCES
        failed = await self._apply_waves(connection, tenants, judges, applied)
        decided |= {index: Outcome(disposition=Disposition.APPLIED, failure=failure) for index, failure in failed}
        self.inserting = None
        self.suspects = logged  # a deferred trigger runs at the commit
        outcomes = [SUCCEEDED] * len(operations)
        for index, outcome in decided.items():
            outcomes[index] = outcome
        if self.found:
            self.found = {index: one for index, one in self.found.items() if outcomes[index] in JUDGED}
        return outcomes

    def _result_of(self, index: int, outcome: Outcome) -> str | None:
        query = self.operations[index].query
        if query is not None and outcome == INVALID_QUERY:
            return msgspec.json.encode(query.problem).decode()
        if query is not None and outcome == QUERY_TOO_LARGE:
            too_large = {"expected": "a list that ends within its time", "indexWouldHelp": query.names}
            return msgspec.json.encode(too_large).decode()
        return self.found[index].result if outcome == INVALID_DATA and index in self.found else None

    def _find_known_tenants(self) -> Mapping[str, TenantRow]:
        operations = self.batch.operations
        if self.remembered is None or self.careful_tables or len(operations) > FAST_MAX_COUNT:
            return {}
        tenant_ids = {operation.tenant_id for operation in operations}
        known = self.remembered.rows_of(tenant_ids)
        if len(known) < len(tenant_ids):
            return {}
        self.operations = as_stored(operations, types_of(known), self.rules)
        is_usual = fits_fast_path(self.operations, known, large=self.large, tenant_wait=self._tenant_wait)
        return known if is_usual and self._judges_allow(known) else {}

    def _judges_allow(self, known: Mapping[str, TenantRow]) -> bool:
        judges, operations = self._judges_for(known), self.operations
        if judges.is_empty:
            return True
        if any(judges.judges_patch(operation) for operation in operations):
            return False
        self.found = judges.judge_sent(operations)
        return not any(found.judge.refuses for found in self.found.values())

    def _judges_for(self, tenants: Mapping[str, TenantRow]) -> BatchJudges:
        return BatchJudges(self.rules, types_of(tenants))

    async def _apply_fast(
        self, connection: Connection, known: Mapping[str, TenantRow], claimed: tuple[PositionClaim, str] | None = None
    ) -> list[Outcome]:
        self.is_fast = True
        operations = self.operations
        missed = await apply_fast(connection, operations, known, claimed)
        if unmerged := [operations[index] for index, error in missed if error == UNMERGED]:
            raise UnmergedPatchesError({resource_of(operation) for operation in unmerged})
        outcomes = [SUCCEEDED] * len(operations)
        for index, error in missed:
            outcomes[index] = Outcome(disposition=Disposition.APPLIED, failure=Failure(error))
        self.inserted = {InsertedTable.LOG: False}
        if CREATE in [operation.kind for operation in operations]:
            self.inserted[InsertedTable.RESOURCES] = False
        return outcomes

    def _check_slow(self, operations: Sequence[Operation]) -> None:
        if self.locked:
            tenant_ids = {operation.tenant_id for operation in operations}
            if found := [tenant_id for tenant_id in self.locked if tenant_id in tenant_ids]:
                raise LockedTenantsError(found)
        if not self._slow:
            return
        indexes = [index for index, operation in enumerate(operations) if key_of(operation) in self._slow]
        if indexes := [index for index in indexes if index not in self.known_outcomes]:
            raise ApartError(indexes, "they took too long before")

    def _decide(self, tenants: Mapping[str, TenantRow]) -> dict[int, Outcome]:
        operations = self.batch.operations
        has_excess = any(operation.exceeds_bounds or problem_of(operation) for operation in operations)
        refused = {index for index, found in self.found.items() if found.judge.refuses}
        if (
            not self.known_outcomes
            and not has_excess
            and not refused
            and admits_all(operations, tenants, tenant_wait=self._tenant_wait)
        ):
            return {}
        decided: dict[int, Outcome] = {}
        stopped: set[str] = set()
        for index, operation in enumerate(operations):
            tenant_id = operation.tenant_id
            admitted = admit(operation, tenants.get(tenant_id), tenant_wait=self._tenant_wait)
            outcome = HOLD if tenant_id in stopped else admitted or self.known_outcomes.get(index)
            if outcome is None and (operation.exceeds_bounds or index in refused):
                outcome = INVALID_DATA  # unless the log has it: a worker with other bounds may have applied it
            if outcome is None and problem_of(operation):
                outcome = INVALID_QUERY
            if outcome is not None:
                decided[index] = outcome
                if outcome.disposition in STOPPING:
                    stopped.add(tenant_id)
        return decided

    async def _mark_known_duplicates(
        self, connection: Connection, tenants: Mapping[str, TenantRow], decided: dict[int, Outcome]
    ) -> None:
        operations = self.batch.operations
        late = [
            index
            for index, outcome in decided.items()
            if outcome.reason is DeadLetterReason.UNKNOWN_TENANT and self._is_too_late(operations[index], tenants)
        ]
        known = await find_logged(connection, [operations[index] for index in late], tenants)
        for index, is_known in zip(late, known, strict=True):
            if is_known:
                decided[index] = DUPLICATE

    def _is_too_late(self, operation: Operation, tenants: Mapping[str, TenantRow]) -> bool:
        return is_too_late(operation, tenants.get(operation.tenant_id), tenant_wait=self._tenant_wait)

    async def _apply_waves(
        self, connection: Connection, tenants: Mapping[str, TenantRow], judges: BatchJudges, applied: Sequence[int]
    ) -> list[tuple[int, Failure]]:
        """Apply the operations *applied*, wave after wave; return those without effect, and why.

        Raises `ApartError` for a second patch of a resource that the worker merges: a transaction is to take a bounded
        time.
        """
        operations = _select(applied, self.operations)
        patches = [index for index, operation in enumerate(operations) if operation.kind is PATCH]
        laborious = find_laborious(operations, patches, self.large)
        first = {resource_of(operations[index]): index for index in sorted(laborious, reverse=True)}
        if further := laborious.difference(first.values()):
            raise ApartError([applied[index] for index in further], "large patches behind another of their resource")
        planned = plan_waves(operations)
        waves = isolate([(*wave.reads, *wave.writes) for wave in planned], laborious)
        statement = statement_for(
            [operations[index].kind for wave in planned for index in wave.reads],
            has_asked=any(one.query is not None and one.query.asked for one in operations),
            has_nested=any(is_nested(operations[index].text or "") for index in patches),
            creates_new=InsertedTable.RESOURCES not in self.careful_tables,
        )
        run = WaveRun(connection, statement, tenants, judges)
        for wave in waves:
            own = [operations[index] for index in wave]
            await run.add_wave([applied[index] for index in wave], own, is_laborious=wave[0] in laborious)
        await run.finish()
        self.found |= run.found
        if unmerged := [self.operations[place] for place, error in run.failures if error == UNMERGED]:
            raise UnmergedPatchesError({resource_of(operation) for operation in unmerged})
        if CREATE in [operation.kind for operation in operations]:
            self.inserted[InsertedTable.RESOURCES] = Failure.ALREADY_EXISTS in [error for _, error in run.failures]
        return [(place, Failure(error)) for place, error in run.failures]


def _select(indexes: Sequence[int], operations: Sequence[Operation]) -> Sequence[Operation]:
    return operations if len(indexes) == len(operations) else [operations[index] for index in indexes]


def problem_of(operation: Operation) -> ListProblem | None:
    """Return why a list cannot be meant."""
    return None if operation.query is None else operation.query.problem


def types_of(tenants: Mapping[str, TenantRow]) -> dict[str, str]:
    """Return the business types of *tenants*, by id."""
    return {tenant_id: row.business_type for tenant_id, row in tenants.items()}


async def _lock_tenants(connection: Connection, tenant_ids: Iterable[str]) -> dict[str, TenantRow]:
    rows = await connection.fetch(QUERIES["lock_tenants"], list(tenant_ids))
    return {  # unpacked, with positional arguments: a batch may have thousands of tenants
        tenant_id: TenantRow(business_id, location_id, type_, STATES[state], created_at, number, moved_to, *levers)
        for tenant_id, business_id, location_id, type_, state, moved_to, created_at, number, *levers in rows
    }


def leaves_row(outcome: Outcome) -> bool:
    """Return whether an operation with this known outcome leaves a row in the log."""
    return outcome.disposition is Disposition.APPLIED


def _ids_of(operation: Operation) -> dict[str, str]:
    return {
        "business_id": operation.business_id,
        "location_id": operation.location_id,
        "request_id": operation.request_id,
    }
