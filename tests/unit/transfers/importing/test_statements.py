"""The statements that read a source: names are quoted, values are arguments, and nothing of a mapping is SQL."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.transfers.importing.mapping import ReadTable, TableMapping
from simplu_worker.transfers.importing.statements import (
    MEMBERS_AT_ONCE,
    RowSelection,
    SourceStatement,
    begin,
    list_changed_tenants,
    list_deleted,
    list_duplicates,
    list_keys,
    list_rows_without_tenant,
    list_tenants,
    read_rows,
    sum_rows,
)

STATEMENTS = Path(__file__).with_name("statements.sql")
SINCE = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
QUOTED = re.compile(r'"(?:[^"]|"")*"')
TEXT = re.compile(r"'[^']*'")


def statements_of(table: ReadTable, columns: int = 2) -> list[SourceStatement]:
    key = ("k'",) * len(table.mapping.key)
    one = RowSelection(("it's", "$1")[:columns], SINCE, key=key, changed_since=SINCE)
    both = [(table, one), (table, RowSelection(("b", "l")[:columns], SINCE))]
    return [
        list_tenants(table),
        *([] if table.mapping.changed is None else [list_changed_tenants(table, SINCE)]),
        list_rows_without_tenant(table),
        read_rows(table, one, document_max_bytes=100),
        sum_rows(both),
        list_keys(table, one),
        list_deleted(table, one),
        list_duplicates(both),
    ]


@pytest.mark.slow
@given(names=st.lists(NAMES, min_size=7, max_size=7, unique=True), kind=st.sampled_from(["boolean", "timestamp"]))
def test_names_and_values_of_a_mapping_are_never_sql(names: list[str], kind: str) -> None:
    found = [_bones(statement) for statement in statements_of(_table(names, kind))]
    assert found == [_bones(statement) for statement in statements_of(_table(list("abcdefg"), kind))]
    for statement in statements_of(_table(names, kind)):
        assert "it's" not in statement.sql
        numbers = {int(number) for number in re.findall(r"\$(\d+)", QUOTED.sub("", statement.sql))}
        assert numbers == set(range(1, len(statement.arguments) + 1))


def test_transaction_has_no_timeout_on_servers_that_know_the_setting() -> None:
    setting = "SET LOCAL transaction_timeout = 0;"
    assert [version for version in (11, 16, 17, 18) if setting in begin(version)] == [17, 18]


def test_statements_are_those_of_the_file() -> None:
    mapping = TableMapping(
        table="orders",
        schema="pos",
        key=["order", "line"],
        tenant=["business", "place"],
        resource_type_column="kind",
        business_type_column="branch",
        created="made",
        changed="at",
        deleted="gone",
    )
    types = dict.fromkeys(("order", "line", "business", "place", "kind", "branch", "made", "at", "gone", "x"), "text")
    plain = TableMapping(table="t", key=["id"], tenant=["b"], resource_type="r", data_column="doc")
    tables = [
        ReadTable(mapping, {"X": "x"}, types),
        ReadTable(plain, {}, {"id": "integer", "b": "text", "doc": "json"}),
        ReadTable(
            msgspec.structs.replace(plain, changed="at"),
            {},
            {"id": "integer", "b": "text", "doc": "jsonb", "at": "text"},
        ),
    ]

    found = [_readable(statement) for table in tables for statement in statements_of(table, len(table.mapping.tenant))]
    assert found == STATEMENTS.read_text(encoding="utf-8").rstrip("\n").split("\n\n")


def test_many_members_are_put_together_of_several_objects() -> None:
    members = {f"m{number:03}": "x" for number in range(2 * MEMBERS_AT_ONCE + 1)}
    mapping = TableMapping(table="t", key=["id"], tenant=["b"], resource_type="r")
    table = ReadTable(mapping, members, {"id": "integer", "b": "text", "x": "text"})

    statement = read_rows(table, RowSelection(("b",), SINCE), document_max_bytes=1)
    assert statement.sql.count("jsonb_build_object") == 3
    assert set(members) <= set(statement.arguments)


@pytest.mark.parametrize(
    ("deleted", "kind", "expected"),
    [
        (None, "text", "true"),
        ("gone", "boolean", 'source."gone" IS NOT TRUE'),
        ("gone", "timestamp with time zone", 'source."gone" IS NULL'),
    ],
)
def test_tombstone_is_a_time_or_true(deleted: str | None, kind: str, expected: str) -> None:
    mapping = TableMapping(table="t", key=["id"], tenant=["b"], resource_type="r", deleted=deleted)
    table = ReadTable(mapping, {}, {"id": "integer", "b": "text", "gone": kind})
    assert list_keys(table, RowSelection(("b",), SINCE)).sql.endswith(f" AND {expected}")


ARGUMENT = "$1::pg_catalog.text::pg_catalog.timestamptz"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("timestamp without time zone", f'source."at" >= {ARGUMENT}::pg_catalog.timestamp'),
        ("timestamp(3) without time zone", f'source."at" >= {ARGUMENT}::pg_catalog.timestamp'),
        ("timestamp with time zone", f'source."at"::pg_catalog.timestamptz >= {ARGUMENT}'),
        ("text", f'source."at"::pg_catalog.timestamptz >= {ARGUMENT}'),
    ],
)
def test_times_of_changes_are_compared_by_their_own_type(kind: str, expected: str) -> None:
    mapping = TableMapping(table="t", key=["id"], tenant=["b"], resource_type="r", changed="at")
    table = ReadTable(mapping, {}, {"id": "integer", "b": "text", "at": kind})
    assert list_changed_tenants(table, SINCE).sql.endswith(f" WHERE {expected}")


def _table(names: list[str], kind: str) -> ReadTable:
    table, key, business, location, member, deleted, changed = names
    mapping = TableMapping(
        table=table,
        key=[key],
        tenant=[business, location],
        resource_type="r",
        deleted=deleted,
        changed=changed,
    )
    types = dict.fromkeys((key, business, location, member, changed), "text")
    return ReadTable(mapping, {member: member}, types | {deleted: kind})


def _readable(statement: SourceStatement) -> str:
    return "\n".join([statement.sql, *(f"-- {argument}" for argument in statement.arguments)])


def _bones(statement: SourceStatement) -> str:
    return TEXT.sub("''", QUOTED.sub('""', statement.sql))
