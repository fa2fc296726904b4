"""What a business type is: its settings, and the resource types that it has names, views and JSON Schemas for.

A type is one JSON file (`types apply`), and one row on each shard, which holds the file's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.vocabulary import ColumnType, Validation

# As `resource_columns` (shards/sql/queries/resources.sql), and in their order.
RESOURCE_COLUMNS: Final = ("id", "businessType", "resourceName", "resourceId", "data", "date", "lastUpdated")


class ViewColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A column of a view: the member of the document at *path*, or else at the first of *also_at*, as *type*."""

    name: str
    path: Sequence[str]
    type: ColumnType = ColumnType.TEXT
    also_at: Sequence[Sequence[str]] = ()


ALL_MEMBERS: Final = "all"
FOREVER: Final = "forever"


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of the versions of resources: *members* are those of documents that are kept, or `all`.

    *keep* is `forever`, or days as `90d`, since a version was replaced.
    """

    keep: str
    members: str | Sequence[str] = ALL_MEMBERS

    @property
    def keep_days(self) -> int | None:
        """The days; None for ever."""
        return None if self.keep == FOREVER else int(self.keep.removesuffix("d"))

    @property
    def kept_members(self) -> list[str] | None:
        """The members; None for all."""
        return None if isinstance(self.members, str) else sorted(self.members)


class ResourceType(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Resources that are sent as *name* or one of *also_named*, and stored as *name*.

    *view* names their view. The days of a list are those of the member *date*; the members *filtered* have indexes.
    Both are names of members with dots between.
    """

    name: str
    also_named: Sequence[str] = ()
    view: str | None = None
    columns: Sequence[ViewColumn] = ()
    validation: Validation = Validation.OFF
    schema: dict[str, Any] | None = None
    date: str | None = None
    filtered: Sequence[str] = ()
    history: History | None = None
    tenant_column: str = "id"
    id_column: str = "resourceId"

    @property
    def names(self) -> tuple[str, ...]:
        """All names of its resources."""
        return (self.name, *self.also_named)

    @property
    def date_path(self) -> tuple[str, ...] | None:
        """The path of its date."""
        return None if self.date is None else tuple(self.date.split("."))

    @property
    def filtered_paths(self) -> list[tuple[str, ...]]:
        """The paths of the members that have an index."""
        return [tuple(name.split(".")) for name in self.filtered]

    @property
    def base_columns(self) -> tuple[str, ...]:
        """The columns of its view that are columns of `resources`."""
        return (self.tenant_column, self.id_column, "data", "date", "lastUpdated")


class BusinessType(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A business type; those who work there are resources of *staff_resource_type*."""

    name: str
    default_settings: dict[str, Any]
    staff_resource_type: str
    resource_types: Sequence[ResourceType] = ()

    @property
    def histories(self) -> Mapping[str, History]:
        """The histories of resource types by name."""
        return {one.name: one.history for one in self.resource_types if one.history is not None}

    @property
    def stored_names(self) -> Mapping[str, str]:
        """The names under which resources are stored that are sent under another one, by that one."""
        return {other: one.name for one in self.resource_types for other in one.also_named}
