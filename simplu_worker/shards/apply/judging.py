"""The rules of a shard's business types: names of their resources, and the schemas that judge a batch's operations.

They are read again every few seconds. What they decided stays, since the outcome is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.business_types import BusinessType
from simplu_worker.operations.list_query import NO_LIST_RULES, ListRules, resolved
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.schema_judge import Finding, InvalidSchemaError, Judge, Judges, judges_of
from simplu_worker.operations.verbs import VERBS
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import OperationKind, TargetKind

REREAD_S: Final = 5.0

PATCH: Final = OperationKind.PATCH  # looked up once: access to an enum member is slow

log = structlog.get_logger(__name__)


class TypeRules(NamedTuple):
    """What operations of a business type's tenants follow: its judges, and its `stored_names`."""

    judges: Judges
    stored_names: Mapping[str, str]
    lists: Mapping[str, ListRules]  # by the name under which a resource is stored


_NO_JUDGES: Final[Judges] = {}
NO_RULES: Final = TypeRules(_NO_JUDGES, {}, {})


class ShardRules:
    """The rules of a shard's business types; `by_type` has those types that have any."""

    def __init__(self, pool: ShardPool) -> None:
        self.by_type: Mapping[str, TypeRules] = {}
        self.stored_names: Mapping[str, Collection[str]] = {}  # of all types, by the name that is sent
        self._pool = pool
        self._digests: dict[str, str] = {}  # of the definitions that were read
        self._address: ShardAddress | None = None  # at which they were
        self._read_at = float("-inf")
        self._first_read = asyncio.Lock()

    async def refresh(self) -> None:
        """Read what has changed on the shard, unless a call did a moment ago.

        Raises `RetryableError`, but where there are rules of the same database: these stay.
        """
        if self._pool.address is not self._address:
            async with self._first_read:
                if self._pool.address is not self._address:
                    await self._read({})
        elif loop_time() - self._read_at >= REREAD_S:
            with contextlib.suppress(RetryableError):
                await self._read(self._digests)

    async def _read(self, known: Mapping[str, str]) -> None:
        address, self._read_at = self._pool.address, loop_time()
        async with self._pool.connection() as connection:
            rows: list[Any] = await connection.fetch(QUERIES["read_definitions"], list(known), list(known.values()))
        by_type = {name: rules for name, rules in self.by_type.items() if name in known}
        by_type = {row["name"]: by_type[row["name"]] for row in rows if row["name"] in by_type}
        for row in rows:
            if row["definition"] is not None:
                by_type[row["name"]] = await self._compile(row["name"], row["definition"])
        self.by_type = {name: rules for name, rules in by_type.items() if any(rules)}
        self.stored_names = _union(rules.stored_names for rules in self.by_type.values())
        self._digests = {row["name"]: row["digest"] for row in rows}
        self._address = address

    async def _compile(self, name: str, definition: str) -> TypeRules:
        try:
            rules, problems = await asyncio.to_thread(_rules_in, definition)
        except Exception as exc:  # noqa: BLE001  # whatever a definition leads to
            self._note_problem(name, str(exc), exc)
            return NO_RULES
        for problem in problems:
            self._note_problem(name, problem, InvalidSchemaError(problem))
        return rules

    def _note_problem(self, name: str, problem: str, exc: Exception) -> None:
        shard_id = self._pool.address.shard_id
        log.error("business_type.unusable", shard_id=shard_id, business_type=name, error=problem)
        note_trouble(TargetKind.SHARD, shard_id, "schemas", exc)


def _rules_in(definition: str) -> tuple[TypeRules, list[str]]:
    business_type = msgspec.json.decode(definition, type=BusinessType)
    judges, problems = judges_of(business_type)
    lists = {one.name: ListRules(one.date_path, frozenset(one.filtered_paths)) for one in business_type.resource_types}
    has_rules = {name: rules for name, rules in lists.items() if rules != ListRules()}
    return TypeRules(judges, business_type.stored_names, has_rules), problems


