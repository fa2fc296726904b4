"""Say what is wrong with a record or message: its member, what was expected, what came. Pure.

For producers and for logs alike, so no text quotes a value.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

RECORD: Final = "record"  # in place of a member: the whole of it
NOTHING: Final = "nothing"
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
    """Return member, expected and got of an error of msgspec; *within* is the member that it was to decode, if any."""
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
    if text == _FRACTION:
        return member, "an integer", "a fraction"
    if _ANOTHER_FORM.fullmatch(text) is not None:
        return member, EXPECTED_TIME, "another text"
    return member, "another value", f"one that breaks a rule: {text}"
