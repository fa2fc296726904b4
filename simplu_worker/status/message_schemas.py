"""JSON Schemas of messages, dead letters and events of the feed, made from their types.

A schema accepts what may be sent, and refuses what JSON Schema can refuse of the rest.

The interface as OpenAPI 3.1, made from the table of routes and its types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

import msgspec

from simplu_worker.consumers.sqs import control_messages
from simplu_worker.consumers.sqs.order_messages import ORDER_KINDS, OrderMembers
from simplu_worker.dead_letters.letter import LetterMembers
from simplu_worker.feed.cloud_events import TYPE_PREFIX, CloudEventMembers
from simplu_worker.feed.types import EventBounds
from simplu_worker.operations.decode import RecordMembers
from simplu_worker.operations.list_query import Pagination
from simplu_worker.operations.operation import DERIVED_REQUEST_ID_PREFIX
from simplu_worker.operations.verbs import KINDS_WITH_DATA, KINDS_WITH_ID
from simplu_worker.status.answers import Error
from simplu_worker.status.request_bodies import STORABLE
from simplu_worker.status.routes import CONTENT_TYPES, PLACES, ROUTES, Access, Answer, Route
from simplu_worker.vocabulary import FeedKind, OperationKind

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
OWN_REQUEST_ID: Final = STORABLE.replace("^", f"^(?!{DERIVED_REQUEST_ID_PREFIX})", 1)
OBJECT_OR_NULL: Final[Schema] = {"type": ["object", "null"]}
OBJECT: Final[Schema] = {"type": "object"}
TEXT: Final[Schema] = {"type": "string"}
OF_THE_CODE: Final = (
    "title",
    "description",
    "default",
    "uniqueItems",
)  # in msgspec's schemas: for those who read the code
KEPT_FOR_REPLAYS: Final = frozenset({"simpluReplay", "firstSentAt"})
RECORD_FORMS: Final = ("record", "recordBase64", "recordGzip")


def members_of(kind: type[msgspec.Struct], **rules: Schema) -> Schema:
    """Return the schema of an object of *kind*; *rules* has what types do not say."""
    fields = [one for one in msgspec.structs.fields(kind) if one.encode_name not in KEPT_FOR_REPLAYS]
    return {
        "type": "object",
        "properties": {one.encode_name: schema_of(one.type) | rules.get(one.encode_name, {}) for one in fields},
        "required": [one.encode_name for one in fields if one.required],
    }


def schema_of(kind: Any) -> Schema:
    """Return the schema of a type."""
    (schema,), parts = msgspec.json.schema_components((kind,), ref_template="{name}")
    resolved: Schema = _resolve(schema, parts)
    return resolved


def _resolve(value: Any, parts: dict[str, Any]) -> Any:
    match value:
        case {"$ref": str(name)}:
            return _resolve(parts[name], parts)
        case dict():
            return {name: _resolve(one, parts) for name, one in value.items() if name not in OF_THE_CODE}
        case list():
            return [_resolve(one, parts) for one in value]
        case _:
            return value


def when(member: str, values: Iterable[str], then: Schema) -> Schema:
    """Return the rule *then* for objects whose *member* is one of *values*."""
    return {"if": {"properties": {member: {"enum": sorted(values)}}, "required": [member]}, "then": then}


def required(**members: Schema) -> Schema:
    """Return the rule that an object has *members*, each of its schema."""
    return {"required": [*members], "properties": members}


def document(title: str, text: str, schema: Schema, *rules: Schema) -> Schema:
    """Return *schema* as a document, with further *rules*."""
    return {"$schema": DIALECT, "title": title, "description": text} | schema | ({"allOf": [*rules]} if rules else {})


def _control(kind: control_messages.ControlType, text: str, members: Schema, *rules: Schema) -> Schema:
    own_type: Schema = {"messageType": {"enum": [kind, None]}}
    return document(kind, text, members | {"properties": own_type | members["properties"]}, *rules)


_ID: Final[Schema] = {"pattern": STORABLE}
_TENANT: Final = {"businessId": _ID, "locationId": _ID}
_PAGINATION: Final = {"properties": members_of(Pagination)["properties"]}

NOT_EMPTY: Final[Schema] = {"type": "string", "minLength": 1}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
RESOURCE_TYPES: Final = [TYPE_PREFIX + kind for kind in FeedKind if kind.startswith("resource.")]
TENANT_TYPES: Final = [TYPE_PREFIX + kind for kind in FeedKind if kind.startswith("tenant.")]
OF_TENANT: Final = ("simplutenant", "simplubusiness", "simplulocation", "simplubusinesstype")
OF_RESOURCE: Final = (*OF_TENANT, "simpluresourcetype", "simpluresourceid")


def _event() -> Schema:
    members = members_of(CloudEventMembers)
    for name in members["properties"]:
        members["properties"][name] = NOT_EMPTY
    members["properties"] |= {
        "specversion": {"const": "1.0"},
        "type": {"enum": [TYPE_PREFIX + kind for kind in FeedKind]},
        "time": TIME,
        "simpludata": {"enum": ["current", "omitted"]},
        "datacontenttype": {"const": "application/json"},
        "data": {},
    }
    return members


SCHEMAS: Final[dict[str, Schema]] = {
    "operation": document(
        "Operation",
        "A record of the stream, or one of several operations in a record.",
        members_of(
            RecordMembers,
            operation={"enum": [*OperationKind]},
            **_TENANT,
            resourceType=_ID,
            resourceId=_ID,
            requestId={"pattern": OWN_REQUEST_ID},
            data=OBJECT_OR_NULL,
            filters=OBJECT_OR_NULL,
            pagination=OBJECT_OR_NULL,
        ),
        when("operation", KINDS_WITH_ID, required(resourceId=TEXT)),
        when("operation", KINDS_WITH_DATA, required(data=OBJECT)),
        when("operation", [OperationKind.LIST], {"properties": {"pagination": _PAGINATION}}),
    ),
    "order-event": document(
        "Order event",
        "A message of an order queue. Its tenant may be in message attributes instead.",
        members_of(
            OrderMembers,
            type={"enum": [*ORDER_KINDS]},
            **_TENANT,
            orderId=_ID,
            deduplicationId={"pattern": OWN_REQUEST_ID},
            data=OBJECT_OR_NULL,
        ),
        when("type", ORDER_KINDS.keys() - {"CREATE"}, required(orderId=TEXT)),
        when("type", ORDER_KINDS.keys() - {"DELETE"}, required(data=OBJECT)),
    ),
    "shard-creation": _control(
        control_messages.ControlType.SHARD_CREATION,
        "Creates a tenant.",
        members_of(control_messages.CreationMembers, **_TENANT, businessType=_ID),
    ),
    "shard-destruction": _control(
        control_messages.ControlType.SHARD_DESTRUCTION,
        "Destroys a tenant, or every tenant of a business.",
        members_of(
            control_messages.DestructionMembers, businessId=_ID, action={"enum": [*control_messages.DestructionAction]}
        ),
        when(
            "action",
            [control_messages.DestructionAction.DESTROY],
            required(locationId={"type": "string", "minLength": 1, "maxLength": control_messages.ID_MAX_CHARS} | _ID),
        ),
    ),
    "update-resource-id": _control(
        control_messages.ControlType.UPDATE_RESOURCE_ID,
        "Gives a resource another id.",
        members_of(
            control_messages.RenameMembers,
            **_TENANT,
            resourceType=_ID,
            oldResourceId=_ID,
            newResourceId=_ID,
            additionalData=OBJECT_OR_NULL,
        ),
    ),
    "admin-account-creation": _control(
        control_messages.ControlType.ADMIN_ACCOUNT_CREATION,
        "Adds the administrator of a tenant.",
        members_of(control_messages.AdminMembers, **_TENANT, businessType=_ID, adminEmail=_ID, adminUserId=_ID),
    ),
    "dead-letter": document(
        "Dead letter",
        "What can never be applied, and why. The worker writes it.",
        members_of(LetterMembers, record={"pattern": r"^[^\ud800-\udfff]*$"})
        | {"anyOf": [required(**{form: TEXT}) for form in RECORD_FORMS]},
        {
            "if": required(truncated={"const": True}),
            "then": required(recordBytes={"type": "integer"}, recordSha256=TEXT),
        },
    ),
    "feed-event": document(
        "Event of the feed",
        "A change, or what became of events sent before: CloudEvents 1.0. The worker writes it.",
        _event(),
        when("type", RESOURCE_TYPES, required(**dict.fromkeys(OF_RESOURCE, NOT_EMPTY))),
        when("type", TENANT_TYPES, required(**dict.fromkeys(OF_TENANT, NOT_EMPTY))),
        when(
            "type",
            [TYPE_PREFIX + kind for kind in (FeedKind.RESET, FeedKind.GAP)],
            required(data=members_of(EventBounds, toTime=TIME)),
        ),
        {"if": required(simpludata={"const": "current"}), "then": {"required": ["data"]}},
    ),
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


_KINDS: Final = dict.fromkeys(
    [Error, *(kind for route in ROUTES for kind in (*route.answers.values(), route.body) if isinstance(kind, type))]
)
_REFERENCES, OPENAPI_SCHEMAS = msgspec.json.schema_components(_KINDS, ref_template="#/components/schemas/{name}")
_REFERENCE_OF: Final = dict(zip(_KINDS, _REFERENCES, strict=True))


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
            "schemas": OPENAPI_SCHEMAS,
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
    if parameters := [*_parameters(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": _REFERENCE_OF[route.body]}}
        operation["requestBody"] = {"content": content, "required": False}
    return operation


def _answers(route: Route) -> dict[int, type | str]:
    statuses: set[int] = set()
    if route.answer is not Answer.AT_ONCE:
        statuses |= {503}
    if route.access is not Access.ALL:
        statuses |= {401, 403}
    if route.places or route.query or route.body:
        statuses |= {400}
    if route.body:
        statuses |= {413}
    return dict.fromkeys(statuses, Error) | dict(route.answers)


def _response(status: int, kind: type | str) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"description": TEXTS[status], "content": {CONTENT_TYPES[kind]: {"schema": {"type": "string"}}}}
    schema = _REFERENCE_OF[kind]
    if status == 404 and kind is not Error:
        schema = {"anyOf": [schema, _REFERENCE_OF[Error]]}
    response = {"description": TEXTS[status], "content": {"application/json": {"schema": schema}}}
    if status == 429:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return response


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in route.places:
        text, length_max = PLACES[name]
        schema = {"type": "string", "minLength": 1, "maxLength": length_max}
        yield {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
    for one in () if route.query is None else msgspec.structs.fields(route.query):
        schema = schema_of(one.type)
        forms: Any = schema.get("anyOf", [schema])  # the last one is null: a parameter is there, or not
        yield {
            "name": one.encode_name,
            "in": "query",
            "required": one.required,
            "description": get_args(one.type)[-1].description,
            "schema": forms[0],
        }
