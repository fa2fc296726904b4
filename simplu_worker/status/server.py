"""Serve health, metrics, status and single answers over HTTP (docs/outcomes.md), from views passed as callables.

Bearer tokens protect every path with data of tenants (`guard`); health and metrics have no such data and are open.
The DELETEs have to be allowed separately. Every answer but metrics and the page is JSON, errors included, and contains
no more than necessary.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.exposition import gzip_accepted

from simplu_worker import __version__
from simplu_worker.consumers.operation_taps import TAPS_MAX
from simplu_worker.shards.types import Lever
from simplu_worker.status.connection_order import Places
from simplu_worker.status.connections import (
    BUSY_RETRY_S,
    COMMON_HEADERS,
    CONNECTION_LIMITS,
    ConnectionGate,
    ConnectionLimits,
    busy_response,
    connection_of,
    encoded_response,
    error_response,
    json_response,
)
from simplu_worker.status.event_stream import LISTENERS_MAX, Read, changes, parse_tap_query, send_events, tapped
from simplu_worker.status.guard import Actor, CallRates, Guard, log_call, logged_action
from simplu_worker.status.letter_requests import LetterRequests
from simplu_worker.status.message_schemas import FEED_SCHEMAS, SCHEMAS
from simplu_worker.status.metrics_text import MetricsText, SharedAnswer, accepted_format
from simplu_worker.status.openapi import describe
from simplu_worker.status.operation_waits import WAIT_MAX_S, OperationListQuery, parse_listing_request
from simplu_worker.status.page.files import PageFiles
from simplu_worker.status.request_bodies import (
    EditRequest,
    LettersRequest,
    LeverRequest,
    PauseRequest,
    ResumeRequest,
    RetryRequest,
    WeightRequest,
    read_body,
)
from simplu_worker.status.roles import Tokens, counts_and_states, for_producers, for_viewers
from simplu_worker.status.routes import ROUTES, Access, Answer, Route
from simplu_worker.status.tls import accepting
from simplu_worker.status.views import Unreadiness, lever_action, lever_members
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Role

log = structlog.get_logger(__name__)

SHUTDOWN_TIMEOUT_S: Final = 1.0  # for unfinished answers; idle connections are closed at once
IPV4, IPV6 = "0.0.0.0", "::"  # noqa: S104  # probes and scrapers come from other hosts
NO_IPV6: Final = {None, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # of the error, where the kernel has no IPv6
BACKLOG: Final = 512  # beyond it the kernel drops a connect, which the client repeats after a second
PATH_REQUESTS_MAX: Final = 20  # of one path, while their answers are made; further ones get a 503 at once
REQUESTS_MAX: Final = 50  # of all paths; probes, the page and refusals need no place
VIEWS_AT_ONCE: Final = 4  # of one path without shared answers; further requests wait for their turn
ANSWER_WITHIN_S: Final = 60.0  # more than the limits that the views themselves have
BODY_MAX_BYTES: Final = 65_536
REFUSALS_LOGGED_PER_S: Final = 1.0
UNKNOWN_PEER: Final = "unknown"  # of a connection without an address
WITH_ROLE: Final = frozenset({"status", "fleet"})  # answers that name the caller's role
PROBES: Final = frozenset(route.path for route in ROUTES if route.is_probe)
HttpAnswer = tuple[int, dict[str, Any]]
EncodedAnswer = tuple[int, bytes]
SharedView = Callable[[], Awaitable[HttpAnswer]]
View = Callable[[web.Request], Awaitable[HttpAnswer]]
Wait = Callable[[str, str, str, str, float, asyncio.Event], Awaitable[bool]]


class Views(msgspec.Struct, frozen=True):
    """The content of the server's answers; each callable but the last five reads, and changes nothing but gauges.

    *live* and *ready* return why not, or None, and *detail* what a person should know while the replica is ready;
    *refresh_gauges* sets the gauges that no single event sets, before the metrics are shown. The others return the
    HTTP status and the JSON; text that is JSON already (a result as Postgres stores it) is passed as `msgspec.Raw`, so
    that no number loses a digit.
    *operation* takes the request id and, both or neither, business id and location id; *tenant* takes those two ids,
    both with the caller's role last, and *tenant_by_id* the one id that is made of them; *resource*
    takes both, the type of the resource and its id;
    *wait* takes the name of the caller's token and the three, and returns once the operation is decided or held, after
    some seconds, or at the event, and at once False if too many wait;
    *operations* takes the query of a list.
    *release_lease* releases that of a stream shard; *retry_held* has replicas try a held target, or all;
    *steer_tenant* pauses or weighs a tenant;
    *letters* acts on dead letters, where that is possible.
    *purge* empties the queue of that name, or the only source queue for None; *clear_cache* empties the cache.
    """

    live: Callable[[], str | None]
    ready: Callable[[], Unreadiness | None]
    detail: Callable[[], str | None]
    refresh_gauges: Callable[[], None]
    status: Callable[[], dict[str, Any]]
    fleet: Callable[[], dict[str, Any]]
    fleet_history: Callable[[], dict[str, Any]]
    operation: Callable[[str, str | None, str | None, Role], Awaitable[HttpAnswer]]
    wait: Wait
    operations: Callable[[OperationListQuery], Awaitable[HttpAnswer]]
    tenant: Callable[[str, str, Role], Awaitable[HttpAnswer]]
    tenant_by_id: Callable[[str], Awaitable[HttpAnswer]]
    resource: Callable[[str, str, str, str], Awaitable[HttpAnswer]]
    shards: Callable[[], Awaitable[HttpAnswer]]
    sqs_stats: Callable[[], Awaitable[HttpAnswer]]
    handler_status: Callable[[], dict[str, Any]]
    handler_stats: Callable[[], Awaitable[HttpAnswer]]
    cache_stats: Callable[[], Awaitable[HttpAnswer]]
    cache_keys: Callable[[], Awaitable[HttpAnswer]]
    release_lease: Callable[[str], Awaitable[HttpAnswer]]
    retry_held: Callable[[str | None], Awaitable[HttpAnswer]]
    steer_tenant: Callable[[str, str, Lever], Awaitable[HttpAnswer]]
    letters: LetterRequests | None
    purge: Callable[[str | None], Awaitable[HttpAnswer]]
    clear_cache: Callable[[], Awaitable[HttpAnswer]]


@contextlib.asynccontextmanager
async def open_http(
    host: str | None,
    port: int,
    *,
    tokens: Tokens,
    views: Views,
    allow_destructive: bool = False,
    opens_reads: bool = False,
    is_behind_tls: bool = False,
    tls: Callable[[], ssl.SSLContext] | None = None,
    limits: ConnectionLimits = CONNECTION_LIMITS,
) -> AsyncIterator[int]:
    """Serve *views* while the context is open, and yield the port (a free one where *port* is 0).

    Without a *host*, on all addresses of IPv4 and, unless the kernel has no IPv6, of IPv6.
    Without *tokens* the protected paths answer 403, and so do the DELETEs without *allow_destructive*. With
    *opens_reads* some of the others show counts and states to requests without a token. With *tls* by HTTPS, each
    connection with what it returns then; *is_behind_tls*: a proxy does that. Raises OSError if the port is in use.
    """
    guard = Guard(
        tokens, host, allow_destructive=allow_destructive, opens_reads=opens_reads, is_behind_tls=is_behind_tls
    )
    runner = web.AppRunner(make_application(guard, views, limits), shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        gate = ConnectionGate(cast("web.Server", runner.server), limits)  # aiohttp's sites have no place for it
        async with contextlib.AsyncExitStack() as stack:
            own_port = await _listen(stack, gate, host or IPV4, port, tls)
            if host is None:
                try:
                    await _listen(stack, gate, IPV6, own_port, tls)
                except OSError as exc:
                    if exc.errno not in NO_IPV6:
                        raise
            log.info(
                "http.started",
                host=host,
                port=own_port,
                protected_paths="open" if tokens.variables(Role) else "closed",
                tls=tls is not None,
            )
            yield own_port
    finally:
        await runner.cleanup()


async def _listen(
    stack: contextlib.AsyncExitStack,
    gate: ConnectionGate,
    host: str,
    port: int,
    tls: Callable[[], ssl.SSLContext] | None,
) -> int:
    """Listen on *host* until *stack* ends; return the port."""
    listener = await asyncio.get_running_loop().create_server(
        gate, host, port, reuse_address=True, backlog=BACKLOG, start_serving=tls is None
    )
    stack.callback(listener.close)
    own_port: int = listener.sockets[0].getsockname()[1] if listener.sockets else port
    if tls is not None:
        limits = gate.limits
        await stack.enter_async_context(
            accepting(
                *(listener, gate, tls),
                backlog=BACKLOG,
                handshakes_max=limits.count,
                handshake_s=limits.request_s,
            )
        )
    return own_port


def make_application(guard: Guard, views: Views, limits: ConnectionLimits = CONNECTION_LIMITS) -> web.Application:
    """Return the application with every route of the table."""
    rates = CallRates(per_s=limits.calls_per_s, burst=limits.calls_burst)
    middlewares = [_answer_errors_in_json, _limit_rates(rates, guard)]
    app = web.Application(middlewares=middlewares, client_max_size=BODY_MAX_BYTES)
    endpoints = _Endpoints(views, guard)
    handlers = _Handlers(guard, limits, views.wait)
    app.on_shutdown.append(handlers.close)
    for route in ROUTES:
        handler = handlers.make(route, getattr(endpoints, route.name))
        app.router.add_route(route.method, route.pattern, handler)
        if route.method == "GET" and route.answer is not Answer.STREAM:
            app.router.add_route("HEAD", route.pattern, handler)
    return app


class _Handlers:
    """Makes the handlers of routes: their views, with their limits, as each role sees them."""

    def __init__(
        self,
        guard: Guard,
        limits: ConnectionLimits,
        wait: Wait,
    ) -> None:
        self._guard = guard
        self._wait = wait
        self._limits = limits
        self._gate = _RequestGate()
        self._shared: dict[tuple[str, Role | None], SharedAnswer[EncodedAnswer]] = {}
        self._listeners: dict[str, Places] = {}
        self._lasting: set[asyncio.Event] = set()  # of each answer that lasts: what ends it
        self._is_closing = False

    async def close(self, _: web.Application) -> None:
        """End the answers that last."""
        self._is_closing = True
        for closing in self._lasting:
            closing.set()

    def make(self, route: Route, view: Any) -> Handler:
        """Return the handler of *route*; *view* is a handler, a `SharedView` or a `View`, by its kind of answer."""
        if route.access is Access.ALL:
            handler: Handler = view
            return handler if route.answer is Answer.AT_ONCE else self._gate.limit(route.path, handler)
        kinds: dict[Answer, Callable[[Route, Any, Role | None], Handler]]
        kinds = {Answer.SHARED: self._share, Answer.STREAM: self._stream, Answer.IN_TURNS: self._run}
        make = kinds[route.answer]
        by_role = {Role.OPERATOR: make(route, view, Role.OPERATOR)}
        if route.access in {Access.COUNTS, Access.VIEWERS, Access.PRODUCERS}:
            by_role[Role.VIEWER] = make(route, view, Role.VIEWER)
        if route.access is Access.PRODUCERS:
            by_role[Role.PRODUCER] = make(route, view, Role.PRODUCER)
        without_token = make(route, view, None) if route.access is Access.COUNTS else None
        return self._guard.protect(route, by_role, without_token=without_token)

    def _share(self, route: Route, view: SharedView, role: Role | None) -> Handler:
        async def encode() -> EncodedAnswer:
            status, answer = shown_to(role, route, *await view())
            return status, msgspec.json.encode(answer)

        shared = self._shared[route.name, role] = SharedAnswer(encode)

        async def respond(_: web.Request) -> web.StreamResponse:
            return encoded_response(*await shared())

        return self._gate.limit(route.path, respond)

    def _run(self, route: Route, view: View, role: Role | None) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            try:
                status, answer = shown_to(role, route, *await view(request))
            finally:
                if route.method != "GET":  # it may have changed what the shared answers show
                    for shared in self._shared.values():
                        shared.forget()
            wait_s = answer.get("retryAfterSeconds")
            return json_response(status, answer, headers={"Retry-After": str(wait_s)} if wait_s else None)

        handler = self._gate.limit(route.path, self._gate.take_turns(route.path, respond))
        return self._after_wait(handler) if route.name == "operation" else handler

    def _after_wait(self, handler: Handler) -> Handler:
        """Return *handler* for requests that may wait before their answer is made, when they take no turn."""

        async def wait_first(request: web.Request) -> web.StreamResponse:
            try:
                wait = parse_wait(request)
            except ValueError as exc:
                return error_response(HTTPStatus.BAD_REQUEST, str(exc))
            if wait is None:
                return await handler(request)
            caller = self._guard.caller_of(request)
            token = "" if caller is None else caller.name or caller.role
            with self._lasting_until(request) as end:
                has_waited = await self._wait(token, *wait, end)
            response = await handler(request)
            if not has_waited:  # the answer is as of now
                response.headers.setdefault("Retry-After", str(BUSY_RETRY_S))
            return response

        return wait_first

    @contextlib.contextmanager
    def _lasting_until(self, request: web.Request) -> Iterator[asyncio.Event]:
        """Give the event that ends an answer that lasts: the stop of the server, or the loss of the connection."""
        end = asyncio.Event()
        if self._is_closing:
            end.set()
        self._lasting.add(end)
        connection = connection_of(request)
        connection.call_when_lost(end.set)
        connection.begin_lasting()
        try:
            yield end
        finally:
            self._lasting.remove(end)
            connection.begin_view()

    def _stream(self, route: Route, view: EventView, role: Role | None) -> Handler:
        """Return the handler of a stream of events, for a bounded number of listeners."""
        places = self._listeners.setdefault(route.path, Places(each_max=view.listeners_max, all_max=view.listeners_max))

        def read_as(name: str) -> Read:
            return self._shared[name, role]

        async def respond(request: web.Request) -> web.StreamResponse:
            with self._lasting_until(request) as closing:  # the place of a listener that has gone is free at once
                try:
                    events = view.open(EventRequest(request, role or Role.VIEWER, read_as, closing))
                except ValueError as exc:
                    return error_response(HTTPStatus.BAD_REQUEST, str(exc))
                except PermissionError as exc:
                    return error_response(HTTPStatus.FORBIDDEN, str(exc))
                if not places.take(route.path):
                    return busy_response()
                try:
                    admitted = self._while_admitted(request, events)
                    return await send_events(request, admitted, taken_within_s=self._limits.answer_s)
                finally:
                    places.free(route.path)

        return respond

    async def _while_admitted(
        self, request: web.Request, events: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield *events* until their end, or until the token of the caller is another one's, or nobody's."""
        caller = self._guard.caller_of(request)
        async with contextlib.aclosing(events):
            async for event in events:
                if self._guard.caller_of(request) != caller:
                    return
                yield event


