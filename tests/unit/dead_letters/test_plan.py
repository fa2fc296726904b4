from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from support.aws.kpl_aggregates import aggregate

from simplu_worker.aws.sending import PutRecord
from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.dead_letters import plan
from simplu_worker.dead_letters.letter import ParsedDeadLetter, WholeRecord
from simplu_worker.dead_letters.plan import (
    ALL_LETTERS,
    EditRequest,
    LeftReason,
    LetterLeftError,
    LettersRequest,
    NotEditableError,
    ReplayRules,
    edit_record,
    order_group,
    plan_resend,
    sort_key,
    visibility_timeout_s,
)
from simplu_worker.operations.dead_letter import BadParts, DeadLetter
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin, PartNumber, derived_request_id
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

FAILED_AT = datetime(2026, 1, 2, tzinfo=UTC)
STREAM = Origin(
    source=Source.KINESIS,
    name="operations",
    arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    stream_shard_id="shardId-0",
    sequence_number="100",
    partition_key="b-l-patient",
)
ORDERS = Origin(
    source=Source.SQS,
    name="orders.fifo",
    arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    sequence_number="200",
    message_id="m-1",
    group_id="g-1",
)
CONTROL = msgspec.structs.replace(ORDERS, name="control", group_id=None, sequence_number=None)
RULES = ReplayRules(
    stream="operations",
    queues={"orders.fifo": True, "control": False},
    operation_max_bytes=10_000,
    list_result_limit=1000,
    key_rule=PartitionKeyRule.RESOURCE_TYPE,
)
FORCED = msgspec.structs.replace(RULES, force=True)
VALID: dict[str, Any] = {
    "operation": "create",
    "businessId": "b",
    "locationId": "l",
    "resourceType": "patient",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"n": 1},
}


def letter(
    record: bytes | dict[str, Any] = VALID,
    *,
    origin: Origin = STREAM,
    reason: DeadLetterReason = DeadLetterReason.UNKNOWN_TENANT,
    **members: Any,
) -> DeadLetter:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    whole: dict[str, Any] = {"error": "", "failed_at": FAILED_AT, "attempts": 1} | members
    return DeadLetter(reason=reason, origin=origin, record=data, **whole)


def records_for(one: DeadLetter, rules: ReplayRules = RULES) -> list[PutRecord]:
    resend = plan_resend(one, rules)
    assert not isinstance(resend, OutgoingMessage)
    return list(resend)


def message_for(one: DeadLetter, rules: ReplayRules = RULES) -> OutgoingMessage:
    message = plan_resend(one, rules)
    assert isinstance(message, OutgoingMessage)
    return message


def fifo_of(message: OutgoingMessage) -> FifoIds:
    assert message.fifo is not None
    return message.fifo


def left_for(one: DeadLetter, rules: ReplayRules = RULES) -> LeftReason:
    with pytest.raises(LetterLeftError) as left:
        plan_resend(one, rules)
    assert "None" not in left.value.detail
    return left.value.why


def may_be_sent(one: DeadLetter) -> bool:
    try:
        return bool(plan_resend(one, RULES))
    except LetterLeftError:
        return False


# Filters and order


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (LettersRequest(), True),
        (LettersRequest(reasons=frozenset({DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.TOO_LARGE})), True),
        (LettersRequest(reasons=frozenset({DeadLetterReason.TOO_LARGE})), False),
        (LettersRequest(source=Source.KINESIS), True),
        (LettersRequest(source=Source.SQS), False),
        (LettersRequest(business_id="b", location_id="l"), True),
        (LettersRequest(business_id="b", location_id="other"), False),
        (LettersRequest(since=FAILED_AT), True),
        (LettersRequest(since=FAILED_AT + timedelta(microseconds=1)), False),
        (LettersRequest(until=FAILED_AT), False),
        (LettersRequest(until=FAILED_AT + timedelta(microseconds=1)), True),
        (LettersRequest(since=FAILED_AT, business_id="b", location_id="other"), False),
        (LettersRequest(message_ids=frozenset({"m-1", "m-2"})), True),
        (LettersRequest(message_ids=frozenset({"m-2"})), False),
        (LettersRequest(message_ids=frozenset({"m-1"}), source=Source.SQS), False),
    ],
)
def test_filters_mean_what_all_of_them_mean(filters: LettersRequest, expected: bool) -> None:  # noqa: FBT001
    assert filters.match(letter(), "m-1") is expected


