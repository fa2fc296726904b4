"""Open a connection to a shard: host by host, and only to the database of that shard."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

import asyncpg

from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import HostPort, ShardAddress, places_of, split_string, without_hosts
from simplu_worker.shards.postgres.errors import WrongDatabaseError, wrong_shard_message
from simplu_worker.shards.postgres.queries import DEFAULT_HOME, QUERIES, at_home
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

DEFAULT_PORT: Final = 5432
ENCODING: Final = "UTF8"  # others lack characters, and with SQL_ASCII jsonb refuses escapes of those beyond ASCII
STATEMENT_CACHE_SIZE: Final = 100  # prepared statements per connection; asyncpg's default
USER_TIMEOUT_MS: Final = 10_000  # until a connection with unacknowledged data is ended
NO_SCHEMA: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
# Probes of an idle connection, so that a dead one is noticed: first after 10 s, then every 5 s, dead after three.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class TargetSessionAttrs(StrEnum):
    """The kind of server to connect to, as in libpq's `target_session_attrs`."""

    ANY = "any"
    READ_WRITE = "read-write"
    PRIMARY = "primary"
    STANDBY = "standby"


IS_TARGET: Final[Mapping[TargetSessionAttrs, Callable[[asyncpg.Record], bool]]] = {
    TargetSessionAttrs.ANY: lambda _: True,
    TargetSessionAttrs.READ_WRITE: lambda server: not server["is_read_only"],
    TargetSessionAttrs.PRIMARY: lambda server: not server["is_standby"],
    TargetSessionAttrs.STANDBY: lambda server: bool(server["is_standby"]),
}


def _at_home(method: Callable[..., Any]) -> Callable[..., Any]:

    def call(connection: ShardConnection, query: str, *args: Any, **options: Any) -> Any:
        return method(connection, at_home(query, connection.home), *args, **options)

    return call


def _in_transaction(method: Callable[..., Any]) -> Callable[..., Any]:

    def call(connection: ShardConnection, query: str, *args: Any, **options: Any) -> Any:
        query, begin = at_home(query, connection.home), connection.begin_single
        if begin is None or connection.is_in_transaction():
            return method(connection, query, *args, **options)
        return connection.run_in_transaction(begin, partial(method, connection, query, *args, **options))

    return call


class ShardConnection(asyncpg.Connection):
    """A connection to a shard; the SQL texts that it runs are for the shard's `home`.

    Behind a pooler a statement outside a transaction gets one of its own, opened by `begin_single`.
    """

    __slots__ = ("begin_single", "generation", "home", "opened_at", "place", "settings")

    begin_single: str | None  # None: the session is its own, or the caller runs its statements as they are
    generation: int | None  # of a pool; None beside one
    home: str
    opened_at: float
    place: HostPort
    settings: str  # the statements that make the settings which its session lacks, for each transaction

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.begin_single = None
        self.generation = None
        self.home = DEFAULT_HOME
        self.settings = ""
        enable_keepalive(transport.get_extra_info("socket"))

    @contextlib.contextmanager
    def working_in(self, home: str) -> Iterator[None]:
        """Run the SQL texts of the block for another schema."""
        before, self.home = self.home, home
        try:
            yield
        finally:
            self.home = before

    async def send(self, statements: str) -> None:
        """Run *statements* in one round trip and as they are."""
        await super().execute(statements)

    execute = _in_transaction(asyncpg.Connection.execute)
    fetch = _in_transaction(asyncpg.Connection.fetch)
    fetchrow = _in_transaction(asyncpg.Connection.fetchrow)
    fetchval = _in_transaction(asyncpg.Connection.fetchval)
    fetchmany = _in_transaction(asyncpg.Connection.fetchmany)
    prepare = _at_home(asyncpg.Connection.prepare)
    cursor = _at_home(asyncpg.Connection.cursor)

    async def run_in_transaction(self, begin: str, run: Callable[[], Awaitable[Any]]) -> Any:
        """Run a statement in a transaction of its own."""
        await self.send(begin)
        try:
            result = await run()
        except asyncpg.PostgresError:
            if not self.is_closed():
                await self.send("ROLLBACK")
            raise
        await self.send("COMMIT")
        return result