class EventRequest(NamedTuple):
    """A request for a stream of events: *read_as* returns the shared answer of a route as *role* sees it."""

    request: web.Request
    role: Role
    read_as: Callable[[str], Read]
    closing: asyncio.Event


class EventView(NamedTuple):
    """A stream of events. *open* begins nothing yet; its ValueError or PermissionError has an error for people."""

    listeners_max: int
    open: Callable[[EventRequest], AsyncGenerator[bytes, None]]


def _open_changes(asked: EventRequest) -> AsyncGenerator[bytes, None]:
    return changes({name: asked.read_as(name) for name in ("status", "fleet")}, asked.closing)


def _open_tap(asked: EventRequest) -> AsyncGenerator[bytes, None]:
    chosen = parse_tap_query(asked.request.query.items())
    if chosen.shows_content and asked.role is not Role.OPERATOR:
        raise PermissionError("content is shown to the token in API_TOKEN alone")
    return tapped(chosen, asked.closing)


def shown_to(role: Role | None, route: Route, status: int, answer: dict[str, Any]) -> HttpAnswer:
    """Return an answer as callers with *role* see it; None: without a token."""
    match role:
        case Role.VIEWER:
            answer = for_viewers(status, answer)
        case Role.PRODUCER:
            answer = for_producers(status, answer)
        case None:
            answer = counts_and_states(answer)
    return status, ({"role": role} | answer if role is not None and route.name in WITH_ROLE else answer)


