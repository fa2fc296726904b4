"""Admit requests by the role and the tenants of their token, and log what operators do, never content."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_worker.errors import WorkerError
from simplu_worker.status.request_bodies import error_response
from simplu_worker.status.roles import LIST_VARIABLE, VARIABLES, Caller, Tokens, is_own_host
from simplu_worker.status.routes import ROLES, Access, Route
from simplu_worker.status.words import Role

SHOWN_LENGTH: Final = 200  # of an id in the log
LOGGED_QUERY: Final = frozenset({"businessId", "locationId", "queue", "content"})  # names, of which none is content
COMMAND: Final = "command"
UNCOUNTED: Final = frozenset({"applied", "notes"})
UNENDED: Final = "not ended: a part of it may be done"

log = structlog.get_logger(__name__)


class Actor(NamedTuple):
    """An operator at the address *peer*, or a command on the machine *peer*."""

    role: str
    peer: str | None


def _log_call(request: web.Request, path: str, *, refused: int | None) -> None:
    about = {**request.match_info, **{name: request.query[name] for name in LOGGED_QUERY if name in request.query}}
    log.info(
        "http.called",
        role=Role.OPERATOR,
        peer=request.remote,
        method=request.method,
        path=path,
        about={name: value[:SHOWN_LENGTH] for name, value in about.items()} or None,
        refused=None if refused is None else int(refused),  # not its name, as a console shows it
    )


class Acted:
    """An action under way, and its *answer*."""

    def __init__(self) -> None:
        self.answer: Mapping[str, Any] | None = None


@contextlib.contextmanager
def logged_action(action: str, actor: Actor, asked: Mapping[str, Any], *, apply: bool = True) -> Iterator[Acted]:
    """Log an action at its end: what was *asked*, the counts of its answer, or its error.

    Without *apply* it was a plan. Commands write warnings alone; on a terminal the person sees the result.
    """
    acted = Acted()
    error: str | None = UNENDED
    try:
        yield acted
        error = None if acted.answer is None else acted.answer.get("error")
    except WorkerError as exc:
        error = str(exc)
        raise
    finally:
        report = log.warning if actor.role == COMMAND and not sys.stderr.isatty() else log.info
        report(
            "operator.acted",
            action=action,
            role=actor.role,
            peer=actor.peer,
            apply=apply,
            asked={name: _shorten(value) for name, value in asked.items() if value} or None,
            outcome=None if acted.answer is None else counts_of(acted.answer) or None,
            error=error,
        )


def counts_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an answer and the lengths of its lists; no text."""
    counted = {name: value for name, value in answer.items() if name not in UNCOUNTED and not isinstance(value, str)}
    numbers = {name: value for name, value in counted.items() if isinstance(value, int | float)}
    return numbers | {name: len(value) for name, value in counted.items() if isinstance(value, Sequence)}


def _shorten(value: Any) -> Any:
    return value[:SHOWN_LENGTH] if isinstance(value, str) else value


Respond = Callable[[web.Request, Role | None], Awaitable[web.StreamResponse]]

TENANT_IDS: Final = ("businessId", "locationId")
OTHER_TENANT: Final = "this token is of other tenants, or there is no such tenant"
BEYOND_PRODUCER: Final = (
    f"a producer's token may only ask for operations and tenants: expected another role in {LIST_VARIABLE}"
)
BEYOND_VIEWER: Final = "the token of a viewer may only look: expected that in API_TOKEN, or an operator's"
NOT_ENCRYPTED: Final = (
    "tokens of producers are taken over HTTPS alone: set HTTP_TLS_CERT_FILE and HTTP_TLS_KEY_FILE, or HTTP_BEHIND_TLS "
    "where a proxy does it, and restart"
)


@dataclass(frozen=True)
class Guard:
    """Admits requests by their token; destructive ones, and those without one, only if allowed."""

    tokens: Tokens
    host: str | None
    allow_destructive: bool = False
    opens_reads: bool = False
    is_behind_tls: bool = False

    def caller_of(self, request: web.Request) -> Caller | None:
        """Return the caller, by the tokens as they are now; None without one."""
        return self.tokens.caller_of(request.headers.get("Authorization", ""))

    def protect(self, route: Route, respond: Respond) -> Handler:
        """Return the handler of *route*: *respond* with the caller's role, None where reads are open; or a refusal."""
        roles = ROLES[route.access]

        async def guarded(request: web.Request) -> web.StreamResponse:
            authorization = request.headers.get("Authorization")
            if authorization is None and self.opens_reads and route.access is Access.COUNTS:
                if is_own_host(request.headers.get("Host", ""), self.host):
                    return await respond(request, None)
                return error_response(
                    HTTPStatus.FORBIDDEN,
                    "expected the value of HTTP_HOST, an IP address or localhost as Host, since no token was sent",
                )
            caller = None if authorization is None else self.tokens.caller_of(authorization)
            if caller is None:
                return self._refusal(roles, is_sent=authorization is not None)
            if caller.role not in roles:
                beyond = BEYOND_PRODUCER if caller.role is Role.PRODUCER else BEYOND_VIEWER
                return error_response(HTTPStatus.FORBIDDEN, beyond)
            if caller.role is Role.PRODUCER and (refusal := self._refusal_of_producer(caller, request)) is not None:
                return refusal
            is_refused = route.access is Access.DESTROYERS and not self.allow_destructive
            if caller.role is Role.OPERATOR:
                _log_call(request, route.path, refused=HTTPStatus.FORBIDDEN if is_refused else None)
            if is_refused:
                return error_response(
                    HTTPStatus.FORBIDDEN,
                    "destructive requests are not allowed: set ALLOW_DESTRUCTIVE_HTTP=true and restart",
                )
            return await respond(request, caller.role)

        return guarded

    def _refusal_of_producer(self, caller: Caller, request: web.Request) -> web.Response | None:
        """Return why a producer may not call: it must not learn whether others' tenants exist."""
        if not (self.is_behind_tls or is_encrypted(request)):
            return error_response(HTTPStatus.FORBIDDEN, NOT_ENCRYPTED)
        given = [
            [request.match_info[name]] if name in request.match_info else request.query.getall(name, [])
            for name in TENANT_IDS
        ]
        if any(len(values) != 1 or not values[0] for values in given):
            return error_response(
                HTTPStatus.BAD_REQUEST, "expected businessId and locationId, each once: this token is a producer's"
            )
        if not caller.may_see(*(values[0] for values in given)):
            return error_response(HTTPStatus.NOT_FOUND, OTHER_TENANT)
        return None

    def _refusal(self, roles: AbstractSet[Role], *, is_sent: bool) -> web.Response:
        names = " or ".join(self.tokens.variables(roles))
        if not names:
            names = " or ".join(VARIABLES[role] for role in VARIABLES if role in roles)
            return error_response(
                HTTPStatus.FORBIDDEN, f"no token is configured, so this path is closed: set {names} and restart"
            )
        if not is_sent:
            return _unauthorized_response(
                f"expected the header Authorization: Bearer, followed by the value of {names}"
            )
        return _unauthorized_response(f"this is not the bearer token that {names} holds", error="invalid_token")


def is_encrypted(request: web.Request) -> bool:
    """Return whether nobody can read along."""
    transport = request.transport
    if transport is not None and transport.get_extra_info("sslcontext") is not None:
        return True
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _unauthorized_response(message: str, *, error: str | None = None) -> web.Response:
    challenge = 'Bearer realm="simplu-worker"' + (f', error="{error}"' if error else "")  # RFC 6750, section 3
    return error_response(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})
