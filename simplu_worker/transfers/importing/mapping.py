"""The mapping of a source's tables to resources: the form of the file, and its check against the tables. Pure.

The file has names only, each quoted where it is used. Without a file the source has our own shape.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.operations.operation import ID_MAX, is_id, is_storable

NAME_MAX_BYTES: Final = 63  # PostgreSQL manual, NAMEDATALEN: a longer name is cut off, and may then name another table
TABLES_MAX: Final = 1000
FILE_MAX_BYTES: Final = 1024 * 1024
TENANT_COLUMNS_MAX: Final = 2
KEY_PARTS_MAX: Final = 20
# Linear in the text: it begins at words alone, and no repetition can give back what the one behind it takes.
LONG_KEY: Final = re.compile(
    rb"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){%d}""" % KEY_PARTS_MAX, re.ASCII
)

Name = Annotated[str, msgspec.Meta(min_length=1)]


class MappingRefusedError(PermanentError):
    """The mapping does not fit the source; the text has one line for each problem."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


class TableMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rows of one table become resources.

    *key* are the columns of the resource id, joined by `:`; *tenant* those of business and location, or of one of both.
    *data* are the columns of the members of `data`; without it all columns but those of key, tenant, types, tombstone
    and
    *leave_out*. *created* and *changed* are times; *deleted* is a tombstone: a time, or true. *resource_type_column*
    and
    *data_column* are for tables with rows of all types.
    """

    table: Name
    key: Annotated[list[Name], msgspec.Meta(min_length=1)]
    tenant: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=TENANT_COLUMNS_MAX)]
    schema: Name = "public"
    resource_type: str | None = None
    resource_type_column: Name | None = None
    business_type_column: Name | None = None
    data: dict[str, Name] | None = None
    data_column: Name | None = None
    leave_out: list[Name] = []
    created: Name | None = None
    changed: Name | None = None
    deleted: Name | None = None

    @property
    def name(self) -> str:
        """The table, for people."""
        return f"{self.schema}.{self.table}"

    @property
    def named_columns(self) -> list[str]:
        """Every column that is named, in order, some of them twice."""
        single = filter(None, (self.data_column, self.created, self.changed))
        members = [] if self.data is None else self.data.values()
        return [*self.outer_columns, *single, *members]

    @property
    def outer_columns(self) -> list[str]:
        """The columns that are no members of the document, unless *data* says so."""
        single = filter(None, (self.resource_type_column, self.business_type_column, self.deleted))
        return [*self.key, *self.tenant, *single, *self.leave_out]


class TenantMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tenants are named. *location* is that of tables with one tenant column, the business.

    With *joined* that column has `businessId-locationId`. Without *business_type* business-info has it.
    """

    business_type: str | None = None
    location: str | None = None
    joined: bool = False


class SourceMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mapping of a whole source."""

    tables: Annotated[list[TableMapping], msgspec.Meta(min_length=1, max_length=TABLES_MAX)]
    tenants: TenantMapping = TenantMapping()

    @property
    def digest(self) -> str:
        """A text that differs for every other mapping."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def has_own_types(self) -> bool:
        """Whether each row names the business type of its tenant."""
        return any(table.business_type_column is not None for table in self.tables)


# A table `resources` as reading.md describes it.
OWN_SHAPE: Final = SourceMapping(
    tables=[
        TableMapping(
            table="resources",
            key=["resourceId"],
            tenant=["id"],
            resource_type_column="resourceName",
            business_type_column="businessType",
            data_column="data",
            created="date",
            changed="lastUpdated",
        )
    ],
    tenants=TenantMapping(joined=True),
)


class SourceColumn(msgspec.Struct, frozen=True):
    """A column of the source; *type_name* is quoted SQL of the source's catalog."""

    name: str
    type_name: str


class ReadTable(msgspec.Struct, frozen=True):
    """A table with its mapping, which fits, the column of each member, and the types of the columns."""

    mapping: TableMapping
    members: dict[str, str]
    types: dict[str, str]


