"""Parse, bound and merge the JSON texts of records from outside, and say what is wrong with them. Pure.

Every decision is a function of the record's bytes alone (architecture, idea 7). All passes are linear. Postgres writes
a number out as plain decimal text: 63 KB of record may be 917 MB for every reader. No error quotes a value.

The shard merges most patches itself, by two operators: members at the top, and whole members of an object below them.
The others are merged here, by RFC 7396.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, Final, TypeVar

import msgspec

CHUNK_BYTES: Final = 1024

_STRINGS = re.compile(rb'"[^"]*"?')
_NOT_BRACKETS_OR_QUOTES: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND_OF_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_AS_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")  # 1 and -1 as signed bytes


def is_nested_deeper(text: bytes, limit: int) -> bool:
    """Return whether the arrays and objects of a JSON text are nested more than *limit* deep."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    # Two adjacent quotes are then an empty string, or the border of two strings with only commas and spaces in between.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    shape = unescaped.translate(_ONE_KIND_OF_BRACKET, _NOT_BRACKETS_OR_QUOTES).replace(b'""', b"")
    brackets = _STRINGS.sub(b"", shape)
    depth = 0
    for start in range(0, len(brackets), CHUNK_BYTES):
        chunk = brackets[start : start + CHUNK_BYTES]
        openings = chunk.count(b"[")
        if depth + openings > limit and max(accumulate(array("b", chunk.translate(_AS_STEPS)), initial=depth)) > limit:
            return True
        depth += 2 * openings - len(chunk)
    return False


NUMBER_MAX_DIGITS: Final = 1000
DOCUMENT_MAX_VALUES: Final = 100_000  # members of objects and elements of arrays, at every depth
DOCUMENT_MAX_DEPTH: Final = 512
DOCUMENT_MAX_BYTES: Final = 16 * 1024 * 1024  # of text, with every number written out
BOUNDS_TEXT: Final = (
    f"at most {DOCUMENT_MAX_VALUES:,} values, nested at most {DOCUMENT_MAX_DEPTH} deep, {NUMBER_MAX_DIGITS:,} digits a"
    " number and 16 MiB of text with every number written out, without U+0000 and lone surrogates"
)

# An exponent of two digits, or of one with its sign; it may also be in a string.
_EXPONENT: Final = b"0e00"
_SHAPE_OF_NUMBERS: Final = bytes(
    ord("0") if byte in b"0123456789+-" else ord("e") if byte in b"eE" else 0 for byte in range(256)
)
# A number with an exponent outside of strings, without its digits: most UUIDs have the shape above, and none has this.
_BARE_EXPONENT: Final = b":e:"
_NUMBER_CHARACTERS: Final = b"0123456789+-."
_SHAPE_WITHOUT_NUMBERS: Final = bytes(
    ord("e") if byte in b"eE" else ord(":") if byte in b":,[]{} \t\n\r" else 0 for byte in range(256)
)
_SCALED_NUMBER = re.compile(rb"[\s:\[,]-?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{2}")
_NUMBER_PARTS = re.compile(rb"-?([0-9]+)(?:\.([0-9]+))?[eE]([+-]?)0*([0-9]+)")
_EXPONENT_MAX_CHARS: Final = 6  # a longer one is beyond all bounds
_BETWEEN_NUMBERS = re.compile(rb"[^-+.0-9eE]+")
_BEFORE_EXPONENT = re.compile(rb"[0-9][eE]")
_PART_OF_NUMBER_TWICE = re.compile(rb"[0-9.]{2}")
_SAMPLE_STEP: Final = NUMBER_MAX_DIGITS // 2  # of a longer number two samples in a row are digits
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_UNUSUAL_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SPACES: Final = b" \t\n\r"


def exceeds_bounds(document: bytes) -> bool:
    """Return whether a JSON object has too many values or levels, a text or number that is not stored, or too much."""
    if _BACKSLASH in document and _has_unstorable_text(document):
        return True
    is_scaled = (  # the cheapest sign first; `find`, as `in` takes half as long again
        document.translate(_SHAPE_OF_NUMBERS).find(_EXPONENT) >= 0
        and document.translate(_SHAPE_WITHOUT_NUMBERS, _NUMBER_CHARACTERS).find(_BARE_EXPONENT) >= 0
        and _SCALED_NUMBER.search(document) is not None
    )
    if not is_scaled and len(document) <= NUMBER_MAX_DIGITS:
        return False  # nearly always
    is_large = len(document) > DOCUMENT_MAX_VALUES or sum(map(document.count, b"[{")) > DOCUMENT_MAX_DEPTH
    if is_scaled or is_large or _PART_OF_NUMBER_TWICE.search(document[::_SAMPLE_STEP]) is not None:
        return _exceeds_exactly(document)
    return False


def _has_unstorable_text(document: bytes) -> bool:
    has_unusual = _UNUSUAL_ESCAPE.search(document) is not None
    return has_unusual and _NUL.search(replace_lone_surrogates(document)) is not None


