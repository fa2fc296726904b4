"""JSON lines made ready for the stream: the members filled in, and the bytes that stay."""

from __future__ import annotations

import hashlib
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simplu_worker.aws.sqs_queue import FifoIds
from simplu_worker.commands.stream.input_lines import (
    InputLine,
    LineReport,
    complete_record,
    message_of,
    parse_events,
    parse_lines,
)
from simplu_worker.commands.stream.send import Fate, Preview, preview
from simplu_worker.commands.stream.show import Undecided, with_report
from simplu_worker.consumers.kinesis.leases.lease import HeldTarget, Lease, LeaseReport
from simplu_worker.consumers.kinesis.stream.aggregation import TOO_MANY_OF_RECORD
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.vocabulary import Absence, DeadLetterReason, Source

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHOLE = {
    "operation": "create",
    "businessId": "b",
    "locationId": "l",
    "resourceType": "order",
    "resourceId": "o-1",
    "data": {},
    "timestamp": "2026-01-01T00:00:00Z",
    "requestId": "r-1",
}


def text_of(*records: dict[str, Any] | bytes) -> bytes:
    return b"\n".join(record if isinstance(record, bytes) else json.dumps(record).encode() for record in records)


def read(text: bytes) -> list[InputLine]:
    numbers = itertools.count(1)
    return parse_lines(text, now=NOW, new_id=lambda: f"new-{next(numbers)}", max_bytes=10_000, list_limit=100)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in WHOLE.items() if name not in names}


def test_whole_record_is_left_as_it_is() -> None:
    record = b'{ "requestId":"r", "operation" : "delete","businessId":"b","locationId":"l","resourceType":"t", '
    record += b'"resourceId":"\\u00e9","timestamp":"2026-01-01" }'
    (line,) = read(b"  " + record + b"\r\n")
    assert (line.number, line.record, line.partition_key, line.key) == (1, record, "b-l-t", ("b-l", "r"))


@pytest.mark.parametrize("absent", [without("requestId", "timestamp"), WHOLE | {"requestId": None, "timestamp": None}])
def test_missing_request_id_and_timestamp_are_filled_in(absent: dict[str, Any]) -> None:
    (line,) = read(text_of(absent))
    assert json.loads(line.record) == {**WHOLE, "requestId": "new-1", "timestamp": "2026-03-01T12:00:00Z"}
    assert line.key == ("b-l", "new-1")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"{}", b'{"a":"1"}'),
        (b' {"b":2} \n', b'{"b":2,"a":"1"}'),
        (b'{ "a":"0" }', b'{ "a":"0" }'),
        (b'{"a":null}', b'{"a":"1"}'),
        (b'{"n": 1.10000000000000000000000001, "e": 1E400}', b'{"n":1.10000000000000000000000001,"e":1E400,"a":"1"}'),
        *[(bad, bad) for bad in (b"nonsense", b"[1]", b"\xff", b'{"a":', b"[" * 5000)],
    ],
)
def test_record_is_completed_and_no_value_changed(record: bytes, expected: bytes) -> None:
    assert complete_record(record, {"a": "1"}) == expected


@pytest.mark.parametrize(
    ("record", "reason", "key"),
    [
        (b"nonsense", "invalid_json", "line-4"),
        (b'{"businessId":"b"}', "invalid_message", "b"),
        (b'{"locationId":"l"}', "invalid_message", "l"),
        (WHOLE | {"operation": "upsert"}, "invalid_message", "b-l"),
        (WHOLE | {"data": {"x": "x" * 10_000}}, "too_large", "b-l"),
    ],
)
def test_bad_line_is_rejected_as_by_the_worker(record: dict[str, Any] | bytes, reason: str, key: str) -> None:
    good, bad = read(text_of(WHOLE, b"", b"  ", record))
    assert isinstance(good.decoded, Operation)
    assert isinstance(bad.decoded, RejectedRecord)
    assert (bad.number, bad.decoded.reason, bad.key, bad.partition_key) == (4, reason, None, key)
    assert bad.decoded.origin == Origin(source=Source.KINESIS, name="", arrived_at=NOW)


def test_partition_key_is_hashed_when_kinesis_would_not_take_it() -> None:
    longest = WHOLE | {"businessId": "b" * 128, "locationId": "l" * 121}
    long = longest | {"locationId": "l" * 128}
    kept, *hashed = [line.partition_key for line in read(text_of(longest, long, long | {"resourceType": "xx"}, long))]
    assert (kept, {len(key) for key in hashed}) == ("b" * 128 + "-" + "l" * 121 + "-order", {64})
    assert hashed[0] == hashed[2] != hashed[1]


