"""The table of routes, from which the router and `/openapi.json` are made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.dead_letters.plan import EditRequest, LettersRequest
from simplu_worker.operations.operation import ID_MAX
from simplu_worker.shards.listing import TEXT_MAX
from simplu_worker.status import answers, request_bodies
from simplu_worker.status.words import Role

CONTENT_TYPES: Final = {"html": "text/html", "file": "text/*", "metrics": "text/plain", "events": "text/event-stream"}
# An id may contain any character, an encoded slash and braces too; aiohttp decodes it after matching the path.
ANY_ID: Final = "[^/]+"
PLACES: Final = {  # the parameters of paths, with the most characters
    "file": ("The name of the file.", ID_MAX),
    "name": ("The kind of message.", ID_MAX),
    "requestId": ("The operation's `requestId`.", ID_MAX),
    "businessId": ("The business of the tenant.", ID_MAX),
    "locationId": ("Its location.", ID_MAX),
    "tenantId": ("Its business id and its location id, joined by a hyphen.", 2 * ID_MAX + 1),
    "resourceType": ("The type of the resource.", ID_MAX),
    "resourceId": ("Its id.", TEXT_MAX),
}


class Access(StrEnum):
    """The callers of a route."""

    ALL = "all"  # probes, metrics, the page: no data of tenants
    COUNTS = "counts"  # viewers and operators; counts and states without a token, where API_OPEN_READS allows them
    VIEWERS = "viewers"  # viewers and operators; a viewer sees a reduced answer
    PRODUCERS = "producers"  # these too, and producers about their tenants
    OPERATORS = "operators"
    DESTROYERS = "destroyers"  # operators, where ALLOW_DESTRUCTIVE_HTTP allows it


_VIEWERS: Final = frozenset({Role.VIEWER, Role.OPERATOR})
_OPERATORS: Final = frozenset({Role.OPERATOR})
ROLES: Final[Mapping[Access, frozenset[Role]]] = {
    Access.ALL: frozenset(Role),
    Access.COUNTS: _VIEWERS,
    Access.VIEWERS: _VIEWERS,
    Access.PRODUCERS: frozenset(Role),
    Access.OPERATORS: _OPERATORS,
    Access.DESTROYERS: _OPERATORS,
}


class Answer(StrEnum):
    """How the answers of a route are made."""

    AT_ONCE = "at once"  # by a function that waits for nothing
    SHARED = "shared"  # one answer for all callers of a moment
    IN_TURNS = "in turns"  # a few at a time: each answer is another one
    STREAM = "stream"  # it lasts


class Route(msgspec.Struct, frozen=True):
    """One *request*, a method with a path; *name* is that of its endpoint.

    *answers* has types, or keys of CONTENT_TYPES, beside those that the access brings.
    """

    request: str
    name: str
    access: Access
    answer: Answer
    summary: str
    answers: Mapping[int, type | str]
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None

    @property
    def method(self) -> str:
        """The method."""
        return self.request.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path with its parameters in braces."""
        return self.request.partition(" ")[2]

    @property
    def pattern(self) -> str:
        """The path for the router."""
        return self.path.replace("}", f":{ANY_ID}}}")

    @property
    def places(self) -> list[str]:
        """The names of the parameters of the path."""
        return re.findall(r"{(\w+)}", self.path)


ALL, COUNTS, VIEWERS, PRODUCERS, OPERATORS, DESTROYERS = Access
AT_ONCE, SHARED, IN_TURNS, STREAM = Answer
HEALTH: Final = {200: answers.Health, 503: answers.Health}

