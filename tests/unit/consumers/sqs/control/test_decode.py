from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from support.aws.sqs_messages import message

from simplu_worker.consumers.sqs.control_messages import (
    Control,
    ControlType,
    ShardDestruction,
    control_type_of,
    decode_control,
    tenant_id_of_control,
    tenant_of_control_message,
    with_timestamp,
)
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.shards.types import AdminAccount, ProvisionRequest, ResourceRename
from simplu_worker.vocabulary import DeadLetterReason, Source

ORIGIN = Origin(source=Source.SQS, name="control", arrived_at=datetime(2026, 1, 2, tzinfo=UTC), message_id="m")
CREATION = {"businessId": "b", "locationId": "l", "businessType": "dental", "timestamp": "2026-01-02T03:04:05+02:00"}
REQUESTED_AT = datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
CREATED = ProvisionRequest(business_id="b", location_id="l", business_type="dental", requested_at=REQUESTED_AT)
TENANT = {name: CREATION[name] for name in ("businessId", "locationId", "timestamp")}
BODIES: dict[ControlType, dict[str, Any]] = {
    ControlType.SHARD_CREATION: CREATION,
    ControlType.SHARD_DESTRUCTION: TENANT | {"action": "destroy"},
    ControlType.UPDATE_RESOURCE_ID: TENANT
    | {"resourceType": "order", "oldResourceId": "temporary", "newResourceId": "final"},
    ControlType.ADMIN_ACCOUNT_CREATION: CREATION
    | {"adminEmail": "ann@clinic.example", "adminUserId": "u-1", "domainLabel": "clinic"},
}


ONE_LOCATION = "locationId: expected 1 to 128 characters, or action destroy_all for every location, got "


def body(control_type: ControlType = ControlType.SHARD_CREATION, /, **members: Any) -> str:
    return json.dumps({**BODIES[control_type], **members})


def decode(control_type: ControlType, **members: Any) -> Control | RejectedRecord:
    return decode_control(body(control_type, **members), {"MessageType": control_type}, ORIGIN)


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        (body(), {"MessageType": "SHARD_CREATION"}),
        (body(messageType="SHARD_CREATION"), {}),
        (body(messageType="UPDATE_RESOURCE_ID"), {"MessageType": "SHARD_CREATION"}),
        (body(), {}),
        (body(messageType=None, adminEmail=None), {}),
        (body(shardId="", connectionString="", other=[1, {"a": 2}]), {}),
    ],
)
def test_creation_is_decoded_wherever_its_type_is_named(text: str, attributes: dict[str, str]) -> None:
    assert decode_control(text, attributes, ORIGIN) == CREATED


@pytest.mark.parametrize(
    ("members", "location_id", "tenant_id"),
    [
        ({}, "l", "b-l"),
        ({"locationId": "l" * 128}, "l" * 128, f"b-{'l' * 128}"),
        ({"action": "destroy_all"}, None, None),
        ({"action": "destroy_all", "locationId": None}, None, None),
        ({"action": "destroy_all", "locationId": ""}, None, None),
    ],
)
def test_destruction_is_of_one_location_or_of_all(
    members: dict[str, Any], location_id: str | None, tenant_id: str | None
) -> None:
    destruction = decode(ControlType.SHARD_DESTRUCTION, **members)
    assert isinstance(destruction, ShardDestruction)
    assert destruction == ShardDestruction("b", location_id, REQUESTED_AT)
    assert (control_type_of(destruction), tenant_id_of_control(destruction)) == (
        ControlType.SHARD_DESTRUCTION,
        tenant_id,
    )


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("null", None),
        ("{}", "{}"),
        (
            '{"n": 1.000000000000000000000000000001, "n2": 1e400}',
            '{"n": 1.000000000000000000000000000001, "n2": 1e400}',
        ),
    ],
    ids=["null", "empty", "numbers"],
)
def test_rename_keeps_what_is_to_be_merged_as_it_came(sent: str, expected: str | None) -> None:
    text = body(ControlType.UPDATE_RESOURCE_ID)[:-1] + f', "additionalData": {sent}}}'
    rename = decode_control(text, {"MessageType": "UPDATE_RESOURCE_ID"}, ORIGIN)
    assert rename == ResourceRename("b", "l", "order", "temporary", "final", expected, REQUESTED_AT)


