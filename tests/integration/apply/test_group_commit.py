from __future__ import annotations

import asyncio
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from support.postgres.databases import PoolMaker
from support.postgres.tenant_cases import STREAM, TenantCase, add_tenant, fetch, writer_of
from support.postgres.trouble import make_touchy, waiters
from support.tracing.recorded_spans import record_spans

from simplu_local.processes.loopback import poll_until
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.types import PositionClaim, StreamPosition
from simplu_worker.telemetry.spans import TracedBatch, current_batch, process_span

READERS = 8


def claims() -> list[PositionClaim]:
    return [PositionClaim(STREAM, f"shardId-{number:012}", StreamPosition("7/0")) for number in range(READERS)]


async def together(
    case: TenantCase,
    writer: ShardWriter,
    batches: Sequence[Sequence[Operation]],
    claimed: Sequence[PositionClaim | None],
) -> list[list[Outcome] | BaseException]:
    await writer.apply([case.operation("list", None)])  # the first contact is over
    async with case.pool.connection():
        waiting = [
            asyncio.create_task(writer.apply(batch, claim)) for batch, claim in zip(batches, claimed, strict=True)
        ]
        await asyncio.sleep(0.01)
    return await asyncio.gather(*waiting, return_exceptions=True)


async def transactions(case: TenantCase) -> list[int]:
    query = "SELECT count(*) FROM operations WHERE operation = 'create' GROUP BY xid ORDER BY 1"
    return [row["count"] for row in await fetch(case.pool, query)]


def creates(case: TenantCase, reader: int, count: int = 3) -> list[Operation]:
    return [case.operation("create", f"r{reader}-{number}", {"n": number}) for number in range(count)]


async def test_batches_that_wait_go_in_one_transaction(case: TenantCase) -> None:
    outcomes = await together(case, writer_of(case.pool), [creates(case, one) for one in range(READERS)], claims())

    assert outcomes == [[SUCCEEDED] * 3] * READERS
    assert await transactions(case) == [3 * READERS]
    rows = await fetch(case.pool, "SELECT stream_shard_id, pending_from FROM stream_positions ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [
        (claim.stream_shard_id, claim.position.pending_from) for claim in claims()
    ]


async def test_failing_operation_holds_its_tenant_in_all_batches(case: TenantCase) -> None:
    await add_tenant(case.pool, ("clinic", "other"))
    other = TenantCase(case.pool, ("clinic", "other"))
    await make_touchy(case.pool)
    batches = [
        creates(case, 0),
        [case.operation("create", "bad", {"raise": "P0001"})],
        creates(case, 2),
        creates(other, 3),
    ]

    first, second, third, fourth = await together(case, writer_of(case.pool), batches, [None] * 4)

    assert (first, fourth) == ([SUCCEEDED] * 3, [SUCCEEDED] * 3)
    assert isinstance(second, list)
    assert second[0].disposition is Disposition.FAILING
    assert isinstance(third, list)
    assert {one.disposition for one in third} == {Disposition.HOLD}


async def test_caller_that_is_cancelled_leaves_the_others_alone(case: TenantCase) -> None:
    writer = writer_of(case.pool)
    await writer.apply([case.operation("list", None)])
    async with case.pool.connection():
        waiting = [asyncio.create_task(writer.apply(creates(case, one))) for one in range(3)]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert outcomes[0] == outcomes[2] == [SUCCEEDED] * 3
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert await transactions(case) == [6]


async def test_transaction_is_given_up_when_all_its_callers_are(case: TenantCase, make_pool: PoolMaker) -> None:
    # The transaction waits as long as the test does: after a wait in vain it would begin anew.
    pool = await make_pool(case.pool.address, size=2, row_lock_s=60.0)
    writer = writer_of(pool)
    await writer.apply([case.operation("list", None)])
    async with pool.connection() as locking:
        await locking.execute("BEGIN; LOCK TABLE resources")
        waiting = [asyncio.create_task(writer.apply(creates(case, one))) for one in range(2)]
        await waiters(locking)
        waiting[0].cancel()
        await asyncio.sleep(0.1)
        assert (pool.counts()["idle"], waiting[1].done()) == (0, False)
        waiting[1].cancel()

        async def is_free() -> bool:
            return pool.counts() == {"open": 1, "idle": 0, "waiting": 0}

        assert await poll_until(is_free, within_s=60)
        await locking.execute("ROLLBACK")
    assert await asyncio.gather(*waiting, return_exceptions=True)
    assert await transactions(case) == []
    assert await writer.apply(creates(case, 0)) == [SUCCEEDED] * 3


async def apply(writer: ShardWriter, stream: str, operations: Sequence[Operation]) -> list[Outcome]:
    with process_span(lambda: TracedBatch("kinesis", stream, len(operations), list)) as span:
        outcomes = await writer.apply(operations)
        span.note_outcomes(outcome.disposition for outcome in outcomes)
    return outcomes


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


async def test_transaction_of_many_batches_is_linked_with_each(case: TenantCase) -> None:
    writer = writer_of(case.pool)
    with record_spans() as spans:
        await writer.apply([case.operation("list", None)])  # not within a batch: it has no span
        assert spans.ended() == []
        async with case.pool.connection():
            waiting = [asyncio.create_task(apply(writer, f"s{one}", creates(case, one, 2))) for one in range(3)]
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*waiting) == [[SUCCEEDED] * 2] * 3
        (transaction,) = spans.ended("transaction")
        first, *others = (spans.ended(f"process s{one}")[0] for one in range(3))

    assert transaction.parent is not None
    assert transaction.parent.span_id == id_of(first)
    assert (links_of(transaction), links_of(first)) == ([id_of(one) for one in others], [])
    assert [links_of(one) for one in others] == [[id_of(transaction)]] * 2
    assert (transaction.attributes or {})["db.operation.batch.size"] == 6
    assert current_batch() is None
