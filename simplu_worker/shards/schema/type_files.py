"""Business types: their files, views, indexes and the plan of a change. Pure.

No SQL comes from a file. Names have few characters, and texts become literals of SQL here alone.

A list finds an index only by its own expression, which `simplu_indexed` (migrations) puts together as here.

A view is replaced, never dropped: those who may read it still may. So its columns stay, and new ones come last; every
other change is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.business_types import (
    ALL_MEMBERS,
    FOREVER,
    BusinessType,
    History,
    ResourceType,
    ViewColumn,
)
from simplu_worker.operations.json_record import BOUNDS_TEXT, exceeds_bounds
from simplu_worker.operations.schema_judge import Schema, find_schema_problem
from simplu_worker.shards.postgres.queries import quote_name
from simplu_worker.vocabulary import ColumnType, Validation

FILE_MAX_BYTES: Final = 1024 * 1024
COLUMNS_MAX: Final = 200  # Postgres allows some 1,600 of a relation, and fewer in a row
PATH_MAX: Final = 8
FILTERED_MAX: Final = 4

SETTINGS: Final = "settings"  # the resource type of `defaultSettings`
OWN_NAMES: Final = (SETTINGS, "role")  # of resources that the worker makes for each tenant
_TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_SQL_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # 63 bytes: NAMEDATALEN
_DAYS: Final = re.compile(r"[1-9]\d{0,3}d")
_MEMBER: Final = re.compile(r"[\w$@-][\w$@ -]{0,127}")  # no dot: `public.` is replaced in SQL (`queries.at_home`)
_MEMBER_TEXT: Final = "1 to 128 letters, digits, _, -, $, @ or spaces"
_decoder = msgspec.json.Decoder(BusinessType)


class TypeFile(msgspec.Struct, frozen=True):
    """The text of a file, and the type that it has."""

    text: str
    type: BusinessType

    @property
    def digest(self) -> str:
        """What identifies one version of the file."""
        return digest_of(self.text)

    @property
    def views(self) -> dict[str, ResourceType]:
        """The resource types with a view, by the view's name."""
        return {one.view: one for one in self.type.resource_types if one.view is not None}


class TypeFileError(ValueError):
    """A file that is no business type; each of *problems* is a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def digest_of(text: str) -> str:
    """Return the digest that identifies one version of a business type's file."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_type_name(name: str) -> bool:
    """Return whether a business type can have this name."""
    return _TYPE_NAME.fullmatch(name) is not None


def read_type(text: str) -> TypeFile:
    """Return the type in the text of a file. Raises `TypeFileError`."""
    if len(text.encode()) > FILE_MAX_BYTES:
        raise TypeFileError([f"expected at most {FILE_MAX_BYTES} bytes, got {len(text.encode())}"])
    try:
        file = TypeFile(text, _decoder.decode(text))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise TypeFileError([f"expected a business type as JSON: {exc}"]) from None
    if problems := list(_problems(file.type)):
        raise TypeFileError(problems)
    return file


def stored_type(definition: str | None) -> TypeFile | None:
    """Return a type as its row on a shard has it; None for one that cannot be read."""
    try:
        return None if definition is None else TypeFile(definition, _decoder.decode(definition))
    except (msgspec.DecodeError, RecursionError):
        return None


def problems_between(files: Mapping[str, TypeFile]) -> list[str]:
    """Return what is wrong with *files* together: views that two types would have."""
    owners: dict[str, list[str]] = {}
    for name, file in files.items():
        for view in file.views:
            owners.setdefault(view, []).append(name)
    return [
        f"view {view}: expected one type that has it, got {', '.join(sorted(names))}; rename it in all but one"
        for view, names in sorted(owners.items())
        if len(names) > 1
    ]


def _problems(business_type: BusinessType) -> Iterator[str]:
    if not is_type_name(business_type.name):
        yield f"name: expected a letter, then up to 62 letters, digits, _ or -, got {business_type.name[:64]!r}"
    if not _MEMBER.fullmatch(business_type.staff_resource_type):
        yield f"staffResourceType: expected {_MEMBER_TEXT}"
    settings = business_type.default_settings
    encoded = msgspec.json.encode(settings)
    if exceeds_bounds(encoded):
        yield f"defaultSettings: expected {BOUNDS_TEXT}, got more"
    if b"\\u0000" in encoded:
        yield "defaultSettings: expected texts without U+0000"
    yield from _name_problems(business_type)
    views = Counter(one.view for one in business_type.resource_types if one.view is not None)
    for view in sorted(view for view, count in views.items() if count > 1):
        yield f"resourceTypes: expected each view once, got {view} {views[view]} times"
    for one in business_type.resource_types:
        for problem in _resource_problems(one, settings):
            yield f"resource type {one.name[:64]}: {problem}"