def _union(mappings: Iterable[Mapping[str, str]]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for key, value in (pair for mapping in mappings for pair in mapping.items()):
        values.setdefault(key, set()).add(value)
    return values


def as_stored(
    operations: Sequence[Operation], business_types: Mapping[str, str], rules: Mapping[str, TypeRules]
) -> Sequence[Operation]:
    """Return *operations* with the names under which types store resources, and lists with what they ask."""
    names = {one: rules[one].stored_names for one in set(business_types.values()) if one in rules}
    sent = {operation.resource_type for operation in operations}
    if not all(sent.isdisjoint(one) for one in names.values()):
        of_tenant = {tenant_id: names.get(one, {}) for tenant_id, one in business_types.items()}
        operations = [
            operation
            if (name := of_tenant.get(operation.tenant_id, {}).get(operation.resource_type)) is None
            else msgspec.structs.replace(operation, resource_type=name, sent_type=operation.resource_type)
            for operation in operations
        ]
    if any(operation.query for operation in operations):
        lists = {tenant_id: rules.get(one, NO_RULES).lists for tenant_id, one in business_types.items()}
        operations = [_with_rules(operation, lists.get(operation.tenant_id, {})) for operation in operations]
    return operations


def _with_rules(operation: Operation, lists: Mapping[str, ListRules]) -> Operation:
    if operation.query is None:
        return operation
    query = resolved(operation.query, lists.get(operation.resource_type, NO_LIST_RULES))
    return msgspec.structs.replace(operation, query=query)


async def judge_change(connection: Connection, tenant_id: str, documents: Mapping[str, str], *, member: str) -> None:
    """Judge the *documents*, by resource types, of a change that is no operation.

    Raises `PermanentError` for a refused one.
    """
    definition = await connection.fetchval(QUERIES["read_definition"], tenant_id)
    try:
        rules = NO_RULES if definition is None else (await asyncio.to_thread(_rules_in, definition))[0]
    except (msgspec.DecodeError, RecursionError):  # told by `ShardRules`: of what cannot be used there are none
        rules = NO_RULES
    for resource_type, document in documents.items():
        judge = rules.judges.get(resource_type)
        if judge is None or (finding := judge.schema.judge(document.encode())) is None:
            continue
        count_found({0: Found(judge, finding)})
        if judge.refuses:
            raise PermanentError(
                f"{member}: the schema of {judge.resource_type} refuses the document ({finding}); "
                "send members that fit, or change the schema"
            )


class Found(NamedTuple):
    """What a judge has found at an operation."""

    judge: Judge
    finding: Finding

    @property
    def result(self) -> str | None:
        """The JSON text for the log, of an operation that is refused for it."""
        return msgspec.json.encode(self.finding).decode() if self.judge.refuses else None


class BatchJudges:
    """The judges for the operations of tenants of *business_types*, by their ids."""

    def __init__(self, by_type: Mapping[str, TypeRules], business_types: Mapping[str, str]) -> None:
        self._by_tenant = {
            tenant_id: by_type[business_type].judges
            for tenant_id, business_type in business_types.items()
            if business_type in by_type and by_type[business_type].judges
        }

    @property
    def is_empty(self) -> bool:
        """Whether no tenant has a judge."""
        return not self._by_tenant

    def judge_of(self, operation: Operation) -> Judge | None:
        """Return the judge of what *operation* writes."""
        return self._by_tenant.get(operation.tenant_id, _NO_JUDGES).get(operation.resource_type)

    def judges_patch(self, operation: Operation) -> bool:
        """Return whether *operation* is a patch of which the result is judged."""
        return operation.kind is PATCH and self.judge_of(operation) is not None

    def judge(self, operation: Operation, document: bytes | msgspec.Raw | None) -> Found | None:
        """Return what is wrong with the *document* that *operation* makes; None if nothing is."""
        judge = self.judge_of(operation)
        finding = None if judge is None or document is None else judge.schema.judge(document)
        return None if judge is None or finding is None else Found(judge, finding)

    def judge_sent(self, operations: Sequence[Operation]) -> dict[int, Found]:
        """Return by index what is wrong with the documents of those operations that send a whole one."""
        if not self._by_tenant:
            return {}
        return {
            index: found
            for index, operation in enumerate(operations)
            if VERBS[operation.kind].has_document and not operation.exceeds_bounds
            if (found := self.judge(operation, operation.data)) is not None
        }


def count_found(found: Mapping[int, Found]) -> None:
    """Count what was found at the operations of a committed batch."""
    for judge, finding in found.values():
        instruments.count_finding(judge.business_type, judge.resource_type, finding.schema_path, judge.validation)
