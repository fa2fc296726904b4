"""Texts nested deeper than a parser may recurse: the depth is that of the value, and the parts make up the text."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processor_time import least_cpu_s

from simplu_worker.operations import json_record
from simplu_worker.operations.json_record import CutRecord, cut_deep_values, is_nested_deeper

TEXTS = st.text(st.sampled_from(list('[]{}"\\, a\nué漢\0')), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    """Return how deep *value* is nested, the slow way."""
    match value:
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case _:
            return 0


@given(JSON_VALUES, st.booleans())
def test_text_is_nested_as_deep_as_its_value(value: object, indented: bool) -> None:  # noqa: FBT001 - as hypothesis gives it
    text, depth = json.dumps(value, indent=1 if indented else None).encode(), depth_of(value)

    assert not is_nested_deeper(text, depth)
    assert depth == 0 or is_nested_deeper(text, depth - 1)


@st.composite
def deep_texts(draw: st.DrawFn) -> bytes:
    """Draw a JSON object with members of which some are deep for parts of three levels."""
    openings = st.sampled_from([("[", "]"), ('{"k":', "}"), ('[[],"]", ', ' ,"[" ]'), ('{"a]\\"": [[]], "k" : ', "}")])
    members = {}
    for name in draw(st.lists(TEXTS, max_size=4)):
        value = draw(JSON_VALUES.map(json.dumps))
        for opening, closing in draw(st.lists(openings, max_size=30)):
            value = opening + value + closing
        members[name] = value
    return f"{{{', '.join(json.dumps(name) + ':' + value for name, value in members.items())}}}".encode()


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Any:
    """Have parts of few levels, and chunks that end between any two of their bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_record, "LEVELS", 3)
        patch.setattr(json_record, "CHUNK_BYTES", 7)
        yield


def restored(cut: CutRecord) -> bytes:
    """Return the text that was cut up."""
    text = cut.text
    for place, value in cut.values.items():
        assert text.count(place) == 1
        text = text.replace(place, value)
    return text


@given(deep_texts())
def test_cut_text_is_flat_and_has_the_values_of_the_record(record: bytes) -> None:
    cut = cut_deep_values(record)

    assert restored(cut) == record
    assert depth_of(json.loads(cut.text)) <= 2 * json_record.LEVELS
    assert all(depth_of(json.loads(value)) >= json_record.LEVELS for value in cut.values.values())


@pytest.mark.slow
@given(deep_texts(), st.data())
def test_cut_text_is_json_exactly_where_the_record_is(record: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(record)))
    splice = data.draw(st.sampled_from([b"", b"[", b"]", b"{", b"}", b'"', b",", b":", b"1", b"-", b" ", b"\\"]))
    broken = record[:at] + splice + record[at + data.draw(st.integers(0, 1)) :]

    assert is_json(broken, parse_cut) == is_json(broken, json.loads)


def parse_cut(record: bytes) -> None:
    """Parse *record* in its parts."""
    msgspec.json.decode(cut_deep_values(record).text, type=msgspec.Raw)


def is_json(text: bytes, parse: Callable[[bytes], object]) -> bool:
    """Return whether *parse* accepts *text*."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("end", ["]" * 20, "}" * 300, ""])
def test_text_with_brackets_that_do_not_match_is_no_json(end: str) -> None:
    assert not is_json(("[" * 10 + end).encode(), parse_cut)


def test_search_for_depth_takes_no_memory_for_what_is_in_strings() -> None:
    record = b'{"data": ["' + b"[" * 100_000 + rb"\"" * 50_000 + b'"]}'
    tracemalloc.start()

    assert not is_nested_deeper(record, 2)

    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * len(record)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        lambda count: b"[" * count + b"]" * count,
        lambda count: b"[" + b"[[[[]]]]," * count + b"1]",
        lambda count: b"[" * count,
        lambda count: b"[" + (b"[" * 40 + b"]" * 40 + b",") * (count // 40) + b"1]",
    ],
    ids=["deep", "wide", "open", "saw"],
)
def test_cut_takes_linear_time(shape: Callable[[int], bytes]) -> None:
    def least_s(count: int) -> float:
        record = b'{"a":' + shape(count) + b"}"
        return least_cpu_s(lambda: is_json(record, parse_cut))

    assert least_s(16_000) < 10 * least_s(4_000)