def test_request_is_for_all_only_without_any_criterion() -> None:
    criteria: list[dict[str, Any]] = [
        *({"reasons": frozenset({DeadLetterReason.TOO_LARGE})}, {"source": Source.SQS}, {"since": FAILED_AT}),
        *({"until": FAILED_AT}, {"message_ids": frozenset({"m-1"})}, {"business_id": "b", "location_id": "l"}),
    ]
    assert [LettersRequest(**one).is_all for one in ({"apply": True}, *criteria)] == [True] + [False] * len(criteria)


@pytest.mark.parametrize(
    ("message_ids", "expected"),
    [((), [False, False, False]), (("m-1",), [False, True, True]), (("m-1", "m-2"), [False, False, True])],
)
def test_filter_is_complete_when_each_named_message_is_found(
    message_ids: tuple[str, ...], expected: list[bool]
) -> None:
    filters = LettersRequest(message_ids=frozenset(message_ids))
    assert [filters.is_complete(count) for count in range(3)] == expected


def test_request_is_logged_without_the_message_ids() -> None:
    reasons = frozenset({DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.TOO_LARGE})
    about = (reasons, Source.SQS, "b", "l", FAILED_AT, FAILED_AT, frozenset({"m-1", "m-2"}))
    facts = LettersRequest(*about, limit=ALL_LETTERS, force=True, apply=True).facts()
    assert {name: value for name, value in facts.items() if value} == {
        "businessId": "b",
        "locationId": "l",
        "since": FAILED_AT,
        "until": FAILED_AT,
        "reasons": ["too_large", "unknown_tenant"],
        "source": "sqs",
        "messageIds": 2,
        "force": True,
    }
    assert {name: value for name, value in LettersRequest().facts().items() if value} == {"limit": 1000}


def test_correction_is_logged_without_its_record() -> None:
    assert EditRequest("m-1", "SECRET", "new").facts() == {"messageId": "m-1", "requestId": "new"}


def test_request_with_half_a_tenant_is_refused() -> None:
    with pytest.raises(ValueError, match="businessId and locationId together"):
        LettersRequest(business_id="b")


def test_letters_are_ordered_by_source_and_place() -> None:
    places = [(None, 0), ("9", 0), ("0010", 0), ("10", 1), ("10", 2), ("200", 0), ("1000", 0)]
    in_stream = [
        msgspec.structs.replace(STREAM, sequence_number=number, sub_sequence_number=sub) for number, sub in places
    ]
    in_queue = [
        msgspec.structs.replace(CONTROL, arrived_at=FAILED_AT + timedelta(seconds=n), message_id=str(n))
        for n in range(3)
    ]
    expected = [letter(origin=origin) for origin in [*in_stream, *in_queue]]
    mixed = [*expected[1::2], *expected[::2]]
    assert sorted(mixed, key=sort_key) == expected


# To the stream


def test_record_with_a_request_id_is_sent_as_it_is() -> None:
    data = json.dumps(VALID | {"requestId": "mine"}, indent=3).encode()
    assert list(records_for(letter(data))) == [PutRecord(data, "b-l-patient")]


def test_record_without_one_is_sent_with_the_id_it_had() -> None:
    one = letter()
    (sent,) = records_for(one)
    elsewhere = msgspec.structs.replace(STREAM, sequence_number="900")
    before, after = (
        decode_operation(data, origin, max_bytes=10_000, list_limit=1000)
        for data, origin in ((one.record, STREAM), (sent.data, elsewhere))
    )
    assert isinstance(before, Operation)
    assert isinstance(after, Operation)
    assert (after.request_id, after.resource_id, after.digest) == (before.request_id, before.resource_id, before.digest)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{", DeadLetterReason.INVALID_JSON),
        ({"operation": "create"}, DeadLetterReason.INVALID_MESSAGE),
        (VALID | {"requestId": "r", "data": {"a": "x" * 10_000}}, DeadLetterReason.TOO_LARGE),
        (VALID | {"data": {"a": "x" * 9_800}}, DeadLetterReason.UNKNOWN_TENANT),  # no room for its request id
        (VALID | {"requestId": "r"}, DeadLetterReason.REQUEST_ID_REUSED),
        (b"[%b]" % b",".join([json.dumps(VALID).encode()] * 1001), DeadLetterReason.TOO_LARGE),  # of too many
    ],
)
def test_record_that_would_come_back_is_left_unless_forced(
    record: bytes | dict[str, Any], reason: DeadLetterReason
) -> None:
    one = letter(record, reason=reason)
    assert left_for(one) is LeftReason.WOULD_COME_BACK
    assert [sent.data for sent in records_for(one, FORCED)] == [one.record]


