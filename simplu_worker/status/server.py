"""Serve health, metrics, status and single answers over HTTP (docs/outcomes.md).

Tokens protect every path with data of tenants. Every answer but metrics and the page is JSON. Open connections are
bounded, and so are requests; all else is for a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder

from simplu_worker import __version__
from simplu_worker.consumers.operation_taps import TAPS, TAPS_MAX
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.status.event_stream import changes, parse_tap_query, send_events, tapped
from simplu_worker.status.guard import Actor, Guard, Respond, log_call, logged_action
from simplu_worker.status.lookups import LetterRequests
from simplu_worker.status.message_schemas import FEED_SCHEMAS, SCHEMAS, describe
from simplu_worker.status.page.files import PageFiles
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.request_bodies import (
    COMMON_HEADERS,
    ControlsRequest,
    EditRequest,
    HttpAnswer,
    LettersRequest,
    PauseRequest,
    ResumeRequest,
    RetryRequest,
    WeightRequest,
    busy_response,
    encoded_response,
    error_response,
    json_response,
    read_body,
)
from simplu_worker.status.roles import Tokens, counts_and_states, for_producers, for_viewers
from simplu_worker.status.routes import ROUTES, WAIT_MAX_S, Access, Answer, Route
from simplu_worker.status.views import controls_action, controls_members, parse_listing_request
from simplu_worker.status.words import BadRequestError, Role
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.sharing import SharedAnswer

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
View = Callable[[web.Request], Awaitable[HttpAnswer]]


@contextlib.asynccontextmanager
async def open_http(
    host: str | None,
    port: int,
    *,
    tokens: Tokens,
    replica: ReplicaStatus,
    letters: LetterRequests | None = None,
    allow_destructive: bool = False,
    opens_reads: bool = False,
    is_behind_tls: bool = False,
    tls: ssl.SSLContext | None = None,
    connections_max: int = CONNECTIONS_MAX,
) -> AsyncIterator[int]:
    """Serve what *replica* tells, and yield the port (a free one where *port* is 0). Raises OSError if it is in use.

    Without a *host* on all addresses of IPv4 and IPv6. Without *tokens* protected paths answer 403, and so do DELETEs
    without *allow_destructive*. *opens_reads* shows counts without a token. *tls*: by HTTPS; *is_behind_tls*: a proxy
    does that.
    """
    guard = Guard(
        tokens, host, allow_destructive=allow_destructive, opens_reads=opens_reads, is_behind_tls=is_behind_tls
    )
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
            protected = "open" if tokens.variables(Role) else "closed"
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
    endpoints = _Endpoints(replica, letters, guard)
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
            if route.name == "operation":  # it may wait, and takes no turn meanwhile
                await self._endpoints.wait_for_operation(request, self._closing)
            try:
                async with turns:
                    status, answer = shown_to(role, route, *await _answer(view(request)))
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
        chosen = parse_tap_query(request.query.items())
        if chosen.shows_content and role is not Role.OPERATOR:
            return error_response(HTTPStatus.FORBIDDEN, "content is shown to the token in API_TOKEN alone")
        return busy_response() if len(TAPS.open) >= TAPS_MAX else tapped(chosen, self._closing)

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
            answer = counts_and_states(answer)
    return status, ({"role": role} | answer if role is not None and route.name in WITH_ROLE else answer)


def _metrics_handler(refresh_gauges: Callable[[], None]) -> Handler:
    rendering = asyncio.Lock()

    async def show_metrics(request: web.Request) -> web.StreamResponse:
        encode, content_type = encoder_for(",".join(request.headers.getall("Accept", [])))
        async with rendering:
            refresh_gauges()
            body = await asyncio.to_thread(encode, REGISTRY)
        headers = {**COMMON_HEADERS, "Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        response = web.Response(body=body, headers=headers)
        response.enable_compression()
        return response

    return show_metrics


def encoder_for(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Return the encoder of metrics for the header `Accept`, and its content type; text if it cannot be read."""
    try:
        return choose_encoder(accept)
    except TypeError:  # a version that is no number
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4


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
    def __init__(self, replica: ReplicaStatus, letters: LetterRequests | None, guard: Guard) -> None:
        self._replica = replica
        self._letters = letters
        self._guard = guard
        files = PageFiles()
        self.page = files.show_document
        self.page_file = files.show_file
        self.description = _answer_handler(describe(__version__))
        schemas = SCHEMAS | FEED_SCHEMAS
        self.message_schemas = _answer_handler({"schemas": [f"{name}.json" for name in schemas]})
        self._message_schemas = {name: msgspec.json.encode(schema) for name, schema in schemas.items()}
        self.metrics = _metrics_handler(replica.refresh_gauges)
        self.healthy = self.live
        self.pause_tenant = partial(self._set_controls, kind=PauseRequest)
        self.resume_tenant = partial(self._set_controls, kind=ResumeRequest)
        self.weigh_tenant = partial(self._set_controls, kind=WeightRequest)
        self.list_letters = partial(self._ask_desk, action="list")
        self.replay_letters = partial(self._ask_desk, action="replay")
        self.discard_letters = partial(self._ask_desk, action="discard")
        self.edit_letter = partial(self._ask_desk, action="edit", kind=EditRequest)

    async def message_schema(self, request: web.Request) -> web.Response:
        schema = self._message_schemas.get(request.match_info["name"])
        if schema is None:
            return error_response(HTTPStatus.NOT_FOUND, "there is no such schema; GET /schemas/ has the names")
        return encoded_response(HTTPStatus.OK, schema)

    async def live(self, _: web.Request) -> web.Response:
        return _health_response(self._replica.liveness_problem())

    async def ready(self, request: web.Request) -> web.Response:
        unready = self._replica.readiness_problem()
        if unready is None:
            return _health_response(None)
        is_shown = unready.text is not None and self._guard.is_operator(request)
        if is_shown:
            log_call(request, "/readyz")
        return _health_response(unready.reason, detail=unready.text if is_shown else None)

    async def retry_held(self, request: web.Request) -> HttpAnswer:
        body = await read_body(request, RetryRequest)
        return await _act(request, "retry_held", self._replica.retry_held(body.target), target=body.target)

    async def _set_controls(self, request: web.Request, kind: type[ControlsRequest]) -> HttpAnswer:
        business_id, location_id = request.match_info["businessId"], request.match_info["locationId"]
        controls = (await read_body(request, kind)).controls
        acting = self._replica.started.set_controls(business_id, location_id, controls)
        asked = {"businessId": business_id, "locationId": location_id} | controls_members(controls)
        return await _act(request, controls_action(controls), acting, **asked)

    async def _ask_desk(
        self,
        request: web.Request,
        action: Literal["list", "replay", "discard", "edit"],
        kind: type[EditRequest | LettersRequest] = LettersRequest,
    ) -> HttpAnswer:
        if self._letters is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "this process does not act on dead letters"}
        body = await read_body(request, kind)
        act: Callable[[Any, Actor], Awaitable[HttpAnswer]] = getattr(self._letters, action)
        return await act(body, _actor_of(request))

    async def clear_cache(self, request: web.Request) -> HttpAnswer:
        return await _act(request, "clear_cache", self._replica.started.monitoring.clear_cache())

    async def purge(self, request: web.Request) -> HttpAnswer:
        names = [name for name in request.query.getall("queue", []) if name]
        if len(names) > 1:
            raise BadRequestError("expected the name of one queue, as ?queue=NAME, got several")
        name = names[0] if names else None
        return await _act(request, "purge", self._replica.started.monitoring.purge(name), queue=name)

    async def wait_for_operation(self, request: web.Request, closing: asyncio.Event) -> None:
        if (wait := parse_wait(request)) is not None:
            with contextlib.suppress(RetryableError):  # it starts, as the answer says
                await self._replica.started.wait_for_operation(*wait, closing)

    async def operation(self, request: web.Request) -> HttpAnswer:
        business_id, location_id = _named_tenant(request)
        if (business_id is None) != (location_id is None):
            raise BadRequestError("expected businessId and locationId together, or neither of them")
        if any("\0" in one for one in (business_id, location_id) if one):
            raise BadRequestError("expected ids without the character U+0000")
        role = self._role_of(request)
        return await self._replica.started.find_operation(
            request.match_info["requestId"], business_id, location_id, role
        )

    async def operations(self, request: web.Request) -> HttpAnswer:
        return await self._replica.started.list_operations(parse_listing_request(request.query.items()))

    async def tenant(self, request: web.Request) -> HttpAnswer:
        business_id, location_id = request.match_info["businessId"], request.match_info["locationId"]
        return await self._replica.started.find_tenant(business_id, location_id, self._role_of(request))

    def _role_of(self, request: web.Request) -> Role:
        caller = self._guard.caller_of(request)
        return Role.PRODUCER if caller is None else caller.role  # None: taken away meanwhile

    async def tenant_by_id(self, request: web.Request) -> HttpAnswer:
        return await self._replica.started.find_tenant_by_id(request.match_info["tenantId"])

    async def resource(self, request: web.Request) -> HttpAnswer:
        names = [request.match_info[name] for name in ("businessId", "locationId", "resourceType", "resourceId")]
        return await self._replica.started.find_resource(*names)


