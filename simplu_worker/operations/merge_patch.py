"""Merge a patch into a document by RFC 7396 in time linear in both; recognise the patches that need that. Pure.

The shard merges most patches itself. Postgres removes many members in time proportional to the product of both counts
of members, and merges nested objects in time proportional to depth times size.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, Final

import msgspec

from simplu_worker.operations.json_record import has_escapes, replace_lone_surrogates

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
