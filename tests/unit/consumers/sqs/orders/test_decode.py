from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.order_messages import (
    EARLIEST,
    OrderRules,
    decode_order,
    tenant_of_order,
    with_members_of_message,
)
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, OperationKind, Source

MAX_BYTES = 2_000_000
SENT_AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
ORIGIN = Origin(
    source=Source.SQS,
    name="orders.fifo",
    arrived_at=SENT_AT,
    sequence_number="18870266373861887232",
    message_id="6f1b0c9a-0000-4000-8000-000000000001",
    group_id="orders",
)
TENANT = {"BusinessId": "clinic", "LocationId": "main"}
KINDS = {"CREATE": OperationKind.CREATE, "UPDATE": OperationKind.PATCH, "DELETE": OperationKind.DELETE}


def event(type_: str = "CREATE", **members: Any) -> dict[str, Any]:
    valid: dict[str, Any] = {
        "type": type_,
        "orderId": "order-1",
        "data": {"total": 12.50} if type_ != "DELETE" else {},
        "groupId": "orders",
        "deduplicationId": "event-1",
    }
    return {name: value for name, value in (valid | members).items() if value is not ...}


def decode(
    body: str,
    attributes: dict[str, str] | None = None,
    *,
    deduplication_id: str | None = "own-1",
    max_bytes: int = MAX_BYTES,
    default_tenant: tuple[str, str] | None = None,
) -> Operation | RejectedRecord:
    attributes = TENANT if attributes is None else attributes
    rules = OrderRules(max_bytes, default_tenant)
    return decode_order(body, attributes, ORIGIN, rules, deduplication_id=deduplication_id)


def decoded(type_: str = "CREATE", **members: Any) -> Operation:
    operation = decode(json.dumps(event(type_, **members)))
    assert isinstance(operation, Operation), operation
    return operation


def rejected(body: str, attributes: dict[str, str] | None = None) -> RejectedRecord:
    refusal = decode(body, attributes)
    assert isinstance(refusal, RejectedRecord), refusal
    return refusal


@pytest.mark.parametrize("type_", KINDS)
def test_order_event_is_an_operation_on_an_order(type_: str) -> None:
    members = ['"orderId":"order-1"', f'"type":"{type_}"', '"data" : {"n": 1.50,"n":18446744073709551616123}']
    body = f'{{{",".join(members)},"deduplicationId":"event-1", "groupId":7}}'

    operation = decode(body)

    assert isinstance(operation, Operation)
    assert operation == Operation(
        kind=KINDS[type_],
        business_id="clinic",
        location_id="main",
        tenant_id="clinic-main",
        resource_type="order",
        resource_id="order-1",
        request_id="event-1",
        data=None if type_ == "DELETE" else msgspec.Raw('{"n": 1.50,"n":18446744073709551616123}'),
        query=None,
        requested_at=SENT_AT.isoformat(),
        digest=operation.digest,
        origin=ORIGIN,
        size_bytes=len(body),
    )


@pytest.mark.parametrize(
    ("members", "expected"),
    [({"deduplicationId": "event-1"}, "event-1"), ({"deduplicationId": ...}, ORIGIN.message_id)],
)
def test_create_without_an_order_id_is_an_order_of_its_own(members: dict[str, Any], expected: str) -> None:
    operation = decoded(orderId=..., **members)

    assert (operation.resource_id, operation.request_id) == (expected, expected)


def test_default_tenant_stands_for_a_tenant_that_is_not_named() -> None:
    default_tenant = ("shop", "web")
    body = json.dumps(event())

    for attributes, tenant_id in ((dict[str, str](), "shop-web"), (TENANT, "clinic-main")):
        operation = decode(body, attributes, default_tenant=default_tenant)
        assert isinstance(operation, Operation)
        assert operation.tenant_id == tenant_id
    for half in ({"BusinessId": "clinic"}, {"LocationId": "main"}):
        assert isinstance(decode(body, half, default_tenant=default_tenant), RejectedRecord)


