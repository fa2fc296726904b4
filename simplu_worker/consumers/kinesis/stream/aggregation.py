"""Unpack records of several operations: JSON arrays, JSON lines, and aggregates, whose records may be either. Pure.

What a record's parts are is a function of its bytes alone. The Kinesis Producer Library's aggregates
(`aggregation-format.md`) are magic, protobuf message, MD5 of the message:

    AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
                       repeated Record records = 3; }
    Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2;
             required bytes data = 3; repeated Tag tags = 4; }
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.stream.positions import HashRange
from simplu_worker.operations.json_record import (
    ABSENT,
    RECORD_MAX_DEPTH,
    has_escapes,
    parse_record,
    replace_lone_surrogates,
)
from simplu_worker.operations.operation import PartNumber

# The error of an aggregate that does not lie within its stream shard: one dead letter for the whole aggregate.
OUTSIDE: Final = (
    "aggregate: expected sub-records with hash keys of its stream shard only, got some of another stream shard; none "
    "was applied. The Kinesis Producer Library resends the sub-records of other stream shards, other producers resend "
    "none: send all sub-records again, each as a record with its requestId; those already applied are dropped. A "
    "producer without the library must pack for one stream shard at a time, or not at all"
)

# Most sub-records of an aggregate. A valid operation takes at least 101 bytes of one, so that the 10 MiB of the largest
# record hold 103,819: an aggregate with more has sub-records that are no operations.
PARTS_MAX: Final = 131_072

TOO_MANY: Final = (
    f"aggregate: expected at most {PARTS_MAX} sub-records, more than there is room for with valid operations, got "
    "more; none was applied. Send the valid ones again, each with its requestId"
)

MAGIC: Final = b"\xf3\x89\x9a\xc2"
_MAGIC_BYTES: Final = 4
_DIGEST_BYTES: Final = 16
_HASH_KEY_MAX: Final = (1 << 128) - 1  # Kinesis API reference, ExplicitHashKey
_HASH_KEY_MAX_DIGITS: Final = 39

# Protobuf encoding: a tag is the field's number << 3 | its wire type; a varint has 7 bits a byte, the lowest first.
_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}  # by wire type
_TAG_MAX: Final = (1 << 32) - 1
_VARINT_MAX: Final = (1 << 64) - 1
_VARINT_MAX_SHIFT: Final = 70  # after ten bytes

_PARTITION_KEY: Final = 1 << 3 | _LENGTH_DELIMITED
_EXPLICIT_HASH_KEY: Final = 2 << 3 | _LENGTH_DELIMITED
_RECORD: Final = 3 << 3 | _LENGTH_DELIMITED
_FIELDS_OF_AGGREGATE: Final = frozenset({_PARTITION_KEY, _EXPLICIT_HASH_KEY, _RECORD})

_PARTITION_KEY_INDEX: Final = 1 << 3 | _VARINT
_EXPLICIT_HASH_KEY_INDEX: Final = 2 << 3 | _VARINT
_DATA: Final = 3 << 3 | _LENGTH_DELIMITED
_FIELDS_OF_RECORD: Final = frozenset({_PARTITION_KEY_INDEX, _EXPLICIT_HASH_KEY_INDEX, _DATA})


class Part(msgspec.Struct, frozen=True, gc=False):
    """A sub-record of an aggregate, or an operation of a record of several.

    *index* counts from 0 in an array or in lines, of which *parts_behind* follow. *refusal* is why a record of too many
    parts is none.
    """

    partition_key: str
    data: bytes
    sub_sequence_number: int = 0
    explicit_hash_key: str | None = None
    index: int | None = None
    parts_behind: int = 0
    refusal: str | None = None

    @property
    def number(self) -> PartNumber:
        """The place in its record."""
        return self.sub_sequence_number if self.index is None else (self.sub_sequence_number, self.index)


class _MalformedError(ValueError):
    """The bytes are not an AggregatedRecord."""


def deaggregate(data: bytes) -> list[Part] | None:
    """Return the sub-records of an aggregate, of more than PARTS_MAX one more than these.

    None for a record that is no aggregate to the last byte.
    """
    if not data.startswith(MAGIC) or len(data) <= _MAGIC_BYTES + _DIGEST_BYTES:
        return None
    message = data[_MAGIC_BYTES:-_DIGEST_BYTES]
    if hashlib.md5(message, usedforsecurity=False).digest() != data[-_DIGEST_BYTES:]:
        return None
    try:
        return _sub_records(message) or None
    except (_MalformedError, LookupError, UnicodeDecodeError):  # LookupError: the end is early, or a field is missing
        return None


class AggregatePacker:
    """Packs records as an aggregate, without explicit hash keys."""

    def __init__(self) -> None:
        self._key_indexes: dict[str, int] = {}
        self._records = bytearray()

    def add(self, partition_key: str, data: bytes) -> None:
        """Add a record."""
        index = self._key_indexes.setdefault(partition_key, len(self._key_indexes))
        record = b"%c%b%b" % (_PARTITION_KEY_INDEX, _encode_varint(index), _encode_field(_DATA, data))
        self._records += _encode_field(_RECORD, record)

    def seal(self) -> bytes:
        """Return the aggregate of all records, in order."""
        keys = b"".join(_encode_field(_PARTITION_KEY, key.encode()) for key in self._key_indexes)
        message = keys + self._records
        return MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()


def hash_key_of(sub: Part) -> int:
    """Return the hash key of a sub-record: the explicit one, else the MD5 of its key."""
    if sub.explicit_hash_key is not None:
        return int(sub.explicit_hash_key)
    return int.from_bytes(hashlib.md5(sub.partition_key.encode(), usedforsecurity=False).digest())


def lies_within(subs: Iterable[Part], hash_range: HashRange | None) -> bool:
    """Return whether all of *subs* belong to the stream shard of *hash_range*; True when that is unknown.

    As the KCL's `AggregatorUtil.deaggregate`. Applying others would break the order: later records of their keys are
    read elsewhere.
    """
    if hash_range is None:
        return True
    distinct = {(sub.partition_key, sub.explicit_hash_key): sub for sub in subs}  # many records, few keys
    return all(hash_range.first <= hash_key_of(sub) <= hash_range.last for sub in distinct.values())


def _sub_records(message: bytes) -> list[Part]:
    partition_keys: list[str] = []
    hash_keys: list[str] = []
    records: list[bytes] = []  # decoded at the end: the tables may come after them
    for tag, value in _fields(message, _FIELDS_OF_AGGREGATE):
        if tag == _RECORD:
            records.append(value)
            if len(records) > PARTS_MAX:
                break
        elif tag == _PARTITION_KEY:
            partition_keys.append(value.decode())
        else:
            hash_keys.append(_hash_key(value))
    return [_sub_record(record, number, partition_keys, hash_keys) for number, record in enumerate(records)]


def _sub_record(record: bytes, number: int, partition_keys: list[str], hash_keys: list[str]) -> Part:
    fields = dict(_fields(record, _FIELDS_OF_RECORD))  # of a repeated field the last value counts, as in protobuf
    at = fields.get(_EXPLICIT_HASH_KEY_INDEX)
    hash_key = None if at is None else hash_keys[at]
    return Part(partition_keys[fields[_PARTITION_KEY_INDEX]], fields[_DATA], number, hash_key)


def _fields(message: bytes, wanted: frozenset[int]) -> Iterator[tuple[int, Any]]:
    # Varints of one byte, nearly all, are read inline: a call for each would cost as much as the rest.
    at, end = 0, len(message)
    while at < end:
        tag = message[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(message, at - 1)
        if tag not in wanted:
            at = _after(message, at, tag)
            continue
        value = message[at]
        at += 1
        if value > 0x7F:
            value, at = _varint(message, at - 1)
        if tag & 7 == _VARINT:
            yield tag, value
        else:
            yield tag, message[at : at + value]
            at += value
    if at > end:
        raise _MalformedError


def _encode_field(tag: int, value: bytes) -> bytes:
    return b"%c%b%b" % (tag, _encode_varint(len(value)), value)


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    byte = message[at]
    value = byte & 0x7F
    shift = 7
    while byte > 0x7F and shift < _VARINT_MAX_SHIFT:
        at += 1
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    if byte > 0x7F or value > _VARINT_MAX:
        raise _MalformedError
    return value, at + 1


def _after(message: bytes, at: int, tag: int) -> int:
    if tag >> 3 == 0 or tag > _TAG_MAX:
        raise _MalformedError
    wire_type = tag & 7
    if wire_type == _VARINT:
        return _varint(message, at)[1]
    if wire_type == _LENGTH_DELIMITED:
        length, at = _varint(message, at)
        return at + length
    if wire_type in _FIXED_BYTES:
        return at + _FIXED_BYTES[wire_type]
    raise _MalformedError  # groups, which this format never had, and wire types that protobuf does not know


def _hash_key(value: bytes) -> str:
    if not value.isdigit() or len(value) > _HASH_KEY_MAX_DIGITS or int(value) > _HASH_KEY_MAX:
        raise _MalformedError
    return value.decode()


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


def unpack(record: bytes, partition_key: str, sub_sequence_number: int = 0) -> list[Part] | None:
    """Return the parts of a record of several operations; None for another record."""
    subs = deaggregate(record)
    return parts_of_record(record, partition_key, sub_sequence_number) if subs is None else parts_of_aggregate(subs)


def parts_of_aggregate(subs: Iterable[Part]) -> list[Part]:
    """Return the parts of an aggregate, of more than PARTS_MAX some more than these."""
    parts: list[Part] = []
    for sub in subs:
        data = sub.data
        found = None
        if not data.startswith(b"{") or _NEWLINE in data:
            found = parts_of_record(data, sub.partition_key, sub.sub_sequence_number)
        parts += [sub] if found is None else found
        if len(parts) > PARTS_MAX:
            break
    return parts


def parts_of_record(record: bytes, partition_key: str, sub_sequence_number: int = 0) -> list[Part] | None:
    """Return the parts of a JSON array or of JSON lines; None for another record.

    JSON lines are no JSON as a whole, and their first or second line is an object.
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
        Part(partition_key, data, sub_sequence_number, index=index, parts_behind=count - 1 - index)
        for index, data in enumerate(found)
    ]


def _elements(record: bytes) -> Sequence[bytes]:
    text = replace_lone_surrogates(record) if has_escapes(record) else record
    try:
        raw = msgspec.structs.astuple(parse_record(text, _elements_decoder, levels=1 + RECORD_MAX_DEPTH))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    originals, end = [], 0
    for element in map(bytes, takewhile(lambda element: element is not ABSENT, raw)):
        start = text.index(element, end)  # behind a bracket or comma, and spaces
        end = start + len(element)
        originals.append(record[start:end])
    return originals


def _lines(record: bytes) -> Sequence[bytes]:
    if record.startswith(_BYTE_ORDER_MARK) or _is_json(record):
        return ()
    lines = [match.group().rstrip(_JSON_SPACE) for match in islice(_LINES.finditer(record), PARTS_OF_RECORD_MAX + 1)]
    has_object = any(line.startswith(b"{") and _is_json(line) for line in lines[:2])
    return lines if len(lines) > 1 and has_object else ()


def _is_json(text: bytes) -> bool:
    try:
        parse_record(text, _object_decoder)
    except msgspec.ValidationError:  # of another shape
        return True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
