"""Decode messages of the control queue (contract §4). Pure; whatever the text, a decision and never an exception."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from simplu_worker.operations.decode import NESTING_MAX, Id, nesting_of, parse_timestamp, replace_lone_surrogates
from simplu_worker.operations.operation import DeadLetterReason, Origin, Rejected

TYPE_ATTRIBUTE: Final = "MessageType"
QUOTED_MAX_CHARS: Final = 64

T = TypeVar("T")


class ControlType(StrEnum):
    """The types of control messages."""

    SHARD_CREATION = "SHARD_CREATION"
    SHARD_DESTRUCTION = "SHARD_DESTRUCTION"
    UPDATE_RESOURCE_ID = "UPDATE_RESOURCE_ID"
    ADMIN_ACCOUNT_CREATION = "ADMIN_ACCOUNT_CREATION"


class ShardCreation(msgspec.Struct, frozen=True):
    """A tenant is to be provisioned. *shard_id* and *connection_string* are the sender's wish, `None` without one."""

    business_id: str
    location_id: str
    business_type: str
    requested_at: datetime
    shard_id: str | None
    connection_string: str | None

    def __repr__(self) -> str:
        """Leave the connection string out: it holds a password."""
        return f"ShardCreation({self.business_id!r}, {self.location_id!r}, {self.business_type!r})"


class NotYet(msgspec.Struct, frozen=True):
    """A message of a type that this version knows by name only: it stays in the queue for one that handles it."""

    type: ControlType


class _Body(msgspec.Struct, rename="camel"):
    """The members of a `SHARD_CREATION`."""

    business_id: Id
    location_id: Id
    business_type: Id
    timestamp: str
    shard_id: str | None = None
    connection_string: str | None = None


class _Peek(msgspec.Struct, rename="camel"):
    """What decides the type of a message, and what an error about it can name."""

    message_type: object = None
    business_type: object = None
    admin_email: object = None
    business_id: object = None
    location_id: object = None


class _Envelope(msgspec.Struct, rename="pascal"):
    """What SNS puts around a message when raw delivery is off."""

    type: object = None
    message: object = None
    message_attributes: object = None


class _InvalidError(Exception):
    """The message breaks a rule of the contract; the text says which."""

    def __init__(self, reason: DeadLetterReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def decode_control(
    body: str | bytes, attributes: Mapping[str, str], origin: Origin
) -> ShardCreation | NotYet | Rejected:
    """Decode one message; *attributes* are its message attributes."""
    record = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    try:
        record = _checked(record)
        record, attributes = _unwrapped(record, attributes)
        control_type = _type_of(_decode(record, _Peek), attributes)
        return _creation(record) if control_type is ControlType.SHARD_CREATION else NotYet(control_type)
    except _InvalidError as exc:
        ids = _peek_or_nothing(record)
        return Rejected(
            reason=exc.reason,
            error=str(exc),
            origin=origin,
            business_id=_short_text(ids.business_id),
            location_id=_short_text(ids.location_id),
        )


def _checked(record: bytes) -> bytes:
    """Return *record* with what msgspec would trip over out of the way: bad UTF-8, deep nesting, lone surrogates."""
    try:
        record.decode()
    except UnicodeDecodeError as exc:
        text = f"expected UTF-8, got another byte at {exc.start}"
        raise _InvalidError(DeadLetterReason.INVALID_JSON, text) from None
    if record.count(b"[") + record.count(b"{") > NESTING_MAX and nesting_of(record) > NESTING_MAX:
        text = f"expected JSON nested at most {NESTING_MAX} deep, got deeper"
        raise _InvalidError(DeadLetterReason.INVALID_JSON, text)
    return replace_lone_surrogates(record)


def _unwrapped(record: bytes, attributes: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    envelope = _decode(record, _Envelope)
    if envelope.type != "Notification" or not isinstance(envelope.message, str):
        return record, attributes
    return _checked(envelope.message.encode()), {**_sns_attributes(envelope.message_attributes), **attributes}


def _sns_attributes(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    members = {name: member.get("Value") for name, member in value.items() if isinstance(member, dict)}
    return {name: text for name, text in members.items() if isinstance(text, str)}


def _decode(record: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(record, type=kind)
    except msgspec.ValidationError as exc:
        raise _InvalidError(DeadLetterReason.INVALID_MESSAGE, str(exc)) from None
    except msgspec.DecodeError as exc:
        raise _InvalidError(DeadLetterReason.INVALID_JSON, f"expected one JSON object: {exc}") from None


def _type_of(peek: _Peek, attributes: Mapping[str, str]) -> ControlType:
    named = attributes.get(TYPE_ATTRIBUTE) or peek.message_type
    if not named:
        if peek.business_type is not None and peek.admin_email is None:
            return ControlType.SHARD_CREATION
        text = f"no type: expected message attribute {TYPE_ATTRIBUTE} or member messageType, one of {_KNOWN}"
        raise _InvalidError(DeadLetterReason.UNKNOWN_TYPE, text)
    control_type = _TYPES.get(named) if isinstance(named, str) else None
    if control_type is None:
        text = f"unknown type {str(named)[:QUOTED_MAX_CHARS]!r}: expected one of {_KNOWN}"
        raise _InvalidError(DeadLetterReason.UNKNOWN_TYPE, text)
    return control_type


_TYPES = {control_type.value: control_type for control_type in ControlType}
_KNOWN = ", ".join(_TYPES)


def _creation(record: bytes) -> ShardCreation:
    body = _decode(record, _Body)
    ids = {"businessId": body.business_id, "locationId": body.location_id, "businessType": body.business_type}
    for name, value in ids.items():
        if "\0" in value:
            text = f"{name}: expected text without U+0000 and lone surrogates"
            raise _InvalidError(DeadLetterReason.INVALID_MESSAGE, text)
    try:
        requested_at = parse_timestamp(body.timestamp)
    except ValueError:
        text = "timestamp: expected ISO 8601 in the years 0001 to 9999, such as 2026-01-31T09:00:00Z"
        raise _InvalidError(DeadLetterReason.INVALID_MESSAGE, text) from None
    return ShardCreation(
        business_id=body.business_id,
        location_id=body.location_id,
        business_type=body.business_type,
        requested_at=requested_at,
        shard_id=body.shard_id or None,
        connection_string=body.connection_string or None,
    )


def _peek_or_nothing(record: bytes) -> _Peek:
    try:
        return msgspec.json.decode(record, type=_Peek)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Peek()


def _short_text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= 128 else None