class _RequestGate:
    """Limits the requests for as long as their answers are made."""

    def __init__(self) -> None:
        self._places = Places(each_max=PATH_REQUESTS_MAX, all_max=REQUESTS_MAX)
        self._turns: dict[str, asyncio.Semaphore] = {}

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

    def take_turns(self, path: str, handler: Handler) -> Handler:
        """Return *handler* for VIEWS_AT_ONCE requests to *path* at one time, each until its answer is sent."""
        turns = self._turns.setdefault(path, asyncio.Semaphore(VIEWS_AT_ONCE))

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


class _Endpoints:
    """The views by the names of their routes: each turns a request into a call."""

    def __init__(self, views: Views, guard: Guard) -> None:
        self._views = views
        self._guard = guard
        files = PageFiles()
        self.page = files.show_document
        self.page_file = files.show_file
        self.description = _answer_handler(describe(__version__))
        schemas = SCHEMAS | FEED_SCHEMAS
        self.message_schemas = _answer_handler({"schemas": [f"{name}.json" for name in schemas]})
        self._message_schemas = {name: msgspec.json.encode(schema) for name, schema in schemas.items()}
        self.metrics = _metrics_handler(views.refresh_gauges)
        self.healthy = self.live
        self.events = EventView(LISTENERS_MAX, _open_changes)
        self.tap = EventView(TAPS_MAX, _open_tap)
        self.shards = views.shards
        self.sqs_stats = views.sqs_stats
        self.handler_stats = views.handler_stats
        self.cache_stats = views.cache_stats
        self.cache_keys = views.cache_keys

    async def message_schema(self, request: web.Request) -> web.Response:
        schema = self._message_schemas.get(request.match_info["name"])
        if schema is None:
            return error_response(HTTPStatus.NOT_FOUND, "there is no such schema; GET /schemas/ has the names")
        return encoded_response(HTTPStatus.OK, schema)

    async def live(self, _: web.Request) -> web.Response:
        return _health_response(self._views.live())

    async def ready(self, request: web.Request) -> web.Response:
        unready = self._views.ready()
        if unready is None:
            return _health_response(None, detail=self._views.detail())
        is_shown = unready.text is not None and self._guard.is_operator(request)
        if is_shown:
            log_call(request, "/readyz")
        return _health_response(unready.reason, detail=unready.text if is_shown else None)

    async def status(self) -> HttpAnswer:
        return HTTPStatus.OK, self._views.status()

    async def fleet(self) -> HttpAnswer:
        return HTTPStatus.OK, self._views.fleet()

    async def fleet_history(self) -> HttpAnswer:
        return HTTPStatus.OK, self._views.fleet_history()

    async def release_lease(self, request: web.Request) -> HttpAnswer:
        stream_shard_id = request.match_info["streamShard"]
        return await _act(
            request, "release_lease", self._views.release_lease(stream_shard_id), streamShard=stream_shard_id
        )

    async def retry_held(self, request: web.Request) -> HttpAnswer:
        try:
            body = await read_body(request, RetryRequest)
        except ValueError as exc:
            return _bad_request(str(exc))
        return await _act(request, "retry_held", self._views.retry_held(body.target), target=body.target)

    async def pause_tenant(self, request: web.Request) -> HttpAnswer:
        return await self._steer(request, PauseRequest)

    async def resume_tenant(self, request: web.Request) -> HttpAnswer:
        return await self._steer(request, ResumeRequest)

    async def weigh_tenant(self, request: web.Request) -> HttpAnswer:
        return await self._steer(request, WeightRequest)

    async def _steer(self, request: web.Request, kind: type[LeverRequest]) -> HttpAnswer:
        business_id, location_id = request.match_info["businessId"], request.match_info["locationId"]
        if not _are_storable(business_id, location_id):
            return _bad_request("expected ids without the character U+0000")
        try:
            lever = (await read_body(request, kind)).lever
        except ValueError as exc:
            return _bad_request(str(exc))
        acting = self._views.steer_tenant(business_id, location_id, lever)
        asked = {"businessId": business_id, "locationId": location_id} | lever_members(lever)
        return await _act(request, lever_action(lever), acting, **asked)

    async def list_letters(self, request: web.Request) -> HttpAnswer:
        return await self._ask_letters(request, "list")

    async def replay_letters(self, request: web.Request) -> HttpAnswer:
        return await self._ask_letters(request, "replay")

    async def discard_letters(self, request: web.Request) -> HttpAnswer:
        return await self._ask_letters(request, "discard")

    async def edit_letter(self, request: web.Request) -> HttpAnswer:
        return await self._ask_letters(request, "edit", EditRequest)

    async def _ask_letters(
        self,
        request: web.Request,
        action: Literal["list", "replay", "discard", "edit"],
        kind: type[EditRequest | LettersRequest] = LettersRequest,
    ) -> HttpAnswer:
        if self._views.letters is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "this process does not act on dead letters"}
        try:
            body = await read_body(request, kind)
        except ValueError as exc:
            return _bad_request(str(exc))
        act: Callable[[Any, Actor], Awaitable[HttpAnswer]] = getattr(self._views.letters, action)
        return await act(body, _actor_of(request))

    async def handler_status(self, _: web.Request) -> HttpAnswer:
        return HTTPStatus.OK, self._views.handler_status()

    async def clear_cache(self, request: web.Request) -> HttpAnswer:
        return await _act(request, "clear_cache", self._views.clear_cache())

    async def purge(self, request: web.Request) -> HttpAnswer:
        names = [name for name in request.query.getall("queue", []) if name]
        if len(names) > 1:
            return _bad_request("expected the name of one queue, as ?queue=NAME, got several")
        name = names[0] if names else None
        return await _act(request, "purge", self._views.purge(name), queue=name)

    async def operation(self, request: web.Request) -> HttpAnswer:
        request_id = request.match_info["requestId"]
        business_id, location_id = _named_tenant(request)
        if (business_id is None) != (location_id is None):
            return _bad_request("expected businessId and locationId together, or neither of them")
        if not _are_storable(request_id, business_id, location_id):
            return _bad_request("expected ids without the character U+0000")
        return await self._views.operation(request_id, business_id, location_id, self._role_of(request))

    async def operations(self, request: web.Request) -> HttpAnswer:
        try:
            query = parse_listing_request(request.query.items())
        except ValueError as exc:
            return _bad_request(str(exc))
        return await self._views.operations(query)

    async def tenant(self, request: web.Request) -> HttpAnswer:
        business_id, location_id = request.match_info["businessId"], request.match_info["locationId"]
        if not _are_storable(business_id, location_id):
            return _bad_request("expected ids without the character U+0000")
        return await self._views.tenant(business_id, location_id, self._role_of(request))

    def _role_of(self, request: web.Request) -> Role:
        caller = self._guard.caller_of(request)
        return Role.PRODUCER if caller is None else caller.role  # None: taken away meanwhile

    async def tenant_by_id(self, request: web.Request) -> HttpAnswer:
        tenant_id = request.match_info["tenantId"]
        if not _are_storable(tenant_id):
            return _bad_request("expected an id without the character U+0000")
        return await self._views.tenant_by_id(tenant_id)

    async def resource(self, request: web.Request) -> HttpAnswer:
        names = [request.match_info[name] for name in ("businessId", "locationId", "resourceType", "resourceId")]
        if not _are_storable(*names):
            return _bad_request("expected ids without the character U+0000")
        return await self._views.resource(*names)


