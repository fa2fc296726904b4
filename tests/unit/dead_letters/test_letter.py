from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.dead_letters import letter as letter_module
from simplu_worker.dead_letters.letter import (
    NotADeadLetterError,
    WholeRecord,
    encode_dead_letter,
    fifo_ids_of,
    parse_dead_letter,
)
from simplu_worker.operations.dead_letter import (
    BadParts,
    DeadLetter,
    dead_letter_of,
    format_ranges,
    parse_ranges,
    tenant_of,
)
from simplu_worker.operations.operation import Origin, RejectedRecord, derived_request_id
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


NOISE = "".join(map(chr, random.Random(7).choices(range(0x4E00, 0x9FFF), k=100_000))).encode()  # does not compress


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


@pytest.mark.parametrize(("record", "form"), [(b"{}", "record"), (b"x" * 300_000, "recordGzip"), (NOISE, "truncated")])
def test_letter_keeps_its_form_as_long_as_it_fits(record: bytes, form: str) -> None:
    text = encode_dead_letter(letter(record), 262_144)
    assert form in decoded(text)
    assert (encode_dead_letter(letter(record), len(text)), '": ' in text) == (text, False)
    assert encode_dead_letter(letter(record), len(text) - 1) != text


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
        {"part_index": 0},
    ],
)
def test_deduplication_id_differs_by_each_part_of_the_position(change: dict[str, object]) -> None:
    other = letter(origin=msgspec.structs.replace(KINESIS, **change))
    by_reason = msgspec.structs.replace(letter(), reason=DeadLetterReason.INVALID_JSON)
    assert len({fifo_ids_of(one).deduplication_id for one in (letter(), letter(b"b"), other, by_reason)}) == 3


def test_letter_of_a_rejected_record_carries_what_could_be_read() -> None:
    ids: dict[str, Any] = {"business_id": "b", "location_id": "l", "request_id": "r", "resource_id": "x"}
    rejected = RejectedRecord(DeadLetterReason.INVALID_MESSAGE, "expected a string", SQS, **ids)
    at, about = KINESIS.arrived_at, (DeadLetterReason.INVALID_MESSAGE, "expected a string", SQS)
    assert dead_letter_of(rejected, b"y", failed_at=at, attempts=3) == DeadLetter(*about, at, 3, b"y", **ids)
    assert dead_letter_of(rejected, b"y", failed_at=at).attempts == 1