def _exceeds_exactly(document: bytes) -> bool:
    if is_nested_deeper(document, DOCUMENT_MAX_DEPTH):
        return True
    quoted = document.replace(rb"\\", b"").replace(rb"\"", b"")
    if quoted.count(_QUOTE) > 4 * DOCUMENT_MAX_VALUES:  # a value has at most two strings, of two quotes
        return True
    outside = b'"'.join(quoted.split(b'"')[::2]).translate(None, _SPACES)  # with a quote in place of each string
    if _value_count(outside) > DOCUMENT_MAX_VALUES:
        return True
    growth = _growth(outside)
    return growth is None or len(document) + growth > DOCUMENT_MAX_BYTES


def _value_count(outside: bytes) -> int:
    openings = outside.count(b"[") + outside.count(b"{") - outside.count(b"[]") - outside.count(b"{}")
    return outside.count(b",") + openings


def _growth(outside: bytes) -> int | None:
    literals = _BETWEEN_NUMBERS.split(outside)
    if max(map(len, literals)) <= NUMBER_MAX_DIGITS and _BEFORE_EXPONENT.search(outside) is None:
        return 0  # nearly always
    growth = 0
    for literal in literals:
        parts = _NUMBER_PARTS.fullmatch(literal) if b"e" in literal or b"E" in literal else None
        if parts is None:
            if len(literal) > NUMBER_MAX_DIGITS and len(literal.lstrip(b"-").replace(b".", b"")) > NUMBER_MAX_DIGITS:
                return None
            continue
        digits, scale = _plain_digits(*parts.groups(default=b""))
        if digits > NUMBER_MAX_DIGITS:
            return None
        growth += digits + (scale > 0) + literal.startswith(b"-") - len(literal)
    return growth


def _plain_digits(whole: bytes, fraction: bytes, sign: bytes, exponent_text: bytes) -> tuple[int, int]:
    if len(exponent_text) > _EXPONENT_MAX_CHARS:
        return NUMBER_MAX_DIGITS + 1, 0
    exponent = -int(exponent_text) if sign == b"-" else int(exponent_text)
    significant = len((whole + fraction).lstrip(b"0"))
    scale = max(0, len(fraction) - exponent)
    before_point = significant + exponent - len(fraction) if significant else 1
    return max(1, before_point) + scale, scale


RECORD: Final = "record"  # in place of a member: the whole of it
NOTHING: Final = "nothing"
TOO_DEEP: Final = "nested too deep"  # the text of an error like those of msgspec
EXPECTED_TIME: Final = "a time of RFC 3339, such as 2026-01-31T09:00:00Z, or a date"

_TYPES: Final = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_BY_FIRST_BYTE: Final = {
    b"{": "an object",
    b"[": "a list",
    b'"': "text",
    b"t": "true or false",
    b"f": "true or false",
    b"n": "null",
}
# The texts of msgspec's errors, whose paths are such as `$.pagination.page`.
_PLACE: Final = re.compile(r"(?P<text>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>\w+)`")
_ANOTHER: Final = re.compile(r"Expected `(?P<expected>\w+)(?: \| null)?`, got `(?P<got>\w+)`")
_LENGTH: Final = re.compile(r"Expected `str` of length (?P<sign>[<>]=) (?P<length>\d+)")
_LOWER: Final = re.compile(r"Expected `float` >= (?P<least>\d+)\.0")
_ANOTHER_FORM: Final = re.compile(r"Expected `str` matching regex .*", re.DOTALL)  # times alone have a form
_FRACTION: Final = "Expected `float` that's a multiple of 1.0"


def member_error(member: str, expected: str, got: str) -> str:
    """Return the error of a member; *got* is a kind of value, and not the value."""
    return f"{member}: expected {expected}, got {got}"


def kind_of(value: bytes) -> str:
    """Return the kind of a JSON value by its first byte."""
    return _BY_FIRST_BYTE.get(value[:1], "a number" if value else NOTHING)


def shape_error(error: msgspec.ValidationError) -> str:
    """Return an error of msgspec about a whole record in our words."""
    return member_error(*shape_parts(error))


def shape_parts(error: msgspec.ValidationError, *, within: str = "") -> tuple[str, str, str]:
    """Return member, expected and got of an error of msgspec; *within* is the member that was decoded, if any."""
    place = _PLACE.fullmatch(str(error))
    text, path = (str(error), None) if place is None else place.group("text", "path")
    member = ".".join(filter(None, (within, path)))
    if (found := _MISSING.fullmatch(text)) is not None:
        return ".".join(filter(None, (member, found["name"]))), "a value", NOTHING
    member = member or RECORD
    if (found := _ANOTHER.fullmatch(text)) is not None:
        expected, got = (_TYPES.get(word, word) for word in found.group("expected", "got"))
        return member, expected, got
    if (found := _LENGTH.fullmatch(text)) is not None:
        is_short = found["sign"] == ">="
        bound = f"at {'least' if is_short else 'most'} {found['length']}"
        return member, f"text of {bound} characters", "a shorter one" if is_short else "a longer one"
    if (found := _LOWER.fullmatch(text)) is not None:
        return member, f"an integer from {found['least']}", "a lower one"
    if text == TOO_DEEP:
        return member, f"JSON nested at most {1 + DOCUMENT_MAX_DEPTH} deep", "deeper"
    if text == _FRACTION:
        return member, "an integer", "a fraction"
    if _ANOTHER_FORM.fullmatch(text) is not None:
        return member, EXPECTED_TIME, "another text"
    return member, "another value", f"one that breaks a rule: {text}"


