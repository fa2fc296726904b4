"""Serve the files of the status page: static and open, as a person types the token.

The policy allows scripts and styles of this server alone.
"""

from __future__ import annotations

from http import HTTPStatus
from importlib import resources
from typing import Final

from aiohttp import web

from simplu_worker.status.request_bodies import COMMON_HEADERS, error_response
from simplu_worker.vocabulary import DeadLetterReason

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
CONTENT_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
DOCUMENT: Final = "index.html"


class PageFiles:
    """The files, read once."""

    def __init__(self) -> None:
        folder = resources.files(__package__)
        reasons = "".join(f"<option>{reason}" for reason in DeadLetterReason)
        text = folder.joinpath(DOCUMENT).read_text(encoding="utf-8")
        self._document = text.replace("<!-- reasons -->", reasons).encode()
        self._files = {
            entry.name: (entry.read_bytes(), content_type)
            for entry in folder.iterdir()
            for suffix, content_type in CONTENT_TYPES.items()
            if entry.name.endswith(suffix)
        }

    async def show_document(self, _: web.Request) -> web.Response:
        """Answer `GET /`."""
        headers = {**COMMON_HEADERS, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY}
        return web.Response(body=self._document, headers=headers)

    async def show_file(self, request: web.Request) -> web.Response:
        """Answer `GET /page/{file}`."""
        found = self._files.get(request.match_info["file"])
        if found is None:
            return error_response(HTTPStatus.NOT_FOUND, "there is nothing at this path")
        body, content_type = found
        return web.Response(body=body, headers={**COMMON_HEADERS, "Content-Type": content_type})
