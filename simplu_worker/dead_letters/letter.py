"""Encode dead letters (docs/dead-letters.md), within the size that their queue accepts, and parse them. Pure.

A letter is ASCII, so its length is its size. It has the first of these forms of the record that fits: unchanged,
compressed, an excerpt with the size and hash of the whole.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from simplu_worker.aws.sqs_queue import FifoIds
from simplu_worker.operations.dead_letter import BadParts, DeadLetter, format_ranges, origin_of_part, parse_ranges
from simplu_worker.operations.json_record import Time, parse_timestamp
from simplu_worker.operations.operation import Origin, PartNumber, derived_request_id, tenant_id_of
from simplu_worker.vocabulary import DeadLetterReason, Source

ERROR_MAX_BYTES: Final = 2048
EXCERPT_BYTES: Final = 64 * 1024  # docs/dead-letters.md
UNPACKED_MAX_BYTES: Final = 64 * 1024 * 1024  # several times the largest record of any source: letters may be forged
PARTS_COUNTED_MAX: Final = 10_000_000  # a record has a byte at least for each of its parts
REQUEST_ID_USUAL_BYTES: Final = 40  # more than that many ids fit in no letter
PartCount = Annotated[int, msgspec.Meta(ge=1, le=PARTS_COUNTED_MAX)]


class WholeRecord(msgspec.Struct, frozen=True, gc=False):
    """The size and hash of a record of which a letter has an excerpt."""

    size_bytes: int
    sha256: str

    def matches(self, record: bytes) -> bool:
        """Return whether *record* is this record."""
        return len(record) == self.size_bytes and hashlib.sha256(record).hexdigest() == self.sha256


class ParsedDeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A letter; with *whole*, its record is only the beginning of that one."""

    letter: DeadLetter
    whole: WholeRecord | None = None


class NotADeadLetterError(Exception):
    """The text is no dead letter; the message does not quote it."""


