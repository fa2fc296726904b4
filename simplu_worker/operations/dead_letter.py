"""A record that is given up, and why (docs/dead-letters.md); what its decoder rejects, or fails at. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from simplu_worker.errors import place_of
from simplu_worker.operations.json_record import (
    ABSENT,
    InvalidRecordError,
    json_error,
    replace_lone_surrogates,
    shape_error,
    short_text,
)
from simplu_worker.operations.operation import Origin, PartNumber, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

TENANT_ATTRIBUTES: Final = ("BusinessId", "LocationId")  # docs/sending.md


class BadParts(msgspec.Struct, frozen=True, gc=False):
    """Bad parts of a record of several operations; the record of their letter is an aggregate of these alone.

    *part_count* counts all parts, *bad_count* the bad ones. *numbers* are the places of the bad ones, *request_ids*
    those that they have; both are None where the letter had no room. *first_parts* are not in the letter's text.
    """

    part_count: int
    bad_count: int
    reasons: Mapping[str, int]
    numbers: tuple[PartNumber, ...] | None = None
    request_ids: tuple[str | None, ...] | None = None
    first_parts: tuple[RejectedRecord, ...] = ()


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that is given up.

    *request_id* and *resource_id* are the effective ones, so that a replay is de-duplicated like any redelivery.
    *error* must not quote the record: it is logged. *attempts* counts the failed tries of its operation, without
    waits; 1 if it was refused or waited in vain. *message_attributes* and *deduplication_id* are those of an SQS
    message.
    """

    reason: DeadLetterReason
    error: str
    origin: Origin
    failed_at: datetime
    attempts: int
    record: bytes
    request_id: str | None = None
    resource_id: str | None = None
    business_id: str | None = None
    location_id: str | None = None
    message_attributes: Mapping[str, str] | None = None
    deduplication_id: str | None = None
    parts: BadParts | None = None


def dead_letter_of(rejected: RejectedRecord, record: bytes, *, failed_at: datetime, attempts: int = 1) -> DeadLetter:
    """Return the dead letter of a *record* that its decoder rejected."""
    return DeadLetter(
        reason=rejected.reason,
        error=rejected.error,
        origin=rejected.origin,
        failed_at=failed_at,
        attempts=attempts,
        record=record,
        request_id=rejected.request_id,
        resource_id=rejected.resource_id,
        business_id=rejected.business_id,
        location_id=rejected.location_id,
    )


def tenant_of(letter: DeadLetter) -> tuple[str, str] | None:
    """Return business and location: the letter's own, else of its record, else of its attributes."""
    attributes, own = letter.message_attributes or {}, (letter.business_id, letter.location_id)
    in_record = peeked_texts(letter.record, ("businessId", "locationId"))
    business_id, location_id = (
        next((one for one in (known, text) if one is not None), attributes.get(name))
        for known, text, name in zip(own, in_record, TENANT_ATTRIBUTES, strict=True)
    )
    return None if business_id is None or location_id is None else (business_id, location_id)


def origin_of_part(origin: Origin, number: PartNumber) -> Origin:
    """Return the origin of the part at *number* in the record of *origin*."""
    sub, index = number if isinstance(number, tuple) else (number, None)
    return msgspec.structs.replace(origin, sub_sequence_number=sub, part_index=index)


def format_ranges(numbers: Sequence[PartNumber]) -> str:
    """Return rising *numbers* as text: `0-3,7`, or `7:0-4` with indexes."""
    ranges: list[tuple[int | None, list[int]]] = []
    for number in numbers:
        sub, own = number if isinstance(number, tuple) else (None, number)
        if ranges and ranges[-1][0] == sub and ranges[-1][1][1] == own - 1:
            ranges[-1][1][1] = own
        else:
            ranges.append((sub, [own, own]))
    return ",".join(
        ("" if sub is None else f"{sub}:") + (str(first) if first == last else f"{first}-{last}")
        for sub, (first, last) in ranges
    )


