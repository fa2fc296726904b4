"""Admit requests by the role of their token and the tenants that it may see, and log each one of an operator."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_worker.status.access.audit import log_call
from simplu_worker.status.access.reductions import is_own_host
from simplu_worker.status.access.roles import LIST_VARIABLE, VARIABLES, Caller, Tokens
from simplu_worker.status.responses import error_response
from simplu_worker.status.routes.table import Access, Route
from simplu_worker.vocabulary import Role

TENANT_IDS: Final = ("businessId", "locationId")
OTHER_TENANT: Final = "this token is of other tenants, or there is no such tenant"
NOT_ENCRYPTED: Final = (
    "tokens of producers are taken over HTTPS alone: set HTTP_TLS_CERT_FILE and HTTP_TLS_KEY_FILE, or HTTP_BEHIND_TLS "
    "where a proxy does it, and restart"
)


class Guard:
    """Admits requests by their token; destructive ones, and those without a token, only if allowed."""

    def __init__(
        self,
        tokens: Tokens,
        host: str | None,
        *,
        allow_destructive: bool = False,
        opens_reads: bool = False,
        is_behind_tls: bool = False,
    ) -> None:
        self._tokens = tokens
        self._host = host
        self._allow_destructive = allow_destructive
        self._opens_reads = opens_reads
        self._is_behind_tls = is_behind_tls

    def __repr__(self) -> str:
        return f"Guard({self._tokens!r})"

    def caller_of(self, request: web.Request) -> Caller | None:
        """Return the caller, by its token as the tokens are now; None without a known one."""
        return self._tokens.caller_of(request.headers.get("Authorization", ""))

    def is_operator(self, request: web.Request) -> bool:
        """Return whether *request* has the token of an operator."""
        caller = self.caller_of(request)
        return caller is not None and caller.role is Role.OPERATOR

    def protect(self, route: Route, by_role: Mapping[Role, Handler], *, without_token: Handler | None) -> Handler:
        """Return the handler of *route*: that of the caller's role, or a refusal.

        *without_token* answers requests that send no token, where reads are open.
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
            caller = None if authorization is None else self._tokens.caller_of(authorization)
            if caller is None:
                return self._refusal(by_role, is_sent=authorization is not None)
            if caller.role not in by_role:
                return error_response(HTTPStatus.FORBIDDEN, _beyond_role(caller.role))
            if caller.role is Role.PRODUCER and (refusal := self._refusal_of_producer(caller, request)) is not None:
                return refusal
            is_refused = route.access is Access.DESTROYERS and not self._allow_destructive
            if caller.role is Role.OPERATOR:
                log_call(request, route.path, refused=HTTPStatus.FORBIDDEN if is_refused else None)
            if is_refused:
                return error_response(
                    HTTPStatus.FORBIDDEN,
                    "destructive requests are not allowed: set ALLOW_DESTRUCTIVE_HTTP=true and restart",
                )
            response = await by_role[caller.role](request)
            if not response.prepared and self._tokens.caller_of(authorization or "") != caller:
                return self._refusal(by_role, is_sent=True)  # taken away meanwhile
            return response

        return guarded

    def _refusal_of_producer(self, caller: Caller, request: web.Request) -> web.Response | None:
        """Return why a producer may not call, if so: it must not learn whether a tenant of others exists."""
        if not (self._is_behind_tls or is_encrypted(request)):
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

    def _refusal(self, by_role: Mapping[Role, Handler], *, is_sent: bool) -> web.Response:
        names = " or ".join(self._tokens.variables(by_role.keys()))
        if not names:
            names = " or ".join(VARIABLES[role] for role in VARIABLES if role in by_role)
            return error_response(
                HTTPStatus.FORBIDDEN, f"no token is configured, so this path is closed: set {names} and restart"
            )
        if not is_sent:
            return _unauthorized_response(
                f"expected the header Authorization: Bearer, followed by the value of {names}"
            )
        return _unauthorized_response(f"this is not the bearer token that {names} holds", error="invalid_token")


def is_encrypted(request: web.Request) -> bool:
    """Return whether nobody between the caller and this process can read along: HTTPS, or the same machine."""
    transport = request.transport
    if transport is not None and transport.get_extra_info("sslcontext") is not None:
        return True
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _beyond_role(role: Role) -> str:
    if role is Role.PRODUCER:
        return f"a producer's token may only ask for operations and tenants: expected another role in {LIST_VARIABLE}"
    return "the token of a viewer may only look: expected that in API_TOKEN, or an operator's"


def _unauthorized_response(message: str, *, error: str | None = None) -> web.Response:
    challenge = 'Bearer realm="simplu-worker"' + (f', error="{error}"' if error else "")  # RFC 6750, section 3
    return error_response(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})
