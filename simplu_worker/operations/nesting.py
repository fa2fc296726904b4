"""JSON texts that are nested deeper than a parser may recurse: found, and cut up for it, in linear time. Pure.

Every pass goes over chunks, by methods that need no memory per byte: a record may have 10 million bytes.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from typing import Final, NamedTuple

import msgspec

CHUNK_BYTES: Final = 1024
# A part begins LEVELS deeper than the part around it, and is cut out if it has as many levels itself: so that no part
# has more than twice as many, and no bracket is looked at twice.
LEVELS: Final = 256

_STRINGS = re.compile(rb'"[^"]*"?')
_NOT_BRACKETS_OR_QUOTES: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND_OF_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
# Both kinds of brackets as the square ones, and every other byte as 0.
_BRACKETS_ALONE: Final = bytes(ord("[") if byte in b"[{" else ord("]") if byte in b"]}" else 0 for byte in range(256))
_AS_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")  # 1 and -1 as signed bytes
_CUT_OUT: Final = b"[]"  # in place of a part; anything but a bracket might be one value with its neighbours


class CutRecord(NamedTuple):
    """A JSON text without the deep values of its members, and these values by the texts in their places."""

    text: bytes
    values: dict[bytes, bytes]


class _Part(NamedTuple):
    """A part of a text, from its first bracket to behind its last; *number* parts begin before it and end with it."""

    start: int
    end: int
    number: int


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
        if depth + openings > limit and max(_depths(chunk, depth)) > limit:
            return True
        depth += 2 * openings - len(chunk)
    return False


def cut_deep_values(record: bytes) -> CutRecord:
    """Cut out the values of members that have more than LEVELS levels. The text without them is still to be parsed.

    Raises `msgspec.DecodeError` if one of the values is no JSON.
    """
    if not _is_balanced(record):
        raise msgspec.DecodeError("expected as many closing brackets as opening ones, got another number")
    marker = hashlib.sha256(record).hexdigest().encode()  # occurs in no record that has this hash
    values: dict[bytes, bytes] = {}
    places: list[bytes] = []
    parts: list[bytes] = []
    inner: defaultdict[int, list[_Part]] = defaultdict(list)  # by number: the parts in an outer part that has not ended
    for part in _find_parts(record):
        within = inner.pop(part.number + 1, [])
        parts.append(_replace(record, part.start, part.end, within, [_CUT_OUT] * len(within)))
        inner[part.number].append(part)
        if part.number == 1:
            places.append(b'{"%b.%d":0}' % (marker, len(values)))
            values[places[-1]] = record[part.start : part.end]
    msgspec.json.decode(b"[%b]" % b",".join(parts), type=msgspec.Raw)
    return CutRecord(_replace(record, 0, len(record), inner[1], places), values)


def _replace(text: bytes, start: int, end: int, parts: Sequence[_Part], replacements: Sequence[bytes]) -> bytes:
    """Return *text* from *start* to *end* with *replacements* for *parts* of it."""
    pieces = []
    for part, replacement in zip(parts, replacements, strict=True):
        pieces += [text[start : part.start], replacement]
        start = part.end
    return b"".join([*pieces, text[start:end]])


def _is_balanced(text: bytes) -> bool:
    """Return whether as many brackets are opened as closed."""
    return sum(2 * chunk.count(b"[") - len(chunk.replace(b"\0", b"")) for chunk in _chunks(text)) == 0


def _chunks(text: bytes) -> Iterator[bytes]:
    """Yield *text* in chunks of the same length, in which every byte but the brackets outside of strings is 0."""
    unescaped = text.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    is_inside = False
    for start in range(0, len(text), CHUNK_BYTES):
        chunk = unescaped[start : start + CHUNK_BYTES]
        if is_inside or b'"' in chunk:
            words = chunk.split(b'"')
            inside = slice(0 if is_inside else 1, None, 2)
            words[inside] = map(bytes, map(len, words[inside]))
            is_inside = is_inside == (len(words) % 2 == 1)
            chunk = b" ".join(words)
        yield chunk.translate(_BRACKETS_ALONE)


def _find_parts(text: bytes) -> Iterator[_Part]:
    """Yield the parts of *text* to cut out, each after the parts within it. Raises `msgspec.DecodeError`."""
    starts: list[int] = []  # of the parts that have not ended
    next_start = depth = offset = 0
    for chunk in _chunks(text):
        brackets = chunk.replace(b"\0", b"")
        openings = brackets.count(b"[")
        lowest, highest = depth + openings - len(brackets), depth + openings
        level = 1 + LEVELS * len(starts)  # of the brackets that may begin the next part
        if not (level < lowest and highest < level + LEVELS) and not (level - LEVELS < lowest and highest < level):
            depths = _depths(brackets, depth)
            positions = list(compress(range(offset, offset + len(chunk)), chunk))
            at = 0
            while True:
                deep = _first(depths, level + LEVELS, at, len(depths))
                over = _first(depths, level - LEVELS, at, deep)
                if over < deep:
                    at = over
                    if not starts:
                        raise msgspec.DecodeError("expected an opening bracket before each closing one, got none")
                    yield _Part(starts.pop(), positions[over - 1] + 1, len(starts) + 1)
                elif deep < len(depths):
                    at = deep
                    nearest = _last(depths, level, deep)
                    starts.append(next_start if nearest is None else positions[nearest])
                else:
                    break
                level = 1 + LEVELS * len(starts)
            if (nearest := _last(depths, level, len(positions))) is not None:
                next_start = positions[nearest]
        depth = lowest + openings
        offset += len(chunk)


def _depths(brackets: bytes, depth: int) -> list[int]:
    """Return the depth before each of *brackets*, *depth* before the first, and the one behind the last."""
    return list(accumulate(array("b", brackets.translate(_AS_STEPS)), initial=depth))


def _first(depths: list[int], depth: int, start: int, end: int) -> int:
    """Return the first index of *depth* from *start* on; *end* if there is none before."""
    try:
        return depths.index(depth, start + abs(depth - depths[start]), end)
    except ValueError:
        return end


def _last(depths: list[int], depth: int, end: int) -> int | None:
    """Return the last index of *depth* before *end*; None if there is none."""
    last = end - max(1, abs(depth - depths[end]))
    try:
        return last - depths[last::-1].index(depth) if last >= 0 else None
    except ValueError:
        return None
