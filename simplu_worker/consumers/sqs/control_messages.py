"""Decode control messages (docs/sending.md): any text gives a message or a rejection, no exception. Pure.

And which messages of a batch have to wait for which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.operations.dead_letter import DECODING_ERRORS, UnknownTypeError, peeked_texts, rejection_of
from simplu_worker.operations.json_record import (
    ABSENT,
    NOTHING,
    Id,
    InvalidRecordError,
    LongId,
    Time,
    check_texts,
    member_error,
    object_member,
    parse_record,
    parse_timestamp,
    peeked_value,
)
from simplu_worker.operations.operation import Origin, RejectedRecord, tenant_id_of
from simplu_worker.shards.types import AdminAccount, ProvisionRequest, ResourceRename

TYPE_ATTRIBUTE: Final = "MessageType"
ID_MAX_CHARS: Final = 128

Email = Annotated[str, msgspec.Meta(min_length=1, max_length=320)]  # RFC 3696: 64 before the @, 255 behind it


class ControlType(StrEnum):
    """The types of control messages."""

    SHARD_CREATION = "SHARD_CREATION"
    SHARD_DESTRUCTION = "SHARD_DESTRUCTION"
    UPDATE_RESOURCE_ID = "UPDATE_RESOURCE_ID"
    ADMIN_ACCOUNT_CREATION = "ADMIN_ACCOUNT_CREATION"


class DestructionAction(StrEnum):
    """What a `SHARD_DESTRUCTION` destroys: a tenant, or every tenant of a business."""

    DESTROY = "destroy"
    DESTROY_ALL = "destroy_all"


class ShardDestruction(msgspec.Struct, frozen=True):
    """Destroy a tenant, or without *location_id* every tenant of the business."""

    business_id: str
    location_id: str | None
    requested_at: datetime


Control: TypeAlias = ProvisionRequest | ShardDestruction | ResourceRename | AdminAccount

_CONTROL_TYPES: Final[Mapping[type[Control], ControlType]] = {
    ProvisionRequest: ControlType.SHARD_CREATION,
    ShardDestruction: ControlType.SHARD_DESTRUCTION,
    ResourceRename: ControlType.UPDATE_RESOURCE_ID,
    AdminAccount: ControlType.ADMIN_ACCOUNT_CREATION,
}


def control_type_of(control: Control) -> ControlType:
    """Return the type of a message."""
    return _CONTROL_TYPES[type(control)]


def tenant_id_of_control(control: Control) -> str | None:
    """Return the tenant of a message; None for every tenant of a business."""
    return None if control.location_id is None else tenant_id_of(control.business_id, control.location_id)


def tenant_of_control_message(message: Message) -> tuple[str, str] | None:
    """Return the business that a message names, and the location, if it is about one, without decoding it."""
    names = peeked_texts(message.body.encode("utf-8", "surrogatepass"), ("businessId", "locationId"))
    return (names[0], names[1] or "") if names[0] else None


B = TypeVar("B", bound=msgspec.Struct)
C = TypeVar("C", ProvisionRequest, ResourceRename, AdminAccount)


class CreationMembers(msgspec.Struct, rename="camel"):
    """The members of a `SHARD_CREATION`."""

    business_id: Id
    location_id: Id
    business_type: Id
    timestamp: Time | None = None
    shard_id: str | None = None
    connection_string: str | None = None


class DestructionMembers(msgspec.Struct, rename="camel"):
    """The members of a `SHARD_DESTRUCTION`."""

    business_id: Id
    action: str
    timestamp: Time
    location_id: str | None = None


class RenameMembers(msgspec.Struct, rename="camel"):
    """The members of an `UPDATE_RESOURCE_ID`."""

    business_id: Id
    location_id: Id
    resource_type: Id
    old_resource_id: LongId
    new_resource_id: LongId
    timestamp: Time
    additional_data: msgspec.Raw = msgspec.Raw(b"")


class AdminMembers(msgspec.Struct, rename="camel"):
    """The members of an `ADMIN_ACCOUNT_CREATION`; its `domainLabel` is not used here."""

    business_id: Id
    location_id: Id
    business_type: Id
    admin_email: Email
    admin_user_id: LongId
    timestamp: Time


class _PeekedControl(msgspec.Struct, rename="camel"):
    message_type: msgspec.Raw = ABSENT
    business_type: msgspec.Raw = ABSENT
    admin_email: msgspec.Raw = ABSENT


# Decodes to a message wherever the decoder works: it shows whether one that does not is at fault.
SOUND_MESSAGE: Final = (
    '{"messageType":"SHARD_CREATION","businessId":"a","locationId":"b","businessType":"c",'
    '"timestamp":"2026-01-01T00:00:00Z"}'
)
_LIKE_A_TYPE: Final = re.compile(r"[A-Z0-9_]{1,64}")

_peek_decoder = msgspec.json.Decoder(_PeekedControl)
_creation_decoder = msgspec.json.Decoder(CreationMembers)
_destruction_decoder = msgspec.json.Decoder(DestructionMembers)
_rename_decoder = msgspec.json.Decoder(RenameMembers)
_admin_decoder = msgspec.json.Decoder(AdminMembers)


def decode_control(body: str | bytes, attributes: Mapping[str, str], origin: Origin) -> Control | RejectedRecord:
    """Decode one message; *attributes* are its message attributes."""
    record = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    try:
        return _DECODERS[_type_of(parse_record(record, _peek_decoder), attributes)](record, origin)
    except DECODING_ERRORS as exc:
        business_id, location_id = peeked_texts(record, ("businessId", "locationId"))
        return RejectedRecord(*rejection_of(exc), origin, business_id, location_id)


def with_timestamp(body: str, attributes: Mapping[str, str], origin: Origin) -> str:
    """Return *body*, with the time of its first sending where a `SHARD_CREATION` has no `timestamp`."""
    control = decode_control(body, attributes, origin)
    if (
        not isinstance(control, ProvisionRequest)
        or parse_record(body.encode(), _creation_decoder).timestamp is not None
    ):
        return body
    return body.rstrip()[:-1] + "," + msgspec.json.encode({"timestamp": origin.arrived_at}).decode()[1:]


def _type_of(peeked: _PeekedControl, attributes: Mapping[str, str]) -> ControlType:
    named = attributes.get(TYPE_ATTRIBUTE) or peeked_value(peeked.message_type)
    if not named:
        if peeked_value(peeked.business_type) is not None and peeked_value(peeked.admin_email) is None:
            return ControlType.SHARD_CREATION
        expected = f"one of {_KNOWN}, here or as message attribute {TYPE_ATTRIBUTE}"
        raise UnknownTypeError(member_error("messageType", expected, NOTHING))
    control_type = _TYPES.get(named) if isinstance(named, str) else None
    if control_type is None:
        shown = repr(str(named)) if _LIKE_A_TYPE.fullmatch(str(named)) else "another value"  # errors are logged
        raise UnknownTypeError(member_error("messageType", f"one of {_KNOWN}", shown))
    return control_type


def _parse(record: bytes, decoder: msgspec.json.Decoder[B]) -> B:
    body = parse_record(record, decoder)
    required = [field for field in msgspec.structs.fields(type(body)) if field.required]  # all of these are texts
    check_texts({field.encode_name: getattr(body, field.name) for field in required})
    return body


def _control_of(control_type: type[C], body: msgspec.Struct, **own: Any) -> C:
    same: dict[str, Any] = {name: getattr(body, name) for name in control_type.__struct_fields__ if name not in own}
    return control_type(**same, **own)


def _decode_creation(record: bytes, origin: Origin) -> ProvisionRequest:
    body = _parse(record, _creation_decoder)
    # The references' own messages have none. Every receive of a message has the same sent time.
    requested_at = origin.arrived_at if body.timestamp is None else parse_timestamp(body.timestamp)
    return _control_of(ProvisionRequest, body, requested_at=requested_at)


def _decode_destruction(record: bytes, _origin: Origin) -> ShardDestruction:
    body = _parse(record, _destruction_decoder)
    if body.action not in _ACTIONS:
        raise InvalidRecordError("action", "destroy or destroy_all", "another text")
    location_id = None
    if body.action == DestructionAction.DESTROY:
        location_id = body.location_id
        if location_id is None or not 1 <= len(location_id) <= ID_MAX_CHARS:
            expected = f"1 to {ID_MAX_CHARS} characters, or action destroy_all for every location"
            raise InvalidRecordError("locationId", expected, "more" if location_id else NOTHING)
    check_texts({"locationId": location_id})
    return ShardDestruction(
        business_id=body.business_id, location_id=location_id, requested_at=parse_timestamp(body.timestamp)
    )


def _decode_rename(record: bytes, _origin: Origin) -> ResourceRename:
    body = _parse(record, _rename_decoder)
    if body.old_resource_id == body.new_resource_id:
        raise InvalidRecordError("newResourceId", "another id than oldResourceId", "the same one")
    additional_data = object_member(body.additional_data, "additionalData").decode() or None
    requested_at = parse_timestamp(body.timestamp)
    return _control_of(ResourceRename, body, additional_data=additional_data, requested_at=requested_at)


def _decode_admin(record: bytes, _origin: Origin) -> AdminAccount:
    body = _parse(record, _admin_decoder)
    return _control_of(AdminAccount, body, requested_at=parse_timestamp(body.timestamp))


_TYPES: Final = {control_type.value: control_type for control_type in ControlType}
_KNOWN: Final = ", ".join(_TYPES)
_ACTIONS: Final = frozenset(DestructionAction)
_DECODERS: Final[Mapping[ControlType, Callable[[bytes, Origin], Control]]] = {
    ControlType.SHARD_CREATION: _decode_creation,
    ControlType.SHARD_DESTRUCTION: _decode_destruction,
    ControlType.UPDATE_RESOURCE_ID: _decode_rename,
    ControlType.ADMIN_ACCOUNT_CREATION: _decode_admin,
}


class MessageSubject(msgspec.Struct, frozen=True):
    """What a message is about: a tenant, or with *business_id* alone all of a business; and its FIFO group."""

    tenant_id: str | None = None
    business_id: str | None = None
    group_id: str | None = None

    def conflicts_with(self, other: MessageSubject) -> bool:
        """Return whether the two messages must be handled one after the other."""
        if self.group_id is not None and self.group_id == other.group_id:
            return True
        if self.business_id is None or other.business_id is None:
            return False
        if self.tenant_id is None or other.tenant_id is None:
            return self.business_id == other.business_id
        return self.tenant_id == other.tenant_id


def stages_of(subjects: Sequence[MessageSubject]) -> list[list[int]]:
    """Return the indexes of *subjects* in stages: no two of a stage conflict, and each is behind earlier conflicts."""
    stage_by_index: list[int] = []
    for index, subject in enumerate(subjects):
        earlier = (stage_by_index[other] for other in range(index) if subject.conflicts_with(subjects[other]))
        stage_by_index.append(max(earlier, default=-1) + 1)
    stages: list[list[int]] = [[] for _ in range(max(stage_by_index, default=-1) + 1)]
    for index, stage in enumerate(stage_by_index):
        stages[stage].append(index)
    return stages


def first_conflict(subjects: Sequence[MessageSubject], index: int, undecided: Collection[int]) -> int | None:
    """Return the first of the *undecided* for which a message waits, preferably of its own group."""
    subject = subjects[index]
    before = [other for other in sorted(undecided) if other < index and subject.conflicts_with(subjects[other])]
    return min(before, key=lambda other: not is_same_group(subject, subjects[other]), default=None)


def is_same_group(subject: MessageSubject, other: MessageSubject) -> bool:
    """Return whether both are of the same FIFO group."""
    return subject.group_id is not None and subject.group_id == other.group_id
