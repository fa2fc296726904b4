"""Settings of databases as their owners make them: each of them changes what a statement means, or whether it runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from support.postgres.databases import database_of, execute
from support.postgres.pooler import running_pooler

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.postgres.address import ShardAddress

OTHER_SETTINGS: Final = {
    "client_min_messages": "error",
    "default_transaction_isolation": "'repeatable read'",
    "TimeZone": "'Asia/Kathmandu'",
    "DateStyle": "'German'",
    "IntervalStyle": "'sql_standard'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "off",
    "client_encoding": "'LATIN1'",
    "extra_float_digits": "-15",
    "row_security": "off",
    "jit": "on",
    "jit_above_cost": "0",
    "plan_cache_mode": "'force_custom_plan'",
    "search_path": "decoys, public",
    "lock_timeout": "'1ms'",
    "statement_timeout": "'10ms'",
    "idle_in_transaction_session_timeout": "'100ms'",
    "transaction_timeout": "'200ms'",
}
DECOYS: Final = """
CREATE SCHEMA decoys;
CREATE TABLE decoys.tenants (id text);
CREATE TABLE decoys.resources (id text);
CREATE FUNCTION decoys.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''epoch''::timestamptz'
"""
DIRECTLY: Final = "directly"
POOLED: Final = "through a pooler"
WAYS: Final = [DIRECTLY, POOLED]
POOLER_SETTINGS: Final = {"auth_type": "any", "pool_mode": "transaction", "default_pool_size": 4}


async def isolate(address: ShardAddress, level: str) -> None:
    setting = f"ALTER DATABASE {database_of(address)} SET default_transaction_isolation = '{level}'"
    await execute(address.connection_string, setting)


async def set_otherwise(address: ShardAddress) -> None:
    await execute(address.connection_string, DECOYS)
    lines = [f"ALTER DATABASE {database_of(address)} SET {name} = {value}" for name, value in OTHER_SETTINGS.items()]
    await execute(address.connection_string, ";".join(lines))


@contextlib.asynccontextmanager
async def reached(way: str, server: PostgresServer, *addresses: ShardAddress) -> AsyncIterator[list[ShardAddress]]:
    """Give the addresses of shards of *server*: as they are, or behind a pooler in transaction mode."""
    if way == DIRECTLY:
        yield [*addresses]
        return
    async with running_pooler(server, POOLER_SETTINGS) as port:
        yield [
            ShardAddress(address.shard_id, f"postgresql://guest@{HOST}:{port}/{database_of(address)}")
            for address in addresses
        ]
