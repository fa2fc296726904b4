"""A large document that takes many patches (RFC 7396), one after the other, within the bounds of documents. Pure.

Each patch takes time for itself and for the members it replaces, not for the document: other members are never
parsed, and the size is kept by differences. A member that a patch reaches into is parsed once, as a whole: level by
level, deep ones would take quadratic time.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.document_bounds import DocumentSize, size_of
from simplu_worker.operations.merge_patch import parse_patch, parse_with_texts

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
