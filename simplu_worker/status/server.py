"""Serve health, metrics, status and single answers over HTTP (docs/interface.md), from views passed as callables.

The bearer token protects every path with data of tenants; health and metrics have no such data and are open. All paths
but the two DELETEs only read, and the DELETEs have to be allowed separately. Every answer but metrics and the page is
JSON, errors included, and contains no more than necessary.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import Any, Final, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import gzip_accepted

from simplu_worker.status.connection_order import Places
from simplu_worker.status.connections import CONNECTION_LIMITS, ConnectionGate, ConnectionLimits, connection_of
from simplu_worker.status.list_query import OperationListQuery, parse_list_query
from simplu_worker.status.metrics_text import MetricsText, accepted_format
from simplu_worker.status.open_reads import counts_and_states, is_own_host
from simplu_worker.status.responses import (
    COMMON_HEADERS,
    busy_response,
    encoded_response,
    error_response,
    json_response,
)
from simplu_worker.status.shared_answer import SharedAnswer

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S: Final = 1.0  # for unfinished answers; idle connections are closed at once
BACKLOG: Final = 512  # beyond it the kernel drops a connect, which the client repeats after a second
PATH_REQUESTS_MAX: Final = 20  # of one path, while their answers are made; further ones get a 503 at once
REQUESTS_MAX: Final = 50  # of all paths; probes, the page and refusals need no place
VIEWS_AT_ONCE: Final = 4  # of one path without shared answers; further requests wait for their turn
ANSWER_WITHIN_S: Final = 60.0  # more than the limits that the views themselves have
# An id may contain any character, an encoded slash and braces too; aiohttp decodes it after matching the path.
ANY_ID = "[^/]+"
HttpAnswer = tuple[int, dict[str, Any]]
EncodedAnswer = tuple[int, bytes]


@dataclass(frozen=True)
class Views:
    """The content of the server's answers; each callable but the last two reads, and changes nothing but gauges.

    *live* and *ready* return the reason why not, or None, and *detail* what a person should know while the
    replica is ready; *refresh_gauges* sets the gauges that no single event sets,
    before the metrics are shown. The others return the HTTP status and the JSON; text that is JSON already (a result
    as Postgres stores it) is passed as `msgspec.Raw`, so that no number loses a digit.
    *operation* takes the request id and, both or neither, business id and location id; *tenant* takes those two ids;
    *operations* takes the query of a list.
    *purge* empties the queue of that name, or the only source queue for None; *clear_cache* empties the cache.
    """

    live: Callable[[], str | None]
    ready: Callable[[], str | None]
    detail: Callable[[], str | None]
    refresh_gauges: Callable[[], None]
    status: Callable[[], dict[str, Any]]
    operation: Callable[[str, str | None, str | None], Awaitable[HttpAnswer]]
    operations: Callable[[OperationListQuery], Awaitable[HttpAnswer]]
    tenant: Callable[[str, str], Awaitable[HttpAnswer]]
    shards: Callable[[], Awaitable[HttpAnswer]]
    sqs_stats: Callable[[], Awaitable[HttpAnswer]]
    handler_status: Callable[[], dict[str, Any]]
    handler_stats: Callable[[], Awaitable[HttpAnswer]]
    cache_stats: Callable[[], Awaitable[HttpAnswer]]
    cache_keys: Callable[[], Awaitable[HttpAnswer]]
    purge: Callable[[str | None], Awaitable[HttpAnswer]]
    clear_cache: Callable[[], Awaitable[HttpAnswer]]


@contextlib.asynccontextmanager
async def open_http(
    host: str,
    port: int,
    *,
    token: str | None,
    views: Views,
    allow_destructive: bool = False,
    opens_reads: bool = False,
    limits: ConnectionLimits = CONNECTION_LIMITS,
) -> AsyncIterator[int]:
    """Serve *views* while the context is open, and yield the port (a free one where *port* is 0).

    Without *token* the protected paths answer 403, and so do the DELETEs without *allow_destructive*. With
    *opens_reads* some of the others show counts and states to requests without a token. Raises OSError if the port is
    in use.
    """
    app = _application(_Guard(token, host, allow_destructive=allow_destructive, opens_reads=opens_reads), views)
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        gate = ConnectionGate(cast("web.Server", runner.server), limits)  # aiohttp's sites have no place for it
        listener = await asyncio.get_running_loop().create_server(gate, host, port, reuse_address=True, backlog=BACKLOG)
        try:
            own_port = listener.sockets[0].getsockname()[1]
            log.info("http.started", host=host, port=own_port, protected_paths="open" if token else "closed")
            yield own_port
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def _application(guard: _Guard, views: Views) -> web.Application:
    endpoints = _Endpoints(views)
    gate = _RequestGate()
    shared_answers: list[SharedAnswer[EncodedAnswer]] = []

    def share(path: str, view: Callable[[], Awaitable[HttpAnswer]]) -> Handler:
        shared = _shared_answer(view)
        shared_answers.append(shared)
        return gate.limit(path, _shared_handler(shared))

    def share_openly(path: str, view: Callable[[], Awaitable[HttpAnswer]]) -> Handler:
        return guard.protect(share(path, view), without_token=share(path, _reduced(view)))

    def run(path: str, handler: Handler, *, without_token: Handler | None = None) -> Handler:
        return guard.protect(gate.limit(path, gate.take_turns(handler)), without_token=without_token)

    def change(path: str, handler: Handler) -> Handler:
        async def run_and_forget(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            finally:
                for shared in shared_answers:
                    shared.forget()

        return guard.protect(gate.limit(path, gate.take_turns(run_and_forget)), is_destructive=True)

    app = web.Application(middlewares=[_answer_errors_in_json])
    app.router.add_get("/", _page_handler())
    app.router.add_get("/livez", endpoints.live)
    app.router.add_get("/healthz", endpoints.live)
    app.router.add_get("/readyz", endpoints.ready)
    app.router.add_get("/metrics", gate.limit("/metrics", _metrics_handler(views.refresh_gauges)))
    app.router.add_get("/status", share_openly("/status", endpoints.status))
    app.router.add_get("/shards", share_openly("/shards", views.shards))
    app.router.add_get("/operations", run("/operations?", endpoints.operations))
    app.router.add_get(f"/operations/{{requestId:{ANY_ID}}}", run("/operations", endpoints.operation))
    app.router.add_get(f"/tenants/{{businessId:{ANY_ID}}}/{{locationId:{ANY_ID}}}", run("/tenants", endpoints.tenant))
    app.router.add_get("/sqs/stats", share_openly("/sqs/stats", views.sqs_stats))
    app.router.add_delete("/sqs/purge", change("/sqs/purge", endpoints.purge))
    open_state = share("/handler/status", _reduced(endpoints.handler_state))
    app.router.add_get("/handler/status", run("/handler/status", endpoints.handler_status, without_token=open_state))
    app.router.add_get("/handler/stats", share_openly("/handler/stats", views.handler_stats))
    app.router.add_get("/cache/stats", share_openly("/cache/stats", views.cache_stats))
    app.router.add_get("/cache/keys", guard.protect(share("/cache/keys", views.cache_keys)))
    app.router.add_delete("/cache/clear", change("/cache/clear", endpoints.clear_cache))
    return app


class _RequestGate:
    """Limits the requests for as long as their answers are made."""

    def __init__(self) -> None:
        self._places = Places(path_max=PATH_REQUESTS_MAX, all_max=REQUESTS_MAX)

    def limit(self, path: str, handler: Handler) -> Handler:
        """Return *handler* with the limits on the number and the time of requests to *path*."""

        async def limited(request: web.Request) -> web.StreamResponse:
            if not self._places.take(path):
                return busy_response()
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S) as deadline:
                    return await handler(request)
            except TimeoutError:
                if not deadline.expired():
                    raise
                return error_response(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer within {ANSWER_WITHIN_S:g} s")
            finally:
                self._places.free(path)

        return limited

    def take_turns(self, handler: Handler) -> Handler:
        """Return *handler* for VIEWS_AT_ONCE requests at one time, each until its answer is sent."""
        turns = asyncio.Semaphore(VIEWS_AT_ONCE)

        async def wait_for_turn(request: web.Request) -> web.StreamResponse:
            await turns.acquire()
            try:
                response = await handler(request)
            except BaseException:
                turns.release()
                raise
            connection_of(request).call_when_sent(turns.release)
            return response

        return wait_for_turn


def _metrics_handler(refresh_gauges: Callable[[], None]) -> Handler:
    """Return the handler of the metrics, which refreshes the gauges first."""
    metrics = MetricsText(refresh_gauges)

    async def show_metrics(request: web.Request) -> web.StreamResponse:
        wanted = accepted_format(",".join(request.headers.getall("Accept", [])))
        headers = {**COMMON_HEADERS, "Content-Type": wanted.value, "Vary": "Accept, Accept-Encoding"}
        if not gzip_accepted(request.headers.get("Accept-Encoding", "")):
            return web.Response(body=await metrics.read(wanted), headers=headers)
        return web.Response(body=await metrics.read_compressed(wanted), headers=headers | {"Content-Encoding": "gzip"})

    return show_metrics


def _shared_answer(view: Callable[[], Awaitable[HttpAnswer]]) -> SharedAnswer[EncodedAnswer]:
    """Return the answer of a view without arguments, which its callers share for a moment."""

    async def encode() -> EncodedAnswer:
        status, answer = await view()
        return status, msgspec.json.encode(answer)

    return SharedAnswer(encode)


def _reduced(view: Callable[[], Awaitable[HttpAnswer]]) -> Callable[[], Awaitable[HttpAnswer]]:
    """Return *view* as it is shown without a token."""

    async def reduce() -> HttpAnswer:
        status, answer = await view()
        return status, counts_and_states(answer)

    return reduce


def _shared_handler(shared: SharedAnswer[EncodedAnswer]) -> Handler:
    """Return the handler of a shared answer."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return encoded_response(*await shared())

    return answer


