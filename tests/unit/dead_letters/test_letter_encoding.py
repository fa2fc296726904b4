from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.dead_letters.letter import encode_dead_letter, fifo_ids_of
from simplu_worker.operations.dead_letter import DeadLetter, dead_letter_of
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

KINESIS = Origin(
    source=Source.KINESIS,
    name="resources-operations",
    arrived_at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
    stream_shard_id="shardId-000000000000",
    sequence_number="49590338271490256608559692538361571095921575989136588898",
    sub_sequence_number=3,
    partition_key="b-l-patient",
)
SQS = Origin(
    source=Source.SQS,
    name="control",
    arrived_at=datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2))),
    message_id="m-1",
)


def letter(record: bytes = b"{}", *, origin: Origin = KINESIS, error: str = "expected an object") -> DeadLetter:
    return DeadLetter(
        reason=DeadLetterReason.INVALID_MESSAGE,
        error=error,
        origin=origin,
        failed_at=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
        attempts=1,
        record=record,
        request_id="r-1",
        resource_id="p-1",
    )


def decoded(text: str) -> dict[str, Any]:
    assert text.isascii()
    value: dict[str, Any] = json.loads(text)
    return value


def test_letter_has_the_members_of_the_contract_for_kinesis() -> None:
    expected = {
        "reason": "invalid_message",
        "error": "expected an object",
        "source": {
            "kind": "kinesis",
            "stream": "resources-operations",
            "streamShard": "shardId-000000000000",
            "sequenceNumber": "49590338271490256608559692538361571095921575989136588898",
            "subSequenceNumber": 3,
            "partitionKey": "b-l-patient",
            "arrivedAt": "2026-01-02T03:04:05.678000Z",
        },
        "failedAt": "2026-01-02T03:04:06Z",
        "attempts": 1,
        "requestId": "r-1",
        "resourceId": "p-1",
        "record": '{"a":1}',
    }
    assert expected == decoded(encode_dead_letter(letter(b'{"a":1}'), 262_144))


def test_letter_names_the_queue_and_message_for_sqs() -> None:
    expected = {
        "kind": "sqs",
        "queue": "control",
        "messageId": "m-1",
        "groupId": None,
        "arrivedAt": "2026-01-02T03:04:05Z",
    }
    assert expected == decoded(encode_dead_letter(letter(origin=SQS), 262_144))["source"]


@pytest.mark.parametrize("text", ["plain", "żółć 漢字 🦷", 'quote " backslash \\ \x00\x01\x1f\x7f \ufffe\uffff \u2028'])
def test_letter_keeps_text_as_text_when_the_record_is_utf8(text: str) -> None:
    encoded = encode_dead_letter(letter(text.encode()), 262_144)
    assert (text, True) == (decoded(encoded)["record"], all(" " <= character <= "~" for character in encoded))


def test_letter_takes_gzip_when_the_text_is_too_long() -> None:
    record = b'{"name":"anna"}' * 50_000
    members = decoded(encode_dead_letter(letter(record), 262_144))
    packed = base64.b64decode(members["recordGzip"])
    assert (gzip.decompress(packed), packed[4:8]) == (record, bytes(4))  # without a time in it
    assert members.keys().isdisjoint({"record", "truncated"})


def test_letter_keeps_the_first_64_kib_when_nothing_else_fits() -> None:
    record = random.Random(1).randbytes(1_000_000)  # bytes that do not compress
    members = decoded(encode_dead_letter(letter(record), 262_144))
    assert base64.b64decode(members["recordBase64"]) == record[:65_536]
    facts = members["recordBytes"], members["recordSha256"], members["truncated"]
    assert facts == (1_000_000, hashlib.sha256(record).hexdigest(), True)


@pytest.mark.slow
@pytest.mark.parametrize("record", [b'{"name":"anna"}' * 200, b"anna" * 1000, random.Random(4).randbytes(5000)])
def test_letter_takes_the_best_form_that_fits(record: bytes) -> None:
    forms, max_bytes = [], 262_144
    while max_bytes >= 1_000:
        text = encode_dead_letter(letter(record), max_bytes)
        members = decoded(text)
        assert len(text) <= max_bytes
        assert encode_dead_letter(letter(record), len(text)) == text
        forms.append(next(name for name in ("record", "recordGzip", "recordBase64") if name in members))
        max_bytes = len(text) - 1
    assert forms[0] in {"record", "recordBase64"}
    assert len(forms) > 1


@pytest.mark.parametrize("max_bytes", range(2_000, 2_008))
def test_excerpt_is_as_long_as_its_letter_may_be(max_bytes: int) -> None:
    record = random.Random(5).randbytes(5_000)
    text = encode_dead_letter(letter(record), max_bytes)
    assert "truncated" in decoded(text)
    assert max_bytes - 4 < len(text) <= max_bytes


