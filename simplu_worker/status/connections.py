"""Bound the number of HTTP connections, and the time of each of their steps, where aiohttp has no setting for it.

aiohttp's own limit on the time of a request closes a connection only once its peer has taken the rest of the last
answer, and its answer to a malformed request repeats the bytes that came, as does its log.

The responses of the HTTP server: JSON, errors included, with the headers that all of them have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from simplu_worker.status.connection_order import CONNECTIONS_MAX, ConnectionOrder
from simplu_worker.timing.clock import loop_time

COMMON_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "simplu-worker",  # hides the versions of Python and of the library
}
BUSY_RETRY_S: Final = 1


def json_response(status: int, answer: dict[str, Any], *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *answer* as JSON."""
    return encoded_response(status, msgspec.json.encode(answer), headers=headers)


def encoded_response(status: int, body: bytes, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *body*, which is JSON."""
    return web.Response(
        status=status, body=body, content_type="application/json", headers={**COMMON_HEADERS, **(headers or {})}
    )


def error_response(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error for people."""
    return json_response(status, {"error": message}, headers=headers)


def busy_response() -> web.Response:
    """Return the answer to a request beyond the limits."""
    return error_response(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too many requests at one time; repeat the request",
        headers={"Retry-After": str(BUSY_RETRY_S)},
    )


def malformed_response() -> web.Response:
    """Return the answer to a request that is not HTTP, without a byte of the request; it closes the connection."""
    response = error_response(HTTPStatus.BAD_REQUEST, "expected a request of HTTP/1.1, got a malformed one")
    response.force_close()
    return response


REQUEST_WITHIN_S: Final = 10.0  # from the connect or the last answer to the end of the request's head
ANSWER_TAKEN_WITHIN_S: Final = 30.0
LINGER_S: Final = 1.0  # for the rest of a request's body, which no path reads
CROWDED_LOG_EVERY_S: Final = 60.0
CALLS_PER_S: Final = 100.0  # of one peer
CALLS_BURST: Final = 500

log = structlog.get_logger(__name__)


class ConnectionLimits(msgspec.Struct, frozen=True):
    """The bounds of connections: at most *count*, and how long each may take for a request and for an answer.

    A peer may call *calls_burst* times at once, and *calls_per_s* times a second.
    """

    count: int = CONNECTIONS_MAX
    request_s: float = REQUEST_WITHIN_S
    answer_s: float = ANSWER_TAKEN_WITHIN_S
    calls_per_s: float = CALLS_PER_S
    calls_burst: int = CALLS_BURST


CONNECTION_LIMITS: Final = ConnectionLimits()


class ConnectionGate:
    """Makes the connections of *server*, within *limits*; an instance is the protocol factory of a listening socket."""

    def __init__(self, server: web.Server, limits: ConnectionLimits) -> None:
        self._server = server
        self.limits = limits
        self.order: ConnectionOrder[BoundedConnection] = ConnectionOrder(limits.count)
        self._crowded_at = float("-inf")

    def __repr__(self) -> str:
        return f"ConnectionGate({self.order!r})"

    def __call__(self) -> BoundedConnection:
        """Return the protocol of a new connection."""
        return BoundedConnection(self, self._server)

    @property
    def is_crowded(self) -> bool:
        """Whether connections are closed after each answer: more than half of them are open.

        Each turn of the event loop accepts one connection, and answers one request of each open one.
        """
        return len(self.order) > self.limits.count / 2

    def admit(self, connection: BoundedConnection) -> None:
        """Count a new connection, and close another one for it at the limit."""
        closed = self.order.add(connection)
        if closed is None:
            return
        closed.abort()
        if loop_time() - self._crowded_at >= CROWDED_LOG_EVERY_S:
            self._crowded_at = loop_time()
            log.warning("http.crowded", connection_max=self.limits.count)


class BoundedConnection(web.RequestHandler):
    """One connection. It is aborted if a step lasts too long; unsent bytes are dropped then."""

    __slots__ = ("_deadline", "_gate", "_on_lost", "_on_sent", "_open_transport")

    def __init__(self, gate: ConnectionGate, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast("logging.Logger", None),  # None is allowed; its type is too narrow
            auto_decompress=False,  # no path reads a body
            lingering_time=LINGER_S,
        )
        self._gate = gate
        self._open_transport: asyncio.Transport | None = None  # until it is closed and all is sent
        self._deadline: asyncio.TimerHandle | None = None
        self._on_sent: list[Callable[[], object]] = []
        self._on_lost: list[Callable[[], object]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: the first request is due."""
        self._open_transport = cast("asyncio.Transport", transport)  # of a stream; uvloop's has no common class
        super().connection_made(transport)
        self._limit_step(self._gate.limits.request_s)
        self._gate.admit(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._limit_step(None)
        self._open_transport = None
        self._gate.order.remove(self)
        while self._on_lost:
            self._on_lost.pop()()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection now; unsent bytes are dropped."""
        if self._open_transport is not None:
            self._open_transport.abort()

    def begin_view(self) -> None:
        """Note that a request is complete; the view that answers it has limits of its own."""
        self._limit_step(None)
        self._gate.order.view(self)

    def begin_lasting(self) -> None:
        """Note that the answer lasts, until the next `begin_view`."""
        self._gate.order.last(self)

    def call_when_sent(self, callback: Callable[[], object]) -> None:
        """Call *callback* at the end of the present answer, sent or not."""
        self._on_sent.append(callback)

    def call_when_lost(self, callback: Callable[[], object]) -> None:
        """Call *callback* if the connection is lost before the end of the present answer, or was before this call."""
        if self._open_transport is None:
            callback()
        else:
            self._on_lost.append(callback)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; from its end on the next request is due."""
        if isinstance(resp, web.HTTPException):  # of a header that aiohttp refuses before the middleware
            resp = malformed_response()
        self._limit_step(self._gate.limits.answer_s)
        self._gate.order.send(self)
        if self._gate.is_crowded:
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._limit_step(self._gate.limits.request_s)
            self._gate.order.receive(self)
            self._on_lost.clear()
            while self._on_sent:
                self._on_sent.pop()()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request without its bytes; the middleware answers for the errors of views."""
        if not isinstance(exc, HttpProcessingError | UnicodeError):
            return super().handle_error(request, status, exc, message)
        _log_malformed(exc)
        return malformed_response()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error of aiohttp itself; of a malformed body only its kind."""
        exc = kw.get("exc_info")
        if isinstance(exc, HttpProcessingError | web.RequestPayloadError):
            _log_malformed(exc)
        else:
            super().log_exception(*args, **kw)

    def _limit_step(self, limit_s: float | None) -> None:
        """Abort after *limit_s*, unless the next step begins before; with None never."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if limit_s is not None and self._open_transport is not None:
            self._deadline = asyncio.get_running_loop().call_later(limit_s, self.abort)


def connection_of(request: web.BaseRequest) -> BoundedConnection:
    """Return the connection of a request to this server."""
    return cast("BoundedConnection", request.protocol)


def _log_malformed(exc: BaseException) -> None:
    log.debug("http.malformed", problem=type(exc).__name__)
