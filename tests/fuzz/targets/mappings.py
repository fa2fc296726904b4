"""Mapping files of imports: a mapping with statements that have each name quoted, or problems for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import begin, check_faults
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.postgres.queries import quote_name
from simplu_worker.transfers.importing.mapping import (
    MappingRefusedError,
    ReadTable,
    SourceColumn,
    TableMapping,
    parse_mapping,
    read_table_of,
)
from simplu_worker.transfers.importing.statements import (
    RowSelection,
    SourceStatement,
    list_changed_tenants,
    list_deleted,
    list_duplicates,
    list_keys,
    list_rows_without_tenant,
    list_tenants,
    read_rows,
    sum_rows,
)

TABLES_CHECKED: Final = 3
NOW: Final = datetime(2026, 1, 31, tzinfo=UTC)
QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
LITERAL: Final = re.compile(r"'[^'\\]*'")
OWN_WORDS: Final = re.compile(r"(?:[\w ().,:$=<>|*+\[\]]|(?<!-)-(?!-))*", re.ASCII)


def check(data: bytes) -> None:
    begin(data)
    try:
        mapping = parse_mapping(data, is_json=data.lstrip()[:1] == b"{")
    except ConfigurationError:
        check_faults()
        return
    assert re.fullmatch("[0-9a-f]{64}", mapping.digest)
    for table in mapping.tables[:TABLES_CHECKED]:
        check_table(table)
    check_faults()


def check_table(table: TableMapping) -> None:
    names = sorted({*table.named_columns, "another"})
    columns = [SourceColumn(name, "pg_catalog.text") for name in names]
    read = read_table_of(table, columns)
    for statement in statements_of(read):
        check_statement(statement, {*names, table.schema, table.table})
    missing = [column for column in columns if column.name != table.key[0]]
    for fewer in ([], missing):
        try:
            read_table_of(table, fewer)
        except MappingRefusedError:
            continue
        raise AssertionError(f"expected a refusal of {len(fewer)} columns, got none")


def statements_of(read: ReadTable) -> Iterator[SourceStatement]:
    table = read.mapping
    rows = RowSelection(("a",) * len(table.tenant), NOW)
    one = RowSelection(("a",) * len(table.tenant), NOW, ("k",) * len(table.key), NOW)
    yield from (list_tenants(read), list_rows_without_tenant(read), list_deleted(read, rows))
    yield from (list_keys(read, one), read_rows(read, one, document_max_bytes=1))
    yield from (sum_rows([(read, rows), (read, one)]), list_duplicates([(read, rows)]))
    if table.changed is not None:
        yield list_changed_tenants(read, NOW)


def check_statement(statement: SourceStatement, names: set[str]) -> None:
    """Check that a statement has names in quotes alone, its own words outside of them, and what Postgres takes."""
    assert {*QUOTED.findall(statement.sql)} <= {quote_name(name) for name in names}
    rest = LITERAL.sub("", QUOTED.sub("", statement.sql))
    assert OWN_WORDS.fullmatch(rest), rest
    for text in (statement.sql, *filter(None, statement.arguments)):
        assert b"\0" not in text.encode()
    numbers = {int(number) for number in re.findall(r"\$(\d+)", rest)}
    assert numbers == set(range(1, len(statement.arguments) + 1))


TABLE: Final[dict[str, object]] = {
    "table": "order_items",
    "schema": "public",
    "key": ["order_id", "line"],
    "tenant": ["restaurant_id"],
    "resource_type": "order_item",
    "resource_type_column": "kind",
    "business_type_column": "branch",
    "data": {"quantity": "qty", 'a"b': 'c"; DROP TABLE x --'},
    "data_column": "document",
    "leave_out": ["secret"],
    "created": "created_at",
    "changed": "updated_at",
    "deleted": "deleted_at",
}
CHOSEN: Final = ("table", "key", "tenant", "resource_type", "data", "created", "changed", "deleted")
WHOLE: Final = {name: TABLE[name] for name in CHOSEN}
OF_ALL_TYPES: Final = {name: TABLE[name] for name in ("table", "key", "tenant", "resource_type_column", "data_column")}
TENANTS: Final[dict[str, object]] = {"business_type": "hotel", "location": "main", "joined": False}
TOML: Final = b"""
[tenants]
business_type = "hotel"
location = 'main'

[[tables]]
table = "orders" # of all restaurants
key = ["id"]
tenant = ["restaurant_id"]
resource_type = "order"
leave_out = ["secret"]
changed = "updated_at"
data.total = "total"
data."a b" = "c\\u0022d"

[[tables]]
table = '''users'''
key = ["id", "x"]
tenant = ["a", "b"]
resource_type_column = "kind"
data_column = "document"
"""
SEEDS: Final = (
    TOML,
    json.dumps({"tables": [WHOLE, OF_ALL_TYPES], "tenants": TENANTS}).encode(),
    json.dumps({"tables": [OF_ALL_TYPES], "tenants": {"joined": True}}).encode(),
)
WORDS: Final = (
    *(json.dumps(name).encode() for name in (*TABLE, *TENANTS, "tables", "tenants")),
    *(f"\n{name} = ".encode() for name in (*TABLE, *TENANTS)),
    *(b"\n[[tables]]\n", b"\n[tenants]\n", b"data.", b'"""', b"'''", b"\\U0001F600", b"2026-01-31T09:00:00Z", b"0x1"),
    *(b'""', b"--", b"/*", b";", b"$1", b"'"),
)
TABLES: Final = st.lists(
    (messages(TABLE) | messages(WHOLE) | messages(OF_ALL_TYPES)).map(
        lambda text: text.decode("utf-8", "surrogatepass")
    ),
    max_size=3,
)
MAPPINGS: Final = st.tuples(TABLES, messages(TENANTS)).map(
    lambda drawn: f'{{"tables":[{",".join(drawn[0])}],"tenants":'.encode("utf-8", "surrogatepass") + drawn[1] + b"}"
)
COLUMNS: Final = st.text(min_size=1, max_size=8) | st.sampled_from(['a"b', '";--', "'", "$1", "x" * 63, "漢" * 21])
FITTING: Final = st.fixed_dictionaries(
    {
        "table": COLUMNS,
        "key": st.lists(COLUMNS, min_size=1, max_size=3),
        "tenant": st.lists(COLUMNS, min_size=1, max_size=2),
        "resource_type": st.sampled_from(["order", "a'b", '"; --']),
    },
    optional={
        "schema": COLUMNS,
        "business_type_column": COLUMNS,
        "data": st.dictionaries(st.text(max_size=8), COLUMNS, max_size=60),
        "leave_out": st.lists(COLUMNS, max_size=2),
        "created": COLUMNS,
        "changed": COLUMNS,
        "deleted": COLUMNS,
    },
)
FILES: Final = st.lists(FITTING, min_size=1, max_size=3).map(
    lambda tables: json.dumps({"tables": tables, "tenants": {"location": "main"}}).encode()
)
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=MAPPINGS | FILES | spliced(st.sampled_from(SEEDS), WORDS),
    bytes_per_byte=2_000,
)