def _name_problems(business_type: BusinessType) -> Iterator[str]:
    names = Counter(name for one in business_type.resource_types for name in one.names)
    for name in sorted(name for name, count in names.items() if count > 1):
        yield f"resourceTypes: expected each name once, got {name!r} {names[name]} times"
    staff = business_type.staff_resource_type
    if staff in business_type.stored_names:
        name = business_type.stored_names[staff]
        yield f"staffResourceType: {staff} is another name of {name}; write {name}"
    for name in OWN_NAMES:
        if name in business_type.stored_names:
            yield f"alsoNamed: the worker itself makes resources named {name}; take the name out"


def _resource_problems(one: ResourceType, settings: dict[str, Any]) -> Iterator[str]:
    for name in one.names:
        if not _MEMBER.fullmatch(name):
            yield f"name: expected {_MEMBER_TEXT}, got {name[:64]!r}"
    if one.view is not None and not _SQL_NAME.fullmatch(one.view):
        yield f"view: expected a-z or _, then up to 62 of a-z, 0-9, _, got {one.view[:64]!r}"
    if one.view is None and one.columns:
        yield "columns: expected a view that has them, got none; add view"
    if len(one.columns) > COLUMNS_MAX:
        yield f"columns: expected at most {COLUMNS_MAX}, got {len(one.columns)}"
    yield from _schema_problems(one, settings)
    yield from _list_problems(one)
    yield from _history_problems(one)
    yield from _base_problems(one)
    seen = set(one.base_columns)
    for column in one.columns:
        if column.name in seen:
            yield f"column {column.name[:64]}: expected a name that the view does not have yet"
        seen.add(column.name)
        yield from _column_problems(column)


def _list_problems(one: ResourceType) -> Iterator[str]:
    for name in filter(None, (*one.filtered, one.date)):
        if not all(_MEMBER.fullmatch(part) for part in name.split(".")) or name.count(".") >= PATH_MAX:
            yield f"date, filtered: expected 1 to {PATH_MAX} members with dots between, got {name[:64]!r}"
    if len(one.filtered) > FILTERED_MAX:
        yield f"filtered: expected at most {FILTERED_MAX} members, got {len(one.filtered)}: each costs every write"


def _history_problems(one: ResourceType) -> Iterator[str]:
    if one.history is None:
        return
    members, keep = one.history.members, one.history.keep
    if keep != FOREVER and not _DAYS.fullmatch(keep):
        yield f"history: keep: expected {FOREVER}, or 1d to 9999d, got {keep[:64]!r}"
    if members != ALL_MEMBERS and (isinstance(members, str) or not members or not all(map(_MEMBER.fullmatch, members))):
        yield f"history: members: expected all, or a list of members of {_MEMBER_TEXT}"


def _base_problems(one: ResourceType) -> Iterator[str]:
    ids = {"tenantColumn": (one.tenant_column, "id"), "idColumn": (one.id_column, "resourceId")}
    for member, (name, default) in ids.items():
        if name != default and not _SQL_NAME.fullmatch(name):
            yield f"{member}: expected {default}, or a-z or _, then up to 62 of a-z, 0-9, _, got {name[:64]!r}"
    if len(set(one.base_columns)) < len(one.base_columns):
        yield "tenantColumn, idColumn: expected two names other than data and date"


def _schema_problems(one: ResourceType, settings: dict[str, Any]) -> Iterator[str]:
    if one.schema is None:
        if one.validation is not Validation.OFF:
            yield f"validation: expected a schema for {one.validation}, got none; add schema"
    elif (problem := find_schema_problem(one.schema)) is not None:
        yield f"schema: {problem}"
    elif one.validation is Validation.ENFORCE and one.name == SETTINGS:
        finding = Schema(one.schema).judge(msgspec.json.encode(settings))
        if finding is not None:
            yield f"schema: expected defaultSettings to fit it, got others ({finding})"