class _Endpoints:
    """The handlers of views with arguments, or without a coroutine: each turns a request into a call."""

    def __init__(self, views: Views) -> None:
        self._views = views

    async def live(self, _: web.Request) -> web.Response:
        return _health_response(self._views.live())

    async def ready(self, _: web.Request) -> web.Response:
        return _health_response(self._views.ready(), detail=self._views.detail())

    async def status(self) -> HttpAnswer:
        return HTTPStatus.OK, self._views.status()

    async def handler_state(self) -> HttpAnswer:
        return HTTPStatus.OK, self._views.handler_status()

    async def handler_status(self, _: web.Request) -> web.Response:
        return json_response(*await self.handler_state())

    async def clear_cache(self, _: web.Request) -> web.Response:
        return json_response(*await self._views.clear_cache())

    async def purge(self, request: web.Request) -> web.Response:
        names = [name for name in request.query.getall("queue", []) if name]
        if len(names) > 1:
            return error_response(HTTPStatus.BAD_REQUEST, "expected the name of one queue, as ?queue=NAME, got several")
        status, answer = await self._views.purge(names[0] if names else None)
        wait_s = answer.get("retryAfterSeconds")
        return json_response(status, answer, headers={"Retry-After": str(wait_s)} if wait_s else None)

    async def operation(self, request: web.Request) -> web.Response:
        request_id = request.match_info["requestId"]
        business_id, location_id = request.query.get("businessId"), request.query.get("locationId")
        if (not business_id) != (not location_id):
            return error_response(
                HTTPStatus.BAD_REQUEST, "expected businessId and locationId together, or neither of them"
            )
        if not business_id or not location_id:
            business_id = location_id = None
        if not _are_storable(request_id, business_id, location_id):
            return error_response(HTTPStatus.BAD_REQUEST, "expected ids without the character U+0000")
        return json_response(*await self._views.operation(request_id, business_id, location_id))

    async def operations(self, request: web.Request) -> web.Response:
        try:
            query = parse_list_query(request.query.items())
        except ValueError as exc:
            return error_response(HTTPStatus.BAD_REQUEST, str(exc))
        return json_response(*await self._views.operations(query))

    async def tenant(self, request: web.Request) -> web.Response:
        business_id, location_id = request.match_info["businessId"], request.match_info["locationId"]
        if not _are_storable(business_id, location_id):
            return error_response(HTTPStatus.BAD_REQUEST, "expected ids without the character U+0000")
        return json_response(*await self._views.tenant(business_id, location_id))


