from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processor_time import least_cpu_s

from simplu_worker.operations import json_record
from simplu_worker.operations.json_record import is_nested_deeper

TEXTS = st.text(st.sampled_from(list('[]{}"\\, a\nué漢\0')), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
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


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_record, "CHUNK_BYTES", 7)
        yield


def test_search_for_depth_takes_no_memory_for_what_is_in_strings() -> None:
    record = b'{"data": ["' + b"[" * 100_000 + rb"\"" * 50_000 + b'"]}'
    tracemalloc.start()

    assert not is_nested_deeper(record, 2)

    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * len(record)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["[", "[]", "[[[[]]]],", '["[",'])
def test_search_for_depth_takes_linear_time(shape: str) -> None:
    def least_s(count: int) -> float:
        return least_cpu_s(lambda: is_nested_deeper(shape.encode() * count, 10**6))

    assert least_s(160_000) < 10 * least_s(40_000)
