from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from support.postgres.tenant_cases import (
    ARRIVED_AT,
    STREAM,
    TENANT,
    TENANT_WAIT,
    TenantCase,
    failed,
    fetch,
    writer_of,
)
from support.postgres.trouble import waiters

from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.operations.waves import DESTROYED, HOLD
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import PositionChangedError, PositionClaim, ShardUnavailableError, StreamPosition
from simplu_worker.vocabulary import Failure, Source

NAMES = {text: name for name, text in QUERIES.items()}
NOT_FOUND = failed(Failure.NOT_FOUND)
TENANT_ID = "-".join(TENANT)
LATE = ARRIVED_AT + TENANT_WAIT + timedelta(seconds=1)


@pytest.fixture
async def writer(case: TenantCase) -> ShardWriter:
    writer = writer_of(case.pool)
    assert await writer.apply([case.operation("create", "r0", {"v": 0})]) == [SUCCEEDED]
    return writer


@pytest.fixture
async def rival(case: TenantCase) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(case.pool.address.connection_string)
    yield connection
    await connection.close()


def claim_of(number: int = 0, *tokens: str) -> PositionClaim:
    return PositionClaim(STREAM, f"shardId-{number:012}", StreamPosition("7/0"), fencing_tokens=list(tokens))


@asynccontextmanager
async def statements(pool: ShardPool) -> AsyncIterator[list[str]]:
    """Note the statements that the only connection of *pool* runs: the names of queries, the first words of others."""
    noted: list[str] = []

    def note(query: Any) -> None:
        noted.append(NAMES.get(query.query) or query.query.split()[0].strip(";"))

    async with pool.connection() as connection:
        connection.add_query_logger(note)
    yield noted
    async with pool.connection() as connection:
        connection.remove_query_logger(note)
    await asyncio.sleep(0)  # it is called by the loop


async def test_writer_applies_a_usual_batch_in_one_statement(case: TenantCase, writer: ShardWriter) -> None:
    claim = claim_of()
    await writer.apply([case.operation("update", "r0", {"v": 1})], claim)
    claim.position = StreamPosition("8/0", ARRIVED_AT)
    batch = [
        case.operation("create", "r1", {"v": 1}),
        case.operation("patch", "r0", {"w": None, "x": [1]}),
        case.operation("create", "r2", {"v": "\x1f"}, resource_type="visit"),
    ]
    async with statements(case.pool) as noted:
        assert await writer.apply(batch, claim) == [SUCCEEDED] * 3

    assert noted == ["BEGIN", "fast_path_claimed", "COMMIT"]
    assert await case.resources() == {
        ("patient", "r0"): {"v": 1, "x": [1]},
        ("patient", "r1"): {"v": 1},
        ("visit", "r2"): {"v": "\x1f"},
    }
    log = await case.log()
    assert {log[one.request_id] for one in batch} == {("succeeded", None)}
    (row,) = await fetch(case.pool, "SELECT pending_from, pending_since, token::text FROM stream_positions")
    assert row == {"pending_from": "8/0", "pending_since": ARRIVED_AT, "token": claim.fencing_tokens[0]}


async def test_rows_of_the_log_are_those_of_the_steps(case: TenantCase, writer: ShardWriter) -> None:
    def at(microseconds: int) -> datetime:
        return ARRIVED_AT + timedelta(microseconds=microseconds)

    other = writer_of(case.pool, careful_count=16)  # expects duplicates, and so goes step by step
    for number, one in enumerate((writer, other)):
        batch = [
            case.operation("create", f"c{number}", {"v": 1}, request_id=f"a{number}", arrived_at=at(1)),
            case.operation("delete", f"none{number}", request_id=f"b{number}", arrived_at=at(999_999)),
            case.operation("create", f"d{number}", {}, request_id=f"c{number}", source=Source.SQS, arrived_at=at(2)),
        ]
        assert await one.apply(batch) == [SUCCEEDED, NOT_FOUND, SUCCEEDED]
    columns = "operation, resource_type, status, error, result, source, stream_shard_id, sequence_number, requested_at"
    query = f"SELECT {columns}, received_at FROM operations WHERE request_id = ANY($1) ORDER BY request_id"
    rows = await fetch(case.pool, query, ["a0", "b0", "c0"])
    assert rows == await fetch(case.pool, query, ["a1", "b1", "c1"])
    assert [(row["source"], row["received_at"]) for row in rows] == [
        ("kinesis", at(1)),
        ("kinesis", at(999_999)),
        ("sqs", at(2)),
    ]