RECORD_MAX_DEPTH: Final = 1 + DOCUMENT_MAX_DEPTH  # far below what the interpreter allows
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
    """Parse a `TIME` into UTC; a date alone is its midnight. Raises `ValueError` for another text."""
    if _TIME.search(text) is None:
        raise ValueError(f"expected {EXPECTED_TIME}, got another text")
    parsed = datetime.fromisoformat(text.upper())
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def utc_text(text: str) -> str:
    """Return a `TIME` as text in UTC, which Postgres parses to the same instant."""
    return text if text[-1] == "Z" and len(text) <= _KEPT_MAX_CHARS else parse_timestamp(text).isoformat()


def replace_lone_surrogates(record: bytes) -> bytes:
    r"""Replace every unpaired surrogate escape of a JSON text by that of U+0000, which has the same length.

    Neither can be stored, but the parser accepts the second.
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
    if end >= 0:
        mended[end - _SURROGATE_BYTES : end] = rb"\u0000"


def parse_record(record: bytes, decoder: msgspec.json.Decoder[T], *, levels: int = RECORD_MAX_DEPTH) -> T:
    """Parse *record*, with its lone surrogates replaced.

    Raises `msgspec.ValidationError` for JSON of another shape, and for a text nested more than *levels* deep; for
    anything else, `msgspec.DecodeError` or `UnicodeDecodeError`, which `json_error` describes.
    """
    if is_nested_deeper(record, levels):
        raise msgspec.ValidationError(TOO_DEEP)
    if not record.isascii():
        record.decode()  # msgspec does not check the strings that it skips or keeps raw
    try:
        return _parse(record, decoder)
    except msgspec.DecodeError:
        mended = replace_lone_surrogates(record) if has_escapes(record) else record
        if mended == record:
            raise
        return _parse(mended, decoder)


def _parse(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(record)
    except msgspec.ValidationError:
        # msgspec stops at the first fault of any kind, but text that is no JSON at all must be reported as that.
        msgspec.json.decode(record, type=msgspec.Raw)
        raise


def parse_records(records: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> list[T] | None:
    """Return what `parse_record` returns for each of *records*, faster; None where one of them is unusual."""
    longest = max(map(len, records))
    if longest > TOGETHER_MAX_BYTES or (
        longest > 2 * RECORD_MAX_DEPTH and any(is_nested_deeper(record, RECORD_MAX_DEPTH) for record in records)
    ):
        return None
    try:
        if not all(map(bytes.isascii, records)):
            deque(map(bytes.decode, records), maxlen=0)
        return list(map(decoder.decode, records))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def json_error(exc: Exception) -> str:
    """Return why a record is no JSON, without quoting it."""
    match exc:
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
    """Return the value of a member; infinity for one that cannot be read, None for none."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return math.inf


def short_text(raw: msgspec.Raw) -> str | None:
    """Return the value of a member if it may be an id, otherwise None."""
    value = peeked_value(raw)
    return value if isinstance(value, str) and len(value) <= 256 else None


SMALL_PATCH_MAX_CHARS: Final = 4096  # up to here Postgres merges a patch in little more time than it stores the result
SMALL_PATCH_MAX_OBJECTS: Final = 16

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Numbers stay texts, so that none loses a digit.
_parse_with_texts = partial(json.loads, parse_int=msgspec.Raw, parse_float=msgspec.Raw)


def is_laborious(patch: str) -> bool:
    """Return whether the worker is to merge *patch*, a JSON object, and not the shard.

    The shard merges only objects without nulls and objects, and takes more than linear time for many nulls or objects.
    """
    if patch.count("{") == 1 and (len(patch) <= SMALL_PATCH_MAX_CHARS or "null" not in patch):
        return False  # nearly always
    try:
        values = [bytes(value) for value in _members_decoder.decode(patch).values()]
        if not is_small_patch(patch):
            return any(value[:1] == b"{" or value == b"null" for value in values)
        inner = [one for value in values if value[:1] == b"{" for one in _members_decoder.decode(value).values()]
    except msgspec.DecodeError:
        return False  # a name with a lone surrogate, which Postgres refuses
    return any(bytes(one)[:1] in b"{n" for one in inner)


def is_small_patch(patch: str) -> bool:
    """Return whether merging *patch* into a small document takes no longer than storing it."""
    return len(patch) <= SMALL_PATCH_MAX_CHARS and patch.count("{") <= SMALL_PATCH_MAX_OBJECTS


def merge_texts(document: str, patch: str) -> bytes:
    """Return the JSON text of *document* changed by *patch*, both JSON objects.

    Raises `ValueError` for a lone surrogate.
    """
    return msgspec.json.encode(_merge(_parse_with_texts(document), _parse_with_texts(patch)))


def _merge(target: Any, patch: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merge(merged.get(name), value)
        else:
            merged[name] = value
    return merged
