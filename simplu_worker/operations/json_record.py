"""Parse the JSON text of a record from outside, whatever its bytes: its members, its ids, its times. Pure.

Every decision is a function of the record's bytes alone, so that every reader of the record, today or after a crash,
decides the same (architecture, idea 7).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar, cast

import msgspec

from simplu_worker.operations.document_bounds import DOCUMENT_MAX_DEPTH
from simplu_worker.operations.member_errors import EXPECTED_TIME, RECORD, kind_of, member_error
from simplu_worker.operations.nesting import cut_deep_values, is_nested_deeper

NESTING_MAX: Final = 1 + DOCUMENT_MAX_DEPTH  # far below the interpreter's own limit, which differs between versions
SHALLOW_MAX_BYTES: Final = 2 * NESTING_MAX  # a text of as many bytes has no room for more brackets, opened and closed
TOGETHER_MAX_BYTES: Final = 64 * 1024  # a larger record is looked at alone, so that no step over it is made twice
ABSENT: Final = msgspec.Raw(b"")

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
LongId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

# RFC 3339 in the years 0001 to 9999 of UTC, or without its offset, or its date alone. `$` is none of its ends, as it
# has a line end behind it in Python. The decoders and the schemas of messages have no other rule.
TIME: Final = (
    r"^(?!0000|0001-01-01[^+]*\+(?!00:00)|9999-12-31[Tt][^-]*-(?!00:00))"
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
    r"([Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?)?(?![\s\S])"
)
Time = Annotated[str, msgspec.Meta(pattern=TIME)]

T = TypeVar("T")

_TIME = re.compile(TIME)
_KEPT_MAX_CHARS = 27  # six decimals: Python cuts further ones, and Postgres rounds them

# A whole run of backslashes before what looks like a surrogate, which is one only if the run is of odd length.
# No possessive quantifiers here: Python 3.11.2, the version of Debian 12, matches some of them wrongly.
_SURROGATES = re.compile(rb"(?<!\\)(\\+)u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SURROGATE_BYTES = 6


class InvalidRecordError(Exception):
    """The record breaks a rule of the contract, which the text names."""

    def __init__(self, member: str, expected: str, got: str) -> None:
        super().__init__(member_error(member, expected, got))


def parse_timestamp(text: str) -> datetime:
    """Parse a `TIME` into UTC; no offset means UTC, a date alone its midnight. Raises `ValueError` for another text."""
    if _TIME.search(text) is None:
        raise ValueError(f"expected {EXPECTED_TIME}, got another text")
    parsed = datetime.fromisoformat(text.upper())
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def utc_text(text: str) -> str:
    """Return a `TIME` as text in UTC, which Postgres parses to the same instant."""
    return text if text[-1] == "Z" and len(text) <= _KEPT_MAX_CHARS else parse_timestamp(text).isoformat()


def replace_lone_surrogates(record: bytes) -> bytes:
    r"""Replace every unpaired surrogate escape of a JSON text by the escape of U+0000, which has the same length.

    Neither can be stored, but the parser accepts the second, to which the rules for U+0000 apply: an id with it is
    invalid, and data with it gets the outcome `invalid_data`.
    """
    mended = bytearray(record)
    high_end = -1  # the end of a high surrogate, where its low one may begin
    for match in _SURROGATES.finditer(record):
        if len(match[1]) % 2 == 0:
            continue  # the last backslash is itself escaped
        start, is_low = match.end() - _SURROGATE_BYTES, record[match.end() - 3] in b"cdefCDEF"
        if is_low and start == high_end:
            high_end = -1
            continue
        _blank(mended, high_end)
        high_end = -1 if is_low else match.end()
        if is_low:
            _blank(mended, match.end())
    _blank(mended, high_end)
    return bytes(mended)


def _blank(mended: bytearray, end: int) -> None:
    """Replace the escape that ends at *end* by that of U+0000; do nothing for -1."""
    if end >= 0:
        mended[end - _SURROGATE_BYTES : end] = rb"\u0000"


def parse_record(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Parse *record*, nested however deep, with its lone surrogates replaced.

    A member with a deep value must be unknown, or raw in the type of *decoder*.
    Raises `msgspec.ValidationError` for JSON of another shape; for anything else, `msgspec.DecodeError`,
    `UnicodeDecodeError` or `RecursionError`, which `json_error` describes.
    """
    if not record.isascii():
        record.decode()  # msgspec does not check the strings that it skips or keeps raw
    parse = _parse_deep if is_too_deep(record) else _parse_shallow
    try:
        return parse(record, decoder)
    except msgspec.DecodeError:
        mended = replace_lone_surrogates(record) if has_escapes(record) else record
        if mended == record:
            raise
        return parse(mended, decoder)


