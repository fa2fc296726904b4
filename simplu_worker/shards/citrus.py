"""The door to Citrus, the shard manager: who lives where (contract §7)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import stamina
import structlog
from yarl import URL

from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.address import ShardAddress

REPLY_MAX_BYTES = 4 * 1024 * 1024  # the health of some thousand shards
RETRY_AFTER_MAX_S = 30.0

log = structlog.get_logger(__name__)

# Retries are counted here, where their endpoint is known.
stamina.instrumentation.set_on_retry_hooks(())


class CitrusUnavailableError(TryAgainLaterError):
    """Citrus did not answer, or not in a way that can be understood."""


class CitrusDeniedError(TryAgainLaterError):
    """Citrus refuses the API key (401 or 403): only a person can mend it, but nothing is wrong with the message."""


class Registration(msgspec.Struct, frozen=True):
    """The shard that a tenant is registered on, and whether it was registered just now, for the first time."""

    address: ShardAddress
    is_new: bool


class _Reply(msgspec.Struct, rename="camel"):
    shard_id: str
    connection_string: str
    is_active: bool = True
    business_count: int | None = None
    max_businesses: int | None = None

    @property
    def address(self) -> ShardAddress:
        return ShardAddress(
            shard_id=self.shard_id,
            connection_string=self.connection_string,
            is_active=self.is_active,
            tenant_count=self.business_count,
            tenant_max=self.max_businesses,
        )


class Citrus:
    """A client of one Citrus. Every call is tried *attempts* times in all, backing off with jitter.

    Every call raises `CitrusUnavailableError` or `CitrusDeniedError` when there is no answer to be had, and
    `RefusedError` for an address that may not be used.
    """

    def __init__(self, session: aiohttp.ClientSession, *, attempts: int, allowed_hosts: tuple[str, ...]) -> None:
        self._session = session
        self._attempts = attempts
        self._allowed_hosts = allowed_hosts
        self.trouble: str | None = None  # why the last call had no answer
        self.is_denied = False

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that the tenant is registered on; None is a definite "not registered"."""
        status, reply = await self._ask("get_shard", "GET", f"api/shard/{quote(tenant_id, safe='')}", _Reply)
        return None if status == 404 else reply.address.checked(self._allowed_hosts)

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:
        """Register a tenant, or learn where it was registered before (409)."""
        tenant_id = tenant_id_of(business_id, location_id)
        message = {
            "businessId": business_id,
            "locationId": location_id,
            "businessType": business_type,
            "shardKey": tenant_id,
        }
        status, reply = await self._ask("register", "POST", "api/register", _Reply, message)
        if status != 409:
            return Registration(reply.address.checked(self._allowed_hosts), is_new=True)
        address = await self.locate(tenant_id)
        if address is None:
            raise CitrusUnavailableError("Citrus says 409 to register and 404 to the question where")
        return Registration(address, is_new=False)

    async def shards(self) -> list[ShardAddress]:
        """Return every shard that Citrus knows; one whose address may not be used says so, and has none."""
        _, replies = await self._ask("shards_health", "GET", "api/shards/health", list[_Reply])
        return [reply.address.usable(self._allowed_hosts) for reply in replies]

    async def homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return where each tenant may live or have lived: on every shard."""
        return dict.fromkeys(tenant_ids, await self.shards())

    async def _ask(
        self, endpoint: str, method: str, path: str, type_: type[Any], message: Any = None
    ) -> tuple[int, Any]:
        """Return the status of the answer and, where that says ok, its body as *type_*."""
        attempts = stamina.retry_context(
            on=_pause_before_retry, attempts=self._attempts, timeout=None, wait_initial=0.1, wait_max=5, wait_jitter=0.2
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.num > 1:
                        instruments.RETRIES.labels("citrus", endpoint).inc()
                    answer = await self._ask_once(endpoint, method, path, type_, message)
        except TryAgainLaterError as exc:
            self.trouble, self.is_denied = str(exc), isinstance(exc, CitrusDeniedError)
            raise
        self.trouble, self.is_denied = None, False
        return answer

    async def _ask_once(self, endpoint: str, method: str, path: str, type_: type[Any], message: Any) -> tuple[int, Any]:
        started = time.perf_counter()
        outcome = "error"
        try:
            # The path is encoded already: a key may hold a slash or a percent sign.
            async with self._session.request(method, URL(path, encoded=True), json=message) as response:
                body = await _whole(response)
                judged = _judge(endpoint, response)
                reply = _decoded(endpoint, body, type_) if judged == "ok" else None
                outcome = judged
        except TimeoutError as exc:
            outcome = "timeout"
            raise CitrusUnavailableError(f"Citrus {endpoint}: no answer within CITRUS_TIMEOUT") from exc
        except aiohttp.ClientError as exc:
            raise CitrusUnavailableError(f"Citrus {endpoint}: {type(exc).__name__}") from exc
        else:
            return response.status, reply
        finally:
            instruments.CITRUS_REQUEST.labels(endpoint, outcome).observe(time.perf_counter() - started)


@contextlib.asynccontextmanager
async def open_citrus(
    url: str, *, api_key: str | None, timeout_s: float, attempts: int, allowed_hosts: tuple[str, ...]
) -> AsyncIterator[Citrus]:
    """Open a client with one keep-alive session to the Citrus at *url*."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    async with aiohttp.ClientSession(
        base_url=URL(url.rstrip("/") + "/"), headers=headers, timeout=aiohttp.ClientTimeout(total=timeout_s)
    ) as session:
        yield Citrus(session, attempts=attempts, allowed_hosts=allowed_hosts)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > REPLY_MAX_BYTES:
            raise CitrusUnavailableError(f"Citrus answered with more than {REPLY_MAX_BYTES} bytes")
    return bytes(body)


def _judge(endpoint: str, response: aiohttp.ClientResponse) -> str:
    """Return the outcome by status; raise for those that are no answer."""
    match response.status:
        case 200 | 201:
            return "ok"
        case 404 if endpoint == "get_shard":
            # A proxy's 404 is a page; only Citrus's own says that the tenant is not registered.
            if "json" in response.content_type:
                return "not_found"
            raise CitrusUnavailableError(f"Citrus {endpoint}: expected JSON, got 404 with {response.content_type}")
        case 409 if endpoint == "register":
            return "conflict"
        case 401 | 403:
            raise CitrusDeniedError(f"Citrus {endpoint}: {response.status}; check CITRUS_API_KEY")
        case 400 | 422:
            raise RefusedError(f"Citrus {endpoint}: {response.status}, it does not accept the request")
        case status:
            wish = response.headers.get("Retry-After", "")
            raise CitrusUnavailableError(
                f"Citrus {endpoint}: expected 200, got {status}",
                retry_after_s=min(float(wish), RETRY_AFTER_MAX_S) if wish.isdecimal() else None,
            )


def _pause_before_retry(exc: Exception) -> bool | float:
    """Say whether to retry, or after how many seconds (stamina's backoff hook)."""
    if not isinstance(exc, CitrusUnavailableError):
        return False
    return True if exc.retry_after_s is None else exc.retry_after_s


def _decoded(endpoint: str, body: bytes, type_: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        error = f"Citrus {endpoint}: expected JSON with shardId and connectionString, got something else ({exc})"
        raise CitrusUnavailableError(error) from None
