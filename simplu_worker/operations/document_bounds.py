"""The bounds of stored documents, decided by their JSON text alone, and so the same for every reader. Pure.

Postgres stores a number as its digits, without trailing zeros, and writes it out as plain decimal text: a record of 63
KB may be 917 MB of text for everything that reads it. All passes are linear, and most documents need the first only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from simplu_worker.operations.nesting import is_nested_deeper

NUMBER_MAX_DIGITS: Final = 1000
DOCUMENT_MAX_VALUES: Final = 100_000  # members of objects and elements of arrays, at every depth
DOCUMENT_MAX_DEPTH: Final = 512
DOCUMENT_MAX_BYTES: Final = 16 * 1024 * 1024  # of text, with every number written out
BOUNDS_TEXT: Final = (
    f"at most {DOCUMENT_MAX_VALUES:,} values, nested at most {DOCUMENT_MAX_DEPTH} deep, {NUMBER_MAX_DIGITS:,} digits a"
    " number and 16 MiB of text with every number written out"
)

# An exponent of two digits, or of one with its sign; it may also be in a string.
_EXPONENT: Final = b"0e00"
_SHAPE_OF_NUMBERS: Final = bytes(
    ord("0") if byte in b"0123456789+-" else ord("e") if byte in b"eE" else 0 for byte in range(256)
)
# A number with an exponent outside of strings, without its digits. Most UUIDs have the shape above, and none has this.
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
_SPACES: Final = b" \t\n\r"


class DocumentSize(NamedTuple):
    """The size of a JSON value, by the measures of the bounds; both are sums over its parts.

    *text_bytes* is without spaces, and with every number written out.
    """

    values: int
    text_bytes: int

    @property
    def exceeds_bounds(self) -> bool:
        """Whether a document of this size may not be stored."""
        return self.values > DOCUMENT_MAX_VALUES or self.text_bytes > DOCUMENT_MAX_BYTES


def size_of(value: bytes) -> DocumentSize | None:
    """Return the size of a JSON value; None if it has too long a number, or far too many values."""
    outside = _without_strings(value)
    growth = None if outside is None else _growth(outside.compact)
    if outside is None or growth is None:
        return None
    return DocumentSize(_value_count(outside.compact), len(value) - outside.space_count + growth)


def exceeds_bounds(document: bytes, *, may_be_deep: bool = True) -> bool:
    """Return whether a JSON object has too many values, too many levels, too long a number, or too much text.

    The levels are counted only if it *may_be_deep*.
    """
    if may_be_deep and is_nested_deeper(document, DOCUMENT_MAX_DEPTH):
        return True
    if _has_scaled_number(document):
        return _exceeds_exactly(document)
    if len(document) <= NUMBER_MAX_DIGITS:
        return False  # nearly always
    if _PART_OF_NUMBER_TWICE.search(document[::_SAMPLE_STEP]) is not None or len(document) > DOCUMENT_MAX_BYTES:
        return _exceeds_exactly(document)
    may_have_too_many = len(document) > DOCUMENT_MAX_VALUES and sum(map(document.count, b"[{,")) > DOCUMENT_MAX_VALUES
    return may_have_too_many and _exceeds_exactly(document)


def exceed_bounds(documents: Sequence[bytes], *, may_be_deep: bool = True) -> list[bool]:
    """Return what `exceeds_bounds` returns for each of *documents*, in less time where all are usual."""
    if may_be_deep or max(map(len, documents)) > NUMBER_MAX_DIGITS:
        return [exceeds_bounds(document, may_be_deep=may_be_deep) for document in documents]
    # The first sign of `_has_scaled_number`, here without its calls, which take a tenth as long as the search.
    signs = [document.translate(_SHAPE_OF_NUMBERS).find(_EXPONENT) >= 0 for document in documents]
    if True not in signs:
        return signs
    return [
        sign and exceeds_bounds(document, may_be_deep=False) for sign, document in zip(signs, documents, strict=True)
    ]


def _has_scaled_number(document: bytes) -> bool:
    """Return whether *document* has a number with an exponent of two digits; the cheapest sign comes first."""
    return (  # `find`, as `in` takes half as long again
        document.translate(_SHAPE_OF_NUMBERS).find(_EXPONENT) >= 0
        and document.translate(_SHAPE_WITHOUT_NUMBERS, _NUMBER_CHARACTERS).find(_BARE_EXPONENT) >= 0
        and _SCALED_NUMBER.search(document) is not None
    )


def _exceeds_exactly(document: bytes) -> bool:
    """Return the same without a look for cheaper signs, in ten times as long; it hardly ever is needed."""
    outside = _without_strings(document)
    if outside is None or _value_count(outside.compact) > DOCUMENT_MAX_VALUES:
        return True
    growth = _growth(outside.compact)
    return growth is None or len(document) + growth > DOCUMENT_MAX_BYTES


class _Outside(NamedTuple):
    """A JSON text with a quote in place of each string, without the *space_count* spaces that it has elsewhere."""

    compact: bytes
    space_count: int


def _without_strings(document: bytes) -> _Outside | None:
    """Return what *document* has outside its strings; None for too many strings."""
    quoted = document.replace(rb"\\", b"").replace(rb"\"", b"")
    if quoted.count(_QUOTE) > 4 * DOCUMENT_MAX_VALUES:  # a value has at most two strings, of two quotes
        return None
    outside = b'"'.join(quoted.split(b'"')[::2])
    compact = outside.translate(None, _SPACES)
    return _Outside(compact, len(outside) - len(compact))


def _value_count(outside: bytes) -> int:
    """Return the number of members and elements: a comma between two of them, and a bracket before the first."""
    openings = outside.count(b"[") + outside.count(b"{") - outside.count(b"[]") - outside.count(b"{}")
    return outside.count(b",") + openings


def _growth(outside: bytes) -> int | None:
    """Return how much longer the text gets when all numbers are written out; None if one is too long."""
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
    """Return how many digits a number has when it is written out, and how many of them are behind the point."""
    if len(exponent_text) > _EXPONENT_MAX_CHARS:
        return NUMBER_MAX_DIGITS + 1, 0
    exponent = -int(exponent_text) if sign == b"-" else int(exponent_text)
    significant = len((whole + fraction).lstrip(b"0"))
    scale = max(0, len(fraction) - exponent)
    before_point = significant + exponent - len(fraction) if significant else 1
    return max(1, before_point) + scale, scale
