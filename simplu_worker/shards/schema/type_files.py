"""The files of business types: decoded, and refused where a shard could not have the type or its views. Pure.

No SQL comes from a file. Names of types, views and columns have few characters; texts become literals of SQL in
`type_views` alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.operations.business_types import BusinessType, ResourceType, ViewColumn
from simplu_worker.operations.document_bounds import BOUNDS_TEXT, exceeds_bounds
from simplu_worker.operations.schema_judge import Schema, find_schema_problem
from simplu_worker.vocabulary import Validation

FILE_MAX_BYTES: Final = 1024 * 1024
COLUMNS_MAX: Final = 200  # Postgres allows some 1,600 of a relation, and fewer in a row
PATH_MAX: Final = 8
FILTERED_MAX: Final = 4

SETTINGS: Final = "settings"  # the resource type of `defaultSettings`
OWN_NAMES: Final = (SETTINGS, "role")  # of resources that the worker makes for each tenant
_TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_SQL_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # 63 bytes: NAMEDATALEN
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
    """Return a type as its row on a shard has it; None for a row that cannot be read."""
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
    if exceeds_bounds(msgspec.json.encode(settings)):
        yield f"defaultSettings: expected {BOUNDS_TEXT}, got more"
    if any("\0" in text for text in _texts(settings)):
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


def _base_problems(one: ResourceType) -> Iterator[str]:
    ids = {"tenantColumn": (one.tenant_column, "id"), "idColumn": (one.id_column, "resourceId")}
    for member, (name, default) in ids.items():
        if name != default and not _SQL_NAME.fullmatch(name):
            yield f"{member}: expected {default}, or a-z or _, then up to 62 of a-z, 0-9, _, got {name[:64]!r}"
    if len(set(one.base_columns)) < len(one.base_columns):
        yield "tenantColumn, idColumn: expected two names other than those of the columns data and date"


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


def _texts(value: Any) -> Iterable[str]:
    """Yield the texts in a JSON value, names of members among them."""
    match value:
        case str():
            yield value
        case dict():
            for name, inner in value.items():
                yield name
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)
