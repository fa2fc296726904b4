"""The queries of a user by which an import reads its source, and the statements around them. Pure.

A query is a derived table of each statement. Values are arguments and have the types of the query's columns, so that
the source can use its indexes. The source computes the hash of each row,
as our shards do (`hashes` in `moving.sql`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.operations.json_record import DOCUMENT_MAX_BYTES
from simplu_worker.operations.operation import ID_MAX, is_id
from simplu_worker.shards.postgres.statement_timeouts import FORMATS, TRANSACTION_TIMEOUT_SINCE, Isolation, set_all

FILE_MAX_BYTES: Final = 1024 * 1024
EXPORT_PAGE: Final = "docs/runbook/export.md"
_WRITING: Final = {"upsert": ("INSERT", "MERGE"), "delete": ("DELETE", "UPDATE")}
DUPLICATES_MAX: Final = 100_000  # ids with several rows that an import remembers for one tenant
_HEADING: Final = re.compile(r"^-- (name|upsert|delete):(.*)$", re.MULTILINE)
_KEYS: Final = ("text", "varchar", "uuid", "int8", "int4", "int2")
_TIMES: Final = ("timestamptz", "timestamp")
COLUMN_TYPES: Final[Mapping[str, Sequence[str]]] = {
    "business_id": _KEYS,
    "location_id": _KEYS,
    "resource_id": _KEYS,
    "data": ("jsonb",),
    "date": _TIMES,
    "updated": _TIMES,
}

DESCRIBE_SOURCE: Final = """
SELECT
    pg_catalog.current_database()::pg_catalog.text AS database,
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version,
    pg_catalog.current_setting('server_encoding') AS encoding,
    pg_catalog.now()::pg_catalog.text AS taken_at
"""
MAY_IDENTIFY: Final = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
IDENTIFY: Final = "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
EXPORT_SNAPSHOT: Final = "SELECT pg_catalog.pg_export_snapshot()"
SETTINGS: Final = FORMATS | {
    "search_path": "public",
    "row_security": "off",
    "statement_timeout": "'30min'",
    "idle_in_transaction_session_timeout": "0",
}


class SourceQuery(msgspec.Struct, frozen=True):
    """The query for the rows of one resource type; *types* are those of its columns, once the source has told them."""

    resource_type: str
    sql: str
    types: Mapping[str, str] = {}


class QueriesRefusedError(PermanentError):
    """The source does not take the queries; the text has one line for each problem."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


class WriteStatements(msgspec.Struct, frozen=True):
    """What writes rows of *resource_type* to the database of *query*; each reads the rows in `changed`."""

    query: SourceQuery
    upsert: str
    delete: str


def parse_queries(text: bytes) -> list[SourceQuery]:
    """Return the queries in a file, without what an export needs beside them.

    Raises `ConfigurationError` with every problem.
    """
    before, parts = _parts_of(text)
    queries = [SourceQuery(name, sql) for kind, name, sql in parts if kind == "name"]
    _refuse(_problems_of(before, queries), "docs/importing.md")
    return queries


def parse_mapping(text: bytes) -> list[WriteStatements]:
    """Return the queries in a file with the statements that write; raise `ConfigurationError` with every problem."""
    before, parts = _parts_of(text)
    queries = [SourceQuery(name, sql) for kind, name, sql in parts if kind == "name"]
    found = {(kind, name): sql for kind, name, sql in parts}
    problems = list(_problems_of(before, queries))
    names = {query.resource_type for query in queries}
    problems += [f"{name}: there is no `-- name: {name}`" for name in sorted({name for _, name, _ in parts} - names)]
    for kind, verbs in _WRITING.items():
        for name in sorted(names):
            first_word = found.get((kind, name), "").partition(" ")[0].partition("\n")[0].upper()
            if first_word not in verbs:
                problems.append(f"{name}: expected `-- {kind}: {name}`, and below it {' or '.join(verbs)} …")
    if len(found) < len(parts):
        problems.append("two statements have the same heading")
    _refuse(problems, EXPORT_PAGE)
    return [
        WriteStatements(one, found["upsert", one.resource_type], found["delete", one.resource_type]) for one in queries
    ]


def _parts_of(text: bytes) -> tuple[str, list[tuple[str, str, str]]]:
    if len(text) > FILE_MAX_BYTES:
        raise ConfigurationError(f"queries: expected a file of at most {FILE_MAX_BYTES} bytes, got {len(text)}")
    try:
        before, *parts = _HEADING.split(text.decode())
    except UnicodeDecodeError:
        raise ConfigurationError("queries: the file is not in UTF-8; save it as UTF-8") from None
    found = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return _statement_of(before), [(kind, name.strip(), _statement_of(sql)) for kind, name, sql in found]


def _refuse(problems: Iterable[str], page: str) -> None:
    if found := list(problems):
        raise ConfigurationError(*(f"queries: {problem}; {page} has an example" for problem in found))