class _Guard:
    """Accepts requests with the bearer token; destructive ones, and those without the token, only if allowed."""

    def __init__(self, token: str | None, host: str, *, allow_destructive: bool, opens_reads: bool) -> None:
        self._token = token.encode() if token else None
        self._host = host
        self._allow_destructive = allow_destructive
        self._opens_reads = opens_reads

    def protect(
        self, handler: Handler, *, without_token: Handler | None = None, is_destructive: bool = False
    ) -> Handler:
        """Return *handler* with a check of the token and, if *is_destructive*, of the permission.

        *without_token* answers requests that send none, where reads are open.
        """

        async def guarded(request: web.Request) -> web.StreamResponse:
            authorization = request.headers.get("Authorization")
            if authorization is None and without_token is not None and self._opens_reads:
                if is_own_host(request.headers.get("Host", ""), self._host):
                    return await without_token(request)
                return error_response(
                    HTTPStatus.FORBIDDEN,
                    "expected the value of HTTP_HOST, an IP address or localhost as Host, since no token was sent",
                )
            refusal = self._refusal(authorization)
            if refusal is None and is_destructive and not self._allow_destructive:
                refusal = error_response(
                    HTTPStatus.FORBIDDEN,
                    "destructive requests are not allowed: set ALLOW_DESTRUCTIVE_HTTP=true and restart",
                )
            return refusal or await handler(request)

        return guarded

    def _refusal(self, authorization: str | None) -> web.Response | None:
        if self._token is None:
            return error_response(
                HTTPStatus.FORBIDDEN, "no token is configured, so this path is closed: set API_TOKEN and restart"
            )
        if authorization is None:
            return _unauthorized_response(
                "expected the header Authorization: Bearer, followed by the value of API_TOKEN"
            )
        scheme, _, sent = authorization.partition(" ")
        # aiohttp represents undecodable bytes as surrogates; compare the bytes that were sent.
        sent_token = sent.strip().encode(errors="surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(sent_token, self._token):
            return None
        return _unauthorized_response("this is not the bearer token that API_TOKEN holds", error="invalid_token")


@web.middleware
async def _answer_errors_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    connection_of(request).begin_view()
    try:
        return await handler(request)
    except web.HTTPException as exc:  # the router's own: no such path, no such method
        return _http_error(exc, request.method)
    except Exception:
        # A bug in a view must not disable the health answers; the path is logged without the ids in it.
        resource = request.match_info.route.resource
        log.exception("http.failed", path=resource.canonical if resource else None)
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "this answer failed; the worker's log has the reason")