def test_creation_without_a_timestamp_is_as_old_as_its_message() -> None:
    text = body(timestamp=None)
    creation = decode_control(text, {}, ORIGIN)
    assert isinstance(creation, ProvisionRequest)
    assert creation.requested_at == ORIGIN.arrived_at

    later = msgspec.structs.replace(ORIGIN, arrived_at=ORIGIN.arrived_at + timedelta(days=1))
    assert decode_control(with_timestamp(f"{text} ", {}, ORIGIN), {}, later) == creation
    assert with_timestamp(body(), {}, later) == body()
    assert with_timestamp("{", {}, later) == "{"


def test_admin_account_is_decoded_and_does_not_show_the_person() -> None:
    admin = decode(ControlType.ADMIN_ACCOUNT_CREATION)
    assert admin == AdminAccount("b", "l", "dental", "ann@clinic.example", "u-1", REQUESTED_AT)
    assert decode(ControlType.ADMIN_ACCOUNT_CREATION, domainLabel=None) == admin
    assert "ann" not in repr(admin)


@pytest.mark.parametrize(
    ("control_type", "members", "named"),
    [
        (ControlType.SHARD_DESTRUCTION, {"action": None}, "action"),
        (ControlType.SHARD_DESTRUCTION, {"action": "secret"}, "action: expected destroy or destroy_all"),
        (ControlType.SHARD_DESTRUCTION, {"locationId": None}, f"{ONE_LOCATION}nothing"),
        (ControlType.SHARD_DESTRUCTION, {"locationId": ""}, f"{ONE_LOCATION}nothing"),
        (ControlType.SHARD_DESTRUCTION, {"locationId": "x" * 129}, f"{ONE_LOCATION}more"),
        (ControlType.SHARD_DESTRUCTION, {"locationId": "a\0"}, "locationId"),
        (ControlType.SHARD_DESTRUCTION, {"businessId": ""}, "businessId"),
        (ControlType.SHARD_DESTRUCTION, {"timestamp": None}, "timestamp"),
        (ControlType.UPDATE_RESOURCE_ID, {"resourceType": ""}, "resourceType"),
        (ControlType.UPDATE_RESOURCE_ID, {"resourceType": "a\ud800"}, "resourceType"),
        (ControlType.UPDATE_RESOURCE_ID, {"oldResourceId": "x" * 257}, "oldResourceId"),
        (ControlType.UPDATE_RESOURCE_ID, {"newResourceId": "x" * 257}, "newResourceId"),
        (ControlType.UPDATE_RESOURCE_ID, {"newResourceId": "a\0"}, "newResourceId"),
        (
            ControlType.UPDATE_RESOURCE_ID,
            {"newResourceId": "temporary"},
            "newResourceId: expected another id than oldResourceId, got",
        ),
        (ControlType.UPDATE_RESOURCE_ID, {"additionalData": [1]}, "additionalData: expected an object"),
        (ControlType.UPDATE_RESOURCE_ID, {"timestamp": "soon"}, "timestamp"),
        *(
            (control_type, {name: "x\0"}, f"{name}: ")
            for control_type, names in {
                ControlType.SHARD_CREATION: "businessId locationId businessType",
                ControlType.SHARD_DESTRUCTION: "businessId locationId",
                ControlType.UPDATE_RESOURCE_ID: "businessId locationId resourceType oldResourceId newResourceId",
                ControlType.ADMIN_ACCOUNT_CREATION: "businessId locationId businessType adminEmail adminUserId",
            }.items()
            for name in names.split()
        ),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"adminEmail": ""}, "adminEmail"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"adminEmail": "x" * 321}, "adminEmail"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"adminEmail": "a\0"}, "adminEmail"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"adminUserId": None}, "adminUserId"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"adminUserId": "x" * 257}, "adminUserId"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"businessType": 1}, "businessType"),
        (ControlType.ADMIN_ACCOUNT_CREATION, {"locationId": ["l"]}, "locationId"),
    ],
)
def test_message_of_each_type_is_rejected_naming_the_member(
    control_type: ControlType, members: dict[str, Any], named: str
) -> None:
    rejected = decode(control_type, **members)
    assert isinstance(rejected, RejectedRecord)
    assert (rejected.reason, named in rejected.error) == (DeadLetterReason.INVALID_MESSAGE, True)
    assert "secret" not in rejected.error


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ("", DeadLetterReason.INVALID_JSON, "JSON"),
        ("{", DeadLetterReason.INVALID_JSON, "JSON"),
        ('{"businessId": "\ud800"}', DeadLetterReason.INVALID_JSON, "UTF-8"),
        (b"\xff{}", DeadLetterReason.INVALID_JSON, "UTF-8"),
        ("[" * 100_000, DeadLetterReason.INVALID_MESSAGE, "deep"),
        ("[]", DeadLetterReason.INVALID_MESSAGE, "object"),
        (body(businessId=1), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(businessId=""), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(locationId="x" * 129), DeadLetterReason.INVALID_MESSAGE, "locationId"),
        (body(locationId="a\0b"), DeadLetterReason.INVALID_MESSAGE, "locationId"),
        (body(businessId="a\ud800"), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(timestamp="yesterday"), DeadLetterReason.INVALID_MESSAGE, "timestamp"),
        (body(timestamp="0001-01-01T00:00:00+02:00"), DeadLetterReason.INVALID_MESSAGE, "timestamp"),
        ('{"businessType":"dental"}', DeadLetterReason.INVALID_MESSAGE, "businessId"),
        ("{}", DeadLetterReason.UNKNOWN_TYPE, "as message attribute MessageType, got nothing"),
        (body(adminEmail="a@b"), DeadLetterReason.UNKNOWN_TYPE, "messageType: expected one of SHARD_CREATION, "),
        (body(messageType="SHARD_CREATE"), DeadLetterReason.UNKNOWN_TYPE, "'SHARD_CREATE'"),
        (body(messageType=7), DeadLetterReason.UNKNOWN_TYPE, "'7'"),
    ],
)
def test_message_is_rejected_naming_what_was_expected(text: str | bytes, reason: DeadLetterReason, named: str) -> None:
    rejected = decode_control(text, {}, ORIGIN)
    assert isinstance(rejected, RejectedRecord)
    assert (reason, True) == (rejected.reason, named in rejected.error)


