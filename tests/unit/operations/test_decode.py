"""What becomes of a record's bytes: every rule of docs/sending.md, and that nothing else can come of any bytes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import EXPECTED_TIME, parse_timestamp, replace_lone_surrogates, utc_text
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord, derived_request_id
from simplu_worker.vocabulary import DeadLetterReason, OperationKind, Source

MAX_BYTES = 20_000_000
LIST_LIMIT = 1000
ORIGIN = Origin(
    source=Source.KINESIS,
    name="resources-operations",
    arrived_at=datetime(2026, 1, 31, 9, tzinfo=UTC),
    stream_shard_id="shardId-000000000000",
    sequence_number="49590338271490256608559692538361571095921575989136588898",
)
KINDS_WITH_DATA = ("create", "update", "patch")
KINDS_WITH_ID = ("update", "patch", "delete", "read")
WRITTEN_DAY = datetime(2026, 1, 31, tzinfo=UTC)


def message(kind: str = "create", **members: Any) -> dict[str, Any]:
    """Return the members of a valid record, with *members* put over them; those given as `...` are left out."""
    valid: dict[str, Any] = {
        "operation": kind,
        "businessId": "clinic",
        "locationId": "main",
        "resourceType": "appointment",
        "resourceId": "a-1",
        "data": {"room": 4},
        "timestamp": "2026-01-31T09:00:00Z",
        "requestId": "request-1",
    }
    if kind not in KINDS_WITH_DATA:
        del valid["data"]
    return {name: value for name, value in (valid | members).items() if value is not ...}


def decode(record: bytes, origin: Origin = ORIGIN) -> Operation | RejectedRecord:
    return decode_operation(record, origin, max_bytes=MAX_BYTES, list_limit=LIST_LIMIT)


def decoded(kind: str = "create", **members: Any) -> Operation:
    operation = decode(json.dumps(message(kind, **members)).encode())
    assert isinstance(operation, Operation), operation
    return operation


def rejected(kind: str = "create", **members: Any) -> RejectedRecord:
    refusal = decode(json.dumps(message(kind, **members)).encode())
    assert isinstance(refusal, RejectedRecord), refusal
    return refusal


def with_text(name: str, text: str, kind: str = "create") -> bytes:
    members = {member: json.dumps(value) for member, value in message(kind).items()} | {name: text}
    inside = ", ".join(f'"{member}": {value}' for member, value in members.items())
    return f"{{{inside}}}".encode()


def test_operation_holds_what_the_record_says() -> None:
    record = b' {"operation":"create", "businessId":"clinic","locationId":"main","resourceType":"appointment",\n'
    record += b'"resourceId":"a-1","data" : {"n": 1.50,"n":18446744073709551616123} ,"timestamp":"2026-01-31",'
    record += b'"requestId":"request-1","traceId":[null]} '

    operation = decode(record)

    assert isinstance(operation, Operation)
    assert operation == Operation(
        kind=OperationKind.CREATE,
        business_id="clinic",
        location_id="main",
        tenant_id="clinic-main",
        resource_type="appointment",
        resource_id="a-1",
        request_id="request-1",
        data=msgspec.Raw('{"n": 1.50,"n":18446744073709551616123}'),
        query=None,
        requested_at=WRITTEN_DAY.isoformat(),
        digest=operation.digest,
        origin=ORIGIN,
        size_bytes=len(record),
    )


@pytest.mark.parametrize("kind", list(OperationKind))
def test_kind_is_the_records_operation(kind: OperationKind) -> None:
    operation = decoded(kind, data={"room": 4})

    assert operation.kind is kind
    assert operation.text == ('{"room": 4}' if kind in KINDS_WITH_DATA else None)
    assert (operation.query is not None) == (kind is OperationKind.LIST)
    assert operation.resource_id == (None if kind is OperationKind.LIST else "a-1")


REQUIRED = [
    *((kind, name) for kind in OperationKind for name in ("businessId", "locationId", "resourceType", "timestamp")),
    *((kind, "data") for kind in KINDS_WITH_DATA),
    *((kind, "resourceId") for kind in KINDS_WITH_ID),
]


@pytest.mark.parametrize("value", [..., None])
@pytest.mark.parametrize(("kind", "name"), REQUIRED)
def test_record_is_refused_without_a_required_member(kind: str, name: str, value: Any) -> None:
    refusal = rejected(kind, **{name: value})

    assert refusal.reason is DeadLetterReason.INVALID_MESSAGE
    assert name in refusal.error
    assert (refusal.request_id, refusal.origin) == ("request-1", ORIGIN)


OPTIONAL = [
    *((kind, name) for kind in ("delete", "list", "read") for name in ("data", "filters", "pagination")),
    *((kind, name) for kind in KINDS_WITH_DATA for name in ("filters", "pagination")),
    ("create", "resourceId"),
    ("list", "resourceId"),
    *((kind, "requestId") for kind in OperationKind),
]


@pytest.mark.parametrize(("kind", "name"), OPTIONAL)
def test_null_counts_as_absent(kind: str, name: str) -> None:
    assert decoded(kind, **{name: None}) == msgspec.structs.replace(
        decoded(kind, **{name: ...}), size_bytes=len(json.dumps(message(kind, **{name: None})))
    )


@pytest.mark.parametrize(
    ("name", "longest"),
    [("businessId", 128), ("locationId", 128), ("resourceType", 128), ("requestId", 128), ("resourceId", 256)],
)
@pytest.mark.parametrize("character", ["x", "é", "漢", "🏨"])
def test_ids_are_measured_in_characters(name: str, longest: int, character: str) -> None:
    for length in (1, 127, 128, longest):
        for ascii_only in (True, False):
            record = json.dumps(message(**{name: character * length}), ensure_ascii=ascii_only).encode()
            assert isinstance(decode(record), Operation), length
    for length in (0, longest + 1):
        refusal = rejected(**{name: character * length})
        assert (refusal.reason, name in refusal.error) == (DeadLetterReason.INVALID_MESSAGE, True)


WRONG_TYPES: dict[str, list[Any]] = {
    "operation": [1, True, [], {}],
    "businessId": [7, 1.5, False, [], {}, ["clinic"]],
    "locationId": [7, {}],
    "resourceType": [7, {}],
    "resourceId": [7, {}],
    "requestId": [7, {}],
    "timestamp": [1_700_000_000, 1.5, [], {}],
    "data": [[], "text", 3, 1.5, True, False, "", "{}"],
    "filters": [[], "text", 3, True],
    "pagination": [[], "text", 3, True, {"page": "1"}, {"limit": 1.5}, {"page": True}, {"limit": []}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values])
def test_record_is_refused_when_a_member_has_a_wrong_type(name: str, value: Any) -> None:
    refusal = rejected("list" if name in {"filters", "pagination"} else "create", **{name: value})

    assert refusal.reason is DeadLetterReason.INVALID_MESSAGE
    assert re.search(rf"\b{name}\b", refusal.error)


def test_unknown_members_are_ignored() -> None:
    noise: dict[str, Any] = {"traceparent": "\ud800", "data2": {"a": [1, {}]}, "business_id": "other", "": None}

    assert decoded(**noise).digest == decoded().digest


def test_last_of_two_members_counts() -> None:
    record = json.dumps(message()).replace('"a-1"', '"a-0", "resourceId": "a-1"').encode()
    operation = decode(record)

    assert isinstance(operation, Operation)
    assert operation.resource_id == "a-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31t09:00:00z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00.5Z", datetime(2026, 1, 31, 9, 0, 0, 500_000, UTC)),
        ("2026-01-31T09:00:00.123456789Z", datetime(2026, 1, 31, 9, 0, 0, 123_456, UTC)),
        ("2026-01-31T10:30:00+01:30", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-02-01T08:59:00+23:59", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31", WRITTEN_DAY),
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00-00:01", datetime(1, 1, 1, 0, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
        ("9999-12-31T23:59:59+00:01", datetime(9999, 12, 31, 23, 58, 59, tzinfo=UTC)),
    ],
)
def test_timestamp_is_read_as_utc(text: str, expected: datetime) -> None:
    parsed = parse_timestamp(text)

    assert (parsed, parsed.tzinfo) == (expected, UTC)
    assert parse_timestamp(decoded(timestamp=text).requested_at) == expected
    with pytest.raises(ValueError, match="expected a time of RFC 3339"):
        parse_timestamp("2026-W09-1")


def test_timestamp_is_read_as_utc_in_any_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = [parse_timestamp("2026-01-31"), parse_timestamp("2026-01-31T00:00:00Z")]
    time.tzset()
    assert [(one.isoformat(), one.tzinfo) for one in found] == [("2026-01-31T00:00:00+00:00", UTC)] * 2


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "soon", "now", "1700000000", "2026", "2026-01", "2026-1-31", "26-01-31", "31.01.2026", "01/31/2026"),
        *("2026-13-01", "2026-00-01", "2026-02-29", "2026-01-32", "2026-W54-1", "2026-01-31T25:00Z"),
        *("2026-01-31T09:60Z", "2026-01-31T09:00:60Z", "2026-01-31T09:00:00+24:00", "2026-01-31T09:00Z+01:00"),
        *(" 2026-01-31", "2026-01-31 ", "2026-01-31T", "2026-01-31Z", "2026-01-31T09:00:00 UTC", "+2026-01-31"),
        *("0000-01-01", "10000-01-01T00:00:00Z", "-0001-01-01", "0001-01-01T00:00:00+00:01"),
        *("9999-12-31T23:59:59-00:01", "２０２６-01-31", "2026-01-31T09:00:00−01:00", "2026-01-31\0", "P1D"),
        *("2026-01-31T09:00Z", "2026-01-31T09Z", "20260131T090000Z", "2026-W05-6", "2026-01-31 09:00:00", "20260131"),
        *("2026-01-31T09:00:00,5Z", "2026-01-31T09:00:00.Z", "2026-01-31T10:30:00+0130", "2026-01-31T08:00:00-01"),
    ],
)
def test_timestamp_is_refused_when_it_is_none_of_rfc_3339(text: str) -> None:
    assert rejected(timestamp=text) == RejectedRecord(
        reason=DeadLetterReason.INVALID_MESSAGE,
        error=f"timestamp: expected {EXPECTED_TIME}, got another text",
        origin=ORIGIN,
        business_id="clinic",
        location_id="main",
        request_id="request-1",
        resource_id="a-1",
    )


def test_request_id_is_refused_with_the_prefix_of_derived_ones() -> None:
    for text in ('"simplu:mine"', '"simplu:"', '"\\u0073implu:mine"'):
        refusal = decode(with_text("requestId", text))
        assert isinstance(refusal, RejectedRecord)
        assert (refusal.reason, "requestId" in refusal.error) == (DeadLetterReason.INVALID_MESSAGE, True)
    for text in ("simplu", "Simplu:mine", "my-simplu:"):
        assert decoded(requestId=text).request_id == text


def test_missing_request_id_is_derived_from_the_position() -> None:
    positions = {
        "name": "other-stream",
        "stream_shard_id": "shardId-000000000001",
        "sequence_number": "49590338271490256608559692538361571095921575989136588899",
        "sub_sequence_number": 1,
    }
    again = msgspec.structs.replace(ORIGIN, arrived_at=datetime.now(UTC), partition_key="another")
    others = [msgspec.structs.replace(ORIGIN, **{name: value}) for name, value in positions.items()]

    ids = [derived_request_id(origin) for origin in (ORIGIN, *others)]

    assert derived_request_id(again) == ids[0]
    assert len(set(ids)) == 5
    assert all(re.fullmatch(r"simplu:[0-9a-f]{64}", one) for one in ids)
    assert decoded(requestId=...).request_id == ids[0]


def test_create_takes_its_request_id_when_it_has_no_resource_id() -> None:
    assert decoded(resourceId=...).resource_id == "request-1"
    assert decoded(resourceId=..., requestId=...).resource_id == derived_request_id(ORIGIN)


@pytest.mark.parametrize("text", [r"\u0000", r"a\u0000b", r"\ud800", r"\uDFFF", r"\uDe00\uD83d", r"\ud83d\ud83d\ude00"])
@pytest.mark.parametrize("name", ["businessId", "locationId", "resourceType", "resourceId", "requestId"])
def test_ids_are_refused_when_they_hold_what_text_cannot(name: str, text: str) -> None:
    for backslashes in ("", r"\\", r"\\\\"):
        refusal = decode(with_text(name, f'"{backslashes}{text}"'))
        assert isinstance(refusal, RejectedRecord), backslashes
        assert refusal.reason is DeadLetterReason.INVALID_MESSAGE
        assert name in refusal.error


def test_invalid_json_wins_over_other_faults_before_it() -> None:
    for start in (b'{"businessId": 5, ', rb'{"businessId": "\ud800", '):
        refusal = decode(start + b'"locationId": }')
        assert isinstance(refusal, RejectedRecord)
        assert refusal.reason is DeadLetterReason.INVALID_JSON


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize("kind", KINDS_WITH_DATA)
def test_data_may_be_nested_up_to_the_bound_of_documents(kind: str) -> None:
    operation = decode(with_text("data", nested(512), kind))

    assert isinstance(operation, Operation)
    assert (operation.exceeds_bounds, operation.text) == (False, nested(512))


@pytest.mark.parametrize("name", ["data", "filters", "noise", "businessId", "simpluReplay"])
@pytest.mark.parametrize("deep", [nested(513), nested(100_000), nested(100_000)[:-1]])
def test_record_is_refused_when_it_is_deeper(name: str, deep: str) -> None:
    refusal = decode(with_text("requestId", f'"request-1", "{name}": {deep}'))

    assert isinstance(refusal, RejectedRecord)
    error = "record: expected JSON nested at most 513 deep, got deeper"
    assert (refusal.reason, refusal.error) == (DeadLetterReason.INVALID_MESSAGE, error)
    assert refusal.request_id == "request-1"


TEXTS = st.text(st.sampled_from(list('[]{}"\\, a\nué漢😀\0\ud800\udc00')), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=20,
)


@given(st.text(st.sampled_from(list("\\ud83d\\ude00dDFfx")), max_size=24) | TEXTS.map(json.dumps))
def test_lone_surrogates_are_replaced_and_nothing_else(text: str) -> None:
    record = replace_lone_surrogates(text.encode()).decode()
    try:
        before = json.loads(f'"{text}"')
    except ValueError:
        return
    after = json.loads(f'"{record}"')

    assert len(record) == len(text)
    assert after == re.sub("[\ud800-\udfff]", "\0", before)


def test_record_is_too_large_when_it_passes_the_bound() -> None:
    record = json.dumps(message()).encode()

    at_bound = decode_operation(record, ORIGIN, max_bytes=len(record), list_limit=LIST_LIMIT)
    beyond = decode_operation(record, ORIGIN, max_bytes=len(record) - 1, list_limit=LIST_LIMIT)

    assert isinstance(at_bound, Operation)
    assert beyond == RejectedRecord(
        reason=DeadLetterReason.TOO_LARGE,
        error=f"record: expected at most {len(record) - 1} bytes (OPERATION_MAX_BYTES), got {len(record)}",
        origin=ORIGIN,
        business_id="clinic",
        location_id="main",
        request_id="request-1",
        resource_id="a-1",
    )


def test_filters_keep_the_text_of_their_values() -> None:
    text = '{"n": 1.50000000000000000000001, "o" : [{"b":1, "a" : [ ]}], "z": null, "n": 18446744073709551617}'
    operation = decode(with_text("filters", text, "list"))

    assert isinstance(operation, Operation)
    assert operation.query is not None
    assert operation.query.members == '{"n":18446744073709551617,"o":[{"b":1, "a" : [ ]}],"z":null}'


@pytest.mark.parametrize(
    ("kind", "members", "parts"),
    [
        ("create", {}, b'6,11,3,11,0,0\0create\0appointment\0a-1\0{"room": 4}\0\0'),
        (
            "create",
            {"resourceId": ..., "filters": {"a": 1}, "pagination": {}, "timestamp": "2027-01-01", "noise": 1},
            b'6,11,0,11,8,2\0create\0appointment\0\0{"room": 4}\0{"a": 1}\0{}',
        ),
        ("delete", {"data": {"room": 4}}, b'6,11,3,11,0,0\0delete\0appointment\0a-1\0{"room": 4}\0\0'),
        ("list", {}, b"4,11,3,0,0,0\0list\0appointment\0a-1\0\0\0"),
        ("list", {"resourceId": ...}, b"4,11,0,0,0,0\0list\0appointment\0\0\0\0"),
    ],
)
def test_digest_is_over_the_parts_as_sent_and_their_sizes(kind: str, members: dict[str, Any], parts: bytes) -> None:
    assert decoded(kind, **members).digest == b"\x01" + hashlib.sha256(parts).digest()[:7]


def is_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return True


VALID_RECORDS = [
    json.dumps(message(kind, filters={"a": [1, {"b": "x\\"}], "date": "2026-01-31"}, pagination={"page": 1})).encode()
    for kind in OperationKind
]
SPLICES = st.sampled_from([*rb'" \ \u0000 \ud800 { } [ ] , : null 1e9 -'.split(), b"\xff", b"\x00", b" "])


@st.composite
def mutated_records(draw: st.DrawFn) -> bytes:
    record = draw(st.sampled_from(VALID_RECORDS))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, len(record)))
        cut = draw(st.integers(0, 3))
        record = record[:position] + draw(SPLICES | st.binary(max_size=3)) + record[position + cut :]
    return record


@given(st.binary(max_size=200) | mutated_records() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_operation_or_a_reason(record: bytes) -> None:
    result = decode(record)

    try:
        text = record.decode()
    except UnicodeDecodeError:
        text = ""
    is_invalid_json = isinstance(result, RejectedRecord) and result.reason is DeadLetterReason.INVALID_JSON
    assert is_invalid_json == (not is_json(text))


def test_error_never_quotes_the_record() -> None:
    secret = "4111-1111"
    texts: list[object] = [[secret], {secret: secret}, secret * 40]
    wrong: dict[str, dict[str, list[object]]] = {
        "list": dict.fromkeys(("businessId", "locationId", "resourceType", "requestId", "timestamp"), texts)
        | {"filters": [[secret], f"\0{secret}"]},
        "read": {"resourceId": texts},
        "create": {"data": [[secret], secret * 40]},
    }
    for kind, members in wrong.items():
        for name, values in members.items():
            for value in values:
                result = decode(json.dumps(message(kind, **{name: value})).encode())
                assert isinstance(result, RejectedRecord), (name, value)
                assert not re.search("4111|1111", result.error), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T09:00:00Z", "2026-01-31T09:00:00Z"),
        ("2026-01-31T09:00:00.000001Z", "2026-01-31T09:00:00.000001Z"),
        ("2026-01-31T09:00:00.0000009Z", "2026-01-31T09:00:00+00:00"),  # Postgres would round it up
        ("2026-01-31T09:00:00.5+02:00", "2026-01-31T07:00:00.500000+00:00"),
        ("2026-01-31t09:00:00z", "2026-01-31T09:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
    ],
)
def test_time_is_kept_only_where_postgres_reads_it_alike(text: str, expected: str) -> None:
    assert utc_text(text) == expected
    assert (parse_timestamp(text).tzinfo, parse_timestamp(expected)) == (UTC, parse_timestamp(text))


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (r'{"a": "\u0000"}', r'{"a": "\u0000"}'),
        (r'{"a": "\uD800"}', r'{"a": "\u0000"}'),
        (r'{"\udfff": 1}', r'{"\u0000": 1}'),
        (r'{"a": "\\ud800"}', r'{"a": "\\ud800"}'),
        ('{"a": 1e999999}', '{"a": 1e999999}'),
    ],
)
def test_data_that_postgres_will_refuse_is_an_operation(data: str, kept: str) -> None:
    for kind in KINDS_WITH_DATA:
        operation = decode(with_text("data", data, kind))
        assert isinstance(operation, Operation)
        assert operation.text == kept


def test_filters_are_not_looked_into_when_nothing_is_listed() -> None:
    for kind in ("create", "read", "delete"):
        assert decoded(kind, filters={"date": 3}, pagination={"page": 0}).query is None
