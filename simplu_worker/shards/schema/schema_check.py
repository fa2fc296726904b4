"""The schema of a shard: made on an empty one, checked on every other before the first read or write.

This is the only check of tables, primary keys, rights, policies that hide rows, and clocks. It is made when
a pool first uses its address, after an error of the shard, and with each probe, which ends the use of the pool.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from importlib.resources import files
from typing import Final, NamedTuple

import msgspec
import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.operations.business_types import History
from simplu_worker.shards.postgres.errors import foreign_numbers_error, wrong_shard_message
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count, at_home, quote_name, sql_files
from simplu_worker.shards.schema.migrations import (
    Migration,
    MissingPart,
    ShardSchema,
    migration_of,
    refusal_of,
    refusal_of_missing,
    tables_of,
    without_concurrently,
)
from simplu_worker.shards.schema.type_files import (
    INDEX_PREFIX,
    ShardTypes,
    StoredType,
    TypeFile,
    TypesPlan,
    index_statements,
    plan_types,
    read_type,
    stored_type,
    view_statements,
)
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import shard_problem

VIEW: Final = "v"  # pg_class.relkind


async def read_types(connection: Connection, files: Iterable[TypeFile] = ()) -> ShardTypes:
    """Return the types of a shard, and its relations with the names of the views of *files*."""
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
            {} if stored is None else stored.type.histories,
        )
    views = sorted({view for file in files for view in file.views})
    found = await connection.fetch(QUERIES["read_relations"], connection.home, views) if views else []
    relations = {
        row["name"]: list(zip(row["columns"], row["types"], strict=True)) if row["kind"] == VIEW else None
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
        statement = f"DROP VIEW IF EXISTS public.{quote_name(view)}"  # it fails while another object needs the view
        await connection.execute(statement)
    for name in plan.to_remove:
        await connection.execute(QUERIES["remove_business_type"], name)
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
        for statement in view_statements(file.type, server_version=version):
            await connection.execute(statement)
    for name in plan.to_write:
        await _write_histories(connection, name, files[name].type.histories)
    return plan


async def _write_histories(connection: Connection, business_type: str, histories: Mapping[str, History]) -> None:
    """Begin those of *histories* that have not begun, for all tenants of the type that are here; note their days."""
    for name, history in histories.items():
        status = await connection.execute(QUERIES["keep_history"], business_type, name, history.keep_days)
        if not affected_count(status):
            what = history.kept_members, history.keep_days
            await connection.execute(QUERIES["make_history_triggers"])
            await connection.execute(QUERIES["begin_history"], business_type, name, *what)


_MIGRATION = re.compile(r"^(\d{4})_(\w+)\.sql$")


def _migrations() -> list[Migration]:
    matches = [(_MIGRATION.match(file.name), file) for file in sql_files("migrations")]
    return [migration_of(int(match[1]), match[2], file.read_text()) for match, file in matches if match]


def _types() -> dict[str, TypeFile]:
    found = sorted((files("simplu_worker.shards") / "business_types").iterdir(), key=lambda file: file.name)
    return {one.type.name: one for one in (read_type(file.read_text()) for file in found)}


MIGRATIONS = _migrations()  # oldest first
BUSINESS_TYPES = _types()
SCHEMA_VERSION = MIGRATIONS[-1].version


log = structlog.get_logger(__name__)


async def read_schema(connection: Connection, shard_id: str) -> ShardSchema | None:
    """Return the schema of this database, without its business types; None if it is empty.

    Raises `ShardUnavailableError` for another shard's database, and for another program's tables.
    """
    is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"], connection.home) or (False, False)
    if not is_ours:
        if is_empty:
            return None
        raise ShardUnavailableError(
            f"shard {shard_id}: expected an empty database or our schema, got another program's tables; "
            "give it an empty database, or take its tables over with `simplu-worker shards adopt`"
        )
    identity = await connection.fetchrow(QUERIES["read_identity"])
    if identity is None or identity["shard_id"] != shard_id:
        found = None if identity is None else identity["shard_id"]
        raise ShardUnavailableError(wrong_shard_message(shard_id, found))
    return ShardSchema(identity["version"], identity["works_from"], is_behind=identity["is_behind"])


async def check_schema(
    connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS
) -> ShardSchema | None:
    """Return the schema of this database; None if it is empty. All of it is there, and this role may use it.

    Raises `ShardUnavailableError` where it is not so (docs/reading.md), and for the database of another server.
    """
    schema = await read_schema(connection, shard_id)
    if schema is None:
        return None
    refusal = refusal_of(schema, worker_version=migrations[-1].version)
    if refusal is None:
        rows = await connection.fetch(QUERIES["find_missing"], tables_of(schema, migrations))
        refusal = refusal_of_missing([MissingPart(**dict(row)) for row in rows])
    if refusal is not None:
        raise ShardUnavailableError(f"shard {shard_id}: {at_home(refusal, connection.home)}")
    if schema.is_behind:
        raise foreign_numbers_error(shard_id)
    return schema


class ShardNumbers(NamedTuple):
    """The offset of a shard's batch numbers, and whether its log was ahead of its server."""

    offset: int
    is_behind: bool


