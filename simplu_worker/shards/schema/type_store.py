"""Read and write the business types of one shard, within a transaction: rows and views together, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.type_files import TypeFile, stored_type
from simplu_worker.shards.schema.type_indexes import INDEX_PREFIX, index_statements
from simplu_worker.shards.schema.type_plan import Relation, ShardTypes, StoredType, TypesPlan, plan_types
from simplu_worker.shards.schema.type_views import drop_statement_of, view_statements

VIEW: Final = "v"  # pg_class.relkind


async def read_types(connection: Connection, files: Iterable[TypeFile] = ()) -> ShardTypes:
    """Return the types of a shard, and the relations that have the names of the views of *files*."""
    rows = await connection.fetch(QUERIES["read_types"])
    types: dict[str, StoredType] = {}
    for row in rows:
        stored = stored_type(row["definition"])
        types[row["name"]] = StoredType(
            row["name"],
            row["digest"],
            row["is_applied"],
            row["tenant_count"],
            [] if stored is None else list(stored.views),
            {} if stored is None else index_statements(stored.type),
        )
    views = sorted({view for file in files for view in file.views})
    found = await connection.fetch(QUERIES["read_relations"], connection.home, views) if views else []
    relations = {
        row["name"]: Relation(row["kind"] == VIEW, list(zip(row["columns"], row["types"], strict=True)))
        for row in found
    }
    indexes = await connection.fetch(QUERIES["read_list_indexes"], connection.home, INDEX_PREFIX)
    return ShardTypes(types, relations, [row["name"] for row in indexes])


async def write_types(
    connection: Connection, files: Mapping[str, TypeFile], *, remove: Collection[str] = (), by_upgrade: bool = False
) -> TypesPlan:
    """Carry out the plan of `plan_types` within a transaction, and return it; nothing if it is refused."""
    if remove:
        await connection.execute(QUERIES["lock_tenants_table"])
    shard = await read_types(connection, files.values())
    plan = plan_types(shard, files, remove=remove, by_upgrade=by_upgrade)
    if plan.refusals:
        return plan
    for view in plan.dropped_views:
        statement = drop_statement_of(view)
        await connection.execute(statement)
    for name in plan.to_remove:
        await connection.execute(QUERIES["remove_business_type"], name)
    there = {view: relation.columns for view, relation in shard.relations.items()}
    version = connection.get_server_version().major
    for name in plan.to_write:
        file = files[name]
        await connection.execute(
            QUERIES["write_business_type"],
            name,
            msgspec.json.encode(file.type.default_settings).decode(),
            file.type.staff_resource_type,
            msgspec.json.encode(file.type.stored_names).decode(),
            file.text,
            file.digest,
            not by_upgrade,
        )
        for statement in view_statements(file.type, server_version=version, there=there):
            await connection.execute(statement)
    return plan