@pytest.mark.parametrize("type_", KINDS)
def test_order_event_has_the_digest_of_the_stream_operation(type_: str) -> None:
    data = '{"total": 1.0}'
    body = f'{{"type":"{type_}","orderId":"o","data":{data},"deduplicationId":"d"}}'
    record = (
        f'{{"operation":"{KINDS[type_]}","businessId":"clinic","locationId":"main","resourceType":"order",'
        f'"resourceId":"o","requestId":"d","timestamp":"2020-01-01","data":{data}}}'
    )

    order = decode(body)
    operation = decode_operation(record.encode(), ORIGIN, max_bytes=MAX_BYTES, list_limit=10)

    assert isinstance(order, Operation)
    assert isinstance(operation, Operation)
    assert order.digest == operation.digest


@pytest.mark.parametrize(
    ("sent", "own", "expected"),
    [
        ("event-1", "own-1", "event-1"),
        (..., "own-1", "own-1"),
        (None, "own-1", "own-1"),
        (..., None, ORIGIN.message_id),
        ("event-1", None, "event-1"),
    ],
)
def test_request_id_is_the_deduplication_id(sent: object, own: str | None, expected: str) -> None:
    operation = decode(json.dumps(event(deduplicationId=sent)), deduplication_id=own)
    assert isinstance(operation, Operation)
    assert operation.request_id == expected


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        ({"BusinessId": "b", "LocationId": "l"}, {}),
        ({}, {"businessId": "b", "locationId": "l"}),
        ({"BusinessId": "b"}, {"locationId": "l"}),
        ({"BusinessId": "b", "LocationId": "l"}, {"businessId": "b", "locationId": "l"}),
        ({"BusinessId": "", "LocationId": "l"}, {"businessId": "b", "locationId": None}),
    ],
)
def test_tenant_is_taken_from_attributes_or_members(attributes: dict[str, str], members: dict[str, Any]) -> None:
    operation = decode(json.dumps(event(**members)), attributes)
    assert isinstance(operation, Operation)
    assert (operation.business_id, operation.location_id, operation.tenant_id) == ("b", "l", "b-l")


@pytest.mark.parametrize(
    ("first_sent_at", "sent_at"),
    [
        (None, ORIGIN.arrived_at),
        (EARLIEST.isoformat(), EARLIEST),
        (ORIGIN.arrived_at.isoformat(), ORIGIN.arrived_at),
        ("2020-01-01T02:00:00+02:00", datetime(2020, 1, 1, tzinfo=UTC)),
        ("2020-01-01T00:00:00", ORIGIN.arrived_at),  # without a time zone
        ("9999-12-31T23:59:59-14:00", ORIGIN.arrived_at),  # later than the message itself
        ("0001-01-01T00:00:00+14:00", ORIGIN.arrived_at),
        ("yesterday", ORIGIN.arrived_at),
        (1577836800, ORIGIN.arrived_at),
        ({"at": "2020-01-01T00:00:00Z"}, ORIGIN.arrived_at),
    ],
)
def test_order_event_was_sent_when_the_first_message_was(first_sent_at: Any, sent_at: datetime) -> None:
    rules = OrderRules(MAX_BYTES, window=timedelta(hours=1))
    body = json.dumps(event(firstSentAt=first_sent_at))
    operation = decode_order(body, TENANT, ORIGIN, rules, deduplication_id="own-1")
    assert isinstance(operation, Operation)
    assert operation.requested_at == sent_at.isoformat()
    assert operation.window_start == (sent_at - timedelta(hours=1)).isoformat()
    assert decoded(firstSentAt=first_sent_at).window_start is None


