"""The door to the database that an export writes: its rows, and in the same transaction the position of the shard.

Why two exports at once do no harm: each leaves its token in the row of the shard, and every transaction that writes
locks that row while it has the token. So an export that was killed, or cut off, writes nothing behind the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Final

import asyncpg

from simplu_worker.errors import PermanentError
from simplu_worker.feed.types import Place
from simplu_worker.shards.postgres.address import ShardAddress, places_of
from simplu_worker.shards.postgres.connector import ShardConnection, connect_options
from simplu_worker.shards.postgres.errors import READ_ONLY, ErrorMeaning, meaning_of, state_words
from simplu_worker.shards.postgres.statement_timeouts import FORMATS, set_all
from simplu_worker.transfers.exporting.rules import (
    HAS_POSITIONS,
    LOCK_POSITION,
    MAKE_POSITIONS,
    NOTE_POSITION,
    READ_POSITIONS,
    TAKE_POSITION,
    ExportRow,
    Position,
    all_statements,
    statement_of,
)
from simplu_worker.transfers.importing.queries import QueriesRefusedError, WriteStatements
from simplu_worker.transfers.importing.source import CONNECT_S, SourceReader, SourceUnavailableError, errors_translated

SETTINGS: Final = FORMATS | {
    "search_path": "public",
    "row_security": "off",
    "statement_timeout": "'5min'",
    "lock_timeout": "'1min'",
    "idle_in_transaction_session_timeout": "'5min'",
}
_PASSING: Final = frozenset({ErrorMeaning.TRY_AGAIN, ErrorMeaning.UNAVAILABLE})


class TargetRefusedError(PermanentError):
    """The target does not take a statement: a person has to correct a row there, or the mapping."""


class RowsRefusedError(TargetRefusedError):
    """It does not take one for several rows: by single ones the row at fault is found."""


class TargetDatabase:
    """The database at *address*, and what writes to it."""

    def __init__(self, address: ShardAddress, mapping: Sequence[WriteStatements], token: str) -> None:
        self._address = address
        self.mapping: Mapping[str, WriteStatements] = {one.query.resource_type: one for one in mapping}
        self._token = token

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[TargetSession]:
        """Connect to the first host that takes writes. Raises `SourceUnavailableError`, `QueriesRefusedError`."""
        connection = await self._connect()
        try:
            session = TargetSession(connection, self._address.shard_id, self.mapping, self._token)
            await session.describe()
            yield session
        finally:
            connection.terminate()  # what is not committed is to be forgotten

    async def _connect(self) -> ShardConnection:
        name = self._address.shard_id
        error = SourceUnavailableError(f"{name}: expected a host that takes writes")
        for place in places_of(self._address.connection_string):
            try:
                with errors_translated(name):
                    connection: ShardConnection = await asyncpg.connect(
                        **connect_options(self._address, place),
                        timeout=CONNECT_S,
                        statement_cache_size=0,
                        connection_class=ShardConnection,
                    )
                    await connection.send(set_all("SET", SETTINGS))
                    if not await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
                        return connection
                    connection.terminate()
            except SourceUnavailableError as exc:
                error = exc
        raise error


class TargetSession:
    """A connection to the target."""

    def __init__(
        self, connection: ShardConnection, name: str, mapping: Mapping[str, WriteStatements], token: str
    ) -> None:
        self._connection = connection
        self._name = name
        self._mapping = mapping
        self._token = token

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[SourceReader]:
        """Read within one snapshot."""
        with errors_translated(self._name):
            await self._connection.send("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield SourceReader(self._connection, self._name)
        with errors_translated(self._name):
            await self._connection.send("ROLLBACK")

    async def describe(self) -> None:
        """Have the target look at all statements. Raises `QueriesRefusedError` with every problem."""
        async with self.reading() as reader:
            found = await reader.describe([one.query for one in self._mapping.values()])
            problems = [one for name in self._mapping for one in await self._problems_of(name)]
        self.queries = {one.resource_type: one for one in found}
        if problems:
            raise QueriesRefusedError(*problems)

    async def _problems_of(self, name: str) -> list[str]:
        problems = []
        for kind, sql in zip(("upsert", "delete"), all_statements(self._mapping[name]), strict=True):
            with errors_translated(self._name):
                await self._connection.execute("SAVEPOINT described")
                try:
                    await self._connection.prepare(sql, name="")
                except asyncpg.PostgresError as exc:  # no row was read, so the text has words of the statement alone
                    problems.append(f"{kind} of {name}: {exc.args[0]} ({exc.sqlstate}); correct the statement")
                    await self._connection.execute("ROLLBACK TO SAVEPOINT described")
        return problems

    async def positions(self) -> dict[str, Position]:
        """Return the positions of all shards that were exported."""
        with errors_translated(self._name):
            if not await self._connection.fetchval(HAS_POSITIONS):
                return {}
            rows = await self._connection.fetch(READ_POSITIONS)
        return {row["shard_id"]: _position(row) for row in rows}

    async def take(self, shard_id: str) -> Position:
        """Take the shard from any other export, and return its position; make the table if it is not there."""
        with errors_translated(self._name):
            if not await self._connection.fetchval(HAS_POSITIONS):
                await self._connection.execute(MAKE_POSITIONS)
            return _position(await self._connection.fetchrow(TAKE_POSITION, shard_id, self._token))

    @contextlib.asynccontextmanager
    async def transaction(self, shard_id: str) -> AsyncIterator[None]:
        """Write rows of a shard, all or none. Raises `TargetRefusedError`, also where another export has the shard."""
        with errors_translated(self._name):
            await self._connection.send("BEGIN; SET CONSTRAINTS ALL DEFERRED")
            if await self._connection.fetchrow(LOCK_POSITION, shard_id, self._token) is None:
                await self._connection.send("ROLLBACK")
                raise TargetRefusedError(f"shard {shard_id}: another export has started since; end one of the two")
        try:
            yield
            with self._refusals("the rows of a transaction"):
                await self._connection.send("COMMIT")
        except BaseException:
            if not self._connection.is_closed():
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await self._connection.send("ROLLBACK")
            raise

    async def write(self, rows: Sequence[ExportRow]) -> None:
        """Write rows of one kind by one statement, in a transaction."""
        sql, columns = statement_of(rows, self._mapping)
        with self._refusals(rows[0].key.name, is_of_several=len(rows) > 1):
            await self._connection.execute(sql, *columns)

    async def note(self, shard_id: str, position: Position) -> None:
        """Note the position, in a transaction."""
        with errors_translated(self._name):
            await self._connection.execute(NOTE_POSITION, shard_id, position.basis, *position.place)

    @contextlib.contextmanager
    def _refusals(self, what: str, *, is_of_several: bool = False) -> Iterator[None]:
        with errors_translated(self._name):
            try:
                yield
            except asyncpg.PostgresError as exc:
                code = exc.sqlstate or ""
                if code == READ_ONLY or meaning_of(code) in _PASSING:
                    raise SourceUnavailableError(f"{self._name}: {state_words(code)}") from exc
                if is_of_several:
                    raise RowsRefusedError(what) from exc
                constraint = getattr(exc, "constraint_name", None)
                at = f" by {constraint}" if constraint else ""
                raise TargetRefusedError(
                    f"{self._name}: the target refuses {what}: {state_words(code)}{at}; correct its rows or the"
                    " mapping, and run this again: it continues there"
                ) from exc


def _position(row: asyncpg.Record) -> Position:
    return Position(row["basis"], Place(row["batch_id"], row["position"]))
