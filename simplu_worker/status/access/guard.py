"""Admit requests by the role of their token, and log each one of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_worker.status.access.audit import log_call
from simplu_worker.status.access.reductions import is_own_host
from simplu_worker.status.access.roles import Tokens
from simplu_worker.status.responses import error_response
from simplu_worker.status.routes.table import Access, Route
from simplu_worker.vocabulary import Role

VARIABLES: Final = {Role.OPERATOR: "API_TOKEN", Role.VIEWER: "API_VIEWER_TOKEN"}


class Guard:
    """Admits requests by their token; destructive ones, and those without a token, only if allowed."""

    def __init__(
        self, tokens: Tokens, host: str | None, *, allow_destructive: bool = False, opens_reads: bool = False
    ) -> None:
        self._tokens = tokens
        self._host = host
        self._allow_destructive = allow_destructive
        self._opens_reads = opens_reads

    def __repr__(self) -> str:
        return f"Guard({self._tokens!r})"

    def is_operator(self, request: web.Request) -> bool:
        """Return whether *request* has the operators' token."""
        return self._tokens.role_of(request.headers.get("Authorization", "")) is Role.OPERATOR

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
            role = None if authorization is None else self._tokens.role_of(authorization)
            if role is None:
                return self._refusal(by_role, is_sent=authorization is not None)
            if role not in by_role:
                return error_response(
                    HTTPStatus.FORBIDDEN, "the token in API_VIEWER_TOKEN may only look: expected that in API_TOKEN"
                )
            is_refused = route.access is Access.DESTROYERS and not self._allow_destructive
            if role is Role.OPERATOR:
                log_call(request, route.path, refused=HTTPStatus.FORBIDDEN if is_refused else None)
            if is_refused:
                return error_response(
                    HTTPStatus.FORBIDDEN,
                    "destructive requests are not allowed: set ALLOW_DESTRUCTIVE_HTTP=true and restart",
                )
            return await by_role[role](request)

        return guarded

    def _refusal(self, by_role: Mapping[Role, Handler], *, is_sent: bool) -> web.Response:
        roles = [role for role in by_role if role in self._tokens.roles]
        if not roles:
            names = " or ".join(VARIABLES[role] for role in by_role)
            return error_response(
                HTTPStatus.FORBIDDEN, f"no token is configured, so this path is closed: set {names} and restart"
            )
        names = " or ".join(VARIABLES[role] for role in roles)
        if not is_sent:
            return _unauthorized_response(
                f"expected the header Authorization: Bearer, followed by the value of {names}"
            )
        return _unauthorized_response(f"this is not the bearer token that {names} holds", error="invalid_token")


def _unauthorized_response(message: str, *, error: str | None = None) -> web.Response:
    challenge = 'Bearer realm="simplu-worker"' + (f', error="{error}"' if error else "")  # RFC 6750, section 3
    return error_response(HTTPStatus.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})