async def test_nothing_is_applied_under_a_number_that_the_log_has(case: TenantCase, writer: ShardWriter) -> None:
    numbers = "SELECT pg_current_xact_id()::text::bigint + number FROM generate_series(1, 20) AS number"
    await fetch(
        case.pool,
        "INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)"
        f" SELECT number, now(), 0, 'o', '{{}}', '{{}}', '{{}}' FROM ({numbers}) AS taken (number)",
    )
    batch = [case.operation("create", "r1", {"v": 1}), case.operation("update", "r0", {"v": 1})]
    before = await case.everything()

    careful = writer_of(case.pool, careful_count=16)  # goes step by step
    for one, way in ((writer, "fast_path"), (writer, "fast_path"), (careful, "lock_tenants")):
        async with statements(case.pool) as noted:
            with pytest.raises(ShardUnavailableError, match="shards raise-numbers shard-1 --apply"):
                await one.apply(batch)
        assert way in noted[:3]
    assert await case.everything() == before
    assert case.pool.is_healthy

    await fetch(case.pool, "DELETE FROM log_batches WHERE row_count = 0")
    assert await writer.apply(batch) == [SUCCEEDED] * 2
    assert await writer.apply(batch) == [DUPLICATE] * 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("state = 'fenced'", HOLD),
        ("state = 'moved'", HOLD),
        ("state = 'destroyed'", DESTROYED),
        ("business_type = 'gym'", SUCCEEDED),
        ("business_id = 'other'", Disposition.DEAD_LETTER),
        (f"created_at = '{LATE.isoformat()}'", Disposition.DEAD_LETTER),
    ],
)
async def test_batch_goes_step_by_step_when_its_tenant_has_changed(
    case: TenantCase, writer: ShardWriter, change: str, expected: Outcome | Disposition
) -> None:
    await fetch(case.pool, f"UPDATE tenants SET {change} WHERE id = $1", TENANT_ID)
    create = case.operation("create", "r1", {"v": 1})
    async with statements(case.pool) as noted:
        (outcome,) = await writer.apply([create])

    assert noted[:4] == ["BEGIN", "fast_path", "ROLLBACK", "BEGIN"]
    assert expected in {outcome, outcome.disposition}
    rows = await fetch(case.pool, 'SELECT "businessType" FROM resources WHERE "resourceId" = $1', "r1")
    assert rows == ([{"businessType": "gym"}] if outcome == SUCCEEDED else [])
    assert (create.request_id in await case.log()) is (outcome.disposition is Disposition.APPLIED)


async def test_batch_sees_what_was_committed_while_it_waited(
    case: TenantCase, writer: ShardWriter, rival: asyncpg.Connection[Any]
) -> None:
    await rival.execute("BEGIN")
    await rival.execute("UPDATE tenants SET state = 'fenced'")
    await rival.execute("""UPDATE resources SET "resourceId" = 'r9'""")
    await rival.execute("UPDATE tenants SET state = 'active'")
    async with asyncio.TaskGroup() as tasks:
        applying = tasks.create_task(writer.apply([case.operation("update", "r9", {"v": 9})]))
        await waiters(rival)
        await rival.execute("COMMIT")

    assert applying.result() == [SUCCEEDED]
    assert await case.resources() == {("patient", "r9"): {"v": 9}}


async def test_nothing_is_applied_over_another_readers_row(case: TenantCase, writer: ShardWriter) -> None:
    claim = claim_of()
    await writer.apply([case.operation("update", "r0", {"v": 1})], claim)
    before = list(claim.fencing_tokens)
    await fetch(case.pool, "UPDATE stream_positions SET token = $1::uuid, pending_from = '99/0'", str(uuid.uuid4()))
    async with statements(case.pool) as noted:
        with pytest.raises(PositionChangedError):
            await writer.apply([case.operation("update", "r0", {"v": 2})], claim)

    assert noted == ["BEGIN", "fast_path_claimed", "ROLLBACK", "BEGIN", "update_position", "ROLLBACK"]
    assert claim.fencing_tokens == before
    assert await case.resources() == {("patient", "r0"): {"v": 1}}
    assert [row["pending_from"] for row in await fetch(case.pool, "SELECT pending_from FROM stream_positions")] == [
        "99/0"
    ]