@pytest.mark.parametrize(
    "name", ["postgresql://u:pass-word@h/d", "shard_creation", "A" * 65, "SHARD CREATION", ["A b"]]
)
def test_unknown_type_is_shown_only_if_it_looks_like_one(name: object) -> None:
    rejected = decode_control(body(messageType=name), {}, ORIGIN)
    assert isinstance(rejected, RejectedRecord)
    assert rejected.error.startswith("messageType: expected one of SHARD_CREATION, ")
    assert rejected.error.endswith(", got another value")


def test_rejected_message_carries_the_ids_that_could_be_read() -> None:
    rejected = decode_control(body(timestamp=1), {}, ORIGIN)
    assert isinstance(rejected, RejectedRecord)
    assert (rejected.business_id, rejected.location_id, rejected.origin) == ("b", "l", ORIGIN)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"businessId": "b", "locationId": "l"}', ("b", "l")),
        ('{"businessId": "b", "action": "destroy_all"}', ("b", "")),
        ('{"locationId": "l"}', None),
        ("no JSON", None),
        ('"\ud800"', None),
    ],
)
def test_tenant_of_a_control_message_is_that_which_it_names(body: str, expected: tuple[str, str] | None) -> None:
    assert tenant_of_control_message(message("m", body=body)) == expected
