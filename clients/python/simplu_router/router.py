"""The router: a read-only transaction on the shard where a tenant lives, for that tenant alone.

Why no answer is empty or another tenant's: the tenant's row is read in the transaction's own snapshot, `REPEATABLE
READ`. If the row makes the shard the tenant's home, so does everything else in the snapshot. A shard that a tenant left
keeps its rows for a while, and gets no more: while the new shard is not active, the snapshot of the former one has all
rows. The two rows have the same epoch then, so that a shard that the tenant left earlier is not taken for it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg

from simplu_router.errors import NotSeenYetError, RouterError, ShardUnavailableError, TenantUnknownError
from simplu_router.places import Places, Shard

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

HOPS_MAX: Final = 8  # moves followed for one connection
HOMES_MAX: Final = 100_000  # tenants remembered
IS_HOME: Final = frozenset({"active", "fenced"})
MAY_LEAD: Final = IS_HOME | {"moved"}
IS_ARRIVING: Final = frozenset({"incoming", "ready"})

_STANDING: Final = """
SELECT tenants.state, tenants.moved_to, tenants.epoch,
    tenants.state = 'fenced' AND tenants.fenced_until IS NULL AS is_restored,
    pg_catalog.pg_is_in_recovery() AS is_standby, pg_catalog.row_security_active('resources') AS is_restricted,
    $4::pg_catalog.text IS NULL OR EXISTS (SELECT FROM simplu_operation($1, $4)) AS has_seen
FROM (VALUES (1)) AS one LEFT JOIN tenants ON id = $1 AND business_id = $2 AND location_id = $3
"""
# What a server says that is down, starts, stops, or lost its database, as a shard taken away has.
_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a server's farewell that came between two statements
)


@dataclass(frozen=True)
class _Tenant:
    business: str
    location: str
    seen: str | None

    @property
    def key(self) -> str:
        return f"{self.business}-{self.location}"


@dataclass(frozen=True)
class _Visit:
    """An open transaction on a shard, and the tenant's row there; *state* is None without a row."""

    shard_id: str
    connection: PoolConnectionProxy[Any]
    stack: AsyncExitStack
    state: str | None = None
    moved_to: str | None = None
    epoch: int | None = None
    is_restored: bool | None = None
    is_standby: bool = False
    is_restricted: bool = True
    has_seen: bool = False