def test_list_is_clamped_as_by_the_worker() -> None:
    (line,) = read(text_of({**without("data", "resourceId"), "operation": "list", "pagination": {"limit": 500}}))
    assert isinstance(line.decoded, Operation)
    assert line.decoded.query is not None
    assert line.decoded.query.limit == 100


def test_array_is_taken_apart_as_by_the_worker() -> None:
    text = b"[%b, 7,%b]\n[]\n[%b\n%b" % (
        json.dumps(without("requestId")).encode(),
        json.dumps(WHOLE | {"locationId": "other"}).encode(),
        json.dumps(WHOLE).encode(),
        b"[%b]" % b",".join([b"{}"] * 1001),
    )
    lines = read(text)
    assert [(one.number, one.key or getattr(one.decoded, "reason", None)) for one in lines] == [
        (1, ("b-l", "new-1")),
        (1, DeadLetterReason.INVALID_MESSAGE),
        (1, ("b-other", "r-1")),
        (2, DeadLetterReason.INVALID_MESSAGE),
        (3, DeadLetterReason.INVALID_JSON),
        (4, DeadLetterReason.TOO_LARGE),
    ]
    assert [line.partition_key for line in lines[:3]] == ["b-l-order", "line-1", "b-other-order"]
    refusal = TOO_MANY_OF_RECORD
    assert lines[5].decoded == RejectedRecord(
        DeadLetterReason.TOO_LARGE, refusal, Origin(source=Source.KINESIS, name="", arrived_at=NOW)
    )


EVENT = {"type": "CREATE", "orderId": "o-1", "data": {}, "businessId": "b", "locationId": "l", "deduplicationId": "d-1"}


def read_events(text: bytes) -> list[InputLine]:
    numbers = itertools.count(1)
    return parse_events(text, now=NOW, new_id=lambda: f"new-{next(numbers)}", rules=OrderRules(10_000, ("x", "y")))


def fifo_of(line: InputLine, run_id: str = "run") -> FifoIds:
    fifo = message_of(line, is_fifo=True, run_id=run_id).fifo
    assert fifo is not None
    return fifo


def test_events_get_an_id_and_a_group() -> None:
    absent = {name: value for name, value in EVENT.items() if name != "deduplicationId"}
    nameless = {"type": "DELETE", "orderId": "o-2", "groupId": "all", "deduplicationId": None}
    whole, numbered, third = read_events(text_of(EVENT, b"", absent, nameless))
    assert (whole.number, whole.record, whole.partition_key) == (1, json.dumps(EVENT).encode(), "b-l-o-1")
    assert (numbered.number, numbered.key) == (3, ("b-l", "new-2"))
    assert (third.partition_key, third.key) == ("all", ("x-y", "new-3"))
    assert message_of(third, is_fifo=False, run_id="run").fifo is None
    assert fifo_of(third).group_id == "all"


def test_ids_that_sqs_refuses_are_hashed() -> None:
    odd = EVENT | {"deduplicationId": "d 1", "groupId": "g" * 129}
    first, again = map(fifo_of, read_events(text_of(odd, odd)))
    assert first == again
    assert {len(first.group_id), len(first.deduplication_id)} == {64}


def test_ids_differ_by_tenant_content_and_run() -> None:
    tenants: list[dict[str, Any]] = [{"locationId": "l"}, {"locationId": "m"}, {"businessId": None, "locationId": None}]
    lines = read_events(text_of(*(EVENT | tenant for tenant in tenants), EVENT | {"data": {"n": 1}}))
    assert [fifo_of(line).group_id for line in lines] == ["b-l-o-1", "b-m-o-1", "x-y-o-1", "b-l-o-1"]
    assert len({fifo_of(line, run_id).deduplication_id for line in lines for run_id in ("1", "2")}) == 8


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"nonsense", DeadLetterReason.INVALID_JSON),
        (b"[1]", DeadLetterReason.INVALID_MESSAGE),
        (b'{"type": "PAY"}', DeadLetterReason.UNKNOWN_TYPE),
        (b"\xff", DeadLetterReason.INVALID_JSON),
    ],
)
def test_bad_event_is_rejected_as_by_the_worker(bad: bytes, reason: DeadLetterReason) -> None:
    good, rejected = read_events(text_of(EVENT, bad))
    assert isinstance(good.decoded, Operation)
    assert isinstance(rejected.decoded, RejectedRecord)
    assert rejected.decoded.reason is reason
    assert fifo_of(rejected).group_id


