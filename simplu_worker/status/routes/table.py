"""The table of routes: each path with its method, its access and its limits (docs/interface.md). Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

# An id may contain any character, an encoded slash and braces too; aiohttp decodes it after matching the path.
ANY_ID: Final = "[^/]+"


class Access(StrEnum):
    """The callers of a route."""

    ALL = "all"  # probes, metrics, the page: no data of tenants
    COUNTS = "counts"  # both roles; counts and states without a token, where API_OPEN_READS allows them
    VIEWERS = "viewers"  # both roles; a viewer sees a reduced answer
    OPERATORS = "operators"
    DESTROYERS = "destroyers"  # operators, where ALLOW_DESTRUCTIVE_HTTP allows it


class Answer(StrEnum):
    """How the answers of a route are made, and limited."""

    AT_ONCE = "at once"  # without limits: by a function that returns at once
    LIMITED = "limited"  # a number of requests at a time
    SHARED = "shared"  # the same, and one answer for all callers of a moment
    IN_TURNS = "in turns"  # the same, a few at a time: each answer is another one
    STREAM = "stream"  # lasts: it has limits of its own


class Route(msgspec.Struct, frozen=True):
    """One path with one method; *name* is that of its view."""

    method: str
    path: str
    name: str
    access: Access
    answer: Answer

    @property
    def pattern(self) -> str:
        """The path for the router."""
        return self.path.replace("}", f":{ANY_ID}}}")

    @property
    def is_probe(self) -> bool:
        """Whether the route is never refused: an orchestrator would end the worker."""
        return self.answer is Answer.AT_ONCE and self.path != "/"


ROUTES: Final = (
    Route("GET", "/", "page", Access.ALL, Answer.AT_ONCE),
    Route("GET", "/livez", "live", Access.ALL, Answer.AT_ONCE),
    Route("GET", "/healthz", "healthy", Access.ALL, Answer.AT_ONCE),
    Route("GET", "/readyz", "ready", Access.ALL, Answer.AT_ONCE),
    Route("GET", "/metrics", "metrics", Access.ALL, Answer.LIMITED),
    Route("GET", "/status", "status", Access.COUNTS, Answer.SHARED),
    Route("GET", "/fleet", "fleet", Access.VIEWERS, Answer.SHARED),
    Route("GET", "/events", "events", Access.VIEWERS, Answer.STREAM),
    Route("GET", "/shards", "shards", Access.COUNTS, Answer.SHARED),
    Route("GET", "/operations", "operations", Access.VIEWERS, Answer.IN_TURNS),
    Route("GET", "/operations/{requestId}", "operation", Access.VIEWERS, Answer.IN_TURNS),
    Route("GET", "/tenants/{businessId}/{locationId}", "tenant", Access.VIEWERS, Answer.IN_TURNS),
    Route("GET", "/sqs/stats", "sqs_stats", Access.COUNTS, Answer.SHARED),
    Route("DELETE", "/sqs/purge", "purge", Access.DESTROYERS, Answer.IN_TURNS),
    Route("GET", "/handler/status", "handler_status", Access.COUNTS, Answer.IN_TURNS),
    Route("GET", "/handler/stats", "handler_stats", Access.COUNTS, Answer.SHARED),
    Route("GET", "/cache/stats", "cache_stats", Access.COUNTS, Answer.SHARED),
    Route("GET", "/cache/keys", "cache_keys", Access.OPERATORS, Answer.SHARED),
    Route("DELETE", "/cache/clear", "clear_cache", Access.DESTROYERS, Answer.IN_TURNS),
)
