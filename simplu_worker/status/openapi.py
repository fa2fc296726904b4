"""The interface as OpenAPI 3.1, made from the table of routes and its types. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from simplu_worker.status.answers import Error
from simplu_worker.status.routes import CONTENT_TYPES, ROUTES, Access, Answer, Parameter, Route

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
_REFERENCES, SCHEMAS = msgspec.json.schema_components(_KINDS, ref_template="#/components/schemas/{name}")
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
        content = {"application/json": {"schema": _REFERENCE_OF[route.body]}}
        operation["requestBody"] = {"content": content, "required": False}
    return operation


def _answers(route: Route) -> dict[int, type | str]:
    statuses: set[int] = set()
    if route.answer is not Answer.AT_ONCE:
        statuses |= {503}
    if route.access is not Access.ALL:
        statuses |= {401, 403}
    if route.parameters or route.body:
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


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.is_required,
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }
