"""Real trouble for tests: a shard that fails at some resources, a transaction that stops half way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from simplu_local.processes.loopback import poll_until
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool

GATE = 5  # key of the advisory lock behind which a gated transaction waits
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Gate:
    """A place within every transaction that writes the log, behind which it waits while the gate is shut."""

    holder: asyncpg.Connection[Any]

    async def reached(self) -> None:
        """Wait until a transaction stands before the gate."""
        await waiters(self.holder, "locktype = 'advisory'")

    async def open(self) -> None:
        await self.holder.execute("SELECT pg_advisory_unlock_all()")


async def waiters(connection: asyncpg.Connection[Any], condition: str = "true", *, count: int = 1) -> None:
    """Wait until *count* wait for a lock in the database of *connection*."""
    query = (
        f"SELECT count(*) FROM pg_locks WHERE NOT granted AND {condition} AND pid IN"
        " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    )

    async def enough_wait() -> bool:
        return int(await connection.fetchval(query)) >= count

    assert await poll_until(enough_wait, within_s=PATIENCE_S), f"expected {count} to wait for a lock"


async def backends(address: ShardAddress, condition: str = "true") -> int:
    connection = await asyncpg.connect(address.connection_string)
    try:
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        )
        return int(count)
    finally:
        await connection.close()


async def nobody_is_left(address: ShardAddress, condition: str = "true") -> bool:
    """Wait until the server has no such connection; a cancelled query takes a moment."""

    async def nobody() -> bool:
        return await backends(address, condition) == 0

    return await poll_until(nobody, within_s=PATIENCE_S)


async def make_touchy(pool: ShardPool, *, deferred: bool = False) -> None:
    """Let a healthy shard fail at resources with a member `raise` (a code), and sleep at those with `sleep` (s).

    *deferred* lets it fail at the commit.
    """
    moment = "AFTER" if deferred else "BEFORE"
    kind = f"CREATE {'CONSTRAINT ' if deferred else ''}TRIGGER"
    when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    async with pool.connection() as connection:
        await connection.execute(
            f"""
            CREATE FUNCTION be_touchy() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_sleep((NEW.data ->> 'sleep')::float);
                IF NEW.data ? 'raise' THEN RAISE 'a secret' USING ERRCODE = NEW.data ->> 'raise'; END IF;
                RETURN NEW;
            END $$;
            {kind} touchy {moment} INSERT OR UPDATE ON resources {when} FOR EACH ROW EXECUTE FUNCTION be_touchy();
            """
        )


async def calm(pool: ShardPool) -> None:
    async with pool.connection() as connection:
        await connection.execute("DROP FUNCTION be_touchy CASCADE")


@contextlib.asynccontextmanager
async def shut_gate(pool: ShardPool) -> AsyncIterator[Gate]:
    holder = await asyncpg.connect(pool.address.connection_string)
    try:
        await holder.execute(
            f"""
            CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '60s'
            AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
            CREATE TRIGGER gate AFTER INSERT ON log_rows FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate();
            SELECT pg_advisory_lock({GATE});
            """
        )
        yield Gate(holder)
    finally:
        holder.terminate()