def parse_mapping(text: bytes, *, is_json: bool) -> SourceMapping:
    """Return the mapping in *text*, TOML or JSON; raise `ConfigurationError` with every problem."""
    if len(text) > FILE_MAX_BYTES:
        raise ConfigurationError(f"mapping: expected at most {FILE_MAX_BYTES} bytes, got {len(text)}")
    if not is_json and LONG_KEY.search(text):  # the parser of TOML takes the square of their number
        raise ConfigurationError(f"mapping: expected keys of at most {KEY_PARTS_MAX} parts, got one with more dots")
    try:
        decoded: SourceMapping = (
            msgspec.json.decode(text, type=SourceMapping) if is_json else msgspec.toml.decode(text, type=SourceMapping)
        )
    except (ValueError, RecursionError) as exc:  # msgspec's errors, those of its TOML parser, and texts beyond UTF-8
        raise ConfigurationError(f"mapping: {exc}; docs/importing.md has the form") from None
    if problems := list(_problems_of(decoded)):
        raise ConfigurationError(*(f"mapping: {problem}" for problem in problems))
    return decoded


def _problems_of(mapping: SourceMapping) -> Iterable[str]:
    location = mapping.tenants.location
    if location is not None and not is_id(location):
        yield f"tenants.location: expected 1 to {ID_MAX} characters, got {len(location)}"
    for number, table in enumerate(mapping.tables, start=1):
        where = f"table {number}, {table.table}"
        for problem in (*_table_problems(table), *_tenant_problems(table, mapping.tenants)):
            yield f"{where}: {problem}"
    if len({len(table.tenant) for table in mapping.tables}) > 1:
        yield "tenant: expected one column in every table, or two in every table, got both; read a view"


def _table_problems(table: TableMapping) -> Iterable[str]:
    for name in (table.schema, table.table, *table.named_columns):
        if len(name.encode("utf-8", "surrogatepass")) > NAME_MAX_BYTES or not is_storable(name):
            yield f"expected names of at most {NAME_MAX_BYTES} bytes of UTF-8, got {name[:80]!r}"
    if (table.resource_type is None) == (table.resource_type_column is None):
        yield "expected either resource_type or resource_type_column"
    if table.resource_type is not None and not is_id(table.resource_type):
        yield f"resource_type: expected 1 to {ID_MAX} characters, got {len(table.resource_type)}"
    if table.data_column is not None and (table.data is not None or table.leave_out):
        yield "expected data_column alone, or data and leave_out"
    if any(not is_storable(member) for member in table.data or ()):
        yield "data: expected names of members without U+0000, and of UTF-8"


def _tenant_problems(table: TableMapping, tenants: TenantMapping) -> Iterable[str]:
    if len(table.tenant) == TENANT_COLUMNS_MAX and tenants.joined:
        yield "tenant: expected one column, as tenants.joined is set, got two"
    if len(table.tenant) == 1 and not tenants.joined and tenants.location is None:
        yield "tenant: expected the columns of business and location, or one column and tenants.location"


def read_table_of(mapping: TableMapping, columns: Sequence[SourceColumn]) -> ReadTable:
    """Return a table to read; raise `MappingRefusedError` unless *columns* of the source has all that are named."""
    types = {column.name: column.type_name for column in columns}
    if not types:
        raise MappingRefusedError(f"{mapping.name}: expected a table or view of this name that the role may read")
    if missing := sorted({*mapping.named_columns} - types.keys()):
        raise MappingRefusedError(
            f"{mapping.name}: expected the columns {', '.join(missing)}, got {', '.join(sorted(types))}"
        )
    if mapping.data_column is not None:
        return ReadTable(mapping, {}, types)
    members = mapping.data
    if members is None:
        members = {name: name for name in types if name not in mapping.outer_columns}
    return ReadTable(mapping, {member: members[member] for member in sorted(members)}, types)


def names_of(rows: Iterable[Mapping[str, Any]]) -> list[SourceColumn]:
    """Return the columns in rows of the source's catalog."""
    return [SourceColumn(row["name"], row["type_name"]) for row in rows]