def encode_dead_letter(letter: DeadLetter, max_bytes: int) -> str:
    """Return *letter* as ASCII JSON of at most *max_bytes*, if it can be so small."""
    head = _head(letter)
    if letter.parts is None:
        return _encode_record(head, letter.record, max_bytes) or _encode_excerpt(head, letter.record, max_bytes)
    heads = [{**head, "parts": members} for members in _part_members(letter, letter.parts, max_bytes)]
    for one in heads:
        if (text := _encode_record(one, letter.record, max_bytes)) is not None:
            return text
    # An excerpt is worth less than the numbers, by which a replay finds the parts in the stream.
    best = next((one for one in heads if len(_json(one)) <= max_bytes // 2), heads[-1])
    return _encode_excerpt(best, letter.record, max_bytes)


def _encode_record(head: Mapping[str, Any], record: bytes, max_bytes: int) -> str | None:
    if len(record) <= max_bytes:  # escaping only adds bytes
        text = _json({**head, **_text_or_base64(record, record)})
        if len(text) <= max_bytes:
            return text
    text = _json({**head, "recordGzip": _base64(gzip.compress(record, mtime=0))})
    return text if len(text) <= max_bytes else None


def _part_members(letter: DeadLetter, parts: BadParts, max_bytes: int) -> Iterator[dict[str, Any]]:
    """Yield the member `parts`: complete, then without the request ids, then without the numbers."""
    counts = {"total": parts.part_count, "bad": parts.bad_count, "reasons": dict(parts.reasons)}
    if parts.numbers is not None:
        numbers = {"subSequenceNumbers": format_ranges(parts.numbers)}
        if parts.bad_count * REQUEST_ID_USUAL_BYTES <= max_bytes:
            yield {**counts, **numbers, "requestIds": _effective_ids(letter.origin, parts, parts.numbers)}
        yield {**counts, **numbers}
    yield counts


def _effective_ids(origin: Origin, parts: BadParts, numbers: Sequence[PartNumber]) -> list[str]:
    own_ids = parts.request_ids or (None,) * len(numbers)
    return [
        derived_request_id(origin_of_part(origin, number)) if own_id is None else own_id
        for number, own_id in zip(numbers, own_ids, strict=True)
    ]


def parse_dead_letter(body: str) -> ParsedDeadLetter:
    """Parse the output of `encode_dead_letter`. Raises NotADeadLetterError for anything else."""
    try:
        wire = msgspec.convert(json.loads(body), LetterMembers)
        letter = DeadLetter(
            reason=wire.reason,
            error=wire.error,
            origin=_origin_of(wire.source),
            failed_at=parse_timestamp(wire.failed_at),
            attempts=wire.attempts,
            record=_record_of(wire),
            request_id=wire.request_id,
            resource_id=wire.resource_id,
            business_id=wire.business_id,
            location_id=wire.location_id,
            message_attributes=wire.source.message_attributes,
            deduplication_id=wire.source.deduplication_id,
            parts=_parts_of(wire.parts),
        )
    except msgspec.ValidationError as exc:
        raise NotADeadLetterError(str(exc)) from None
    except RecursionError:
        raise NotADeadLetterError("expected a flat JSON object, got one that is nested too deep") from None
    except (ValueError, OverflowError, zlib.error) as exc:
        # Without the text of the error, which may quote the record.
        raise NotADeadLetterError(f"expected the JSON of a dead letter, got {type(exc).__name__}") from None
    if not wire.truncated:
        return ParsedDeadLetter(letter)
    if wire.record_bytes is None or wire.record_sha256 is None:
        raise NotADeadLetterError("expected recordBytes and recordSha256 beside truncated")
    return ParsedDeadLetter(letter, WholeRecord(wire.record_bytes, wire.record_sha256))


def fifo_ids_of(letter: DeadLetter) -> FifoIds:
    """Return the group that keeps the letters of one key in order, and an id for each position and reason.

    Both are hashes: a group id has at most 128 characters of a small alphabet.
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
        *(() if origin.part_index is None else (origin.part_index,)),
    )
    return FifoIds(group_id=_hash(group), deduplication_id=_hash(_json(position)))


def _head(letter: DeadLetter) -> dict[str, Any]:
    return {
        "reason": letter.reason,
        "error": letter.error.encode("utf-8", "replace")[:ERROR_MAX_BYTES].decode("utf-8", "ignore"),
        "source": _source(letter),
        "failedAt": _format_time(letter.failed_at),
        "attempts": letter.attempts,
        "requestId": letter.request_id,
        "resourceId": letter.resource_id,
    } | _without_absent({"businessId": letter.business_id, "locationId": letter.location_id})


def _source(letter: DeadLetter) -> dict[str, Any]:
    origin, kind = letter.origin, letter.origin.source
    place, known = (
        {_WIRE_NAMES[name]: getattr(origin, name) for name in names[kind]} for names in (_PLACE, _PLACE_IF_KNOWN)
    )
    known |= {
        "deduplicationId": letter.deduplication_id,
        "messageAttributes": dict(letter.message_attributes or {}) or None,
    }
    about = {"kind": kind, "stream" if kind is Source.KINESIS else "queue": origin.name}
    return about | place | {"arrivedAt": _format_time(origin.arrived_at)} | _without_absent(known)


def _encode_excerpt(head: Mapping[str, Any], record: bytes, max_bytes: int) -> str:
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
    if len(text) <= max_bytes:
        return text
    # Without the message attributes, which only a replay needs: a message without its whole body is never replayed.
    source = {name: value for name, value in head["source"].items() if name != "messageAttributes"}
    return _json({**head, "source": source, "error": "", "recordBase64": "", **facts})


def _text_or_base64(record: bytes, excerpt: bytes) -> dict[str, str]:
    """Return *excerpt* as text if the whole record is text; a character that it cuts is dropped."""
    try:
        record.decode()
    except UnicodeDecodeError:
        return {"recordBase64": _base64(excerpt)}
    return {"record": excerpt.decode("utf-8", "ignore")}


class _SourceMembers(msgspec.Struct, rename="camel"):
    kind: Source
    arrived_at: Time
    stream: str = ""
    queue: str = ""
    stream_shard_id: str | None = msgspec.field(name="streamShard", default=None)
    sequence_number: str | None = None
    sub_sequence_number: int = 0
    part_index: int | None = None
    partition_key: str | None = None
    message_id: str | None = None
    group_id: str | None = None
    deduplication_id: str | None = None
    message_attributes: dict[str, str] | None = None


_WIRE_NAMES: Final = {one.name: one.encode_name for one in msgspec.structs.fields(_SourceMembers)}
_PLACE: Final = {  # what a letter has of its origin, by source
    Source.KINESIS: ("stream_shard_id", "sequence_number", "sub_sequence_number", "partition_key"),
    Source.SQS: ("message_id", "group_id"),
}
_PLACE_IF_KNOWN: Final = {Source.KINESIS: ("part_index",), Source.SQS: ("sequence_number",)}


class _PartsMembers(msgspec.Struct, rename="camel"):
    total: PartCount
    bad: PartCount
    reasons: dict[str, int] = {}
    sub_sequence_numbers: str | None = None
    request_ids: list[str] | None = None


class LetterMembers(msgspec.Struct, rename="camel"):
    """Members of a letter."""

    reason: DeadLetterReason
    source: _SourceMembers
    failed_at: Time
    error: str = ""
    attempts: int = 1
    request_id: str | None = None
    resource_id: str | None = None
    business_id: str | None = None
    location_id: str | None = None
    record: str | None = None
    record_base64: str | None = None
    record_gzip: str | None = None
    record_bytes: int | None = None
    record_sha256: str | None = None
    truncated: bool = False
    parts: _PartsMembers | None = None


def _origin_of(source: _SourceMembers) -> Origin:
    kind, name = source.kind, source.stream if source.kind is Source.KINESIS else source.queue
    place = {one: getattr(source, one) for one in (*_PLACE[kind], *_PLACE_IF_KNOWN[kind])}
    return Origin(kind, name, parse_timestamp(source.arrived_at), **place)


def _parts_of(wire: _PartsMembers | None) -> BadParts | None:
    if wire is None:
        return None
    text, ids = wire.sub_sequence_numbers, wire.request_ids
    if ids is not None and len(ids) != wire.bad:
        raise NotADeadLetterError(f"expected {wire.bad} requestIds, got {len(ids)}")
    return BadParts(
        part_count=wire.total,
        bad_count=wire.bad,
        reasons=wire.reasons,
        numbers=None if text is None else parse_ranges(text, wire.bad),
        request_ids=None if ids is None else tuple(ids),
    )


def _record_of(wire: LetterMembers) -> bytes:
    if wire.record is not None:
        return wire.record.encode()
    if wire.record_base64 is not None:
        return base64.b64decode(wire.record_base64, validate=True)
    if wire.record_gzip is None:
        raise NotADeadLetterError("expected record, recordBase64 or recordGzip")
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: as gzip
    record = unpacking.decompress(base64.b64decode(wire.record_gzip, validate=True), UNPACKED_MAX_BYTES)
    if not unpacking.eof:
        raise NotADeadLetterError(f"expected a whole record of at most {UNPACKED_MAX_BYTES} bytes under recordGzip")
    return record


def _without_absent(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
