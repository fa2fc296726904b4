from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from support.postgres.tenant_cases import TenantCase, writer_of
from support.tracing.recorded_spans import RecordedSpans, record_spans

from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.telemetry.spans import TracedBatch, current_batch, process_span


@pytest.fixture
def spans() -> Iterable[RecordedSpans]:
    with record_spans() as recorded:
        yield recorded


async def apply(writer: ShardWriter, stream: str, operations: Sequence[Operation]) -> list[Outcome]:
    with process_span(lambda: TracedBatch("kinesis", stream, len(operations), list)) as span:
        outcomes = await writer.apply(operations)
        span.note_outcomes(outcome.disposition for outcome in outcomes)
    return outcomes


def batch_of(case: TenantCase, name: str, count: int = 2) -> list[Operation]:
    return [case.operation("create", f"{name}-{number}", {"n": number}) for number in range(count)]


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


async def test_transaction_of_many_batches_is_linked_with_each(case: TenantCase, spans: RecordedSpans) -> None:
    writer = writer_of(case.pool)
    await writer.apply([case.operation("list", None)])  # not within a batch: it has no span
    assert spans.ended() == []
    async with case.pool.connection():
        waiting = [asyncio.create_task(apply(writer, name, batch_of(case, name))) for name in ("a", "b", "c")]
        await asyncio.sleep(0.01)
    assert await asyncio.gather(*waiting) == [[SUCCEEDED] * 2] * 3

    (transaction,) = spans.ended("transaction")
    first, *others = (spans.ended(f"process {name}")[0] for name in ("a", "b", "c"))
    assert transaction.parent is not None
    assert transaction.parent.span_id == id_of(first)
    assert (links_of(transaction), links_of(first)) == ([id_of(one) for one in others], [])
    assert [links_of(one) for one in others] == [[id_of(transaction)]] * 2
    assert (transaction.attributes or {})["db.operation.batch.size"] == 6
    assert current_batch() is None