def _statement_of(part: str) -> str:
    lines = part.split("\n")
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("--")):
        lines.pop()
    return "\n".join(lines).strip().removesuffix(";")


def _problems_of(before: str, queries: Sequence[SourceQuery]) -> Iterator[str]:
    if before or not queries:
        yield "each query needs a line `-- name: RESOURCE_TYPE` above it"
    names = [query.resource_type for query in queries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: the file has several queries of this name"
    for query in queries:
        if not is_id(query.resource_type):
            yield f"-- name: expected 1 to {ID_MAX} characters, got {len(query.resource_type)}"
        if not query.sql or "\0" in query.sql:
            yield f"{query.resource_type}: there is no query below this name"


def digest_of(queries: Iterable[SourceQuery]) -> str:
    """Return a text that differs for other queries."""
    pairs = [(query.resource_type, query.sql) for query in queries]
    return hashlib.sha256(msgspec.json.encode(pairs)).hexdigest()


def problem_of_columns(query: SourceQuery, argument_count: int) -> str | None:
    """Return why the source's description of a query is not that of resources; None if it is."""
    name, types = query.resource_type, query.types
    if argument_count:
        return f"{name}: the query has a $1; write the value into the query"
    if types.keys() != COLUMN_TYPES.keys():
        return f"{name}: expected the columns {', '.join(COLUMN_TYPES)}, got {', '.join(types)}; name each by AS"
    for column, expected in COLUMN_TYPES.items():
        if types[column] not in expected:
            return f"{name}: expected {column} of the type {' or '.join(expected)}, got {types[column]}; cast it"
    return None


def problems_of_tenants(queries: Sequence[SourceQuery]) -> list[str]:
    """Return why a tenant of one of the described queries cannot be looked for by the others."""
    types = [(column, {query.types[column] for query in queries}) for column in ("business_id", "location_id")]
    return [
        f"{column}: expected one type in all queries, got {', '.join(sorted(found))}; cast it"
        for column, found in types
        if len(found) > 1
    ]


def begin(server_version: int) -> str:
    """Return the statements that open a transaction on PostgreSQL of this version; none of them takes a snapshot."""
    newer = {"transaction_timeout": "0"} if server_version >= TRANSACTION_TIMEOUT_SINCE else {}
    return f"BEGIN ISOLATION LEVEL {Isolation.ONE_MOMENT};\n{set_all('SET LOCAL', SETTINGS | newer)}"


class SourceStatement(msgspec.Struct, frozen=True):
    """An SQL text, and the texts of its arguments."""

    sql: str
    arguments: Sequence[str] = ()


class RowSelection(msgspec.Struct, frozen=True):
    """The rows of *query* of one tenant, stored as *resource_type*; if given, only those changed since."""

    query: SourceQuery
    resource_type: str
    tenant: tuple[str, str]
    business_type: str = ""
    changed_since: datetime | None = None


def describe_query(query: SourceQuery) -> str:
    """Return the statement whose columns are those of a query."""
    return f"SELECT * FROM {_derived(query)}"  # noqa: S608  # the query is the user's


def list_tenants(query: SourceQuery) -> SourceStatement:
    """Count the rows of each tenant."""
    return SourceStatement(
        f"SELECT {_TENANT}, pg_catalog.count(*) AS row_count FROM {_derived(query)} GROUP BY 1, 2"  # noqa: S608  # the query is the user's
    )


def list_rows_without_tenant(query: SourceQuery) -> SourceStatement:
    """List the ids of rows that name no tenant."""
    return SourceStatement(
        f"SELECT source.resource_id::pg_catalog.text AS resource_id FROM {_derived(query)} "  # noqa: S608  # the query is the user's
        "WHERE source.business_id IS NULL OR source.location_id IS NULL"
    )


def list_changed_tenants(query: SourceQuery, since: datetime) -> SourceStatement:
    """List the tenants with rows changed *since*."""
    arguments: list[str] = []
    return SourceStatement(
        f"SELECT DISTINCT {_TENANT} FROM {_derived(query)} WHERE {_changed_since(query, since, arguments)}",  # noqa: S608  # the query is the user's
        arguments,
    )


def read_rows(selection: RowSelection) -> SourceStatement:
    """Read rows with their checksums; of a longer document its length alone."""
    arguments: list[str] = []
    rows = _rows(selection, arguments)
    return SourceStatement(
        "SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, "  # noqa: S608  # the query is the user's
        "pg_catalog.octet_length(taken.document) AS byte_count, "
        f"CASE WHEN pg_catalog.octet_length(taken.document) <= {DOCUMENT_MAX_BYTES} THEN taken.document END "
        f"AS document, {_HASH} AS hash FROM ({rows}) AS taken",
        arguments,
    )


def sum_rows(selections: Sequence[RowSelection]) -> SourceStatement:
    """Compute the checksum of the rows of several queries, by resource type."""
    arguments: list[str] = []
    union = " UNION ALL ".join(f"({_rows(one, arguments)})" for one in selections)
    there = "FILTER (WHERE taken.document IS NOT NULL)"
    return SourceStatement(
        "SELECT taken.resource_type, pg_catalog.count(taken.document) AS row_count, "  # noqa: S608  # the query is the user's
        "pg_catalog.count(*) - pg_catalog.count(taken.document) AS deleted_count, "
        f"coalesce(pg_catalog.sum({_HASH}) {there}, 0)::pg_catalog.text AS checksum, "
        "coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count "
        f"FROM ({union}) AS taken GROUP BY 1",
        arguments,
    )


def hash_documents(selection: RowSelection) -> SourceStatement:
    """Read the ids of rows with a hash of the document, as `hash_exported` of a shard."""
    arguments: list[str] = []
    return SourceStatement(
        f"SELECT taken.resource_id, {_DOCUMENT_HASH} AS hash FROM (SELECT {_ids(selection, arguments)}, source.data "  # noqa: S608  # the query is the user's
        f"FROM {_derived(selection.query)} WHERE {_selected(selection, arguments)}) AS taken "
        "WHERE taken.data IS NOT NULL AND taken.resource_id IS NOT NULL",
        arguments,
    )


def list_duplicates(selections: Sequence[RowSelection]) -> SourceStatement:
    """List the types and ids that several rows of a tenant have, deleted ones included."""
    arguments: list[str] = []
    union = " UNION ALL ".join(
        f"(SELECT {_ids(one, arguments)} FROM {_derived(one.query)} WHERE {_selected(one, arguments)})"  # noqa: S608  # the query is the user's
        for one in selections
    )
    return SourceStatement(
        f"SELECT resource_type, resource_id FROM ({union}) AS taken "  # noqa: S608  # the query is the user's
        f"WHERE resource_id IS NOT NULL GROUP BY 1, 2 HAVING pg_catalog.count(*) > 1 LIMIT {DUPLICATES_MAX + 1}",
        arguments,
    )


_TENANT: Final = (
    "source.business_id::pg_catalog.text AS business_id, source.location_id::pg_catalog.text AS location_id"
)
_HASHED: Final = ("business_type", "resource_type", "resource_id", "document", "created", "changed")
_HASH: Final = (
    "pg_catalog.hashtextextended(pg_catalog.concat_ws(pg_catalog.chr(1), "
    + ", ".join(f"taken.{name}" for name in _HASHED)
    + ') COLLATE pg_catalog."C", 0)'
)
# As `document_hash` in exporting.sql.
_DOCUMENT_HASH: Final = (
    "pg_catalog.hashtextextended(pg_catalog.concat_ws(pg_catalog.chr(1), taken.resource_type, taken.resource_id, "
    "pg_catalog.jsonb_hash_extended(pg_catalog.jsonb_strip_nulls(taken.data), 0)::pg_catalog.text) "
    'COLLATE pg_catalog."C", 0)'
)


def _derived(query: SourceQuery) -> str:
    """Return the query as a table; the line break ends a comment in its last line."""
    return f"({query.sql}\n) AS source"


def _rows(selection: RowSelection, arguments: list[str]) -> str:
    # OFFSET keeps the planner from computing each expression at each of its uses.
    business_type = _argument(arguments, selection.business_type)
    return (
        f"SELECT {business_type} AS business_type, {_ids(selection, arguments)}, "  # noqa: S608  # the query is the user's
        "source.data::pg_catalog.text AS document, "
        "source.date::pg_catalog.timestamptz::pg_catalog.text AS created, "
        "source.updated::pg_catalog.timestamptz::pg_catalog.text AS changed "
        f"FROM {_derived(selection.query)} WHERE {_selected(selection, arguments)} OFFSET 0"
    )


def _ids(selection: RowSelection, arguments: list[str]) -> str:
    kind = _argument(arguments, selection.resource_type)
    return f"{kind} AS resource_type, source.resource_id::pg_catalog.text AS resource_id"


def _selected(selection: RowSelection, arguments: list[str]) -> str:
    query = selection.query
    conditions = [
        f"source.{name} = {_argument(arguments, value)}::pg_catalog.{query.types[name]}"
        for name, value in zip(("business_id", "location_id"), selection.tenant, strict=True)
    ]
    if selection.changed_since is not None:
        conditions.append(_changed_since(query, selection.changed_since, arguments))
    return " AND ".join(conditions)


def _changed_since(query: SourceQuery, since: datetime, arguments: list[str]) -> str:
    """Compare by the column's own type, for an index; a time without a zone is UTC, as the session's zone is."""
    value = f"{_argument(arguments, since.isoformat())}::pg_catalog.timestamptz"
    return f"source.updated >= {value}::pg_catalog.{query.types['updated']}"


def _argument(arguments: list[str], value: str) -> str:
    arguments.append(value)
    return f"${len(arguments)}::pg_catalog.text"
