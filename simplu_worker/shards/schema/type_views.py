"""The SQL of a business type's views, made from its struct alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from simplu_worker.operations.business_types import BusinessType, ResourceType, ViewColumn
from simplu_worker.shards.postgres.queries import quote_name
from simplu_worker.vocabulary import ColumnType

Columns: TypeAlias = Sequence[tuple[str, str]]  # name and type

NOTHING_THERE: Final[Mapping[str, Columns]] = {}
SECURITY_INVOKER_SINCE: Final = 15  # who reads a view sees of it what the policies of `resources` let that role see

_FUNCTIONS: Final = {
    ColumnType.NUMBER: "simplu_numeric",
    ColumnType.INTEGER: "simplu_integer",
    ColumnType.BOOLEAN: "simplu_boolean",
    ColumnType.TIMESTAMP: "simplu_timestamptz",
}
TIMESTAMP: Final = "timestamp with time zone"
STORED_COLUMNS: Final = ("id", "resourceId", "data", "date", "lastUpdated")
BASE_TYPES: Final = ("text", "text", "jsonb", TIMESTAMP, TIMESTAMP)  # of `ResourceType.base_columns`
SQL_TYPES: Final = {
    ColumnType.TEXT: "text",
    ColumnType.NUMBER: "numeric",
    ColumnType.INTEGER: "bigint",
    ColumnType.BOOLEAN: "boolean",
    ColumnType.TIMESTAMP: TIMESTAMP,
}
_NAMES: Final = {"text": "pg_catalog.text", "jsonb": "pg_catalog.jsonb"}  # of types that are no words of SQL


def view_statements(
    business_type: BusinessType, *, server_version: int, there: Mapping[str, Columns] = NOTHING_THERE
) -> list[str]:
    """Return the statements that make the views of a type that `read_type` accepted, or replace them.

    *there* are the columns of views that exist: the last ones, which the type has no more, become null.
    """
    return [
        _view_statement(business_type.name, one.view, one, there.get(one.view, ()), server_version=server_version)
        for one in business_type.resource_types
        if one.view is not None
    ]


def drop_statement_of(view: str) -> str:
    """Return the statement that drops a view; it fails while another object needs the view."""
    return f"DROP VIEW IF EXISTS public.{quote_name(view)}"


def _view_statement(type_name: str, view: str, resource: ResourceType, there: Columns, *, server_version: int) -> str:
    options = " WITH (security_invoker = true)" if server_version >= SECURITY_INVOKER_SINCE else ""
    columns = "".join(f",\n    {_expression(one)} AS {quote_name(one.name)}" for one in resource.columns)
    kept = there[len(resource.base_columns) + len(resource.columns) :]
    columns += "".join(f",\n    NULL::{_NAMES.get(of, of)} AS {quote_name(name)}" for name, of in kept)
    base = ", ".join(
        quote_name(stored) if stored == name else f"{quote_name(stored)} AS {quote_name(name)}"
        for stored, name in zip(STORED_COLUMNS, resource.base_columns, strict=True)
    )
    return (
        f"CREATE OR REPLACE VIEW public.{quote_name(view)}{options} AS\n"
        f"SELECT\n    {base}{columns}\n"
        "FROM public.resources\n"
        f'WHERE "businessType" = {literal(type_name)} AND "resourceName" = {literal(resource.name)}'
    )


def _expression(column: ViewColumn) -> str:
    values = [_value(path, column.type) for path in (column.path, *column.also_at)]
    return values[0] if len(values) == 1 else f"coalesce({', '.join(values)})"


def _value(path: Sequence[str], column_type: ColumnType) -> str:
    members = [f"{literal(member)}::pg_catalog.text" for member in path]
    if column_type is ColumnType.TEXT:
        return " ->> ".join([" -> ".join(["data", *members[:-1]]), members[-1]])
    return f"public.{_FUNCTIONS[column_type]}({' -> '.join(['data', *members])})"


def literal(text: str) -> str:
    """Return *text* as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
