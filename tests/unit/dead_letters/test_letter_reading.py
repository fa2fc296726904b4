from __future__ import annotations

import base64
import gzip
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.dead_letters import letter
from simplu_worker.dead_letters.letter import NotADeadLetterError, WholeRecord, encode_dead_letter, parse_dead_letter
from simplu_worker.operations.dead_letter import BadParts, DeadLetter, tenant_of
from simplu_worker.operations.operation import Origin, derived_request_id
from simplu_worker.vocabulary import DeadLetterReason, Source

MOMENTS = st.datetimes(
    datetime(1990, 1, 1),  # noqa: DTZ001  (hypothesis adds the zone)
    datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
)
TEXTS = st.text(max_size=12)
MAYBE = st.none() | TEXTS
KINESIS = st.builds(
    Origin,
    source=st.just(Source.KINESIS),
    name=TEXTS,
    arrived_at=MOMENTS,
    stream_shard_id=MAYBE,
    sequence_number=MAYBE,
    sub_sequence_number=st.integers(0, 99),
    partition_key=MAYBE,
)
SQS = st.builds(
    Origin,
    source=st.just(Source.SQS),
    name=TEXTS,
    arrived_at=MOMENTS,
    sequence_number=MAYBE,
    message_id=MAYBE,
    group_id=MAYBE,
)
COMMON: dict[str, Any] = {
    "reason": st.sampled_from(DeadLetterReason),
    "error": st.text(max_size=30),
    "failed_at": MOMENTS,
    "attempts": st.integers(1, 99),
    "record": st.binary(max_size=4000) | st.text(max_size=2000).map(str.encode),
    "request_id": MAYBE,
    "resource_id": MAYBE,
    "business_id": MAYBE,
    "location_id": MAYBE,
}
LETTERS = st.builds(DeadLetter, origin=KINESIS, **COMMON) | st.builds(
    DeadLetter,
    origin=SQS,
    message_attributes=st.none() | st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=10),
    deduplication_id=MAYBE,
    **COMMON,
)
LETTER = DeadLetter(
    reason=DeadLetterReason.UNKNOWN_TENANT,
    error="expected a tenant",
    origin=Origin(source=Source.KINESIS, name="s", arrived_at=datetime(2026, 1, 1, tzinfo=UTC)),
    failed_at=datetime(2026, 1, 2, tzinfo=UTC),
    attempts=1,
    record=b"{}",
)


@given(letter=LETTERS, max_bytes=st.sampled_from([1500, 3000, 262_144]))
def test_letter_is_read_as_it_was_written(letter: DeadLetter, max_bytes: int) -> None:
    text = encode_dead_letter(letter, max_bytes)
    members = json.loads(text)
    read = parse_dead_letter(text)
    if "truncated" in members:
        assert read.whole == WholeRecord(len(letter.record), hashlib.sha256(letter.record).hexdigest())
        assert read.whole.matches(letter.record)
        assert letter.record.startswith(read.letter.record)
        left_out = {"record", "error", "message_attributes"}  # the last two only where not even they fit
    else:
        assert read.whole is None
        left_out = set()
    for name in letter.__struct_fields__:
        if name not in left_out:
            assert getattr(read.letter, name) == getattr(letter, name), name


WRITTEN = json.loads(encode_dead_letter(LETTER, 262_144))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '"text"',
        "[" * 100_000,
        json.dumps(WRITTEN | {"reason": "bad_mood"}),
        json.dumps(WRITTEN | {"source": {"kind": "kafka", "arrivedAt": "2026-01-01T00:00:00Z"}}),
        json.dumps(WRITTEN | {"failedAt": "2026-01-01T00:00"}),
        json.dumps(WRITTEN | {"failedAt": "yesterday"}),
        json.dumps({name: value for name, value in WRITTEN.items() if name != "record"}),
        json.dumps(WRITTEN | {"record": "\ud800"}),
        json.dumps(WRITTEN | {"record": None, "recordBase64": "%"}),
        json.dumps(WRITTEN | {"record": None, "recordBase64": "ż"}),
        json.dumps(WRITTEN | {"record": None, "recordGzip": "AAAA"}),
        json.dumps(WRITTEN | {"record": None, "recordGzip": f"%{base64.b64encode(gzip.compress(b'x')).decode()}"}),
        json.dumps(WRITTEN | {"record": None, "recordGzip": base64.b64encode(gzip.compress(b"x")[:-3]).decode()}),
        json.dumps(WRITTEN | {"truncated": True}),
        json.dumps({"operation": "create", "businessId": "private", "locationId": "l"}),
    ],
)
def test_reading_refuses_what_is_no_letter_without_quoting_it(body: str) -> None:
    with pytest.raises(NotADeadLetterError) as caught:
        parse_dead_letter(body)
    assert "private" not in str(caught.value)


def test_reading_unpacks_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letter, "UNPACKED_MAX_BYTES", 1000)
    packed = {name: base64.b64encode(gzip.compress(b"a" * size)).decode() for name, size in (("ok", 999), ("no", 1001))}
    read = parse_dead_letter(json.dumps(WRITTEN | {"record": None, "recordGzip": packed["ok"]}))
    assert read.letter.record == b"a" * 999
    with pytest.raises(NotADeadLetterError, match="at most 1000 bytes"):
        parse_dead_letter(json.dumps(WRITTEN | {"record": None, "recordGzip": packed["no"]}))


