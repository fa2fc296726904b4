"""A streaming standby of a Postgres server of the embedded stack, which can fall behind and take the server's place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from simplu_local.postgres.server import SUPERUSER, PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import HOST, StackError, poll_until
from simplu_local.processes.watchdog import ProcessGroup

COPY_PROGRAM = "pg_basebackup"
COPY_OPTIONS = ("--wal-method=stream", "--checkpoint=fast", "--no-sync")
WITHIN_S = 60.0
PROMOTION_S = 60
STATE_SQL = "SELECT state FROM pg_stat_replication WHERE application_name = $1"
SYNC_STATE_SQL = "SELECT sync_state FROM pg_stat_replication WHERE application_name = $1"
# No receiver, and all that it had received is replayed: from now on nothing changes here. Of a primary that was killed
# the last record may have come in part: then the replay stands still before it.
IS_CUT_SQL = """
SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)
    AND (
        pg_last_wal_replay_lsn() >= coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        OR pg_last_wal_replay_lsn() = $1::text::pg_lsn
    )
"""
REPLAYED_SQL = "SELECT pg_last_wal_replay_lsn()::text"
STILL_S = 1.0


def can_copy(folder: Path) -> bool:
    """Return whether the programs in *folder* can copy a running server; some installations come without."""
    return (folder / COPY_PROGRAM).is_file()


class CopiedServer(PostgresServer):
    """A copy of *primary*, with the same database and password: a base backup, which begins as a server of its own.

    Its first start copies the primary, which must run. *port* is for one that comes where another was.
    """

    _options: Sequence[str] = COPY_OPTIONS

    def __init__(
        self,
        group: ProcessGroup,
        programs: PostgresPrograms,
        primary: PostgresServer,
        *,
        name: str,
        port: int | None = None,
    ) -> None:
        super().__init__(group, programs, database=primary.database, name=name)
        self.password = primary.password
        self.port = self.port if port is None else port
        self.primary = primary

    async def _initialise(self) -> None:
        if not can_copy(self._programs.folder):
            raise StackError(f"there is no {COPY_PROGRAM} in {self._programs.folder}; install simplu-worker[local]")
        source = f"host={HOST} port={self.primary.port} user={SUPERUSER}"
        await self._create_data(COPY_PROGRAM, "-D", self._data, *self._options, "-d", source)

    async def _create_content(self) -> None: ...


class StandbyServer(CopiedServer):
    """A copy that streams from its primary, and once promoted is a server itself.

    Replication is asynchronous until `make_synchronous`.
    """

    _options = (*COPY_OPTIONS, "--write-recovery-conf")

    async def wait_streaming(self) -> None:
        async def streams() -> bool:
            return bool(await _value(self.primary, STATE_SQL, self._cluster_name) == "streaming")

        await _insist(streams, f"{self.name} streams from {self.primary.name}")

    async def catch_up(self) -> None:
        """Return once it has replayed all that the primary had committed at the call."""
        end = await _value(self.primary, "SELECT pg_current_wal_lsn()::text")

        async def replayed() -> bool:
            return bool(await _value(self, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end))

        await _insist(replayed, f"{self.name} has all of {self.primary.name}")

    async def fall_behind(self) -> None:
        """Receive nothing more: what the primary commits after this never arrives, not even on a promotion."""
        # Not by stopping the receiver's process: what waits in its socket would still come, and a promotion waits
        # until the receiver has ended.
        await _configure(self, "primary_conninfo", "")

        async def is_cut() -> bool:
            replayed = await _value(self, REPLAYED_SQL)
            if await _value(self, IS_CUT_SQL, None):
                return True
            await asyncio.sleep(STILL_S)
            return bool(await _value(self, IS_CUT_SQL, replayed))

        await _insist(is_cut, f"{self.name} has stopped receiving")

    async def make_synchronous(self) -> None:
        await _configure(self.primary, "synchronous_standby_names", f'"{self._cluster_name}"')

        async def waits() -> bool:
            return bool(await _value(self.primary, SYNC_STATE_SQL, self._cluster_name) == "sync")

        await _insist(waits, f"{self.primary.name} waits for {self.name}")

    async def promote(self) -> None:
        """Return once it takes writes, on a timeline of its own; the primary's end is the caller's to see to."""
        if not await _value(self, "SELECT pg_promote(true, $1)", PROMOTION_S):
            raise StackError(f"Postgres {self.name} is not promoted after {PROMOTION_S} s: {self._log_tail()}")


async def _insist(ask: Callable[[], Awaitable[bool]], what: str) -> None:
    if not await poll_until(ask, within_s=WITHIN_S):
        raise StackError(f"expected after {WITHIN_S:.0f} s: {what}")


async def _configure(server: PostgresServer, name: str, value: str) -> None:
    await _value(server, f"ALTER SYSTEM SET {name} = '{value}'")
    await _value(server, "SELECT pg_reload_conf()")


async def _value(server: PostgresServer, query: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(server.url, timeout=WITHIN_S, command_timeout=PROMOTION_S + WITHIN_S)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()
