"""Unpack records of several operations: JSON arrays, JSON lines, and aggregates, whose records may be either. Pure.

What a record's parts are is a function of its bytes alone: every reader finds the same ones, with the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.stream.aggregation import SubRecord, TooManyPartsError, deaggregate
from simplu_worker.operations.json_record import ABSENT, has_escapes, parse_record, replace_lone_surrogates
from simplu_worker.operations.operation import PartNumber

PARTS_OF_RECORD_MAX: Final = 1_000  # docs/sending.md

TOO_MANY_OF_RECORD: Final = (
    f"expected at most {PARTS_OF_RECORD_MAX} operations in a record, got more; none was applied. Send them again in "
    "several records"
)

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NEWLINE: Final = ord("\n")
_JSON_SPACE: Final = b" \t\r\n"
_LINES: Final = re.compile(rb"[^ \t\r\n][^\n]*")


class _AnyObject(msgspec.Struct):
    """A JSON object, whatever its members: these take no memory."""


# The elements of an array, and whether it has more than it may, in one pass: the elements beyond take no memory.
_elements_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Elements",
        [(f"element_{number}", msgspec.Raw, ABSENT) for number in range(PARTS_OF_RECORD_MAX + 1)],
        array_like=True,
        gc=False,
    )
)
_object_decoder = msgspec.json.Decoder(_AnyObject)


class Part(msgspec.Struct, frozen=True, gc=False):
    """One operation, or what stands in its place.

    *index* counts from 0 in an array or in lines, of which *parts_behind* follow it; None for a record, or one of an
    aggregate, that is one operation. *refusal* is why a record of too many parts is none.
    """

    partition_key: str
    data: bytes
    sub_sequence_number: int = 0
    index: int | None = None
    parts_behind: int = 0
    refusal: str | None = None

    @property
    def number(self) -> PartNumber:
        """The place in its record."""
        return self.sub_sequence_number if self.index is None else (self.sub_sequence_number, self.index)


def unpack(record: bytes, partition_key: str, sub_sequence_number: int = 0) -> list[Part] | None:
    """Return the parts of a record of several operations, however many an aggregate has; None for another record."""
    subs = deaggregate(record)
    if subs is not None:
        return parts_of_aggregate(subs)
    return parts_of_record(record, partition_key, sub_sequence_number)


def parts_of_aggregate(subs: Iterable[SubRecord], *, parts_max: int | None = None) -> list[Part]:
    """Return the parts of an aggregate. Raises TooManyPartsError for more than *parts_max*."""
    parts: list[Part] = []
    for sub in subs:
        data = sub.data
        found = None
        if not data.startswith(b"{") or _NEWLINE in data:
            found = parts_of_record(data, sub.partition_key, sub.sub_sequence_number)
        if found is None:
            parts.append(Part(sub.partition_key, data, sub.sub_sequence_number))
        else:
            parts += found
            if parts_max is not None and len(parts) > parts_max:
                break  # before the next array
    if parts_max is not None and len(parts) > parts_max:
        raise TooManyPartsError
    return parts


def parts_of_record(record: bytes, partition_key: str, sub_sequence_number: int = 0) -> list[Part] | None:
    """Return the parts of a JSON array or of JSON lines; None for another record, such as a broken or an empty array.

    JSON lines are no JSON as a whole, and their first or second line is a JSON object: so is no object that is written
    over several lines. Empty lines do not count.
    """
    if record.lstrip(_JSON_SPACE).startswith(b"["):
        found = _elements(record)
    else:
        found = _lines(record) if _NEWLINE in record else []
    if not found:
        return None
    count = len(found)
    if count > PARTS_OF_RECORD_MAX:
        return [Part(partition_key, record, sub_sequence_number, refusal=TOO_MANY_OF_RECORD)]
    return [
        Part(partition_key, data, sub_sequence_number, index, count - 1 - index) for index, data in enumerate(found)
    ]


def _elements(record: bytes) -> Sequence[bytes]:
    """Return the elements of an array, one more than it may have at most; none for no JSON."""
    text = replace_lone_surrogates(record) if has_escapes(record) else record
    try:
        raw = msgspec.structs.astuple(parse_record(text, _elements_decoder))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    elements = list(map(bytes, takewhile(lambda element: element is not ABSENT, raw)))
    return elements if text == record else _same_places(elements, text, record)


def _same_places(elements: Iterable[bytes], text: bytes, record: bytes) -> list[bytes]:
    """Return the bytes of *record* at the places of the *elements* of *text*, which has the same length."""
    found: list[bytes] = []
    end = text.index(b"[") + 1
    for element in elements:  # only spaces and a comma are before it, with which no element begins
        start = text.index(element, end)
        end = start + len(element)
        found.append(record[start:end])
    return found


def _lines(record: bytes) -> Sequence[bytes]:
    """Return the lines of JSON lines, one more than these may have at most; none for another text."""
    if record.startswith(_BYTE_ORDER_MARK) or _is_json(record):
        return ()
    lines = [match.group().rstrip(_JSON_SPACE) for match in islice(_LINES.finditer(record), PARTS_OF_RECORD_MAX + 1)]
    return lines if len(lines) > 1 and any(map(_is_object, lines[:2])) else ()


def _is_json(text: bytes) -> bool:
    try:
        parse_record(text, _object_decoder)
    except msgspec.ValidationError:  # of another shape
        return True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _is_object(text: bytes) -> bool:
    return text.startswith(b"{") and _is_json(text)
