"""A look at one shard: its server, its schema, its tenants. Changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from simplu_worker.shards.pools import ShardPool, ShardUnavailableError
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.schema import SchemaState, check_schema

VERSION_MIN = 140000  # contract §10: PostgreSQL 14 or newer


class ShardProbe(msgspec.Struct, frozen=True):
    """What a shard that can be used says of itself.

    *schema_version* and *tenant_count* are None on an empty one; *skew_s* is its clock less ours.
    """

    server_version: str
    schema_version: int | None
    tenant_count: int | None
    skew_s: float


async def probe_shard(pool: ShardPool) -> ShardProbe:
    """Connect to a shard and look at it.

    Raises `ShardUnavailableError` when it does not answer, or when no worker may or can work on it.
    """
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        asked_at = datetime.now(UTC)
        server = await connection.fetchrow(QUERIES["probe_server"])
        answered_at = datetime.now(UTC)
        if server is None:
            raise ShardUnavailableError(f"shard {shard_id}: expected one row about the server, got none")
        if server["version_number"] < VERSION_MIN:
            raise ShardUnavailableError(
                f"shard {shard_id}: expected PostgreSQL {VERSION_MIN // 10000} or newer, got {server['version']}; "
                "upgrade it"
            )
        if server["is_read_only"]:
            raise ShardUnavailableError(
                f"shard {shard_id}: expected a server that can be written to, got a read-only one; "
                "let its connection string name the primary"
            )
        version = tenant_count = None
        if await check_schema(connection, shard_id) is SchemaState.READY:
            identity = await connection.fetchrow(QUERIES["read_identity"])
            version = None if identity is None else identity["version"]
            tenant_count = await connection.fetchval(QUERIES["count_tenants"])
    middle = asked_at + (answered_at - asked_at) / 2
    return ShardProbe(
        server_version=server["version"].partition(" ")[0],
        schema_version=version,
        tenant_count=tenant_count,
        skew_s=(server["clock"] - middle).total_seconds(),
    )
