"""The statements that read a source, as texts with their arguments. Pure.

They are about tables that a mapping names. Each name is quoted, each value is an argument, and nothing is looked up in
the search path, which is that of the catalog. The source computes the checksum of each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.shards.postgres.queries import quote_name
from simplu_worker.shards.postgres.statement_timeouts import FORMATS, TRANSACTION_TIMEOUT_SINCE, Isolation, set_all
from simplu_worker.transfers.importing.mapping import ReadTable

MEMBERS_AT_ONCE: Final = 40  # a function takes 100 arguments at most
DOCUMENT_READ_MAX_BYTES: Final = 32 * 1024  # of a document that is read together with others
DUPLICATES_MAX: Final = 100_000  # ids with several rows that an import remembers for one tenant

# The columns of a table with their types, in order. The search path is the catalog's, so every other type is qualified.
DESCRIBE_TABLE: Final = """
SELECT attname::pg_catalog.text AS name, pg_catalog.format_type(atttypid, atttypmod) AS type_name
FROM pg_catalog.pg_attribute
JOIN pg_catalog.pg_class ON pg_class.oid = pg_attribute.attrelid
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE
    pg_namespace.nspname = $1::pg_catalog.text AND pg_class.relname = $2::pg_catalog.text
    AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""
DESCRIBE_SOURCE: Final = """
SELECT
    pg_catalog.current_database()::pg_catalog.text AS database,
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version,
    pg_catalog.current_setting('server_encoding') AS encoding,
    pg_catalog.now()::pg_catalog.text AS taken_at
"""
MAY_IDENTIFY: Final = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
IDENTIFY: Final = "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
SETTINGS: Final = FORMATS | {
    "search_path": "pg_catalog",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
EXPORT_SNAPSHOT: Final = "SELECT pg_catalog.pg_export_snapshot()"


def begin(server_version: int) -> str:
    """Return the statements that open a transaction on PostgreSQL of this version; none of them takes a snapshot."""
    newer = {"transaction_timeout": "0"} if server_version >= TRANSACTION_TIMEOUT_SINCE else {}
    return f"BEGIN ISOLATION LEVEL {Isolation.ONE_MOMENT};\n{set_all('SET LOCAL', SETTINGS | newer)}"


class SourceStatement(msgspec.Struct, frozen=True):
    """An SQL text, and the texts of its arguments."""

    sql: str
    arguments: tuple[str | None, ...] = ()


class _Arguments:
    def __init__(self) -> None:
        self.values: list[str | None] = []

    def add(self, value: str | None) -> str:
        self.values.append(value)
        return f"${len(self.values)}::pg_catalog.text"

    def statement(self, sql: str) -> SourceStatement:
        return SourceStatement(sql, tuple(self.values))


class RowSelection(msgspec.Struct, frozen=True):
    """The rows to read: of the tenant with these texts in its columns, and if given, of one key.

    *made_at* is the time of resources without one. *changed_since* leaves out rows changed before.
    """

    tenant: tuple[str, ...]
    made_at: datetime
    key: tuple[str, ...] | None = None
    changed_since: datetime | None = None
    stored_names: Mapping[str, str] = {}


def list_tenants(table: ReadTable) -> SourceStatement:
    """Count the rows of each tenant, and list the business types in them."""
    mapping = table.mapping
    names = [f"{_column(name)}::pg_catalog.text AS tenant_{number}" for number, name in enumerate(mapping.tenant)]
    places = ", ".join(str(number + 1) for number in range(len(names)))
    kinds = "NULL::pg_catalog.text[]"
    if mapping.business_type_column is not None:
        kinds = f"pg_catalog.array_agg(DISTINCT {_column(mapping.business_type_column)}::pg_catalog.text)"
    is_left = "pg_catalog.count(*)" if mapping.deleted is None else f"pg_catalog.count(*) FILTER (WHERE {_left(table)})"
    return SourceStatement(
        f"SELECT {', '.join(names)}, pg_catalog.count(*) AS row_count, {is_left} AS left_count, "  # noqa: S608  # names are quoted
        f"{kinds} AS business_types FROM {_table(table)} AS source GROUP BY {places} ORDER BY {places}"
    )


def list_rows_without_tenant(table: ReadTable) -> SourceStatement:
    """List the ids of rows that name no tenant."""
    missing = " OR ".join(f"{_column(name)} IS NULL" for name in table.mapping.tenant)
    arguments = _Arguments()
    return arguments.statement(
        f"SELECT {_ids(table, arguments, {})} FROM {_table(table)} AS source WHERE ({missing}) AND {_left(table)}"  # noqa: S608  # names are quoted
    )


def list_changed_tenants(table: ReadTable, since: datetime) -> SourceStatement:
    """List the tenants with rows changed *since*, of a table with a change column."""
    arguments = _Arguments()
    names = [f"{_column(name)}::pg_catalog.text AS tenant_{number}" for number, name in enumerate(table.mapping.tenant)]
    return arguments.statement(
        f"SELECT DISTINCT {', '.join(names)} FROM {_table(table)} AS source "  # noqa: S608  # names are quoted
        f"WHERE {_changed_since(table, since, arguments)}"
    )


def read_rows(table: ReadTable, selection: RowSelection, *, document_max_bytes: int) -> SourceStatement:
    """Read rows with their checksums; of a longer document its length alone."""
    arguments = _Arguments()
    rows = _rows(table, selection, arguments)
    limit = arguments.add(str(document_max_bytes))
    return arguments.statement(
        "SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, "  # noqa: S608  # names are quoted
        "pg_catalog.octet_length(taken.document) AS byte_count, "
        f"CASE WHEN pg_catalog.octet_length(taken.document) <= {limit}::pg_catalog.int4 THEN taken.document END "
        f"AS document, {HIGH} AS high, {LOW} AS low, taken.key_parts "
        f"FROM ({rows}) AS taken {_DIGEST}"
    )


def sum_rows(tables: Sequence[tuple[ReadTable, RowSelection]]) -> SourceStatement:
    """Compute the checksum of the rows of several tables."""
    arguments = _Arguments()
    union = " UNION ALL ".join(f"({_rows(table, selection, arguments)})" for table, selection in tables)
    return arguments.statement(
        "SELECT pg_catalog.count(*) AS row_count, "  # noqa: S608  # names are quoted
        f"coalesce(pg_catalog.sum({HIGH}), 0)::pg_catalog.text AS high, "
        f"coalesce(pg_catalog.sum({LOW}), 0)::pg_catalog.text AS low, "
        "coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count "
        f"FROM ({union}) AS taken {_DIGEST}"
    )


def list_keys(table: ReadTable, selection: RowSelection) -> SourceStatement:
    """List the rows of a tenant by their keys, without their documents."""
    arguments = _Arguments()
    return arguments.statement(
        f"SELECT {_ids(table, arguments, selection.stored_names)}, {_key_parts(table)} AS key_parts "  # noqa: S608  # names are quoted
        f"FROM {_table(table)} AS source "
        f"WHERE {_selected(table, selection, arguments)}"
    )


def list_deleted(table: ReadTable, selection: RowSelection) -> SourceStatement:
    """List the ids of the rows with a tombstone."""
    arguments = _Arguments()
    return arguments.statement(
        f"SELECT {_ids(table, arguments, selection.stored_names)} FROM {_table(table)} AS source "  # noqa: S608  # names are quoted
        f"WHERE {_of_tenant(table, selection, arguments)} AND NOT ({_left(table)})"
    )


def list_duplicates(tables: Sequence[tuple[ReadTable, RowSelection]]) -> SourceStatement:
    """List the types and ids that several rows of a tenant have."""
    arguments = _Arguments()
    parts = [
        f"SELECT {_ids(table, arguments, selection.stored_names)} "  # noqa: S608  # names are quoted
        f"FROM {_table(table)} AS source WHERE {_selected(table, selection, arguments)}"
        for table, selection in tables
    ]
    return arguments.statement(
        f"SELECT resource_type, resource_id FROM ({' UNION ALL '.join(parts)}) AS taken "  # noqa: S608  # names are quoted
        f"WHERE resource_id IS NOT NULL GROUP BY 1, 2 HAVING pg_catalog.count(*) > 1 LIMIT {DUPLICATES_MAX + 1}"
    )


_CHECKSUM_PARTS: Final = ("resource_type", "resource_id", "document", "created", "changed")
_DIGEST: Final = (
    "CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), "
    + ", ".join(f"taken.{name}" for name in _CHECKSUM_PARTS)
    + "), 'UTF8')) AS bytes OFFSET 0) AS digest"
)
_HEX: Final = "pg_catalog.encode(pg_catalog.substr(digest.bytes, {begin}, 8), 'hex')"
_HALF: Final = f"('x' || {_HEX})::pg_catalog.bit(64)::pg_catalog.int8"
HIGH: Final = _HALF.format(begin=1)
LOW: Final = _HALF.format(begin=9)


def _rows(table: ReadTable, selection: RowSelection, arguments: _Arguments) -> str:
    mapping = table.mapping
    made_at = arguments.add(selection.made_at.isoformat())
    created = _first_time([mapping.created, mapping.changed], made_at)
    changed = _first_time([mapping.changed, mapping.created], made_at)
    # OFFSET keeps the planner from computing each expression at each of its uses.
    return (
        f"SELECT {_ids(table, arguments, selection.stored_names)}, "  # noqa: S608  # names are quoted
        f"({_document(table, arguments)})::pg_catalog.text AS document, {created} AS created, {changed} AS changed, "
        f"{_key_parts(table)} AS key_parts FROM {_table(table)} AS source "
        f"WHERE {_selected(table, selection, arguments)} OFFSET 0"
    )


def _first_time(columns: Sequence[str | None], default: str) -> str:
    times = [f"{_column(name)}::pg_catalog.timestamptz" for name in columns if name is not None]
    return f"coalesce({', '.join([*times, f'{default}::pg_catalog.timestamptz'])})::pg_catalog.text"


def _document(table: ReadTable, arguments: _Arguments) -> str:
    if table.mapping.data_column is not None:
        column = _column(table.mapping.data_column)
        is_jsonb = table.types[table.mapping.data_column] == "jsonb"
        return column if is_jsonb else f"{column}::pg_catalog.text::pg_catalog.jsonb"
    members = list(table.members.items())
    objects = [
        "pg_catalog.jsonb_build_object({})".format(
            ", ".join(
                f"{arguments.add(member)}, {_column(column)}"
                for member, column in members[start : start + MEMBERS_AT_ONCE]
            )
        )
        for start in range(0, len(members), MEMBERS_AT_ONCE)
    ]
    return " || ".join(objects) or "'{}'::pg_catalog.jsonb"


def _selected(table: ReadTable, selection: RowSelection, arguments: _Arguments) -> str:
    return f"{_of_tenant(table, selection, arguments)} AND {_left(table)}"


def _of_tenant(table: ReadTable, selection: RowSelection, arguments: _Arguments) -> str:
    mapping = table.mapping
    pairs = list(zip(mapping.tenant, selection.tenant, strict=True))
    if selection.key is not None:
        pairs += zip(mapping.key, selection.key, strict=True)
    conditions = [_is(table, name, arguments.add(value)) for name, value in pairs]
    if selection.changed_since is not None and mapping.changed is not None:
        is_newer = _changed_since(table, selection.changed_since, arguments)
        conditions.append(f"({_column(mapping.changed)} IS NULL OR {is_newer})")
    return " AND ".join(conditions)


def _changed_since(table: ReadTable, since: datetime, arguments: _Arguments) -> str:
    """Compare by the column's own type if that is a time, for an index."""
    changed = table.mapping.changed
    if changed is None:
        raise ValueError(f"expected a change column, got {table.mapping.name} without one")
    value = f"{arguments.add(since.isoformat())}::pg_catalog.timestamptz"
    if table.types[changed].endswith("without time zone"):  # times in UTC, as the session's zone is
        return f"{_column(changed)} >= {value}::pg_catalog.timestamp"
    return f"{_column(changed)}::pg_catalog.timestamptz >= {value}"


def _is(table: ReadTable, name: str, value: str) -> str:
    """Compare by the column's own type for an index, and exactly, as a text."""
    column = _column(name)
    return f"{column} = {value}::{table.types[name]} AND {column}::pg_catalog.text = {value}"


def _left(table: ReadTable) -> str:
    if table.mapping.deleted is None:
        return "true"
    column = _column(table.mapping.deleted)
    return f"{column} IS NOT TRUE" if table.types[table.mapping.deleted] == "boolean" else f"{column} IS NULL"


def _resource_type(table: ReadTable, arguments: _Arguments, stored_names: Mapping[str, str]) -> str:
    if table.mapping.resource_type_column is None:
        name = table.mapping.resource_type
        return arguments.add(name if name is None else stored_names.get(name, name))
    column = f"{_column(table.mapping.resource_type_column)}::pg_catalog.text"
    if not stored_names:
        return column
    names = arguments.add(msgspec.json.encode(stored_names).decode())
    return f"coalesce({names}::pg_catalog.jsonb ->> {column}, {column})"


def _ids(table: ReadTable, arguments: _Arguments, stored_names: Mapping[str, str]) -> str:
    kind = _resource_type(table, arguments, stored_names)
    return f"{kind} AS resource_type, {_resource_id(table)} AS resource_id"


def _resource_id(table: ReadTable) -> str:
    return " || ':' || ".join(f"{_column(name)}::pg_catalog.text" for name in table.mapping.key)


def _key_parts(table: ReadTable) -> str:
    return f"ARRAY[{', '.join(f'{_column(name)}::pg_catalog.text' for name in table.mapping.key)}]"


def _column(name: str) -> str:
    return f"source.{quote_name(name)}"


def _table(table: ReadTable) -> str:
    return f"{quote_name(table.mapping.schema)}.{quote_name(table.mapping.table)}"