ROUTES: Final = (
    Route("GET /", "page", ALL, AT_ONCE, "The status page.", {200: "html"}),
    Route(
        *("GET /page/{file}", "page_file", ALL, AT_ONCE, "A style or a script of the status page."),
        {200: "file", 404: answers.Error},
    ),
    Route("GET /openapi.json", "description", ALL, AT_ONCE, "This description.", {200: dict}),
    Route(
        *("GET /schemas/", "message_schemas", ALL, AT_ONCE),
        "The names of the JSON Schemas of messages, below this path.",
        {200: dict},
    ),
    Route(
        *("GET /schemas/{name}.json", "message_schema", ALL, AT_ONCE, "The JSON Schema of one kind of message."),
        {200: dict, 404: answers.Error},
    ),
    Route("GET /livez", "live", ALL, AT_ONCE, "Whether the loops of the worker turn.", HEALTH),
    Route("GET /healthz", "healthy", ALL, AT_ONCE, "The same as /livez.", HEALTH),
    Route("GET /readyz", "ready", ALL, AT_ONCE, "Whether the sources are consumed.", HEALTH),
    Route("GET /metrics", "metrics", ALL, AT_ONCE, "Metrics for Prometheus.", {200: "metrics"}),
    Route("GET /status", "status", COUNTS, SHARED, "The state of this replica.", {200: answers.Status}),
    Route("GET /fleet", "fleet", VIEWERS, SHARED, "The replicas that share the stream.", {200: answers.Fleet}),
    Route(
        *("GET /fleet/history", "fleet_history", VIEWERS, SHARED),
        "Lag and rate of the fleet and of each stream shard over the last hour, and of the fleet over the last day.",
        {200: answers.FleetHistory},
    ),
    Route(
        *("GET /events", "events", VIEWERS, STREAM, "/status and /fleet as server-sent events, for an hour."),
        {200: "events"},
    ),
    Route(
        *("GET /tap", "tap", VIEWERS, STREAM, "Operations as they are decided, as server-sent events, for 15 minutes."),
        {200: "events"},
        query=request_bodies.TapQuery,
    ),
    Route(
        *("POST /held/retry", "retry_held", OPERATORS, IN_TURNS, "Try the held targets of all replicas now."),
        {200: answers.Retry},
        body=request_bodies.RetryRequest,
    ),
    Route(
        *("POST /dead-letters/list", "list_letters", OPERATORS, IN_TURNS),
        "Look at dead letters, which are hidden from other receivers for that time.",
        {200: answers.Letters, 409: answers.Error},
        body=LettersRequest,
    ),
    Route(
        *("POST /dead-letters/replay", "replay_letters", OPERATORS, IN_TURNS),
        "Send the records of dead letters to their source again; without `apply` the plan.",
        {200: answers.ActedOnLetters, 409: answers.Error},
        body=LettersRequest,
    ),
    Route(
        *("POST /dead-letters/discard", "discard_letters", OPERATORS, IN_TURNS),
        "Delete dead letters and their records; without `apply` the plan.",
        {200: answers.ActedOnLetters, 409: answers.Error},
        body=LettersRequest,
    ),
    Route(
        *("POST /dead-letters/edit", "edit_letter", OPERATORS, IN_TURNS),
        "Send a corrected record in place of a dead letter's, under a new request id; without `apply` the plan.",
        {200: answers.Edit, 404: answers.Error, 409: answers.Error},
        body=EditRequest,
    ),
    Route("GET /shards", "shards", COUNTS, SHARED, "Every known shard now.", {200: answers.Shards}),
    Route(
        *("GET /operations", "operations", PRODUCERS, IN_TURNS),
        "The operations of a tenant, those completed last first.",
        {200: answers.Operations, 404: answers.NoTenant},
        query=request_bodies.ListQuery,
    ),
    Route(
        *("GET /operations/{requestId}", "operation", PRODUCERS, IN_TURNS, "The outcome of one operation."),
        {200: answers.Operation, 404: answers.Operation},
        query=request_bodies.OperationQuery,
    ),
    Route(
        *("GET /tenants/{businessId}/{locationId}", "tenant", PRODUCERS, IN_TURNS),
        "One tenant, with the numbers of its rows.",
        {200: answers.Tenant, 404: answers.NoTenant, 503: answers.Error},
    ),
    Route(
        *("GET /tenants/{tenantId}", "tenant_by_id", VIEWERS, IN_TURNS),
        "One tenant by the id that held targets and moves have.",
        {200: answers.Tenant, 404: answers.NoTenant, 503: answers.Error},
    ),
    Route(
        *("GET /resources/{businessId}/{locationId}/{resourceType}/{resourceId}", "resource", OPERATORS, IN_TURNS),
        "One resource as its row is now.",
        {200: answers.Resource, 404: answers.NoTenant},
    ),
    *(
        Route(*(f"POST {place}/{word}", f"{verb}_{whom}", OPERATORS, IN_TURNS, summary.format(whom)), found, body=body)
        for word, verb, body, summary in (
            (
                *("pause", "pause", request_bodies.PauseRequest),
                "Have a {}'s operations and order events wait, for a time.",
            ),
            ("resume", "resume", request_bodies.ResumeRequest, "End the pause of a {}."),
            ("weight", "weigh", request_bodies.WeightRequest, "Give a {} more or less of a shard's time."),
            ("limit", "limit", request_bodies.LimitRequest, "Limit what a {} may send; the rest waits."),
        )
        for place, whom, found in (
            (
                *("/tenants/{businessId}/{locationId}", "tenant"),
                {200: answers.Controls, 404: answers.Error, 409: answers.Error},
            ),
            ("/businesses/{businessId}", "business", {200: answers.BusinessControls, 404: answers.Error}),
        )
    ),
    Route("GET /sqs/stats", "sqs_stats", COUNTS, SHARED, "The queues as SQS reports them.", {200: answers.Queues}),
    Route(
        *("DELETE /sqs/purge", "purge", DESTROYERS, IN_TURNS, "Empty a queue."),
        {202: answers.Purge, 404: answers.Error, 429: answers.Error},
        query=request_bodies.PurgeQuery,
    ),
    Route(
        *("GET /handler/status", "handler_status", COUNTS, SHARED, "The state of the worker and of its sources."),
        {200: answers.Handler},
    ),
    Route(
        "GET /handler/stats", "handler_stats", COUNTS, SHARED, "The queues and their handlers.", {200: answers.Queues}
    ),
    Route("GET /cache/stats", "cache_stats", COUNTS, SHARED, "The state of the cache.", {200: dict}),
    Route(
        *("GET /cache/keys", "cache_keys", OPERATORS, SHARED, "Keys of the cache."),
        {200: answers.CacheKeys, 404: answers.Error},
    ),
    Route(
        "DELETE /cache/clear", "clear_cache", DESTROYERS, IN_TURNS, "Empty the cache.", {200: dict, 404: answers.Error}
    ),
)
