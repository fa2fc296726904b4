"""Parse JSON lines of operations: complete them for the stream, or reject them as the worker would. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.operations.decode import decode_operation, parse_record
from simplu_worker.operations.operation import DeadLetterReason, Operation, Origin, RejectedRecord, Source

PARTITION_KEY_MAX: Final = 256  # Kinesis API reference

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class InputLine(msgspec.Struct, frozen=True):
    """A line that is not empty, its number from 1 on, the record to put, and the result of decoding the record."""

    number: int
    record: bytes
    partition_key: str
    decoded: Operation | RejectedRecord

    @property
    def key(self) -> tuple[str, str] | None:
        """The tenant id and the request id: the operation's key in the log. None for a record that is rejected."""
        if isinstance(self.decoded, RejectedRecord):
            return None
        return self.decoded.tenant_id, self.decoded.request_id


def parse_lines(
    text: bytes, *, now: datetime, new_id: Callable[[], str], max_bytes: int, list_limit: int
) -> list[InputLine]:
    """Return the lines of *text*; a missing `requestId` is taken from *new_id*, a missing `timestamp` is *now*.

    No other byte changes. A line with the request id of another operation before it is rejected, as by the worker.
    """
    origin = Origin(source=Source.KINESIS, name="", arrived_at=now)
    lines: list[InputLine] = []
    digests: dict[tuple[str, str], bytes] = {}
    for number, raw in enumerate(text.split(b"\n"), 1):
        if not raw.strip():
            continue
        record = complete_record(
            raw.strip(), {"requestId": new_id(), "timestamp": now.isoformat().replace("+00:00", "Z")}
        )
        decoded = decode_operation(record, origin, max_bytes=max_bytes, list_limit=list_limit)
        if isinstance(decoded, Operation):
            earlier = digests.setdefault((decoded.tenant_id, decoded.request_id), decoded.digest)
            if earlier != decoded.digest:
                decoded = _reject_reused(decoded)
        lines.append(InputLine(number, record, partition_key_of(decoded, number), decoded))
    return lines


def complete_record(record: bytes, defaults: dict[str, str]) -> bytes:
    """Return *record* with the *defaults* of members that are missing or null; unchanged if it is no JSON object."""
    try:
        members = parse_record(record, _members_decoder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return record
    missing = {name: value for name, value in defaults.items() if bytes(members.get(name, b"null")) == b"null"}
    if not missing:
        return record
    if missing.keys().isdisjoint(members):
        return record.rstrip()[:-1] + (b"," if members else b"") + msgspec.json.encode(missing)[1:]
    return msgspec.json.encode({**members, **missing})


def partition_key_of(decoded: Operation | RejectedRecord, number: int) -> str:
    """Return a record's partition key, hashed if too long; a rejected line without ids gets one of its own."""
    if isinstance(decoded, Operation):
        key = f"{decoded.tenant_id}-{decoded.resource_type}"
    else:
        key = f"{decoded.business_id or 'line'}-{decoded.location_id or number}"
    return key if len(key) <= PARTITION_KEY_MAX else hashlib.sha256(key.encode()).hexdigest()


def _reject_reused(operation: Operation) -> RejectedRecord:
    return RejectedRecord(
        reason=DeadLetterReason.REQUEST_ID_REUSED,
        error="requestId: used by another operation in an earlier line; give each its own",
        origin=operation.origin,
        business_id=operation.business_id,
        location_id=operation.location_id,
        request_id=operation.request_id,
        resource_id=operation.resource_id,
    )
