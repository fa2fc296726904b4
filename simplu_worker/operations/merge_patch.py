"""Merge a patch into a document by RFC 7396 in time linear in both; recognise the patches that need that. Pure.

The shard merges most patches itself. Postgres removes many members in time proportional to the product of both counts
of members, and merges nested objects in time proportional to depth times size.

A large document that takes many patches (RFC 7396), one after the other, within the bounds of documents.

Each patch takes time for itself and for the members it replaces, not for the document: other members are never
parsed, and the size is kept by differences. A member that a patch reaches into is parsed once, as a whole: level by
level, deep ones would take quadratic time.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.json_record import DocumentSize, has_escapes, replace_lone_surrogates, size_of

SMALL_PATCH_MAX_CHARS: Final = 4096  # up to here Postgres merges a patch in little more time than it stores the result
SMALL_PATCH_MAX_OBJECTS: Final = 16

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Numbers stay texts, so that none loses a digit.
parse_with_texts = partial(json.loads, parse_int=msgspec.Raw, parse_float=msgspec.Raw)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def parse_patch(patch: str) -> dict[str, Any]:
    """Parse a patch. Raises `ValueError` for a text that Postgres refuses, also where the merged data lack it."""
    encoded = patch.encode()
    if has_escapes(encoded) and _NUL.search(replace_lone_surrogates(encoded)) is not None:
        raise ValueError("expected a text without U+0000 and lone surrogates, got one with them")
    parsed: dict[str, Any] = parse_with_texts(patch)
    return parsed


def is_laborious(patch: str) -> bool:
    """Return whether Postgres may take more than linear time to merge *patch*, a JSON object, into some document.

    A patch without nulls and objects among its members takes linear time, whatever its size.
    """
    if len(patch) <= SMALL_PATCH_MAX_CHARS and patch.count("{") <= SMALL_PATCH_MAX_OBJECTS:
        return False
    try:
        values = [bytes(value) for value in _members_decoder.decode(patch).values()]
    except msgspec.DecodeError:
        return False  # a name with a lone surrogate, which Postgres refuses
    return any(value[:1] == b"{" or value == b"null" for value in values)


def is_nested(patch: str) -> bool:
    """Return whether *patch*, a JSON object, may have an object among its members."""
    return patch.count("{") > 1


def merge_texts(document: str, patch: str) -> bytes:
    """Return the JSON text of *document* changed by *patch*, both JSON objects; of equal names the last one counts.

    Raises `ValueError` for a text with a lone surrogate, or a patch with U+0000, and `RecursionError` for one nested
    deeper than any record.
    """
    return msgspec.json.encode(_merge(parse_with_texts(document), parse_patch(patch)))


def _merge(target: Any, patch: dict[str, Any]) -> dict[str, Any]:
    """Change *target* by *patch*, and return it; an empty object stands for a target that is no object."""
    merged: dict[str, Any] = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merge(merged.get(name), value)
        else:
            merged[name] = value
    return merged


Members: TypeAlias = dict[str, Any]  # `msgspec.Raw` for numbers, and for a member that is not parsed
Change: TypeAlias = tuple[Members, str, Any]  # of a member; None removes it

_NOTHING: Final = DocumentSize(0, 0)
_QUOTE: Final = ord('"')
_first_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class UnmeasuredError(ValueError):
    """The document, or what a patch replaces in it, has too long a number or a text that has no size."""


class PatchedDocument:
    """A document, and its size."""

    def __init__(self, text: str) -> None:
        """Parse the first level of *text*, a JSON object. Raises `UnmeasuredError`."""
        try:
            self._members: Members = dict(_first_level.decode(text))
        except msgspec.DecodeError as exc:
            raise UnmeasuredError(str(exc)) from exc
        self._size = _measure_members(self._members)

    def __repr__(self) -> str:
        return f"PatchedDocument({self._size})"

    def merge(self, patch: str) -> bool:
        """Merge *patch*, and return true; if the result would exceed the bounds, change nothing and return false.

        Raises `UnmeasuredError`, with nothing changed.
        """
        changes: list[Change] = []
        try:
            size = _add(self._size, _plan(self._members, parse_patch(patch), changes))
        except ValueError as exc:
            raise UnmeasuredError(str(exc)) from exc
        if size.exceeds_bounds:
            return False
        for members, name, value in changes:
            if value is None:
                members.pop(name, None)
            else:
                members[name] = value
        self._size = size
        return True

    def text(self) -> bytes:
        """Return the JSON text of the document."""
        return _encode(self._members)


def _plan(target: Members, patch: Members, changes: list[Change]) -> DocumentSize:
    """Add to *changes* what *patch* changes in *target*, and return by how much that changes its size."""
    total = _NOTHING
    count = len(target)
    for name, value in patch.items():
        old = target.get(name)
        is_object = isinstance(value, dict)
        if is_object and (inner := _as_object(old)) is not None:
            target[name] = inner  # the same value, parsed
            total = _add(total, _plan(inner, value, changes))
            continue
        if name in target:
            total = _subtract(total, _member_size(name, old))
            count -= 1
        if value is None:
            changes.append((target, name, None))
            continue
        new: Any = {} if is_object else value
        changes.append((target, name, new))
        total = _add(total, _member_size(name, new))
        if is_object:
            total = _add(total, _plan(new, value, changes))
        count += 1
    commas = max(0, count - 1) - max(0, len(target) - 1)
    return _add(total, DocumentSize(0, commas))


def _as_object(value: Any) -> Members | None:
    if isinstance(value, msgspec.Raw) and bytes(memoryview(value)[:1]) == b"{":
        parsed: Members = parse_with_texts(bytes(value))
        return parsed
    return value if isinstance(value, dict) else None


def _member_size(name: str, value: Any) -> DocumentSize:
    """Return the size of a member, with its name and colon."""
    size = _measure(_encode(value))
    return DocumentSize(size.values + 1, size.text_bytes + len(_encode(name)) + 1)


def _measure_members(members: Members) -> DocumentSize:
    """Return the size of an object of which no member is parsed."""
    values, text_bytes = len(members), len(_encode(members))
    # As `_is_plain`, without a call for each member.
    encodings = map(bytes, members.values())
    others = [one for one in encodings if one[0] != _QUOTE and not (len(one) <= 100 and one.isdigit())]
    for encoded in others:
        size = _measure(encoded)
        values += size.values
        text_bytes += size.text_bytes - len(encoded)
    return DocumentSize(values, text_bytes)


def _is_plain(encoded: bytes) -> bool:
    """Return whether a JSON value is certainly one, and its text as long as with all numbers written out."""
    first = encoded[0]
    return first == _QUOTE or (len(encoded) <= 100 and encoded.isdigit())


def _measure(encoded: bytes) -> DocumentSize:
    if _is_plain(encoded):
        return DocumentSize(0, len(encoded))
    size = size_of(encoded)
    if size is None:
        raise UnmeasuredError("expected numbers that are not too long, got others")
    return size


def _add(size: DocumentSize, other: DocumentSize) -> DocumentSize:
    return DocumentSize(size.values + other.values, size.text_bytes + other.text_bytes)


def _subtract(size: DocumentSize, other: DocumentSize) -> DocumentSize:
    return DocumentSize(size.values - other.values, size.text_bytes - other.text_bytes)
