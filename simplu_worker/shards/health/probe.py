"""Probe one shard beside its pool: its server, its connections, its schema, its tenants. Changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import asyncpg
import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.shards.apply.durability import facts_of
from simplu_worker.shards.health.assessment import AwaitedType, SchemaCreator, ShardProbe
from simplu_worker.shards.health.moves import MoveEntry
from simplu_worker.shards.health.server_costs import ServerFacts, TableRows
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import check_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import OwnClock

BUSY_TABLES: Final = ("log_rows", "resources")
OWN_CHECKPOINTER_SINCE: Final = 170000  # its view; before, its counts are among those of the background writer
PROBE_S: Final = 2.4  # within `ShardTimeouts.probe_s`: a slow shard has answered, and is not lost

_tables = msgspec.json.Decoder(tuple[TableRows, ...])


class _EndProbeError(WorkerError):
    """The end of a probe without changing the pool's health: the shard answered, but is not usable."""


async def probe_shard(pool: ShardPool, *, counts_tenants: bool = True, within_s: float = PROBE_S) -> ShardProbe:
    """Connect to a shard beside its pool and probe it; facts not read within *within_s* are left out.

    The pool's health does not change from lost to healthy: that is for `ShardPool.probe`. Raises
    `ShardUnavailableError` when the shard does not answer.
    """
    try:
        return await _probe_over(pool, pool.fresh_connection(), counts_tenants=counts_tenants, within_s=within_s)
    except ShardUnavailableError as exc:
        if not pool.has_idle_beside_full_server(exc):
            raise
        try:
            async with asyncio.timeout(2 * within_s):
                return await _probe_over(
                    pool, pool.connection(), counts_tenants=counts_tenants, within_s=within_s, is_used=True
                )
        except TimeoutError:
            raise exc from None


async def _probe_over(
    pool: ShardPool,
    opening: AbstractAsyncContextManager[Connection],
    *,
    counts_tenants: bool,
    within_s: float,
    is_used: bool = False,
) -> ShardProbe:
    """Probe over a connection; *is_used* means one of the pool, where the probe counts as a use."""
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    with contextlib.suppress(_EndProbeError):
        async with opening as connection:
            facts |= await _read_server(connection, pool.clock, connected_s=time.perf_counter() - started)
            try:
                async with asyncio.timeout(max(0.0, started + within_s - time.perf_counter())):
                    await _add_details(connection, pool.address, facts, counts_tenants=counts_tenants)
            except TimeoutError:
                facts["is_cut_short"] = True
            if facts.get("is_cut_short") or facts["is_read_only"] or not (is_used or pool.is_healthy):
                raise _EndProbeError
    return ShardProbe(**facts)


async def _read_server(connection: Connection, clock: OwnClock, *, connected_s: float) -> dict[str, Any]:
    asked_at, started = clock.utc(), time.perf_counter()
    server = await connection.fetchrow(QUERIES["probe_server"])
    response_s = time.perf_counter() - started
    if server is None:
        raise ShardUnavailableError("expected one row about the server, got none")
    return {
        "server_version": server["version"].partition(" ")[0],
        "version_number": server["version_number"],
        "is_standby": server["is_standby"],
        "is_read_only": server["is_read_only"],
        "skew_s": (server["clock"] - asked_at).total_seconds() - response_s / 2,
        "own_ahead_s": clock.ahead_s,
        "connect_s": connected_s,
        "response_s": response_s,
    }


async def _add_details(
    connection: Connection, address: ShardAddress, facts: dict[str, Any], *, counts_tenants: bool
) -> None:
    """Add to *facts* those that are not needed for using the shard, the most important first."""
    if (row := await _read_row(connection, "probe_standby" if facts["is_standby"] else "probe_primary")) is not None:
        facts["lag_s"], facts["lag_bytes"], facts["standby_count"], *replication = row
        facts["replication"] = facts_of(replication) if replication else None
    try:
        schema = await check_schema(connection, address.shard_id)
    except ShardUnavailableError as exc:
        facts["refusal"] = address.without_name(str(exc))
    else:
        facts["schema_version"] = None if schema is None else schema.version
    await _add_columns(connection, "probe_connections", {"used": "connections_used", "room": "connections_max"}, facts)
    await _add_columns(connection, "probe_upgrade", {"is_upgrading": "is_upgrading"}, facts)
    version: int | None = facts.get("schema_version")
    if version is not None:
        facts["gaps"] = [row["stream_shard_id"] for row in await connection.fetch(QUERIES["list_gaps"])]
        facts["moves"] = await _read_moves(connection)
        facts["awaited_types"] = await _read_awaited_types(connection)
    if counts_tenants and version is not None:
        facts["tenant_count"] = await connection.fetchval(QUERIES["count_tenants"])
    if counts_tenants:
        facts["creators"] = await _read_creators(connection)


async def _read_moves(connection: Connection) -> list[MoveEntry]:
    """Return the journal of moves from this shard: at most 600 rows."""
    return [MoveEntry(**dict(row)) for row in await connection.fetch(QUERIES["list_moves"])]


async def _read_awaited_types(connection: Connection) -> list[AwaitedType]:
    rows = await connection.fetch(QUERIES["list_awaited_types"])
    return [AwaitedType(row["business_type"], row["tenant_count"], row["tenant_id"], row["since"]) for row in rows]


async def _read_creators(connection: Connection) -> list[SchemaCreator]:
    try:
        rows = await connection.fetch(QUERIES["probe_creators"])
    except asyncpg.PostgresError:
        if connection.is_closed():
            raise
        return []  # as below
    return [SchemaCreator(row["schema"], row["role"]) for row in rows]


async def _add_columns(connection: Connection, query: str, names: dict[str, str], facts: dict[str, Any]) -> None:
    if (row := await _read_row(connection, query)) is not None:
        facts |= {name: row[column] for column, name in names.items()}


async def _read_row(connection: Connection, query: str, *arguments: object) -> Any:
    try:
        return await connection.fetchrow(QUERIES[query], *arguments)
    except asyncpg.PostgresError:
        if connection.is_closed():
            raise
        return None  # some hosted servers lack such a function, or permit it to no role: no fault of the shard


async def read_server_facts(pool: ShardPool, version_number: int) -> ServerFacts | None:
    """Return the settings and counts of a shard's server; None where the server lacks or hides some, or is too slow."""
    with contextlib.suppress(WorkerError):
        async with pool.fresh_connection() as connection:
            return await _read_facts(connection, version_number)
    return None


async def _read_facts(connection: Connection, version_number: int) -> ServerFacts | None:
    checkpoints = "count_checkpoints" if version_number >= OWN_CHECKPOINTER_SINCE else "count_checkpoints_before_17"
    counted = await _read_row(connection, checkpoints)
    row = await _read_row(connection, "probe_server_costs", BUSY_TABLES)
    if row is None or counted is None or counted["timed"] is None:
        return None
    facts = dict(row) | {"tables": _tables.decode(row["tables"])}
    return ServerFacts(checkpoints_timed=counted["timed"], checkpoints_requested=counted["requested"], **facts)