def test_aggregate_is_taken_apart_in_order() -> None:
    parts = [json.dumps(VALID | {"requestId": f"r{n}"}).encode() for n in range(3)] + [b"bad"]
    whole = aggregate([("k1", None, parts[0]), ("k2", None, parts[1]), ("k1", None, parts[2]), ("k2", None, parts[3])])
    sent = records_for(letter(whole, reason=DeadLetterReason.INVALID_MESSAGE))
    assert [(one.partition_key, one.data) for one in sent] == list(zip(["k1", "k2", "k1", "k2"], parts, strict=True))


def test_aggregate_without_request_ids_is_left_unless_forced() -> None:
    parts = [json.dumps(members).encode() for members in (VALID, VALID, VALID | {"requestId": "own"})]
    one = letter(aggregate([("k1", None, part) for part in parts]), reason=DeadLetterReason.INVALID_MESSAGE)
    assert left_for(one) is LeftReason.WITHOUT_REQUEST_IDS
    ids = [json.loads(sent.data)["requestId"] for sent in records_for(one, FORCED)]
    derived = [derived_request_id(msgspec.structs.replace(STREAM, sub_sequence_number=n)) for n in range(2)]
    assert ids == [*derived, "own"]


def test_letter_of_one_part_is_sent_as_a_record_of_its_own() -> None:
    place = msgspec.structs.replace(STREAM, part_index=3, parts_behind=1)
    (sent,) = records_for(msgspec.structs.replace(letter(VALID), origin=place))
    decoded = decode_operation(sent.data, STREAM, 10_000, 1000)
    assert isinstance(decoded, Operation)
    assert decoded.request_id == derived_request_id(place)


def test_letters_of_parts_are_sent_in_their_order() -> None:
    letters = [
        msgspec.structs.replace(letter(VALID), origin=msgspec.structs.replace(STREAM, part_index=index))
        for index in (10, 9, None, 0, 2)
    ]
    in_order = sorted(letters, key=sort_key)
    assert [one.origin.part_index for one in in_order] == [None, 0, 2, 9, 10]


def test_array_that_the_worker_could_not_unpack_is_sent_in_parts() -> None:
    parts = [json.dumps(VALID | {"requestId": f"r{n}"}).encode() for n in range(3)]
    array = b"[%b]" % b",".join(parts)
    for whole, key in ((array, "b-l-patient"), (aggregate([("key", None, array)]), "key")):
        sent = records_for(letter(whole, reason=DeadLetterReason.INTERNAL_ERROR))
        assert sent == [PutRecord(part, key) for part in parts]


BAD_PARTS = [("k1", VALID), ("k2", VALID | {"requestId": "own"}), ("k1", VALID)]


def letter_of_parts(*more: tuple[str, bytes], numbers: tuple[PartNumber, ...] | None = (3, 8, 9)) -> DeadLetter:
    packed = [*((key, json.dumps(members).encode()) for key, members in BAD_PARTS), *more]
    parts = BadParts(100, len(packed), {"invalid_message": len(packed)}, numbers)
    return letter(aggregate([(key, None, data) for key, data in packed]), parts=parts)


def test_bad_parts_are_sent_with_the_ids_of_their_positions() -> None:
    records = records_for(letter_of_parts())
    assert [record.partition_key for record in records] == ["k1", "k2", "k1"]
    decoded = [decode_operation(record.data, STREAM, 10_000, 1000) for record in records]
    expected = [derived_request_id(msgspec.structs.replace(STREAM, sub_sequence_number=number)) for number in (3, 9)]
    assert [isinstance(one, Operation) and one.request_id for one in decoded] == [expected[0], "own", expected[1]]


def test_letter_of_bad_parts_is_found_by_the_reason_of_each() -> None:
    parts = BadParts(9, 2, {"unknown_tenant": 1, "too_large": 1}, (1, 2))
    one = letter(reason=DeadLetterReason.UNKNOWN_TENANT, parts=parts)
    found = {reason for reason in DeadLetterReason if LettersRequest(reasons=frozenset({reason})).match(one, "m")}
    assert found == {DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.TOO_LARGE}


