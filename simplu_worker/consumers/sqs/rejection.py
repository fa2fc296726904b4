"""From an error of a message's decoder to the reason of its rejection, and the members that can still be read. Pure."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from simplu_worker.operations.json_record import ABSENT, InvalidRecordError, json_error, replace_lone_surrogates
from simplu_worker.operations.member_errors import shape_error
from simplu_worker.operations.readable_members import readable_members
from simplu_worker.vocabulary import DeadLetterReason


class UnknownTypeError(Exception):
    """The type of a message is missing or unknown."""


class PeekedMessage(msgspec.Struct, rename="camel"):
    """The tenant's ids of a message that may be invalid, of any type; a subclass adds what its queue needs."""

    business_id: msgspec.Raw = ABSENT
    location_id: msgspec.Raw = ABSENT


P = TypeVar("P", bound=PeekedMessage)

# msgspec's ValidationError is a DecodeError.
DECODING_ERRORS: Final = (
    UnknownTypeError,
    InvalidRecordError,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)


def rejection_of(error: Exception) -> tuple[DeadLetterReason, str]:
    """Return the reason and the text of a rejection because of *error*, one of DECODING_ERRORS."""
    match error:
        case UnknownTypeError():
            return DeadLetterReason.UNKNOWN_TYPE, str(error)
        case InvalidRecordError():
            return DeadLetterReason.INVALID_MESSAGE, str(error)
        case msgspec.ValidationError():
            return DeadLetterReason.INVALID_MESSAGE, shape_error(error)
        case _:
            return DeadLetterReason.INVALID_JSON, json_error(error)


def peek(record: bytes, message_type: type[P]) -> P:
    """Return the readable members of an invalid *record*; only texts when it is no JSON object."""
    try:
        return msgspec.json.decode(replace_lone_surrogates(record), type=message_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        names = {field.encode_name: field.name for field in msgspec.structs.fields(message_type)}
        members = readable_members(record, names)
        return message_type(**{names[name]: value for name, value in members.items()})
