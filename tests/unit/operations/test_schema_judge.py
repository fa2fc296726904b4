"""Judging documents by a schema: what is found, in words of the schema alone."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplu_worker.operations.business_types import BusinessType, ResourceType
from simplu_worker.operations.schema_judge import (
    EXPLAINED_MAX_BYTES,
    JUDGED_MAX_BYTES,
    PATTERNS_MAX,
    SCHEMA_MAX_BYTES,
    SIZE_MAX,
    TOO_LARGE,
    UNFIT,
    UNREADABLE,
    Finding,
    InvalidSchemaError,
    Schema,
    _expected_by,
    _is_of_library,
    _problem_of,
    check_bounds,
    count_findings,
    find_schema_problem,
    judges_of,
)
from simplu_worker.vocabulary import Validation

SECRET = "Secret"
NUMBER = {"$defs": {"n": {"type": ["number", "null"], "maximum": 5}}}


@pytest.mark.parametrize(
    ("schema", "document", "line"),
    [
        (
            {"properties": {"a": {"$ref": "#/$defs/n"}}, **NUMBER},
            {"a": SECRET},
            '$defs/n/type: type ["number","null"] at /a',
        ),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, **NUMBER}, {"a": 7}, "$defs/n/maximum: maximum 5 at /a"),
        ({"required": ["a"]}, {SECRET: 1}, 'required: the member "a"'),
        ({"additionalProperties": False}, {SECRET: 1}, "additionalProperties: additionalProperties false"),
        ({"unevaluatedProperties": False}, {SECRET: 1}, "unevaluatedProperties: unevaluatedProperties false"),
        (
            {"properties": {"a": {"additionalProperties": False}}},
            {"a": {SECRET: 1}},
            "properties/a/additionalProperties: additionalProperties false at /a",
        ),
        ({"additionalProperties": {"type": "string"}}, {SECRET: 1}, 'additionalProperties/type: type "string"'),
        (
            {"properties": {"a": {"additionalProperties": {"type": "number"}}}},
            {"a": {SECRET: SECRET}},
            'properties/a/additionalProperties/type: type "number"',
        ),
        ({"properties": {"a": {"items": {"enum": ["b", 1]}}}}, {"a": [1, SECRET]}, None),
        ({"properties": {"a/b": {"const": "x"}}}, {"a/b": SECRET}, 'properties/a~1b/const: const "x" at /a~1b'),
        ({"properties": {"a": {"pattern": "^x"}}}, {"a": SECRET}, 'properties/a/pattern: pattern "^x" at /a'),
        ({"properties": {"a": {"minLength": 9}}}, {"a": SECRET}, "properties/a/minLength: minLength 9 at /a"),
        ({"properties": {"a": {"anyOf": [{"type": "null"}]}}}, {"a": SECRET}, None),
        ({"properties": {"a": False}}, {"a": SECRET}, "properties/a: no value here at /a"),
        ({"propertyNames": {"maxLength": 1}}, {SECRET: 1}, "propertyNames/maxLength: maxLength 1"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": SECRET}, 'dependentRequired: the member "b"'),
        ({"not": {"required": ["a"]}}, {"a": SECRET}, 'not: not {"required":["a"]}'),
        ({"if": {}, "then": {"minProperties": 2}}, {SECRET: 1}, "then/minProperties: minProperties 2"),
        ({"properties": {"a": {"enum": ["x" * 300]}}}, {"a": SECRET}, None),
    ],
)
def test_finding_has_the_place_and_the_words_of_the_schema(
    schema: dict[str, Any], document: dict[str, Any], line: str | None
) -> None:
    found = Schema(schema).judge(json.dumps(document).encode())

    assert found is not None
    assert SECRET not in str(found)
    assert len(str(found)) < 300
    if line is not None:
        place, _, expected = line.partition(": ")
        assert str(found) == f"#/{place}: expected {expected}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"a": 1e400}', None),  # no float
        (b'{"a": -1e-400}', Finding("#/properties/a/minimum", "minimum 0", "/a")),
        (b'{"a": 19.99}', None),
        (b'{"a": 19.995}', Finding("#/properties/a/multipleOf", "multipleOf 0.01", "/a")),
        (b'{"a": 1, "a": "b"}', Finding("#/properties/a/type", 'type "number"', "/a")),
        (b'{"a": "\\ud800"}', UNREADABLE),
        (b'{"a": 1}' + b" " * JUDGED_MAX_BYTES, TOO_LARGE),
    ],
)
def test_document_is_judged_by_its_exact_text(text: bytes, found: Finding | None) -> None:
    schema = Schema({"type": "object", "properties": {"a": {"type": "number", "minimum": 0, "multipleOf": 0.01}}})
    assert schema.judge(b'{"a": 1}'.ljust(JUDGED_MAX_BYTES)) is None
    assert schema.judge(text.replace(b"-1e-400", b"-1E-300")) == found


def test_large_document_is_not_explained_behind_alternatives() -> None:
    alternatives = Schema(
        {"properties": {"a": {"anyOf": [{"items": {"type": "null"}}, {"items": {"type": "string"}}]}}}
    )
    plain = Schema({"properties": {"a": {"items": {"type": "null"}}}})
    small, large = (b'{"a": [' + b",".join([b"1"] * count) + b"]}" for count in (2, EXPLAINED_MAX_BYTES))

    assert [alternatives.judge(one) for one in (small, large)] == [
        Finding("#/properties/a/anyOf", 'anyOf [{"items":{"type":"null"}},{"items":{"type":"string"}}]', "/a"),
        UNFIT,
    ]
    exactly_one = Schema({"properties": {"a": {"oneOf": [{"type": "null"}, {"type": "string"}]}}})
    at_bound = small.ljust(EXPLAINED_MAX_BYTES)
    assert [exactly_one.judge(one) == UNFIT for one in (at_bound, at_bound + b" ")] == [False, True]
    assert [alternatives.judge(one) == UNFIT for one in (at_bound, at_bound + b" ")] == [False, True]
    assert plain.judge(large) == Finding("#/properties/a/items/type", 'type "null"', "/a/0")


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object"}, None),
        (
            {"properties": {"a": {"pattern": "(a)\\1"}}},
            "#/properties/a/pattern: expected a pattern without look-around",
        ),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "#/properties/a/pattern: expected a pattern without look-around"),
        ({"properties": {"a": {"pattern": "(.{1000}){1000}"}}}, "#/properties/a/pattern: expected a pattern"),
        (
            {"pattern": ".{800}"},
            "#/pattern: expected a pattern without look-around and back-references that is not too",
        ),
        ({"minLength": -1}, "#/minLength: -1 is less than the minimum of 0"),
        ({"$id": "::::"}, "#: Invalid URI reference '::::'"),
        ({"properties": {"a": {"type": "text"}}}, "#/properties/a/type: "),
        ({"properties": 3}, "#/properties: "),
        ({"minimum": "a"}, "#/minimum: "),
        ({"$ref": "http://127.0.0.1:1/x"}, "#/$ref: expected the place of a subschema of the same schema"),
    ],
)
def test_problem_of_a_schema_begins_with_its_place(schema: dict[str, Any], problem: str | None) -> None:
    found = find_schema_problem(schema)

    assert (found is None) == (problem is None)
    assert (found or "").startswith(problem or "")


class PanicException(BaseException):
    """A panic of the library, whose class it does not export."""


@pytest.mark.parametrize(
    ("error", "is_of_library"),
    [
        (ValueError(), True),
        (RecursionError(), True),
        (PanicException(), True),
        (TypeError(), False),
        (OSError(), False),
    ],
    ids=repr,
)
def test_panic_of_the_library_is_an_error_of_its_input(error: BaseException, *, is_of_library: bool) -> None:
    assert _is_of_library(error) == is_of_library


@pytest.mark.parametrize("path", [["properties", "a", "type"], []], ids=str)
def test_place_that_tells_nothing_is_told_as_unfit(path: list[str]) -> None:
    error: Any = SimpleNamespace(kind=None, schema_path=path)
    assert _expected_by(error, {"unknown": 1}) == UNFIT.expected


def test_findings_are_counted_by_their_place() -> None:
    schema = Schema({"properties": {"a": {"type": "string"}}, "required": ["a"]})
    documents = [b'{"a": "x"}', b'{"a": 1}', b'{"a": 2}', b"{}"]

    assert count_findings(schema, documents) == Counter({"#/properties/a/type": 2, "#/required": 1})


def resource_type(name: str, validation: Validation, schema: dict[str, Any] | None, **more: Any) -> ResourceType:
    return ResourceType(name, validation=validation, schema=schema, **more)


def test_judges_are_those_of_types_with_a_sound_schema() -> None:
    types = [
        resource_type("patient", Validation.ENFORCE, {"type": "object"}, also_named=["client"]),
        resource_type("room", Validation.WARN, {}),
        resource_type("off", Validation.OFF, {"type": "nonsense"}),
        resource_type("none", Validation.WARN, None),
        resource_type("bad", Validation.ENFORCE, {"type": "nonsense"}),
    ]

    judges, problems = judges_of(BusinessType("dental", {}, "dentist", types))

    assert {name: (one.resource_type, one.refuses) for name, one in judges.items()} == {
        "patient": ("patient", True),
        "client": ("patient", True),
        "room": ("room", False),
    }
    assert {one.business_type for one in judges.values()} == {"dental"}
    assert [judges[name].schema.judge(b"[]") for name in ("client", "room")] == [
        Finding("#/type", 'type "object"'),
        None,
    ]
    assert [problem.split(": ")[:2] for problem in problems] == [["none", "#"], ["bad", "#/type"]]
    assert problems[0] == "none: #: expected a schema for validation warn, got none"


KEYWORDS = [
    *("properties", "items", "prefixItems", "anyOf", "allOf", "oneOf", "not", "if", "then", "$ref", "$defs", "type"),
    *("$anchor", "$id", "$schema", "$dynamicRef", "patternProperties", "additionalProperties", "enum", "required"),
    *("dependentSchemas", "unevaluatedProperties", "contains", "minimum", "pattern", "multipleOf", "const", "format"),
]
made_up = st.recursive(
    st.sampled_from([True, False, 0, -1, 0.5, "#", "#/$defs/a", "a", "(", "object", None]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a", "~/"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), made_up, max_size=5), made_up)
def test_schema_of_any_form_has_a_problem_or_judges(schema: dict[str, Any], document: Any) -> None:
    if find_schema_problem(schema) is None:
        found = Schema(schema).judge(json.dumps(document).encode())
        assert found is None or found.schema_path.startswith("#")


@pytest.mark.parametrize(("count", "expected"), [(198, '"' + 198 * "x" + '"'), (199, '"' + 198 * "x" + "…")])
def test_value_of_the_schema_has_two_hundred_characters(count: int, expected: str) -> None:
    assert Schema({"const": "x" * count}).judge(b"1") == Finding("#/const", f"const {expected}")


def test_format_is_an_annotation() -> None:
    assert Schema({"properties": {"a": {"format": "email"}}}).judge(b'{"a": "no address"}') is None


def test_error_of_our_own_is_not_one_of_the_document() -> None:
    with pytest.raises(TypeError):
        Schema({}).judge([])  # type: ignore[arg-type]


def test_error_without_a_place_is_told_at_the_root() -> None:
    assert _problem_of(PanicException("no more memory")) == "#: no more memory"


ROOT = {"$ref": "#"}
A = {"$ref": "#/$defs/a"}


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}, {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}]}]}
        for number in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {}}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


def references(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"r{number}": {"$ref": f"#/$defs/r{number + 1}"} for number in range(length)}
    return {"$defs": {**definitions, f"r{length}": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/$defs/b"}, "c": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"items": {}}}},
        {"$ref": "#/properties/a%20~1b", "properties": {"a /b": {}}},
        {"$ref": "#/$defs/yes", "$defs": {"yes": True}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://simplu.example/patient"},
        {"const": {"a": {"$ref": "http://simplu.example/x"}}},  # a value
        {"properties": {"a": {"anyOf": [{} for _ in range(SIZE_MAX - 2)]}}},
        {"properties": {f"p{number}": {"pattern": "a"} for number in range(PATTERNS_MAX)}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema#", "enum": ["x" * (SCHEMA_MAX_BYTES - 71)]},
        {"enum": "no array", "dependentRequired": []},  # the library refuses them
        deep(100),
        chain(7),
        references(200),
    ],
)
def test_schema_is_accepted_when_it_has_few_subschemas(schema: dict[str, Any]) -> None:
    check_bounds(schema)


@pytest.mark.parametrize(
    ("place", "schema"),
    [
        ("#/$ref", {"$ref": "http://simplu.example/x"}),
        ("#/properties/a~1b~0/$ref", {"properties": {"a/b~": {"$ref": "file:///etc/passwd"}}}),
        ("#/items/$dynamicRef", {"items": {"$dynamicRef": "#/items"}}),
        ("#/$anchor", {"properties": {"a": {"$ref": "#here"}}, "$anchor": "here"}),
        ("#/items/$dynamicAnchor", {"items": {"$dynamicAnchor": "here"}}),
        ("#/$ref", {"$ref": "#here"}),
        ("#/$ref", {"$ref": "?/items", "items": {}}),
        ("#/$ref", {"$ref": "#/$defs/none"}),
        ("#/$ref", {"$ref": "#/const", "const": {}}),
        ("#/$ref", {"$ref": 5}),
        ("#/properties/a/$id", {"properties": {"a": {"$id": "x"}}}),
        ("#/$schema", {"$schema": "http://json-schema.org/draft-07/schema#"}),
        ("#", ROOT),
        ("#", {"properties": {"name": {"type": "string"}, "children": {"items": ROOT}}}),
        ("#/$defs/a", {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"anyOf": [A, A]}}}}),
        ("#/$defs/r201", references(201)),
        ("#/$defs/d14", chain(25)),
        ("#/properties/a", {"properties": {"a": {"anyOf": [{} for _ in range(SIZE_MAX)]}}}),
        ("#/patternProperties", {"patternProperties": {f"p{number}": {} for number in range(PATTERNS_MAX + 1)}}),
        ("#/pattern", {"patternProperties": {f"p{number}": {} for number in range(PATTERNS_MAX)}, "pattern": "a"}),
        ("#", {name: [{} for _ in range(SIZE_MAX // 2)] for name in ("anyOf", "allOf")}),
        ("#", {"enum": ["x" * SCHEMA_MAX_BYTES]}),
        ("#", deep(101)),
    ],
)
def test_schema_is_refused_with_its_place(place: str, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchemaError) as refused:
        check_bounds(schema)

    assert str(refused.value).startswith(f"{place}: expected ")


def test_refusal_says_what_came_and_what_to_do() -> None:
    with pytest.raises(InvalidSchemaError, match=r"at most 10000 subschemas .* got 10001; have fewer"):
        check_bounds({"anyOf": [{} for _ in range(SIZE_MAX)]})


def test_names_are_those_of_properties_at_every_depth() -> None:
    schema = {
        "properties": {"a": {"items": {"properties": {"b": {}}}}},
        "required": ["c"],
        "patternProperties": {"d": {}},
        "$defs": {"e": {"properties": {"f": True}}},
        "prefixItems": [{}],
    }

    assert check_bounds(schema) == {"a", "b", "f"}