def test_smallest_letter_has_no_attributes_error_or_record() -> None:
    large = msgspec.structs.replace(letter(b"x", origin=SQS, error="e" * 500), message_attributes={"a": "v" * 2_000})
    members, small = decoded(encode_dead_letter(large, 1_024)), decoded(encode_dead_letter(letter(origin=SQS), 262_144))
    record = members.pop("recordBase64")
    facts = {"recordBytes": 1, "recordSha256": hashlib.sha256(b"x").hexdigest(), "truncated": True}
    del small["record"]
    assert (record, members) == ("", small | {"error": ""} | facts)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "x", "xx"])
def test_letter_cuts_no_character(prefix: str) -> None:
    noise = random.Random(6)  # text that does not compress
    text = prefix + "".join(chr(noise.randrange(0x4E00, 0x9FFF)) for _ in range(300_000))
    members = decoded(encode_dead_letter(letter(text.encode(), error=text), 262_144))
    assert (text.startswith(members["record"]), text.startswith(members["error"])) == (True, True)
    assert (len(members["record"].encode()) > 65_533, len(members["error"].encode()) > 2_045) == (True, True)


def test_letter_cuts_its_error_when_it_is_long() -> None:
    members = decoded(encode_dead_letter(letter(error="ż" * 5_000 + "\ud800"), 262_144))
    assert members["error"] == "ż" * 1_024


@given(record=st.binary(max_size=6_000), max_bytes=st.integers(1_024, 8_000), error=st.text(max_size=200))
def test_letter_fits_and_gives_the_record_back(record: bytes, max_bytes: int, error: str) -> None:
    encoded = encode_dead_letter(letter(record, error=error), max_bytes)
    members = decoded(encoded)
    if "recordGzip" in members:
        got = gzip.decompress(base64.b64decode(members["recordGzip"]))
    elif "recordBase64" in members:
        got = base64.b64decode(members["recordBase64"])
    else:
        got = members["record"].encode()
    assert len(encoded) <= max(max_bytes, 2_000)
    if "truncated" in members:
        assert record.startswith(got)
        assert (len(record), hashlib.sha256(record).hexdigest()) == (members["recordBytes"], members["recordSha256"])
    else:
        assert record == got


def test_fifo_ids_are_legal_and_the_same_for_one_position() -> None:
    first, again = fifo_ids_of(letter(b"a")), fifo_ids_of(letter(b"b"))
    other = fifo_ids_of(letter(origin=SQS))
    assert first == again
    assert (len(first.group_id), len(first.deduplication_id)) == (64, 64)
    assert first.group_id != other.group_id
    assert first.deduplication_id != other.deduplication_id


@pytest.mark.parametrize(
    ("partition_key", "group_id", "ids", "expected"),
    [
        ("key", "group", ("b", "l"), "key"),
        (None, "group", ("b", "l"), "group"),
        (None, None, ("b", "l"), "b-l"),
        (None, None, ("b", None), "b-"),
        (None, None, (None, "l"), "-l"),
        ("\ud800", None, ("b", "l"), "\ud800"),
    ],
)
def test_group_of_a_letter_is_its_key_group_or_tenant(
    partition_key: str | None, group_id: str | None, ids: tuple[str | None, str | None], expected: str
) -> None:
    origin = msgspec.structs.replace(KINESIS, partition_key=partition_key, group_id=group_id)
    one = msgspec.structs.replace(letter(origin=origin), business_id=ids[0], location_id=ids[1])

    expected_hash = hashlib.sha256(expected.encode("utf-8", "surrogatepass")).hexdigest()
    assert fifo_ids_of(one).group_id == expected_hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"stream_shard_id": "shardId-1"},
        {"sequence_number": "1"},
        {"sub_sequence_number": 4},
        {"message_id": "m"},
    ],
)
def test_deduplication_id_differs_by_each_part_of_the_position(change: dict[str, object]) -> None:
    other = letter(origin=msgspec.structs.replace(KINESIS, **change))
    by_reason = msgspec.structs.replace(letter(), reason=DeadLetterReason.INVALID_JSON)
    assert len({fifo_ids_of(one).deduplication_id for one in (letter(), other, by_reason)}) == 3


def test_letter_of_a_rejected_record_carries_what_could_be_read() -> None:
    ids: dict[str, Any] = {"business_id": "b", "location_id": "l", "request_id": "r", "resource_id": "x"}
    rejected = RejectedRecord(DeadLetterReason.INVALID_MESSAGE, "expected a string", SQS, **ids)
    at, about = KINESIS.arrived_at, (DeadLetterReason.INVALID_MESSAGE, "expected a string", SQS)
    assert dead_letter_of(rejected, b"y", failed_at=at, attempts=3) == DeadLetter(*about, at, 3, b"y", **ids)
    assert dead_letter_of(rejected, b"y", failed_at=at).attempts == 1
