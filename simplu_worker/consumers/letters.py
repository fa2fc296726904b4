"""Write dead letters as the contract wants them (§6), within the size that their queue takes. Pure.

A letter is ASCII, so its length is its size, and no character that SQS refuses can be in it. The record goes in as the
first of these that fits: as it is, compressed, its beginning with the size and hash of the whole.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, assert_never

import msgspec

from simplu_worker.operations.operation import DeadLetterReason, Origin, Rejected, Source, tenant_id_of

ERROR_MAX_BYTES: Final = 2048
EXCERPT_BYTES: Final = 64 * 1024  # contract §6


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that is given up, and why.

    *request_id* and *resource_id* are the effective ones, so that a replay is de-duplicated like any redelivery.
    *error* must not quote the record: it is logged. *attempts* counts the tries, the first one included.
    """

    reason: DeadLetterReason
    error: str
    origin: Origin
    failed_at: datetime
    attempts: int
    record: bytes
    request_id: str | None = None
    resource_id: str | None = None
    business_id: str | None = None
    location_id: str | None = None


class FifoIds(msgspec.Struct, frozen=True):
    """What a FIFO queue wants to know of a message."""

    group_id: str
    deduplication_id: str


def letter_of(rejected: Rejected, record: bytes, *, failed_at: datetime, attempts: int = 1) -> DeadLetter:
    """Return the dead letter of a *record* that was rejected for what is in it."""
    return DeadLetter(
        reason=rejected.reason,
        error=rejected.error,
        origin=rejected.origin,
        failed_at=failed_at,
        attempts=attempts,
        record=record,
        request_id=rejected.request_id,
        resource_id=rejected.resource_id,
        business_id=rejected.business_id,
        location_id=rejected.location_id,
    )


def encode_letter(letter: DeadLetter, max_bytes: int) -> str:
    """Return *letter* as ASCII JSON of at most *max_bytes*.

    Where not even the letter without its record fits (ids of hundreds of characters against a queue that takes 1 KiB),
    it is returned in that smallest form: the queue's refusal then says what is wrong.
    """
    head = _head(letter)
    if len(letter.record) <= max_bytes:  # escaping only adds
        text = _json({**head, **_text_or_base64(letter.record, letter.record)})
        if len(text) <= max_bytes:
            return text
    text = _json({**head, "recordGzip": _base64(gzip.compress(letter.record, mtime=0))})
    return text if len(text) <= max_bytes else _excerpted(head, letter.record, max_bytes)


def fifo_ids(letter: DeadLetter) -> FifoIds:
    """Return the group that keeps the letters of one key in order, and an id that one position and reason share.

    Both are hashes: group ids take 128 characters of a small alphabet, and keys have any.
    """
    origin = letter.origin
    tenant = tenant_id_of(letter.business_id or "", letter.location_id or "")
    group = origin.partition_key or origin.group_id or tenant
    position = (
        origin.name,
        origin.stream_shard_id,
        origin.sequence_number,
        origin.sub_sequence_number,
        origin.message_id,
        letter.reason,
    )
    return FifoIds(group_id=_hash(group), deduplication_id=_hash(_json(position)))


def _head(letter: DeadLetter) -> dict[str, Any]:
    return {
        "reason": letter.reason,
        "error": letter.error.encode("utf-8", "replace")[:ERROR_MAX_BYTES].decode("utf-8", "ignore"),
        "source": _source(letter.origin),
        "failedAt": _utc(letter.failed_at),
        "attempts": letter.attempts,
        "requestId": letter.request_id,
        "resourceId": letter.resource_id,
    }


def _source(origin: Origin) -> dict[str, Any]:
    match origin.source:
        case Source.KINESIS:
            return {
                "kind": origin.source,
                "stream": origin.name,
                "streamShard": origin.stream_shard_id,
                "sequenceNumber": origin.sequence_number,
                "subSequenceNumber": origin.sub_sequence_number,
                "partitionKey": origin.partition_key,
                "arrivedAt": _utc(origin.arrived_at),
            }
        case Source.SQS:
            return {
                "kind": origin.source,
                "queue": origin.name,
                "messageId": origin.message_id,
                "groupId": origin.group_id,
                "arrivedAt": _utc(origin.arrived_at),
            }
        case _:
            assert_never(origin.source)


def _excerpted(head: Mapping[str, Any], record: bytes, max_bytes: int) -> str:
    facts = {
        "recordBytes": len(record),
        "recordSha256": hashlib.sha256(record).hexdigest(),
        "truncated": True,
    }
    text = _json({**head, **_text_or_base64(record, record[:EXCERPT_BYTES]), **facts})
    if len(text) <= max_bytes:
        return text
    room = max_bytes - len(_json({**head, "recordBase64": "", **facts}))
    excerpt = record[: min(EXCERPT_BYTES, max(room, 0) // 4 * 3)]
    text = _json({**head, "recordBase64": _base64(excerpt), **facts})
    return text if len(text) <= max_bytes else _json({**head, "error": "", "recordBase64": "", **facts})


def _text_or_base64(record: bytes, excerpt: bytes) -> dict[str, str]:
    """Write *excerpt*, the beginning of *record*, as text if all of the record is text.

    A character that the cut went through is left out.
    """
    try:
        record.decode()
    except UnicodeDecodeError:
        return {"recordBase64": _base64(excerpt)}
    return {"record": excerpt.decode("utf-8", "ignore")}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
