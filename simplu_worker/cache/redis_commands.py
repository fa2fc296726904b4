"""The door to Redis: the commands that the cache needs, with errors distinguished by class and code.

Imported only when `REDIS_URL` is set: the package `redis` is the extra `cache`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from simplu_worker.cache.invalidations import EPOCH_KEY
from simplu_worker.errors import ConfigurationError, RetryableError
from simplu_worker.network_errors import CLOSED, UNEXPLAINED, network_cause
from simplu_worker.telemetry.log import register_secret, scrub_text

SCAN_COUNT: Final = 1000
CAUSE_MAX_CHARS: Final = 300  # of the server's text in an error

NO_REPLY: Final = (RedisConnectionError, RedisTimeoutError)  # their subclasses have a text of the server


class RedisCommands:
    """One client; every call is tried once, ends within seconds, and raises `RetryableError` without it."""

    def __init__(self, url: str, *, on_connect: Callable[[], None] | None, call_timeout_s: float) -> None:
        self._on_connect = on_connect
        self._call_timeout_s = call_timeout_s
        try:
            # Every server speaks RESP2, and so do proxies.
            self._client: Redis = Redis.from_url(
                url,
                protocol=2,
                socket_connect_timeout=call_timeout_s,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._set_up_connection,
            )
            # The package would send under `asyncio.wait_for`, which loses a cancellation before Python 3.12.
            self._client.connection_pool.connection_kwargs["socket_timeout"] = None
            # This does not connect, but it is the only step that checks the options.
            self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # untyped in redis
        except (ValueError, TypeError, RedisError):  # their texts may show the URL
            raise ConfigurationError("REDIS_URL: expected options that the package redis knows, got others") from None
        if password := self._client.connection_pool.connection_kwargs.get("password"):
            register_secret(str(password))
        self.place = _place_of(url)

    async def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._client.aclose()

    async def ping(self) -> None:
        """Check that Redis answers."""
        async with self._translate_errors():
            await self._client.ping()

    async def send_invalidations(
        self, *, move_epoch: bool, entries: Sequence[str] = (), versions: Sequence[str] = ()
    ) -> int | None:
        """Move the epoch, if asked to, then delete *entries* and increment *versions*, in one round trip.

        Return the new epoch. Where Redis refuses a command, the others have run.
        """
        async with self._translate_errors():
            pipeline = self._client.pipeline(transaction=False)
            if move_epoch:
                pipeline.execute_command("INCR", EPOCH_KEY)
            if entries:
                pipeline.execute_command("DEL", *entries)
            for version in versions:
                pipeline.execute_command("INCR", version)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)  # its own error would show the key
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return int(replies[0]) if move_epoch else None

    async def scan(self, cursor: int, prefix: str) -> tuple[int, list[str]]:
        """Return the next cursor, 0 at the end, and some keys that begin with *prefix*; some may come twice."""
        async with self._translate_errors():
            after, keys = await self._client.scan(cursor=cursor, match=f"{prefix}*", count=SCAN_COUNT)
            return int(after), [_decode(key) for key in keys]

    async def delete(self, keys: Sequence[str]) -> int:
        """Delete *keys*; return the number of keys that existed."""
        if not keys:
            return 0
        async with self._translate_errors():
            return int(await self._client.delete(*keys))

    async def read_info(self) -> dict[str, Any]:
        """Return Redis's INFO, and its present epoch."""
        async with self._translate_errors():
            info: dict[str, Any] = await self._client.info()
            epoch = await self._client.get(EPOCH_KEY)
            return info | {"epoch": None if epoch is None else _decode(epoch)}

    @contextlib.asynccontextmanager
    async def _translate_errors(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._call_timeout_s):
                yield
        except (RedisError, OSError, TimeoutError) as exc:
            # The next reply on this connection may be the answer to an earlier command.
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._client.connection_pool.disconnect()
            raise RetryableError(scrub_text(f"Redis at {self.place}: {_cause_of(exc)}")) from None

    async def _set_up_connection(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        if self._on_connect is not None:
            self._on_connect()


def _cause_of(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return f"expected a user and a password that it accepts, got {_shown(error)}; correct them in REDIS_URL"
    if isinstance(error, ResponseError):
        return f"expected it to take the command, got {_shown(error)}"
    if isinstance(error, RedisError) and type(error) not in NO_REPLY:
        return f"expected a reply of Redis, got {_shown(error)}"
    cause = network_cause(error, ca_setting="ssl_ca_certs of REDIS_URL")
    return CLOSED if cause == UNEXPLAINED and type(error) is RedisConnectionError else cause


def _shown(error: Exception) -> str:
    return str(error)[:CAUSE_MAX_CHARS] or "an error without a text"


def _decode(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _place_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or 6379}{parts.path.rstrip('/')}"