def enable_keepalive(endpoint: socket.socket) -> None:
    """Let the system notice within seconds that the peer of a connection is gone."""
    if endpoint.family == socket.AF_UNIX:
        return
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in [*KEEPALIVE.items(), ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS)]:
        if hasattr(socket, name):  # not every system has all of them
            endpoint.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Connector:
    """The connector to one address, with the last good host, and whether there is a pooler.

    Behind a pooler nothing is prepared, and each transaction makes all settings: the next one may run on another
    server.
    """

    def __init__(self, address: ShardAddress, *, timeouts: ShardTimeouts) -> None:
        self._address = address
        self._timeouts = timeouts
        self._places: list[HostPort] = []
        self.has_pooler = False

    async def connect(self, *, within_s: float) -> ShardConnection:
        """Open a connection to the first host with a server of the wanted kind, each within its share of the time.

        Raises the last host's error: `WrongDatabaseError`, `OSError`, or an error of asyncpg.
        """
        if not self._places:
            self._places = places_of(self._address.connection_string)
        end = loop_time() + within_s
        error: Exception | None = None
        places = self._places
        target = target_of(self._address.connection_string, places)
        for number, place in enumerate(places):
            try:
                async with asyncio.timeout((end - loop_time()) / (len(places) - number)):
                    connection = await self._connect_to(place, target)
            except TimeoutError as exc:
                self.put_last(place)  # a timeout costs most
                error = exc
            except Exception as exc:  # noqa: BLE001  # the next host may work; if none does, the caller translates the last error
                error = exc
            else:
                self._places = [place, *(other for other in self._places if other != place)]
                return connection
        raise error or ValueError("expected a host")

    def put_last(self, place: HostPort) -> None:
        """Try a host only after all others."""
        self._places = [*(other for other in self._places if other != place), place]

    async def _connect_to(self, place: HostPort, target: TargetSessionAttrs) -> ShardConnection:
        prepares = not self.has_pooler
        connection = await self._open(place)
        try:
            server = await self._inspect_server(connection)
            if prepares and server["pid"] != connection.get_server_pid():
                self.has_pooler = True
                connection.terminate()
                connection = await self._open(place)
                server = await self._inspect_server(connection)
            self._check_server(server, target)
            await self._set_up(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _open(self, place: HostPort) -> ShardConnection:
        connection: ShardConnection = await asyncpg.connect(
            **connect_options(self._address, place),
            target_session_attrs=asyncpg.connect_utils.SessionAttribute.any,  # checked here, in one query
            command_timeout=self._timeouts.reply_s,
            statement_cache_size=0 if self.has_pooler else STATEMENT_CACHE_SIZE,
            max_cacheable_statement_size=0,  # of any size: the longest are those of every batch
            connection_class=ShardConnection,
        )
        connection.opened_at = loop_time()
        connection.place = place
        return connection

    async def _inspect_server(self, connection: ShardConnection) -> asyncpg.Record:
        """Inspect the server in a transaction, and note the shard's home."""
        connection.settings = self._timeouts.settings(connection.get_server_version().major, is_own_session=False)
        begin = self._timeouts.begin(settings=connection.settings)
        await connection.send(begin)
        connection.home = (await _fetch_unnamed(connection, QUERIES["find_home"]))["home"] or DEFAULT_HOME
        try:
            return await _fetch_unnamed(connection, QUERIES["inspect_server"])
        except NO_SCHEMA:
            await connection.send(f"ROLLBACK;{begin}")
            return await _fetch_unnamed(connection, QUERIES["inspect_server_without_schema"])
        except asyncpg.InsufficientPrivilegeError as exc:
            shard_id = self._address.shard_id
            raise ShardUnavailableError(
                f"shard {shard_id}: expected a role that may use the shard's tables, got one that may not read "
                f"shard_meta in the schema {connection.home}; as the owner of the tables GRANT it USAGE on the schema, "
                "and SELECT, INSERT, UPDATE and DELETE on all of them, or SELECT on shard_meta if it only reads",
                shard_id=shard_id,
            ) from exc

    async def _set_up(self, connection: ShardConnection) -> None:
        if self.has_pooler:
            connection.begin_single = self._timeouts.begin(settings=connection.settings)
            await connection.send("ROLLBACK")
        else:
            connection.settings = ""
            version = connection.get_server_version().major
            await connection.send(f"ROLLBACK;{self._timeouts.settings(version, is_own_session=True)}")

    def _check_server(self, server: asyncpg.Record, target: TargetSessionAttrs) -> None:
        shard_id = server.get("shard_id", self._address.shard_id)  # a database without a schema has no owner yet
        if shard_id != self._address.shard_id:
            message = wrong_shard_message(self._address.shard_id, shard_id)
            raise WrongDatabaseError(message, shard_id=self._address.shard_id)
        if server["encoding"] != ENCODING:
            raise WrongDatabaseError(
                f"shard {self._address.shard_id}: expected a database with encoding {ENCODING}, got "
                f"{server['encoding']}; create one with ENCODING '{ENCODING}', restore a dump of this one there, and "
                "name it in the connection string",
                shard_id=self._address.shard_id,
            )
        if not IS_TARGET[target](server):
            raise asyncpg.TargetServerAttributeNotMatched(
                f"expected a server that is {target}, got another; correct target_session_attrs or the hosts"
            )


def connect_options(address: ShardAddress, place: HostPort) -> dict[str, Any]:
    """Return the options of `asyncpg.connect` for one host of an address; with IAM it asks for each password."""
    options = {"dsn": without_hosts(address.driver_string), "host": place.host or None, "port": place.port}
    user = address.rds_user
    if user is None:
        return options

    from simplu_worker.aws.clients import make_rds_password  # a command without IAM needs no AWS

    async def make_password() -> str:
        try:
            return await make_rds_password(place.host, place.port or DEFAULT_PORT, user)
        except WorkerError as exc:
            message = address.error_with_place(f"no password by IAM: {exc}")
            raise ShardUnavailableError(message, shard_id=address.shard_id) from exc

    return options | {"password": make_password}


async def _fetch_unnamed(connection: ShardConnection, query: str) -> asyncpg.Record:
    statement = await connection.prepare(query, name="")
    rows: list[asyncpg.Record] = await statement.fetch()
    return rows[0]


def target_of(connection_string: str, places: Sequence[HostPort]) -> TargetSessionAttrs:
    """Return the kind of server to connect to; of several hosts, by default, one that takes writes."""
    wanted = parse_qs(split_string(connection_string).query).get("target_session_attrs")
    if wanted:
        return TargetSessionAttrs(wanted[-1])
    return TargetSessionAttrs.READ_WRITE if len(places) > 1 else TargetSessionAttrs.ANY