def test_event_without_its_own_names_is_one_of_its_order_or_of_its_line() -> None:
    rules = OrderRules(10_000, None)
    of_order = [{"type": "DELETE", "orderId": "o", "groupId": group} for group in ("", 5)]
    nameless: list[dict[str, Any]] = [{"type": "PAY", "orderId": "o"}, {"type": "DELETE"}, *of_order]
    lines = parse_events(text_of(*nameless), now=NOW, new_id=lambda: "new", rules=rules)
    assert [line.partition_key for line in lines] == ["o", "line-2", "o", "o"]
    origin = Origin(source=Source.SQS, name="", arrived_at=NOW)
    assert all(isinstance(line.decoded, RejectedRecord) and line.decoded.origin == origin for line in lines)
    message = message_of(lines[0], is_fifo=True, run_id="run")
    own_id = hashlib.sha256(b"run\0" + lines[0].record).hexdigest()
    assert (message.body, message.fifo) == (lines[0].record.decode(), FifoIds("o", own_id))


def test_report_names_the_tenant_and_the_resource() -> None:
    report = LineReport(line=1, business_id="b", location_id="l", resource_type="order", resource_id="o")
    assert (report.tenant, report.resource) == ("b l", "order o")
    assert (LineReport(line=1, location_id="l").tenant, LineReport(line=1).resource) == ("l", "")


VALID = (
    b'{"operation": "create", "businessId": "b", "locationId": "l", "resourceType": "patient", "resourceId": "p1", '
    b'"data": {"secret": 1}, "requestId": "r1", "timestamp": "2026-01-01T00:00:00Z"}'
)
OF_OPERATION = {
    "operation": "create",
    "business_id": "b",
    "location_id": "l",
    "resource_type": "patient",
    "resource_id": "p1",
    "request_id": "r1",
}


def lines_of(text: bytes) -> list[InputLine]:
    return parse_lines(text, now=datetime(2026, 1, 1, tzinfo=UTC), new_id=str, max_bytes=10_000, list_limit=10)


FINDING = Finding("#/required", 'the member "name"')
REFUSED = {"reason": "invalid_data", "error": '#/required: expected the member "name"'}


@pytest.mark.parametrize(
    ("homes", "logged_id", "refusals", "expected"),
    [
        ({}, "", {}, {"fate": Fate.VALID}),
        ({"b-l": "shard-1"}, "", {}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
        ({"b-l": Absence.UNREGISTERED}, "", {}, {"fate": Fate.HELD, "reason": "unregistered"}),
        ({"b-l": "shard-1"}, "r1", {1: FINDING}, {"fate": Fate.DUPLICATE, "shard_id": "shard-2"}),
        ({"b-l": "shard-1"}, "r2", {}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
        ({"b-l": "shard-1"}, "", {1: FINDING}, {"fate": Fate.FAILED, "shard_id": "shard-1"} | REFUSED),
    ],
)
def test_valid_record_has_the_fate_of_its_tenant(
    homes: dict[str, Any], logged_id: str, refusals: dict[int, Finding], expected: dict[str, Any]
) -> None:
    (line,) = lines_of(VALID)
    logged = {("b-l", logged_id): {"shard_id": "shard-2"}}
    found = preview(line, homes, logged, refusals)
    assert found == Preview(line=1, **OF_OPERATION | expected)


def test_record_that_is_no_operation_is_a_dead_letter() -> None:
    found = [preview(line, {}, {}, {}) for line in lines_of(b'{"operation": "upsert"}\n{')]
    assert [(one.line, one.fate, one.reason) for one in found] == [
        (1, Fate.DEAD_LETTER, "invalid_message"),
        (2, Fate.DEAD_LETTER, "invalid_json"),
    ]
    assert all(one.error for one in found)


LATER = datetime(2026, 11, 1, 12, tzinfo=UTC)


def lease(*held: HeldTarget) -> Lease:
    return Lease("shardId-0", TRIM_HORIZON, owner="me", report=LeaseReport("me", held=held))


@pytest.mark.parametrize(
    ("leases", "shard_id", "expected"),
    [
        ([lease(HeldTarget("tenant b-l", "paused", 60.0))], "s", ("paused", "tenant b-l", 60)),
        ([lease(HeldTarget("shard s", "shard_unavailable", 5.0))], "s", ("shard_unavailable", "shard s", 5)),
        (
            [lease(HeldTarget("tenant b-l", "failing", 5.0)), lease(HeldTarget("shard s", "gap", 9.0))],
            "s",
            ("gap", "shard s", 9),
        ),
    ],
)
def test_report_has_the_reason_and_the_time(leases: list[Lease], shard_id: str, expected: tuple[str, str, int]) -> None:
    reason, target, age_s = expected
    found = with_report(Undecided("other_replica"), leases, "b-l", shard_id, now=LATER)
    assert found == Undecided(reason, since=LATER - timedelta(seconds=age_s), target=target)
