"""Wait until commits on a shard are as safe as the shard can make them: before messages are deleted.

Why it holds: one answer of one server shows that the operations are in its log, or that the server is still in the run
that the transaction noted. So a promoted replica without them, or a crash before they reached the disk, is noticed.
From then on positions of the write-ahead log are compared, while the server stays the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.durability import ReplicationFacts, Server, StandbyWatch, facts_of
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.postgres.pool import Connection, Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import CommitSafety

PAUSE_FIRST_S: Final = 0.002  # a nearby standby has a commit on disk within milliseconds
PAUSE_MAX_S: Final = 0.1
WRITE_S: Final = 5.0  # for the commit that waits for the synchronous standbys
CANCEL_S: Final = 3.0
WARNED: Final = frozenset({CommitSafety.LAGGING, CommitSafety.UNKNOWN})

Key: TypeAlias = tuple[str, str]  # tenant id and request id

log = structlog.get_logger(__name__)


class _CommitWait(msgspec.Struct, eq=False):
    keys: Sequence[Key] = ()
    server: Server | None = None
    position: int | None = None  # from the first check on: all of the commits are before it
    is_over: bool = False
    error: RetryableError | None = None

    def finish(self, error: RetryableError | None = None) -> None:
        self.is_over, self.error = True, error


class ReplicationWaiter:
    """The waiter for the replication of commits on the shards of *pools*."""

    def __init__(self, pools: Pools, *, write_s: float = WRITE_S, clock: Callable[[], float] = loop_time) -> None:
        self._pools = pools
        self._write_s = write_s
        self._clock = clock
        self._shards: dict[str, _ShardReplication] = {}

    async def wait_for_operations(self, shard_id: str, operations: Sequence[Operation]) -> None:
        """Wait until operations that are in a shard's log are safe there.

        Raises `RetryableError` when the shard does not confirm them, or has lost them: apply them again.
        """
        if operations:
            keys = [(operation.tenant_id, operation.request_id) for operation in operations]
            await self._wait(shard_id, _CommitWait(keys=keys))

    async def wait_for_transaction(self, shard_id: str, server: Server, *, within_s: float | None = None) -> None:
        """Wait until a committed transaction is safe; *server* is the result of `note_server` in it.

        Raises as `wait_for_operations`, also after *within_s*: then the caller must repeat the transaction.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._wait(shard_id, _CommitWait(server=server))
        except TimeoutError:
            raise RetryableError(f"shard {shard_id}: its commit is not known to be safe yet") from None

    async def wait_for_read(self, shard_id: str, facts: ReplicationFacts) -> None:
        """Wait until everything is safe that an answer with *facts* has shown. Raises as `wait_for_operations`."""
        if not self.is_read_safe(shard_id, facts):
            await self.wait_for_transaction(shard_id, facts.server)

    def is_read_safe(self, shard_id: str, facts: ReplicationFacts) -> bool:
        """Return whether *facts* tell that no standby is awaited, or each has all that they show."""
        return self._shard(shard_id).is_safe(facts)

    def note(self, shard_id: str, facts: ReplicationFacts) -> None:
        """Note the facts of an answer that no commit waited for."""
        self._shard(shard_id).note_between(facts)

    def _shard(self, shard_id: str) -> _ShardReplication:
        shard = self._shards.get(shard_id)
        if shard is None:
            shard = self._shards[shard_id] = _ShardReplication(shard_id, self._pools, self._write_s, self._clock)
        return shard

    async def _wait(self, shard_id: str, wait: _CommitWait) -> None:
        started = self._clock()
        await self._shard(shard_id).wait(wait)
        instruments.SHARD_COMMIT_WAIT.labels(shard_id).observe(self._clock() - started)


