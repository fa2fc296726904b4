"""Serve health, metrics, status and single answers over HTTP (docs/outcomes.md).

Tokens protect every path with data of tenants. Every answer but metrics and the page is JSON. Open connections are
bounded, and so are requests; all else is for a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from http import HTTPStatus
from importlib import resources
from typing import Any, Final, NamedTuple, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from simplu_worker import __version__
from simplu_worker.consumers.operation_taps import TAPS, TAPS_MAX, OperationTaps, TapFilter
from simplu_worker.dead_letters.service import LettersAction
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.status.guard import Actor, Guard, Respond, logged_action
from simplu_worker.status.lookups import LetterRequests
from simplu_worker.status.message_schemas import SCHEMAS, describe
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.request_bodies import (
    COMMON_HEADERS,
    HttpAnswer,
    ListQuery,
    OperationQuery,
    TapQuery,
    controls_of,
    encoded_response,
    error_response,
    json_response,
    read_body,
    read_query,
)
from simplu_worker.status.roles import COUNTS_AND_STATES, for_producers, for_viewers
from simplu_worker.status.routes import ROUTES, Access, Answer, Route
from simplu_worker.status.words import BadRequestError, Role
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.timing.waits import sleep_or_event, wait_any
from simplu_worker.vocabulary import DeadLetterReason

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
CONTENT_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
DOCUMENT: Final = "index.html"


EVENT_EVERY_S: Final = 2.0
ALIVE_EVERY_S: Final = 15.0
LISTEN_MAX_S: Final = 3600.0
ALIVE: Final = b": alive\n\n"

Read = Callable[[], Awaitable[tuple[int, bytes]]]  # an HTTP status, and JSON


def encode_event(name: str, body: bytes) -> bytes:
    """Return an event with JSON, which has no line break, as its data."""
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


# Server-sent events: a listener uses `fetch` with the header `Authorization`, so no token is in an address or a cookie.
async def changes(
    answers: Mapping[str, Read],
    closing: asyncio.Event,
    *,
    every_s: float = EVENT_EVERY_S,
    alive_s: float = ALIVE_EVERY_S,
    listen_s: float = LISTEN_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield each of *answers* when it has changed, until *closing*, at most for *listen_s*.

    After *alive_s* without a change a comment shows that the connection is open.
    """
    shown: dict[str, bytes] = {}
    ends_at, sent_at = loop_time() + listen_s, loop_time()
    while not closing.is_set() and loop_time() < ends_at:
        for name, read in answers.items():
            status, body = await read()
            if status == HTTPStatus.OK and shown.get(name) != body:
                shown[name], sent_at = body, loop_time()
                yield encode_event(name, body)
        if loop_time() - sent_at >= alive_s:
            sent_at = loop_time()
            yield ALIVE
        await sleep_or_event(every_s, until=closing)