INVALID = [
    ("{", {}, "invalid_json"),
    ("", {}, "invalid_json"),
    ('{"type":"CREATE"} x', {}, "invalid_json"),
    (json.dumps(event(data="@")).replace('"@"', '{"a":' + "[" * 512 + "]" * 512 + "}"), {}, "invalid_message"),
    ('"\ud800"', {}, "invalid_json"),
    ('{"type":"CREATE","orderId":"\ud800"}', {}, "invalid_json"),
    ("[]", {}, "invalid_message"),
    ("5", {}, "invalid_message"),
    ("{}", {}, "unknown_type"),
    ('{"type":"PAY","orderId":5}', {}, "unknown_type"),
    ('{"type":"create"}', {}, "unknown_type"),
    ('{"type":7}', {}, "unknown_type"),
    ('{"type":[1]}', {}, "unknown_type"),
    ('{"type":null}', {}, "unknown_type"),
    (event("UPDATE", orderId=...), {}, "invalid_message"),
    (event("DELETE", orderId=None), {}, "invalid_message"),
    (event(orderId=5), {}, "invalid_message"),
    (event(orderId=""), {}, "invalid_message"),
    (event(orderId="o" * 257), {}, "invalid_message"),
    (event(orderId="o\0"), {}, "invalid_message"),
    ('{"type":"DELETE","orderId":"\\ud800","deduplicationId":"d"}', {}, "invalid_message"),
    (event(data=...), {}, "invalid_message"),
    (event(data=[1]), {}, "invalid_message"),
    (event("UPDATE", data=None), {}, "invalid_message"),
    (event("DELETE", data="text"), {}, "invalid_message"),
    (event(deduplicationId="d" * 129), {}, "invalid_message"),
    (event(deduplicationId=""), {}, "invalid_message"),
    (event(deduplicationId="d\0"), {}, "invalid_message"),
    (event(deduplicationId="simplu:1"), {}, "invalid_message"),
    (event(businessId="b" * 129), {}, "invalid_message"),
    (event(businessId=1), {}, "invalid_message"),
    (event(businessId="elsewhere"), {}, "invalid_message"),
    (event(), {"LocationId": ""}, "invalid_message"),
    (event(), {"LocationId": "l" * 129}, "invalid_message"),
    (event(), {"LocationId": "l\0"}, "invalid_message"),
    (event(), {"LocationId": "l\udc00"}, "invalid_message"),
]


@pytest.mark.parametrize(("body", "attributes", "reason"), INVALID)
def test_message_is_refused_when_it_breaks_a_rule(
    body: str | dict[str, Any], attributes: dict[str, str], reason: str
) -> None:
    refusal = rejected(body if isinstance(body, str) else json.dumps(body), TENANT | attributes)
    assert refusal.reason == reason
    assert refusal.origin is ORIGIN
    assert all(quoted not in refusal.error for quoted in ("PAY", "elsewhere", "bbb", "ooo", "ddd", "lll"))


def test_message_is_refused_unread_when_it_is_too_large() -> None:
    body = json.dumps(event(data={"name": "é"}), ensure_ascii=False)
    size_bytes = len(body.encode())
    assert isinstance(decode(body, max_bytes=size_bytes), Operation)
    refusal = decode(body, max_bytes=size_bytes - 1)
    got = f"expected at most {size_bytes - 1} bytes (OPERATION_MAX_BYTES), got {size_bytes}"
    assert refusal == RejectedRecord(DeadLetterReason.TOO_LARGE, f"record: {got}", ORIGIN, request_id="own-1")
    nameless = msgspec.structs.replace(ORIGIN, message_id=None)
    refusal = decode_order(body, TENANT, nameless, OrderRules(1), deduplication_id=None)
    assert refusal == RejectedRecord(DeadLetterReason.TOO_LARGE, ANY, nameless, request_id="")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"type": ...}, "type: expected one of CREATE, UPDATE, DELETE, got nothing"),
        (
            {"type": 7, "orderId": math.inf, "businessId": [math.inf]},
            "type: expected one of CREATE, UPDATE, DELETE, got another value",
        ),
        ({"type": math.inf}, "type: expected one of CREATE, UPDATE, DELETE, got another value"),
        ({"type": 7}, "type: expected one of CREATE, UPDATE, DELETE, got another value"),
        ({"orderId": "o\0"}, "orderId: "),
        ({"deduplicationId": "d\0"}, "deduplicationId: "),
        ({"deduplicationId": "simplu:1"}, "deduplicationId: expected an id without the prefix 'simplu:'"),
        ({"data": [1]}, "data: expected an object"),
        ({"type": "UPDATE", "orderId": ...}, "orderId: expected text, for UPDATE, got nothing"),
        ({"businessId": "b"}, "businessId: expected the value of message attribute BusinessId, got another"),
    ],
)
def test_refusal_names_the_member(members: dict[str, Any], named: str) -> None:
    assert named in rejected(json.dumps(event(**members)).replace("Infinity", "1e999")).error


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (None, "businessId: expected message attribute BusinessId or the member, got neither"),
        ("b" * 129, "message attribute BusinessId: expected 1 to 128 characters, got more"),
    ],
)
def test_refusal_names_the_attribute(sent: str | None, named: str) -> None:
    attributes = {"LocationId": "l"} | ({} if sent is None else {"BusinessId": sent})
    assert rejected(json.dumps(event()), attributes).error == named