def test_bad_parts_are_left_together_unless_forced() -> None:
    one = letter_of_parts(("k3", b"{"), numbers=(3, 8, 9, 10))
    assert left_for(one) is LeftReason.WOULD_COME_BACK
    with pytest.raises(LetterLeftError, match=r"^1 of 4 bad parts: t"):
        plan_resend(one, RULES)
    records = records_for(one, FORCED)
    assert [len(records), records[3]] == [4, PutRecord(b"{", "k3")]


def test_bad_parts_without_numbers_or_an_aggregate_are_left() -> None:
    assert left_for(letter_of_parts(numbers=None)) is LeftReason.WITHOUT_REQUEST_IDS
    broken = msgspec.structs.replace(letter_of_parts(), record=b"{}")
    assert left_for(broken) is LeftReason.NOT_A_LETTER
    assert left_for(broken, FORCED) is LeftReason.NOT_A_LETTER
    fewer = msgspec.structs.replace(letter_of_parts(), parts=BadParts(100, 2, {}, (3, 8)))
    assert left_for(fewer) is LeftReason.NOT_A_LETTER


def test_bad_parts_with_ids_of_their_own_need_no_numbers() -> None:
    data = json.dumps(VALID | {"requestId": "own"}).encode()
    one = letter(aggregate([("k", None, data)]), parts=BadParts(100, 1, {}, None))
    assert list(records_for(one)) == [PutRecord(data, "k")]


@pytest.mark.parametrize(("most", "is_left"), [(2, True), (3, False)])
def test_aggregate_with_too_many_parts_is_left(monkeypatch: pytest.MonkeyPatch, most: int, *, is_left: bool) -> None:
    monkeypatch.setattr(plan, "PARTS_MAX", most)
    one = letter(aggregate([("k", None, json.dumps(VALID | {"requestId": "own"}).encode())] * 3))
    assert may_be_sent(one) is not is_left
    assert len(records_for(one, FORCED)) == 3


@pytest.mark.parametrize("name", ["another", "orders.fifo"])
def test_letter_of_a_source_that_is_not_configured_is_left(name: str) -> None:
    assert left_for(letter(origin=msgspec.structs.replace(STREAM, name=name)), FORCED) is (
        LeftReason.SOURCE_NOT_CONFIGURED
    )
    unknown = letter(origin=msgspec.structs.replace(ORDERS, name="operations"))
    assert left_for(unknown, FORCED) is LeftReason.SOURCE_NOT_CONFIGURED


# To a queue

EVENT: dict[str, Any] = {"type": "CREATE", "orderId": "o-1", "data": {"n": 1}, "businessId": "b", "locationId": "l"}
GIVEN_UP = DeadLetterReason.RETRIES_EXHAUSTED
FIRST_SENT_AT = ORDERS.arrived_at.isoformat()


def test_message_is_sent_as_it_was() -> None:
    attributes = {"MessageType": "SHARD_CREATION"}
    one = letter(b'{"a": 1}', origin=CONTROL, reason=GIVEN_UP, message_attributes=attributes, deduplication_id="d-1")
    message = message_for(one)
    assert (message.body, message.attributes) == ('{"a": 1}', attributes)
    event = EVENT | {"deduplicationId": "d-1", "firstSentAt": "2025-12-31T00:00:00Z"}  # it was a replay itself
    fifo = letter(event, origin=ORDERS, reason=GIVEN_UP, deduplication_id="d-1")
    message = message_for(fifo)
    assert message.body.encode() == fifo.record
    assert fifo_of(message).group_id == "g-1"
    assert fifo_of(message).deduplication_id != "d-1"


def test_message_has_the_same_new_id_whenever_it_is_sent_again() -> None:
    first, again, other = (
        fifo_of(message_for(letter(EVENT, origin=origin, reason=GIVEN_UP, failed_at=failed_at)))
        for origin, failed_at in (
            (ORDERS, FAILED_AT),
            (ORDERS, FAILED_AT + timedelta(days=1)),
            (msgspec.structs.replace(ORDERS, message_id="m-2"), FAILED_AT),
        )
    )
    assert first == again
    assert first.deduplication_id != other.deduplication_id


@pytest.mark.parametrize(
    ("members", "effective", "expected"),
    [
        ({}, "d-1", "d-1"),
        ({"deduplicationId": None}, "d-1", "d-1"),
        ({"deduplicationId": "own"}, "own", "own"),
        ({"deduplicationId": "own", "data": {"lone": "\ud800"}}, "own", "own"),
        ({}, None, "m-1"),
    ],
)
def test_order_event_is_sent_with_its_request_id(members: dict[str, Any], effective: str | None, expected: str) -> None:
    message = message_for(letter(EVENT | members, origin=ORDERS, reason=GIVEN_UP, request_id=effective))
    body = json.loads(message.body)
    assert (body.get("deduplicationId"), body["firstSentAt"]) == (expected, FIRST_SENT_AT)
    assert {name: body[name] for name in EVENT} == {**EVENT, "data": body["data"]}


