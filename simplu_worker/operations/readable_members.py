"""Read ids from a record that is no JSON, such as one that was cut off, for its dead letter and its status. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import msgspec

READ_MAX_BYTES: Final = 16 * 1024  # ids come first, if anything can be read at all

_TOKENS: Final = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*"?', re.DOTALL)
_COLON: Final = re.compile(rb"\s*:\s*")


def readable_members(record: bytes, names: Collection[str]) -> dict[str, msgspec.Raw]:
    """Return the members of *names* with texts, as JSON; only those of the outermost object.

    Of two members with one name the last one counts, as for a decoder. An unfinished text is none.
    """
    found: dict[str, msgspec.Raw] = {}
    text, depth = record[:READ_MAX_BYTES], 0
    name: str | None = None  # of the member whose value comes next
    value_at = -1
    for token in _TOKENS.finditer(text):
        first = token[0][:1]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif token.start() == value_at:
            if name is not None and len(token[0]) > 1 and token[0].endswith(b'"'):
                found[name] = msgspec.Raw(token[0])
        elif depth == 1 and (colon := _COLON.match(text, token.end())) is not None:
            known = token[0][1:-1].decode("ascii", "replace")
            name, value_at = known if known in names else None, colon.end()
    return found
