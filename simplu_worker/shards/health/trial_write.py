"""Try what a worker does on a shard, and roll it back: the reads of a probe show no write that is refused."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Final

import msgspec

from simplu_worker.operations.decode import decode_operations
from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.operations.verbs import VERBS
from simplu_worker.shards.apply.group_commit import CommitBatch
from simplu_worker.shards.apply.write_attempt import NO_KNOWN_OUTCOMES, Course, ShardMemory, WriteAttempt
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import has_schema, make_schema
from simplu_worker.shards.types import PositionClaim, StreamPosition
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import Source

NAME: Final = "simplu-check"
EVER: Final = timedelta(days=36500)  # a tenant of this moment is not too young, whatever the shard's clock says
RECORD_MAX_BYTES: Final = 1000
STEPS: Final[tuple[dict[str, Any], ...]] = tuple(
    {
        "operation": verb.kind,
        "resourceId": None if verb.has_query else NAME,
        "data": {"a": 1} if verb.has_data else None,
    }
    for verb in VERBS.values()
)


async def try_write(pool: ShardPool) -> None:
    """Make schema and tenant where they lack, apply operations of each kind, and roll all back.

    Raises `WorkerError`.
    """
    async with pool.transaction(is_rehearsal=True, budget=StatementBudget.PAUSE) as connection:
        if not await has_schema(connection, pool):
            if not await connection.fetchval(QUERIES["try_lock_schema"]):
                return  # another one makes the schema
            await make_schema(connection, pool.address.shard_id)
        types = await connection.fetch(QUERIES["name_types"], 1)
        operations = _operations(location_id=uuid.uuid4().hex)
        tenant, now = operations[0], utc_now()
        sent = (tenant.tenant_id, tenant.business_id, tenant.location_id, *(row["name"] for row in types))
        if types:
            await connection.fetch(QUERIES["make_tenants"], *([one] for one in sent), [now.isoformat()])
        claim = PositionClaim(NAME, NAME, StreamPosition("TRIM_HORIZON"))
        batch, course = CommitBatch(operations, [claim]), Course(StatementBudget.PAUSE)
        attempt = WriteAttempt(batch, NO_KNOWN_OUTCOMES, course, ShardMemory(), tenant_wait=EVER, rules={})
        with ExitStack() as claimed:
            await attempt.apply(connection, claimed)


def _operations(location_id: str) -> list[Operation]:
    members = {"businessId": NAME, "locationId": location_id, "resourceType": NAME, "timestamp": "2026-01-01T00:00:00Z"}
    records = [msgspec.json.encode(members | {"requestId": uuid.uuid4().hex} | step) for step in STEPS]
    origins = [Origin(Source.KINESIS, NAME, utc_now(), NAME, str(number)) for number in range(len(records))]
    decoded = decode_operations(records, origins, RECORD_MAX_BYTES, 1)
    return [one for one in decoded if isinstance(one, Operation)]
