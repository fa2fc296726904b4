"""Ids as keys of the log: a byte that says what follows, and the id in as few bytes as it takes. Pure.

A UUID in its usual form is 16 bytes, any other id its UTF-8. `simplu_key` and `simplu_id` of migration 0001 do the
same in SQL. Keys go to Postgres as hexadecimal text, which has no character that separates columns (column_packing.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from simplu_worker.vocabulary import OperationKind

# In the column `kind`; in capitals, of a row whose key another operation took.
KIND_CODES: Final[Mapping[str, str]] = {kind: kind[0] for kind in OperationKind}
_is_uuid: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_LINE_LENGTH: Final = 37
_KEPT: Final = "03"  # of a key whose place another operation took: then the key, and 10 bytes of its own


def key_of_id(text: str) -> str:
    """Return the key of a request's or a resource's id, as hexadecimal text."""
    return "01" + text.replace("-", "") if _is_uuid(text) else "02" + text.encode().hex()


def keys_of_ids(texts: Sequence[str]) -> list[str]:
    """Return the key of each id; none of an empty text. Where all are UUIDs, in a third of the time."""
    if "" in texts:
        keys_in_turn = iter(keys_of_ids([text for text in texts if text]))
        return [next(keys_in_turn) if text else "" for text in texts]
    lines = "\n".join(texts) + "\n"
    if are_uuids(lines.encode(), len(texts)):
        return ("01" + lines[:-1].replace("-", "").replace("\n", "\n01")).split("\n")
    return [key_of_id(text) for text in texts]


def are_uuids(lines: bytes, count: int) -> bool:
    """Return whether *lines* are *count* UUIDs: by few searches, where a regular expression reads each character."""
    return (
        lines[_LINE_LENGTH - 1 :: _LINE_LENGTH] == b"\n" * count
        and all(lines[place::_LINE_LENGTH] == b"-" * count for place in (8, 13, 18, 23))
        and lines.translate(None, b"0123456789abcdef") == b"----\n" * count
    )


def id_of_key(key: str) -> str:
    """Return the id of a key of the log, in hexadecimal, as `simplu_id` does."""
    if key.startswith(_KEPT):
        key = key[2:-20]
    if key.startswith("01"):
        return f"{key[2:10]}-{key[10:14]}-{key[14:18]}-{key[18:22]}-{key[22:]}"
    return bytes.fromhex(key[2:]).decode()