@pytest.mark.parametrize(
    "sent",
    [None, "", "yesterday", 7, [], "1999-12-31T00:00:00Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:00", {"a": None}],
)
def test_order_event_without_a_valid_time_is_sent_with_its_own(sent: object) -> None:
    one = letter(EVENT | {"firstSentAt": sent, "deduplicationId": "d-1"}, origin=ORDERS, reason=GIVEN_UP)
    message = message_for(one)
    later = msgspec.structs.replace(ORDERS, message_id="m-2", arrived_at=ORDERS.arrived_at + timedelta(days=30))
    first, replayed = (
        decode_order(body, {}, origin, OrderRules(10_000), deduplication_id=None)
        for body, origin in ((one.record.decode(), ORDERS), (message.body, later))
    )
    assert isinstance(first, Operation)
    assert isinstance(replayed, Operation)
    assert (replayed.requested_at, replayed.request_id, replayed.digest) == (FIRST_SENT_AT, "d-1", first.digest)


def test_order_event_without_a_tenant_keeps_the_one_that_it_had() -> None:
    event = {name: value for name, value in EVENT.items() if name not in {"businessId", "locationId"}}
    rules = msgspec.structs.replace(RULES, order_tenant=("other", "place"))
    default = ("other", "place")
    for had, expected in (
        (("b", "l"), ("b", "l")),
        ((None, None), default),
        (("b", None), default),
        ((None, "l"), default),
    ):
        ids = dict(zip(("business_id", "location_id"), had, strict=True))
        one = letter(event, origin=ORDERS, reason=GIVEN_UP, request_id="d-1", **ids)
        message = message_for(one, rules=rules)
        body = json.loads(message.body)
        assert (body["businessId"], body["locationId"], body["deduplicationId"]) == (*expected, "d-1")


def test_order_event_from_sns_is_sent_out_of_its_envelope() -> None:
    found = {"BusinessId": {"Type": "String", "Value": "b"}, "LocationId": {"Type": "String", "Value": "outer"}}
    event = {name: value for name, value in EVENT.items() if name not in {"businessId", "locationId"}}
    envelope = {"Type": "Notification", "Message": json.dumps(event), "MessageAttributes": found}
    one = letter(envelope, origin=ORDERS, reason=GIVEN_UP, request_id="d-1", message_attributes={"LocationId": "inner"})
    message = message_for(one)
    assert json.loads(message.body) == event | {"deduplicationId": "d-1", "firstSentAt": FIRST_SENT_AT}
    assert message.attributes == {"BusinessId": "b", "LocationId": "inner"}


@pytest.mark.parametrize("body", [b"[1]", b"nonsense", b'{"Type":"Notification","Message":7,"deduplicationId":"d"}'])
def test_message_that_is_no_event_is_sent_as_it_is_when_forced(body: bytes) -> None:
    one = letter(body, origin=ORDERS, reason=DeadLetterReason.INVALID_JSON, request_id="d-1")
    assert left_for(one) is LeftReason.WOULD_COME_BACK
    message = message_for(one, FORCED)
    assert message.body.encode() == body


@pytest.mark.parametrize("reason", DeadLetterReason)
def test_message_is_left_when_its_reason_lasts(reason: DeadLetterReason) -> None:
    for origin, sent in (
        (CONTROL, {"retries_exhausted", "unknown_tenant", "internal_error"}),
        (ORDERS, set(DeadLetterReason) - {DeadLetterReason.REQUEST_ID_REUSED}),
    ):
        one = letter(EVENT, origin=origin, reason=reason)
        assert may_be_sent(one) == (reason in sent)
        assert message_for(one, FORCED).body


def test_control_message_goes_to_its_queue() -> None:
    one = letter(b"{}", origin=CONTROL, reason=DeadLetterReason.INVALID_MESSAGE)
    assert left_for(one) is LeftReason.WOULD_COME_BACK
    assert fifo_of(message_for(one, FORCED)).group_id == "replay"
    nameless = msgspec.structs.replace(one, origin=msgspec.structs.replace(CONTROL, message_id=None))
    assert [order_group(one) for one in (letter(), letter(origin=ORDERS), one, nameless)] == [
        *("b-l-patient", "g-1", "m-1", "replay")
    ]


