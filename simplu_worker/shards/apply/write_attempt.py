"""One attempt to apply a batch in the transaction of its shard: admission, log rows, waves.

Why exactly once: the log rows are written before any effect, in the same transaction, and only operations with a row of
this transaction are applied. A retry of the batch, by any replica, finds the rows of the committed operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.limits import NO_LIMIT, Buckets, Limit
from simplu_worker.operations.operation import Disposition, ListProblem, Operation, Outcome
from simplu_worker.operations.waves import HOLD, TenantRow, admit, admits_all, is_too_late, isolate, plan_waves
from simplu_worker.shards.apply import wave_run
from simplu_worker.shards.apply.duplicates import DuplicateMemory, LogMatch
from simplu_worker.shards.apply.group_commit import CommitBatch
from simplu_worker.shards.apply.judging import PATCH, BatchJudges, Found, TypeRules, as_stored
from simplu_worker.shards.positions import attempt_claim, is_row_known, position_changed_error, write_positions
from simplu_worker.shards.postgres.errors import RolledBackError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.types import PositionClaim
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import DeadLetterReason, Failure, TenantState

SUCCEEDED = Outcome(disposition=Disposition.APPLIED)
DUPLICATE = Outcome(disposition=Disposition.DUPLICATE)
INVALID_DATA = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_DATA)
INVALID_QUERY = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_QUERY)
QUERY_TOO_LARGE = Outcome(disposition=Disposition.APPLIED, failure=Failure.QUERY_TOO_LARGE)
JUDGED = frozenset({SUCCEEDED, INVALID_DATA})  # outcomes at which a finding counts
REUSED = Outcome(
    disposition=Disposition.DEAD_LETTER,
    reason=DeadLetterReason.REQUEST_ID_REUSED,
    error="requestId: expected one not used before by a different operation; send it again under a new one",
)

TENANTS_MAX_COUNT: Final = 10_000  # rows that a writer remembers
NO_KNOWN_OUTCOMES: Final[Mapping[int, Outcome]] = {}
# Of logged operations, which are not applied.
OUTCOME_BY_MATCH = {
    LogMatch.REDELIVERY: DUPLICATE,
    LogMatch.LATE_REPETITION: Outcome(disposition=Disposition.DUPLICATE, is_late=True),
    LogMatch.REUSE: REUSED,
}
STOPPING = frozenset(
    {Disposition.HOLD, Disposition.FAILING, Disposition.LOCKED}
)  # no later operation of the tenant may be applied

STATES: Final = {state.value: state for state in TenantState}  # looked up once: access to an enum member is slow

OperationKey: TypeAlias = tuple[str, str]  # the tenant's id and the request id


def key_of(operation: Operation) -> OperationKey:
    """Return what identifies an operation on its shard."""
    return operation.tenant_id, operation.request_id


class ShardMemory:
    """What the writer of a shard remembers of its batches; of each kind the oldest is the first."""

    def __init__(
        self, *, duplicates: DuplicateMemory | None = None, tenants_max_count: int = TENANTS_MAX_COUNT
    ) -> None:
        self.slow: dict[OperationKey, None] = {}  # operations that took too long
        self.large: dict[wave_run.ResourceId, None] = {}  # resources of which the worker merges every patch
        self.locked: dict[str, None] = {}  # tenants with locked rows, the one that was tried last is the last
        self.duplicates = duplicates or DuplicateMemory()
        self.tenants: dict[str, TenantRow] = {}  # as batches last read them
        self.tenants_max_count = tenants_max_count


class Course:
    """How a batch is attempted: each failed attempt shows more about it."""

    def __init__(self, budget: StatementBudget, *, may_be_fast: bool = False, is_careful: bool = False) -> None:
        self.budget = budget
        self.may_be_fast = may_be_fast
        self.is_careful = is_careful  # a row existed that was expected to be new
        self.lock_wait_count = 0  # waits for locks that are of no tenant's rows
        self.large: set[wave_run.ResourceId] = set()  # as in the memory


class AnotherWayError(RolledBackError):
    """The batch is to be applied in another way, because of *found*."""

    def __init__(self, found: Collection[Any]) -> None:
        super().__init__(f"{type(self).__name__}: {len(found)}")
        self.found = found


class UnmergedPatchesError(AnotherWayError):
    """The shard did not merge patches of these resources, which the worker has to merge."""


class ApartError(AnotherWayError):
    """The operations at these indexes of the batch are to be applied apart from the others."""


class LockedTenantsError(AnotherWayError):
    """The operations of these tenants are to be applied apart: their rows were locked."""


class WriteAttempt:
    """One attempt to apply a batch; may be repeated after a lost race.

    After an error `suspects` are the indexes of the operations that can have caused it, and `log_took_s` the time until
    the rows of the log were written. Unless it `is_careful` a row that exists fails the transaction; `has_duplicates`
    tells whether any existed. `tenants` are rows that were read.
    """

    def __init__(
        self,
        batch: CommitBatch,
        known_outcomes: Mapping[int, Outcome],
        course: Course,
        memory: ShardMemory,
        *,
        tenant_wait: timedelta,
        rules: Mapping[str, TypeRules],
        default_limit: Limit = NO_LIMIT,
    ) -> None:
        self.batch = batch
        self.known_outcomes = known_outcomes
        self.budget = course.budget
        self.is_careful = memory.duplicates.is_careful or course.is_careful
        self.suspects: Sequence[int] = ()
        self.is_locking_tenants = False
        self.log_took_s = 0.0
        self.has_duplicates = False
        self.is_fast = False
        self.tenants: Mapping[str, TenantRow] = {}
        self.operations: Sequence[Operation] = ()
        self.found: dict[int, Found] = {}
        self._memory = memory
        self._large = course.large.union(memory.large) if course.large else memory.large
        self._may_be_fast = course.may_be_fast and not (known_outcomes or self.is_careful or default_limit)
        self._default_limit = default_limit
        self._tenant_wait = tenant_wait
        self._rules = rules

    @property
    def lock_suspects(self) -> Sequence[int]:
        """After a wait for a lock, the indexes of the operations that may need it."""
        return range(len(self.batch.operations)) if self.is_locking_tenants else self.suspects

    async def apply(self, connection: Connection, claimed: ExitStack) -> list[Outcome]:
        """Apply the batch in the transaction of *connection*.

        Raises `ApartError` if operations are to be applied apart.
        """
        self.batch.close()
        self.has_duplicates = self.is_fast = self.is_locking_tenants = False
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
        self.tenants = tenants
        operations = self.operations = as_stored(operations, types_of(tenants), self._rules)
        judges = self._judges_for(tenants)
        self.found = judges.judge_sent(operations)
        decided = self._decide(tenants)
        if self._default_limit or any(row.is_limited for row in tenants.values()):
            await self._hold_beyond_limits(connection, tenants, decided)
        self.is_locking_tenants = False
        await self._mark_known_duplicates(connection, tenants, decided)
        logged: Sequence[int] = range(len(operations))
        if decided:
            unlogged = {index for index, one in decided.items() if one.disposition is not Disposition.APPLIED}
            logged = [index for index in logged if index not in unlogged]
        failures = {number: decided[index].failure for number, index in enumerate(logged) if index in decided}
        results = {number: self._result_of(logged[number], decided[logged[number]]) for number in failures}
        self.suspects = logged
        matches = await wave_run.write_log(
            connection, _select(logged, operations), logged, tenants, failures, results, expects_new=not self.is_careful
        )
        self.has_duplicates = bool(matches)
        if apart := [logged[number] for number, one in matches.items() if one is LogMatch.BEHIND_ANOTHER]:
            raise ApartError(apart)  # order events with the id of one before them
        decided |= {logged[number]: OUTCOME_BY_MATCH[one] for number, one in matches.items() if one in OUTCOME_BY_MATCH}
        applied = [index for index in logged if index not in decided] if decided else logged
        self.suspects = applied
        self.log_took_s = loop_time() - began_at
        failed = await self._apply_waves(connection, tenants, judges, applied)
        decided |= {index: Outcome(disposition=Disposition.APPLIED, failure=failure) for index, failure in failed}
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
        if not self._may_be_fast or len(operations) > wave_run.FAST_MAX_COUNT:
            return {}
        tenant_ids = {operation.tenant_id for operation in operations}
        remembered = self._memory.tenants
        if not tenant_ids <= remembered.keys():
            return {}
        known = {tenant_id: remembered[tenant_id] for tenant_id in tenant_ids}
        self.operations = as_stored(operations, types_of(known), self._rules)
        is_usual = wave_run.fits_fast_path(self.operations, known, large=self._large, tenant_wait=self._tenant_wait)
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
        return BatchJudges(self._rules, types_of(tenants))

    async def _apply_fast(
        self, connection: Connection, known: Mapping[str, TenantRow], claimed: tuple[PositionClaim, str] | None = None
    ) -> list[Outcome]:
        self.is_fast = True
        operations = self.operations
        missed = await wave_run.apply_fast(connection, operations, known, claimed)
        if unmerged := [operations[index] for index, error in missed if error == wave_run.UNMERGED]:
            raise UnmergedPatchesError({wave_run.resource_of(operation) for operation in unmerged})
        outcomes = [SUCCEEDED] * len(operations)
        for index, error in missed:
            outcomes[index] = Outcome(disposition=Disposition.APPLIED, failure=Failure(error))
        return outcomes

    def _check_slow(self, operations: Sequence[Operation]) -> None:
        if self.budget is not StatementBudget.BATCH:
            return
        if locked := self._memory.locked:
            tenant_ids = {operation.tenant_id for operation in operations}
            if found := [tenant_id for tenant_id in locked if tenant_id in tenant_ids]:
                raise LockedTenantsError(found)
        if slow := self._memory.slow:
            indexes = [index for index, operation in enumerate(operations) if key_of(operation) in slow]
            if indexes := [index for index in indexes if index not in self.known_outcomes]:
                raise ApartError(indexes)

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

    async def _hold_beyond_limits(
        self, connection: Connection, tenants: Mapping[str, TenantRow], decided: dict[int, Outcome]
    ) -> None:
        """Decide what is beyond the limits of tenants and businesses; take the rest out of their buckets.

        What the log has, or is given up, takes nothing.
        """
        limits = {one: row.limits(self._default_limit) for one, row in tenants.items()}
        admitted = [
            index
            for index, one in enumerate(self.operations)
            if limits.get(one.tenant_id)
            and (index not in decided or decided[index].disposition is Disposition.APPLIED)
            and tenants[one.tenant_id].state is TenantState.ACTIVE
        ]
        free = set(self.known_outcomes)
        if self.is_careful:
            logged = await wave_run.find_logged(connection, _select(admitted, self.operations), tenants)
            free.update(index for index, is_logged in zip(admitted, logged, strict=True) if is_logged)
        buckets = await _lock_buckets(
            connection, {target for index in admitted for target, _ in limits[self.operations[index].tenant_id]}
        )
        over: dict[str, Outcome] = {}
        for index in admitted:
            operation = self.operations[index]
            if operation.tenant_id not in over and index not in free:
                wait_s = buckets.take(limits[operation.tenant_id], operation.size_bytes)
                if wait_s is not None:
                    over[operation.tenant_id] = Outcome(Disposition.LOCKED, over_limit_s=wait_s)
            if operation.tenant_id in over:
                decided[index] = over[operation.tenant_id]
        if changes := buckets.changes():
            await connection.execute(QUERIES["change_buckets"], *changes)

    async def _mark_known_duplicates(
        self, connection: Connection, tenants: Mapping[str, TenantRow], decided: dict[int, Outcome]
    ) -> None:
        operations = self.batch.operations
        late = [
            index
            for index, outcome in decided.items()
            if outcome.reason is DeadLetterReason.UNKNOWN_TENANT and self._is_too_late(operations[index], tenants)
        ]
        known = await wave_run.find_logged(connection, [operations[index] for index in late], tenants)
        for index, is_known in zip(late, known, strict=True):
            if is_known:
                decided[index] = DUPLICATE

    def _is_too_late(self, operation: Operation, tenants: Mapping[str, TenantRow]) -> bool:
        return is_too_late(operation, tenants.get(operation.tenant_id), tenant_wait=self._tenant_wait)

    async def _apply_waves(
        self, connection: Connection, tenants: Mapping[str, TenantRow], judges: BatchJudges, applied: Sequence[int]
    ) -> list[tuple[int, Failure]]:
        """Apply the operations *applied*, wave after wave; return those without effect, and why.

        Raises `ApartError` for a second patch of a resource that takes long to merge: a transaction is to take a
        bounded time.
        """
        operations = _select(applied, self.operations)
        patches = [index for index, operation in enumerate(operations) if operation.kind is PATCH]
        laborious = wave_run.find_laborious(operations, patches, self._large)
        heavy = wave_run.find_heavy(operations, laborious, self._large)
        first = {wave_run.resource_of(operations[index]): index for index in reversed(heavy)}
        if further := set(heavy).difference(first.values()):
            raise ApartError([applied[index] for index in further])  # large patches behind another of their resource
        planned = plan_waves(operations)
        waves = isolate([(*wave.reads, *wave.writes) for wave in planned], heavy)
        statement = wave_run.statement_for(
            [operations[index].kind for wave in planned for index in wave.reads], creates_new=not self.is_careful
        )
        run = wave_run.WaveRun(connection, statement, tenants, judges)
        for wave in waves:
            own = [operations[index] for index in wave]
            merged = [place for place, index in enumerate(wave) if index in laborious]
            await run.add_wave([applied[index] for index in wave], own, merged, is_heavy=wave[0] in heavy)
        await run.finish()
        self.found |= run.found
        if unmerged := [self.operations[place] for place, error in run.failures if error == wave_run.UNMERGED]:
            raise UnmergedPatchesError({wave_run.resource_of(operation) for operation in unmerged})
        self.has_duplicates |= Failure.ALREADY_EXISTS in [error for _, error in run.failures]
        return [(place, Failure(error)) for place, error in run.failures]


def _select(indexes: Sequence[int], operations: Sequence[Operation]) -> Sequence[Operation]:
    return operations if len(indexes) == len(operations) else [operations[index] for index in indexes]


def problem_of(operation: Operation) -> ListProblem | None:
    """Return why a list cannot be meant."""
    return None if operation.query is None else operation.query.problem


def types_of(tenants: Mapping[str, TenantRow]) -> dict[str, str]:
    """Return the business types of *tenants*, by id."""
    return {tenant_id: row.business_type for tenant_id, row in tenants.items()}


async def _lock_buckets(connection: Connection, targets: Collection[str]) -> Buckets:
    return Buckets(await connection.fetch(QUERIES["lock_buckets"], list(targets)) if targets else ())


async def _lock_tenants(connection: Connection, tenant_ids: Iterable[str]) -> dict[str, TenantRow]:
    rows = await connection.fetch(QUERIES["lock_tenants"], list(tenant_ids))
    return {  # unpacked, with positional arguments: a batch may have thousands of tenants
        tenant_id: TenantRow(business_id, location_id, type_, STATES[state], created_at, number, moved_to, *controls)
        for tenant_id, business_id, location_id, type_, state, moved_to, created_at, number, *controls in rows
    }
