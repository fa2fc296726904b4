"""Responses: JSON, errors included, with common headers."""

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
HttpAnswer = tuple[int, dict[str, Any]]  # an HTTP status, and JSON members


def json_response(status: int, answer: dict[str, Any], *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *answer* as JSON; a `msgspec.Raw` in it is JSON already."""
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
    """Return the answer where there are too many listeners."""
    return error_response(
        HTTPStatus.SERVICE_UNAVAILABLE, "too many listeners; repeat the request", headers={"Retry-After": "1"}
    )