def test_creation_without_a_timestamp_gets_that_of_its_message() -> None:
    creation = b'{"businessId": "b", "locationId": "l", "businessType": "dental"}'
    message = message_for(letter(creation, origin=CONTROL, reason=GIVEN_UP))
    assert json.loads(message.body)["timestamp"] == "2026-01-01T00:00:00Z"


def test_order_event_has_its_messages_deduplication_id() -> None:
    message = message_for(letter(EVENT, origin=ORDERS, reason=GIVEN_UP, deduplication_id="d-1"))
    assert json.loads(message.body)["deduplicationId"] == "d-1"


def test_message_that_is_no_text_is_left() -> None:
    assert left_for(letter(b"\xff", origin=CONTROL, reason=GIVEN_UP)) is LeftReason.SEND_REFUSED


def test_letters_are_hidden_longer_only_for_very_many() -> None:
    assert [visibility_timeout_s(count) for count in (0, 10, 1_000, 100_000, 10**9)] == [60, 60, 140, 8_060, 43_200]


# Corrections

TEXT = json.dumps(VALID | {"operation": "update", "resourceId": "p1"})


def parsed(record: bytes = b"{", whole: WholeRecord | None = None, **members: Any) -> ParsedDeadLetter:
    known: dict[str, Any] = {"origin": STREAM, "reason": DeadLetterReason.INVALID_JSON} | members
    return ParsedDeadLetter(DeadLetter(error="", failed_at=FAILED_AT, attempts=1, record=record, **known), whole)


def test_corrected_record_is_another_operation_with_its_own_key() -> None:
    text = '{"requestId": "old", "simpluReplay": {}, "data": {"n": 12345678901234567890.10}, ' + TEXT[1:].replace(
        '"data": {"n": 1}', '"date": null'
    )
    edited = edit_record(parsed(request_id="old"), text, "new", RULES)
    sent = json.loads(edited.record.data)
    assert (sent["requestId"], "simpluReplay" in sent, edited.record.partition_key) == ("new", False, "b-l-patient")
    assert b'{"n": 12345678901234567890.10}' in edited.record.data
    assert (edited.operation.request_id, edited.old_request_id) == ("new", "old")


def test_old_id_of_a_record_without_one_is_that_of_its_position() -> None:
    edited = edit_record(parsed(), TEXT, "new", RULES)
    assert edited.old_request_id == derived_request_id(STREAM)


@pytest.mark.parametrize(
    ("text", "request_id", "error"),
    [
        ("{", "new", "expected a JSON object"),
        ("[]", "new", "expected a JSON object"),
        (json.dumps(VALID | {"operation": "upsert"}), "new", "it would become a dead letter again"),
        (json.dumps(VALID | {"data": "x" * 20_000}), "new", "it would become a dead letter again (too_large"),
        (TEXT, "simplu:forged", "it would become a dead letter again"),
        (TEXT, "old", "expected a new one"),
    ],
)
def test_text_that_would_come_back_is_refused(text: str, request_id: str, error: str) -> None:
    with pytest.raises(ValueError, match=error.replace("(", r"\(")):
        edit_record(parsed(request_id="old"), text, request_id, RULES)


@pytest.mark.parametrize(
    ("letter", "error"),
    [
        (parsed(TEXT.encode(), WholeRecord(99, "0" * 64)), "only the beginning"),
        (parsed(origin=msgspec.structs.replace(STREAM, source=Source.SQS)), "message of a queue"),
        (parsed(origin=msgspec.structs.replace(STREAM, name="other")), "expected KINESIS_STREAM_NAME to be 'other'"),
        (parsed(parts=BadParts(3, 2, {})), "several operations"),
        (parsed(f"[{TEXT},{TEXT}]".encode()), "several operations"),
    ],
)
def test_letter_of_which_a_part_would_be_lost_is_not_editable(letter: ParsedDeadLetter, error: str) -> None:
    with pytest.raises(NotEditableError, match=error):
        edit_record(letter, TEXT, "new", RULES)


def test_part_of_a_record_is_editable() -> None:
    part = parsed(f"[{TEXT},{TEXT}]".encode(), origin=msgspec.structs.replace(STREAM, part_index=2))
    assert edit_record(part, TEXT, "new", RULES).operation.request_id == "new"
