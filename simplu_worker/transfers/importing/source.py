"""The door to the database that an import reads: one read-only snapshot, shared by all connections.

Nothing is written there, and nothing is left behind. The snapshot keeps the server from removing old row versions until
the run ends.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import asyncpg
import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import HostPort, ShardAddress, places_of
from simplu_worker.shards.postgres.connector import ShardConnection, connect_options
from simplu_worker.shards.postgres.errors import (
    READ_ONLY,
    SEE_UPGRADE,
    ErrorMeaning,
    error_words,
    meaning_of,
    state_words,
)
from simplu_worker.shards.settling import TransferRefusedError
from simplu_worker.transfers.importing.queries import (
    DESCRIBE_SOURCE,
    EXPORT_SNAPSHOT,
    IDENTIFY,
    MAY_IDENTIFY,
    QueriesRefusedError,
    RowSelection,
    SourceQuery,
    SourceStatement,
    begin,
    describe_query,
    problem_of_columns,
    problems_of_tenants,
    read_rows,
)
from simplu_worker.transfers.importing.rules import SourceRow

PAGE_MAX_ROWS: Final = 500
PART_MAX_BYTES: Final = 4 * 1024 * 1024  # of documents that are written together
PAGE_OF_DOCUMENTS: Final = 10  # rows: each may be of 16 MB
CONNECT_S: Final = 10.0
VERSION_MIN: Final = 110_000  # the first with sha256()
_SNAPSHOT_ID = re.compile(r"[0-9A-F]+(?:-[0-9A-F]+)*")
# The source's answers to a wrong query, to a value that it cannot represent, or to a role without rights: another try
# gets the same.
_OF_QUERY: Final = ("42", "0A", "3F", READ_ONLY)

Row = asyncpg.Record


class SourceUnavailableError(TransferRefusedError):
    """The source does not answer, or ended the connection: the snapshot is gone with it, and a later run continues."""


class SourceRefusedError(PermanentError):
    """The source does not take a query."""


class QueryFailedError(PermanentError):
    """A query fails at a row; only the tenant of that row cannot be read."""


class SourceFacts(msgspec.Struct, frozen=True):
    """The source of a snapshot, and its time. *identity*, unlike *place*, is the same after a failover."""

    place: str
    identity: str
    taken_at: str


class SourceReader:
    """A connection within a transaction of the database that the variable *name* names."""

    def __init__(self, connection: ShardConnection, name: str) -> None:
        self._connection = connection
        self._name = name

    async def fetch_all(self, statement: SourceStatement) -> list[Row]:
        """Return all rows of a statement."""
        with errors_translated(self._name):
            return list(await self._connection.fetch(statement.sql, *statement.arguments))

    async def read_pages(self, statement: SourceStatement, size: int = PAGE_MAX_ROWS) -> AsyncIterator[list[Row]]:
        """Yield the rows of a statement, at most *size* at a time."""
        with errors_translated(self._name):
            cursor = await self._connection.cursor(statement.sql, *statement.arguments)
        while True:
            with errors_translated(self._name):
                page = list(await cursor.fetch(size))
            if page:
                yield page
            if len(page) < size:
                return

    async def describe(self, queries: Sequence[SourceQuery]) -> list[SourceQuery]:
        """Return the queries with the types of their columns. Raises `QueriesRefusedError` with every problem."""
        described, problems = [], []
        for query in queries:
            with errors_translated(self._name):
                await self._connection.execute("SAVEPOINT described")
                try:
                    statement = await self._connection.prepare(describe_query(query), name="")
                except asyncpg.PostgresError as exc:
                    if not (exc.sqlstate or "").startswith(_OF_QUERY):
                        raise
                    # No row was read, so the text has words of the query alone.
                    problems.append(f"{query.resource_type}: {exc.args[0]} ({exc.sqlstate}); correct the query")
                    await self._connection.execute("ROLLBACK TO SAVEPOINT described")
                    continue
            types = {one.name: one.type.name for one in statement.get_attributes()}
            found = msgspec.structs.replace(query, types=types)
            problem = problem_of_columns(found, len(statement.get_parameters()))
            if problem is None:
                described.append(found)
            else:
                problems.append(problem)
        if problems := problems or problems_of_tenants(described):
            raise QueriesRefusedError(*problems)
        return described

    async def read_rows(self, selection: RowSelection) -> AsyncIterator[list[SourceRow]]:
        """Yield the rows of a selection, at most `PART_MAX_BYTES` of documents at a time, and a page more."""
        part: list[SourceRow] = []
        size = 0
        async for page in self.read_pages(read_rows(selection), PAGE_OF_DOCUMENTS):
            part += [SourceRow(**dict(row)) for row in page]
            size += sum(row["byte_count"] or 0 for row in page)
            if len(part) >= PAGE_MAX_ROWS or size >= PART_MAX_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part


class SourceSnapshot(msgspec.Struct, frozen=True):
    """A snapshot of the source with this *id*: its facts, one reader, and further ones of the same snapshot."""

    source: ImportSource
    place: HostPort
    reader: SourceReader
    facts: SourceFacts
    id: str

    @contextlib.asynccontextmanager
    async def open_reader(self) -> AsyncIterator[SourceReader]:
        """Open another connection within the snapshot."""
        async with self.source.connect_to(self.place, snapshot_id=self.id) as connection:
            yield SourceReader(connection, self.source.name)


class ImportSource:
    """The database at *address*, whose shard id is only for messages."""

    def __init__(self, address: ShardAddress) -> None:
        self._address = address
        self.name = address.shard_id

    @contextlib.asynccontextmanager
    async def open_snapshot(self) -> AsyncIterator[SourceSnapshot]:
        """Take a snapshot of the first host that answers, until the end of the context."""
        async with contextlib.AsyncExitStack() as stack:
            place, connection = await self._connect_to_first(stack)
            with errors_translated(self.name):
                found = await connection.fetchrow(DESCRIBE_SOURCE)
                snapshot_id = await connection.fetchval(EXPORT_SNAPSHOT)
                may_identify = await connection.fetchval(MAY_IDENTIFY)
                server = await connection.fetchval(IDENTIFY) if may_identify else self._address.place
            if found["version"] < VERSION_MIN or found["encoding"] != "UTF8":
                raise SourceRefusedError(
                    f"{self.name}: expected a database of PostgreSQL 11 or newer with encoding UTF8, got version"
                    f" {found['version'] // 10000} with {found['encoding']}; restore a dump of it on such a server"
                )
            facts = SourceFacts(self._address.place, f"{found['database']} of {server}", found["taken_at"])
            yield SourceSnapshot(self, place, SourceReader(connection, self.name), facts, snapshot_id)

    async def _connect_to_first(self, stack: contextlib.AsyncExitStack) -> tuple[HostPort, ShardConnection]:
        error: Exception | None = None
        for place in places_of(self._address.connection_string):
            try:
                return place, await stack.enter_async_context(self.connect_to(place))
            except SourceUnavailableError as exc:
                error = exc
        raise error or SourceUnavailableError(f"{self.name}: expected a host")

    @contextlib.asynccontextmanager
    async def connect_to(self, place: HostPort, *, snapshot_id: str | None = None) -> AsyncIterator[ShardConnection]:
        """Open a read-only transaction: of the given snapshot, or of one of its own."""
        with errors_translated(self.name):
            connection: ShardConnection = await asyncpg.connect(
                **connect_options(self._address, place),
                timeout=CONNECT_S,
                statement_cache_size=0,  # each statement is used once; a pooler need not keep it
                connection_class=ShardConnection,
            )
        try:
            with errors_translated(self.name):
                await connection.execute(begin(connection.get_server_version().major))
                if snapshot_id is not None:
                    await _import_snapshot(connection, snapshot_id, self.name)
            yield connection
        finally:
            connection.terminate()  # nothing is to be committed


async def _import_snapshot(connection: ShardConnection, snapshot_id: str, name: str) -> None:
    if not _SNAPSHOT_ID.fullmatch(snapshot_id):
        raise SourceRefusedError(f"{name}: expected the id of a snapshot of Postgres, got another text")
    try:
        await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot_id}'")
    except asyncpg.PostgresError as exc:  # 42704 or 22023, which otherwise mean a wrong query or row
        raise SourceUnavailableError(
            f"{name}: the snapshot of this run is gone ({exc.sqlstate}): its connection has ended, or"
            " another server answers; run it again"
        ) from exc


@contextlib.contextmanager
def errors_translated(name: str) -> Iterator[None]:
    """Translate errors of the database *name* by code, since its messages may quote rows."""
    try:
        yield
    except asyncpg.PostgresError as exc:
        error = state_words(exc.sqlstate).removesuffix(f"; {SEE_UPGRADE}")
        if meaning_of(exc.sqlstate or "") is ErrorMeaning.DATA:
            raise QueryFailedError(f"a query fails at a row: {error}; correct the query") from exc
        if (exc.sqlstate or "").startswith(_OF_QUERY):
            problem = f"it writes ({READ_ONLY})" if exc.sqlstate == READ_ONLY else error
            raise SourceRefusedError(
                f"{name}: the database does not take a query: {problem}; correct it, or the role's rights"
            ) from exc
        raise SourceUnavailableError(f"{name}: {error}") from exc
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as exc:
        raise SourceUnavailableError(f"{name}: {error_words(exc)}") from exc
    except (ValueError, ArithmeticError, LookupError) as exc:
        # Of the libraries, over the address; not chained, as such an error may quote it.
        raise SourceUnavailableError(f"{name}: {error_words(exc)}") from None
