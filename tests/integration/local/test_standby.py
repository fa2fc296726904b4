"""A streaming standby for real: it follows, falls behind, and replaces the server that it was copied from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.postgres.standby import StandbyServer, can_copy
from support.requires import require

from simplu_local.postgres.server import PostgresPrograms, PostgresServer, find_postgres_bin
from simplu_local.processes.loopback import StackError
from simplu_local.processes.watchdog import ProcessGroup

pytestmark = pytest.mark.slow(4)


@pytest.fixture
async def standby() -> AsyncIterator[StandbyServer]:
    """Give a standby that streams from a server with a table of numbers."""
    try:
        find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    with ProcessGroup() as group:
        programs = PostgresPrograms.find(group.directory)
        require("pg_basebackup", found=can_copy(programs.folder), how="install simplu-worker[local]")
        primary = PostgresServer(group, programs, database="kept")
        await primary.start()
        await run(primary, "CREATE TABLE numbers (n int)")
        follower = StandbyServer(group, programs, primary, name="follower")
        await follower.start()
        await follower.wait_streaming()
        yield follower


async def run(server: PostgresServer, statement: str) -> None:
    """Run a statement on a new connection."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def numbers_of(server: PostgresServer) -> list[int]:
    """Return the content of the table."""
    connection = await asyncpg.connect(server.url)
    try:
        return [row[0] for row in await connection.fetch("SELECT n FROM numbers ORDER BY n")]
    finally:
        await connection.close()


async def test_standby_has_all_and_takes_no_writes_when_it_has_caught_up(standby: StandbyServer) -> None:
    """Rows that the primary has committed can be read, and not changed."""
    await run(standby.primary, "INSERT INTO numbers VALUES (1)")
    await standby.catch_up()
    assert await numbers_of(standby) == [1]
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await run(standby, "INSERT INTO numbers VALUES (2)")


async def test_standby_lacks_what_was_committed_after_it_fell_behind_when_promoted(standby: StandbyServer) -> None:
    """Commits of a primary that no standby received are lost with it, and its successor continues without them."""
    await run(standby.primary, "INSERT INTO numbers VALUES (1)")
    await standby.catch_up()
    await standby.fall_behind()
    await run(standby.primary, "INSERT INTO numbers VALUES (2)")
    await standby.primary.kill()
    await standby.promote()
    await run(standby, "INSERT INTO numbers VALUES (3)")
    assert await numbers_of(standby) == [1, 3]


async def test_standby_of_a_promoted_one_takes_the_place_of_the_first(standby: StandbyServer) -> None:
    """Servers alternate: each one's successor is created at its predecessor's address, also after a restart."""
    first = standby.primary
    await first.discard()
    await standby.promote()
    await standby.kill()
    await standby.start()
    next_one = StandbyServer(standby._group, standby._programs, standby, name="next", port=first.port)
    await next_one.start()
    await next_one.wait_streaming()
    await run(standby, "INSERT INTO numbers VALUES (1)")
    await standby.discard()
    await next_one.promote()
    await run(next_one, "INSERT INTO numbers VALUES (2)")
    assert await numbers_of(next_one) == [1, 2]
    assert next_one.url == first.url


async def test_commit_waits_for_a_synchronous_standby_when_that_falls_behind(standby: StandbyServer) -> None:
    """A client gets no answer to a commit before the standby has it, so no acknowledged commit is lost."""
    await standby.make_synchronous()
    await run(standby.primary, "INSERT INTO numbers VALUES (1)")
    await standby.fall_behind()
    connection = await asyncpg.connect(standby.primary.url)
    with pytest.raises(TimeoutError):
        await connection.execute("INSERT INTO numbers VALUES (2)", timeout=0.3)
    connection.terminate()
    await standby.primary.kill()
    await standby.promote()
    await run(standby, "INSERT INTO numbers VALUES (3)")
    assert await numbers_of(standby) == [1, 3]


async def test_standby_says_so_when_it_cannot_be_copied(standby: StandbyServer) -> None:
    """The error of a primary that is down quotes pg_basebackup, within the time of a start."""
    await standby.primary.kill()
    another = StandbyServer(standby._group, standby._programs, standby.primary, name="another")
    with pytest.raises(StackError, match="pg_basebackup of Postgres another failed"):
        await another.start()
