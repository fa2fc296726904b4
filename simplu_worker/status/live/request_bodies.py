"""The bodies of requests that act: JSON objects, bounded in size and time."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import msgspec
from aiohttp import web

BODY_WITHIN_S: Final = 10.0

Body = TypeVar("Body", bound=msgspec.Struct)


class RetryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /held/retry`: a target as `/status` shows it, or none for all."""

    target: str | None = None


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the body of *request*; an empty one is an empty object. The server limits its size.

    Raises ValueError with an error for people, which quotes nothing of the body.
    """
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            text = await request.read()
    except TimeoutError:
        raise ValueError(f"expected the whole body within {BODY_WITHIN_S:g} s") from None
    try:
        return msgspec.json.decode(text or b"{}", type=kind)
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise ValueError("expected a JSON object as the body, got other bytes") from None