async def raise_numbers(pool: ShardPool, *, apply: bool) -> ShardNumbers:
    """Raise the numbers of a shard's batches above those in its log, where needed and with *apply*; return them."""
    async with pool.transaction() as connection:
        if await read_schema(connection, pool.address.shard_id) is None:
            raise ShardUnavailableError(f"shard {pool.address.shard_id}: its database is empty")
        offset, is_behind = await connection.fetchrow(QUERIES["read_offset"])
        if is_behind and apply:
            offset = await connection.fetchval(QUERIES["raise_offset"])
    return ShardNumbers(offset, is_behind)


async def has_schema(connection: Connection, pool: ShardPool) -> bool:
    """Return whether the shard has our schema and not an empty database; checked once between two errors of the shard.

    Raises as `check_schema` does, and `ShardUnavailableError` if the clocks of the shard, this machine and AWS are over
    a minute apart.
    """
    address = pool.address
    if pool.checked_address is not address:
        if await check_schema(connection, address.shard_id) is None:
            return False
        shard_ahead_s = (await connection.fetchval(QUERIES["read_clock"]) - pool.clock()).total_seconds()
        if (problem := shard_problem(shard_ahead_s)) is not None:
            raise ShardUnavailableError(f"shard {address.shard_id}: {problem}")
        pool.checked_address, pool.was_found = address, True
    return True


async def ensure_schema(pool: ShardPool) -> None:
    """Make the schema if the shard is empty.

    Idempotent, also with many workers at once. Raises as `check_schema` does.
    """
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        if await check_schema(connection, shard_id) is not None:
            return
    async with pool.transaction() as connection:
        await connection.execute(QUERIES["lock_schema"])
        if await check_schema(connection, shard_id) is not None:
            return
        await make_schema(connection, shard_id)
    log.info("schema.created", shard_id=shard_id, version=SCHEMA_VERSION)


async def make_schema(connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Make tables, business types, their records and the identity in the current namespace, within a transaction."""
    for migration in migrations:
        await connection.execute(without_concurrently(migration.text))
        await connection.execute(QUERIES["record_migration"], migration.version, migration.name, migration.works_from)
    await write_types(connection, BUSINESS_TYPES, by_upgrade=True)
    await connection.execute(QUERIES["record_identity"], shard_id)


REGISTRATION_MOST: Final = timedelta(seconds=30)  # architecture, idea 7


async def check_registration(connection: Connection) -> None:
    """Check that the start of the transaction may be the `created_at` of its tenants. Raises `RetryableError`.

    Operations that arrived long before it are given up.
    """
    if not timedelta() <= await connection.fetchval(QUERIES["transaction_age"]) < REGISTRATION_MOST:
        raise RetryableError("the transaction that inserts tenants took over 30 s")