def parse_ranges(text: str, count: int) -> tuple[PartNumber, ...]:
    """Return the *count* numbers of `format_ranges`. Raises ValueError for another text or count."""
    numbers: list[PartNumber] = []
    latest = (-1, -1)
    for part in text.split(",", count):
        sub, _, own = part.rpartition(":")
        first, _, last = own.partition("-")
        start, end = int(first), int(last or first) + 1
        begin = (int(sub), start) if sub else (start, -1)
        if not 0 <= start < end <= start + count - len(numbers) or begin <= latest or begin[0] < 0:
            raise ValueError("expected rising numbers, as many as there are bad parts")
        numbers += [(int(sub), index) for index in range(start, end)] if sub else range(start, end)
        latest = (int(sub), end - 1) if sub else (end - 1, -1)
    if len(numbers) != count:
        raise ValueError("expected rising numbers, as many as there are bad parts")
    return tuple(numbers)


class UnknownTypeError(Exception):
    """The type of a message is missing or unknown."""


# msgspec's ValidationError is a DecodeError.
DECODING_ERRORS: Final = (UnknownTypeError, InvalidRecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def rejection_of(error: Exception) -> tuple[DeadLetterReason, str]:
    """Return reason and text of a rejection because of one of DECODING_ERRORS."""
    match error:
        case UnknownTypeError():
            return DeadLetterReason.UNKNOWN_TYPE, str(error)
        case InvalidRecordError():
            return DeadLetterReason.INVALID_MESSAGE, str(error)
        case msgspec.ValidationError():
            return DeadLetterReason.INVALID_MESSAGE, shape_error(error)
        case _:
            return DeadLetterReason.INVALID_JSON, json_error(error)


_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def peeked_texts(record: bytes, names: Sequence[str]) -> list[str | None]:
    """Return the texts that may be ids, of members of a *record* that may be invalid, as far as it can be read."""
    try:
        members = _members_decoder.decode(replace_lone_surrogates(record))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = readable_members(record, names)
    return [short_text(members.get(name, ABSENT)) for name in names]


READ_MAX_BYTES: Final = 16 * 1024  # ids come first, if anything can be read at all

_TOKENS: Final = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*"?', re.DOTALL)
_COLON: Final = re.compile(rb"\s*:\s*")


def readable_members(record: bytes, names: Collection[str]) -> dict[str, msgspec.Raw]:
    """Return the members of *names* with texts, as JSON, of a record that may be cut off.

    Only those of the outermost object.
    """
    found: dict[str, msgspec.Raw] = {}
    text, depth = record[:READ_MAX_BYTES], 0
    name: str | None = None  # of the member whose value comes next
    value_at = -1
    for token in _TOKENS.finditer(text):
        first = token[0][:1]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif token.start() == value_at:
            if name is not None and len(token[0]) > 1 and token[0].endswith(b'"'):
                found[name] = msgspec.Raw(token[0])
        elif depth == 1 and (colon := _COLON.match(text, token.end())) is not None:
            known = token[0][1:-1].decode("ascii", "replace")
            name, value_at = known if known in names else None, colon.end()
    return found


T = TypeVar("T")


def decode_or_reject(decode: Callable[[], T], origin: Origin, *, sound: Callable[[], object]) -> T | RejectedRecord:
    """Return what *decode* returns for one record; where it raises, the record's rejection.

    What *sound*, for a record that is known to be sound, raises passes: then no record is at fault.
    """
    try:
        return decode()
    except MemoryError:  # says nothing of a record
        raise
    except Exception as exc:  # noqa: BLE001  # whatever a defect raises
        sound()
        return RejectedRecord(DeadLetterReason.INTERNAL_ERROR, defect_text(exc), origin)


def defect_text(exc: Exception) -> str:
    """Return the error of a dead letter `internal_error`."""
    return f"the worker failed at this record alone: {place_of(exc)}; report it, and replay the record after the fix"
