"""The request ids of records that have none, derived from their positions. Pure."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from simplu_worker.operations.json_record import parse_record
from simplu_worker.operations.operation import Origin

DERIVED_REQUEST_ID_PREFIX: Final = "simplu:"


class ReplayedFrom(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Member `simpluReplay`: the first position of a record without a request id that is replayed as a dead letter."""

    stream: str
    stream_shard: str
    sequence_number: str
    sub_sequence_number: int
    part_index: int | None = None


_replayed_decoder = msgspec.json.Decoder(ReplayedFrom)


def derived_request_id(origin: Origin) -> str:
    """Return the request id of a record that has none: the same for every read of the same position."""
    position = origin.stream_shard_id, origin.sequence_number, origin.sub_sequence_number, origin.part_index
    return _derive_request_id(origin.name, *position)


def control_request_id(business_id: str, location_id: str) -> str:
    """Return the key of the last refused control message of a tenant: no request id, which may not begin like that.

    With both ids, as another tenant may have the same joined one.
    """
    return f"{DERIVED_REQUEST_ID_PREFIX}control:{business_id}/{location_id}"


def with_request_id(record: bytes, origin: Origin) -> bytes:
    """Return *record*, a valid one without `requestId`, with the id derived from its *origin*, and with that origin.

    The record's own bytes stay, and no `resourceId` is added, as the digest covers both as they were sent. Of a member
    that occurs twice (as after `"requestId": null`) the last one counts.
    """
    replayed = ReplayedFrom(
        stream=origin.name,
        stream_shard=origin.stream_shard_id or "",
        sequence_number=origin.sequence_number or "",
        sub_sequence_number=origin.sub_sequence_number,
        part_index=origin.part_index,
    )
    members = msgspec.json.encode({"requestId": derived_request_id(origin), "simpluReplay": replayed})
    return record.rstrip()[:-1] + b"," + members[1:]


def _derive_request_id(
    stream: str,
    stream_shard_id: str | None,
    sequence_number: str | None,
    sub_sequence_number: int,
    part_index: int | None,
) -> str:
    position = f"{stream}\0{stream_shard_id}\0{sequence_number}\0{sub_sequence_number}"
    if part_index is not None:
        position += f"\0{part_index}"
    return DERIVED_REQUEST_ID_PREFIX + hashlib.sha256(position.encode()).hexdigest()


def is_replayed(request_id: str, replay: msgspec.Raw) -> bool:
    """Return whether *request_id* is the one derived from the position in `simpluReplay`."""
    try:
        first = parse_record(bytes(replay), _replayed_decoder)
        position = first.stream_shard, first.sequence_number, first.sub_sequence_number, first.part_index
        derived = _derive_request_id(first.stream, *position)
    except (msgspec.DecodeError, UnicodeError):
        return False
    return request_id == derived
