"""The worker's own merge of a patch: RFC 7396 to the digit, and which patches need it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_local.workload.json_values import canonical_text, parse_json
from simplu_local.workload.reference_model import merge_patch
from simplu_worker.operations.json_record import (
    SMALL_PATCH_MAX_CHARS,
    SMALL_PATCH_MAX_OBJECTS,
    is_laborious,
    merge_texts,
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))  # others are refused
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("ab", max_size=2), JSON, max_size=5)
LONG = "x" * SMALL_PATCH_MAX_CHARS
WIDE: list[Any] = [{}] * SMALL_PATCH_MAX_OBJECTS


@given(document=OBJECTS, patch=OBJECTS)
def test_merge_equals_the_rfc_for_any_documents(document: Any, patch: Any) -> None:
    merged = merge_texts(json.dumps(document), json.dumps(patch))

    expected = merge_patch(parse_json(json.dumps(document)), parse_json(json.dumps(patch)))
    assert canonical_text(parse_json(merged.decode())) == canonical_text(expected)


def test_merge_keeps_every_number_as_it_was_written() -> None:
    document = '{"a": 1.000, "b": -0, "c": 1e131071, "d": 123456789012345678901234567890.10, "gone": 1}'

    merged = merge_texts(document, '{"gone": null, "e": {"f": 1E+5, "g": null}}')

    assert merged.decode() == ('{"a":1.000,"b":-0,"c":1e131071,"d":123456789012345678901234567890.10,"e":{"f":1E+5}}')


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udc00": 1}'])
def test_merge_refuses_a_lone_surrogate(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        merge_texts("{}", text)


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"a": None, "b": {"c": 1}, "d": {}}, False),
        ({"a": {"b": None}}, True),
        ({"a": {"b": {}}}, True),
        ({"a": {"b": [None, {}]}, "c": "{null"}, False),
        ({"a": LONG}, False),
        ({"a": LONG, "b": [None, {"c": None}]}, False),
        ({"a": LONG, "b": None}, True),
        ({"a": LONG, "b": {}}, True),
        ({"a": WIDE}, False),
        ({"a": "x" * (SMALL_PATCH_MAX_CHARS - 20), "b": None}, False),
        ({"a": "x" * (SMALL_PATCH_MAX_CHARS - 19), "b": None}, True),
        ({"a": [[{}] * (SMALL_PATCH_MAX_OBJECTS - 2)], "b": {}}, False),
        ({"a": [[{}] * (SMALL_PATCH_MAX_OBJECTS - 1)], "b": {}}, True),
        ({"a": [{"b": None}], "c": {"d": 1, "e": 2}}, False),
        ({"a": {"b": 1, "c": None}}, True),
        ({"a": WIDE, "b": {}}, True),
        ({"a": 1, "b": {"c": None}}, True),
        ({"a": "x" * (SMALL_PATCH_MAX_CHARS - 35), "b": None, "c": {"d": 1}}, False),
        ({"a": "x" * (SMALL_PATCH_MAX_CHARS - 34), "b": None, "c": {"d": 1}}, True),
    ],
)
def test_patch_is_laborious_by_its_nulls_and_objects(patch: dict[str, Any], *, expected: bool) -> None:
    assert is_laborious(json.dumps(patch)) is expected


def test_patch_with_an_odd_name_is_left_to_postgres() -> None:
    assert not is_laborious(json.dumps({"\ud800": LONG, "b": None}))
