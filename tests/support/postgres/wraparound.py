"""A Postgres server that has no transaction ids left, and answers 54000 to every write."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import asyncpg

from simplu_local.postgres.server import PostgresServer

SETTINGS: Final = {"wal_level": "logical"}
STOP_BEFORE_END: Final = 3_000_000  # ids that Postgres keeps for a superuser in single-user mode
SEGMENT_IDS: Final = 8192 * 4 * 32  # ids in a file of pg_xact
SEGMENT_BYTES: Final = 8192 * 32


async def use_up_transaction_ids(server: PostgresServer) -> None:
    """Restart a server, with SETTINGS, without any id; a forgotten replication slot keeps vacuum from making room."""
    connection = await asyncpg.connect(server.url_of(server.database))
    await connection.execute("ALTER DATABASE template0 ALLOW_CONNECTIONS true")
    await connection.execute("SELECT pg_create_logical_replication_slot('forgotten', 'pgoutput')")
    oldest = int(await connection.fetchval("SELECT min(datfrozenxid::text::bigint) FROM pg_database"))
    data = Path(await connection.fetchval("SHOW data_directory"))
    await connection.close()
    await server.stop()
    next_id = oldest + 2**31 - 1 - STOP_BEFORE_END
    (data / "pg_xact" / f"{next_id // SEGMENT_IDS:04X}").write_bytes(bytes(SEGMENT_BYTES))
    await server._run("pg_resetwal", "-u", str(oldest), "-x", str(next_id), "-D", str(data))
    await server.start()


async def make_room(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url_of(server.database))
    databases = await connection.fetch("SELECT datname FROM pg_database")
    await connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    await connection.close()
    for row in databases:
        connection = await asyncpg.connect(server.url_of(row["datname"]))
        await connection.execute("VACUUM (FREEZE)")
        await connection.close()
