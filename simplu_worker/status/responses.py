"""The responses of the HTTP server: JSON, errors included, with the headers that all of them have."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

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