def _column_problems(column: ViewColumn) -> Iterator[str]:
    if not _SQL_NAME.fullmatch(column.name):
        yield f"column: expected a-z or _, then up to 62 of a-z, 0-9, _, got {column.name[:64]!r}"
    for path in (column.path, *column.also_at):
        if not 1 <= len(path) <= PATH_MAX:
            yield f"column {column.name[:64]}: expected a path of 1 to {PATH_MAX} members, got {len(path)}"
        for member in path:
            if not _MEMBER.fullmatch(member):
                yield f"column {column.name[:64]}: expected members of {_MEMBER_TEXT}, got {member[:64]!r}"


Columns: TypeAlias = Sequence[tuple[str, str]]  # name and type

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


def view_statements(business_type: BusinessType, *, server_version: int) -> list[str]:
    """Return the statements that make or replace the views of a type that `read_type` accepted."""
    options = " WITH (security_invoker = true)" if server_version >= SECURITY_INVOKER_SINCE else ""
    statements = []
    for resource in business_type.resource_types:
        if resource.view is None:
            continue
        columns = "".join(f",\n    {_expression(one)} AS {quote_name(one.name)}" for one in resource.columns)
        base = ", ".join(
            quote_name(stored) if stored == name else f"{quote_name(stored)} AS {quote_name(name)}"
            for stored, name in zip(STORED_COLUMNS, resource.base_columns, strict=True)
        )
        statements.append(
            f"CREATE OR REPLACE VIEW public.{quote_name(resource.view)}{options} AS\n"
            f"SELECT\n    {base}{columns}\n"
            "FROM public.resources\n"
            f'WHERE "businessType" = {literal(business_type.name)} AND "resourceName" = {literal(resource.name)}'
        )
    return statements


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


INDEX_PREFIX: Final = "simplu_list_"


def index_statements(business_type: BusinessType) -> dict[str, str]:
    """Return the statements that build the indexes of a type, by name; types with a member in common share one."""
    statements: dict[str, str] = {}
    for one in business_type.resource_types:
        for path in one.filtered_paths:
            value = f"{literal('{' + ','.join(path) + '}')}::pg_catalog.text[]"
            is_time = path == one.date_path
            expression = (
                f"public.simplu_timestamptz(data #> {value})"
                if is_time
                else f'pg_catalog.left(data #>> {value}, 200) COLLATE "C"'
            )
            name = INDEX_PREFIX + hashlib.sha256(expression.encode()).hexdigest()[:16]
            statements[name] = (
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON public.resources\n"
                f'(id, "resourceName", ({expression})) WHERE ({expression}) IS NOT NULL'
            )
    return statements


class StoredType(msgspec.Struct, frozen=True):
    """The row of a type on a shard.

    *is_applied*: no upgrade overwrites it. *tenant_count*: not `moved` or `destroyed`.
    """

    name: str
    digest: str | None
    is_applied: bool = False
    tenant_count: int = 0
    views: Sequence[str] = ()
    indexes: Mapping[str, str] = msgspec.field(default_factory=dict)  # `index_statements`
    histories: Mapping[str, History] = msgspec.field(default_factory=dict)


class ShardTypes(msgspec.Struct, frozen=True):
    """The types of a shard by name, the relations with names of views, and the indexes for lists."""

    types: Mapping[str, StoredType]
    relations: Mapping[str, Columns | None] = msgspec.field(default_factory=dict)  # None: it is no view
    indexes: Collection[str] = ()


class TypeChange(StrEnum):
    """What becomes of a type on a shard."""

    NEW = "new"
    CHANGED = "changed"
    CURRENT = "current"
    REMOVED = "removed"
    ABSENT = "absent"  # to be removed, and not there


class TypesPlan(msgspec.Struct, frozen=True):
    """The changes by type, the views that go, and why the shard cannot be changed. Indexes come after the types."""

    changes: Mapping[str, TypeChange]
    dropped_views: Sequence[str] = ()
    refusals: Sequence[str] = ()
    index_statements: Sequence[str] = ()

    @property
    def to_write(self) -> list[str]:
        """The types to write."""
        return [name for name, change in self.changes.items() if change in {TypeChange.NEW, TypeChange.CHANGED}]

    @property
    def to_remove(self) -> list[str]:
        """The types to remove."""
        return [name for name, change in self.changes.items() if change is TypeChange.REMOVED]

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.to_write or self.to_remove or self.index_statements)


