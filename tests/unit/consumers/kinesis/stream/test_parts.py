from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.kpl_aggregates import aggregate

from simplu_worker.consumers.kinesis.stream import aggregation
from simplu_worker.consumers.kinesis.stream.aggregation import (
    PARTS_OF_RECORD_MAX,
    TOO_MANY_OF_RECORD,
    Part,
    deaggregate,
    parts_of_aggregate,
    parts_of_record,
    unpack,
)
from simplu_worker.operations.json_record import RECORD_MAX_DEPTH

ONE, TWO = b'{"operation":"read"}', b'{"operation": "list"}'
BOM = b"\xef\xbb\xbf"


def texts(record: bytes) -> list[bytes] | None:
    parts = parts_of_record(record, "key")
    return None if parts is None else [part.data for part in parts]


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (b"[%b]" % ONE, [ONE]),
        (b" \r\n\t[ %b ,\n%b ]\n" % (ONE, TWO), [ONE, TWO]),
        (b'[%b,[%b],7,null,"text",[]]' % (ONE, TWO), [ONE, b"[%b]" % TWO, b"7", b"null", b'"text"', b"[]"]),
        (b'[{"a":"],[{"},%b]' % ONE, [b'{"a":"],[{"}', ONE]),
        (b'[[1],"\\ud800","\\u0000",{"b":"\\udc00"}]', [b"[1]", b'"\\ud800"', b'"\\u0000"', b'{"b":"\\udc00"}']),
        (b"%b\n%b" % (ONE, TWO), [ONE, TWO]),
        (b"%b\r\n\r\n  \n%b\r\n" % (ONE, TWO), [ONE, TWO]),
        (b"\n %b\n\t%b \n\n" % (ONE, TWO), [ONE, TWO]),
        (b"%b\nbroken\n%b" % (ONE, TWO), [ONE, b"broken", TWO]),
        (b'{"operation":"re\n%b\n%b' % (ONE, TWO), [b'{"operation":"re', ONE, TWO]),
        (b"%b\n[%b]\n7" % (ONE, TWO), [ONE, b"[%b]" % TWO, b"7"]),
        (b"%b\n\xff\xfe" % ONE, [ONE, b"\xff\xfe"]),
        (b"%b %b\n%b" % (ONE, ONE, TWO), [b"%b %b" % (ONE, ONE), TWO]),
    ],
)
def test_record_of_several_operations_is_cut_into_them(record: bytes, parts: list[bytes]) -> None:
    assert texts(record) == parts


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\n\n",
        ONE,
        b" %b\n" % ONE,
        json.dumps(json.loads(ONE) | {"data": {"a": [1, {}]}}, indent=2).encode(),
        json.dumps(json.loads(ONE) | {"data": {"a": [1, {}]}}, indent=0).encode(),
        json.dumps(json.loads(ONE) | {"data": {"a": [1, {}]}}, indent=2).encode()[:-1],
        b'{"a":\n{}\n}',
        b"[]",
        b" [ ] ",
        b"[%b" % ONE,
        b"[%b,]" % ONE,
        b"[%b]x" % ONE,
        b"[%b]\n[%b]" % (ONE, TWO),
        b'["\xff"]',
        BOM + b"[%b]" % ONE,
        BOM + b"[\n%b\n]" % ONE,
        BOM + b"%b\n%b" % (ONE, TWO),
        b"%b and more" % ONE,
        b"broken\nbroken too\n%b" % ONE,
        b"7\n8",
        b"{\n}",
    ],
)
def test_record_is_one_operation_or_one_bad_record_unless_it_is_an_array_or_lines(record: bytes) -> None:
    assert texts(record) is None


@pytest.mark.parametrize("separator", [b",", b"\n"])
@pytest.mark.parametrize("extra", [0, 1, 5_000])
def test_record_of_too_many_parts_is_refused_as_a_whole(separator: bytes, extra: int) -> None:
    record = separator.join([ONE] * (PARTS_OF_RECORD_MAX + extra))
    record = record if separator == b"\n" else b"[%b]" % record
    parts = parts_of_record(record, "key")
    assert parts is not None
    if extra:
        assert [(part.data, part.refusal, part.index) for part in parts] == [(record, TOO_MANY_OF_RECORD, None)]
    else:
        assert [part.index for part in parts] == list(range(PARTS_OF_RECORD_MAX))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.slow
@given(found=st.lists(values, min_size=1), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_array_has_the_parts_that_a_json_parser_finds(
    *, found: list[object], indent: int | None, ascii_only: bool
) -> None:
    record = json.dumps(found, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parts = texts(record)
    if parts is None:
        with pytest.raises(UnicodeDecodeError):
            record.decode()
    else:
        assert [json.loads(part) for part in parts] == found


def test_record_without_an_aggregate_has_the_key_and_number_of_its_record() -> None:
    for number, args in ((0, ()), (7, (7,))):
        parts = unpack(b"[%b,%b]" % (ONE, TWO), "key", *args)
        assert parts is not None
        assert [(part.partition_key, part.number) for part in parts] == [("key", (number, 0)), ("key", (number, 1))]
        assert [part.parts_behind for part in parts] == [1, 0]
        many = unpack(b"\n".join([ONE] * (PARTS_OF_RECORD_MAX + 1)), "key", *args)
        assert many is not None
        assert [(part.partition_key, part.number) for part in many] == [("key", number)]
    assert unpack(ONE, "key") is None
    of_aggregate = unpack(aggregate([("a", None, ONE), ("b", None, b"%b\n%b" % (ONE, TWO))]), "ignored")
    assert of_aggregate == [Part("a", ONE), Part("b", ONE, 1, index=0, parts_behind=1), Part("b", TWO, 1, index=1)]


def test_array_deeper_than_a_record_may_be_is_none() -> None:
    deepest = b"[" * RECORD_MAX_DEPTH + b"]" * RECORD_MAX_DEPTH
    assert texts(b"[%b]" % deepest) == [deepest]
    assert texts(b"[[%b]]" % deepest) is None


@pytest.mark.parametrize(
    ("packed", "sub_count", "part_count"),
    [([b"[1,2,3]"] * 3, 3, 6), ([b"[1,2,3]", ONE, ONE], 3, 5), ([ONE] * 5, 5, 5), ([ONE] * 8, 6, 6)],
)
def test_no_part_is_looked_at_behind_one_too_many(
    packed: list[bytes], sub_count: int, part_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "PARTS_MAX", 5)
    subs = deaggregate(aggregate([("a", None, part) for part in packed])) or []
    assert (len(subs), len(parts_of_aggregate(subs))) == (sub_count, part_count)