def _named_tenant(request: web.Request) -> tuple[str | None, str | None]:
    return request.query.get("businessId") or None, request.query.get("locationId") or None


def parse_wait(request: web.Request) -> tuple[str, str, str, float] | None:
    """Return request id, tenant and seconds of a request that waits, else None. Raises BadRequestError."""
    texts = [text for text in request.query.getall("wait", []) if text]
    if not texts:
        return None
    try:
        within_s = float(texts[0])
    except ValueError:
        within_s = -1.0
    if len(texts) > 1 or not 0 <= within_s <= WAIT_MAX_S:
        got = "several" if len(texts) > 1 else "another text or number"
        raise BadRequestError(f"wait: expected a number of seconds up to {WAIT_MAX_S:g}, got {got}")
    business_id, location_id = _named_tenant(request)
    if business_id is None or location_id is None:
        raise BadRequestError("wait: expected businessId and locationId too, as each look would ask all shards")
    return request.match_info["requestId"], business_id, location_id, within_s


def _actor_of(request: web.Request) -> Actor:
    return Actor(Role.OPERATOR, request.remote)


async def _act(request: web.Request, action: str, acting: Awaitable[HttpAnswer], **asked: Any) -> HttpAnswer:
    with logged_action(action, _actor_of(request), asked) as acted:
        answer = await acting
        acted.answer = answer[1]
    return answer


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
        log.exception("http.failed", path=_path_of(request))
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "this answer failed; the worker's log has the reason")


def _path_of(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    return resource.canonical if resource else None


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


def _health_response(trouble: str | None, *, detail: str | None = None) -> web.Response:
    if trouble is None:
        return json_response(HTTPStatus.OK, {"status": "ok"})
    more = {} if detail is None else {"detail": detail}
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "unavailable", "reason": trouble} | more)
