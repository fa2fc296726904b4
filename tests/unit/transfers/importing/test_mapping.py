"""The mapping of a source: the form of the file, and its check against the tables."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.restaurants import mapping_text

from simplu_worker.errors import ConfigurationError
from simplu_worker.transfers.importing.mapping import (
    FILE_MAX_BYTES,
    OWN_SHAPE,
    MappingRefusedError,
    ReadTable,
    SourceColumn,
    SourceMapping,
    TableMapping,
    names_of,
    parse_mapping,
    read_table_of,
)

TABLE: dict[str, Any] = {"table": "t", "key": ["id"], "tenant": ["b", "l"], "resource_type": "things"}
COLUMNS = [SourceColumn(name, "text") for name in ("id", "b", "l", "x", "y")]


def parse(*tables: dict[str, Any], tenants: dict[str, Any] | None = None) -> SourceMapping:
    text = json.dumps({"tables": list(tables), "tenants": tenants or {}})
    return parse_mapping(text.encode(), is_json=True)


def test_mapping_of_the_page_is_read_from_toml() -> None:
    mapping = parse_mapping(mapping_text().encode(), is_json=False)

    assert [table.name for table in mapping.tables] == [
        "public.restaurants",
        "public.products",
        "public.categories",
        "public.orders",
        "public.order_items",
        "public.themes",
        "public.users",
        "public.analytics_events",
    ]
    assert mapping.tables[4].key == ["order_id", "line"]


@pytest.mark.parametrize(
    ("table", "tenants", "problem"),
    [
        ({"resource_type": None}, {}, "table 1, t: expected either resource_type or resource_type_column"),
        ({"resource_type_column": "x"}, {}, "expected either resource_type or resource_type_column"),
        ({"resource_type": "x" * 129}, {}, "resource_type: expected 1 to 128 characters, got 129"),
        ({"tenant": ["b"]}, {}, "tenant: expected the columns of business and location, or one column and"),
        ({"tenant": ["b"]}, {"location": ""}, "tenants.location: expected 1 to 128 characters, got 0"),
        ({}, {"joined": True}, "tenant: expected one column, as tenants.joined is set, got two"),
        ({"data": {"a": "x"}, "data_column": "y"}, {}, "expected data_column alone, or data and leave_out"),
        ({"leave_out": ["x"], "data_column": "y"}, {}, "expected data_column alone, or data and leave_out"),
        ({"data": {"a\0": "x"}}, {}, "data: expected names of members without U+0000"),
        ({"table": "ü" * 32}, {}, "expected names of at most 63 bytes of UTF-8"),
        ({"created": "x\0"}, {}, "expected names of at most 63 bytes of UTF-8"),
        ({"key": []}, {}, "Expected `array` of length >= 1"),
        ({"tenant": ["a", "b", "c"]}, {}, "Expected `array` of length <= 2"),
        ({"sql": "SELECT"}, {}, "unknown field `sql`"),
    ],
)
def test_mapping_is_refused_with_its_problem(table: dict[str, Any], tenants: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(TABLE | table, tenants=tenants)

    assert problem in str(caught.value)


@pytest.mark.parametrize(("text", "is_json"), [(b"{", True), (b"\xff", True), (b"[", False), (b"\xff", False)])
def test_text_that_is_no_mapping_is_refused(text: bytes, is_json: bool) -> None:  # noqa: FBT001
    with pytest.raises(ConfigurationError, match=r"docs/importing\.md has the form"):
        parse_mapping(text, is_json=is_json)


def test_tables_with_one_and_with_two_tenant_columns_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected one column in every table, or two in every table, got both"):
        parse(TABLE, TABLE | {"table": "orders", "tenant": ["b"]}, tenants={"location": "main"})


def test_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected at most 1048576 bytes, got 1048577"):
        parse_mapping(b" " * (FILE_MAX_BYTES + 1), is_json=True)


@pytest.mark.parametrize("key", ["a", '"a b"', "'a'", "a-b ", "data.x\t"])
def test_key_of_too_many_parts_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="expected keys of at most 20 parts, got one with more dots"):
        parse_mapping(f"{key}.".encode() * 100_000 + b"x = 1", is_json=False)


def test_members_are_all_other_columns_and_the_times() -> None:
    plain = parse(TABLE | {"leave_out": ["y"], "changed": "x"}).tables[0]
    chosen = parse(TABLE | {"data": {"Name": "x", "Again": "x"}}).tables[0]

    types = {column.name: column.type_name for column in COLUMNS}
    own = OWN_SHAPE.tables[0]
    assert read_table_of(plain, COLUMNS) == ReadTable(plain, {"x": "x"}, types)
    assert read_table_of(chosen, COLUMNS) == ReadTable(chosen, {"Again": "x", "Name": "x"}, types)
    more = [*_columns_of(own), SourceColumn("more", "int")]
    assert read_table_of(own, more) == ReadTable(own, {}, dict.fromkeys(own.named_columns, "text") | {"more": "int"})
    with pytest.raises(MappingRefusedError, match="expected the columns x, got"):
        read_table_of(chosen, [column for column in COLUMNS if column.name != "x"])


def test_columns_are_those_of_the_catalog() -> None:
    assert names_of([{"name": "a", "type_name": "public.citext"}]) == [SourceColumn("a", "public.citext")]


def test_bounds_of_a_mapping_may_be_reached() -> None:
    long = "x" * 63
    text = json.dumps({"tables": [TABLE | {"table": long}]}).encode()
    whole = parse_mapping(text + b" " * (FILE_MAX_BYTES - len(text)), is_json=True)
    own = parse(TABLE | {"data_column": "x"}, TABLE | {"business_type_column": "kind"})
    joined = parse(TABLE | {"tenant": ["b"]}, tenants={"joined": True})

    assert whole.tables[0].table == long
    assert (own.has_own_types, whole.has_own_types, joined.tenants.joined) == (True, False, True)


def test_refusal_has_a_line_for_each_problem() -> None:
    assert str(MappingRefusedError("one", "two")) == "one\ntwo"


def test_table_without_the_named_columns_is_refused() -> None:
    table = parse(TABLE | {"changed": "at"}).tables[0]

    with pytest.raises(MappingRefusedError, match=r"public\.t: expected the columns at, got b, id, l, x, y"):
        read_table_of(table, COLUMNS)
    with pytest.raises(MappingRefusedError, match=r"public\.t: expected a table or view of this name"):
        read_table_of(table, [])


@given(location=st.text(min_size=1, max_size=20), member=st.text(min_size=1, max_size=20))
def test_digest_differs_with_the_mapping_and_not_with_its_form(location: str, member: str) -> None:
    table = TableMapping(table="t", key=["id"], tenant=["b"], data={member: "x"})
    other = msgspec.structs.replace(table, data={f"{member}2": "x"})

    assert (
        SourceMapping([table]).digest
        == msgspec.json.decode(msgspec.json.encode(SourceMapping([table])), type=SourceMapping).digest
    )
    assert SourceMapping([table]).digest != SourceMapping([other]).digest
    assert location


def _columns_of(table: TableMapping) -> list[SourceColumn]:
    return [SourceColumn(name, "text") for name in table.named_columns]
