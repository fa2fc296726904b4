"""A server with a standby that streams from it, for tests that let the standby hang, or take the server's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import asyncpg
from support.postgres.databases import execute, make_template
from support.postgres.standby import StandbyServer, can_copy
from support.requires import require

from simplu_local.postgres.server import PostgresPrograms, PostgresServer, find_postgres_bin
from simplu_local.processes.loopback import StackError, poll_until
from simplu_local.processes.watchdog import ProcessGroup

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Pair:
    """A server with a standby that streams from it."""

    primary: PostgresServer
    standby: StandbyServer

    async def configure(self, name: str, value: str | None) -> None:
        change = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
        await execute(self.primary.url, f"ALTER SYSTEM {change}")
        await execute(self.primary.url, "SELECT pg_reload_conf()")


async def start_pair(group: ProcessGroup) -> Pair:
    programs = PostgresPrograms.find(group.directory)
    require("pg_basebackup", found=can_copy(programs.folder), how="install simplu-worker[local]")
    primary = PostgresServer(group, programs, database="safe")
    await primary.start()
    await execute(primary.url, "ALTER SYSTEM SET wal_level = logical")
    await primary.stop()
    await primary.start()
    await make_template(primary)
    standby = StandbyServer(group, programs, primary, name="follower")
    await standby.start()
    await standby.wait_streaming()
    return Pair(primary, standby)


def require_postgres() -> None:
    try:
        find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))


def running_pair() -> Iterator[Pair]:
    require_postgres()
    with ProcessGroup() as group:
        yield asyncio.run(start_pair(group))


async def restored(pair: Pair) -> AsyncIterator[Pair]:
    """Yield a pair to a test, both of which run on; the next one finds it as it was."""
    yield pair
    pair.standby.resume()
    await pair.standby.wait_streaming()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # nothing there is to be awaited
            await asyncio.sleep(0.01)


async def sender_count_is(pair: Pair, count: int) -> None:
    async def is_so() -> bool:
        return len(await senders(pair)) == count

    assert await poll_until(is_so, within_s=PATIENCE_S), await senders(pair)


async def senders(pair: Pair) -> list[int]:
    connection = await asyncpg.connect(pair.primary.url)
    try:
        return [row["pid"] for row in await connection.fetch("SELECT pid FROM pg_stat_replication")]
    finally:
        await connection.close()
