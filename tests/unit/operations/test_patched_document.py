"""A large document takes patches one after the other, as if each was merged and measured alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_local.workload.json_values import canonical_text, parse_json
from simplu_local.workload.reference_model import merge_patch
from simplu_worker.operations.json_record import (
    DOCUMENT_MAX_BYTES,
    DOCUMENT_MAX_VALUES,
    DocumentSize,
    exceeds_bounds,
    size_of,
)
from simplu_worker.operations.merge_patch import PatchedDocument, UnmeasuredError

SCALARS = st.none() | st.booleans() | st.integers(-20, 20) | st.sampled_from(["", "é", 'a "b"', "\\", "[,]", 1e300])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text('aé"', max_size=2), JSON, max_size=5)


def compact(value: Any) -> bytes:
    """Return the JSON text of *value* without spaces."""
    return msgspec.json.encode(value)


@pytest.mark.slow
@given(document=OBJECTS, patches=st.lists(OBJECTS, max_size=4))
def test_document_and_its_size_are_those_after_each_patch(document: Any, patches: list[Any]) -> None:
    patched = PatchedDocument(json.dumps(document, ensure_ascii=False))

    for patch in patches:
        assert patched.merge(json.dumps(patch, ensure_ascii=False))
        document = merge_patch(parse_json(json.dumps(document)), parse_json(json.dumps(patch)))
        document = parse_json(canonical_text(document))

        assert canonical_text(parse_json(patched.text().decode())) == canonical_text(document)
        assert repr(patched) == f"PatchedDocument({size_of(compact(json.loads(patched.text())))})"
        document = json.loads(patched.text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "count"),
    [
        ({"m0": None}, 1),
        ({"m0": [1, 2]}, 0),
        ({"m0": {"a": None, "b": {"c": 1, "d": None}}}, 0),
        ({"m0": {}}, 2),
    ],
)
def test_patch_beyond_the_bound_of_values_changes_nothing(patch: Any, count: int) -> None:
    members = {f"m{number}": number for number in range(DOCUMENT_MAX_VALUES - 2)}
    patched = PatchedDocument(json.dumps(members))
    before = patched.text()

    assert not patched.merge(json.dumps({"new": [1, 2]}))
    assert patched.text() == before
    assert patched.merge(json.dumps(patch))
    assert not patched.merge(json.dumps({"new": [1] * (count + 2)}))
    room = [1] * count
    assert patched.merge(json.dumps({"new": room[1:]} if count else {}))
    assert not exceeds_bounds(patched.text())


def test_patch_beyond_the_bound_of_text_changes_nothing() -> None:
    patched = PatchedDocument(json.dumps({"a": "x" * (DOCUMENT_MAX_BYTES - 1100)}))

    assert not patched.merge('{"b": [1e999, 1e99]}')
    assert patched.merge('{"b": 1e999}')
    assert not patched.merge('{"c": 1e99}')
    assert patched.merge('{"a": null, "c": 1e99}')


@pytest.mark.parametrize("text", ['{"a": 1e5000}', '{"\\ud800": 1}', "{"])
def test_document_without_a_size_is_refused(text: str) -> None:
    with pytest.raises(UnmeasuredError):
        PatchedDocument(text)


def test_patch_that_is_no_text_changes_nothing() -> None:
    patched = PatchedDocument('{"a": 1}')

    with pytest.raises(UnmeasuredError):
        patched.merge('{"a": null, "\\ud800": 1}')
    assert patched.text() == b'{"a":1}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"1", (0, 1)),
        (b" [ ] ", (0, 2)),
        (b'{"a": [1, 2], "b c": "d e"}', (4, 23)),
        (b"[1e3, -1.5e-2]", (2, 13)),
    ],
)
def test_size_is_that_of_the_text_without_spaces(value: bytes, expected: tuple[int, int]) -> None:
    assert size_of(value) == DocumentSize(*expected)
