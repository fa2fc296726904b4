"""The door to Citrus, the shard manager, which knows the shard of each tenant (docs/shard-manager.md)."""

from __future__ import annotations

import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
from yarl import URL

from simplu_worker import instruments
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.network_errors import network_cause
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import SHARD_ID_MAX, ShardAddress
from simplu_worker.shards.routing.locator import Capacity, Count, Registration
from simplu_worker.shards.types import CitrusDeniedError
from simplu_worker.timing.circuit_breaker import BreakerDecision, CircuitBreaker
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import attempts
from simplu_worker.vocabulary import Inability

SHARDS_MAX: Final = 10_000  # each costs the event loop some microseconds
OF_ROUTES: Final = frozenset({"get_shard", "register"})  # a Citrus whose list fails may still name shards
NO_SUCH_REQUEST: Final = frozenset({404, 405, 501})  # the references have no PUT
RETRY_BASE_S, RETRY_MAX_S = 0.2, 5.0
REST_S: Final = 0.5  # of an endpoint that gave no answer to calls in a row, each with several tries
REST_MAX_S: Final = 5.0  # the longest that a recovered Citrus stays unnoticed
RETRY_AFTER_MAX_S: Final = 30.0
RETRY_AFTER_IN_CALL_MAX_S: Final = 2.0  # a longer one opens the breaker for all calls, and no caller waits for it

log = structlog.get_logger(__name__)