def parse_records(records: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> list[T] | None:
    """Return what `parse_record` returns for each of *records*, in less time; None where one of them is unusual."""
    longest = max(map(len, records))
    if longest > TOGETHER_MAX_BYTES or (longest > SHALLOW_MAX_BYTES and any(map(is_too_deep, records))):
        return None
    try:
        if not all(map(bytes.isascii, records)):
            deque(map(bytes.decode, records), maxlen=0)
        return list(map(decoder.decode, records))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_too_deep(record: bytes) -> bool:
    """Return whether a JSON text is nested deeper than a parser may recurse."""
    return len(record) > SHALLOW_MAX_BYTES and is_nested_deeper(record, NESTING_MAX)


def _parse_shallow(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(record)
    except msgspec.ValidationError:
        # msgspec stops at the first fault of any kind, but text that is no JSON at all must be reported as that.
        msgspec.json.decode(record, type=msgspec.Raw)
        raise


def _parse_deep(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    cut = cut_deep_values(record)
    return cast("T", _with_values(_parse_shallow(cut.text, decoder), cut.values))


def _with_values(message: Any, values: Mapping[bytes, bytes]) -> Any:
    """Return *message*, a struct or a dictionary, with the deep values of its raw members in their places."""
    members: dict[str, Any] = message if isinstance(message, dict) else msgspec.structs.asdict(message)
    raw = {name: bytes(value) for name, value in members.items() if isinstance(value, msgspec.Raw)}
    deep = {name: msgspec.Raw(values[place]) for name, place in raw.items() if place in values}
    return members | deep if isinstance(message, dict) else msgspec.structs.replace(message, **deep)


def json_error(exc: Exception) -> str:
    """Return why a record is no JSON, without quoting it."""
    match exc:
        case RecursionError():  # only if the worker's own calls are nested deep
            return member_error(RECORD, f"JSON nested at most {NESTING_MAX} deep", "deeper")
        case UnicodeDecodeError():
            return member_error(RECORD, "UTF-8", f"another byte at {exc.start}")
        case _:
            return member_error(RECORD, "one JSON object", f"a text that is none: {exc}")


def has_escapes(record: bytes) -> bool:
    """Return whether a JSON text has an escaped character: U+0000 can only occur as one."""
    return b"\\u" in record


def check_texts(texts: Mapping[str, str | None]) -> None:
    """Raise `InvalidRecordError` for a text that Postgres cannot store, with the name of its member."""
    for name, value in texts.items():
        if value is not None and "\0" in value:
            raise InvalidRecordError(name, "text without U+0000 and lone surrogates", "one with them")


def object_member(raw: msgspec.Raw, name: str, *, required: bool = False) -> bytes:
    """Return the bytes of an object member; empty if it is absent or null. Raises `InvalidRecordError`."""
    value = bytes(raw)
    if value[:1] == b"{":
        return value
    if required or value not in {b"", b"null"}:
        raise InvalidRecordError(name, "an object", kind_of(value))
    return b""


def peeked_value(raw: msgspec.Raw) -> object:
    """Return the value of a member that may be any; infinity for one that cannot be read, None for none."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return math.inf


def short_text(raw: msgspec.Raw) -> str | None:
    """Return the value of a member if it may be an id, otherwise None."""
    value = peeked_value(raw)
    return value if isinstance(value, str) and len(value) <= 256 else None