async def send_events(request: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Send *events* until their end, or the listener has gone."""
    headers = {**COMMON_HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    with suppress(ConnectionError):
        await response.prepare(request)
        async with aclosing(events):
            async for event in events:
                await response.write(event)
    return response


TAP_MAX_S: Final = 900.0


async def tapped(
    chosen: TapFilter,
    closing: asyncio.Event,
    *,
    taps: OperationTaps = TAPS,
    alive_s: float = ALIVE_EVERY_S,
    tap_s: float = TAP_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield the decided operations that *chosen* matches, until *closing*, at most for *tap_s*.

    An event `dropped` has how many came faster than they were taken. The tap is open from the first step on.
    """
    tap = taps.add(chosen)
    ends_at, dropped_count = loop_time() + tap_s, 0
    try:
        yield ALIVE
        while not closing.is_set() and (left_s := ends_at - loop_time()) > 0:
            await wait_any(tap.has_events, closing, within_s=min(alive_s, left_s))
            events = b"".join(encode_event("operation", event) for event in tap.take())
            if tap.dropped_count > dropped_count:
                dropped_count = tap.dropped_count
                events += encode_event("dropped", msgspec.json.encode({"dropped": dropped_count}))
            yield events or ALIVE
    finally:
        taps.remove(tap)


log = structlog.get_logger(__name__)

CONNECTIONS_MAX: Final = 100  # well below the open files that a process may have
HANDSHAKE_WITHIN_S: Final = 10.0
LINGER_S: Final = 1.0  # for the rest of a request's body, which no path reads
SHUTDOWN_TIMEOUT_S: Final = 1.0  # for unfinished answers; idle connections are closed at once
IPV4, IPV6 = "0.0.0.0", "::"  # noqa: S104  # probes and scrapers come from other hosts
NO_IPV6: Final = {None, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # of the error, where the kernel has no IPv6
VIEWS_AT_ONCE: Final = 4  # of one path without shared answers; further requests wait for their turn
ANSWER_WITHIN_S: Final = 60.0  # more than the limits that the views themselves have
BODY_MAX_BYTES: Final = 65_536
WITH_ROLE: Final = frozenset({"status", "fleet"})  # answers that name the caller's role
EncodedAnswer = tuple[int, bytes]


class Call(NamedTuple):
    """A request to a route by a caller with *role*; *asked* is its query or body."""

    route: Route
    request: web.Request
    role: Role
    asked: Any

    @property
    def ids(self) -> tuple[str, ...]:
        """The parameters of the path, in their order."""
        return tuple(self.request.match_info.values())

    @property
    def tenant(self) -> tuple[str, str]:
        """The tenant in the path."""
        return self.request.match_info["businessId"], self.request.match_info["locationId"]

    @property
    def actor(self) -> Actor:
        """The operator."""
        return Actor(self.role, self.request.remote)

    async def act(self, acting: Awaitable[HttpAnswer]) -> HttpAnswer:
        """Return what *acting* answers, and log it."""
        asked = {**self.request.match_info, **(msgspec.to_builtins(self.asked) or {})}
        with logged_action(self.route.name, self.actor, asked) as acted:
            answer = await acting
            acted.answer = answer[1]
        return answer


View = Callable[[Call], Awaitable[HttpAnswer]]


@contextlib.asynccontextmanager
async def open_http(
    guard: Guard,
    port: int,
    replica: ReplicaStatus,
    letters: LetterRequests | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    connections_max: int = CONNECTIONS_MAX,
) -> AsyncIterator[int]:
    """Serve what *replica* tells, and yield the port (a free one where *port* is 0). Raises OSError if it is in use.

    Without a host on all addresses of IPv4 and IPv6; by HTTPS with *tls*.
    """
    host = guard.host
    runner = make_runner(make_application(guard, replica, letters))
    await runner.setup()
    accept = partial(accept_connection, cast("web.Server", runner.server), connections_max)
    try:
        async with contextlib.AsyncExitStack() as stack:
            own_port = await _listen(stack, accept, host or IPV4, port, tls)
            if host is None:
                try:
                    await _listen(stack, accept, IPV6, own_port, tls)
                except OSError as exc:
                    if exc.errno not in NO_IPV6:
                        raise
            protected = "open" if guard.tokens.variables(Role) else "closed"
            log.info("http.started", host=host, port=own_port, protected_paths=protected, tls=tls is not None)
            yield own_port
    finally:
        await runner.cleanup()


def make_runner(app: web.Application) -> web.AppRunner:
    """Return the runner of *app*, with aiohttp's own limits."""
    return web.AppRunner(
        app, access_log=None, auto_decompress=False, lingering_time=LINGER_S, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )


def accept_connection(server: web.Server, connections_max: int) -> web.RequestHandler:
    """Return a new connection, which at the limit takes the place of the oldest one: so probes are answered."""
    transports = [one.transport for one in server.connections]
    is_open = [one for one in transports if one is not None and not one.is_closing()]
    if len(is_open) >= connections_max:
        is_open[0].abort()
    return server()


async def _listen(
    stack: contextlib.AsyncExitStack,
    accept: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
) -> int:
    handshake_s = None if tls is None else HANDSHAKE_WITHIN_S
    listener = await asyncio.get_running_loop().create_server(
        accept, host, port, reuse_address=True, ssl=tls, ssl_handshake_timeout=handshake_s
    )
    stack.callback(listener.close)
    return int(listener.sockets[0].getsockname()[1]) if listener.sockets else port


def make_application(guard: Guard, replica: ReplicaStatus, letters: LetterRequests | None = None) -> web.Application:
    """Return the application with every route of the table."""
    app = web.Application(middlewares=[_answer_errors_in_json], client_max_size=BODY_MAX_BYTES)
    endpoints = _Endpoints(replica, letters)
    handlers = _Handlers(guard, replica, endpoints)
    app.on_shutdown.append(handlers.close)
    for route in ROUTES:
        handler = handlers.make(route)
        app.router.add_route(route.method, route.pattern, handler)
        if route.method == "GET" and route.answer is not Answer.STREAM:
            app.router.add_route("HEAD", route.pattern, handler)
    return app


class _Handlers:
    def __init__(self, guard: Guard, replica: ReplicaStatus, endpoints: _Endpoints) -> None:
        self._guard = guard
        self._replica = replica
        self._endpoints = endpoints
        self._shared: dict[tuple[str, Role | None], SharedAnswer[EncodedAnswer]] = {}
        self._closing = asyncio.Event()

    async def close(self, _: web.Application) -> None:
        self._closing.set()

    def make(self, route: Route) -> Handler:
        if route.access is Access.ALL:
            handler: Handler = getattr(self._endpoints, route.name)
            return handler
        makers = {Answer.SHARED: self._share, Answer.STREAM: self._stream, Answer.IN_TURNS: self._run}
        return self._guard.protect(route, makers[route.answer](route))

    def _share(self, route: Route) -> Respond:
        view = SHARED_VIEWS[route.name]

        async def ask() -> HttpAnswer:
            answer = view(self._replica)
            return answer if isinstance(answer, tuple) else await answer

        async def encode(role: Role | None) -> EncodedAnswer:
            status, answer = shown_to(role, route, *await _answer(ask()))
            return status, msgspec.json.encode(answer)

        for role in (*Role, None):
            self._shared[route.name, role] = SharedAnswer(partial(encode, role))

        async def respond(_: web.Request, role: Role | None) -> web.StreamResponse:
            return encoded_response(*await self._shared[route.name, role]())

        return respond

    def _run(self, route: Route) -> Respond:
        view: View = getattr(self._endpoints, route.name)
        turns = asyncio.Semaphore(VIEWS_AT_ONCE)

        async def respond(request: web.Request, role: Role | None) -> web.StreamResponse:
            if any("\0" in value for value in request.match_info.values()):
                raise BadRequestError("expected ids without the character U+0000")
            asked: Any = None
            if route.query is not None:
                asked = read_query(request.query.items(), route.query)
            elif route.body is not None:
                asked = await read_body(request, route.body)
            call = Call(route, request, role or Role.PRODUCER, asked)
            if route.name == "operation":  # it may wait, and takes no turn meanwhile
                await self._endpoints.wait_for_operation(call, self._closing)
            try:
                async with turns:
                    status, answer = shown_to(role, route, *await _answer(view(call)))
            finally:
                if route.method != "GET":  # it may have changed what the shared answers show
                    for shared in self._shared.values():
                        shared.forget()
            wait_s = answer.get("retryAfterSeconds")
            return json_response(status, answer, headers={"Retry-After": str(wait_s)} if wait_s else None)

        return respond

    def _stream(self, route: Route) -> Respond:
        opens = {"events": self._open_changes, "tap": self._open_tap}[route.name]

        async def respond(request: web.Request, role: Role | None) -> web.StreamResponse:
            events = opens(request, role)
            if isinstance(events, web.Response):
                return events
            return await send_events(request, self._while_admitted(request, events))

        return respond

    def _open_changes(self, _: web.Request, role: Role | None) -> AsyncGenerator[bytes, None]:
        return changes({name: self._shared[name, role] for name in ("status", "fleet")}, self._closing)

    def _open_tap(self, request: web.Request, role: Role | None) -> AsyncGenerator[bytes, None] | web.Response:
        chosen = read_query(request.query.items(), TapQuery).chosen
        if chosen.shows_content and role is not Role.OPERATOR:
            return error_response(HTTPStatus.FORBIDDEN, "content is shown to the token in API_TOKEN alone")
        if len(TAPS.open) >= TAPS_MAX:
            busy = "too many listeners; repeat the request"
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, busy, headers={"Retry-After": "1"})
        return tapped(chosen, self._closing)

    async def _while_admitted(
        self, request: web.Request, events: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield *events* until their end, or until the token is another one's, or nobody's."""
        caller = self._guard.caller_of(request)
        async with contextlib.aclosing(events):
            async for event in events:
                if self._guard.caller_of(request) != caller:
                    return
                yield event


async def _answer(asked: Awaitable[HttpAnswer]) -> HttpAnswer:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await asked
    except (RetryableError, PermanentError) as exc:
        return HTTPStatus.SERVICE_UNAVAILABLE, {"error": scrub_text(str(exc))}
    except TimeoutError:
        return HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"no answer within {ANSWER_WITHIN_S:g} s"}


def shown_to(role: Role | None, route: Route, status: int, answer: dict[str, Any]) -> HttpAnswer:
    """Return an answer as callers with *role* see it; None: without a token."""
    match role:
        case Role.VIEWER:
            answer = for_viewers(status, answer)
        case Role.PRODUCER:
            answer = for_producers(status, answer)
        case None:
            answer = COUNTS_AND_STATES.apply(answer)
    return status, ({"role": role} | answer if role is not None and route.name in WITH_ROLE else answer)


def _metrics_handler(refresh_gauges: Callable[[], None]) -> Handler:
    rendering = asyncio.Lock()

    async def show_metrics(request: web.Request) -> web.StreamResponse:
        try:
            encode, content_type = choose_encoder(",".join(request.headers.getall("Accept", [])))
        except TypeError:
            raise BadRequestError("Accept: expected a version that is a number, got another text") from None
        async with rendering:
            refresh_gauges()
            body = await asyncio.to_thread(encode, REGISTRY)
        headers = {**COMMON_HEADERS, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        response = web.Response(body=body, headers=headers)
        response.enable_compression()
        return response

    return show_metrics


SHARED_VIEWS: Final[dict[str, Callable[[ReplicaStatus], HttpAnswer | Awaitable[HttpAnswer]]]] = {
    "status": lambda replica: (HTTPStatus.OK, replica.status()),
    "fleet": lambda replica: (HTTPStatus.OK, replica.fleet_status()),
    "fleet_history": lambda replica: (HTTPStatus.OK, replica.history_of_fleet()),
    "handler_status": lambda replica: (HTTPStatus.OK, replica.handler_status()),
    "shards": lambda replica: replica.started.inspect_shards(),
    "sqs_stats": lambda replica: replica.started.monitoring.sqs_stats(),
    "handler_stats": lambda replica: replica.started.monitoring.handler_stats(),
    "cache_stats": lambda replica: replica.started.monitoring.cache_stats(),
    "cache_keys": lambda replica: replica.started.monitoring.cache_keys(),
}


class _Endpoints:
    def __init__(self, replica: ReplicaStatus, letters: LetterRequests | None) -> None:
        self._replica = replica
        self._letters = letters
        folder = resources.files("simplu_worker.status.page")
        reasons = "".join(f"<option>{reason}" for reason in DeadLetterReason)
        text = folder.joinpath(DOCUMENT).read_text(encoding="utf-8")
        self._document = text.replace("<!-- reasons -->", reasons).encode()
        self._files = {
            entry.name: (entry.read_bytes(), content_type)
            for entry in folder.iterdir()
            for suffix, content_type in CONTENT_TYPES.items()
            if entry.name.endswith(suffix)
        }
        self.description = _answer_handler(describe(__version__))
        self.message_schemas = _answer_handler({"schemas": [f"{name}.json" for name in SCHEMAS]})
        self._message_schemas = {name: msgspec.json.encode(schema) for name, schema in SCHEMAS.items()}
        self.metrics = _metrics_handler(replica.refresh_gauges)

    async def page(self, _: web.Request) -> web.Response:
        headers = {**COMMON_HEADERS, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY}
        return web.Response(body=self._document, headers=headers)

    async def page_file(self, request: web.Request) -> web.Response:
        found = self._files.get(request.match_info["file"])
        if found is None:
            return error_response(HTTPStatus.NOT_FOUND, "there is nothing at this path")
        body, content_type = found
        return web.Response(body=body, headers={**COMMON_HEADERS, "Content-Type": content_type})

    async def message_schema(self, request: web.Request) -> web.Response:
        schema = self._message_schemas.get(request.match_info["name"])
        if schema is None:
            return error_response(HTTPStatus.NOT_FOUND, "there is no such schema; GET /schemas/ has the names")
        return encoded_response(HTTPStatus.OK, schema)

    async def live(self, _: web.Request) -> web.Response:
        return _health_response(self._replica.liveness_problem())

    healthy = live

    async def ready(self, _: web.Request) -> web.Response:
        unready = self._replica.readiness_problem()
        return _health_response(unready and unready.reason)

    async def retry_held(self, call: Call) -> HttpAnswer:
        return await call.act(self._replica.retry_held(call.asked.target))

    async def pause_tenant(self, call: Call) -> HttpAnswer:
        return await call.act(self._replica.started.set_controls(*call.tenant, controls_of(call.asked)))

    resume_tenant = weigh_tenant = limit_tenant = pause_tenant

    async def pause_business(self, call: Call) -> HttpAnswer:
        (business_id,) = call.ids
        return await call.act(self._replica.started.set_business_controls(business_id, controls_of(call.asked)))

    resume_business = weigh_business = limit_business = pause_business

    async def list_letters(self, call: Call) -> HttpAnswer:
        if self._letters is None:
            raise RetryableError("this process does not act on dead letters")
        return await self._letters.act(LettersAction(call.route.name), call.asked, call.actor)

    replay_letters = discard_letters = edit_letter = list_letters

    async def clear_cache(self, call: Call) -> HttpAnswer:
        return await call.act(self._replica.started.monitoring.clear_cache())

    async def purge(self, call: Call) -> HttpAnswer:
        return await call.act(self._replica.started.monitoring.purge(call.asked.queue))

    async def wait_for_operation(self, call: Call, closing: asyncio.Event) -> None:
        asked: OperationQuery = call.asked
        if asked.wait is not None and asked.business_id is not None and asked.location_id is not None:
            with contextlib.suppress(RetryableError):  # it starts, as the answer says
                wanted = call.request.match_info["requestId"], asked.business_id, asked.location_id
                await self._replica.started.wait_for_operation(*wanted, asked.wait, closing)

    async def operation(self, call: Call) -> HttpAnswer:
        wanted = call.request.match_info["requestId"], call.asked.business_id, call.asked.location_id
        return await self._replica.started.find_operation(*wanted, call.role)

    async def operations(self, call: Call) -> HttpAnswer:
        query: ListQuery = call.asked
        return await self._replica.started.list_operations(query.business_id, query.location_id, query.request())

    async def tenant(self, call: Call) -> HttpAnswer:
        return await self._replica.started.find_tenant(*call.tenant, call.role)

    async def tenant_by_id(self, call: Call) -> HttpAnswer:
        return await self._replica.started.find_tenant_by_id(*call.ids)

    async def resource(self, call: Call) -> HttpAnswer:
        return await self._replica.started.find_resource(*call.ids)


@web.middleware
async def _answer_errors_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadRequestError as exc:
        return error_response(HTTPStatus.BAD_REQUEST, str(exc))
    except web.HTTPException as exc:  # the router's own: no such path, no such method
        return _http_error(exc, request.method)
    except Exception:
        # A bug in a view must not disable the health answers.
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


def _answer_handler(answer: dict[str, Any]) -> Handler:
    body = msgspec.json.encode(answer)

    async def show_answer(_: web.Request) -> web.Response:
        return encoded_response(HTTPStatus.OK, body)

    return show_answer


def _health_response(trouble: str | None) -> web.Response:
    if trouble is None:
        return json_response(HTTPStatus.OK, {"status": "ok"})
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "unavailable", "reason": trouble})