MOMENTS = st.datetimes(
    datetime(1990, 1, 1),  # noqa: DTZ001  (hypothesis adds the zone)
    datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
)
TEXTS = st.text(max_size=12)
MAYBE = st.none() | TEXTS
OF_STREAM = st.builds(
    Origin,
    source=st.just(Source.KINESIS),
    name=TEXTS,
    arrived_at=MOMENTS,
    stream_shard_id=MAYBE,
    sequence_number=MAYBE,
    sub_sequence_number=st.integers(0, 99),
    partition_key=MAYBE,
)
OF_QUEUE = st.builds(
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
LETTERS = st.builds(DeadLetter, origin=OF_STREAM, **COMMON) | st.builds(
    DeadLetter,
    origin=OF_QUEUE,
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
    monkeypatch.setattr(letter_module, "UNPACKED_MAX_BYTES", 1000)
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


def parts_letter(bad: int, *, record: bytes = b"{}", error: str = "", ids: tuple[str | None, ...] = ()) -> DeadLetter:
    parts = BadParts(99, bad, {"invalid_json": bad}, tuple(range(1, bad + 1)), ids)
    return msgspec.structs.replace(letter(record, error=error), parts=parts)


@pytest.mark.parametrize("ids", [("a", None), ()])
def test_letter_of_parts_has_their_numbers_and_ids(ids: tuple[str | None, ...]) -> None:
    derived = [derived_request_id(msgspec.structs.replace(KINESIS, sub_sequence_number=number)) for number in (1, 2)]
    expected = [ids[0] or "", derived[1]] if ids else derived
    text = encode_dead_letter(parts_letter(2, ids=ids), 262_144)
    counts = {"total": 99, "bad": 2, "reasons": {"invalid_json": 2}}
    assert decoded(text)["parts"] == {**counts, "subSequenceNumbers": "1-2", "requestIds": expected}
    read = parse_dead_letter(text).letter.parts
    assert read is not None
    assert (read.numbers, read.request_ids) == ((1, 2), tuple(expected))
    unnumbered = msgspec.structs.replace(letter(), parts=BadParts(99, 2, {"invalid_json": 2}, None, None))
    text = encode_dead_letter(unnumbered, 262_144)
    read = parse_dead_letter(text).letter.parts
    assert read is not None
    assert (decoded(text)["parts"], read.numbers, read.request_ids) == (counts, None, None)


def test_excerpt_has_of_its_parts_what_leaves_half_of_the_room() -> None:
    ids = ("a",) * 20
    size = len(encode_dead_letter(parts_letter(20, record=b"", ids=ids), 262_144)) - len(',"record":""')
    for max_bytes, has_ids in ((2 * size - 1, False), (2 * size, True)):
        text = encode_dead_letter(parts_letter(20, record=NOISE, ids=ids), max_bytes)
        assert ("requestIds" in decoded(text)["parts"], len(text) <= max_bytes) == (has_ids, True)
    crowded = decoded(encode_dead_letter(parts_letter(20, record=NOISE, ids=ids, error="e" * 600), 1_400))
    assert (crowded["truncated"], "subSequenceNumbers" in crowded["parts"]) == (True, False)
    for count, has_ids in ((50, True), (51, False)):  # each id takes 40 bytes, before any is made
        text = encode_dead_letter(parts_letter(count, ids=("a",) * count), 2_000)
        assert ("requestIds" in decoded(text)["parts"]) is has_ids


PARTS = st.lists(st.tuples(st.integers(0, 5000), MAYBE), min_size=2, max_size=40, unique_by=lambda part: part[0])


@given(
    letter=st.builds(DeadLetter, origin=OF_STREAM, **COMMON), parts=PARTS, max_bytes=st.sampled_from([2500, 262_144])
)
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


@given(st.sets(st.tuples(st.integers(0, 300), st.integers(-1, 300)), min_size=1))
def test_ranges_are_read_as_they_were_written(places: set[tuple[int, int]]) -> None:
    numbers = tuple(place[0] if place[1] < 0 else place for place in sorted(places))
    assert parse_ranges(format_ranges(numbers), len(numbers)) == numbers


def test_places_of_many_bad_parts_fit_beside_an_excerpt() -> None:
    parts = BadParts(50_000, 50_000, {"invalid_json": 50_000}, tuple(range(50_000)))
    large = msgspec.structs.replace(letter(random.Random(1).randbytes(1_000_000)), parts=parts)
    read = parse_dead_letter(encode_dead_letter(large, 262_144)).letter.parts
    assert read is not None
    assert read.numbers == parts.numbers


def test_ranges_are_short_for_numbers_in_a_row() -> None:
    assert format_ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3,7,9-10"
    assert format_ranges([0, (1, 0), (1, 1), (1, 2), (2, 3), (3, 4), 5, 6]) == "0,1:0-2,2:3,3:4,5-6"


REFUSED_RANGES: Final = (
    *("", "x", "0-3", "0-999999999999", "5-4,1", "1,1", "2,1", "0,1,2", "-1,1", "-1:0,1", "1:0,0:1", "1:0,1:0"),
    *("0-1,1", "1:0,1", "3,2:0", "3", "0-0,1-2", "0-2,3"),
)


@pytest.mark.parametrize("text", REFUSED_RANGES)
def test_ranges_refuse_numbers_that_are_not_as_many_and_rising(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|invalid"):
        parse_ranges(text, 2)


@pytest.mark.parametrize(
    "parts",
    [
        {"total": 0, "bad": 2},
        {"total": 5, "bad": 100_000_000},
        {"total": 5, "bad": 2, "subSequenceNumbers": "0-4"},
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
