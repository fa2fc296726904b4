"""Merge a patch into a document by RFC 7396 in time linear in both; recognise the patches that need that. Pure.

The shard merges most patches itself, by two operators: members at the top, and whole members of an object below them.
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
_parse_with_texts = partial(json.loads, parse_int=msgspec.Raw, parse_float=msgspec.Raw)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _parse_patch(patch: str) -> dict[str, Any]:
    encoded = patch.encode()
    if has_escapes(encoded) and _NUL.search(replace_lone_surrogates(encoded)) is not None:
        raise ValueError("expected a text without U+0000 and lone surrogates, got one with them")
    parsed: dict[str, Any] = _parse_with_texts(patch)
    return parsed


def is_laborious(patch: str) -> bool:
    """Return whether the worker is to merge *patch*, a JSON object, and not the shard.

    The shard merges only objects without nulls and objects, and takes more than linear time for many nulls or objects.
    """
    if patch.count("{") == 1 and (len(patch) <= SMALL_PATCH_MAX_CHARS or "null" not in patch):
        return False  # nearly always
    is_small = len(patch) <= SMALL_PATCH_MAX_CHARS and patch.count("{") <= SMALL_PATCH_MAX_OBJECTS
    try:
        values = [bytes(value) for value in _members_decoder.decode(patch).values()]
        if not is_small:
            return any(value[:1] == b"{" or value == b"null" for value in values)
        inner = [one for value in values if value[:1] == b"{" for one in _members_decoder.decode(value).values()]
    except msgspec.DecodeError:
        return False  # a name with a lone surrogate, which Postgres refuses
    return any(bytes(one)[:1] in b"{n" for one in inner)


def is_nested(patch: str) -> bool:
    """Return whether *patch*, a JSON object, may have an object among its members."""
    return patch.count("{") > 1


def merge_texts(document: str, patch: str) -> bytes:
    """Return the JSON text of *document* changed by *patch*, both JSON objects.

    Raises `ValueError` where Postgres would.
    """
    return msgspec.json.encode(_merge(_parse_with_texts(document), _parse_patch(patch)))


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