def _http_error(exc: web.HTTPException, method: str) -> web.Response:
    match exc:
        case web.HTTPNotFound():
            return error_response(exc.status, "there is nothing at this path")
        case web.HTTPMethodNotAllowed():
            expected = " or ".join(sorted(exc.allowed_methods))
            return error_response(
                exc.status, f"expected {expected}, got {method}", headers={"Allow": exc.headers["Allow"]}
            )
        case _:
            return error_response(exc.status, exc.reason)


def _page_handler() -> Handler:
    """Return the handler of the status page, with a policy that allows only the scripts and styles in the file."""
    page = resources.files(__package__).joinpath("page", "index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_csp_hashes(page, 'script')}; style-src {_csp_hashes(page, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    body = page.encode()
    headers = {**COMMON_HEADERS, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}

    async def show_page(_: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    return show_page


def _csp_hashes(page: str, element: str) -> str:
    """Return the CSP sources for each inline *element* of *page*."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _are_storable(*ids: str | None) -> bool:
    """Return whether Postgres could hold each of *ids* as text."""
    return not any(value and "\0" in value for value in ids)


def _health_response(trouble: str | None, *, detail: str | None = None) -> web.Response:
    """Return the answer to a probe; *detail* is what a person should know although nothing is wrong here."""
    if trouble is None:
        return json_response(HTTPStatus.OK, {"status": "ok"} | ({} if detail is None else {"detail": detail}))
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "unavailable", "reason": trouble})


def _unauthorized_response(message: str, *, error: str | None = None) -> web.Response:
    challenge = 'Bearer realm="simplu-worker"' + (f', error="{error}"' if error else "")  # RFC 6750, section 3
    return error_response(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})