def plan_types(
    shard: ShardTypes, files: Mapping[str, TypeFile], *, remove: Collection[str] = (), by_upgrade: bool = False
) -> TypesPlan:
    """Return the plan for the types of *files* and for those to *remove*; *by_upgrade* leaves applied ones alone."""
    owned = {
        name: file
        for name, file in sorted(files.items())
        if not (by_upgrade and name in shard.types and shard.types[name].is_applied)
    }
    changes = {name: _change(shard.types.get(name), file) for name, file in owned.items()}
    changes |= {name: TypeChange.REMOVED if name in shard.types else TypeChange.ABSENT for name in sorted(remove)}
    kept = [one for name, one in shard.types.items() if changes.get(name) in {None, TypeChange.CURRENT}]
    written = {name: owned[name] for name in changes if changes[name] in {TypeChange.NEW, TypeChange.CHANGED}}
    claimed = {view for one in kept for view in one.views} | {view for file in owned.values() for view in file.views}
    had = {view for one in shard.types.values() for view in one.views}
    wanted: dict[str, str] = {}
    for statements in (*(one.indexes for one in kept), *(index_statements(file.type) for file in owned.values())):
        wanted.update(statements)
    indexes = [text for name, text in sorted(wanted.items()) if name not in shard.indexes]
    unwanted = sorted(set(shard.indexes) - wanted.keys())
    indexes += [f"DROP INDEX CONCURRENTLY IF EXISTS public.{name}" for name in unwanted]
    return TypesPlan(
        changes, sorted(had - claimed), list(_refusals(shard, written, kept, remove)), [] if by_upgrade else indexes
    )


def _change(stored: StoredType | None, file: TypeFile) -> TypeChange:
    if stored is None:
        return TypeChange.NEW
    return TypeChange.CURRENT if stored.digest == file.digest else TypeChange.CHANGED


def _refusals(
    shard: ShardTypes, written: Mapping[str, TypeFile], kept: Sequence[StoredType], remove: Collection[str]
) -> Iterator[str]:
    owners = {view: one.name for one in kept for view in one.views}
    had = {view for one in shard.types.values() for view in one.views}
    for name, file in written.items():
        for view, resource in file.views.items():
            is_there = view in shard.relations
            if view in owners:
                yield f"type {name}: the view {view} is one of the type {owners[view]}; give it another name"
            elif is_there and view not in had:
                yield f"type {name}: {view} is there, and no view of a business type; give the view another name"
            elif is_there and (problem := _view_problem(shard.relations[view], resource)) is not None:
                yield f"type {name}: view {view}: {problem}"
        if name in shard.types:
            yield from _history_refusals(shard.types[name], file)
    for name in sorted(remove):
        if name in shard.types and (count := shard.types[name].tenant_count):
            yield f"type {name}: expected no tenant of a type to remove, got {count}; move or destroy them first"


def _history_refusals(stored: StoredType, file: TypeFile) -> Iterator[str]:
    for name, history in stored.histories.items():
        wanted = file.type.histories.get(name)
        if wanted is None or wanted.kept_members != history.kept_members:
            members = ", ".join(history.kept_members or [ALL_MEMBERS])
            yield (
                f"type {stored.name}: the history of {name} has begun, with the members {members}; leave it in the "
                "file: without it versions would be missing"
            )


def _view_problem(columns: Columns | None, resource: ResourceType) -> str | None:
    if columns is None:
        return "expected a view, got a table of that name; give the view another name"
    wanted = [
        *zip(resource.base_columns, BASE_TYPES, strict=True),
        *((one.name, SQL_TYPES[one.type]) for one in resource.columns),
    ]
    for index, (name, sql_type) in enumerate(columns):
        got = wanted[index] if index < len(wanted) else None
        if got != (name, sql_type):
            came = "none" if got is None else ", ".join(got)
            return (
                f"expected {name}, {sql_type}, as column {index + 1}, got {came}; a view keeps its columns, and new "
                "ones come last: put it back, or give the view another name, which makes it anew"
            )
    return None