def test_refusal_carries_the_ids_that_could_be_read() -> None:
    refusal = rejected(json.dumps(event(data="none", deduplicationId=...)), {"BusinessId": "b"})
    ids = (refusal.business_id, refusal.location_id, refusal.request_id, refusal.resource_id)
    assert ids == ("b", None, "own-1", "order-1")
    refusal = rejected(json.dumps(event("PAY", businessId="x", locationId="y")), {})
    ids = (refusal.business_id, refusal.location_id, refusal.request_id, refusal.resource_id)
    assert ids == ("x", "y", "event-1", "order-1")
    refusal = rejected("{", {"BusinessId": "b" * 257, "LocationId": "l" * 256})
    assert (refusal.business_id, refusal.location_id) == (None, "l" * 256)


def test_data_beyond_the_bounds_counts_unless_nothing_is_stored() -> None:
    for type_, expected in (("CREATE", True), ("DELETE", False)):
        operation = decode(f'{{"type":"{type_}","orderId":"o","data":{{"n":1e1000}}}}')
        assert isinstance(operation, Operation)
        assert operation.exceeds_bounds is expected


@pytest.mark.parametrize("type_", KINDS)
def test_event_with_the_members_of_its_message_is_the_same(type_: str) -> None:
    body = f' {{"type":"{type_}","orderId":"o","data":{{}}}} \n'
    first = decode(body)
    assert isinstance(first, Operation)
    again = decode(with_members_of_message(body, {}, first), {}, deduplication_id="other")
    assert again == msgspec.structs.replace(first, size_bytes=ANY)


@pytest.mark.parametrize(
    ("body", "attributes", "default_tenant", "expected"),
    [
        (event(), TENANT, None, ("clinic", "main")),
        ("no JSON", TENANT, None, ("clinic", "main")),
        (event(businessId="b", locationId="l"), {}, None, ("b", "l")),
        (event(businessId="b"), {"LocationId": "l"}, None, ("b", "l")),
        (event(businessId="b"), {}, ("d", "e"), None),
        (event(), {}, ("d", "e"), ("d", "e")),
        (event(), {}, None, None),
        ("no JSON", {}, None, None),
        (event(businessId=7, locationId=["l"]), {}, None, None),
        (event(locationId="l"), {}, None, None),
        ('"\ud800"', {}, None, None),
        ("no JSON", {"BusinessId": "b" * 300, "LocationId": "l"}, None, ("b" * 300, "l")),  # unread
    ],
)
def test_tenant_of_a_message_is_that_of_its_operation(
    body: dict[str, Any] | str,
    attributes: dict[str, str],
    default_tenant: tuple[str, str] | None,
    expected: tuple[str, str] | None,
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    received = Message("m", "h", text, attributes, SENT_AT, 1, "g")

    assert tenant_of_order(received, OrderRules(MAX_BYTES, default_tenant)) == expected

    decoded_too = decode(text, attributes, default_tenant=default_tenant)
    if isinstance(decoded_too, Operation):
        assert (decoded_too.business_id, decoded_too.location_id) == expected
