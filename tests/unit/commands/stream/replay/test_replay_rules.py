"""Which records `replay` takes, in which order it reads, and how it counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simplu_worker.commands.stream.replay_rules import (
    ReplayRange,
    ReplayTotals,
    became_dead_letter,
    generations,
    select,
)
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord, RecordDecoder
from simplu_worker.consumers.kinesis.stream.client import Record, StreamShard
from simplu_worker.consumers.kinesis.stream.positions import HashRange
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.vocabulary import Absence, DeadLetterReason, Failure

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DECODER = RecordDecoder("stream", "shard-0", operation_max_bytes=10_000, list_result_limit=10)


def record(number: int, business: str, *, after_s: float = 0, **members: Any) -> Record:
    whole = {
        "operation": "create",
        "businessId": business,
        "locationId": "main",
        "resourceType": "notes",
        "resourceId": "n",
        "requestId": f"r{number}",
        "timestamp": "2026-01-31T09:00:00Z",
        "data": {},
    }
    text = {name: value for name, value in (whole | members).items() if value is not None}
    return Record(str(number), "key", json.dumps(text).encode(), AT + timedelta(seconds=after_s))


def decoded(*records: Record) -> list[DecodedRecord]:
    return list(DECODER.decode(list(records)))


def operations_of(*records: Record) -> list[Operation]:
    return [one for _, _, one in decoded(*records) if isinstance(one, Operation)]


@pytest.mark.parametrize(
    ("chosen", "taken", "rejected", "is_last"),
    [
        (ReplayRange(AT), ["r1", "r2", "r4"], 2, False),
        (ReplayRange(AT, tenant_id="a-main"), ["r1", "r4"], 1, False),
        (ReplayRange(AT, AT + timedelta(seconds=2)), ["r1", "r2"], 1, True),
        (ReplayRange(AT, AT + timedelta(seconds=4)), ["r1", "r2", "r4"], 2, False),
        (ReplayRange(AT, AT + timedelta(seconds=3.5)), ["r1", "r2", "r4"], 2, False),
        (ReplayRange(AT, AT), [], 0, True),
    ],
)
def test_selection_has_the_records_of_the_range(
    chosen: ReplayRange, taken: list[str], rejected: int, *, is_last: bool
) -> None:
    records = decoded(
        record(1, "a"),
        record(2, "b", after_s=1),
        record(3, "a", after_s=1, data=None),
        record(4, "a", after_s=2),
        Record("5", "key", b"nonsense", AT + timedelta(seconds=3)),
    )
    selection = select(records, chosen)
    assert [one.request_id for one in selection.operations] == taken
    assert (len(selection.rejected), selection.is_last) == (rejected, is_last)


def test_generations_have_parents_before_their_children() -> None:
    def shard(name: str, *parents: str) -> StreamShard:
        return StreamShard(name, frozenset(parents), HashRange(0, 1), "1")

    shards = [shard("c", "a", "b"), shard("a"), shard("b", "gone"), shard("d", "c"), shard("e", "a")]
    assert [[one.stream_shard_id for one in group] for group in generations(shards)] == [["a", "b"], ["c", "e"], ["d"]]


@pytest.mark.parametrize(
    ("absence", "age_s", "expected"),
    [
        (Absence.UNREGISTERED, 361, True),
        (Absence.UNREGISTERED, 359, False),
        (Absence.NOT_HERE, 9999, False),
        (Absence.INACTIVE, 9999, False),
    ],
)
def test_operation_became_a_dead_letter_without_its_tenant(absence: Absence, age_s: float, *, expected: bool) -> None:
    arrived_at = AT - timedelta(seconds=age_s)
    assert became_dead_letter(absence, arrived_at, tenant_wait=timedelta(seconds=300), now=AT) is expected


def test_totals_count_each_decided_outcome() -> None:
    totals = ReplayTotals()
    (operation,) = operations_of(record(1, "a"))
    for _ in range(2):
        totals.count(Outcome(Disposition.APPLIED))
        totals.count(Outcome(Disposition.DUPLICATE))
        totals.count(Outcome(Disposition.DEAD_LETTER, reason=DeadLetterReason.UNKNOWN_TENANT))
    totals.count(Outcome(Disposition.APPLIED, failure=Failure.NOT_FOUND))
    totals.count(Outcome(Disposition.DEAD_LETTER))
    for digest in (memoryview(operation.digest), b"another", b"a third"):
        totals.count_logged(operation, {"digest": digest})
    totals.count_rejected(select(decoded(record(2, "a", data=None)), ReplayRange(AT)).rejected)
    assert totals.outcomes == {"succeeded": 2, "not_found": 1, "duplicate": 3, "dead_letter": 5}
    assert totals.dead_letters == {"unknown_tenant": 2, "request_id_reused": 2, "invalid_message": 2}


def test_tenant_left_once_stays_left_with_its_first_reason() -> None:
    totals = ReplayTotals()
    totals.leave(operations_of(record(1, "a"), record(2, "b")), "shard db-1 is down")
    totals.leave(operations_of(record(3, "a")), "")
    assert totals.left == {"tenant a-main": "shard db-1 is down", "tenant b-main": "shard db-1 is down"}
    assert totals.left_count == 3
    assert [totals.has_left(tenant_id) for tenant_id in ("a-main", "c-main")] == [True, False]
