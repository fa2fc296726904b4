"""The description of the HTTP interface as OpenAPI 3.1, made from the table of routes. Pure.

The JSON schemas of the answers over HTTP, for `/openapi.json`.

Members that a viewer does not see are not required.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from simplu_worker.operations.operation import ID_MAX
from simplu_worker.shards.types import PAUSE_MAX_S, WEIGHT_MAX, WEIGHT_MIN
from simplu_worker.status.routes import ROUTES, Access, Answer, Parameter, Route
from simplu_worker.vocabulary import (
    DeadLetterReason,
    ProblemCause,
    RequestStatus,
    Role,
    Severity,
    Source,
    UnreadyReason,
)

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
NUMBER_OR_NULL: Final[Schema] = {"type": ["number", "null"]}
TRUTH: Final[Schema] = {"type": "boolean"}
ANY_OBJECT: Final[Schema] = {"type": "object"}


def _object(required: str = "", **members: Schema) -> Schema:
    return {"type": "object", "properties": members} | ({"required": required.split()} if required else {})


def _list(items: Schema = ANY_OBJECT) -> Schema:
    return {"type": "array", "items": items}


ROLE: Final[Schema] = {"type": "string", "enum": [*map(str, Role)]}
OPERATION: Final = _object(
    "requestId status",
    requestId=TEXT,
    status={"type": "string", "enum": [*map(str, RequestStatus)]},
    operation=TEXT,
    resourceType=TEXT,
    resourceId=TEXT,
    error=TEXT_OR_NULL,
    result={},
    receivedAt=TEXT,
    completedAt=TEXT,
    shardId=TEXT,
    deadLetterQueue=TEXT,
    source=TEXT,
    sequenceNumber=TEXT_OR_NULL,
    messageId=TEXT_OR_NULL,
    rejectedAt=TEXT,
    reason=TEXT,
    since=TEXT,
    readUpTo=TEXT_OR_NULL,
    lagSeconds=NUMBER_OR_NULL,
    answerUntil=TEXT_OR_NULL,
    shardsWithoutAnswer=_list(TEXT),
)
TENANT_USE: Final[Schema] = _object(
    "seconds", seconds=NUMBER, share=NUMBER, operations=COUNT, bytes=COUNT, waitedSeconds=NUMBER
) | {"type": ["object", "null"]}
TOP_TENANT: Final = _object(
    "shardId tenant lastMinute", shardId=TEXT, tenant=TEXT, lastMinute=TENANT_USE, lastHour=TENANT_USE
)
MEASURED: Final = {
    "lagSeconds": NUMBER_OR_NULL,
    "recordsPerSecond": NUMBER_OR_NULL,
    "readKBps": NUMBER_OR_NULL,
    "heldTargets": NUMBER_OR_NULL,
    "seenSecondsAgo": NUMBER_OR_NULL,
    "isSilent": TRUTH,
}
REPLICA: Final = _object(
    "replica isThis leases held",
    replica=TEXT,
    isThis=TRUTH,
    version=TEXT_OR_NULL,
    unable=TEXT_OR_NULL,
    leases=COUNT,
    latencyP99Seconds=NUMBER_OR_NULL,
    deadLetters=NUMBER_OR_NULL,
    isClockApart=TRUTH,
    held=_list(_object("target reason", streamShard=TEXT, target=TEXT, reason=TEXT, ageSeconds=NUMBER)),
    topTenants=_list(TOP_TENANT),
    **MEASURED,
)
STREAM_SHARD: Final = _object(
    "streamShard owner state",
    streamShard=TEXT,
    owner=TEXT_OR_NULL,
    state=TEXT,
    recordsRead=NUMBER_OR_NULL,
    readUpTo=TEXT_OR_NULL,
    checkpoint=TEXT,
    **MEASURED,
)
STREAM_POINTS: Final = _object(
    "streamShard lagSeconds recordsPerSecond",
    streamShard=TEXT,
    lagSeconds=_list(NUMBER_OR_NULL),
    recordsPerSecond=_list(NUMBER_OR_NULL),
)
FLEET_POINTS: Final = _object(
    "intervalSeconds at",
    intervalSeconds=NUMBER,
    at=_list(COUNT),
    recordsPerSecond=_list(NUMBER_OR_NULL),
    lagSeconds=_list(NUMBER_OR_NULL),
    latencyP99Seconds=_list(NUMBER_OR_NULL),
    heldTargets=_list(NUMBER_OR_NULL),
    deadLetters=_list(NUMBER_OR_NULL),
    replicas=_list(NUMBER_OR_NULL),
)
PROBLEM: Final = _object(
    "cause severity problem subject count since at isOver advice runbook",
    cause={"type": "string", "enum": [*map(str, ProblemCause)]},
    reason=TEXT_OR_NULL,
    severity={"type": "string", "enum": [*map(str, Severity)]},
    problem=TEXT,
    subject=TEXT_OR_NULL,
    count=NUMBER,
    since=TEXT,
    at=TEXT,
    isOver=TRUTH,
    advice=TEXT,
    runbook=TEXT,
)
TENANT_HOLD: Final[Schema] = _object("reason", reason=TEXT, since=TEXT, advice=TEXT, runbook=TEXT) | {
    "type": ["object", "null"]
}
REFUSED: Final[Schema] = _object(
    "reason at", reason=TEXT, error=TEXT, at=TEXT, queue=TEXT, messageId=TEXT_OR_NULL, deadLetterQueue=TEXT
) | {"type": ["object", "null"]}
FEED: Final[Schema] = _object(
    "publishedShards destinations",
    publishedShards=COUNT,
    destinations=_list(
        _object(
            "name lagSeconds shards heldTenants stoppedShards",
            name=TEXT,
            lagSeconds=NUMBER,
            shards=COUNT,
            heldTenants=COUNT,
            stoppedShards=_list(TEXT),
            error=TEXT_OR_NULL,
        )
    ),
) | {"type": ["object", "null"]}
HISTORY: Final = _object(
    "intervalSeconds from",
    intervalSeconds=NUMBER,
    operationsPerSecond=_list(NUMBER),
    failedPerSecond=_list(NUMBER),
    deadLetters=_list(COUNT),
    latencyP50Seconds=_list(NUMBER_OR_NULL),
    latencyP99Seconds=_list(NUMBER_OR_NULL),
    lagSeconds=_list(NUMBER_OR_NULL),
    heldTargets=_list(COUNT),
)

# By name: those of the table of routes, and those that these refer to.
SCHEMAS: Final[dict[str, Schema]] = {
    "object": ANY_OBJECT,
    "Error": _object("error", error=TEXT, retryAfterSeconds=COUNT),
    "Health": _object("status", status={"type": "string", "enum": ["ok", "unavailable"]}, reason=TEXT, detail=TEXT),
    "Description": _object("openapi paths", openapi=TEXT, paths=ANY_OBJECT),
    "MessageSchemas": _object("schemas", schemas=_list(TEXT)),
    "Status": _object(
        "version uptime_s ready sources queues streamShards shards held",
        role=ROLE,
        replica=TEXT,
        version=TEXT,
        uptime_s=NUMBER,
        ready={"type": ["boolean", "string"], "enum": [True, *(str(reason) for reason in UnreadyReason)]},
        unreadyDetail=TEXT_OR_NULL,
        sources=_list(),
        queues=_list(),
        streamShards=_list(),
        shards=_list(),
        held=_list(),
        heldAdvice=ANY_OBJECT,
        retentionSeconds=NUMBER_OR_NULL,
        feed=FEED,
        troubles=_list(),
        recentErrors=_list(),
        history=HISTORY,
        counters=ANY_OBJECT,
    ),
    "Fleet": _object(
        "role replica at stream replicas goneReplicas streamShards counts",
        role=ROLE,
        replica=TEXT,
        at=TEXT,
        stream=TEXT_OR_NULL,
        replicas=_list(REPLICA),
        goneReplicas=_list(_object("replica seenSecondsAgo", replica=TEXT, seenSecondsAgo=NUMBER)),
        streamShards=_list(STREAM_SHARD),
        topTenants=_list(TOP_TENANT),
        heldAdvice=ANY_OBJECT,
        problems=_list(PROBLEM),
        counts=_object("replicas leases", replicas=COUNT, leases=COUNT, unowned=COUNT, ended=COUNT),
    ),
    "StreamHistory": _object(
        "intervalSeconds at streamShards hour day",
        intervalSeconds=NUMBER,
        at=TEXT_OR_NULL,
        streamShards=_list(STREAM_POINTS),
        hour=FLEET_POINTS,
        day=FLEET_POINTS,
    ),
    "Release": _object("streamShard how", streamShard=TEXT, how={"type": "string", "enum": ["handed over"]}),
    "RetryRequest": _object(target=TEXT_OR_NULL),
    "Retry": _object("retried asked notAsked", retried=COUNT, asked=_list(TEXT), notAsked=_list(TEXT)),
    "PauseRequest": _object(seconds={"type": "number", "exclusiveMinimum": 0, "maximum": PAUSE_MAX_S}),
    "ResumeRequest": _object(),
    "WeightRequest": _object("weight", weight={"type": "number", "minimum": WEIGHT_MIN, "maximum": WEIGHT_MAX}),
    "Levers": _object("shardId pausedUntil weight", shardId=TEXT, pausedUntil=TEXT_OR_NULL, weight=NUMBER),
    "LettersRequest": _object(
        reasons=_list({"type": "string", "enum": [str(reason) for reason in DeadLetterReason]}),
        source={"type": ["string", "null"], "enum": [*(str(source) for source in Source), None]},
        businessId=TEXT_OR_NULL,
        locationId=TEXT_OR_NULL,
        since={"type": ["string", "null"], "format": "date-time"},
        until={"type": ["string", "null"], "format": "date-time"},
        messageIds={"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 100}, "maxItems": 1000},
        limit={"type": "integer", "minimum": 1, "maximum": 10_000},
        records=TRUTH,
        newest=TRUTH,
        apply=TRUTH,
        force=TRUTH,
    ),
    "EditRequest": _object(
        "messageId record",
        messageId={"type": "string", "minLength": 1, "maxLength": 100},
        record=TEXT,
        requestId={"type": ["string", "null"], "minLength": 1, "maxLength": ID_MAX},
        apply=TRUTH,
    ),
    "Edit": _object(
        "applied sent operation businessId locationId resourceType requestId oldRequestId partitionKey arrivedAt notes",
        applied=TRUTH,
        sent=COUNT,
        operation=TEXT,
        businessId=TEXT,
        locationId=TEXT,
        resourceType=TEXT,
        resourceId=TEXT_OR_NULL,
        requestId=TEXT,
        oldRequestId=TEXT,
        partitionKey=TEXT,
        arrivedAt=TEXT,
        notes=_list(TEXT),
    ),
    "Resource": _object(
        "businessId locationId resourceType resourceId shardId exists",
        businessId=TEXT,
        locationId=TEXT,
        resourceType=TEXT,
        resourceId=TEXT,
        shardId=TEXT,
        exists=TRUTH,
        sizeBytes=NUMBER_OR_NULL,
        date=TEXT_OR_NULL,
        lastUpdated=TEXT_OR_NULL,
        data={"type": ["object", "null"]},
    ),
    "Letters": _object(
        "letters isCut hidden behind until notes",
        letters=_list(),
        notLetters=_list(),
        matched=COUNT,
        isCut=TRUTH,
        hidden=COUNT,
        behind=COUNT,
        until=TEXT,
        notes=_list(TEXT),
    ),
    "Replay": _object(
        "applied sent wouldSend left until notes",
        applied=TRUTH,
        sent=COUNT,
        wouldSend=COUNT,
        left=COUNT,
        letters=_list(),
        until=TEXT,
        notes=_list(TEXT),
    ),
    "Discard": _object(
        "applied discarded wouldDiscard left until notes",
        applied=TRUTH,
        discarded=COUNT,
        wouldDiscard=COUNT,
        left=COUNT,
        letters=_list(),
        until=TEXT,
        notes=_list(TEXT),
    ),
    "Shards": _object("shards", shards=_list(), shardsWithoutAnswer=_list(TEXT)),
    "Operation": OPERATION,
    "Operations": _object(
        "operations", operations=_list(OPERATION), next=TEXT_OR_NULL, searchedTo=TEXT_OR_NULL, shardId=TEXT
    ),
    "Tenant": _object(
        "businessId locationId state shardId",
        businessId=TEXT,
        locationId=TEXT,
        businessType=TEXT,
        state=TEXT,
        shardId=TEXT,
        movedTo=TEXT_OR_NULL,
        createdAt=TEXT_OR_NULL,
        pausedUntil=TEXT_OR_NULL,
        weight=NUMBER,
        resources=NUMBER_OR_NULL,
        operations=NUMBER_OR_NULL,
        tenant=TEXT,
        held=TENANT_HOLD,
        refused=REFUSED,
    ),
    "NoTenant": _object(
        "businessId locationId state", businessId=TEXT, locationId=TEXT, state=TEXT, held=TENANT_HOLD, refused=REFUSED
    ),
    "NoTenantOfId": _object("tenant state", tenant=TEXT, state=TEXT, held=TENANT_HOLD),
    "TenantError": _object("error", error=TEXT, held=TENANT_HOLD),
    "Queues": _object("queues", queues=_list(), handlers=_list()),
    "Purge": _object("queue emptyWithinSeconds", queue=TEXT, emptyWithinSeconds=COUNT),
    "Handler": _object(
        "running state sources",
        running=TRUTH,
        state=TEXT,
        reason=TEXT_OR_NULL,
        detail=TEXT_OR_NULL,
        sources=_list(),
    ),
    "CacheStats": _object("enabled", enabled=TRUTH),
    "CacheKeys": _object("keys count hasMore", keys=_list(TEXT), count=COUNT, hasMore=TRUTH),
}
CONTENT_TYPES: Final = {
    "html": "text/html",
    "file": "text/*",
    "metrics": "text/plain",
    "events": "text/event-stream",
}


TEXTS: Final = {
    200: "The answer.",
    202: "It has begun.",
    400: "A parameter is missing, unknown or wrong.",
    401: "The header `Authorization` is missing, or its token is wrong.",
    403: "Not with this token, or not as the worker is configured.",
    404: "There is none.",
    409: "Not in the present state.",
    413: "The body is too large.",
    429: "Too soon; `Retry-After` has the seconds.",
    503: "Not now: a dependency does not answer, or there are too many listeners.",
}
ROLES: Final = {
    Access.ALL: "",
    Access.COUNTS: " For viewers and operators; counts and states without a token, with API_OPEN_READS=true.",
    Access.VIEWERS: " For viewers and operators.",
    Access.PRODUCERS: " For viewers and operators, and for producers, who name one of their tenants.",
    Access.OPERATORS: " For operators.",
    Access.DESTROYERS: " For operators, with ALLOW_DESTRUCTIVE_HTTP=true.",
}


def describe(version: str, routes: Iterable[Route] = ROUTES) -> dict[str, Any]:
    """Return the description of *routes*, of the worker with *version*."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "simplu-worker",
            "version": version,
            "description": "Health, metrics, the state of a replica and of its fleet, and answers about operations. "
            "docs/outcomes.md describes all of it.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "API_TOKEN, API_VIEWER_TOKEN or one of API_TOKENS_FILE.",
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": route.summary + ROLES[route.access],
        "responses": {str(status): _response(status, name) for status, name in sorted(_answers(route).items())},
    }
    if route.access is not Access.ALL:
        operation["security"] = [{"token": []}, {}] if route.access is Access.COUNTS else [{"token": []}]
    if route.parameters:
        operation["parameters"] = [_parameter(one) for one in route.parameters]
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body)}}
        operation["requestBody"] = {"content": content, "required": False}
    return operation


def _answers(route: Route) -> dict[int, str]:
    """Return the schemas of all answers by HTTP status; a 500 is a bug, and not described."""
    statuses: set[int] = set()
    if route.answer is not Answer.AT_ONCE:
        statuses |= {503}
    if route.access is not Access.ALL:
        statuses |= {401, 403}
    if route.parameters or route.body:
        statuses |= {400}
    if route.body:
        statuses |= {413}
    return dict.fromkeys(statuses, "Error") | dict(route.answers)


def _response(status: int, name: str) -> dict[str, Any]:
    if name in CONTENT_TYPES:
        return {"description": TEXTS[status], "content": {CONTENT_TYPES[name]: {"schema": {"type": "string"}}}}
    schema = _reference(name)
    if status == 404 and name != "Error":
        schema = {"anyOf": [schema, _reference("Error")]}
    response = {"description": TEXTS[status], "content": {"application/json": {"schema": schema}}}
    if status == 429:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return response


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.is_required,
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }
