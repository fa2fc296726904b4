"""Read the other program's table, its contents, and the tenants that own its rows."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from simplu_worker.business_info.finder import BusinessFinder, UnreadableBusinessError
from simplu_worker.business_info.items import Business
from simplu_worker.errors import PermanentError
from simplu_worker.operations.operation import is_id, tenant_id_of
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import make_schema
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES
from simplu_worker.transfers.adoption.plan import (
    NAMED_MAX,
    DuplicateRows,
    FaultyRow,
    Layout,
    OldContents,
    OldTenant,
    Owner,
    SourceLookup,
    layout_of,
    owner_of,
)
from simplu_worker.transfers.sql_files import ADOPTION, QUERIES

OURS: Final = "simplu_adoption"  # the namespace of our tables until the swap


class AdoptionRefusedError(PermanentError):
    """There is nothing to adopt, or a person has to change or choose something first."""

    def __init__(self, shard_id: str, *problems: str) -> None:
        super().__init__("\n".join(f"shard {shard_id}: {problem}" for problem in problems))


class OldTable(msgspec.Struct, frozen=True):
    """The other program's table."""

    oid: int
    home: str
    layout: Layout


async def find_old_table(connection: Connection, shard_id: str) -> OldTable:
    """Return the table to adopt; raise `AdoptionRefusedError` if there is none, or it cannot be adopted."""
    row = await connection.fetchrow(QUERIES["find_old_table"], connection.home)
    if row is None:
        raise AdoptionRefusedError(
            shard_id, "expected a table resources of another program, got none; it cannot be adopted"
        )
    layout = layout_of(dict(zip(row["columns"], row["types"], strict=True)))
    if not isinstance(layout, Layout):
        raise AdoptionRefusedError(shard_id, layout)
    if not row["is_plain"]:
        raise AdoptionRefusedError(shard_id, "expected resources to be a table without partitions or descendants")
    if not (row["is_owner"] and row["may_create"]):
        raise AdoptionRefusedError(
            shard_id,
            "expected a role that owns the table resources and may create schemas in the database and tables "
            "beside it, got another; use the role of the other program in the connection string, or grant these rights",
        )
    return OldTable(row["oid"], connection.home, layout)


async def begin_adoption(connection: Connection, shard_id: str, old_table: OldTable) -> None:
    """Make our tables and those of the adoption, within a transaction."""
    await connection.execute(ADOPTION["adoption_log"])
    with connection.working_in(OURS):
        await make_schema(connection, shard_id)
    await connection.execute(ADOPTION[old_table.layout])
    await connection.execute(ADOPTION["old_rows"])
    await connection.execute(QUERIES["begin_adoption"], shard_id, old_table.oid, old_table.home)


async def read_contents(connection: Connection) -> OldContents:
    """Return the contents of the old table but for duplicates; reads the whole table."""
    contents = OldContents()
    contents.conflicting_names = [row["name"] for row in await connection.fetch(QUERIES["find_conflicting_names"])]
    for row in await connection.fetch(QUERIES["count_old_rows"]):
        contents.add_rows(source_of(row), row["fault"], row["row_count"])
    if contents.fault_counts:
        rows = await connection.fetch(QUERIES["first_faults"], NAMED_MAX)
        contents.faulty = [FaultyRow(row["id"], row["fault"]) for row in rows]
    return contents


async def read_duplicates(connection: Connection, contents: OldContents) -> OldContents:
    """Return *contents* with the duplicates; reads the whole table. The owners are written before."""
    found = msgspec.structs.replace(contents, duplicates=[], duplicate_counts=Counter())
    async for row in connection.cursor(QUERIES["list_duplicates"], prefetch=1000):
        ids = [int(one) for one in row["ids"]]
        found.add_duplicate(
            DuplicateRows(row["source"], row["resource_type"], row["resource_id"], row["row_count"], ids)
        )
    return found


async def find_owner(source: OldTenant, shard_id: str, locator: Locator, business_info: BusinessFinder) -> Owner:
    """Return the tenant of a source by business-info and the locator; raise `RetryableError` if one does not answer."""
    businesses: dict[str, Business | str | None] = {}
    for business_id, location_id in source.candidates:
        if is_id(business_id) and is_id(location_id) and business_id not in businesses:
            try:
                businesses[business_id] = await business_info.find(business_id)
            except UnreadableBusinessError as exc:
                businesses[business_id] = str(exc)
    named = None
    if any(isinstance(business, Business) for business in businesses.values()):
        named = await locator.locate(tenant_id_of(*source.candidates[0]))
    lookup = SourceLookup(businesses, None if named is None else named.shard_id)
    return owner_of(source, lookup, shard_id=shard_id, types=BUSINESS_TYPES)


def source_of(row: Any) -> OldTenant | None:
    """Return the source of a row of the old table, or None if the row names none."""
    if row["source"] is None:
        return None
    return OldTenant(row["source"], row["business_id"], row["location_id"])