def _named_tenant(request: web.Request) -> tuple[str | None, str | None]:
    """Return the ids that the query names; an empty one counts as absent."""
    return request.query.get("businessId") or None, request.query.get("locationId") or None


def parse_wait(request: web.Request) -> tuple[str, str, str, float] | None:
    """Return request id, business id, location id and seconds of a request that waits; None of another one.

    Raises ValueError with an error for people.
    """
    texts = [text for text in request.query.getall("wait", []) if text]
    if not texts:
        return None
    try:
        within_s = float(texts[0])
    except ValueError:
        within_s = -1.0
    if len(texts) > 1 or not 0 <= within_s <= WAIT_MAX_S:
        got = "several" if len(texts) > 1 else "another text or number"
        raise ValueError(f"wait: expected a number of seconds up to {WAIT_MAX_S:g}, got {got}")
    business_id, location_id = _named_tenant(request)
    if business_id is None or location_id is None:
        raise ValueError("wait: expected businessId and locationId too: without them each look would ask all shards")
    return request.match_info["requestId"], business_id, location_id, within_s


def _actor_of(request: web.Request) -> Actor:
    return Actor(Role.OPERATOR, request.remote)


async def _act(request: web.Request, action: str, acting: Awaitable[HttpAnswer], **asked: Any) -> HttpAnswer:
    """Return the answer of an operator's action, which is logged."""
    with logged_action(action, _actor_of(request), asked) as acted:
        answer = await acting
        acted.answer = answer[1]
    return answer