@pytest.mark.parametrize(
    ("own", "record", "attributes", "expected"),
    [
        (("b", "l"), b'{"businessId":"x"}', None, ("b", "l")),
        ((None, None), b'{"businessId":"b","locationId":"l"}', None, ("b", "l")),
        ((None, None), b'{"orderId":"1"}', {"BusinessId": "b", "LocationId": "l"}, ("b", "l")),
        (("b", None), b'{"locationId":7}', {"LocationId": "l"}, ("b", "l")),
        ((None, "l"), b'{"businessId":"b","locationId":"x"}', None, ("b", "l")),
        (("b", "l"), b'{"businessId":"x","locationId":"x"}', None, ("b", "l")),
        ((None, "l"), b"{}", None, None),
        (("b", None), b"\xff", None, None),
        ((None, None), b'{"businessId":"b"', None, None),
    ],
)
def test_tenant_of_a_letter_is_found_where_it_is_named(
    own: tuple[str | None, str | None],
    record: bytes,
    attributes: dict[str, str] | None,
    expected: tuple[str, str] | None,
) -> None:
    letter = msgspec.structs.replace(
        LETTER, business_id=own[0], location_id=own[1], record=record, message_attributes=attributes
    )
    assert tenant_of(letter) == expected


@pytest.mark.parametrize("lacking", ["recordBytes", "recordSha256"])
def test_reading_refuses_an_excerpt_without_its_facts(lacking: str) -> None:
    members = WRITTEN | {"truncated": True, "recordBytes": 9, "recordSha256": "0"}
    assert parse_dead_letter(json.dumps(members)).whole == WholeRecord(9, "0")
    del members[lacking]
    with pytest.raises(NotADeadLetterError):
        parse_dead_letter(json.dumps(members))


def test_times_of_a_letter_are_read_as_utc() -> None:
    source = WRITTEN["source"] | {"arrivedAt": "2026-01-01T02:00:00+02:00"}
    read = parse_dead_letter(json.dumps(WRITTEN | {"failedAt": "2026-01-02T02:00:00+02:00", "source": source})).letter
    assert (read.failed_at, read.origin.arrived_at) == (LETTER.failed_at, LETTER.origin.arrived_at)
    assert (read.failed_at.tzinfo is UTC, read.origin.arrived_at.tzinfo is UTC) == (True, True)  # not the local zone


PARTS = st.lists(st.tuples(st.integers(0, 5000), MAYBE), min_size=2, max_size=40, unique_by=lambda part: part[0])


@given(letter=st.builds(DeadLetter, origin=KINESIS, **COMMON), parts=PARTS, max_bytes=st.sampled_from([2500, 262_144]))
def test_parts_of_a_letter_are_read_as_they_were_written(
    letter: DeadLetter, parts: list[tuple[int, str | None]], max_bytes: int
) -> None:
    numbers, ids = zip(*sorted(parts, key=lambda part: part[0]), strict=True)
    written = BadParts(9999, len(parts), {"invalid_json": len(parts)}, numbers, ids)
    letter = msgspec.structs.replace(letter, parts=written)
    read = parse_dead_letter(encode_dead_letter(letter, max_bytes)).letter.parts
    assert read is not None
    assert (read.part_count, read.bad_count, read.reasons) == (9999, len(parts), written.reasons)
    assert read.numbers in {numbers, None}
    if max_bytes > 2500:
        assert read.numbers == numbers
    if read.request_ids is not None:
        derived = [derived_request_id(msgspec.structs.replace(letter.origin, sub_sequence_number=n)) for n in numbers]
        assert read.request_ids == tuple(
            own if own is not None else other for own, other in zip(ids, derived, strict=True)
        )


@pytest.mark.parametrize(
    "parts",
    [
        {"total": 0, "bad": 2},
        {"total": 5, "bad": 100_000_000},
        {"total": 5, "bad": 2, "subSequenceNumbers": [0, 1, 2, 3, 4]},
        {"total": 5, "bad": 2, "requestIds": ["a"]},
        {"bad": 2},
        7,
    ],
)
def test_reading_refuses_parts_that_contradict_themselves(parts: object) -> None:
    body = json.loads(encode_dead_letter(LETTER, 10_000)) | {"parts": parts}
    with pytest.raises(NotADeadLetterError):
        parse_dead_letter(json.dumps(body))


def test_whole_record_is_known_by_its_size_and_hash() -> None:
    whole = WholeRecord(5, hashlib.sha256(b"whole").hexdigest())
    assert [whole.matches(one) for one in (b"whole", b"whol", b"other")] == [True, False, False]
    assert not WholeRecord(4, whole.sha256).matches(b"whole")


def test_refusal_names_the_member_that_is_wrong() -> None:
    with pytest.raises(NotADeadLetterError, match="attempts"):
        parse_dead_letter(json.dumps(WRITTEN | {"attempts": "many"}))
