"""Find the `traceparent` of records and messages, of a batch of which a span is recorded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from simplu_worker.operations.json_record import ABSENT, parse_record, peeked_value

MEMBER: Final = "traceparent"  # of a record, and the message attribute of that name
MALFORMED: Final = ""  # in place of a member that is no text
_MARK: Final = f'"{MEMBER}"'.encode()


class _Traced(msgspec.Struct):
    traceparent: msgspec.Raw = ABSENT


_decoder = msgspec.json.Decoder(_Traced)


def traceparents_of_records(records: Iterable[bytes]) -> Iterator[str]:
    """Yield the `traceparent` of each record that has one; `null` counts as absent."""
    for record in records:
        if _MARK in record and (text := _traceparent_of(record)) is not None:
            yield text


def traceparents_of_messages(attributes: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield the `traceparent` of each message that has one, by its attributes."""
    for own in attributes:
        if (text := own.get(MEMBER)) is not None:
            yield text


def _traceparent_of(record: bytes) -> str | None:
    try:
        value = peeked_value(parse_record(record, _decoder).traceparent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return MALFORMED
    return value if value is None or isinstance(value, str) else MALFORMED