def _bad_request(error: str) -> HttpAnswer:
    return HTTPStatus.BAD_REQUEST, {"error": error}


@web.middleware
async def _answer_errors_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    connection_of(request).begin_view()
    try:
        return await handler(request)
    except web.HTTPException as exc:  # the router's own: no such path, no such method
        return _http_error(exc, request.method)
    except Exception:
        # A bug in a view must not disable the health answers.
        log.exception("http.failed", path=_path_of(request))
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "this answer failed; the worker's log has the reason")


def _path_of(request: web.Request) -> str | None:
    """Return the path of the route, without the ids in it; None for a path that does not exist."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else None


def _limit_rates(rates: CallRates, guard: Guard) -> Middleware:
    """Return the middleware that limits the calls of each peer; probes are never refused.

    Refused calls of operators are logged, REFUSALS_LOGGED_PER_S of each peer.
    """
    logged = CallRates(per_s=REFUSALS_LOGGED_PER_S, burst=1)

    @web.middleware
    async def limit_rates(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in PROBES:
            peer, now = request.remote or UNKNOWN_PEER, loop_time()
            wait_s = rates.wait_s(peer, now)
            if wait_s:
                if guard.is_operator(request) and not logged.wait_s(peer, now):
                    log_call(request, _path_of(request), refused=HTTPStatus.TOO_MANY_REQUESTS)
                return error_response(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too many requests of one peer; repeat the request later",
                    headers={"Retry-After": str(math.ceil(wait_s))},
                )
        return await handler(request)

    return limit_rates


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
    """Return the handler of an answer that never changes."""
    body = msgspec.json.encode(answer)

    async def show_answer(_: web.Request) -> web.Response:
        return encoded_response(HTTPStatus.OK, body)

    return show_answer


def _are_storable(*ids: str | None) -> bool:
    """Return whether Postgres could hold each of *ids* as text."""
    return not any(value and "\0" in value for value in ids)


def _health_response(trouble: str | None, *, detail: str | None = None) -> web.Response:
    """Return the answer to a probe; *detail* is what a person should know beside it."""
    more = {} if detail is None else {"detail": detail}
    if trouble is None:
        return json_response(HTTPStatus.OK, {"status": "ok"} | more)
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "unavailable", "reason": trouble} | more)
