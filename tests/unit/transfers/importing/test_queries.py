"""The queries of a source: the form of the file, their columns, and the statements around them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
import pytest
from support.requires import ROOT
from support.restaurants import queries_text

from simplu_worker.errors import ConfigurationError
from simplu_worker.operations.json_record import DOCUMENT_MAX_BYTES
from simplu_worker.transfers.importing.queries import (
    FILE_MAX_BYTES,
    QueriesRefusedError,
    RowSelection,
    SourceQuery,
    begin,
    digest_of,
    list_changed_tenants,
    list_duplicates,
    list_rows_without_tenant,
    list_tenants,
    parse_queries,
    problem_of_columns,
    problems_of_tenants,
    read_rows,
    sum_rows,
)

PAGE = ROOT / "docs" / "importing.md"
TYPES = {
    "business_id": "int4",
    "location_id": "text",
    "resource_id": "uuid",
    "data": "jsonb",
    "date": "timestamptz",
    "updated": "timestamp",
}
QUERY = SourceQuery("order", "SELECT 1 -- all", TYPES)
SINCE = datetime(2026, 1, 2, tzinfo=UTC)
ONE = RowSelection(QUERY, "orders", ("it's", "main"), "bar", SINCE)


def test_queries_of_the_page_are_those_of_the_example() -> None:
    (shown,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [query for query in shown.strip().split("\n\n") if query not in queries_text()] == []


def test_queries_of_the_example_have_names_and_no_semicolons() -> None:
    queries = parse_queries(queries_text().encode())

    names = ["restaurant", "product", "category", "order", "order_item", "theme", "user", "analytics_event"]
    assert [query.resource_type for query in queries] == names
    assert all(query.sql.startswith("SELECT ") and not query.sql.endswith(";") for query in queries)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-- name: a b\nSELECT 1", [SourceQuery("a b", "SELECT 1")]),
        ("-- all\n\n-- name:a\r\nSELECT 1;\r\n\n-- the next\n-- name: b\nSELECT '\n--x\n'\n -- x\n", [
            SourceQuery("a", "SELECT 1"), SourceQuery("b", "SELECT '\n--x\n'")
        ]),
        ("-- name: " + "x" * 128 + "\nS" + " " * (FILE_MAX_BYTES - 139), [SourceQuery("x" * 128, "S")]),
    ],
)  # fmt: skip
def test_file_has_a_query_below_each_name(text: str, expected: list[SourceQuery]) -> None:
    assert parse_queries(text.encode()) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b" " * (FILE_MAX_BYTES + 1), "queries: expected a file of at most 1048576 bytes, got 1048577"),
        (b"\xff", "queries: the file is not in UTF-8; save it as UTF-8"),
        (b"", "queries: each query needs a line `-- name: RESOURCE_TYPE` above it; docs/importing.md has an example"),
        (b"SELECT 1\n-- name: a\nSELECT 1", "queries: each query needs a line `-- name: RESOURCE_TYPE` above it;"),
        (b"-- name: a\nx\n-- name: a\ny", "queries: a: the file has several queries of this name;"),
        (b"-- name: \nSELECT 1", "queries: -- name: expected 1 to 128 characters, got 0;"),
        (b"-- name: a\n-- x\n", "queries: a: there is no query below this name;"),
        (b"-- name: a\nSELECT '\0'", "queries: a: there is no query below this name;"),
    ],
)
def test_file_is_refused_with_its_problem(text: bytes, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_queries(text)

    assert str(caught.value).startswith(problem)


def test_digest_differs_with_a_name_or_a_query() -> None:
    others = [SourceQuery("order", "SELECT 2"), SourceQuery("orders", QUERY.sql)]

    assert len({digest_of([one]) for one in (QUERY, *others)}) == 3
    assert digest_of([msgspec.structs.replace(QUERY, types={})]) == digest_of([QUERY])


@pytest.mark.parametrize(
    ("types", "argument_count", "problem"),
    [
        (TYPES, 0, None),
        (TYPES | {"business_id": "varchar", "resource_id": "int8", "updated": "timestamptz"}, 0, None),
        (TYPES | {"business_id": "int2", "location_id": "uuid", "resource_id": "text", "date": "timestamp"}, 0, None),
        (TYPES, 1, "order: the query has a $1; write the value into the query"),
        ({"a": "text"}, 0, f"order: expected the columns {', '.join(TYPES)}, got a; name each by AS"),
        (TYPES | {"date": "date"}, 0, "order: expected date of the type timestamptz or timestamp, got date; cast it"),
    ],
)
def test_columns_of_a_query_are_those_of_resources(
    types: dict[str, str], argument_count: int, problem: str | None
) -> None:
    assert problem_of_columns(msgspec.structs.replace(QUERY, types=types), argument_count) == problem


def test_tenants_have_one_type_in_all_queries() -> None:
    others = [msgspec.structs.replace(QUERY, types=TYPES | {name: "uuid"}) for name in ("location_id", "resource_id")]

    assert problems_of_tenants([QUERY, QUERY, others[1]]) == []
    assert problems_of_tenants([QUERY, *others]) == [
        "location_id: expected one type in all queries, got text, uuid; cast it"
    ]
    assert str(QueriesRefusedError("one", "two")) == "one\ntwo"


@pytest.mark.parametrize("column", TYPES)
def test_column_of_no_type_of_resources_is_refused(column: str) -> None:
    problem = problem_of_columns(msgspec.structs.replace(QUERY, types=TYPES | {column: "xml"}), 0) or ""
    assert problem.startswith(f"order: expected {column} of the type ")


def test_transaction_has_no_timeout_on_servers_that_know_the_setting() -> None:
    setting = "SET LOCAL transaction_timeout = 0;"
    assert [version for version in (11, 16, 17, 18) if setting in begin(version)] == [17, 18]
    assert begin(18).startswith("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;")


TENANT = "source.business_id::pg_catalog.text AS business_id, source.location_id::pg_catalog.text AS location_id"
FROM = "FROM (SELECT 1 -- all\n) AS source"
WHERE = (
    "WHERE source.business_id = ${0}::pg_catalog.text::pg_catalog.int4"
    " AND source.location_id = ${1}::pg_catalog.text::pg_catalog.text"
)
IDS = "${0}::pg_catalog.text AS resource_type, source.resource_id::pg_catalog.text AS resource_id"
ROWS = (
    "SELECT ${0}::pg_catalog.text AS business_type, ${1}::pg_catalog.text AS resource_type, "
    "source.resource_id::pg_catalog.text AS resource_id, source.data::pg_catalog.text AS document, "
    "source.date::pg_catalog.timestamptz::pg_catalog.text AS created, "
    f"source.updated::pg_catalog.timestamptz::pg_catalog.text AS changed {FROM} "
)
HASH = (
    "pg_catalog.hashtextextended(pg_catalog.concat_ws(pg_catalog.chr(1), taken.business_type, taken.resource_type, "
    'taken.resource_id, taken.document, taken.created, taken.changed) COLLATE pg_catalog."C", 0)'
)
THERE = "FILTER (WHERE taken.document IS NOT NULL)"
CHANGED = "source.updated >= ${0}::pg_catalog.text::pg_catalog.timestamptz::pg_catalog.timestamp"


def test_statements_select_by_the_types_of_columns() -> None:
    changed = list_changed_tenants(QUERY, SINCE)

    assert list_tenants(QUERY).sql == f"SELECT {TENANT}, pg_catalog.count(*) AS row_count {FROM} GROUP BY 1, 2"
    assert list_rows_without_tenant(QUERY).sql == (
        f"SELECT source.resource_id::pg_catalog.text AS resource_id {FROM} WHERE source.business_id IS NULL OR"
        " source.location_id IS NULL"
    )
    assert (changed.sql, changed.arguments) == (
        f"SELECT DISTINCT {TENANT} {FROM} WHERE {CHANGED.format(1)}",
        ["2026-01-02T00:00:00+00:00"],
    )


def test_statements_about_rows_have_values_as_arguments() -> None:
    all_rows = msgspec.structs.replace(ONE, changed_since=None)
    one, several, twice = read_rows(ONE), sum_rows([ONE, all_rows]), list_duplicates([ONE, ONE])
    values = ["orders", "it's", "main", "2026-01-02T00:00:00+00:00"]

    where = f"{WHERE.format(3, 4)} AND {CHANGED.format(5)}"
    assert one.sql == (
        "SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, "
        "pg_catalog.octet_length(taken.document) AS byte_count, "
        f"CASE WHEN pg_catalog.octet_length(taken.document) <= {DOCUMENT_MAX_BYTES} THEN taken.document END "
        "AS document, "
        f"{HASH} AS hash FROM ({ROWS.format(1, 2)}{where} OFFSET 0) AS taken"
    )
    assert several.sql == (
        "SELECT taken.resource_type, pg_catalog.count(taken.document) AS row_count, "
        "pg_catalog.count(*) - pg_catalog.count(taken.document) AS deleted_count, "
        f"coalesce(pg_catalog.sum({HASH}) {THERE}, 0)::pg_catalog.text AS checksum, "
        "coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count FROM ("
        f"({ROWS.format(1, 2)}{where} OFFSET 0) UNION ALL ({ROWS.format(6, 7)}{WHERE.format(8, 9)} OFFSET 0)"
        f") AS taken GROUP BY 1"
    )
    once = f"{WHERE.format(2, 3)} AND {CHANGED.format(4)}"
    again = f"{WHERE.format(6, 7)} AND {CHANGED.format(8)}"
    assert twice.sql == (
        f"SELECT resource_type, resource_id FROM ((SELECT {IDS.format(1)} {FROM} {once}) UNION ALL "
        f"(SELECT {IDS.format(5)} {FROM} {again})) AS taken WHERE resource_id IS NOT NULL GROUP BY 1, 2"
        " HAVING pg_catalog.count(*) > 1 LIMIT 100001"
    )
    hashed = ["bar", *values]
    assert [one.arguments, several.arguments, twice.arguments] == [hashed, hashed + hashed[:4], values * 2]