class _ShardReplication:
    def __init__(self, shard_id: str, pools: Pools, write_s: float, clock: Callable[[], float]) -> None:
        self._shard_id = shard_id
        self._pools = pools
        self._write_s = write_s
        self._clock = clock
        self._checking = asyncio.Lock()
        self._waits: list[_CommitWait] = []
        self._watch = StandbyWatch()
        self._reported: tuple[CommitSafety, list[str]] | None = None

    async def wait(self, wait: _CommitWait) -> None:
        self._waits.append(wait)
        try:
            async with self._checking:
                pause_s = PAUSE_FIRST_S
                while not wait.is_over:
                    await self._check_all()
                    if not wait.is_over:
                        await asyncio.sleep(pause_s)
                        pause_s = min(2 * pause_s, PAUSE_MAX_S)
        finally:
            if not wait.is_over:  # cancelled
                self._waits.remove(wait)
        if wait.error is not None:
            raise wait.error

    def is_safe(self, facts: ReplicationFacts) -> bool:
        """Return whether *facts* alone show that all is safe.

        Those of another server than the last known one show nothing.
        """
        if self._watch.server not in (None, facts.server):
            return False
        self._note(facts)
        return not facts.needs_write and not self._watch.standbys_behind(facts.position)

    def note_between(self, facts: ReplicationFacts) -> None:
        if self._watch.server is not None and facts.server < self._watch.server:
            return
        self._watch.note(facts, now=self._clock())
        if self._reported is not None:
            self._report()

    async def _check_all(self) -> None:
        waits = self._waits.copy()  # a wait that starts during the check is not part of it
        try:
            await self._check(waits)
        except RetryableError as exc:
            for wait in waits:
                wait.finish(exc)
        self._waits = [wait for wait in self._waits if not wait.is_over]

    async def _check(self, waits: Sequence[_CommitWait]) -> None:
        new = [wait for wait in waits if wait.position is None]
        async with self._pools.pool_of(self._shard_id).connection() as connection:
            facts, unlogged = await _read_replication(connection, new)
            self._note(facts)
            servers = {facts.server}
            if facts.needs_write and (new or facts.is_synchronous):
                server, unlogged_since = await self._write_marker(connection, new)
                servers.add(server)
                unlogged |= unlogged_since
        for wait in waits:
            noted = wait.server or facts.server
            if id(wait) in unlogged or servers != {noted}:
                wait.finish(self._error("has another server now, or lost its last commits"))
                continue
            if wait.position is None:
                wait.server, wait.position = noted, facts.position
            if facts.is_synchronous or not self._watch.standbys_behind(wait.position):
                wait.finish()

    async def _write_marker(self, connection: Connection, new: Sequence[_CommitWait]) -> tuple[Server, set[int]]:
        warnings: list[object] = []

        def note(_: object, message: object) -> None:
            warnings.append(message)

        connection.add_log_listener(note)
        try:
            async with asyncio.timeout(self._write_s):  # with the COMMIT, which is a request of its own behind a pooler
                row = await connection.fetchrow(QUERIES["write_marker"], *_keys(new))
        except TimeoutError:
            # Closed, because each would occupy a connection of the server until the standby is back.
            with contextlib.suppress(Exception):
                await connection.close(timeout=CANCEL_S)
            raise self._error(f"did not confirm a commit within {self._write_s:g} s") from None
        finally:
            connection.remove_log_listener(note)
        if row is None or warnings:
            raise self._error("did not wait for its standbys: the wait was cancelled")
        return server_of(row), _unlogged(row, new)

    def _note(self, facts: ReplicationFacts) -> None:
        self._watch.note(facts, now=self._clock())
        self._report()

    def _error(self, what: str) -> RetryableError:
        return RetryableError(f"shard {self._shard_id} {what}")

    def _report(self) -> None:
        safety, standbys = self._watch.safety, self._watch.awaited
        if (safety, standbys) == self._reported:
            return
        self._reported = safety, standbys
        for one in CommitSafety:
            instruments.SHARD_COMMIT_SAFETY.labels(self._shard_id, one).set(one is safety)
        report = log.warning if safety in WARNED else log.info
        report("commit_safety.changed", shard_id=self._shard_id, safety=safety, standbys=standbys)


async def note_server(connection: Connection) -> Server:
    """Return the server that this transaction commits on, for `ReplicationWaiter.wait_for_transaction`."""
    return server_of(await connection.fetchrow(QUERIES["note_server"]))


def server_of(row: Any) -> Server:
    """Return the server of the columns of `note_server`, which other statements have as well."""
    return Server(row["timeline"], row["started_at"])


async def _read_replication(connection: Connection, new: Sequence[_CommitWait]) -> tuple[ReplicationFacts, set[int]]:
    row: Any = await connection.fetchrow(QUERIES["read_replication"], *_keys(new))
    *columns, _ = row
    return facts_of(columns), _unlogged(row, new)


def _keys(waits: Sequence[_CommitWait]) -> tuple[list[str], list[str]]:
    keys = [key for wait in waits for key in wait.keys]
    return [tenant_id for tenant_id, _ in keys], [key_of_id(request_id) for _, request_id in keys]


def _unlogged(row: Any, waits: Sequence[_CommitWait]) -> set[int]:
    owners = [id(wait) for wait in waits for _ in wait.keys]
    return {owners[int(index)] for index in row["unlogged"]}
