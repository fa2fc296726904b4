"""Control messages: a control message or a dead letter, with a subject for those that wait for each other."""

from __future__ import annotations

import json
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import PASSWORD, begin, check_faults, check_secrets
from fuzz.target import Target
from fuzz.targets.orders import NEXT, ORIGIN, check_letter, envelope, message_of
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.control_messages import (
    ControlType,
    MessageSubject,
    control_type_of,
    decode_control,
    stages_of,
    tenant_id_of_control,
    with_timestamp,
)
from simplu_worker.operations.json_record import exceeds_bounds
from simplu_worker.operations.operation import RejectedRecord, is_id, is_storable
from simplu_worker.shards.tenants.control_rules import timestamp_text
from simplu_worker.shards.types import ProvisionRequest, ResourceRename

USUAL: Final = {
    "messageType": "SHARD_CREATION",
    "businessId": "clinic",
    "locationId": "main",
    "businessType": "dental",
    "timestamp": "2026-01-31T09:00:00Z",
    "shardId": "shard-1",
    "connectionString": f"postgresql://user:{PASSWORD}@db.internal:5432/one",
    "action": "destroy",
    "resourceType": "order",
    "oldResourceId": "old",
    "newResourceId": "new",
    "additionalData": {"number": "ap-1"},
    "adminEmail": "ann@clinic.example",
    "adminUserId": "u-1",
    "domainLabel": "clinic",
}


def check(data: bytes) -> None:
    begin(data)
    body, attributes = message_of(data)
    decoded = decode_control(body, attributes, ORIGIN)
    assert decoded == decode_control(body, attributes, ORIGIN)
    if isinstance(decoded, RejectedRecord):
        check_secrets(decoded.error)
        check_letter(decoded, body)
        check_faults()
        return
    control_type_of(decoded)
    assert decoded == decode_control(with_timestamp(body, attributes, ORIGIN), attributes, ORIGIN)
    tenant_id = tenant_id_of_control(decoded)
    assert is_id(decoded.business_id)
    assert tenant_id is None or is_storable(tenant_id)
    assert timestamp_text(decoded.requested_at)
    subject = MessageSubject(tenant_id, decoded.business_id)
    assert stages_of([subject, subject]) == [[0], [1]]
    if isinstance(decoded, ProvisionRequest):  # others have data that are shown
        check_secrets(repr(decoded))
    if isinstance(decoded, ResourceRename) and decoded.additional_data is not None:
        exceeds_bounds(decoded.additional_data.encode())
    check_faults()


SEEDS: Final = (
    *(json.dumps(USUAL | {"messageType": kind}).encode() for kind in ControlType),
    envelope(json.dumps(USUAL).encode()),
    NEXT.join((json.dumps({"businessId": "clinic", "businessType": "gym"}).encode(), b"", b"", b"SHARD_CREATION")),
)
WORDS: Final = (
    *(json.dumps(name).encode() for name in USUAL),
    *(NEXT, b"SHARD_CREATION", b"SHARD_DESTRUCTION", b"UPDATE_RESOURCE_ID", b"ADMIN_ACCOUNT_CREATION", b"destroy_all"),
)


def of_type(kind: str) -> st.SearchStrategy[bytes]:
    return messages(USUAL | {"messageType": kind})


INPUTS: Final = st.sampled_from(list(ControlType)).flatmap(of_type) | spliced(st.sampled_from(SEEDS), WORDS)
TARGET: Final = Target(check=check, seeds=SEEDS, words=WORDS, inputs=INPUTS)
