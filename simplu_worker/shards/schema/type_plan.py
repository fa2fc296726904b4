"""What one shard needs so that it has the business types of some files. Pure.

A view is replaced, never dropped and made again: those who may read it still may. So its columns stay as they are, new
ones come last, and the last ones may end as null; every other change is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from simplu_worker.operations.business_types import ResourceType
from simplu_worker.shards.schema.type_files import TypeFile
from simplu_worker.shards.schema.type_indexes import index_changes, index_statements
from simplu_worker.shards.schema.type_views import BASE_TYPES, SQL_TYPES, Columns


class StoredType(msgspec.Struct, frozen=True):
    """The row of a type on a shard. *is_applied*: `types apply` wrote it, and no upgrade overwrites it.

    *tenant_count* counts its tenants in any state but `moved` and `destroyed`.
    """

    name: str
    digest: str | None
    is_applied: bool = False
    tenant_count: int = 0
    views: Sequence[str] = ()
    indexes: Mapping[str, str] = msgspec.field(default_factory=dict)  # `index_statements`


class Relation(msgspec.Struct, frozen=True):
    """A table, a view or the like that has the name of a view, and its columns."""

    is_view: bool
    columns: Columns = ()


class ShardTypes(msgspec.Struct, frozen=True):
    """The types of a shard by name, the relations that have the names of views, and the indexes for lists."""

    types: Mapping[str, StoredType]
    relations: Mapping[str, Relation] = msgspec.field(default_factory=dict)
    indexes: Collection[str] = ()


class TypeChange(StrEnum):
    """What becomes of a type on a shard."""

    NEW = "new"
    CHANGED = "changed"
    TAKEN_OVER = "taken over"  # the same file, which no upgrade overwrites from now on
    CURRENT = "current"
    REMOVED = "removed"
    ABSENT = "absent"  # to be removed, and not there


class TypesPlan(msgspec.Struct, frozen=True):
    """The changes by type, the views that go, and why the shard cannot be changed: then nothing there is.

    *index_statements* build and drop indexes, once the types are written.
    """

    changes: Mapping[str, TypeChange]
    dropped_views: Sequence[str] = ()
    refusals: Sequence[str] = ()
    index_statements: Sequence[str] = ()

    @property
    def to_write(self) -> list[str]:
        """The types to write."""
        return [
            name
            for name, change in self.changes.items()
            if change in {TypeChange.NEW, TypeChange.CHANGED, TypeChange.TAKEN_OVER}
        ]

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
    """Return the plan for the types of *files* and for those to *remove*; all others are left alone.

    *by_upgrade*: the files are those of the package, which leave alone what `types apply` wrote.
    """
    owned = {
        name: file
        for name, file in sorted(files.items())
        if not (by_upgrade and name in shard.types and shard.types[name].is_applied)
    }
    changes = {name: _change(shard.types.get(name), file, by_upgrade=by_upgrade) for name, file in owned.items()}
    changes |= {name: TypeChange.REMOVED if name in shard.types else TypeChange.ABSENT for name in sorted(remove)}
    kept = [one for name, one in shard.types.items() if changes.get(name) in {None, TypeChange.CURRENT}]
    written = {name: owned[name] for name in changes if changes[name] in {TypeChange.NEW, TypeChange.CHANGED}}
    claimed = {view for one in kept for view in one.views} | {view for file in owned.values() for view in file.views}
    had = {view for one in shard.types.values() for view in one.views}
    wanted = [*(one.indexes for one in kept), *(index_statements(file.type) for file in owned.values())]
    indexes = [] if by_upgrade else index_changes(wanted, shard.indexes)
    return TypesPlan(changes, sorted(had - claimed), list(_refusals(shard, written, kept, remove)), indexes)


def _change(stored: StoredType | None, file: TypeFile, *, by_upgrade: bool) -> TypeChange:
    if stored is None:
        return TypeChange.NEW
    if stored.digest != file.digest:
        return TypeChange.CHANGED
    return TypeChange.CURRENT if by_upgrade or stored.is_applied else TypeChange.TAKEN_OVER


def _refusals(
    shard: ShardTypes, written: Mapping[str, TypeFile], kept: Sequence[StoredType], remove: Collection[str]
) -> Iterator[str]:
    owners = {view: one.name for one in kept for view in one.views}
    had = {view for one in shard.types.values() for view in one.views}
    for name, file in written.items():
        for view, resource in file.views.items():
            relation = shard.relations.get(view)
            if view in owners:
                yield f"type {name}: the view {view} is one of the type {owners[view]}; give it another name"
            elif relation is not None and view not in had:
                yield f"type {name}: {view} is there, and no view of a business type; give the view another name"
            elif relation is not None and (problem := _view_problem(relation, resource)) is not None:
                yield f"type {name}: view {view}: {problem}"
    for name in sorted(remove):
        if name in shard.types and (count := shard.types[name].tenant_count):
            yield f"type {name}: expected no tenant of a type to remove, got {count}; move or destroy them first"


def _view_problem(relation: Relation, resource: ResourceType) -> str | None:
    """Return why a view cannot become that of *resource*; None if it can."""
    if not relation.is_view:
        return "expected a view, got a table of that name; give the view another name"
    wanted = [
        *zip(resource.base_columns, BASE_TYPES, strict=True),
        *((one.name, SQL_TYPES[one.type]) for one in resource.columns),
    ]
    for index, ((name, sql_type), got) in enumerate(zip(relation.columns, wanted, strict=False)):
        if got != (name, sql_type):
            return (
                f"expected {name}, {sql_type}, as column {index + 1}, got {got[0]}, {got[1]}; a view keeps its "
                "columns, and new ones come last: put it back, or give the view another name, which makes it anew"
            )
    return None