class Router:
    """Gives connections for one tenant each; close it with `async with`.

    *user* and *password* replace those of the connection strings, which are the worker's: give a role for readers.
    A list of shards is read again after *refresh_s*, and whenever a shard does not answer. *pool_size* connections are
    opened to an address at most; *timeout_s* bounds the wait for one.
    """

    def __init__(
        self,
        places: Places,
        *,
        user: str | None = None,
        password: str | None = None,
        pool_size: int = 8,
        refresh_s: float = 10.0,
        timeout_s: float = 5.0,
    ) -> None:
        self._places = places
        self._user = user
        self._password = password
        self._pool_size = pool_size
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s
        self._shards: dict[str, Shard] = {}
        self._read_at: float | None = None
        self._homes: dict[str, str] = {}  # by tenant: the shard that was its home last
        self._pools: dict[str, asyncpg.Pool[Any]] = {}  # by connection string
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def connection(
        self, business: str, location: str, *, replica: bool = False, seen: str | None = None
    ) -> AsyncIterator[PoolConnectionProxy[Any]]:
        """Give a connection in a read-only transaction, with `simplu.tenant` set.

        *seen* is the `requestId` of an operation whose effect the transaction has to show. With *replica* the standby
        of the home answers if it shows that, otherwise the primary. Raises `RouterError`.
        """
        if replica and seen is None:
            raise ValueError("A replica may be behind: name in `seen` the requestId that the answer has to include.")
        async with AsyncExitStack() as stack:
            visit = await self._find(stack, _Tenant(business, location, seen), replica=replica)
            try:
                yield visit.connection
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
                if not _is_lost(visit.connection) and not isinstance(exc, asyncpg.AdminShutdownError):
                    raise
                raise ShardUnavailableError(f"Shard {visit.shard_id} went away during the read: repeat it.") from exc

    async def _find(self, stack: AsyncExitStack, tenant: _Tenant, *, replica: bool) -> _Visit:
        await self._refresh()
        if replica and (visit := await self._visit_standby(stack, tenant)) is not None:
            return visit
        try:
            visit = await self._follow(stack, tenant)
        except ShardUnavailableError:
            await stack.aclose()
            self._homes.pop(tenant.key, None)
            await self._refresh(at_once=True)
            visit = await self._follow(stack, tenant)
        if visit.is_restored:
            raise ShardUnavailableError(f"The tenant {tenant.key} is being restored: try again later.")
        if not visit.has_seen:
            raise NotSeenYetError(f"The operation {tenant.seen} of {tenant.key} is not applied yet: try again later.")
        if len(self._homes) >= HOMES_MAX:
            self._homes.clear()
        self._homes[tenant.key] = visit.shard_id
        return visit

    async def _refresh(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and self._read_at is not None and now - self._read_at < self._refresh_s:
            return
        try:
            self._shards = await self._places.list_shards()
        except ShardUnavailableError:
            if not self._shards:
                raise
        self._read_at = now

    async def _visit_standby(self, stack: AsyncExitStack, tenant: _Tenant) -> _Visit | None:
        shard_id = self._homes.get(tenant.key) or await self._places.find_shard(tenant.key)
        shard = self._shards.get(shard_id or "")
        if shard_id is None or shard is None or shard.standby_url is None:
            return None
        try:
            visit = await self._visit_at(stack, shard_id, shard.standby_url, tenant)
        except ShardUnavailableError:
            return None
        if visit.state in IS_HOME and visit.has_seen and not visit.is_restored:
            return visit
        await visit.stack.aclose()
        return None

    async def _follow(self, stack: AsyncExitStack, tenant: _Tenant) -> _Visit:
        """Return a visit to the tenant's home; to the one it left, while the next one is not active."""
        shard_id = self._homes.get(tenant.key) or await self._places.find_shard(tenant.key)
        visit = await self._visit(stack, shard_id, tenant) if shard_id is not None else None
        if visit is None or visit.state not in MAY_LEAD:
            visit = await self._search(stack, tenant)
        for _ in range(HOPS_MAX):
            if visit.state in IS_HOME:
                return visit
            following = await self._visit(stack, visit.moved_to or "", tenant)
            if following.state in IS_ARRIVING and following.epoch == visit.epoch:
                await following.stack.aclose()
                return visit
            await visit.stack.aclose()
            visit = following if following.state in MAY_LEAD else await self._search(stack, tenant)
        raise ShardUnavailableError(f"The tenant {tenant.key} moves faster than it is followed: try again later.")

    async def _search(self, stack: AsyncExitStack, tenant: _Tenant) -> _Visit:
        """Look on all shards, for a tenant that an earlier map placed; without its home, return where it left last."""
        await self._refresh(at_once=True)
        left: _Visit | None = None
        missing: ShardUnavailableError | None = None
        for shard_id in self._shards:
            try:
                visit = await self._visit(stack, shard_id, tenant)
            except ShardUnavailableError as exc:
                missing = exc
                continue
            if visit.state in IS_HOME:
                return visit
            other: _Visit | None = visit
            if visit.state == "moved" and (left is None or (visit.epoch or 0) > (left.epoch or 0)):
                left, other = visit, left
            if other is not None:
                await other.stack.aclose()
        if left is not None:
            return left
        raise missing or TenantUnknownError(f"No shard has the tenant {tenant.key}.")

    async def _visit(self, stack: AsyncExitStack, shard_id: str, tenant: _Tenant) -> _Visit:
        """Visit the primary of a shard, which may be its former standby."""
        shard = self._shards.get(shard_id)
        if shard is None:
            raise ShardUnavailableError(f"Shard {shard_id} is not listed: the map or Citrus has to name it.")
        unavailable = ShardUnavailableError(f"Shard {shard_id} has no primary that answers: try again later.")
        for url in filter(None, (shard.url, shard.standby_url)):
            try:
                visit = await self._visit_at(stack, shard_id, url, tenant)
            except ShardUnavailableError as exc:
                unavailable = exc
                continue
            if not visit.is_standby:
                return visit
            await visit.stack.aclose()
        raise unavailable

    async def _visit_at(self, outer: AsyncExitStack, shard_id: str, url: str, tenant: _Tenant) -> _Visit:
        stack = await outer.enter_async_context(AsyncExitStack())
        try:
            pool = await self._pool(url)
            connection = await stack.enter_async_context(_transaction(pool, self._timeout_s))
            await connection.execute("SELECT pg_catalog.set_config('simplu.tenant', $1, true)", tenant.key)
            row = await connection.fetchrow(
                _STANDING, tenant.key, tenant.business, tenant.location, tenant.seen, timeout=self._timeout_s
            )
        except asyncpg.UndefinedTableError:  # a shard without tenants has no tables yet
            return _Visit(shard_id, connection, stack)
        except _AWAY as exc:
            await stack.aclose()
            raise ShardUnavailableError(f"Shard {shard_id} does not answer ({type(exc).__name__}).") from exc
        visit = _Visit(shard_id, connection, stack, **dict(row or {}))
        if not visit.is_restricted:
            raise RouterError(f"The role on shard {shard_id} sees all tenants: give the router a role for readers.")
        return visit

    async def _pool(self, url: str) -> asyncpg.Pool[Any]:
        if (pool := self._pools.get(url)) is None:
            pool = self._pools[url] = asyncpg.create_pool(
                url,
                min_size=0,
                max_size=self._pool_size,
                timeout=self._timeout_s,
                user=self._user,
                password=self._password,
            )
            self._stack.push_async_callback(pool.close)
        await pool  # does nothing once it is open
        return pool


@asynccontextmanager
async def _transaction(pool: asyncpg.Pool[Any], timeout_s: float) -> AsyncIterator[PoolConnectionProxy[Any]]:
    """Give a connection in a transaction, whose end is no error if the server went away: it only read."""
    connection = await pool.acquire(timeout=timeout_s)
    transaction = connection.transaction(isolation="repeatable_read", readonly=True)
    try:
        await transaction.start()
        yield connection
    finally:
        try:
            await transaction.rollback()
        except (*_AWAY, asyncpg.PostgresError):
            with suppress(asyncpg.InterfaceError):  # it is no longer the pool's
                connection.terminate()
        finally:
            with suppress(*_AWAY, asyncpg.PostgresError):
                await pool.release(connection)


def _is_lost(connection: PoolConnectionProxy[Any]) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # so lost that the pool has taken it back
        return True
