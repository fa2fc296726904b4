"""The door to Redis: the few commands that the cache needs; their errors are told apart by class and code.

Imported only when `REDIS_URL` is set: the package `redis` is the extra `cache`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from simplu_worker.cache.invalidations import EPOCH_KEY
from simplu_worker.errors import ConfigurationError, RetryableError
from simplu_worker.telemetry.log import register_secret, scrub_text

CALL_TIMEOUT_S: Final = 5.0  # for all replies of a pipeline together
SCAN_COUNT: Final = 1000


class CacheUnavailableError(RetryableError):
    """Redis does not answer, or takes nothing from us now."""


class InvalidationReply(NamedTuple):
    """What Redis made of a batch; *epoch* when it was moved, and the keys that it refuses, with why."""

    epoch: int | None
    refused: list[str]
    error: str | None


class RedisCommands:
    """One client; every call ends within seconds and raises `CacheUnavailableError` for all trouble.

    Calls are tried once: whether to try again is the caller's to say. *on_connect* is called for each connection made.
    """

    def __init__(self, url: str, *, on_connect: Callable[[], None] | None, reply_timeout_s: float) -> None:
        self._on_connect = on_connect
        try:
            # RESP2 is what every server speaks, and proxies too.
            self._client: Redis = Redis.from_url(
                url,
                protocol=2,
                socket_timeout=reply_timeout_s,
                socket_connect_timeout=reply_timeout_s,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._set_up_connection,
            )
            # It connects nowhere; only there are the options looked at.
            self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # untyped in redis
        except (ValueError, TypeError, RedisError):  # their texts may show the URL
            raise ConfigurationError("REDIS_URL: expected options that the package redis knows, got others") from None
        if password := self._client.connection_pool.connection_kwargs.get("password"):
            register_secret(str(password))
        self.place = _place_of(url)

    def __repr__(self) -> str:
        return f"RedisCommands({self.place})"

    async def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._client.aclose()

    async def ping(self) -> None:
        """Ask whether it is there."""
        async with self._translate_errors():
            await self._client.ping()

    async def send_invalidations(
        self, *, move_epoch: bool, entries: Sequence[str], versions: Sequence[str]
    ) -> InvalidationReply:
        """Move the epoch first, if that is asked for, then delete *entries* and count *versions* up: one round trip.

        A command that fails keeps none of the others from being done.
        """
        async with self._translate_errors():
            pipeline = self._client.pipeline(transaction=False)
            if move_epoch:
                pipeline.execute_command("INCR", EPOCH_KEY)
            if entries:
                pipeline.execute_command("DEL", *entries)
            for version in versions:
                pipeline.execute_command("INCR", version)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            troubles = [reply for reply in replies if isinstance(reply, Exception)]
            for trouble in troubles:
                if not _is_of_one_key(trouble) or (move_epoch and trouble is replies[0]):
                    raise trouble
        counted = replies[len(replies) - len(versions) :]
        refused = [version for version, reply in zip(versions, counted, strict=True) if isinstance(reply, Exception)]
        if entries and isinstance(replies[int(move_epoch)], Exception):
            refused += entries
        return InvalidationReply(
            int(replies[0]) if move_epoch else None, refused, _error_text(troubles[0]) if troubles else None
        )

    async def move_epoch(self) -> int:
        """Move the epoch; return the new one."""
        return (await self.send_invalidations(move_epoch=True, entries=(), versions=())).epoch or 0

    async def scan(self, cursor: int, prefix: str) -> tuple[int, list[str]]:
        """Return the next cursor, 0 at the end, and some of the keys that begin with *prefix*, which has no glob in it.

        Some may come twice. A key that is there from the first to the last call surely comes.
        """
        async with self._translate_errors():
            after, keys = await self._client.scan(cursor=cursor, match=f"{prefix}*", count=SCAN_COUNT)
        return int(after), [_decode(key) for key in keys]

    async def delete(self, keys: Sequence[str]) -> int:
        """Delete *keys*; return how many were there."""
        if not keys:
            return 0
        async with self._translate_errors():
            return int(await self._client.delete(*keys))

    async def read_info(self) -> dict[str, Any]:
        """Return what Redis says of itself (INFO) and the epoch as it has it."""
        async with self._translate_errors():
            info: dict[str, Any] = await self._client.info()
            epoch = await self._client.get(EPOCH_KEY)
        return info | {"epoch": None if epoch is None else _decode(epoch)}

    @contextlib.asynccontextmanager
    async def _translate_errors(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                yield
        except (RedisError, OSError, TimeoutError) as exc:
            # Whatever comes on this connection now may be the answer to what was asked before.
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._client.connection_pool.disconnect()
            raise CacheUnavailableError(_error_text(exc)) from None

    async def _set_up_connection(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        if self._on_connect is not None:
            self._on_connect()


def _is_of_one_key(error: Exception) -> bool:
    """Whether the error is about a key or a command, not about the server: any other would come the same way.

    By the code that begins each error of Redis: ERR (as the package keeps it, where it takes it off the text) and
    WRONGTYPE. All others, as OOM, READONLY, NOPERM, MISCONF, are of the server or of what we may do.
    """
    code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return isinstance(error, ResponseError) and code in {"ERR", "WRONGTYPE"}


def _error_text(error: Exception) -> str:
    return scrub_text(f"{type(error).__name__}: {error}")


def _decode(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _place_of(url: str) -> str:
    """Return where a URL of Redis leads, without credentials and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or 6379}{parts.path.rstrip('/')}"