class CitrusUnavailableError(RetryableError):
    """Citrus did not answer, or its answer cannot be read. *is_outage* counts with the circuit breaker."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, is_outage: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.is_outage = is_outage


_ShardId = Annotated[str, msgspec.Meta(min_length=1, max_length=SHARD_ID_MAX, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _ShardReply(msgspec.Struct, rename="camel", kw_only=True):
    shard_id: _ShardId
    connection_string: str | None = None  # an entry of a list without one must not hide the others
    is_active: bool = True
    business_count: Count | None = None
    max_businesses: Count | None = None
    last_health_check: Any = None  # for people: another value than a time must hold nothing up

    @property
    def address(self) -> ShardAddress:
        return ShardAddress(
            shard_id=self.shard_id,
            connection_string=self.connection_string or "",
            is_active=self.is_active,
            business_count=self.business_count,
            business_max=self.max_businesses,
            last_health_check=self.last_health_check if isinstance(self.last_health_check, str) else None,
        )


_ShardReplies = Annotated[list[_ShardReply], msgspec.Meta(max_length=SHARDS_MAX)]


class CitrusClient:
    """A client of the Citrus at *place*. Every call is tried *attempts* times in all, backing off with jitter.

    Raises `CitrusUnavailableError` or `CitrusDeniedError` without an answer, and `PermanentError` for an address that
    may not be used. During an outage most calls raise at once.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        place: str,
        attempts: int,
        allowed_hosts: tuple[str, ...],
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._session = session
        self.place = place  # host and port, for errors
        self._attempts = attempts
        self._allowed_hosts = allowed_hosts
        self._clock = clock
        # One for each endpoint: a Citrus that cannot report its shards' health may still know the tenants' shards.
        self._breakers: defaultdict[str, CircuitBreaker] = defaultdict(
            lambda: CircuitBreaker(rest_s=REST_S, rest_max_s=REST_MAX_S)
        )
        self._named: dict[str, ShardAddress] = {}  # by shard id, as last named
        self._listed: list[ShardAddress] = []
        self._names_shards = False  # by the last call for a route; then no other failure is one
        self.last_error: str | None = None  # why the last call for a route had no answer, or the last of all before it
        self.is_denied = False

    @property
    def inability(self) -> Inability | None:
        """Why it names no shards now, by the last call for a route."""
        if self.last_error is None:
            return None
        return Inability.CITRUS_REFUSES_KEY if self.is_denied else Inability.CITRUS_UNREACHABLE

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that the tenant is registered on; None is a definite "not registered"."""
        path = f"api/shard/{quote(tenant_id, safe='')}"
        status, reply = await self._request("get_shard", "GET", path, _ShardReply)
        return None if status == 404 else self._resolve(reply)

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:
        """Register a tenant, or find where the tenant was registered before (409)."""
        tenant_id = tenant_id_of(business_id, location_id)
        message = {
            "businessId": business_id,
            "locationId": location_id,
            "businessType": business_type,
            "shardKey": tenant_id,
        }
        status, reply = await self._request("register", "POST", "api/register", _ShardReply, message)
        if status != 409:
            return Registration(self._resolve(reply), is_new=True)
        address = await self.locate(tenant_id)
        if address is None:
            raise CitrusUnavailableError("Citrus get_shard: expected the shard of a registered tenant (409), got 404")
        return Registration(address, is_new=False)

    async def move(self, tenant_id: str, shard_id: str) -> bool:
        """Name another shard for a tenant; return False if this Citrus has no such request."""
        path = f"api/shard/{quote(tenant_id, safe='')}"
        message = {"shardId": shard_id}
        status, _ = await self._request("move", "PUT", path, _ShardReply, message)
        return status not in NO_SUCH_REQUEST

    async def list_shards(self) -> list[ShardAddress]:
        """Return every shard that Citrus knows, some with a `refusal`."""
        status, replies = await self._request("shards_health", "GET", "api/shards/health", _ShardReplies)
        if status == 404:
            raise CitrusUnavailableError("Citrus shards_health: expected 200, got 404")
        shards: dict[str, ShardAddress] = {}
        for reply in replies:  # of two entries for one shard the first counts
            if not reply.connection_string and (known := self._named.get(reply.shard_id)) is not None:
                reply.connection_string = known.connection_string
            address = reply.address.validate_or_refuse(self._allowed_hosts, may_name_files=False)
            shards.setdefault(reply.shard_id, address)
        self._named |= {shard_id: shard for shard_id, shard in shards.items() if shard.refusal is None}
        self._listed = list(shards.values())
        return self._listed

    def known_shards(self) -> list[ShardAddress]:
        """Return the shards of the last list; none before the first."""
        return self._listed

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address that was last named for a shard."""
        return self._named.get(shard_id)

    async def list_possible_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return every shard, for each tenant."""
        return dict.fromkeys(tenant_ids, await self.list_shards())

    async def fetch_capacity(self, shard_id: str) -> Capacity | None:
        """Return the capacity of a shard, for people; None if Citrus has no such endpoint."""
        path = f"api/shard/{quote(shard_id, safe='')}/capacity"
        capacity: Capacity | None = (await self._request("capacity", "GET", path, Capacity))[1]
        return capacity

    def _resolve(self, reply: _ShardReply) -> ShardAddress:
        address = self._named[reply.shard_id] = reply.address.validate(self._allowed_hosts, may_name_files=False)
        return address

    async def _request(self, endpoint: str, method: str, path: str, type_: Any, message: Any = None) -> tuple[int, Any]:
        breaker = self._breakers[endpoint]
        if breaker.decide(self._clock()) is BreakerDecision.REFUSE:
            error = f"Citrus {endpoint}: expected an answer, got none in the last calls; not asked again yet"
            refuses_for_s = breaker.refuses_for_s(self._clock()) or None
            raise (CitrusDeniedError if self.is_denied else CitrusUnavailableError)(error, retry_after_s=refuses_for_s)
        try:
            async for attempt in attempts(_may_repeat, count=self._attempts, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S):
                with attempt:
                    if attempt.num > 1:
                        instruments.RETRIES.labels("citrus", endpoint).inc()
                    answer = await self._request_once(endpoint, method, path, type_, message)
        except (RetryableError, PermanentError) as exc:
            self._record_failure(endpoint, exc)
            raise
        self._names_shards |= endpoint in OF_ROUTES
        self.last_error, self.is_denied = None, False
        breaker.record_answer(self._clock())
        return answer

    def _record_failure(self, endpoint: str, exc: RetryableError | PermanentError) -> None:
        breaker, now, is_denied = self._breakers[endpoint], self._clock(), isinstance(exc, CitrusDeniedError)
        if isinstance(exc, RetryableError):
            self._names_shards &= endpoint not in OF_ROUTES
            if not self._names_shards:
                self.last_error, self.is_denied = str(exc), is_denied
        if not isinstance(exc, RetryableError) or not (is_denied or getattr(exc, "is_outage", False)):
            breaker.record_answer(now)  # Citrus runs, and may answer others
        elif breaker.record_failure(now, draw=random.random(), at_least_s=exc.retry_after_s or 0.0):
            log.warning("citrus.silent", error=str(exc), rests_s=round(breaker.refuses_for_s(now), 2))

    async def _request_once(
        self, endpoint: str, method: str, path: str, type_: Any, message: Any = None
    ) -> tuple[int, Any]:
        started = time.perf_counter()
        outcome = "error"
        try:
            # The path is encoded already: a key may hold a slash or a percent sign.
            # Not redirected: a server elsewhere is not the configured one, and must not get the key.
            async with self._session.request(
                method, URL(path, encoded=True), json=message, allow_redirects=False
            ) as response:
                body = await response.read()
                answered = _check_status(endpoint, response)
                reply = _decode(endpoint, body, type_) if answered == "ok" else None
                outcome = answered
        except (TimeoutError, aiohttp.ClientError) as exc:
            cause = network_cause(exc)
            if isinstance(exc, TimeoutError):
                outcome, cause = "timeout", "expected an answer within CITRUS_TIMEOUT, got none"
            raise CitrusUnavailableError(f"Citrus {endpoint} at {self.place}: {cause}", is_outage=True) from exc
        except CitrusDeniedError:
            outcome = "denied"
            raise
        except PermanentError:
            outcome = "refused"
            raise
        else:
            return response.status, reply
        finally:
            instruments.CITRUS_REQUEST.labels(endpoint, outcome).observe(time.perf_counter() - started)


@contextlib.asynccontextmanager
async def open_citrus(
    url: str,
    *,
    api_key: str | None,
    timeout_s: float,
    attempts: int,
    allowed_hosts: tuple[str, ...],
    clock: Callable[[], float] = loop_time,
) -> AsyncIterator[CitrusClient]:
    """Open a client with one keep-alive session to the Citrus at *url*."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    base_url = URL(url.rstrip("/") + "/")
    async with aiohttp.ClientSession(
        base_url=base_url,
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        place = f"{base_url.host}:{base_url.port}"
        yield CitrusClient(session, place=place, attempts=attempts, allowed_hosts=allowed_hosts, clock=clock)


def _may_repeat(exc: Exception) -> bool | float:
    if not isinstance(exc, CitrusUnavailableError):
        return False
    if exc.retry_after_s is None:
        return True
    return exc.retry_after_s if exc.retry_after_s <= RETRY_AFTER_IN_CALL_MAX_S else False


def _check_status(endpoint: str, response: aiohttp.ClientResponse) -> str:
    match response.status:
        case 200 | 201:
            return "ok"
        case 404 if endpoint == "get_shard":
            # A proxy's 404 is a page; only a 404 of Citrus itself means that the tenant is not registered.
            # Not `response.content_type`, whose parser recurses with the text of the header. The text is not quoted: a
            # broken header may contain a part of the body, with a password.
            if "json" in response.headers.get("Content-Type", "").partition(";")[0].lower():
                return "not_found"
            raise CitrusUnavailableError(f"Citrus {endpoint}: expected JSON, got 404 with another type")
        case 404 if endpoint in {"shards_health", "capacity"}:
            return "not_found"
        case status if endpoint == "move" and status in NO_SUCH_REQUEST:
            return "not_found"
        case 409 if endpoint == "register":
            return "conflict"
        case 401 | 403:
            raise CitrusDeniedError(f"Citrus {endpoint}: {response.status}; check CITRUS_API_KEY")
        case 400 | 422:
            raise PermanentError(f"Citrus {endpoint}: expected 200, got {response.status}: Citrus refuses the request")
        case status:
            header = response.headers.get("Retry-After", "")
            retry_after_s = min(float(header), RETRY_AFTER_MAX_S) if header.isdecimal() else None
            raise CitrusUnavailableError(
                f"Citrus {endpoint}: expected 200, got {status}",
                retry_after_s=retry_after_s,
                # A 500 may be of one tenant, whose entry Citrus cannot read.
                is_outage=status == 429 or status > 500 or retry_after_s is not None,
            )


def _decode(endpoint: str, body: bytes, type_: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        error = f"Citrus {endpoint}: expected JSON with shardId and connectionString, got something else ({exc})"
        raise CitrusUnavailableError(error) from None
