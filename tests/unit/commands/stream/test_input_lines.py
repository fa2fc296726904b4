"""JSON lines made ready for the stream: the members filled in, and the bytes that stay."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from simplu_worker.aws.sqs_queue import FifoIds
from simplu_worker.commands.stream.input_lines import InputLine, complete_record, message_of, parse_events, parse_lines
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

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
    """Return JSON lines."""
    return b"\n".join(record if isinstance(record, bytes) else json.dumps(record).encode() for record in records)


def read(text: bytes, *, max_bytes: int = 10_000) -> list[InputLine]:
    """Read *text* with ids that count up."""
    numbers = itertools.count(1)
    return parse_lines(text, now=NOW, new_id=lambda: f"new-{next(numbers)}", max_bytes=max_bytes, list_limit=100)


def without(*names: str) -> dict[str, Any]:
    """Return a whole record without some members."""
    return {name: value for name, value in WHOLE.items() if name not in names}


def test_lines_of_leaves_a_whole_record_as_it_is() -> None:
    record = b'{ "requestId":"r", "operation" : "delete","businessId":"b","locationId":"l","resourceType":"t", '
    record += b'"resourceId":"\\u00e9","timestamp":"2026-01-01" }'
    (line,) = read(b"  " + record + b"\r\n")
    assert (line.number, line.record, line.partition_key, line.key) == (1, record, "b-l-t", ("b-l", "r"))


@pytest.mark.parametrize("absent", [without("requestId", "timestamp"), WHOLE | {"requestId": None, "timestamp": None}])
def test_lines_of_fills_in_request_id_and_timestamp_when_they_are_missing(absent: dict[str, Any]) -> None:
    (line,) = read(text_of(absent))
    expected = {**WHOLE, "requestId": "new-1", "timestamp": "2026-03-01T12:00:00Z"}
    assert json.loads(line.record) == expected
    assert line.key == ("b-l", "new-1")


def test_completed_keeps_every_digit_of_the_data() -> None:
    data = b'{"n": 1.10000000000000000000000001, "e": 1E400, "s": "\\ud800"}'
    record = b'{"data":' + data + b"}"
    assert complete_record(record, {"requestId": "x"}) == b'{"data":' + data + b',"requestId":"x"}'


@pytest.mark.parametrize("record", [b"nonsense", b"[1]", b"\xff", b'{"a":', b"[" * 5000])
def test_completed_leaves_what_is_no_object(record: bytes) -> None:
    assert complete_record(record, {"requestId": "x"}) == record


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"nonsense", "invalid_json"),
        (without("businessId"), "invalid_message"),
        (WHOLE | {"operation": "upsert"}, "invalid_message"),
        (WHOLE | {"requestId": "simplu:1"}, "invalid_message"),
        (WHOLE | {"data": {"x": "x" * 10_000}}, "too_large"),
    ],
)
def test_lines_of_refuses_what_the_worker_refuses(record: dict[str, Any] | bytes, reason: str) -> None:
    good, bad = read(text_of(WHOLE, b"", b"  ", record))
    assert isinstance(good.decoded, Operation)
    assert isinstance(bad.decoded, RejectedRecord)
    assert (bad.number, bad.decoded.reason, bad.key) == (4, reason, None)


def test_lines_of_refuses_a_request_id_of_another_operation() -> None:
    again, other, elsewhere = WHOLE, WHOLE | {"resourceId": "o-2"}, WHOLE | {"resourceId": "o-2", "locationId": "m"}
    decoded = [line.decoded for line in read(text_of(WHOLE, again, other, elsewhere))]
    reasons = [one.reason if isinstance(one, RejectedRecord) else None for one in decoded]
    assert reasons == [None, None, "request_id_reused", None]
    assert decoded[2] == RejectedRecord(
        reason=DeadLetterReason.REQUEST_ID_REUSED,
        error="requestId: used by another operation in an earlier line; give each its own",
        origin=Origin(source=Source.KINESIS, name="", arrived_at=NOW),
        business_id="b",
        location_id="l",
        request_id="r-1",
        resource_id="o-2",
    )


def test_partition_key_is_hashed_when_kinesis_would_not_take_it() -> None:
    long = WHOLE | {"businessId": "b" * 128, "locationId": "l" * 128}
    keys = [line.partition_key for line in read(text_of(long, long | {"resourceType": "x"}, long))]
    assert [len(key) for key in keys] == [64, 64, 64]
    assert keys[0] == keys[2] != keys[1]


def test_partition_key_is_not_hashed_while_kinesis_takes_it() -> None:
    longest = WHOLE | {"businessId": "b" * 128, "locationId": "l" * 121}
    (line,) = read(text_of(longest))
    assert (len(line.partition_key), line.partition_key[:1]) == (256, "b")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"nonsense", "line-2"),
        (b'{"businessId":"b"}', "b-2"),
        (b'{"locationId":"l"}', "line-l"),
        (b'{"businessId":"b","locationId":"l"}', "b-l"),
    ],
)
def test_rejected_line_has_a_key_of_its_ids_else_of_its_number(record: bytes, expected: str) -> None:
    (line,) = read(b"\n" + record)
    assert line.partition_key == expected
    assert isinstance(line.decoded, RejectedRecord)
    assert line.decoded.origin == Origin(source=Source.KINESIS, name="", arrived_at=NOW)


@pytest.mark.parametrize(
    ("record", "expected"),
    [(b"{}", b'{"a":"1"}'), (b' {"b":2} \n', b' {"b":2,"a":"1"}'), (b'{"a":null}', b'{"a":"1"}')],
)
def test_completed_appends_what_is_missing(record: bytes, expected: bytes) -> None:
    assert complete_record(record, {"a": "1"}) == expected


def test_lines_of_clamps_a_list_as_the_worker_does() -> None:
    record = {**without("data", "resourceId"), "operation": "list", "pagination": {"limit": 500}}
    (line,) = read(text_of(record))
    assert isinstance(line.decoded, Operation)
    assert line.decoded.query is not None
    assert line.decoded.query.limit == 100


EVENT = {"type": "CREATE", "orderId": "o-1", "data": {}, "businessId": "b", "locationId": "l", "deduplicationId": "d-1"}


def read_events(text: bytes) -> list[InputLine]:
    """Read *text* as order events, with ids that count up."""
    numbers = itertools.count(1)
    return parse_events(text, now=NOW, new_id=lambda: f"new-{next(numbers)}", rules=OrderRules(10_000, ("x", "y")))


def fifo_of(line: InputLine, run_id: str = "run") -> FifoIds:
    """Return what the message of *line* has in a FIFO queue."""
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


def test_events_of_two_tenants_share_neither_group_nor_id() -> None:
    tenants: list[dict[str, Any]] = [{"locationId": "l"}, {"locationId": "m"}, {"businessId": None, "locationId": None}]
    ids = [fifo_of(line) for line in read_events(text_of(*(EVENT | tenant for tenant in tenants)))]
    assert [one.group_id for one in ids] == ["b-l-o-1", "b-m-o-1", "x-y-o-1"]
    assert len({one.deduplication_id for one in ids}) == 3


def test_event_that_is_sent_again_by_a_later_run_has_another_id() -> None:
    first, corrected = read_events(text_of(EVENT, EVENT | {"data": {"n": 1}}))
    ids = {fifo_of(line, run_id).deduplication_id for line in (first, corrected) for run_id in ("1", "2")}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"nonsense", DeadLetterReason.INVALID_JSON),
        (b"[1]", DeadLetterReason.INVALID_MESSAGE),
        (b'{"type": "PAY"}', DeadLetterReason.UNKNOWN_TYPE),
        (b"\xff", DeadLetterReason.INVALID_JSON),
        (json.dumps(EVENT | {"data": {"n": 1}}).encode(), DeadLetterReason.REQUEST_ID_REUSED),
    ],
)
def test_bad_event_is_rejected_as_by_the_worker(bad: bytes, reason: DeadLetterReason) -> None:
    good, rejected = read_events(text_of(EVENT, bad))
    assert isinstance(good.decoded, Operation)
    assert isinstance(rejected.decoded, RejectedRecord)
    assert rejected.decoded.reason is reason
    assert fifo_of(rejected).group_id


def test_line_that_is_an_array_is_taken_apart_as_by_the_worker() -> None:
    text = b"[%b, 7,%b]\n[]\n[%b\n%b" % (
        json.dumps(without("requestId")).encode(),
        json.dumps(WHOLE | {"locationId": "other"}).encode(),
        json.dumps(WHOLE).encode(),
        b"[%b]" % b",".join([b"{}"] * 1001),
    )
    lines = read(text)
    invalid, too_large = DeadLetterReason.INVALID_MESSAGE, DeadLetterReason.TOO_LARGE
    found = [(one.number, one.key or getattr(one.decoded, "reason", None)) for one in lines]
    broken = DeadLetterReason.INVALID_JSON
    assert found == [
        (1, ("b-l", "new-1")),
        (1, invalid),
        (1, ("b-other", "r-1")),
        (2, invalid),
        (3, broken),
        (4, too_large),
    ]
    assert [line.partition_key for line in lines[:3]] == ["b-l-order", "line-1", "b-other-order"]
