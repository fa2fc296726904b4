"""The schemas of a shard, and the operations of a batch that they judge.

Which schema judges an operation is a matter of the moment: a shard's schemas are read again every few seconds. What it
decides stays, since the outcome is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.operations.business_types import BusinessType
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.schema_bounds import InvalidSchemaError
from simplu_worker.operations.schema_judge import Finding, Judge, Judges, judges_of
from simplu_worker.shards.apply.patch_merging import PATCH
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import OperationKind, TargetKind

REREAD_S: Final = 5.0

_NO_JUDGES: Final[Judges] = {}
CREATE: Final = OperationKind.CREATE  # looked up once: access to an enum member is slow
UPDATE: Final = OperationKind.UPDATE

log = structlog.get_logger(__name__)


class ShardJudges:
    """The judges of a shard's business types; `by_type` has those types that have any."""

    def __init__(self, pool: ShardPool) -> None:
        self.by_type: Mapping[str, Judges] = {}
        self._pool = pool
        self._digests: dict[str, str] = {}  # of the definitions that were read
        self._address: ShardAddress | None = None  # at which they were
        self._read_at = float("-inf")
        self._first_read = asyncio.Lock()

    def __repr__(self) -> str:
        return f"ShardJudges({sorted(self.by_type)})"

    async def refresh(self) -> None:
        """Read what has changed on the shard, unless a call did a moment ago.

        Raises `RetryableError`, but where there are judges of the same database: these stay.
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
        by_type = {name: judges for name, judges in self.by_type.items() if name in known}
        by_type = {row["name"]: by_type[row["name"]] for row in rows if row["name"] in by_type}
        for row in rows:
            if row["definition"] is not None:
                by_type[row["name"]] = await self._compile(row["name"], row["definition"])
        self.by_type = {name: judges for name, judges in by_type.items() if judges}
        self._digests = {row["name"]: row["digest"] for row in rows}
        self._address = address

    async def _compile(self, name: str, definition: str) -> Judges:
        """Return the judges of a type. Of what cannot be used there are none: that is the trouble of the type alone."""
        try:
            judges, problems = await asyncio.to_thread(_judges_in, definition)
        except Exception as exc:  # noqa: BLE001  # whatever a definition leads to
            self._note_problem(name, str(exc), exc)
            return _NO_JUDGES
        for problem in problems:
            self._note_problem(name, problem, InvalidSchemaError(problem))
        return judges

    def _note_problem(self, name: str, problem: str, exc: Exception) -> None:
        shard_id = self._pool.address.shard_id
        log.error("business_type.unusable", shard_id=shard_id, business_type=name, error=problem)
        note_trouble(TargetKind.SHARD, shard_id, "schemas", exc)


def _judges_in(definition: str) -> tuple[Judges, list[str]]:
    return judges_of(msgspec.json.decode(definition, type=BusinessType))


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

    def __init__(self, by_type: Mapping[str, Judges], business_types: Mapping[str, str]) -> None:
        self._by_tenant = {
            tenant_id: judges
            for tenant_id, business_type in business_types.items()
            if (judges := by_type.get(business_type)) is not None
        }

    def __repr__(self) -> str:
        return f"BatchJudges({len(self._by_tenant)} tenants)"

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
            if (operation.kind is CREATE or operation.kind is UPDATE) and not operation.exceeds_bounds
            if (found := self.judge(operation, operation.data)) is not None
        }


def count_found(found: Mapping[int, Found]) -> None:
    """Count what was found at the operations of a committed batch."""
    for judge, finding in found.values():
        instruments.count_finding(judge.business_type, judge.resource_type, finding.schema_path, judge.validation)
