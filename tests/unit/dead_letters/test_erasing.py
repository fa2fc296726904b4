from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker
from simplu_worker.dead_letters.erasing import LetterTarget, Relation, judge_letter
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.vocabulary import DeadLetterReason, Source

TARGET = LetterTarget("clinic", "main", {"patient", "patients"}, "anna@example.com")
ORDERS = LetterTarget("clinic", "main", {"order"}, "anna@example.com", order_tenant=("clinic", "main"))
TENANT = {"businessId": "clinic", "locationId": "main"}
AT = datetime(2026, 1, 1, tzinfo=UTC)
STREAM = Origin(source=Source.KINESIS, name="stream", arrived_at=AT, sequence_number="7", partition_key="k")
QUEUE = Origin(source=Source.SQS, name="orders", arrived_at=AT, message_id="m")
PERSON = {"resourceType": "patient", "resourceId": "anna@example.com"}


def record(**members: Any) -> bytes:
    return json.dumps({"operation": "create", **TENANT, **members}).encode()


def letter(data: bytes, origin: Origin = STREAM, **members: Any) -> DeadLetter:
    return DeadLetter(DeadLetterReason.INVALID_MESSAGE, "", origin, AT, 1, data, **members)


CASES: list[tuple[str, DeadLetter, LetterTarget, Relation]] = [
    ("operation", letter(record(**PERSON, data={"name": "Anna"})), TARGET, Relation.ABOUT),
    ("by another name of its type", letter(record(**PERSON | {"resourceType": "patients"})), TARGET, Relation.ABOUT),
    ("of another type", letter(record(**PERSON | {"resourceType": "note"})), TARGET, Relation.MENTIONS),
    ("of another id", letter(record(resourceType="patient", resourceId="b")), TARGET, Relation.NONE),
    (
        "of another tenant",
        letter(record(**PERSON) + b" ", business_id="other", location_id="main"),
        TARGET,
        Relation.NONE,
    ),
    ("other tenant inside", letter(record(**PERSON, businessId="other")), TARGET, Relation.NONE),
    (
        "that mentions it",
        letter(record(resourceType="visit", resourceId="v", data={"who": "anna@example.com"})),
        TARGET,
        Relation.MENTIONS,
    ),
    (
        "with a longer id inside",
        letter(record(resourceType="visit", resourceId="v", data={"who": "joanna@example.com"})),
        TARGET,
        Relation.NONE,
    ),
    (
        "id made of its request id",
        letter(record(resourceType="patient"), resource_id="anna@example.com"),
        TARGET,
        Relation.ABOUT,
    ),
    (
        "unreadable of the tenant",
        letter(b"{'anna@example.com'", business_id="clinic", location_id="main"),
        TARGET,
        Relation.ABOUT,
    ),
    ("unreadable with tenant and id", letter(b'{"clinic","main","anna@example.com"'), TARGET, Relation.ABOUT),
    ("unreadable with the id", letter(b"{'anna@example.com'"), TARGET, Relation.MENTIONS),
    ("unreadable without the id", letter(b"{", business_id="clinic", location_id="main"), TARGET, Relation.NONE),
    ("without a tenant", letter(json.dumps(PERSON).encode()), TARGET, Relation.MENTIONS),
    (
        "rename",
        letter(record(resourceType="patient", oldResourceId="a", newResourceId="anna@example.com"), QUEUE),
        TARGET,
        Relation.ABOUT,
    ),
    ("administrator", letter(record(adminUserId="anna@example.com", adminEmail="a"), QUEUE), TARGET, Relation.ABOUT),
    ("order", letter(record(orderId="anna@example.com"), QUEUE), ORDERS, Relation.ABOUT),
    ("order without a tenant", letter(b'{"orderId": "anna@example.com"}', QUEUE), ORDERS, Relation.ABOUT),
    ("no default tenant for the stream", letter(b'{"orderId": "anna@example.com"}'), ORDERS, Relation.MENTIONS),
    ("order for another type", letter(record(orderId="anna@example.com"), QUEUE), TARGET, Relation.MENTIONS),
    (
        "order in an envelope",
        letter(
            json.dumps({"Type": "Notification", "Message": record(orderId="anna@example.com").decode()}).encode(), QUEUE
        ),
        ORDERS,
        Relation.ABOUT,
    ),
    ("nested too deep", letter(b"[" * 100_000 + b"anna@example.com"), TARGET, Relation.MENTIONS),
]


@pytest.mark.parametrize(("one", "target", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_letter_is_about_the_resource_that_it_names(one: DeadLetter, target: LetterTarget, expected: Relation) -> None:
    assert judge_letter(one, target) == expected


def test_id_is_found_as_json_escapes_it() -> None:
    target = msgspec.structs.replace(TARGET, resource_id="zoë")
    one = letter(b'{"resourceId":"zo\\u00eb"', business_id="clinic", location_id="main")
    assert judge_letter(one, target) == Relation.ABOUT


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["anna@example.com"], Relation.ABOUT),
        (["anna@example.com", "anna@example.com"], Relation.ABOUT),
        (["b", "anna@example.com"], Relation.AMONG),
        (["b", "c"], Relation.NONE),
    ],
)
def test_aggregate_is_about_the_resource_if_all_its_records_are(ids: list[str], expected: Relation) -> None:
    packer = AggregatePacker()
    for resource_id in ids:
        packer.add("key", record(resourceType="patient", resourceId=resource_id))
    assert judge_letter(letter(packer.seal()), TARGET) == expected


def test_aggregate_that_mentions_the_resource_stays() -> None:
    packer = AggregatePacker()
    packer.add("key", record(resourceType="patient", resourceId="b"))
    packer.add("key", record(resourceType="visit", resourceId="v", data={"who": "anna@example.com"}))
    assert judge_letter(letter(packer.seal()), TARGET) == Relation.MENTIONS
