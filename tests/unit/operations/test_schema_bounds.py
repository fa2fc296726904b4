"""What a schema may be: it refers to itself alone, and comparing a document with it takes bounded time."""

from __future__ import annotations

from typing import Any

import pytest

from simplu_worker.operations.schema_judge import (
    PATTERNS_MAX,
    SCHEMA_MAX_BYTES,
    SIZE_MAX,
    InvalidSchemaError,
    check_bounds,
)

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
